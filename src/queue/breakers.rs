//! The breakers of the trunks: one key of the bucket for each, `breaker.<trunk>`, changed by compare-and-set, so that all replicas have
//! one. What each decides is in [`crate::policy::breaker`].
//!
//! A trunk that works costs nothing: its breaker is read from memory and not written.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::Store;
use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::bucket::{self, Found};
use crate::call::TrunkHealth;
use crate::clock::now;
use crate::nats::NatsError;
use crate::policy::breaker::Ending;
use crate::policy::{Alert, Breaker, Changed, Held};
use crate::retry::{self, Retry};

/// How often every breaker is read even if no change was announced.
const READ_EVERY: Duration = Duration::from_secs(3);

/// The breakers of all trunks, as this replica knows them.
#[derive(Clone)]
pub struct Breakers {
    store: Store,
    jetstream: Context,
    alerts: Subject,
    failures: u32,
    /// Those that were read; the others are not known.
    known: Arc<RwLock<HashMap<String, Breaker>>>,
}

impl Breakers {
    /// Those in a bucket. `failures` faults in a row open one; with 0 it opens by hand only. Changes are told on the subject `alerts`.
    pub fn new(store: Store, jetstream: Context, alerts: &str, failures: u32) -> Self {
        Self { store, jetstream, alerts: Subject::from(alerts), failures, known: Arc::default() }
    }

    /// Why no call may be begun on a trunk now; `None` where one may.
    pub fn held(&self, trunk: &str, now: Timestamp) -> Option<Held> {
        match self.known().get(trunk) {
            Some(breaker) => breaker.held(now, self.failures),
            None => Some(Held { until: None, why: "the trunk's breaker was not read yet".to_owned() }),
        }
    }

    /// How many more calls may be begun on a trunk now; `None`: as many as it has channels for.
    pub fn room(&self, trunk: &str, now: Timestamp) -> Option<u32> {
        self.known().get(trunk).map_or(Some(0), |breaker| breaker.room(now, self.failures))
    }

    /// How a trunk does for others than the call with this Job.
    pub fn health_for(&self, trunk: &str, job: &str) -> TrunkHealth {
        self.known().get(trunk).map(|breaker| breaker.health_for(job, self.failures)).unwrap_or_default()
    }

    fn is_trusted(&self, trunk: &str) -> bool {
        self.known().get(trunk).is_some_and(|breaker| breaker.is_trusted(self.failures))
    }

    /// The breaker of a trunk, once it was read.
    pub fn get(&self, trunk: &str) -> Option<Breaker> {
        self.known().get(trunk).cloned()
    }

    /// Lets an attempt pass that is over at `ends_by` at the latest, or says why not.
    ///
    /// # Errors
    /// [`NatsError`]: it is not known.
    pub async fn admit(&self, trunk: &str, job: &str, ends_by: Timestamp) -> Result<Result<(), Held>, NatsError> {
        if self.is_trusted(trunk) {
            return Ok(Ok(()));
        }
        let admitted = self.change(trunk, |breaker, now| match breaker.admit(job, ends_by, now, self.failures) {
            Ok(changed) => (changed, Ok(())),
            Err(held) => (None, Err(held)),
        });
        admitted.await
    }

    /// Learns how an attempt on a trunk ended. Told twice it changes nothing more.
    ///
    /// # Errors
    /// [`NatsError`]: it has to be told again.
    pub async fn record(&self, trunk: &str, ending: &Ending<'_>) -> Result<(), NatsError> {
        if !ending.is_fault() && self.is_trusted(trunk) {
            return Ok(());
        }
        self.change(trunk, |breaker, now| (breaker.record(ending, now, self.failures), ())).await
    }

    /// Opens a breaker by hand, until it is closed by hand.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn open(&self, trunk: &str, by: Option<String>, reason: &str) -> Result<(), NatsError> {
        let open = |breaker: &mut Breaker, now| (Some(breaker.open(by.clone(), reason.to_owned(), now)), ());
        self.change(trunk, open).await
    }

    /// Closes a breaker by hand.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn close(&self, trunk: &str, by: Option<String>, reason: &str) -> Result<(), NatsError> {
        self.change(trunk, |breaker, now| (breaker.close(by.clone(), reason.to_owned(), now), ())).await
    }

    /// Applies a change to what the bucket has, writes it if it is another, and tells what has changed.
    async fn change<T>(
        &self,
        trunk: &str,
        apply: impl Fn(&mut Breaker, Timestamp) -> (Option<Changed>, T),
    ) -> Result<T, NatsError> {
        loop {
            let found = bucket::read(&self.store, &key(trunk)).await?;
            let before = self.breaker_of(trunk, &found);
            let mut breaker = before.clone();
            let (changed, result) = apply(&mut breaker, now());
            let is_written = breaker == before
                || bucket::write_after(&self.store, &key(trunk), to_bytes(&breaker), found.revision()).await?;
            if is_written {
                if let Some(changed) = changed {
                    self.tell(&Alert::of(trunk, changed, &breaker)).await;
                }
                self.note(trunk, breaker);
                return Ok(result);
            }
        }
    }

    /// What is in the bucket; what is known, where the bucket was lost.
    fn breaker_of(&self, trunk: &str, found: &Found) -> Breaker {
        match found {
            Found::Value(bytes, _) => from_bytes(trunk, bytes),
            Found::Removed(_) => Breaker::default(),
            Found::Nothing => self.get(trunk).unwrap_or_default(),
        }
    }

    async fn tell(&self, alert: &Alert) {
        let Alert { trunk, change, reason, .. } = alert;
        match change {
            Changed::Opened => tracing::error!(trunk, reason, "the breaker is open: nothing is dialled on this trunk"),
            Changed::Probing => tracing::warn!(trunk, reason, "one call probes this trunk"),
            Changed::Closed => tracing::info!(trunk, reason, "the breaker is closed: calls are dialled on this trunk"),
        }
        let mut headers = HeaderMap::new();
        for (name, value) in alert.headers() {
            headers.insert(name, value.as_str());
        }
        let body = serde_json::to_vec(alert).expect("strings, numbers and times always serialize");
        let client = self.jetstream.client();
        if let Err(error) = client.publish_with_headers(self.alerts.clone(), headers, body.into()).await {
            tracing::warn!(%error, trunk, "an alert could not be published");
        }
    }

    fn note(&self, trunk: &str, breaker: Breaker) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(trunk.to_owned(), breaker);
    }

    fn known(&self) -> RwLockReadGuard<'_, HashMap<String, Breaker>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the breakers of the trunks that there are, until `stop`. While they cannot be read, what was known last stays true.
    pub async fn follow(self, trunks: impl Fn() -> Vec<String>, stop: CancellationToken) {
        let mut retry = Retry::new("follow the breakers of the trunks");
        while !stop.is_cancelled() {
            tokio::select! {
                Err(error) = self.follow_until_error(&trunks, &mut retry) => {
                    retry::sleep(&stop, retry.failed(error.chain())).await;
                }
                () = stop.cancelled() => {}
            }
        }
    }

    /// The watch says early what is read anyhow: it may come from a copy that lags, or end with a bucket that was made again.
    async fn follow_until_error(
        &self,
        trunks: &impl Fn() -> Vec<String>,
        retry: &mut Retry,
    ) -> Result<std::convert::Infallible, NatsError> {
        let mut changes = self.store.watch(key("*")).await.map_err(NatsError::of)?;
        loop {
            self.read_all(trunks()).await?;
            retry.worked();
            let next_read = tokio::time::Instant::now() + READ_EVERY;
            while let Ok(change) = tokio::time::timeout_at(next_read, changes.next()).await {
                let change = change.ok_or_else(|| NatsError::unavailable("the watch ended"))?;
                let key_of_change = change.map_err(NatsError::of)?.key;
                if let Some(trunk) = key_of_change.strip_prefix(&key("")) {
                    self.read(trunk).await?;
                }
            }
        }
    }

    /// Reads the breakers of some trunks.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn read_all(&self, trunks: Vec<String>) -> Result<(), NatsError> {
        for trunk in trunks {
            self.read(&trunk).await?;
        }
        Ok(())
    }

    /// Reads the breaker of a trunk.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn read(&self, trunk: &str) -> Result<Breaker, NatsError> {
        let found = bucket::read(&self.store, &key(trunk)).await?;
        let breaker = self.breaker_of(trunk, &found);
        // A bucket that was lost must not close what was open.
        if found == Found::Nothing && breaker != Breaker::default() {
            bucket::write_after(&self.store, &key(trunk), to_bytes(&breaker), 0).await?;
        }
        self.note(trunk, breaker.clone());
        Ok(breaker)
    }
}

fn key(trunk: &str) -> String {
    format!("breaker.{trunk}")
}

fn to_bytes(breaker: &Breaker) -> Bytes {
    serde_json::to_vec(breaker).expect("strings, numbers and times always serialize").into()
}

/// One that somebody wrote by hand and that cannot be read begins anew.
fn from_bytes(trunk: &str, bytes: &[u8]) -> Breaker {
    serde_json::from_slice(bytes).unwrap_or_else(|error| {
        tracing::warn!(trunk, %error, "the key of a breaker cannot be read; the breaker begins anew");
        Breaker::default()
    })
}
