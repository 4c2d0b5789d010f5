//! A Job that nobody follows × what the log says → what becomes of it: what [`crate::reconcile`] decides by.

use super::ObservedJob;
use super::advance::{Moments, advance};
use crate::call::{Change, Outcome, Status, StatusEvent};

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
        && let Some(change) = advance(last, &job.state, moments, |outcome| may_redial(last, outcome)).into_iter().next()
    {
        return match change {
            // Whether it really is redialled is in the request, which only the message's holder has.
            Change::Ended(ended) if ended.redial => Comparison::Leave,
            change => Comparison::Append(change),
        };
    }
    if is_of_the_attempt && is_of_the_request && last.status == Status::Cancelling && !job.has_ended() {
        Comparison::Stop
    } else if is_over_for(job, last) {
        Comparison::LetGo { has_ended: job.has_ended() || !is_of_the_request }
    } else {
        Comparison::Leave
    }
}

/// Whether an attempt that ended so may be followed by another.
fn may_redial(last: &StatusEvent, outcome: Outcome) -> bool {
    match outcome {
        Outcome::NotStarted | Outcome::Unknown => true,
        outcome => outcome.may_redial() && last.counted_attempts() < last.max_attempts,
    }
}

/// Whether the log says that a Job's attempt is over.
fn is_over_for(job: &ObservedJob, last: &StatusEvent) -> bool {
    last.is_final || last.attempt > job.attempt || (last.attempt == job.attempt && !last.status.is_active())
}
