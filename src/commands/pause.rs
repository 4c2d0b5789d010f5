//! `pause` and `resume`: whether new calls are dialled. The server itself in_flight them back, for every replica.

use std::time::Duration;

use anyhow::Result;

use super::nats_session::{self, NatsSession};
use crate::{config::Settings, queue::control};

/// Pauses, for a while or until resumed.
///
/// # Errors
/// NATS does not answer, or there is no queue yet.
pub async fn pause(duration: Option<Duration>, settings: &Settings) -> Result<()> {
    let NatsSession { jetstream, names } = nats_session::open(settings).await?;
    let until = control::pause(&jetstream, &names, duration).await?;
    match duration {
        Some(_) => println!("no new call is dialled until {until}; calls in progress go on"),
        None => println!("no new call is dialled until `resume`; calls in progress go on"),
    }
    Ok(())
}

/// Resumes.
///
/// # Errors
/// NATS does not answer, or there is no queue yet.
pub async fn resume(settings: &Settings) -> Result<()> {
    let NatsSession { jetstream, names } = nats_session::open(settings).await?;
    control::resume(&jetstream, &names).await?;
    println!("calls are dialled again");
    Ok(())
}
