//! Steering the queue as a whole: pausing it, and how full it is.
//!
//! A pause is a key of the bucket that every dialler obeys before it claims a call. Whatever else is done with messages goes on, so
//! that calls in progress are taken over, followed, cancelled and settled as ever.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::kv::{Store, UpdateErrorKind};
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::Window;
use crate::clock::now;
use crate::nats::{Names, NatsError, timestamp};
use crate::retry::{self, Retry};

/// Key of the pause.
const KEY: &str = "pause";
/// How long a message that may not be claimed is handed back for: within that, a call is dialled once the pause has ended. It keeps
/// its place among the messages in flight, so no more of them come and go than there may be active calls.
pub const PAUSED_DELAY: Duration = Duration::from_secs(3);
/// How often the key is read even if no change was announced.
const READ_EVERY: Duration = Duration::from_secs(3);
/// Header that the client library sets on the marker of a deleted key.
const KV_OPERATION: &str = "KV-Operation";

/// How the queue is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct QueueState {
    /// Calls that wait to be dialled; those that wait for their `not_before` or a redial are not counted.
    pub backlog: u64,
    /// Calls in progress over all replicas: `pending`, `running` or `cancelling`.
    pub in_progress: u64,
    /// Most calls in progress at once, over all replicas.
    pub max_in_progress: i64,
    /// Whether new calls are held back.
    pub paused: bool,
    /// When dialling goes on by itself; null when it is not paused, or until somebody resumes it.
    pub paused_until: Option<Timestamp>,
    /// Why it is paused, where that was said.
    pub pause_reason: Option<String>,
}

/// That no new call is to be dialled: the value of the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// Until when; absent for a pause that lasts until it is ended.
    pub until: Option<Timestamp>,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

impl Paused {
    fn lasts(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| until > now)
    }

    fn to_bytes(&self) -> Bytes {
        serde_json::to_vec(self).expect("strings and moments").into()
    }

    /// A value that somebody wrote by hand and that cannot be read was meant as a pause all the same.
    fn from_bytes(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_else(|error| {
            let reason = Some(format!("the key `{KEY}` cannot be read ({error}); `resume` removes it"));
            Self { until: None, by: None, reason, since: None }
        })
    }
}

/// Lets no new call be dialled while `paused` lasts, or until [`resume`]; calls in progress go on.
///
/// # Errors
/// [`NatsError`].
pub async fn pause(store: &Store, paused: &Paused) -> Result<(), NatsError> {
    store.put(KEY, paused.to_bytes()).await.map(drop).map_err(NatsError::of)
}

/// Lets calls be dialled again; changes nothing when they are.
///
/// # Errors
/// [`NatsError`].
pub async fn resume(store: &Store) -> Result<(), NatsError> {
    store.delete(KEY).await.map_err(NatsError::of)
}

/// What one read of the key found.
enum Found {
    Paused(Paused),
    /// It was removed by [`resume`].
    Resumed,
    /// It was never set in this bucket.
    Nothing,
}

/// Whether dialling is paused, as this replica knows it.
#[derive(Clone, Default)]
pub struct Pause {
    known: Arc<RwLock<Option<Known>>>,
}

#[derive(Debug, Clone, PartialEq)]
enum Known {
    Dialling,
    Paused(Paused),
}

impl Pause {
    /// Dialling is not paused, and nobody looks whether that changes.
    pub fn never() -> Self {
        Self { known: Arc::new(RwLock::new(Some(Known::Dialling))) }
    }

    /// Whether no call may be claimed now. True until the key was read for the first time.
    pub fn is_paused(&self, now: Timestamp) -> bool {
        match &*self.known.read().unwrap_or_else(PoisonError::into_inner) {
            None => true,
            Some(Known::Dialling) => false,
            Some(Known::Paused(paused)) => paused.lasts(now),
        }
    }

    /// The pause that lasts now.
    pub fn paused(&self, now: Timestamp) -> Option<Paused> {
        match &*self.known.read().unwrap_or_else(PoisonError::into_inner) {
            Some(Known::Paused(paused)) if paused.lasts(now) => Some(paused.clone()),
            _ => None,
        }
    }

    /// Follows the key until `stop`. While it cannot be read, what was known last stays true.
    pub async fn follow(self, store: Store, stop: CancellationToken) {
        let mut retry = Retry::new("follow whether dialling is paused");
        while !stop.is_cancelled() {
            tokio::select! {
                followed = self.follow_until_error(&store, &mut retry) => match followed {
                    Ok(()) => {}
                    Err(error) => retry::sleep(&stop, retry.failed(error.chain())).await,
                },
                () = stop.cancelled() => {}
            }
        }
    }

    /// The watch only says when to read: the value is read from the stream's leader, since a copy that lags would end a pause. Returns
    /// when the watch has missed a change, as one does whose bucket was made again.
    async fn follow_until_error(&self, store: &Store, retry: &mut Retry) -> Result<(), NatsError> {
        let mut changes = store.watch(KEY).await.map_err(NatsError::of)?;
        self.read(store).await?;
        retry.worked();
        loop {
            let announced = match tokio::time::timeout(READ_EVERY, changes.next()).await {
                Ok(Some(change)) => change.map(|_| true).map_err(NatsError::of)?,
                Ok(None) => return Err(NatsError::unavailable("the watch ended")),
                Err(_) => false,
            };
            if self.read(store).await? && !announced {
                return Ok(());
            }
        }
    }

    /// Reads the key; true when it has changed.
    async fn read(&self, store: &Store) -> Result<bool, NatsError> {
        let known = match (read(store).await?, self.paused(now())) {
            (Found::Paused(paused), _) => Known::Paused(paused),
            (Found::Resumed, _) | (Found::Nothing, None) => Known::Dialling,
            (Found::Nothing, Some(paused)) => {
                restore(store, &paused).await?;
                Known::Paused(paused)
            }
        };
        let before = self.known.write().unwrap_or_else(PoisonError::into_inner).replace(known.clone());
        let has_changed = before.as_ref() != Some(&known);
        if has_changed && !(before.is_none() && known == Known::Dialling) {
            log_change(&known);
        }
        Ok(has_changed)
    }
}

fn log_change(known: &Known) {
    match known {
        Known::Dialling => tracing::info!("dialling goes on"),
        Known::Paused(Paused { until, by, reason, .. }) => tracing::info!(
            until = until.map(tracing::field::display),
            by = by.as_deref(),
            reason = reason.as_deref(),
            "dialling is paused: calls in progress go on, and no new one is claimed"
        ),
    }
}

async fn read(store: &Store) -> Result<Found, NatsError> {
    let subject = format!("{}{KEY}", store.prefix);
    match store.stream.get_last_raw_message_by_subject(&subject).await {
        Ok(message) if is_marker(&message.headers) => Ok(Found::Resumed),
        Ok(message) => Ok(Found::Paused(Paused::from_bytes(&message.payload))),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(Found::Nothing),
        Err(error) => Err(NatsError::of(error)),
    }
}

fn is_marker(headers: &HeaderMap) -> bool {
    headers.get(KV_OPERATION).is_some_and(|operation| operation.as_str() != "PUT")
}

/// The bucket was lost, and with it the pause: dialling must not go on by that. What somebody has set since stays.
async fn restore(store: &Store, paused: &Paused) -> Result<(), NatsError> {
    match store.update(KEY, paused.to_bytes(), 0).await {
        Ok(_) => tracing::warn!("the bucket was lost with the pause in it; dialling stays paused"),
        Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {}
        Err(error) => return Err(NatsError::of(error)),
    }
    Ok(())
}

/// Takes over a pause of a consumer on the server, as version 0.1 set it, into the key, and then ends it there: a paused consumer also
/// holds back the calls in progress that are to be taken over.
///
/// # Errors
/// [`NatsError`].
pub async fn adopt_consumer_pause(
    jetstream: &Context,
    stream: &str,
    consumer: &PullConsumer,
    store: &Store,
) -> Result<(), NatsError> {
    let info = consumer.cached_info();
    let lasts = |found: &Found| matches!(found, Found::Paused(paused) if paused.lasts(now()));
    if !lasts(&read(store).await?) {
        let until = info.config.pause_until.map(|moment| timestamp(moment.unix_timestamp_nanos()));
        let reason = Some("the queue's consumer was paused on the server".to_owned());
        pause(store, &Paused { until, by: None, reason, since: Some(now()) }).await?;
    }
    tracing::info!("the consumer was paused on the server; the pause is now the key `{KEY}` of the bucket");
    let stream = jetstream.get_stream_no_info(stream).await.map_err(NatsError::of)?;
    stream.resume_consumer(&info.name).await.map(drop).map_err(NatsError::of)
}

/// How the queue is right now, given how many calls are in progress and what [`Pause`] knows.
///
/// # Errors
/// [`NatsError`]; also when the streams were never made.
pub async fn state(
    jetstream: &Context,
    names: &Names,
    in_progress: u64,
    paused: Option<Paused>,
) -> Result<QueueState, NatsError> {
    let messages = async |stream: &str| {
        let stream = jetstream.get_stream(stream).await.map_err(NatsError::of)?;
        Ok::<_, NatsError>(stream.cached_info().state.messages)
    };
    let window = Window::new(jetstream.clone(), names);
    let (inbox, waiting, window) =
        tokio::try_join!(messages(&names.calls_stream), messages(&names.queue_stream), window.occupancy())?;
    Ok(QueueState {
        // What is in the window and not in progress waits as well: for its turn, or for the end of a pause.
        backlog: inbox + waiting + window.undelivered + window.in_flight.saturating_sub(in_progress),
        in_progress,
        max_in_progress: i64::try_from(window.channels).unwrap_or(i64::MAX),
        paused: paused.is_some(),
        paused_until: paused.as_ref().and_then(|paused| paused.until),
        pause_reason: paused.and_then(|paused| paused.reason),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn known(known: Option<Known>) -> Pause {
        Pause { known: Arc::new(RwLock::new(known)) }
    }

    fn until(until: Option<Timestamp>) -> Paused {
        Paused { until, by: None, reason: None, since: None }
    }

    #[test]
    fn nothing_is_claimed_before_the_key_was_read_or_while_a_pause_lasts() {
        let table = [
            (known(None), true),
            (known(Some(Known::Dialling)), false),
            (known(Some(Known::Paused(until(None)))), true),
            (known(Some(Known::Paused(until(Some(at(101)))))), true),
            (known(Some(Known::Paused(until(Some(at(100)))))), false),
        ];
        for (pause, expected) in table {
            assert_eq!(pause.is_paused(at(100)), expected, "{:?}", pause.known);
        }
    }

    #[test]
    fn a_value_that_cannot_be_read_is_a_pause_until_resumed() {
        let paused = Paused::from_bytes(b"yes please");
        assert!(paused.lasts(at(100)) && paused.reason.is_some_and(|reason| reason.contains("resume")));
        let whole = until(Some(at(5)));
        assert_eq!(Paused::from_bytes(&whole.to_bytes()), whole);
        assert_eq!(whole.to_bytes(), r#"{"until":"1970-01-01T00:00:05Z"}"#);
    }
}
