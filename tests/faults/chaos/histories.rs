//! The histories of the calls, as the status log and the node recorded them, and the rules that every history follows.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use jiff::SignedDuration;
use sipstuff_operator::call::{CallName, Outcome, Status, StatusEvent};

use super::world::Harmed;
use crate::support::node::Start;

/// Everything that was recorded, and everything that was started.
pub struct Histories {
    /// In the order of the log.
    pub events: Vec<StatusEvent>,
    /// By the call's name.
    pub by_name: HashMap<String, Vec<StatusEvent>>,
    /// The name of each id.
    pub by_id: HashMap<String, String>,
    /// By the Job's name.
    pub starts: HashMap<String, Vec<Start>>,
}

/// An attempt as the log has it.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// The record that claims it.
    pub claim: &'a StatusEvent,
    /// The record that ends it.
    pub end: Option<&'a StatusEvent>,
}

impl Attempt<'_> {
    /// How it ended; none when it was cancelled or refused, or has not ended.
    pub fn outcome(&self) -> Option<Outcome> {
        self.end?.outcome
    }

    /// The name of its Job.
    pub fn job(&self) -> &str {
        self.claim.job.as_deref().unwrap_or_default()
    }
}

/// The attempts of a call, by its records.
pub fn attempts(events: &[StatusEvent]) -> impl Iterator<Item = Attempt<'_>> {
    let claims = events.iter().enumerate().filter(|(_, event)| is_claim(event));
    claims.map(|(number, claim)| Attempt { claim, end: events[number..].iter().find(|event| !is_active(event)) })
}

/// How many of them count.
pub fn counted(events: &[StatusEvent]) -> usize {
    attempts(events).filter(|attempt| attempt.outcome() != Some(Outcome::NotStarted)).count()
}

/// Whether a record claims an attempt; another one of the same state says which pod was chosen.
fn is_claim(event: &StatusEvent) -> bool {
    event.status == Status::Pending && event.pod.is_none()
}

fn is_active(event: &StatusEvent) -> bool {
    matches!(event.status, Status::Pending | Status::Running | Status::Cancelling)
}

/// A rule for the records of one call.
type Rule = (&'static str, fn(&[StatusEvent]) -> bool);

/// What must be true of the records of every call.
pub const RULES: [Rule; 7] = [
    ("revisions do not rise by one", |events| {
        events.iter().zip(1_u64..).all(|(event, revision)| event.revision == revision)
    }),
    ("a call does not have exactly one end, as its last record", |events| {
        let ends = events.iter().filter(|event| event.is_final).count();
        ends == 1 && events.last().is_some_and(|event| event.is_final)
    }),
    ("a step is not in the diagram", |events| {
        let before = std::iter::once(None).chain(events.iter().map(Some));
        before.zip(events).all(|(before, event)| {
            is_a_step(before.map(|event| event.status), event.status) || is_choice(before, event)
        })
    }),
    ("attempts do not count up from one", |events| {
        let claims = events.iter().filter(|event| is_claim(event));
        claims.zip(1_u32..).all(|(event, attempt)| event.attempt == attempt)
    }),
    ("more attempts count than are allowed", |events| {
        events.iter().all(|event| counted(events) <= event.max_attempts as usize)
    }),
    ("a call was dialled before its time", |events| {
        let second = SignedDuration::from_secs(1);
        let too_early = |event: &StatusEvent| event.not_before.is_some_and(|moment| event.time + second < moment);
        !events.iter().any(|event| event.status == Status::Pending && too_early(event))
    }),
    ("records of a call disagree about who it is", |events| {
        events.windows(2).all(|pair| {
            (&pair[0].id, &pair[0].fingerprint, &pair[0].dest) == (&pair[1].id, &pair[1].fingerprint, &pair[1].dest)
        })
    }),
];

/// Whether a record says which pod of the attempt was chosen: the first and only one.
fn is_choice(before: Option<&StatusEvent>, event: &StatusEvent) -> bool {
    before.is_some_and(is_claim) && event.status == Status::Pending && event.pod.is_some()
}

/// The diagram of a call's states, written down a second time; without what a cluster refuses, since it has no reason to here.
fn is_a_step(from: Option<Status>, to: Status) -> bool {
    use Status::*;
    let steps: &[Status] = match from {
        None => &[Queued, Scheduled, Pending, Expired, Rejected],
        Some(Queued) => &[Scheduled, Pending, Cancelled, Expired, Rejected],
        Some(Scheduled) => &[Queued, Pending, Cancelled, Expired, Rejected],
        Some(Pending) => &[Running, Failed, Cancelling, Cancelled, Expired, Rejected],
        Some(Running) => &[Succeeded, Failed, Cancelling, Cancelled],
        Some(Cancelling) => &[Cancelled, Succeeded, Failed],
        Some(Failed) => &[Scheduled, Cancelled, Expired],
        Some(Succeeded | Cancelled | Expired | Rejected) => &[],
    };
    steps.contains(&to)
}

/// The most calls that were in progress on a trunk at once, by the order of the log, and the record at which.
pub fn most_active(events: &[StatusEvent], trunk: &str) -> (usize, usize) {
    let mut active = HashSet::new();
    let mut most = (0, 0);
    for (number, event) in events.iter().enumerate() {
        if is_active(event) && event.trunk.as_deref() == Some(trunk) {
            active.insert(&event.name);
        } else {
            active.remove(&event.name);
        }
        most = most.max((active.len(), number));
    }
    most
}

impl Histories {
    pub fn new(events: Vec<StatusEvent>, started: Vec<Start>) -> Self {
        let mut histories = Self { events, by_name: HashMap::new(), by_id: HashMap::new(), starts: HashMap::new() };
        for event in &histories.events {
            histories.by_name.entry(event.name.to_string()).or_default().push(event.clone());
            histories.by_id.insert(event.id.to_string(), event.name.to_string());
        }
        for start in started {
            histories.starts.entry(start.job.clone()).or_default().push(start);
        }
        histories
    }

    /// Every attempt of every call.
    pub fn attempts(&self) -> impl Iterator<Item = Attempt<'_>> {
        self.by_name.values().flat_map(|events| attempts(events))
    }

    /// All that is known of a call, by its name, its id or one of its Jobs.
    pub fn describe(&self, offender: &str, harmed: &[Harmed]) -> String {
        let by_job = CallName::of_job(offender).map(|name| name.to_string());
        let name = by_job.or_else(|| self.by_id.get(offender).cloned()).unwrap_or_else(|| offender.to_owned());
        let mut text = format!("  {offender}\n");
        for event in self.by_name.get(&name).into_iter().flatten() {
            let _ = writeln!(
                text,
                "    {} #{} {} {} attempt {} of {}, {}, code {:?} {}",
                event.time,
                event.revision,
                event.status,
                event.outcome.map_or("", Outcome::as_str),
                event.attempt,
                event.max_attempts,
                event.cluster.as_deref().unwrap_or_default(),
                event.sip_code,
                event.reason.as_deref().unwrap_or_default()
            );
        }
        let of_call = |job: &str| CallName::of_job(job).is_some_and(|call| call.as_str() == name);
        for start in self.starts.iter().filter(|(job, _)| of_call(job)).flat_map(|(_, starts)| starts) {
            let Start { at, job, job_uid, pod, node, .. } = start;
            let _ = writeln!(text, "    {at} {job} started on {node}, Job {job_uid}, pod {pod}");
        }
        for harmed in harmed.iter().filter(|harmed| of_call(&harmed.job)) {
            let _ = writeln!(text, "    {}: {}, known to run: {}", harmed.job, harmed.how, harmed.known_to_run);
        }
        text
    }
}
