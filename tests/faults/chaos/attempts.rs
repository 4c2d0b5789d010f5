//! What must be true of every attempt: it is started once, it ends in time, and its end is unknown only where it was lost.

use std::collections::{HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};
use sipstuff_operator::call::{Outcome, Status, StatusEvent};

use super::checks::Report;
use super::histories::{Attempt, Histories, attempts};
use super::plan::Planned;
use super::world::World;
use crate::support::node::Start;

/// How much later than its `ends_by` an attempt may end: whoever holds its message may have to be replaced (the ack wait, 30 s), may
/// have given it back for another look (15 s), and may ask a silent API server once more (30 s).
const LATE: SignedDuration = SignedDuration::from_secs(75);
/// By so much two clocks may differ, and what one process records is later than what another one sees.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(1);

/// The Jobs of attempts that may have been lost: a node had their pods in hand when it vanished, or a cluster had claimed them.
pub fn lost(world: &World, histories: &Histories) -> HashSet<String> {
    let vanished = world.vanished.lock().expect("no panic while it is held").clone();
    let was_lost = |attempt: &Attempt<'_>| {
        let gone_at = attempt.claim.cluster.as_ref().and_then(|cluster| vanished.get(cluster));
        gone_at.is_some_and(|gone_at| attempt.end.is_none_or(|end| end.time >= *gone_at))
    };
    let with_clusters = histories.attempts().filter(was_lost).map(|attempt| attempt.job().to_owned());
    with_clusters.chain(world.lost_with_nodes()).collect()
}

impl Report {
    pub fn no_attempt_is_started_twice(&mut self) {
        let twice = self.histories.starts.iter().filter(|(_, starts)| starts.len() > 1);
        let twice = twice.map(|(job, _)| job.clone()).collect();
        self.expect_none("an attempt was started twice", twice);
        let events = self.histories.by_name.values().flatten();
        let chosen: HashSet<&str> = events.filter_map(|event| Some(event.pod.as_ref()?.uid.as_str())).collect();
        let is_chosen = |start: &Start| chosen.contains(start.pod_uid.as_str());
        let others = self.histories.starts.iter().filter(|(_, starts)| !starts.iter().all(is_chosen));
        let others = others.map(|(job, _)| job.clone()).collect();
        self.expect_none("a pod ran that was not chosen", others);
        let claimed: HashSet<&String> =
            self.histories.by_name.values().flatten().filter_map(|event| event.job.as_ref()).collect();
        let unclaimed = self.histories.starts.keys().filter(|job| !claimed.contains(job)).cloned().collect();
        self.expect_none("a Job was started without a claim", unclaimed);
    }

    pub fn every_attempt_ends_in_time(&mut self) {
        let over_by = |attempt: &Attempt<'_>| Some(attempt.end?.time.duration_since(attempt.claim.ends_by?));
        let late = |attempt: &Attempt<'_>| over_by(attempt).is_none_or(|over_by| over_by > LATE);
        let offenders = self.histories.attempts().filter(late).map(|attempt| attempt.job().to_owned()).collect();
        let longest = self.histories.attempts().filter_map(|attempt| over_by(&attempt)).max().unwrap_or_default();
        self.notes.push(format!("the latest end of an attempt was {:.1} s after its `ends_by`", longest.as_secs_f64()));
        self.expect_none("an attempt does not end in time", offenders);
    }

    /// Also where somebody deleted the Job or its pod, and where its container had just started when it was late.
    pub fn an_end_is_unknown_only_where_it_was_lost(&mut self, world: &World) {
        let harmed: HashSet<String> = world.harmed().into_iter().map(|harmed| harmed.job).collect();
        let time_to_start = SignedDuration::from_secs(world.plan.start_seconds().into());
        let started_late = |attempt: &Attempt<'_>| {
            let mut starts = self.histories.starts.get(attempt.job()).into_iter().flatten();
            starts.any(|start| start.at + TOLERANCE >= attempt.claim.time + time_to_start)
        };
        let (mut lost, mut offenders) = (0, Vec::new());
        for attempt in self.histories.attempts().filter(|attempt| attempt.outcome() == Some(Outcome::Unknown)) {
            if self.lost.contains(attempt.job()) {
                lost += 1;
            } else if !harmed.contains(attempt.job()) && !started_late(&attempt) {
                offenders.push(attempt.job().to_owned());
            }
        }
        self.notes
            .push(format!("attempts lost with a node or a cluster: {}, of them unknown: {lost}", self.lost.len()));
        self.expect_none("the end of an attempt is unknown, although nothing that it needed vanished", offenders);
    }

    pub fn nobody_gives_an_attempt_up_before_its_time(&mut self) {
        let too_early = |attempt: &Attempt<'_>| {
            is_given_up(attempt) && attempt.end.is_some_and(|end| attempt.claim.ends_by.is_none_or(|by| end.time < by))
        };
        let offenders = self.histories.attempts().filter(too_early).map(|attempt| attempt.job().to_owned()).collect();
        self.expect_none("an attempt was given up before its time was up", offenders);
    }

    pub fn an_unknown_end_is_redialled_only_as_asked(&mut self, calls: &[Planned]) {
        let asked: HashMap<&str, bool> = calls.iter().map(|call| (call.id.as_str(), call.redials_unknown)).collect();
        let mut offenders = Vec::new();
        let mut redialled = 0;
        for events in self.histories.by_name.values() {
            let unknown = events.iter().filter(|event| event.outcome == Some(Outcome::Unknown));
            for end in unknown.filter(|event| event.status == Status::Failed && !event.is_final) {
                redialled += 1;
                if !asked.get(end.id.as_str()).copied().unwrap_or_default() {
                    offenders.push(end.name.to_string());
                }
            }
        }
        self.notes.push(format!("attempts dialled again after an unknown end, as asked: {redialled}"));
        self.expect_none("a call is dialled again after an unknown end, and nobody asked for it", offenders);
    }

    /// Except where somebody deleted the Job, so that nobody could see that it ran.
    pub fn what_was_started_does_not_count_as_not_started(&mut self, world: &World) {
        let harmed: HashSet<String> = world.harmed().into_iter().map(|harmed| harmed.job).collect();
        let not_started = |attempt: &Attempt<'_>| attempt.outcome() == Some(Outcome::NotStarted);
        let is_seen = |attempt: &Attempt<'_>| {
            self.histories.starts.contains_key(attempt.job()) && !harmed.contains(attempt.job())
        };
        let all = self.histories.attempts().filter(not_started).count();
        let offenders = self.histories.attempts().filter(not_started).filter(is_seen);
        let offenders = offenders.map(|attempt| attempt.job().to_owned()).collect();
        self.notes.push(format!("attempts that did not start, and do not count: {all}"));
        self.expect_none("an attempt that was started ended as not started", offenders);
    }

    pub fn nothing_is_claimed_in_a_pause(&mut self, world: &World) {
        let pauses = world.pauses.lock().expect("no panic while it is held").clone();
        let in_a_pause = |at: Timestamp| pauses.iter().any(|(since, until)| *since < at && at < *until);
        let claims = self.histories.attempts().filter(|attempt| in_a_pause(attempt.claim.time));
        let offenders = claims.map(|attempt| attempt.job().to_owned()).collect();
        let seconds: f64 =
            pauses.iter().map(|(since, until)| until.duration_since(*since).as_secs_f64().max(0.0)).sum();
        self.notes.push(format!("{} pauses that all operators obeyed, {seconds:.1} s", pauses.len()));
        self.expect_none("a call was claimed in a pause", offenders);
        let events = self.histories.by_name.values().flatten();
        let chosen = events.filter(|event| is_choice(event) && in_a_pause(event.time));
        let offenders = chosen.map(|event| event.name.to_string()).collect();
        self.expect_none("a pod was let through in a pause", offenders);
    }
}

fn is_choice(event: &StatusEvent) -> bool {
    event.status == Status::Pending && event.pod.is_some()
}

/// Whether it has ended since its time was up, and not by what its cluster said.
fn is_given_up(attempt: &Attempt<'_>) -> bool {
    let reason = attempt.end.and_then(|end| end.reason.as_deref());
    reason.is_some_and(|reason| reason.contains("not heard of in time"))
}
