//! The connection to NATS: one for the process, reconnects by itself, without a limit.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream::context::AccountErrorKind;
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{Client, ClientError, ConnectErrorKind, ConnectOptions, Event};
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::watch;
use tokio::time::Instant;

use super::NatsError;

const JETSTREAM_IS_OFF: &str =
    "JetStream is off on this server: start it with `-js`, or with a `jetstream` block in its configuration";
const JETSTREAM_IS_OFF_FOR_ACCOUNT: &str =
    "JetStream is off for this account: add `jetstream: enabled` to the account in the server's configuration";

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
        self.addresses().into_iter().map(|(url, _)| url).collect::<Vec<_>>().join(",")
    }

    /// Each address without its credentials, and these.
    fn addresses(&self) -> Vec<(String, Option<&str>)> {
        self.url.split(',').map(|url| split_credentials(url.trim())).collect()
    }

    /// The variables that credentials are taken from.
    fn login_variables(&self) -> Vec<&'static str> {
        let Self { url: _, creds_file, nkey_file, user, password: _, token, ca_file: _, cert_file, key_file: _ } = self;
        let variables = [
            (creds_file.is_some(), "NATS_CREDS_FILE"),
            (nkey_file.is_some(), "NATS_NKEY_FILE"),
            (user.is_some(), "NATS_USER and NATS_PASSWORD"),
            (token.is_some(), "NATS_TOKEN"),
            (cert_file.is_some(), "NATS_CERT_FILE"),
            (self.addresses().iter().any(|(_, credentials)| credentials.is_some()), "the user in NATS_URL"),
        ];
        variables.into_iter().filter_map(|(is_set, name)| is_set.then_some(name)).collect()
    }
}

/// `nats://user:password@host` as `nats://host` and `user:password`.
fn split_credentials(url: &str) -> (String, Option<&str>) {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let (credentials, host) = rest.rsplit_once('@').map_or((None, rest), |(before, host)| (Some(before), host));
    let scheme = if scheme.is_empty() { String::new() } else { format!("{scheme}://") };
    (format!("{scheme}{host}"), credentials)
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Another try may help.
    #[error(transparent)]
    Unavailable(#[from] NatsError),
    /// The server does not let us in.
    #[error("{0}")]
    Refused(String),
    /// The server has no JetStream, or none for this account.
    #[error("{0}")]
    NoJetStream(&'static str),
    /// A file that the settings name cannot be read, or they contradict each other.
    #[error("{0}")]
    Settings(String),
    /// The server lacks what the queue is built on.
    #[error(
        "nats-server {0} is too old: 2.12 or newer is needed (message schedules, per-message TTL). Update the server"
    )]
    TooOld(String),
}

/// Since when the server has refused the credentials, at the first connection and when it reconnects.
#[derive(Debug, Clone, Default)]
pub struct Refusal(watch::Sender<Option<Instant>>);

impl Refusal {
    fn begins(&self) {
        self.0.send_if_modified(|since| since.is_none().then(|| *since = Some(Instant::now())).is_some());
    }

    fn ends(&self) {
        self.0.send_if_modified(|since| since.take().is_some());
    }

    /// Returns once the server has refused the credentials for that long, without accepting them in between.
    pub async fn has_lasted(&self, limit: Duration) {
        let mut changes = self.0.subscribe();
        loop {
            let since = *changes.borrow_and_update();
            tokio::select! {
                () = until(since.map(|since| since + limit)) => return,
                // The sender is here, so it does not end.
                _ = changes.changed() => {}
            }
        }
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Connects once; from then on the connection heals itself.
///
/// # Errors
/// [`ConnectError`], which distinguishes what can heal from what cannot.
pub async fn connect(settings: &NatsSettings) -> Result<Client, ConnectError> {
    connect_watched(settings, &Refusal::default()).await
}

/// As [`connect`], keeping `refusal` up to date, also later.
///
/// # Errors
/// As for [`connect`].
pub async fn connect_watched(settings: &NatsSettings, refusal: &Refusal) -> Result<Client, ConnectError> {
    let addresses: Vec<String> = settings.addresses().into_iter().map(|(url, _)| url).collect();
    let connected = options(settings, refusal).await?.connect(addresses).await;
    let client = connected.map_err(|error| match error.kind() {
        ConnectErrorKind::AuthorizationViolation => {
            refusal.begins();
            ConnectError::Refused(refused(settings))
        }
        ConnectErrorKind::Authentication => {
            let variable = if settings.nkey_file.is_some() { "NATS_NKEY_FILE" } else { "NATS_CREDS_FILE" };
            ConnectError::Settings(format!("{variable} does not hold a valid nkey seed"))
        }
        _ => {
            refusal.ends();
            NatsError::of(error).into()
        }
    })?;
    let (major, minor, patch) = OLDEST_SERVER;
    if !client.is_server_compatible(major, minor, patch) {
        return Err(ConnectError::TooOld(client.server_info().version));
    }
    has_jetstream(&client).await?;
    Ok(client)
}

/// In words, that the server does not let us in, and which settings to look at.
pub fn refused(settings: &NatsSettings) -> String {
    match settings.login_variables().as_slice() {
        [] => "the server asks for credentials, and none are set: set NATS_USER and NATS_PASSWORD, NATS_TOKEN, \
               NATS_NKEY_FILE or NATS_CREDS_FILE"
            .to_owned(),
        variables => format!("the server refuses these credentials: check {}", variables.join(", ")),
    }
}

/// Only what the server says for certain is an error: one that does not answer may be starting, and a user who may not ask may
/// still use the streams.
async fn has_jetstream(client: &Client) -> Result<(), ConnectError> {
    let Err(error) = jetstream(client.clone()).query_account().await else { return Ok(()) };
    Err(ConnectError::NoJetStream(match error.kind() {
        AccountErrorKind::JetStreamUnavailable => JETSTREAM_IS_OFF,
        AccountErrorKind::JetStream(error) => match error.error_code() {
            ErrorCode::JETSTREAM_NOT_ENABLED => JETSTREAM_IS_OFF,
            ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => JETSTREAM_IS_OFF_FOR_ACCOUNT,
            _ => return Ok(()),
        },
        _ => return Ok(()),
    }))
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

async fn options(settings: &NatsSettings, refusal: &Refusal) -> Result<ConnectOptions, ConnectError> {
    let refusal = refusal.clone();
    let options = ConnectOptions::new()
        .name(concat!("sipstuff-operator ", env!("CARGO_PKG_VERSION")))
        .connection_timeout(REQUEST_TIMEOUT)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .ping_interval(Duration::from_secs(10))
        .max_reconnects(None)
        .reconnect_delay_callback(|attempts| Duration::from_millis((50 * attempts as u64).min(2_000)))
        .event_callback(move |event| {
            note(&refusal, &event);
            async move { log_event(&event) }
        });
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
    options = match credentials_of_url(settings)? {
        Some((user, Some(password))) => options.user_and_password(user, password),
        Some((token, None)) => options.token(token),
        None => options,
    };
    if let (Some(user), Some(password)) = (&settings.user, &settings.password) {
        options = options.user_and_password(user.clone(), password.expose_secret().to_owned());
    }
    if let Some(token) = &settings.token {
        options = options.token(token.expose_secret().to_owned());
    }
    Ok(options)
}

/// The user and password in `NATS_URL`, or the token, which stands there alone. The client library has one login for all
/// addresses, so these may not differ.
fn credentials_of_url(settings: &NatsSettings) -> Result<Option<(String, Option<String>)>, ConnectError> {
    let mut all: Vec<&str> = settings.addresses().into_iter().filter_map(|(_, credentials)| credentials).collect();
    all.dedup();
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    match all.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(match one.split_once(':') {
            Some((user, password)) => (decoded(user), Some(decoded(password))),
            None => (decoded(one), None),
        })),
        _ => Err(ConnectError::Settings(
            "the addresses in NATS_URL have different credentials; give all the same".to_owned(),
        )),
    }
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

/// A reconnect that is refused comes as the text of its kind.
fn note(refusal: &Refusal, event: &Event) {
    match event {
        Event::Connected => refusal.ends(),
        Event::ClientError(ClientError::Other(text))
            if *text == ConnectErrorKind::AuthorizationViolation.to_string() =>
        {
            refusal.begins();
        }
        _ => {}
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(url: &str) -> NatsSettings {
        NatsSettings { url: url.to_owned(), ..Default::default() }
    }

    #[test]
    fn an_address_in_a_log_has_no_password() {
        let table = [
            ("nats://ann:s3cret@a:4222, nats://b:4222", "nats://a:4222,nats://b:4222"),
            ("ann:s3@cret@a", "a"),
            ("tls://t0ken@[::1]:4222", "tls://[::1]:4222"),
            ("nats://a", "nats://a"),
        ];
        for (url, expected) in table {
            assert_eq!(at(url).address(), expected);
        }
    }

    #[test]
    fn credentials_in_the_address_are_used_if_they_are_the_same_everywhere() {
        let of = |url: &str| credentials_of_url(&at(url)).map_err(|error| error.to_string());
        let ann = Some(("ann".to_owned(), Some("p@ss".to_owned())));
        assert_eq!(of("nats://a:4222"), Ok(None));
        assert_eq!(of("nats://ann:p%40ss@a:4222,nats://ann:p%40ss@b:4222"), Ok(ann));
        assert_eq!(of("nats://t0ken@a:4222"), Ok(Some(("t0ken".to_owned(), None))));
        let refusal = of("nats://ann:s3cret@a:4222,nats://bob:s3cret@b:4222").unwrap_err();
        assert!(refusal.contains("NATS_URL") && !refusal.contains("s3cret"), "{refusal}");
    }

    #[test]
    fn refused_credentials_are_named_by_their_variables() {
        assert!(refused(&at("nats://a")).contains("none are set"));
        let settings = NatsSettings { token: Some("t0ken".to_owned().into()), ..at("nats://ann:s3cret@a") };
        let text = refused(&settings);
        assert_eq!(text, "the server refuses these credentials: check NATS_TOKEN, the user in NATS_URL");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_lasts_from_its_first_sign_until_a_connection() {
        let (refusal, minute) = (Refusal::default(), Duration::from_secs(60));
        let begin = Instant::now();
        let refused = || Event::ClientError(ClientError::Other("authorization violation".to_owned()));
        let story = async {
            for event in [refused(), Event::Connected, refused(), refused(), refused()] {
                note(&refusal, &event);
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
        };
        tokio::join!(story, refusal.has_lasted(minute));
        assert_eq!(begin.elapsed().as_secs(), 40 + 60);
    }
}
