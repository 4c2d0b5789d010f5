//! The job view: which calls there are, newest first, and where the log holds their last state.
//!
//! It is an index, not a copy: a call costs about two hundred bytes here whatever its record holds, and a record that is
//! shown is read from the log at that moment, so that a view that lags shows no stale state.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    ops::Bound,
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
    log::{StatusLog, now},
    queue::Away,
    retry,
};

/// How often expired calls are dropped from the view.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// Where a call stands in the order: when it was queued (milliseconds since the epoch), then a hash of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    queued: u64,
    call: u64,
}

impl Key {
    /// As text that a client hands back to get the next page.
    pub fn to_cursor(self) -> String {
        format!("{:012x}{:016x}", self.queued, self.call)
    }

    /// Back from text; `None` for a text that is no cursor.
    pub fn from_cursor(text: &str) -> Option<Self> {
        let (queued, call) = text.split_at_checked(12).filter(|(_, call)| call.len() == 16)?;
        let number = |hex: &str| u64::from_str_radix(hex, 16).ok();
        Some(Self { queued: number(queued)?, call: number(call)? })
    }
}

/// What the view needs of an event.
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
    /// Its batch.
    pub batch: Option<String>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    key: Key,
    sequence: u64,
    status: Status,
    batch: Option<u32>,
}

/// Which calls there are.
#[derive(Clone, Default)]
pub struct JobView {
    index: Arc<RwLock<Index>>,
}

#[derive(Default)]
struct Index {
    calls: HashMap<u64, Entry>,
    newest: BTreeSet<Key>,
    by_status: [BTreeSet<Key>; Status::ALL.len()],
    by_batch: HashMap<u32, BTreeSet<Key>>,
    batches: HashMap<String, u32>,
    caught_up: bool,
}

impl JobView {
    /// Takes in an event with its sequence in the log.
    pub fn take(&self, brief: &Brief, sequence: u64) {
        self.write().take(brief, sequence);
    }

    /// Whether everything that was in the log at start has been seen.
    pub fn is_caught_up(&self) -> bool {
        self.read().caught_up
    }

    /// How many calls are known.
    pub fn count(&self) -> usize {
        self.read().calls.len()
    }

    /// How many calls are in a state.
    pub fn count_of(&self, status: Status) -> usize {
        self.read().by_status[status as usize].len()
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
        self.write().forget(key.call, |entry| entry.sequence == sequence);
    }

    /// Follows the log for ever: the last record of every call, then every new one. `tell` hears of each.
    pub async fn follow(self, jetstream: jetstream::Context, log: StatusLog, stream: String, tell: impl Fn(&Brief)) {
        retry::forever("follow the status log", || self.follow_once(&jetstream, &log, &stream, &tell)).await
    }

    async fn follow_once(
        &self,
        jetstream: &jetstream::Context,
        log: &StatusLog,
        stream: &str,
        tell: &impl Fn(&Brief),
    ) -> Result<(), Away> {
        let away = |error: &dyn std::error::Error| Away(crate::queue::submit::describe(error));
        let config = OrderedConfig {
            deliver_policy: DeliverPolicy::LastPerSubject,
            filter_subject: format!("{}.*", log.subject()),
            ..Default::default()
        };
        let consumer = jetstream.create_consumer_on_stream(config, stream).await.map_err(|error| away(&error))?;
        let mut messages = consumer.messages().await.map_err(|error| away(&error))?;
        if log.info().await?.state.messages == 0 {
            self.write().caught_up = true;
        }
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| away(&error))?;
            self.take_message(&message, tell);
        }
        Err(Away("the stream of status events ended".to_owned()))
    }

    fn take_message(&self, message: &jetstream::Message, tell: &impl Fn(&Brief)) {
        let Ok(info) = message.info() else { return };
        let (sequence, pending) = (info.stream_sequence, info.pending);
        match serde_json::from_slice::<Brief>(&message.payload) {
            Ok(brief) => {
                self.take(&brief, sequence);
                tell(&brief);
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
            let oldest =
                u64::try_from(now().as_millisecond()).unwrap_or(0).saturating_sub(retention.as_millis() as u64);
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

impl Index {
    fn take(&mut self, brief: &Brief, sequence: u64) {
        let call = hash(brief.name.as_str());
        if self.calls.get(&call).is_some_and(|known| known.sequence >= sequence) {
            return;
        }
        self.forget(call, |_| true);
        let key = Key { queued: u64::try_from(brief.queued_at.as_millisecond()).unwrap_or(0), call };
        let batch = brief.batch.as_deref().map(|name| self.batch_number(name));
        self.calls.insert(call, Entry { key, sequence, status: brief.status, batch });
        self.newest.insert(key);
        self.by_status[brief.status as usize].insert(key);
        if let Some(batch) = batch {
            self.by_batch.entry(batch).or_default().insert(key);
        }
    }

    fn batch_number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.batches.get(name) {
            return *number;
        }
        let number = u32::try_from(self.batches.len()).unwrap_or(u32::MAX);
        self.batches.insert(name.to_owned(), number);
        number
    }

    fn forget(&mut self, call: u64, condition: impl Fn(&Entry) -> bool) {
        let Some(entry) = self.calls.get(&call).copied().filter(condition) else { return };
        self.calls.remove(&call);
        self.newest.remove(&entry.key);
        self.by_status[entry.status as usize].remove(&entry.key);
        if let Some(calls) = entry.batch.and_then(|batch| self.by_batch.get_mut(&batch)) {
            calls.remove(&entry.key);
        }
    }

    fn page(&self, status: Option<Status>, batch: Option<&str>, before: Option<Key>, limit: usize) -> Vec<(Key, u64)> {
        let keys = match (status, batch) {
            (_, Some(name)) => self.batches.get(name).and_then(|number| self.by_batch.get(number)),
            (Some(status), None) => Some(&self.by_status[status as usize]),
            (None, None) => Some(&self.newest),
        };
        let Some(keys) = keys else { return Vec::new() };
        let end = before.map_or(Bound::Unbounded, Bound::Excluded);
        keys.range((Bound::Unbounded, end))
            .rev()
            .filter_map(|key| self.calls.get(&key.call))
            .filter(|entry| status.is_none_or(|status| entry.status == status))
            .map(|entry| (entry.key, entry.sequence))
            .take(limit)
            .collect()
    }

    fn drop_finals_before(&mut self, oldest: u64) {
        let end = Key { queued: oldest, call: 0 };
        let old: Vec<u64> = self.newest.range(..end).map(|key| key.call).collect();
        for call in old {
            self.forget(call, |entry| entry.status.always_final() || entry.status == Status::Failed);
        }
    }
}

fn hash(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brief(name: &str, status: Status, queued: i64, batch: Option<&str>) -> Brief {
        let name = serde_json::from_value(name.into()).expect("a name is a text");
        let queued_at = Timestamp::from_millisecond(queued).expect("in range");
        Brief { name, job: None, status, queued_at, batch: batch.map(str::to_owned) }
    }

    fn sequences(view: &JobView, status: Option<Status>, batch: Option<&str>) -> Vec<u64> {
        view.page(status, batch, None, 100).into_iter().map(|(_, sequence)| sequence).collect()
    }

    #[test]
    fn a_call_is_listed_once_newest_first_with_its_last_record() {
        let view = JobView::default();
        view.take(&brief("a", Status::Queued, 1, None), 1);
        view.take(&brief("b", Status::Queued, 2, Some("x")), 2);
        view.take(&brief("a", Status::Pending, 1, None), 3);
        view.take(&brief("a", Status::Queued, 1, None), 1);
        assert_eq!(sequences(&view, None, None), [2, 3]);
        assert_eq!(sequences(&view, Some(Status::Queued), None), [2]);
        assert_eq!(sequences(&view, Some(Status::Pending), None), [3]);
        assert_eq!(sequences(&view, None, Some("x")), [2]);
        assert_eq!(sequences(&view, Some(Status::Pending), Some("x")), Vec::<u64>::new());
        assert_eq!(sequences(&view, None, Some("y")), Vec::<u64>::new());
    }

    #[test]
    fn pages_follow_one_another_without_gap_or_repetition() {
        let view = JobView::default();
        for number in 0..25_u64 {
            view.take(&brief(&format!("call-{number}"), Status::Queued, (number / 3) as i64, None), number + 1);
        }
        let (mut seen, mut before) = (Vec::new(), None);
        loop {
            let page = view.page(None, None, before, 10);
            let Some((last, _)) = page.last() else { break };
            before = Key::from_cursor(&last.to_cursor());
            seen.extend(page.into_iter().map(|(_, sequence)| sequence));
        }
        seen.sort_unstable();
        assert_eq!(seen, (1..=25).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        for text in ["", "zz", "é", "0123456789ab", "0123456789ab0123456789abcdefg", "00000000000é000000000000000"] {
            assert_eq!(Key::from_cursor(text), None, "{text}");
        }
    }
}
