//! Connects to NATS: for a command that does one thing and ends, and for `serve`, which waits for the server.

use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use async_nats::{Client, jetstream};

use crate::api::Api;
use crate::config::Settings;
use crate::error_chain::error_chain;
use crate::nats::Names;
use crate::nats::connect::{self, ConnectError, Refusal};
use crate::retry::Retry;

/// How long the server may refuse the credentials before `serve` ends: new ones may be about to be rolled out.
const REFUSED_FOR: Duration = Duration::from_secs(60);

/// A connection.
pub struct NatsSession {
    /// JetStream on it.
    pub jetstream: jetstream::Context,
    /// The names of streams and subjects.
    pub names: Names,
}

/// Connects, once.
///
/// # Errors
/// NATS does not answer, or the settings are wrong; the text names the address.
pub async fn open(settings: &Settings) -> Result<NatsSession> {
    let nats = settings.nats.settings();
    let client = connect::connect(&nats).await.with_context(|| format!("cannot use NATS at {}", nats.address()))?;
    Ok(NatsSession { jetstream: connect::jetstream(client), names: settings.queue.settings().names })
}

/// Connects, however long it takes. Meanwhile `/readyz` says what is wrong, if it is known.
///
/// # Errors
/// What no retry can fix: the settings are wrong, or the server is too old.
pub async fn open_patiently(settings: &Settings, api: &Api, refusal: &Refusal) -> Result<Client> {
    let nats = settings.nats.settings();
    let mut retry = Retry::new(format!("connect to NATS at {}", nats.address()));
    loop {
        let error = match connect::connect_watched(&nats, refusal).await {
            Ok(client) => {
                api.set_nats_remark(None);
                return Ok(client);
            }
            Err(error @ (ConnectError::Settings(_) | ConnectError::TooOld(_))) => return Err(error.into()),
            Err(error) => error,
        };
        let remark = match &error {
            ConnectError::Unavailable(_) => None,
            known => Some(known.to_string()),
        };
        api.set_nats_remark(remark);
        tokio::time::sleep(retry.failed(error_chain(&error))).await;
    }
}

/// Returns the error to end with once the server has refused the credentials for a minute, at the start or later.
pub async fn refused_for_long(settings: &Settings, refusal: &Refusal) -> Error {
    refusal.has_lasted(REFUSED_FOR).await;
    let nats = settings.nats.settings();
    anyhow!("NATS at {} has refused this operator for {REFUSED_FOR:?}: {}", nats.address(), connect::refused(&nats))
}
