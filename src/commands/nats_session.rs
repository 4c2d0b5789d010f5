//! One connection to NATS for a command that does one thing and ends: no waiting for a server that is away.

use anyhow::{Context, Result};
use async_nats::jetstream;

use crate::{
    config::Settings,
    nats::{Names, connect},
};

/// A connection.
pub struct NatsSession {
    /// JetStream on it.
    pub jetstream: jetstream::Context,
    /// How streams and subjects are called.
    pub names: Names,
}

/// Connects, once.
///
/// # Errors
/// NATS does not answer, or the settings are wrong; the text names the address.
pub async fn open(settings: &Settings) -> Result<NatsSession> {
    let client = connect::connect(&settings.nats.settings()).await.context("NATS cannot be used")?;
    Ok(NatsSession { jetstream: connect::jetstream(client), names: settings.queue.settings().names })
}
