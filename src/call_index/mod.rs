//! The index of all calls: which calls there are, newest first, and where the log holds their last state.
//!
//! It is an index, not a copy: a call costs about two hundred bytes here whatever its record holds, and a record that is
//! shown is read from the log at that moment, so that an index that lags shows no stale state. It is bounded: beyond
//! `INDEX_MAX_CALLS` it keeps the newest, and a call that has ended goes before any that has not.

mod follow;
mod index;
mod progress;
mod rate;
mod scan;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::sync::watch;

use self::index::Index;
pub use self::index::Key;
use self::progress::Progress;
pub use self::progress::{Behind, CatchUpError};
pub use self::scan::active_calls;
use crate::call::{CallName, Heard, Priority, Status};
use crate::clock::now;

/// How often expired calls are dropped from the index.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// What the index needs of an event.
#[derive(Debug, Clone, Deserialize)]
pub struct Brief {
    /// The call.
    pub name: CallName,
    /// Its present Job.
    pub job: Option<String>,
    /// The cluster of that.
    pub cluster: Option<String>,
    /// The trunk of that.
    pub trunk: Option<String>,
    /// While it waits: the trunks that may dial it, the preferred one first.
    #[serde(default)]
    pub trunks: Vec<String>,
    /// Its state.
    pub status: Status,
    /// Whether the call has ended.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// When it was queued.
    pub queued_at: Timestamp,
    /// When this state was recorded.
    pub time: Timestamp,
    /// Its `not_before`: its records are kept from then on.
    pub not_before: Option<Timestamp>,
    /// When it is due: its records are kept from then on.
    pub due_at: Option<Timestamp>,
    /// Its batch.
    pub batch: Option<String>,
    /// Its priority.
    #[serde(default)]
    pub priority: Priority,
    /// Whether the pod of its present attempt was chosen, since when its claim is not the last event of that state.
    pub pod: Option<IgnoredAny>,
    /// How much was heard of a call that was answered.
    pub heard: Option<Heard>,
}

impl Brief {
    /// The trunk that it is in progress on, or while it waits the one that it would rather be dialled on.
    pub fn trunk(&self) -> Option<&str> {
        match self.status {
            status if status.is_active() => self.trunk.as_deref(),
            Status::Queued | Status::Scheduled => self.trunks.first().map(String::as_str),
            _ => None,
        }
    }

    /// Whether that is this one.
    pub fn is_for(&self, trunk: &str) -> bool {
        self.trunk() == Some(trunk)
    }
}

/// Which calls there are.
#[derive(Clone)]
pub struct CallIndex {
    index: Arc<RwLock<Index>>,
    progress: watch::Sender<Progress>,
}

impl Default for CallIndex {
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

impl CallIndex {
    /// An index of `max_calls` calls at most.
    pub fn new(max_calls: usize) -> Self {
        Self { index: Arc::new(RwLock::new(Index::new(max_calls))), progress: watch::Sender::default() }
    }

    /// Takes in an event with its sequence in the log.
    pub fn apply(&self, brief: &Brief, sequence: u64) {
        self.write().apply(brief, sequence);
    }

    /// How many calls are known.
    pub fn count(&self) -> usize {
        self.read().count()
    }

    /// How many calls are in a state.
    pub fn count_of(&self, status: Status) -> usize {
        self.read().count_of(status)
    }

    /// How many calls are in progress on a trunk.
    pub fn active_on(&self, trunk: &str) -> usize {
        self.read().active_on(trunk)
    }

    /// How many calls were begun on a trunk per second lately, in the last minutes; `None` where none was.
    pub fn rate_on(&self, trunk: &str) -> Option<f64> {
        self.read().rate_on(trunk, now())
    }

    /// How many calls of a batch are in each state; `None` for a batch without calls.
    pub fn counts_of_batch(&self, batch: &str) -> Option<BTreeMap<Status, usize>> {
        self.read().counts_of_batch(batch)
    }

    /// How many calls of a batch that were answered were heard how far.
    pub fn heard_of_batch(&self, batch: &str) -> BTreeMap<Heard, usize> {
        self.read().heard_of_batch(batch)
    }

    /// How many batches have calls in the queue; those without one count as one.
    pub fn batches_waiting(&self) -> usize {
        self.read().batches_waiting()
    }

    /// Up to `limit` calls older than `before`, newest first, that are in progress on a trunk, or wait and would rather be dialled on it than
    /// on another; each with where the log has its last record.
    pub fn page_of_trunk(&self, trunk: &str, before: Option<Key>, limit: usize) -> Vec<(Key, u64)> {
        self.read().page_of_trunk(trunk, before, limit)
    }

    /// Whether there was no room for a call that has not ended: then only the log knows every call that can be cancelled.
    pub fn has_dropped_active_calls(&self) -> bool {
        self.read().has_dropped_active()
    }

    /// The batches of a priority that have calls in the queue, with how many: at most so many batches, beginning with the one after
    /// `last`, and only those that count. `None` stands for the calls without one.
    pub fn queued_batches(
        &self,
        priority: Priority,
        last: Option<&Option<String>>,
        at_most: usize,
        counts: impl Fn(Option<&str>) -> bool,
    ) -> Vec<(Option<String>, usize)> {
        self.read().queued_batches(priority, last, at_most, counts)
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

    /// Drops, as long as the process runs, the calls whose records have expired: finals older than `retention`.
    pub async fn sweep(self, retention: Duration) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            let oldest = now().as_second().saturating_sub(i64::try_from(retention.as_secs()).unwrap_or(i64::MAX));
            self.write().drop_finals_before(oldest);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}
