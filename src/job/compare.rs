//! A Job that nobody follows × what the log says → what becomes of it: what [`crate::reconcile`] decides by.

use jiff::SignedDuration;

use super::advance::{Moments, advance};
use super::{Observed, ObservedJob};
use crate::call::{Change, Status, StatusEvent};

/// How long after its container should run a Job may still come to be: a request to make it may be on its way for as long as
/// is waited for its answer.
pub const LATE_REQUEST: SignedDuration = SignedDuration::from_secs(20);

/// What becomes of a Job that nobody follows.
#[derive(Debug, Clone, PartialEq)]
pub enum Comparison {
    /// The log is behind it: append this, and compare again.
    Append(Change),
    /// Whoever holds the call's message goes on with it, or nothing is to be done.
    Leave,
    /// Its call is to be cancelled: stop it.
    Stop,
    /// Its attempt is over: let it go.
    LetGo {
        /// Whether there is nothing left to stop.
        has_ended: bool,
    },
}

/// Compares. `cluster` is where the Job is; the moments are those of the attempt in the log.
pub fn compare(last: &StatusEvent, job: &ObservedJob, cluster: &str, moments: Moments) -> Comparison {
    let is_of_the_request = last.fingerprint == job.fingerprint;
    let is_of_the_attempt = last.attempt == job.attempt;
    if is_of_the_attempt
        && last.cluster.as_deref() == Some(cluster)
        && let Some(change) = advance(last, &job.state, moments).into_iter().next()
        && is_seen(&change, job)
    {
        return Comparison::Append(change);
    }
    if is_of_the_attempt && is_of_the_request && last.status == Status::Cancelling && !job.has_ended() {
        Comparison::Stop
    } else if is_over_for(job, last) {
        Comparison::LetGo { has_ended: job.has_ended() || !is_of_the_request }
    } else {
        Comparison::Leave
    }
}

/// What is to be appended for an attempt whose Job is not there; `None` while it may still be made.
pub fn compare_absent(last: &StatusEvent, job: &str, cluster: &str, moments: Moments) -> Option<Change> {
    let is_of_the_attempt = last.job.as_deref() == Some(job) && last.cluster.as_deref() == Some(cluster);
    let may_be_made = moments.now.duration_since(moments.start_by) < LATE_REQUEST;
    let changes = (is_of_the_attempt && !may_be_made).then(|| advance(last, &Observed::Gone, moments));
    changes.into_iter().flatten().next()
}

/// Whether the Job has shown it. An end that it did not show in time is for whoever holds the message, who asks the runner once more.
fn is_seen(change: &Change, job: &ObservedJob) -> bool {
    job.has_ended() || !matches!(change, Change::Ended(_))
}

/// Whether the log says that a Job's attempt is over.
fn is_over_for(job: &ObservedJob, last: &StatusEvent) -> bool {
    last.is_final || last.attempt > job.attempt || (last.attempt == job.attempt && !last.status.is_active())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::*;
    use crate::call::{CallId, Fingerprint, Outcome};
    use crate::job::advance::Patience;
    use crate::job::{Ending, Ran};

    const PATIENCE: Patience = Patience { start_seconds: 60, faults: Duration::from_secs(3600) };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    /// A call of three attempts, busy ones of which are redialled; its first is claimed at second 100 and over at second 300.
    fn claimed() -> StatusEvent {
        let id = CallId::parse("a").expect("an id");
        let queued = StatusEvent::sample(id, Fingerprint::of(b"request"), at(100), 3);
        let queued = StatusEvent { redial_on: vec![Outcome::Busy.into()], ..queued };
        let (cluster, namespace) = ("here".to_owned(), "n".to_owned());
        let claim = Change::Pending { attempt: 1, cluster, namespace, trunk: "default".to_owned(), ends_by: at(300) };
        queued.next(claim, at(100)).expect("a legal step")
    }

    fn job(state: Observed) -> ObservedJob {
        let StatusEvent { name, id, fingerprint, .. } = claimed();
        ObservedJob { name: name.job(1), id, attempt: 1, fingerprint, state, settled: false }
    }

    fn busy() -> Observed {
        Observed::Ended(Ending {
            succeeded: false,
            ran: Ran::Yes,
            has_gate: false,
            exit_code: Some(1),
            message: Some("Call state: DISCONNECTED (last code: 486)".to_owned()),
            reason: None,
            started_at: Some(at(110)),
            completed_at: at(120),
        })
    }

    fn moments(last: &StatusEvent, now: i64) -> Moments {
        Moments::of(last, PATIENCE, at(now))
    }

    #[test]
    fn an_end_is_recorded_also_when_it_is_redialled_and_then_the_job_is_let_go() {
        let (mut last, job) = (claimed(), job(busy()));
        while let Comparison::Append(change) = compare(&last, &job, "here", moments(&last, 130)) {
            last = last.next(change, at(130)).expect("a legal step");
        }
        assert_eq!((last.status, last.outcome, last.is_final), (Status::Failed, Some(Outcome::Busy), false));
        assert_eq!(compare(&last, &job, "here", moments(&last, 130)), Comparison::LetGo { has_ended: true });
    }

    #[test]
    fn an_attempt_of_another_cluster_is_left_alone() {
        let last = claimed();
        assert_eq!(compare(&last, &job(busy()), "there", moments(&last, 130)), Comparison::Leave);
        assert_eq!(compare_absent(&last, &last.name.job(1), "there", moments(&last, 299)), None);
    }

    #[test]
    fn what_a_job_has_not_shown_in_time_is_left_to_the_holder_of_the_message() {
        let last = claimed();
        let waits = job(Observed::waiting());
        assert_eq!(compare(&last, &waits, "here", moments(&last, 300)), Comparison::Leave);
    }

    #[test]
    fn an_attempt_without_a_job_is_ended_when_none_can_be_made_any_more() {
        let last = claimed();
        let absent = |job: &str, now| compare_absent(&last, job, "here", moments(&last, now));
        let name = last.name.job(1);
        assert_eq!(absent(&name, 179), None, "a request to make it may be on its way");
        assert_eq!(absent(&last.name.job(2), 180), None, "it is not the attempt's");
        let Some(Change::Ended(ended)) = absent(&name, 180) else { panic!("it has ended") };
        assert_eq!((ended.outcome, ended.redial), (Outcome::NotStarted, true));
    }
}
