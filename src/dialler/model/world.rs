//! What there is in the model: the log, the queue, the timers, the diallers and the Jobs of one call.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::graph::hash;
use super::properties::Flaws;
use crate::call::{Change, Outcome, PodRef, Status, StatusEvent};
use crate::job::{Ending, Gate, Observed, Passed, Ran};

/// A moment. An attempt has one tick to start and is over after two; whatever is awaited for less is done within one.
pub(super) type Tick = u8;
/// The present one. When time passes, all other moments move into the past: so two worlds in which the same is to come are the
/// same, however late it is.
pub(super) const NOW: Tick = 100;
/// What is as old as this is not told apart from what is older: an attempt is over by then.
const LONG_AGO: Tick = NOW - 3;
/// Seconds of a tick.
pub(super) const TICK: i64 = 100;
const BEGIN: i64 = 1_893_456_000;

pub(super) fn at(tick: Tick) -> Timestamp {
    Timestamp::from_second(BEGIN + i64::from(tick) * TICK).expect("in range")
}

fn age(tick: &mut Tick) {
    *tick = (*tick - 1).max(LONG_AGO);
}

/// For what matters only if it was in this tick.
fn age_to_before(tick: &mut Tick) {
    *tick = NOW - 1;
}

fn age_moment(moment: &mut Timestamp) {
    *moment = (*moment - SignedDuration::from_secs(TICK)).max(at(LONG_AGO));
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) log: Log,
    /// Requests that were not admitted yet.
    pub(super) inbox: u8,
    /// What is in the window.
    pub(super) queue: Vec<Message>,
    pub(super) next_sequence: u64,
    pub(super) timers: Vec<Timer>,
    pub(super) diallers: Vec<Dialler>,
    pub(super) jobs: Vec<Job>,
    /// Requests to make a Job that are on their way while nobody waits for their answer.
    pub(super) wire: Vec<(usize, u32)>,
    /// The same for those to lift the gate of a pod.
    pub(super) lifts: Vec<(usize, u32, u8)>,
    /// How often a Job was made, by attempt.
    pub(super) starts: Vec<(u32, u8)>,
    /// How the Jobs ended by themselves, by attempt, where that can be heard.
    pub(super) ends: Vec<(u32, End)>,
    /// Attempts whose container has run.
    pub(super) ran: Vec<u32>,
    /// Clusters that do not answer any more.
    pub(super) is_silent: [bool; 2],
    pub(super) left: Budget,
    pub(super) flaws: Flaws,
    pub(super) dead_letters: u8,
    /// Whether the call has had its end, though the log may have lost it.
    pub(super) has_had_its_end: bool,
}

/// How often what may go wrong still does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    /// Crashes, lost answers, failed requests, messages that are delivered twice, disrupted pods.
    pub(super) faults: u8,
    /// Ticks that pass while somebody has something to do.
    pub(super) delays: u8,
    pub(super) cancels: u8,
    /// Lost tails of the log.
    pub(super) losses: u8,
    /// Clusters that fall silent.
    pub(super) silences: u8,
    /// Jobs that are deleted by hand.
    pub(super) deletions: u8,
}

/// A record, compared by what anything is decided by: two worlds that differ in nothing else go on in the same way.
#[derive(Clone)]
pub(super) struct Record {
    pub(super) event: Arc<StatusEvent>,
    key: Key,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    status: Status,
    attempt: u32,
    faults: u32,
    is_final: bool,
    outcome: Option<Outcome>,
    cluster: Option<u8>,
    pod: Option<u8>,
    moments: [Option<i64>; 6],
}

impl Record {
    pub(super) fn new(event: StatusEvent) -> Self {
        let (is_active, has_failed) = (event.status.is_active(), event.status == Status::Failed);
        let seconds = |moment: Option<Timestamp>, counts: bool| moment.filter(|_| counts).map(Timestamp::as_second);
        let key = Key {
            status: event.status,
            attempt: event.attempt,
            faults: event.faults,
            is_final: event.is_final,
            outcome: event.outcome.filter(|_| has_failed),
            cluster: event.cluster.as_ref().filter(|_| is_active).map(|cluster| cluster.as_bytes()[0]),
            pod: event.pod.as_ref().filter(|_| is_active).map(|pod| pod.uid.as_bytes()[0]),
            moments: [
                seconds(event.created_at, is_active),
                seconds(event.ends_by, is_active),
                seconds(event.started_at, is_active),
                seconds(event.faults_since, true),
                seconds(event.due_at, true),
                seconds(Some(event.time), event.status == Status::Cancelling),
            ],
        };
        Self { event: Arc::new(event), key }
    }

    fn age(&mut self) {
        let mut event = StatusEvent::clone(&self.event);
        age_moment(&mut event.time);
        let StatusEvent { created_at, started_at, completed_at, ends_by, faults_since, due_at, .. } = &mut event;
        let moments = [created_at, started_at, completed_at, ends_by, faults_since, due_at];
        moments.into_iter().flatten().for_each(age_moment);
        *self = Self::new(event);
    }
}

impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Record {}

impl Hash for Record {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = &self.event;
        write!(f, "{}-{}", event.status, event.attempt)?;
        event.outcome.map_or(Ok(()), |outcome| write!(f, "-{outcome}"))?;
        if event.is_final { write!(f, "!") } else { Ok(()) }
    }
}

/// The status log of the call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Log {
    records: Vec<Record>,
}

impl Log {
    pub(super) fn last(&self) -> Option<&Record> {
        self.records.last()
    }

    pub(super) fn sequence(&self) -> u64 {
        self.records.len() as u64
    }

    pub(super) fn push(&mut self, record: Record) {
        self.records.push(record);
    }

    /// Loses the last records, whose sequences are used anew then.
    pub(super) fn lose(&mut self, count: usize) {
        self.records.truncate(self.records.len().saturating_sub(count));
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    fn forget_all_but_the_last(&mut self) {
        let older = self.records.len().saturating_sub(1);
        self.records.drain(..older);
    }
}

/// A message of the window.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Message {
    pub(super) sequence: u64,
    pub(super) attempt: u32,
    pub(super) deliveries: u64,
    pub(super) place: Place,
}

/// Where a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// With the server, to be delivered.
    Ready,
    /// Handed back in this tick, to be delivered in a later one.
    HandedBack(Tick),
    /// With a dialler.
    Delivered,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Timer {
    pub(super) attempt: u32,
    pub(super) due: Timestamp,
}

/// A process, which works on one message at a time here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Dialler {
    pub(super) cluster: usize,
    pub(super) is_gone: bool,
    pub(super) work: Option<Work>,
}

/// The processing of a delivery.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Work {
    pub(super) message: Message,
    pub(super) began: Tick,
    pub(super) last: Option<Record>,
    pub(super) sequence: u64,
    pub(super) read_at: Tick,
    pub(super) is_stopped: bool,
    pub(super) at: At,
}

/// The next thing that a dialler does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum At {
    /// Read the log.
    Read,
    /// Nothing in this tick, since its cluster does not answer.
    Wait(Tick),
    /// Decide, and do the first thing that this takes.
    Decide,
    /// Hear the answer to its request to make the Job.
    Requested,
    /// Ask for the Job and follow it.
    Find,
    /// Append what the Job shows, and wait for news of it.
    Follow(View, Vec<Todo>),
    /// Lift the gate of a pod, as the log says.
    Lift(u8),
    /// Remove the Job, which does not start in time.
    Remove,
    /// Let the Job go.
    LetGo(View),
}

/// A change that was decided on and is not recorded yet.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Todo(pub(super) Change);

impl Eq for Todo {}

impl Hash for Todo {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.status().hash(state);
        if let Change::Ended(ended) = &self.0 {
            (ended.outcome, ended.redial).hash(state);
        }
    }
}

/// The Job of an attempt in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Job {
    pub(super) cluster: usize,
    pub(super) attempt: u32,
    pub(super) view: View,
    /// How many pods it has made.
    pub(super) pods: u8,
    pub(super) is_being_removed: bool,
    pub(super) is_settled: bool,
}

/// Where a Job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum View {
    Waiting(Pods),
    Running(Tick),
    Ended(End, Tick),
    Gone,
}

/// The pods of a Job that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pods {
    /// The one that waits at its gate.
    pub(super) gated: Option<u8>,
    pub(super) passed: Passed,
}

/// How a Job ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum End {
    Answered,
    Busy,
    /// Its container never ran.
    NeverRan,
    /// It ran, and its end is lost with its node.
    Lost,
}

impl Message {
    fn age(&mut self) {
        if let Place::HandedBack(tick) = &mut self.place {
            age_to_before(tick);
        }
    }
}

impl Work {
    fn age(&mut self) {
        self.message.age();
        age_to_before(&mut self.began);
        age_to_before(&mut self.read_at);
        self.last.iter_mut().for_each(Record::age);
        if let At::Wait(tick) = &mut self.at {
            age_to_before(tick);
        }
        if let At::Follow(View::Running(tick) | View::Ended(_, tick), _)
        | At::LetGo(View::Running(tick) | View::Ended(_, tick)) = &mut self.at
        {
            age(tick);
        }
    }
}

impl Pods {
    /// One pod, and no other.
    pub(super) fn one(number: u8, has_gates: bool) -> Self {
        let (gated, passed) = if has_gates { (Some(number), Passed::Nobody) } else { (None, Passed::Lives) };
        Self { gated, passed }
    }
}

/// A pod by its number; a digit tells it from others of its Job.
pub(super) fn pod(number: u8) -> PodRef {
    PodRef { name: String::new(), uid: char::from(b'0' + number).to_string() }
}

impl View {
    pub(super) fn observed(self, has_gates: bool) -> Observed {
        match self {
            View::Waiting(Pods { gated, passed }) => {
                Observed::Waiting { reason: None, gate: Gate { waits: gated.map(pod), passed } }
            }
            View::Running(since) => Observed::Running { started_at: at(since) },
            View::Ended(end, then) => Observed::Ended(end.ending(then, has_gates)),
            View::Gone => Observed::Gone,
        }
    }

    pub(super) fn has_ended(self) -> bool {
        matches!(self, View::Ended(..))
    }

    pub(super) fn leaves_nothing_to_stop(self) -> bool {
        matches!(self, View::Ended(..) | View::Gone)
    }
}

impl End {
    pub(super) fn outcome(self) -> Outcome {
        match self {
            End::Answered => Outcome::Answered,
            End::Busy => Outcome::Busy,
            End::NeverRan => Outcome::NotStarted,
            End::Lost => Outcome::Unknown,
        }
    }

    fn ending(self, then: Tick, has_gate: bool) -> Ending {
        let (ran, exit_code) = match self {
            End::Answered => (Ran::Yes, Some(0)),
            End::Busy => (Ran::Yes, Some(1)),
            End::NeverRan => (Ran::No, None),
            End::Lost => (Ran::Unknown, None),
        };
        Ending {
            succeeded: self == End::Answered,
            ran,
            has_gate,
            exit_code,
            message: exit_code.map(|_| "Call state: DISCONNECTED (last code: 486)".to_owned()),
            reason: None,
            started_at: (ran != Ran::No).then(|| at(then)),
            completed_at: at(then),
        }
    }
}

impl World {
    /// A tick passes.
    pub(super) fn age(&mut self) {
        self.log.records.iter_mut().for_each(Record::age);
        self.timers.iter_mut().for_each(|timer| age_moment(&mut timer.due));
        self.queue.iter_mut().for_each(Message::age);
        for work in self.diallers.iter_mut().filter_map(|dialler| dialler.work.as_mut()) {
            work.age();
        }
        for job in &mut self.jobs {
            if let View::Running(tick) | View::Ended(_, tick) = &mut job.view {
                age(tick);
            }
        }
    }

    /// Makes worlds equal that go on in the same way: what no loss of the log's tail can bring to light again is left out, and of
    /// who has read the log before, only that it has changed since.
    pub(super) fn simplify(&mut self) {
        if self.left.losses == 0 && self.log.len() > 0 {
            let last = self.log.sequence();
            self.log.forget_all_but_the_last();
            for work in self.diallers.iter_mut().filter_map(|dialler| dialler.work.as_mut()) {
                work.sequence = u64::from(work.sequence == last);
            }
            self.forget_older_attempts();
        }
        // Diallers of one cluster are alike, so which of them does what makes no difference.
        self.diallers.sort_by_cached_key(|dialler| (dialler.cluster, hash(dialler)));
    }

    fn forget_older_attempts(&mut self) {
        let Some(attempt) = self.log.last().map(|last| last.event.attempt) else { return };
        self.ran.retain(|ran| *ran >= attempt);
        self.ends.retain(|(ended, _)| *ended >= attempt);
        for job in self.jobs.iter_mut().filter(|job| job.is_settled && job.attempt < attempt) {
            job.view = View::Ended(End::Lost, LONG_AGO);
        }
    }

    pub(super) fn job(&self, cluster: usize, attempt: u32) -> Option<&Job> {
        self.jobs.iter().find(|job| (job.cluster, job.attempt) == (cluster, attempt))
    }

    pub(super) fn job_mut(&mut self, cluster: usize, attempt: u32) -> Option<&mut Job> {
        self.jobs.iter_mut().find(|job| (job.cluster, job.attempt) == (cluster, attempt))
    }

    /// Lifts the gate of a pod, if it waits there still.
    pub(super) fn lift(&mut self, cluster: usize, attempt: u32, pod: u8) {
        if let Some(Job { view: View::Waiting(pods), .. }) = self.job_mut(cluster, attempt)
            && pods.gated == Some(pod)
        {
            *pods = Pods { gated: None, passed: Passed::Lives };
        }
    }

    /// What a cluster says of an attempt's Job.
    pub(super) fn view(&self, cluster: usize, attempt: u32) -> View {
        self.job(cluster, attempt).map_or(View::Gone, |job| job.view)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.log.last().is_some_and(|last| last.event.is_final)
    }

    /// Makes a Job unless there is one of that name.
    pub(super) fn make_job(&mut self, cluster: usize, attempt: u32, has_gates: bool) {
        if self.job(cluster, attempt).is_some() {
            return;
        }
        let view = View::Waiting(Pods::one(1, has_gates));
        let job = Job { cluster, attempt, view, pods: 1, is_being_removed: false, is_settled: false };
        self.jobs.push(job);
        self.jobs.sort_by_key(|job| (job.cluster, job.attempt));
        match self.starts.iter_mut().find(|(started, _)| *started == attempt) {
            Some((_, count)) => *count += 1,
            None => self.starts.push((attempt, 1)),
        }
        self.starts.sort_unstable();
    }
}
