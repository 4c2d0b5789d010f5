//! `pause` and `resume`: whether new calls are dialled. They set a key that every replica watches, so they also work
//! before the first operator has started.

use std::time::Duration;

use anyhow::Result;
use async_nats::jetstream::kv::Store;
use jiff::Timestamp;

use super::nats_session::{self, NatsSession};
use crate::clock::now;
use crate::config::Settings;
use crate::nats::streams;
use crate::queue::control::{self, Paused};

/// Pauses, for a while or until resumed.
///
/// # Errors
/// NATS does not answer, or refuses.
pub async fn pause(duration: Option<Duration>, reason: Option<String>, settings: &Settings) -> Result<()> {
    let since = now();
    let until = duration.map(|duration| since.checked_add(duration).unwrap_or(Timestamp::MAX));
    let paused = Paused { until, by: user(), reason, since: Some(since) };
    control::pause(&bucket(settings).await?, &paused).await?;
    match until {
        Some(until) => println!("no new calls are dialled until {until}; calls in progress continue"),
        None => println!("no new calls are dialled until `resume`; calls in progress continue"),
    }
    Ok(())
}

/// Resumes.
///
/// # Errors
/// NATS does not answer, or refuses.
pub async fn resume(settings: &Settings) -> Result<()> {
    control::resume(&bucket(settings).await?).await?;
    println!("calls are dialled again");
    Ok(())
}

async fn bucket(settings: &Settings) -> Result<Store> {
    let NatsSession { jetstream, .. } = nats_session::open(settings).await?;
    Ok(streams::bucket(&jetstream, &settings.queue.settings()).await?)
}

/// The user who runs this, if the environment says so.
fn user() -> Option<String> {
    ["USER", "HOSTNAME"].into_iter().find_map(|name| std::env::var(name).ok()).filter(|name| !name.is_empty())
}
