//! The index of all calls: which calls there are, newest first, and where the log holds their last state.
//!
//! It is an index, not a copy: a call costs about two hundred bytes here whatever its record holds, and a record that is
//! shown is read from the log at that moment, so that an index that lags shows no stale state.

mod index;

use std::{
    convert::Infallible,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, pull::OrderedConfig},
};
use futures::StreamExt;
use jiff::Timestamp;
use serde::Deserialize;

use crate::{
    call::{CallName, Status},
    clock::now,
    nats::NatsError,
    retry::Retry,
    status_log::StatusLog,
};

use index::Index;
pub use index::Key;

/// How often expired calls are dropped from the index.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// What the index needs of an event.
#[derive(Debug, Clone, Deserialize)]
pub struct Brief {
    /// The call.
    pub name: CallName,
    /// Its present Job.
    pub job: Option<String>,
    /// Its state.
    pub status: Status,
    /// When it was queued.
    pub queued_at: Timestamp,
    /// When this state was recorded.
    pub time: Timestamp,
    /// Its `not_before`: its records are kept from then on.
    pub not_before: Option<Timestamp>,
    /// Its batch.
    pub batch: Option<String>,
}

/// Which calls there are.
#[derive(Clone, Default)]
pub struct CallIndex {
    index: Arc<RwLock<Index>>,
}

impl CallIndex {
    /// Takes in an event with its sequence in the log.
    pub fn apply(&self, brief: &Brief, sequence: u64) {
        self.write().apply(brief, sequence);
    }

    /// Whether everything that was in the log at start has been seen.
    pub fn is_caught_up(&self) -> bool {
        self.read().caught_up
    }

    /// How many calls are known.
    pub fn count(&self) -> usize {
        self.read().count()
    }

    /// How many calls are in a state.
    pub fn count_of(&self, status: Status) -> usize {
        self.read().count_of(status)
    }

    /// Up to `limit` calls older than `before`, newest first, each with where the log has its last record.
    pub fn page(
        &self,
        status: Option<Status>,
        batch: Option<&str>,
        before: Option<Key>,
        limit: usize,
    ) -> Vec<(Key, u64)> {
        self.read().page(status, batch, before, limit)
    }

    /// Drops a call that the log has forgotten, unless it has a newer record by now.
    pub fn forget(&self, key: Key, sequence: u64) {
        self.write().forget_at(key, sequence);
    }

    /// Follows the log and never returns: the last record of every call, then every new one. `on_change` is called for each.
    pub async fn follow(
        self,
        jetstream: jetstream::Context,
        log: StatusLog,
        stream: String,
        on_change: impl Fn(&Brief),
    ) {
        let mut retry = Retry::new("follow the status log");
        loop {
            let Err(error) = self.follow_once(&jetstream, &log, &stream, &on_change).await;
            tokio::time::sleep(retry.failed(error.chain())).await;
        }
    }

    async fn follow_once(
        &self,
        jetstream: &jetstream::Context,
        log: &StatusLog,
        stream: &str,
        on_change: &impl Fn(&Brief),
    ) -> Result<Infallible, NatsError> {
        let config = OrderedConfig {
            deliver_policy: DeliverPolicy::LastPerSubject,
            filter_subject: format!("{}.*", log.subject()),
            ..Default::default()
        };
        let consumer = jetstream.create_consumer_on_stream(config, stream).await.map_err(NatsError::of)?;
        let mut messages = consumer.messages().await.map_err(NatsError::of)?;
        if log.info().await?.state.messages == 0 {
            self.write().caught_up = true;
        }
        while let Some(message) = messages.next().await {
            let message = message.map_err(NatsError::of)?;
            self.apply_message(&message, on_change);
        }
        Err(NatsError::unavailable("the stream of status events ended"))
    }

    fn apply_message(&self, message: &jetstream::Message, on_change: &impl Fn(&Brief)) {
        let Ok(info) = message.info() else { return };
        let (sequence, pending) = (info.stream_sequence, info.pending);
        match serde_json::from_slice::<Brief>(&message.payload) {
            Ok(brief) => {
                self.apply(&brief, sequence);
                on_change(&brief);
            }
            Err(error) => {
                tracing::warn!(sequence, %error, "a record of the status log cannot be read, it is passed over")
            }
        }
        if pending == 0 && !self.is_caught_up() {
            self.write().caught_up = true;
        }
    }

    /// Drops, for ever, the calls whose records have expired: finals older than `retention`.
    pub async fn sweep(self, retention: Duration) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            let oldest = now().as_second().saturating_sub(i64::try_from(retention.as_secs()).unwrap_or(i64::MAX));
            self.write().drop_finals_before(oldest);
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}
