//! Steering the queue as a whole: pausing it, and telling how full it is.

use std::time::Duration;

use async_nats::jetstream::{Context, consumer::PullConsumer};
use jiff::Timestamp;

use crate::{
    clock::now,
    nats::{Names, NatsError, timestamp},
};

/// A pause without an end: ten years.
const UNTIL_RESUMED: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How the queue is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct QueueState {
    /// Calls that wait to be dialled, those with a `not_before` or a redial to come left out.
    pub backlog: u64,
    /// Calls in progress, over all replicas.
    pub in_progress: u64,
    /// Most calls in progress at once, over all replicas.
    pub max_in_progress: i64,
    /// Until when no new call is dialled; null when dialling goes on.
    pub paused_until: Option<Timestamp>,
}

/// Lets no new call be dialled for a while, or until [`resume`]; calls in progress go on. Tells until when.
///
/// # Errors
/// [`NatsError`]; also when the queue was never made.
pub async fn pause(jetstream: &Context, names: &Names, duration: Option<Duration>) -> Result<Timestamp, NatsError> {
    let until = now() + duration.unwrap_or(UNTIL_RESUMED);
    let moment = async_nats::datetime::from_nanos(until.as_nanosecond()).expect("ten years ahead are within the range");
    let stream = jetstream.get_stream_no_info(&names.calls_stream).await.map_err(NatsError::of)?;
    stream.pause_consumer(&names.consumer, moment).await.map_err(NatsError::of)?;
    Ok(until)
}

/// Lets calls be dialled again; harmless when they are.
///
/// # Errors
/// [`NatsError`]; also when the queue was never made.
pub async fn resume(jetstream: &Context, names: &Names) -> Result<(), NatsError> {
    let stream = jetstream.get_stream_no_info(&names.calls_stream).await.map_err(NatsError::of)?;
    stream.resume_consumer(&names.consumer).await.map(|_| ()).map_err(NatsError::of)
}

/// How the queue is right now.
///
/// # Errors
/// [`NatsError`]; also when the queue was never made.
pub async fn state(jetstream: &Context, names: &Names) -> Result<QueueState, NatsError> {
    let consumer: PullConsumer =
        jetstream.get_consumer_from_stream(&names.consumer, &names.calls_stream).await.map_err(NatsError::of)?;
    let info = consumer.cached_info();
    let until = info.config.pause_until.map(|moment| timestamp(moment.unix_timestamp_nanos()));
    Ok(QueueState {
        backlog: info.num_pending,
        in_progress: u64::try_from(info.num_ack_pending).unwrap_or(0),
        max_in_progress: info.config.max_ack_pending,
        paused_until: until.filter(|_| info.paused),
    })
}
