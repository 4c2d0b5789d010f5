//! What nats-server's monitoring port says about when it syncs its files. A client cannot ask for it over its connection, and
//! what was acknowledged before it was synced is lost with the power.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::error_chain::error_chain;

/// How long the whole of one question may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The answer has about a thousand bytes.
const LARGEST_ANSWER: usize = 1024 * 1024;
/// What nats-server itself listens on, if it is not told otherwise.
const DEFAULT_PORT: u16 = 8222;

/// When a nats-server syncs its files to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sync {
    /// Before it acknowledges a message.
    Always,
    /// In that interval; what it has acknowledged since may be lost with the power.
    Every(Duration),
}

/// The address of a monitoring port, such as `http://nats:8222`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MonitoringUrl {
    host: String,
    port: u16,
    base: String,
}

/// Why a server did not say.
#[derive(Debug, thiserror::Error)]
#[error("{url}: {why}")]
pub struct MonitoringError {
    url: MonitoringUrl,
    why: String,
}

/// The part of `/jsz?config=true` that is of interest.
#[derive(Deserialize)]
struct JetStreamInfo {
    #[serde(default)]
    disabled: bool,
    config: Option<JetStreamConfig>,
}

#[derive(Deserialize)]
struct JetStreamConfig {
    /// Nanoseconds. Also there when it is of no use, with `sync_always`.
    #[serde(default)]
    sync_interval: u64,
    #[serde(default)]
    sync_always: bool,
}

impl FromStr for MonitoringUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Without the text: there may be a password in it.
        let accepted =
            || "accepted: http://HOST:PORT, such as http://nats:8222; several, separated by commas".to_owned();
        let uri: Uri = text.trim().parse().map_err(|_| accepted())?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(accepted)?;
        if uri.scheme_str() != Some("http") || authority.host().is_empty() || uri.query().is_some() {
            return Err(accepted());
        }
        let port = authority.port_u16().unwrap_or(DEFAULT_PORT);
        Ok(Self { host: authority.host().to_owned(), port, base: uri.path().trim_end_matches('/').to_owned() })
    }
}

impl fmt::Display for MonitoringUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, base } = self;
        write!(f, "http://{host}:{port}{base}")
    }
}

/// When the least careful of these servers syncs; all are asked at the same time, for 2 s at most.
///
/// # Errors
/// [`MonitoringError`]: one of them did not say.
pub async fn sync_of(urls: &[MonitoringUrl]) -> Result<Sync, MonitoringError> {
    let each = futures::future::try_join_all(urls.iter().map(ask)).await?;
    Ok(each.into_iter().max().unwrap_or(Sync::Always))
}

async fn ask(url: &MonitoringUrl) -> Result<Sync, MonitoringError> {
    let answer = timeout(TIMEOUT, get(url)).await.unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}")));
    answer.and_then(|body| sync_in(&body)).map_err(|why| MonitoringError { url: url.clone(), why })
}

async fn get(url: &MonitoringUrl) -> Result<Bytes, String> {
    let host = url.host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, url.port)).await.map_err(|error| error_chain(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error_chain(&error))?;
    let request = Request::get(format!("{}/jsz?config=true", url.base))
        .header(header::HOST, format!("{}:{}", url.host, url.port))
        .body(Empty::<Bytes>::new())
        .map_err(|error| error_chain(&error))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| error_chain(&error))?;
        if !response.status().is_success() {
            return Err(format!("it answers {}", response.status()));
        }
        let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| error_chain(error.as_ref()))
    };
    // The connection has to be driven while its answer is awaited, and goes with it.
    tokio::pin!(answer, connection);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error_chain(&error)),
        },
    }
}

fn sync_in(body: &[u8]) -> Result<Sync, String> {
    let unknown = || "its answer is not that of a nats-server with JetStream".to_owned();
    let JetStreamInfo { disabled, config } = serde_json::from_slice(body).map_err(|_| unknown())?;
    match config {
        _ if disabled => Err("JetStream is off on this server: start it with `-js`".to_owned()),
        Some(JetStreamConfig { sync_always: true, .. }) => Ok(Sync::Always),
        Some(JetStreamConfig { sync_interval, .. }) if sync_interval > 0 => {
            Ok(Sync::Every(Duration::from_nanos(sync_interval)))
        }
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_http_with_a_host_and_has_the_servers_port_by_default() {
        let table = [
            ("http://nats:8222", "http://nats:8222"),
            ("http://nats", "http://nats:8222"),
            ("http://10.0.0.1:80/nats/", "http://10.0.0.1:80/nats"),
            ("http://[::1]:8222", "http://[::1]:8222"),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<MonitoringUrl>().map(|url| url.to_string()), Ok(expected.to_owned()));
        }
        for text in ["", "nats:8222", "https://nats:8222", "http://ann:pw@nats:8222", "nats://nats:4222", "http://"] {
            assert!(text.parse::<MonitoringUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_2_15_2_answers_is_understood() {
        let always = br#"{"config": {"store_dir": "/data", "sync_interval": 120000000000, "sync_always": true}}"#;
        assert_eq!(sync_in(always), Ok(Sync::Always));
        let default = br#"{"config": {"store_dir": "/data", "sync_interval": 120000000000, "strict": true}}"#;
        assert_eq!(sync_in(default), Ok(Sync::Every(Duration::from_secs(120))));
        assert!(sync_in(br#"{"disabled": true}"#).is_err_and(|error| error.contains("-js")));
        for other in [&b"<html>"[..], b"{}", br#"{"config": {}}"#] {
            assert!(sync_in(other).is_err());
        }
    }
}
