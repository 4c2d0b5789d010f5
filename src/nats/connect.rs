//! The connection to NATS: one for the process, reconnects by itself, without a limit.

use std::{path::PathBuf, time::Duration};

use async_nats::{Client, ConnectOptions, Event, jetstream};
use secrecy::{ExposeSecret, SecretString};

use super::NatsError;

/// The oldest server that has message schedules.
pub const OLDEST_SERVER: (i64, i64, i64) = (2, 12, 0);
/// How long an answer from NATS may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take whose work grows with the number of calls: with a million of them in the status log, the server
/// needs five seconds or more to make a consumer of their last records.
const LONG_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long what was sent may take to leave the process.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Publishes under way at once; more wait.
const MAX_ACKS_IN_FLIGHT: usize = 4096;

/// Where NATS is and how to log in.
#[derive(Debug, Clone, Default)]
pub struct NatsSettings {
    /// `NATS_URL`: one or more `nats://` or `tls://` addresses, separated by commas. May hold a user and password.
    pub url: String,
    /// `NATS_CREDS_FILE`.
    pub creds_file: Option<PathBuf>,
    /// `NATS_NKEY_FILE`: a file with the seed.
    pub nkey_file: Option<PathBuf>,
    /// `NATS_USER`.
    pub user: Option<String>,
    /// `NATS_PASSWORD`.
    pub password: Option<SecretString>,
    /// `NATS_TOKEN`.
    pub token: Option<SecretString>,
    /// `NATS_CA_FILE`.
    pub ca_file: Option<PathBuf>,
    /// `NATS_CERT_FILE`, with `NATS_KEY_FILE`.
    pub cert_file: Option<PathBuf>,
    /// `NATS_KEY_FILE`.
    pub key_file: Option<PathBuf>,
}

impl NatsSettings {
    /// The address without a user or password, for logs.
    pub fn address(&self) -> String {
        let without = |url: &str| match url.rsplit_once('@') {
            Some((head, host)) => {
                format!("{}{host}", head.split_once("://").map_or(String::new(), |(s, _)| format!("{s}://")))
            }
            None => url.to_owned(),
        };
        self.url.split(',').map(|url| without(url.trim())).collect::<Vec<_>>().join(",")
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Another try may help.
    #[error(transparent)]
    Unavailable(#[from] NatsError),
    /// A file that the settings name cannot be read, or they contradict each other.
    #[error("{0}")]
    Settings(String),
    /// The server lacks what the queue is built on.
    #[error(
        "nats-server {0} is too old: 2.12 or newer is needed (message schedules, per-message TTL). Update the server"
    )]
    TooOld(String),
}

/// Connects once; from then on the connection heals itself.
///
/// # Errors
/// [`ConnectError`], which tells what can heal from what cannot.
pub async fn connect(settings: &NatsSettings) -> Result<Client, ConnectError> {
    let addresses: Vec<&str> = settings.url.split(',').map(str::trim).collect();
    let client = options(settings)
        .await?
        .connect(addresses)
        .await
        .map_err(|error| NatsError::of(error).during(format!("connect to {}", settings.address())))?;
    let (major, minor, patch) = OLDEST_SERVER;
    if !client.is_server_compatible(major, minor, patch) {
        return Err(ConnectError::TooOld(client.server_info().version));
    }
    Ok(client)
}

/// JetStream over a connection, with the time limits of this program.
pub fn jetstream(client: Client) -> jetstream::Context {
    within(client, REQUEST_TIMEOUT)
}

/// As [`jetstream()`], for requests that take the server longer the more calls there are.
pub fn patient_jetstream(client: Client) -> jetstream::Context {
    within(client, LONG_REQUEST_TIMEOUT)
}

fn within(client: Client, timeout: Duration) -> jetstream::Context {
    jetstream::ContextBuilder::new()
        .timeout(timeout)
        .ack_timeout(REQUEST_TIMEOUT)
        .max_ack_inflight(MAX_ACKS_IN_FLIGHT)
        .build(client)
}

/// Waits until what was sent has left the process, but not for a connection that is lost: that may never come back.
pub async fn flush(client: &Client) {
    match tokio::time::timeout(FLUSH_TIMEOUT, client.flush()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "the connection could not be flushed"),
        Err(_) => tracing::debug!("the connection could not be flushed in time"),
    }
}

async fn options(settings: &NatsSettings) -> Result<ConnectOptions, ConnectError> {
    let options = ConnectOptions::new()
        .name(concat!("sipstuff-operator ", env!("CARGO_PKG_VERSION")))
        .connection_timeout(REQUEST_TIMEOUT)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .ping_interval(Duration::from_secs(10))
        .max_reconnects(None)
        .reconnect_delay_callback(|attempts| Duration::from_millis((50 * attempts as u64).min(2_000)))
        .event_callback(|event| async move { log_event(&event) });
    tls(login(options, settings).await?, settings)
}

async fn login(options: ConnectOptions, settings: &NatsSettings) -> Result<ConnectOptions, ConnectError> {
    let mut options = options;
    if let Some(path) = &settings.creds_file {
        options = options
            .credentials_file(path)
            .await
            .map_err(|error| ConnectError::Settings(format!("NATS_CREDS_FILE {}: {error}", path.display())))?;
    }
    if let Some(path) = &settings.nkey_file {
        let seed = tokio::fs::read_to_string(path)
            .await
            .map_err(|error| ConnectError::Settings(format!("NATS_NKEY_FILE {}: {error}", path.display())))?;
        options = options.nkey(seed.trim().to_owned());
    }
    if let (Some(user), Some(password)) = (&settings.user, &settings.password) {
        options = options.user_and_password(user.clone(), password.expose_secret().to_owned());
    }
    if let Some(token) = &settings.token {
        options = options.token(token.expose_secret().to_owned());
    }
    Ok(options)
}

fn tls(options: ConnectOptions, settings: &NatsSettings) -> Result<ConnectOptions, ConnectError> {
    let mut options = options;
    if let Some(path) = &settings.ca_file {
        options = options.add_root_certificates(path.clone()).require_tls(true);
    }
    match (&settings.cert_file, &settings.key_file) {
        (Some(cert), Some(key)) => Ok(options.add_client_certificate(cert.clone(), key.clone()).require_tls(true)),
        (None, None) => Ok(options),
        _ => Err(ConnectError::Settings("NATS_CERT_FILE and NATS_KEY_FILE go together: give both or none".to_owned())),
    }
}

fn log_event(event: &Event) {
    match event {
        Event::Connected => tracing::info!("connected to NATS"),
        Event::Disconnected => tracing::warn!("lost the connection to NATS, reconnecting"),
        Event::ServerError(error) => tracing::warn!(%error, "NATS reports an error"),
        Event::ClientError(error) => tracing::debug!(%error, "NATS connection"),
        other => tracing::debug!(event = %other, "NATS connection"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_a_log_has_no_password() {
        let settings = NatsSettings { url: "nats://ann:s3cret@a:4222, nats://b:4222".to_owned(), ..Default::default() };
        assert_eq!(settings.address(), "nats://a:4222,nats://b:4222");
    }
}
