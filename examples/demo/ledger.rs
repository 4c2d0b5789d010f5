//! What was heard of every call, and whether it is what the script says.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde_json::Value;
use sipstuff_operator::call::{Outcome, Status, StatusEvent};

use super::script::{self, Planned};

/// How a call ended: the status, and the outcome where it was dialled.
pub(crate) type End = (Status, Option<Outcome>);

/// Every call of the script, with what was heard of it.
pub(crate) struct Ledger {
    calls: BTreeMap<String, (End, Vec<StatusEvent>)>,
    strangers: Vec<StatusEvent>,
}

/// What is left when every call has ended.
pub(crate) struct After {
    /// Messages in `SIP_CALLS`, `SIP_QUEUE` and `SIP_DIAL`.
    pub(crate) in_queue: u64,
    /// Messages in `SIP_SCHEDULE`.
    pub(crate) waiting: u64,
    /// Messages in `SIP_DEAD`.
    pub(crate) dead: u64,
    /// `GET /jobs`.
    pub(crate) jobs: Vec<Value>,
}

impl Ledger {
    /// Nothing heard yet.
    pub(crate) fn of(script: &[Planned]) -> Self {
        let planned = script.iter().map(|planned| (planned.id.clone(), planned.end));
        let invalid = script::invalid_by_nats();
        let calls = planned.chain([(invalid.id, invalid.end)]).map(|(id, end)| (id, (end, Vec::new()))).collect();
        Self { calls, strangers: Vec::new() }
    }

    /// Notes a change of state.
    pub(crate) fn note(&mut self, event: StatusEvent) {
        match self.calls.get_mut(event.id.as_str()) {
            Some((_, events)) => events.push(event),
            None => self.strangers.push(event),
        }
    }

    /// The calls that have not ended.
    pub(crate) fn open(&self) -> Vec<&str> {
        let is_open = |events: &[StatusEvent]| !events.iter().any(|event| event.is_final);
        self.calls.iter().filter(|(_, (_, events))| is_open(events)).map(|(id, _)| id.as_str()).collect()
    }

    /// Whether every call has ended.
    pub(crate) fn is_complete(&self) -> bool {
        self.open().is_empty()
    }

    /// How many calls there are.
    pub(crate) fn len(&self) -> usize {
        self.calls.len()
    }

    /// How many calls ended in each way.
    pub(crate) fn ends(&self) -> BTreeMap<End, usize> {
        let mut ends = BTreeMap::new();
        for event in self.calls.values().filter_map(|(_, events)| events.iter().find(|event| event.is_final)) {
            *ends.entry((event.status, event.outcome)).or_default() += 1;
        }
        ends
    }

    /// Whether every call ended once, as the script says and as `GET /jobs` says, and nothing is left over.
    pub(crate) fn check(&self, after: &After) -> Result<()> {
        let mut wrong: Vec<String> = self
            .calls
            .iter()
            .filter_map(|(id, (end, events))| Some(format!("{id}: {}", fault(*end, events)?)))
            .collect();
        wrong.extend(self.strangers.iter().map(|event| format!("{}: nobody asked for this call", event.id)));
        wrong.extend(self.calls.iter().filter_map(|(id, (end, _))| shown_otherwise(id, *end, &after.jobs)));
        let After { in_queue, waiting, dead, jobs: _ } = after;
        for (stream, count, expected) in
            [("the queue", in_queue, 0), ("SIP_SCHEDULE", waiting, 0), ("SIP_DEAD", dead, 1)]
        {
            if *count != expected {
                wrong.push(format!("{stream} holds {count} messages, not {expected}"));
            }
        }
        if wrong.is_empty() { Ok(()) } else { bail!("not everything is as it should be:\n  {}", wrong.join("\n  ")) }
    }
}

/// What is wrong with what was heard of a call.
fn fault(end: End, events: &[StatusEvent]) -> Option<String> {
    let finals: Vec<&StatusEvent> = events.iter().filter(|event| event.is_final).collect();
    let [last] = finals.as_slice() else { return Some(format!("it has {} final statuses, not one", finals.len())) };
    if (last.status, last.outcome) != end {
        return Some(format!("it ended {} ({:?}), not {} ({:?})", last.status, last.outcome, end.0, end.1));
    }
    let revisions: Vec<u64> = events.iter().map(|event| event.revision).collect();
    let gapless = revisions.iter().copied().eq(1..=last.revision);
    (!gapless).then(|| format!("its changes are numbered {revisions:?}"))
}

/// What `GET /jobs` shows of a call, when it is not its end.
fn shown_otherwise(id: &str, end: End, jobs: &[Value]) -> Option<String> {
    let shown: Vec<&Value> = jobs.iter().filter(|job| job["id"] == id).map(|job| &job["status"]).collect();
    let as_it_is = matches!(shown.as_slice(), [status] if *status == end.0.as_str());
    (!as_it_is).then(|| format!("{id}: GET /jobs shows {shown:?}, not {}", end.0))
}
