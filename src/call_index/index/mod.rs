//! The index itself: pure, bounded, and as small as a call can be kept.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Bound;

use jiff::Timestamp;

use super::Brief;
use super::rate::Rate;
use crate::call::{Heard, Priority, Status};

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

    /// Back from text; `None` for a text that is not a cursor.
    pub fn from_cursor(text: &str) -> Option<Self> {
        let (queued, call) = text.split_at_checked(12).filter(|(_, call)| call.len() == 16)?;
        let number = |hex: &str| u64::from_str_radix(hex, 16).ok();
        let key = Self { queued: number(queued)?, call: number(call)? };
        // Capitals and signs would be other cursors for the same place.
        (key.to_cursor() == text).then_some(key)
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    key: Key,
    sequence: u64,
    /// From when on its record is kept for as long as the log keeps one, in seconds since the epoch.
    kept_from: u32,
    status: Status,
    is_final: bool,
    /// Where it is in the queue.
    queued: Option<Priority>,
    /// While it has not ended: its trunk, or the one that it would rather be dialled on.
    trunk: Option<u16>,
    batch: Option<u32>,
    heard: Option<Heard>,
}

/// The calls that the log has a record of, as many as there is room for.
#[derive(Default)]
pub(super) struct Index {
    max_calls: usize,
    /// Whether there was no room for a call that has not ended.
    dropped_active: bool,
    calls: HashMap<u64, Entry>,
    all: ByStatus,
    counts: [usize; Status::ALL.len()],
    queued: [BTreeMap<Option<String>, usize>; Priority::ALL.len()],
    /// Every trunk that a call was for: few.
    trunks: Vec<OnTrunk>,
    by_batch: HashMap<u32, Batch>,
    batches: HashMap<String, u32>,
    /// Of the next new batch. Not reused before all others were: four billion batches later.
    next_batch: u32,
}

/// The calls of a trunk that have not ended.
#[derive(Default)]
struct OnTrunk {
    name: String,
    active: usize,
    calls: ByStatus,
    begun: Rate,
}

#[derive(Default)]
struct Batch {
    name: String,
    calls: ByStatus,
    heard: BTreeMap<Heard, usize>,
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

    fn of(&self, status: Status, end: Key) -> impl DoubleEndedIterator<Item = Key> {
        self.0.range((status, Key::OLDEST)..(status, end)).rev().map(|(_, key)| *key)
    }

    /// Those of one state, the oldest first.
    fn oldest(&self, status: Status) -> impl Iterator<Item = Key> {
        self.of(status, Key::END).rev()
    }
}

impl Index {
    pub(super) fn new(max_calls: usize) -> Self {
        Self { max_calls, ..Self::default() }
    }

    /// Begins anew.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.max_calls);
    }

    pub(super) fn has_dropped_active(&self) -> bool {
        self.dropped_active
    }

    pub(super) fn count(&self) -> usize {
        self.calls.len()
    }

    pub(super) fn count_of(&self, status: Status) -> usize {
        self.counts[status as usize]
    }

    pub(super) fn apply(&mut self, brief: &Brief, sequence: u64) {
        let call = hash(brief.name.as_str());
        if self.calls.get(&call).is_some_and(|known| known.sequence >= sequence) {
            return;
        }
        self.forget(call, |_| true);
        let key = Key { queued: u64::try_from(brief.queued_at.as_millisecond()).unwrap_or(0), call };
        let batch = brief.batch.as_deref().map(|name| self.batch_number(name));
        let kept_from =
            brief.not_before.max(brief.due_at).map_or(brief.time, |moment| moment.max(brief.time)).as_second();
        let kept_from = u32::try_from(kept_from.max(0)).unwrap_or(u32::MAX);
        let Brief { status, is_final, .. } = *brief;
        let queued = (status == Status::Queued).then_some(brief.priority);
        let trunk = brief.trunk().and_then(|name| self.trunk_number(name));
        let heard = brief.heard.filter(|_| status == Status::Succeeded);
        self.calls.insert(call, Entry { key, sequence, kept_from, status, is_final, queued, trunk, batch, heard });
        if let Some(trunk) = trunk.and_then(|number| self.trunks.get_mut(usize::from(number))) {
            trunk.active += usize::from(status.is_active());
            trunk.calls.0.insert((status, key));
            if status == Status::Pending && brief.pod.is_none() {
                trunk.begun.note(brief.time);
            }
        }
        if let Some(priority) = queued {
            *self.queued[priority as usize].entry(brief.batch.clone()).or_default() += 1;
        }
        self.all.0.insert((brief.status, key));
        self.counts[brief.status as usize] += 1;
        if let Some(batch) = batch.and_then(|batch| self.by_batch.get_mut(&batch)) {
            batch.calls.0.insert((brief.status, key));
            if let Some(heard) = heard {
                *batch.heard.entry(heard).or_default() += 1;
            }
        }
        if self.calls.len() > self.max_calls {
            self.drop_one();
        }
    }

    /// Makes room: the oldest call that has ended goes, or the oldest of all where none has.
    fn drop_one(&mut self) {
        let has_ended = |key: &Key| self.calls.get(&key.call).is_some_and(|entry| entry.is_final);
        let of_status = |status| self.all.oldest(status).find(has_ended);
        let ended = Status::ALL.into_iter().filter(|status| may_be_final(*status)).filter_map(of_status).min();
        let oldest = || Status::ALL.into_iter().filter_map(|status| self.all.oldest(status).next()).min();
        let Some(key) = ended.or_else(oldest) else { return };
        self.dropped_active |= ended.is_none();
        self.forget(key.call, |_| true);
    }

    pub(super) fn active_on(&self, trunk: &str) -> usize {
        self.on_trunk(trunk).map_or(0, |trunk| trunk.active)
    }

    pub(super) fn rate_on(&self, trunk: &str, now: Timestamp) -> Option<f64> {
        self.on_trunk(trunk)?.begun.per_second(now)
    }

    pub(super) fn page_of_trunk(&self, trunk: &str, before: Option<Key>, limit: usize) -> Vec<(Key, u64)> {
        let newest = |trunk: &OnTrunk| trunk.calls.newest(None, before.unwrap_or(Key::END), limit);
        let keys = self.on_trunk(trunk).map(newest).unwrap_or_default();
        keys.into_iter().filter_map(|key| Some((key, self.calls.get(&key.call)?.sequence))).collect()
    }

    pub(super) fn batches_waiting(&self) -> usize {
        self.queued.iter().map(BTreeMap::len).sum()
    }

    pub(super) fn counts_of_batch(&self, batch: &str) -> Option<BTreeMap<Status, usize>> {
        let calls = &self.by_batch.get(self.batches.get(batch)?)?.calls.0;
        let mut counts = BTreeMap::new();
        for (status, _) in calls {
            *counts.entry(*status).or_default() += 1;
        }
        Some(counts)
    }

    pub(super) fn heard_of_batch(&self, batch: &str) -> BTreeMap<Heard, usize> {
        let batch = self.batches.get(batch).and_then(|number| self.by_batch.get(number));
        let heard = batch.into_iter().flat_map(|batch| &batch.heard);
        heard.filter(|(_, count)| **count > 0).map(|(heard, count)| (*heard, *count)).collect()
    }

    fn on_trunk(&self, name: &str) -> Option<&OnTrunk> {
        self.trunks.iter().find(|trunk| trunk.name == name)
    }

    fn trunk_number(&mut self, name: &str) -> Option<u16> {
        let number = self.trunks.iter().position(|known| known.name == name).unwrap_or_else(|| {
            self.trunks.push(OnTrunk { name: name.to_owned(), ..OnTrunk::default() });
            self.trunks.len() - 1
        });
        u16::try_from(number).ok()
    }

    fn batch_number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.batches.get(name) {
            return *number;
        }
        let number = self.next_batch;
        self.next_batch = number.wrapping_add(1);
        self.batches.insert(name.to_owned(), number);
        self.by_batch.insert(number, Batch { name: name.to_owned(), ..Batch::default() });
        number
    }

    /// Forgets a call that is still at that record.
    pub(super) fn forget_at(&mut self, key: Key, sequence: u64) {
        self.forget(key.call, |entry| entry.sequence == sequence);
    }

    fn forget(&mut self, call: u64, condition: impl Fn(&Entry) -> bool) {
        let Some(entry) = self.calls.get(&call).copied().filter(condition) else { return };
        self.calls.remove(&call);
        self.all.0.remove(&(entry.status, entry.key));
        self.counts[entry.status as usize] -= 1;
        if let Some(trunk) = entry.trunk.and_then(|number| self.trunks.get_mut(usize::from(number))) {
            trunk.active -= usize::from(entry.status.is_active());
            trunk.calls.0.remove(&(entry.status, entry.key));
        }
        if let Some(priority) = entry.queued {
            self.leave_queue(priority, entry.batch);
        }
        if let Some(number) = entry.batch {
            self.leave_batch(number, &entry);
        }
    }

    fn leave_queue(&mut self, priority: Priority, batch: Option<u32>) {
        let name = batch.and_then(|number| self.by_batch.get(&number)).map(|batch| batch.name.clone());
        let queued = &mut self.queued[priority as usize];
        if let Some(calls) = queued.get_mut(&name) {
            *calls -= 1;
            if *calls == 0 {
                queued.remove(&name);
            }
        }
    }

    pub(super) fn queued_batches(
        &self,
        priority: Priority,
        last: Option<&Option<String>>,
        at_most: usize,
        counts: impl Fn(Option<&str>) -> bool,
    ) -> Vec<(Option<String>, usize)> {
        let queued = &self.queued[priority as usize];
        let counts = |(batch, _): &(&Option<String>, &usize)| counts(batch.as_deref());
        let Some(last) = last else { return queued.iter().filter(counts).take(at_most).map(to_owned).collect() };
        let after = queued.range((Bound::Excluded(last), Bound::Unbounded));
        after.chain(queued.range(..=last)).filter(counts).take(at_most).map(to_owned).collect()
    }

    /// A batch without calls is forgotten, or their names would pile up without end.
    fn leave_batch(&mut self, number: u32, entry: &Entry) {
        let Some(batch) = self.by_batch.get_mut(&number) else { return };
        batch.calls.0.remove(&(entry.status, entry.key));
        if let Some(count) = entry.heard.and_then(|heard| batch.heard.get_mut(&heard)) {
            *count -= 1;
        }
        if batch.calls.0.is_empty()
            && let Some(batch) = self.by_batch.remove(&number)
        {
            self.batches.remove(&batch.name);
        }
    }

    pub(super) fn page(
        &self,
        status: Option<Status>,
        batch: Option<&str>,
        before: Option<Key>,
        limit: usize,
    ) -> Vec<(Key, u64)> {
        let calls = match batch {
            Some(name) => self.batches.get(name).and_then(|number| self.by_batch.get(number)).map(|batch| &batch.calls),
            None => Some(&self.all),
        };
        let keys = calls.map(|calls| calls.newest(status, before.unwrap_or(Key::END), limit)).unwrap_or_default();
        keys.into_iter().filter_map(|key| Some((key, self.calls.get(&key.call)?.sequence))).collect()
    }

    /// A call was queued before it ended, so only those queued before `oldest` (seconds since the epoch) can be meant.
    pub(super) fn drop_finals_before(&mut self, oldest: i64) {
        let oldest = u32::try_from(oldest.max(0)).unwrap_or(u32::MAX);
        let end = Key { queued: u64::from(oldest) * 1000, ..Key::OLDEST };
        let finals = Status::ALL.into_iter().filter(|status| may_be_final(*status));
        let old: Vec<u64> = finals.flat_map(|status| self.all.of(status, end)).map(|key| key.call).collect();
        for call in old {
            self.forget(call, |entry| entry.kept_from < oldest);
        }
    }
}

fn to_owned((batch, calls): (&Option<String>, &usize)) -> (Option<String>, usize) {
    (batch.clone(), *calls)
}

fn may_be_final(status: Status) -> bool {
    status.always_final() || status == Status::Failed
}

fn hash(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
