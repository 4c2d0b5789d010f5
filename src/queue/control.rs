//! Pausing: of all calls, or of those of a batch. (A trunk is stopped by opening its breaker.)
//!
//! A pause is a key of the bucket that every feed obeys, and every dialler before it claims a call. Whatever else is done with messages
//! goes on, so that calls in progress are taken over, followed, cancelled and settled as ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::kv::Store;
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::bucket::{self, Found};
use crate::clock::now;
use crate::nats::{NatsError, timestamp};
use crate::retry::{self, Retry};

/// Key of the pause of all calls.
const ALL: &str = "pause.all";
/// Key of the pauses of batches: an object, by the name of the batch.
const BATCHES: &str = "pause.batches";
/// Both.
const KEYS: &str = "pause.*";
/// Most batches that can be paused at once: their pauses are one value.
const MAX_BATCHES: usize = 1000;
/// How often the keys are read even if no change was announced.
const READ_EVERY: Duration = Duration::from_secs(3);

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
            let reason = Some(format!("the key `{ALL}` cannot be read ({error}); `resume` removes it"));
            Self { until: None, by: None, reason, since: None }
        })
    }
}

/// Lets no new call be dialled while `paused` lasts, or until [`resume`]; calls in progress go on.
///
/// # Errors
/// [`NatsError`].
pub async fn pause(store: &Store, paused: &Paused) -> Result<(), NatsError> {
    store.put(ALL, paused.to_bytes()).await.map(drop).map_err(NatsError::of)
}

/// Lets calls be dialled again; changes nothing when they are.
///
/// # Errors
/// [`NatsError`].
pub async fn resume(store: &Store) -> Result<(), NatsError> {
    store.delete(ALL).await.map_err(NatsError::of)
}

/// The same for the calls of a batch; false when too many batches are paused.
///
/// # Errors
/// [`NatsError`].
pub async fn pause_batch(store: &Store, batch: &str, paused: &Paused) -> Result<bool, NatsError> {
    change_batches(store, |batches| {
        batches.retain(|_, paused| paused.lasts(now()));
        batches.insert(batch.to_owned(), paused.clone());
    })
    .await
}

/// Lets the calls of a batch be dialled again; changes nothing when they are.
///
/// # Errors
/// [`NatsError`].
pub async fn resume_batch(store: &Store, batch: &str) -> Result<(), NatsError> {
    change_batches(store, |batches| drop(batches.remove(batch))).await.map(drop)
}

type Batches = BTreeMap<String, Paused>;

async fn change_batches(store: &Store, change: impl Fn(&mut Batches)) -> Result<bool, NatsError> {
    loop {
        let found = bucket::read(store, BATCHES).await?;
        let mut batches = batches_of(&found).unwrap_or_default();
        change(&mut batches);
        if batches.len() > MAX_BATCHES {
            return Ok(false);
        }
        if bucket::write_after(store, BATCHES, to_bytes(&batches), found.revision()).await? {
            return Ok(true);
        }
    }
}

/// `None` where there never was any in this bucket. What cannot be read pauses nothing: it does not say which batches.
fn batches_of(found: &Found) -> Option<Batches> {
    match found {
        Found::Value(bytes, _) => Some(serde_json::from_slice(bytes).unwrap_or_else(|error| {
            tracing::warn!(%error, "the key `{BATCHES}` cannot be read; no batch is paused");
            Batches::default()
        })),
        Found::Removed(_) => Some(Batches::default()),
        Found::Nothing => None,
    }
}

fn to_bytes(batches: &Batches) -> Bytes {
    serde_json::to_vec(batches).expect("strings and moments").into()
}

/// Which new calls are held back, as this replica knows it.
#[derive(Clone, Default)]
pub struct Pause {
    known: Arc<RwLock<Option<Known>>>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Known {
    all: Option<Paused>,
    batches: Batches,
}

impl Pause {
    /// Dialling is not paused, and nobody looks whether that changes.
    pub fn never() -> Self {
        Self { known: Arc::new(RwLock::new(Some(Known::default()))) }
    }

    /// Whether no call at all may be claimed now. True until the keys were read for the first time.
    pub fn is_paused(&self, now: Timestamp) -> bool {
        self.known().as_ref().is_none_or(|known| known.all.as_ref().is_some_and(|paused| paused.lasts(now)))
    }

    /// Why a call of a batch, or of none, may not be claimed now.
    pub fn holds(&self, batch: Option<&str>, now: Timestamp) -> Option<String> {
        if self.is_paused(now) {
            return Some("dialling is paused".to_owned());
        }
        let batch = batch?;
        self.batch(batch, now).map(|_| format!("batch {batch} is paused"))
    }

    /// The pause of all calls that lasts now.
    pub fn paused(&self, now: Timestamp) -> Option<Paused> {
        self.known().as_ref()?.all.clone().filter(|paused| paused.lasts(now))
    }

    /// The pause of a batch that lasts now.
    pub fn batch(&self, batch: &str, now: Timestamp) -> Option<Paused> {
        self.known().as_ref()?.batches.get(batch).filter(|paused| paused.lasts(now)).cloned()
    }

    /// The batches that are paused now.
    pub fn batches(&self, now: Timestamp) -> BTreeSet<String> {
        let known = self.known();
        let batches = known.iter().flat_map(|known| &known.batches);
        batches.filter(|(_, paused)| paused.lasts(now)).map(|(batch, _)| batch.clone()).collect()
    }

    fn known(&self) -> RwLockReadGuard<'_, Option<Known>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the keys until `stop`. While they cannot be read, what was known last stays true.
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
        let mut changes = store.watch(KEYS).await.map_err(NatsError::of)?;
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

    /// Reads the keys; true when one has changed.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn read(&self, store: &Store) -> Result<bool, NatsError> {
        let all = match (bucket::read(store, ALL).await?, self.paused(now())) {
            (Found::Value(bytes, _), _) => Some(Paused::from_bytes(&bytes)),
            (Found::Removed(_), _) | (Found::Nothing, None) => None,
            (Found::Nothing, Some(paused)) => {
                restore(store, ALL, paused.to_bytes()).await?;
                Some(paused)
            }
        };
        let batches = match batches_of(&bucket::read(store, BATCHES).await?) {
            Some(batches) => batches,
            None => {
                let known = self.known().as_ref().map(|known| known.batches.clone()).unwrap_or_default();
                if !known.is_empty() {
                    restore(store, BATCHES, to_bytes(&known)).await?;
                }
                known
            }
        };
        let known = Known { all, batches };
        let before = self.known.write().unwrap_or_else(PoisonError::into_inner).replace(known.clone());
        let has_changed = before.as_ref() != Some(&known);
        if has_changed {
            log_change(&before.unwrap_or_default(), &known);
        }
        Ok(has_changed)
    }
}

fn log_change(before: &Known, known: &Known) {
    match &known.all {
        all if *all == before.all => {}
        None => tracing::info!("dialling goes on"),
        Some(Paused { until, by, reason, .. }) => tracing::info!(
            until = until.map(tracing::field::display),
            by = by.as_deref(),
            reason = reason.as_deref(),
            "dialling is paused: calls in progress go on, and no new one is claimed"
        ),
    }
    for (batch, Paused { until, by, reason, .. }) in &known.batches {
        if before.batches.get(batch) != known.batches.get(batch) {
            tracing::info!(
                batch,
                until = until.map(tracing::field::display),
                by = by.as_deref(),
                reason = reason.as_deref(),
                "a batch is paused: its calls in progress go on, and no new one is claimed"
            );
        }
    }
    for batch in before.batches.keys().filter(|batch| !known.batches.contains_key(*batch)) {
        tracing::info!(batch, "the calls of a batch are dialled again");
    }
}

/// The bucket was lost, and with it the pause: dialling must not go on by that. What somebody has set since stays.
async fn restore(store: &Store, key: &str, value: Bytes) -> Result<(), NatsError> {
    if bucket::write_after(store, key, value, 0).await? {
        tracing::warn!(key, "the bucket was lost with a pause in it; what was paused stays paused");
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
    let lasts = |found: &Found| matches!(found, Found::Value(bytes, _) if Paused::from_bytes(bytes).lasts(now()));
    if !lasts(&bucket::read(store, ALL).await?) {
        let until = info.config.pause_until.map(|moment| timestamp(moment.unix_timestamp_nanos()));
        let reason = Some("the queue's consumer was paused on the server".to_owned());
        pause(store, &Paused { until, by: None, reason, since: Some(now()) }).await?;
    }
    tracing::info!("the consumer was paused on the server; the pause is now the key `{ALL}` of the bucket");
    let stream = jetstream.get_stream_no_info(stream).await.map_err(NatsError::of)?;
    stream.resume_consumer(&info.name).await.map(drop).map_err(NatsError::of)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn all(paused: Option<Timestamp>) -> Option<Known> {
        Some(Known { all: Some(until(paused)), ..Known::default() })
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
            (known(Some(Known::default())), false),
            (known(all(None)), true),
            (known(all(Some(at(101)))), true),
            (known(all(Some(at(100)))), false),
        ];
        for (pause, expected) in table {
            assert_eq!(pause.is_paused(at(100)), expected, "{:?}", pause.known);
        }
    }

    #[test]
    fn a_pause_of_a_batch_holds_its_calls_alone() {
        let batches =
            [("a", until(None)), ("b", until(Some(at(100))))].map(|(batch, paused)| (batch.to_owned(), paused));
        let pause = known(Some(Known { batches: batches.into(), ..Known::default() }));
        assert_eq!(pause.holds(Some("a"), at(100)).as_deref(), Some("batch a is paused"));
        assert_eq!([None, Some("b"), Some("c")].map(|batch| pause.holds(batch, at(100))), [None, None, None]);
        assert_eq!(pause.batches(at(99)).len(), 2);
        assert_eq!(known(None).holds(None, at(1)).as_deref(), Some("dialling is paused"));
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
