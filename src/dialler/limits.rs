//! How long each part of an attempt may take, and what follows when it took longer: pure, as [`super::decide`] is.

use jiff::{SignedDuration, Timestamp};

use super::decide::Asked;
use crate::call::{Call, Change, Status, StatusEvent};
use crate::job::advance::Moments;
use crate::job::manifest::job_deadline;
use crate::job::{JobDefaults, Observed};

/// How long what was read of the log is good enough to make a Job by. By the wall clock, which goes on while a machine is
/// suspended.
const FRESH: SignedDuration = SignedDuration::from_secs(1);
/// How much longer an attempt may take than its Job, so that the cluster's own word arrives first.
const GRACE: SignedDuration = SignedDuration::from_secs(15);
/// How long the runner is asked for an attempt that is past its time, before its end counts as unknown.
const LAST_TRY: SignedDuration = SignedDuration::from_secs(30);

/// The claim of an attempt. It is over when its Job is at the latest, which has the time to start, the longest conversation and
/// the margin.
pub(super) fn claim(
    call: &Call,
    attempt: u32,
    trunk: &str,
    cluster: &str,
    defaults: &JobDefaults,
    now: Timestamp,
) -> Change {
    Change::Pending {
        attempt,
        cluster: cluster.to_owned(),
        namespace: defaults.namespace.clone(),
        trunk: trunk.to_owned(),
        ends_by: ends_by(call, defaults, now),
    }
}

/// When an attempt that is claimed now is over at the latest.
pub(super) fn ends_by(call: &Call, defaults: &JobDefaults, now: Timestamp) -> Timestamp {
    let deadline = SignedDuration::from_secs(job_deadline(&call.spec, defaults).into());
    now.saturating_add(deadline + GRACE).unwrap_or(Timestamp::MAX)
}

/// Whether a Job may be made by what was read of the log then.
pub(super) fn is_fresh(read_at: Timestamp, now: Timestamp) -> bool {
    now.duration_since(read_at).abs() < FRESH
}

/// Whether the attempt has its time no more: no Job is made then.
pub(super) fn is_too_late_to_start(asked: &Asked, moments: Moments) -> bool {
    is_past_not_after(asked, moments.now) || moments.start_is_late()
}

/// Whether `not_after` has passed.
pub(super) fn is_past_not_after(asked: &Asked, now: Timestamp) -> bool {
    asked.not_after.is_some_and(|end| end <= now)
}

/// Whether a container had its time to start and did not. One that has run did start: what waits now is a pod that took the place of
/// one that was drained.
pub(super) fn has_not_started_in_time(last: &StatusEvent, observed: &Observed, moments: Moments) -> bool {
    last.status == Status::Pending && matches!(observed, Observed::Waiting { .. }) && moments.start_is_late()
}

/// Whether a runner that does not answer is asked no more: the attempt had all its time, and some more tries since its message
/// was delivered.
pub(super) fn is_given_up(moments: Moments, delivered_at: Timestamp) -> bool {
    moments.is_over() && moments.now.duration_since(delivered_at) >= LAST_TRY
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::{CallId, Fingerprint};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn moments(now: i64) -> Moments {
        Moments { start_by: at(700), ends_by: at(1000), ..Moments::unlimited(at(now)) }
    }

    #[test]
    fn a_container_that_has_run_is_not_late_when_its_node_is_drained_and_another_pod_waits() {
        let queued = StatusEvent::sample(CallId::parse("a").expect("an id"), Fingerprint::of(b"request"), at(100), 1);
        let claim = Change::Pending {
            attempt: 1,
            cluster: "c".into(),
            namespace: "n".into(),
            trunk: "default".into(),
            ends_by: at(1000),
        };
        let pending = queued.next(claim, at(100)).expect("a legal step");
        let runs = pending.next(Change::Running { started_at: at(200) }, at(200)).expect("a legal step");
        let (waits, started) = (Observed::waiting(), Observed::Running { started_at: at(200) });
        assert!(has_not_started_in_time(&pending, &waits, moments(700)));
        assert!(!has_not_started_in_time(&pending, &waits, moments(699)));
        assert!(!has_not_started_in_time(&pending, &started, moments(700)));
        assert!(!has_not_started_in_time(&runs, &waits, moments(700)));
    }

    #[test]
    fn a_silent_runner_is_given_up_when_the_attempt_is_over_and_it_was_asked_for_a_while() {
        assert!(is_given_up(moments(1000), at(970)));
        assert!(!is_given_up(moments(1000), at(971)));
        assert!(!is_given_up(moments(999), at(100)));
    }
}
