//! The job view: which calls there are, newest first, and where the log holds their last state.
//!
//! It is an index, not a copy: a call costs about two hundred bytes here whatever its record holds, and a record that is
//! shown is read from the log at that moment, so that a view that lags shows no stale state.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
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
    const OLDEST: Self = Self { queued: 0, call: 0 };
    /// Newer than any: milliseconds since the epoch take 48 bits.
    const END: Self = Self { queued: u64::MAX, call: u64::MAX };

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
    /// When this state was recorded.
    pub time: Timestamp,
    /// Its `not_before`: its records are kept from then on.
    pub not_before: Option<Timestamp>,
    /// Its batch.
    pub batch: Option<String>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    key: Key,
    sequence: u64,
    /// From when on its record is kept for as long as the log keeps one, in seconds since the epoch.
    kept_from: u32,
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
    all: ByStatus,
    counts: [usize; Status::ALL.len()],
    by_batch: HashMap<u32, Batch>,
    batches: HashMap<String, u32>,
    /// Of the next new batch. Not reused before all others were: four billion batches later.
    next_batch: u32,
    caught_up: bool,
}

struct Batch {
    name: String,
    calls: ByStatus,
}

/// Calls by their state, each state's in their order: so a page of the few in a rare state does not pass over the many in
/// another.
#[derive(Default)]
struct ByStatus(BTreeSet<(Status, Key)>);

impl ByStatus {
    /// The newest ones before `end`, newest first: of one state, or of all.
    fn newest(&self, status: Option<Status>, end: Key, limit: usize) -> Vec<Key> {
        if let Some(status) = status {
            return self.of(status, end).take(limit).collect();
        }
        let mut newest: Vec<Key> =
            Status::ALL.into_iter().flat_map(|status| self.of(status, end).take(limit)).collect();
        newest.sort_unstable_by(|one, other| other.cmp(one));
        newest.truncate(limit);
        newest
    }

    fn of(&self, status: Status, end: Key) -> impl Iterator<Item = Key> {
        self.0.range((status, Key::OLDEST)..(status, end)).rev().map(|(_, key)| *key)
    }
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
        self.read().counts[status as usize]
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

impl Index {
    fn take(&mut self, brief: &Brief, sequence: u64) {
        let call = hash(brief.name.as_str());
        if self.calls.get(&call).is_some_and(|known| known.sequence >= sequence) {
            return;
        }
        self.forget(call, |_| true);
        let key = Key { queued: u64::try_from(brief.queued_at.as_millisecond()).unwrap_or(0), call };
        let batch = brief.batch.as_deref().map(|name| self.batch_number(name));
        let kept_from = brief.not_before.map_or(brief.time, |moment| moment.max(brief.time)).as_second();
        let kept_from = u32::try_from(kept_from.max(0)).unwrap_or(u32::MAX);
        self.calls.insert(call, Entry { key, sequence, kept_from, status: brief.status, batch });
        self.all.0.insert((brief.status, key));
        self.counts[brief.status as usize] += 1;
        if let Some(batch) = batch.and_then(|batch| self.by_batch.get_mut(&batch)) {
            batch.calls.0.insert((brief.status, key));
        }
    }

    fn batch_number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.batches.get(name) {
            return *number;
        }
        let number = self.next_batch;
        self.next_batch = number.wrapping_add(1);
        self.batches.insert(name.to_owned(), number);
        self.by_batch.insert(number, Batch { name: name.to_owned(), calls: ByStatus::default() });
        number
    }

    fn forget(&mut self, call: u64, condition: impl Fn(&Entry) -> bool) {
        let Some(entry) = self.calls.get(&call).copied().filter(condition) else { return };
        self.calls.remove(&call);
        self.all.0.remove(&(entry.status, entry.key));
        self.counts[entry.status as usize] -= 1;
        if let Some(number) = entry.batch {
            self.leave_batch(number, &(entry.status, entry.key));
        }
    }

    /// A batch without calls is forgotten, or their names would pile up for ever.
    fn leave_batch(&mut self, number: u32, place: &(Status, Key)) {
        let Some(batch) = self.by_batch.get_mut(&number) else { return };
        batch.calls.0.remove(place);
        if batch.calls.0.is_empty()
            && let Some(batch) = self.by_batch.remove(&number)
        {
            self.batches.remove(&batch.name);
        }
    }

    fn page(&self, status: Option<Status>, batch: Option<&str>, before: Option<Key>, limit: usize) -> Vec<(Key, u64)> {
        let calls = match batch {
            Some(name) => self.batches.get(name).and_then(|number| self.by_batch.get(number)).map(|batch| &batch.calls),
            None => Some(&self.all),
        };
        let keys = calls.map(|calls| calls.newest(status, before.unwrap_or(Key::END), limit)).unwrap_or_default();
        keys.into_iter().filter_map(|key| Some((key, self.calls.get(&key.call)?.sequence))).collect()
    }

    /// A call was queued before it ended, so only those queued before `oldest` (seconds since the epoch) can be meant.
    fn drop_finals_before(&mut self, oldest: i64) {
        let oldest = u32::try_from(oldest.max(0)).unwrap_or(u32::MAX);
        let end = Key { queued: u64::from(oldest) * 1000, ..Key::OLDEST };
        let finals = Status::ALL.into_iter().filter(|status| status.always_final() || *status == Status::Failed);
        let old: Vec<u64> = finals.flat_map(|status| self.all.of(status, end)).map(|key| key.call).collect();
        for call in old {
            self.forget(call, |entry| entry.kept_from < oldest);
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
    use proptest::prelude::*;

    use super::*;

    fn brief(name: &str, status: Status, queued: i64, batch: Option<&str>) -> Brief {
        let name = serde_json::from_value(name.into()).expect("a name is a text");
        let queued_at = Timestamp::from_millisecond(queued).expect("in range");
        Brief { name, job: None, status, queued_at, time: queued_at, not_before: None, batch: batch.map(str::to_owned) }
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

    #[test]
    fn a_call_that_ended_just_now_stays_however_long_ago_it_was_queued() {
        let view = JobView::default();
        let ended = |name: &str, second: i64| {
            let time = Timestamp::from_second(second).expect("in range");
            Brief { time, ..brief(name, Status::Succeeded, 1, Some("x")) }
        };
        view.take(&ended("long ago", 99), 1);
        view.take(&Brief { not_before: Timestamp::from_second(200).ok(), ..ended("early", 98) }, 2);
        view.take(&ended("just now", 101), 3);
        view.take(&brief("waits", Status::Queued, 1, None), 4);
        view.write().drop_finals_before(100);
        let mut left = sequences(&view, None, None);
        left.sort_unstable();
        assert_eq!(left, [2, 3, 4]);
    }

    #[test]
    fn a_batch_that_has_no_calls_any_more_leaves_nothing_behind() {
        let view = JobView::default();
        for number in 0..100 {
            view.take(&brief("a", Status::Queued, 1, Some(&format!("batch-{number}"))), number + 1);
        }
        let index = view.read();
        assert_eq!((index.batches.len(), index.by_batch.len()), (1, 1));
    }

    /// What happens to a view.
    #[derive(Debug, Clone)]
    enum Event {
        Take { call: u8, status: Status, batch: Option<u8>, sequence: u64 },
        Forget { call: u8, sequence: u64 },
        Sweep { oldest: i64 },
    }

    fn event() -> impl Strategy<Value = Event> {
        let status = prop::sample::select(Status::ALL.to_vec());
        prop_oneof![
            8 => (0..12_u8, status, prop::option::of(0..3_u8), 1..200_u64)
                .prop_map(|(call, status, batch, sequence)| Event::Take { call, status, batch, sequence }),
            1 => (0..12_u8, 1..200_u64).prop_map(|(call, sequence)| Event::Forget { call, sequence }),
            1 => (0..220_i64).prop_map(|oldest| Event::Sweep { oldest }),
        ]
    }

    /// A call is queued at its number (in seconds, two calls at a time), and a record is made at its sequence.
    fn brief_of(call: u8, status: Status, batch: Option<u8>, sequence: u64) -> Brief {
        let queued = i64::from(call / 2) * 1000;
        let time = Timestamp::from_second(sequence as i64).expect("in range");
        Brief { time, ..brief(&format!("call-{call}"), status, queued, batch.map(|b| format!("b{b}")).as_deref()) }
    }

    type Model = std::collections::BTreeMap<u8, (u64, Status, Option<u8>)>;

    fn take(model: &mut Model, event: &Event) {
        match *event {
            Event::Take { call, status, batch, sequence } => {
                let known = model.get(&call).map_or(0, |known| known.0);
                if sequence > known {
                    model.insert(call, (sequence, status, batch));
                }
            }
            Event::Forget { call, sequence } => {
                model.retain(|known, (last, ..)| *known != call || *last != sequence);
            }
            Event::Sweep { oldest } => model.retain(|call, (sequence, status, _)| {
                let is_final = status.always_final() || *status == Status::Failed;
                !is_final || *sequence as i64 >= oldest || i64::from(call / 2) >= oldest
            }),
        }
    }

    proptest! {
        #[test]
        fn a_view_answers_as_a_plain_list_of_calls_would(
            events in prop::collection::vec(event(), 0..120),
            status in prop::option::of(prop::sample::select(Status::ALL.to_vec())),
            batch in prop::option::of(0..3_u8),
        ) {
            let (view, mut model) = (JobView::default(), Model::new());
            for event in &events {
                take(&mut model, event);
                match *event {
                    Event::Take { call, status, batch, sequence } => {
                        view.take(&brief_of(call, status, batch, sequence), sequence);
                    }
                    Event::Forget { call, sequence } => {
                        let name = format!("call-{call}");
                        view.forget(Key { queued: u64::from(call / 2) * 1000, call: hash(&name) }, sequence);
                    }
                    Event::Sweep { oldest } => view.write().drop_finals_before(oldest),
                }
            }
            let wanted = |(_, s, b): &&(u64, Status, Option<u8>)| {
                status.is_none_or(|status| *s == status) && batch.is_none_or(|batch| *b == Some(batch))
            };
            let mut expected: Vec<u64> = model.values().filter(wanted).map(|known| known.0).collect();
            let page = view.page(status, batch.map(|b| format!("b{b}")).as_deref(), None, 100);
            prop_assert!(page.windows(2).all(|pair| pair[0].0 > pair[1].0), "newest first");
            let mut listed: Vec<u64> = page.into_iter().map(|(_, sequence)| sequence).collect();
            listed.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(listed, expected);
            for status in Status::ALL {
                let count = model.values().filter(|known| known.1 == status).count();
                prop_assert_eq!(view.count_of(status), count);
            }
            prop_assert_eq!(view.count(), model.len());
        }
    }
}
