//! Settings: every one is a flag with an environment variable, typed here at the edge. Nothing below reads the environment.
//!
//! A group that another module takes in a form of its own has a file of its own, with how it becomes that; those that are taken
//! as they are stay here. `values` reads the text of a setting.

mod job;
mod nats;
mod queue;
mod values;

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, ValueEnum};

use self::values::{address, log_filter, not_empty, whole};
pub use self::{
    job::{HangUp, JobArgs, Selector},
    nats::{MonitoringUrls, NatsArgs},
    queue::QueueArgs,
    values::at_least,
};

/// All settings.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub nats: NatsArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub queue: QueueArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub runner: RunnerArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub job: JobArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub http: HttpArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogArgs,
}

/// Where Jobs run.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Runner")]
pub struct RunnerArgs {
    /// Where Jobs run; by default kubernetes in a cluster or with a kubeconfig
    #[arg(long, env = "RUNNER", global = true, value_enum)]
    pub runner: Option<RunnerKind>,
    /// Identity among the clusters and machines that share the queue; by default the UID of the Job namespace, or one kept in
    /// STATE_DIR
    #[arg(long, env = "CLUSTER_NAME", global = true, value_parser = not_empty)]
    pub cluster_name: Option<String>,
    /// Local runner: folder of state and logs; by default sipstuff-operator under the user's state directory
    #[arg(long, env = "STATE_DIR", global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Local runner: command in place of `python3 -m sipstuff.cli`
    #[arg(long, env = "LOCAL_CALLER", global = true, value_name = "COMMAND")]
    pub local_caller: Option<String>,
    /// Local runner: file of NAME=VALUE lines that stands for the credentials Secret
    #[arg(long, env = "LOCAL_SECRETS_FILE", global = true, value_name = "FILE")]
    pub local_secrets_file: Option<PathBuf>,
}

/// The runners there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RunnerKind {
    /// Jobs of a Kubernetes cluster.
    Kubernetes,
    /// Processes of this machine.
    Local,
}

/// The HTTP API, and the listener of probes and metrics.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpArgs {
    /// Address to listen on. The API has no authentication yet: let only trusted networks reach it
    #[arg(long, env = "HOST", default_value = "127.0.0.1", global = true, value_parser = address)]
    pub host: IpAddr,
    /// Port to listen on; 0 for a free one
    #[arg(long, env = "PORT", default_value_t = 8080, global = true, value_parser = whole(0_u16..=u16::MAX))]
    pub port: u16,
    /// Address of the probes and metrics; by default HOST
    #[arg(long, env = "ADMIN_HOST", global = true, value_parser = address)]
    pub admin_host: Option<IpAddr>,
    /// Port of the probes and metrics (/livez, /readyz, /health, /metrics), which answer there however busy the API is; 0 for a
    /// free one
    #[arg(long, env = "ADMIN_PORT", default_value_t = 8081, global = true, value_parser = whole(0_u16..=u16::MAX))]
    pub admin_port: u16,
}

/// The log.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// What is logged: a level, or `target=level` pairs separated by commas
    #[arg(long, env = "RUST_LOG", default_value = "info", global = true, value_parser = log_filter)]
    pub rust_log: String,
    /// How it is written
    #[arg(long, env = "LOG_FORMAT", default_value = "text", global = true, value_enum)]
    pub log_format: LogFormat,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// A setting that is not what it must be, found after the command line was read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct BadSetting(String);
