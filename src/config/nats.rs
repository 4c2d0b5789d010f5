//! How to reach NATS: the flags, and the [`NatsSettings`] made from them, side by side so that one without the other is
//! noticed.

use std::path::PathBuf;

use clap::Args;
use secrecy::SecretString;

use super::values::monitoring_urls;
use crate::nats::{MonitoringUrl, NatsSettings};

/// How to reach NATS.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "NATS")]
pub struct NatsArgs {
    /// Address of nats-server 2.12 or newer; several, separated by commas. May include credentials:
    /// nats://user:password@host
    #[arg(long, env = "NATS_URL", default_value = "nats://127.0.0.1:4222", global = true, hide_env_values = true)]
    pub nats_url: String,
    /// Credentials file (JWT and seed)
    #[arg(long, env = "NATS_CREDS_FILE", global = true, value_name = "FILE")]
    pub nats_creds_file: Option<PathBuf>,
    /// File with an nkey seed
    #[arg(long, env = "NATS_NKEY_FILE", global = true, value_name = "FILE")]
    pub nats_nkey_file: Option<PathBuf>,
    /// User name, with NATS_PASSWORD
    #[arg(long, env = "NATS_USER", global = true, requires = "nats_password")]
    pub nats_user: Option<String>,
    /// Password of NATS_USER
    #[arg(long, env = "NATS_PASSWORD", global = true, hide_env_values = true)]
    pub nats_password: Option<SecretString>,
    /// Token
    #[arg(long, env = "NATS_TOKEN", global = true, hide_env_values = true)]
    pub nats_token: Option<SecretString>,
    /// PEM file of the certificate authority; requires TLS
    #[arg(long, env = "NATS_CA_FILE", global = true, value_name = "FILE")]
    pub nats_ca_file: Option<PathBuf>,
    /// PEM file of a client certificate, with NATS_KEY_FILE
    #[arg(long, env = "NATS_CERT_FILE", global = true, value_name = "FILE")]
    pub nats_cert_file: Option<PathBuf>,
    /// PEM file of the client certificate's key
    #[arg(long, env = "NATS_KEY_FILE", global = true, value_name = "FILE")]
    pub nats_key_file: Option<PathBuf>,
    /// Address of the server's monitoring port, such as http://nats:8222; several, separated by commas. With it, /readyz and
    /// conntest say what a power loss may lose
    #[arg(long, env = "NATS_MONITORING_URL", global = true, value_parser = monitoring_urls, value_name = "URL,…", hide_env_values = true)]
    pub nats_monitoring_url: Option<MonitoringUrls>,
}

/// The monitoring ports of all servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MonitoringUrls(pub Vec<MonitoringUrl>);

impl NatsArgs {
    /// The form that [`crate::nats`] works with.
    pub fn settings(&self) -> NatsSettings {
        let Self {
            nats_url,
            nats_creds_file,
            nats_nkey_file,
            nats_user,
            nats_password,
            nats_token,
            nats_ca_file,
            nats_cert_file,
            nats_key_file,
            nats_monitoring_url: _,
        } = self.clone();
        NatsSettings {
            url: nats_url,
            creds_file: nats_creds_file,
            nkey_file: nats_nkey_file,
            user: nats_user,
            password: nats_password,
            token: nats_token,
            ca_file: nats_ca_file,
            cert_file: nats_cert_file,
            key_file: nats_key_file,
        }
    }
}
