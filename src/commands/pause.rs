//! `pause` and `resume`: whether new calls are dialled. They set a key that every replica watches, so they also work
//! before the first operator has started.

use std::time::Duration;

use anyhow::{Result, ensure};
use async_nats::jetstream::kv::Store;
use clap::Args;
use jiff::Timestamp;

use super::nats_session::{self, NatsSession};
use super::trunks::{self, TrunksCommand};
use crate::call::validate::names;
use crate::clock::now;
use crate::config::Settings;
use crate::nats::streams;
use crate::queue::control::{self, Paused};

/// What is paused or resumed: everything, unless one of these is named.
#[derive(Debug, Clone, Args)]
#[group(multiple = false)]
pub struct PauseScope {
    /// Only the calls of this batch
    #[arg(long, value_name = "NAME", value_parser = batch_name)]
    batch: Option<String>,
    /// Only the calls that no other trunk can dial, by opening this one's breaker: see `trunks`
    #[arg(long, value_name = "NAME")]
    trunk: Option<String>,
}

fn batch_name(text: &str) -> Result<String, String> {
    let is_name = !text.is_empty() && names::is_label_value(text);
    if is_name { Ok(text.to_owned()) } else { Err(format!("not a batch; pass {}", names::LABEL_VALUE_IS)) }
}

/// Pauses, for a while or until resumed.
///
/// # Errors
/// NATS does not answer, or refuses.
pub async fn pause(
    what: PauseScope,
    duration: Option<Duration>,
    reason: Option<String>,
    settings: &Settings,
) -> Result<()> {
    if let Some(name) = what.trunk {
        let why = reason.unwrap_or_else(|| "paused by hand".to_owned());
        return trunks::run(TrunksCommand::Open { name, why }, settings).await;
    }
    let since = now();
    let until = duration.map(|duration| since.checked_add(duration).unwrap_or(Timestamp::MAX));
    let paused = Paused { until, by: user(), reason, since: Some(since) };
    let bucket = bucket(settings).await?;
    let calls = match &what.batch {
        None => {
            control::pause(&bucket, &paused).await?;
            "no new calls are".to_owned()
        }
        Some(batch) => {
            let is_paused = control::pause_batch(&bucket, batch, &paused).await?;
            ensure!(is_paused, "too many batches are paused; resume some first");
            format!("no new calls of batch {batch} are")
        }
    };
    match until {
        Some(until) => println!("{calls} dialled until {until}; calls in progress continue"),
        None => println!("{calls} dialled until `resume`; calls in progress continue"),
    }
    Ok(())
}

/// Resumes.
///
/// # Errors
/// NATS does not answer, or refuses.
pub async fn resume(what: PauseScope, settings: &Settings) -> Result<()> {
    match what {
        PauseScope { trunk: Some(name), .. } => {
            trunks::run(TrunksCommand::Close { name, why: "resumed by hand".to_owned() }, settings).await?;
        }
        PauseScope { batch: Some(batch), .. } => {
            control::resume_batch(&bucket(settings).await?, &batch).await?;
            println!("calls of batch {batch} are dialled again");
        }
        PauseScope { .. } => {
            control::resume(&bucket(settings).await?).await?;
            println!("calls are dialled again");
        }
    }
    Ok(())
}

async fn bucket(settings: &Settings) -> Result<Store> {
    let NatsSession { jetstream, .. } = nats_session::open(settings).await?;
    Ok(streams::bucket(&jetstream, &settings.queue.settings()).await?)
}

/// The user who runs this, if the environment says so.
pub(super) fn user() -> Option<String> {
    ["USER", "HOSTNAME"].into_iter().find_map(|name| std::env::var(name).ok()).filter(|name| !name.is_empty())
}
