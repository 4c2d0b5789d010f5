//! When an attempt is dialled again that failed: pure, as [`super::decide`] is. Whether it is, is in `job::redial`.

use jiff::{SignedDuration, Timestamp};

use crate::call::outcome::retry_after;
use crate::call::{CallSpec, Change, Fingerprint, Outcome, OutcomeClass, StatusEvent};

/// Seconds before a call is tried again after a fault of ours; doubles with each further one.
const FIRST_FAULT_DELAY: u32 = 5;
/// The longest of these waits, in seconds.
const MAX_FAULT_DELAY: u32 = 300;

/// The longest wait that the other side may ask for, in seconds.
const MAX_RETRY_AFTER: u32 = 3600;

/// What follows an attempt that failed and is redialled: when the next one is due, or that it would be too late. After a fault of its
/// trunk a call that has another one to go to does not wait.
pub(super) fn after_failure(spec: &CallSpec, last: &StatusEvent, has_other_trunk: bool, now: Timestamp) -> Change {
    let asked_for = || last.message.as_deref().and_then(retry_after).unwrap_or(0).min(MAX_RETRY_AFTER);
    let seconds = match last.outcome.map(Outcome::class) {
        Some(OutcomeClass::Cluster) => fault_delay(last.faults),
        Some(OutcomeClass::Trunk) if has_other_trunk => 0,
        Some(OutcomeClass::Trunk) => fault_delay(last.faults).max(asked_for()),
        _ => spec.retry_delay_seconds(last.counted_attempts()),
    };
    let wait = SignedDuration::from_millis(jittered(seconds, &last.name.job(last.attempt)));
    let due_at = now.saturating_add(wait).unwrap_or(Timestamp::MAX);
    match spec.not_after {
        Some(end) if end <= due_at => Change::Expired,
        _ => Change::Scheduled { due_at },
    }
}

fn fault_delay(faults: u32) -> u32 {
    FIRST_FAULT_DELAY.saturating_mul(2_u32.saturating_pow(faults.saturating_sub(1))).min(MAX_FAULT_DELAY)
}

/// Milliseconds to wait: the delay and up to a tenth more, by the Job's name, so that a batch that failed together does not
/// come back together.
fn jittered(seconds: u32, job: &str) -> i64 {
    let spread =
        Fingerprint::of(job.as_bytes()).as_str().bytes().fold(0_u64, |sum, byte| sum * 31 % 1000 + u64::from(byte));
    let milliseconds = u64::from(seconds) * 1000;
    i64::try_from(milliseconds + milliseconds / 10 * (spread % 1000) / 1000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::call::{CallId, Ended, validate};

    const NOW: i64 = 1_893_456_000;

    fn spec(max_attempts: u32, retry_delay: u32, not_after: Option<i64>) -> CallSpec {
        let mut request = json!({"dest": "1", "text": "a", "max_attempts": max_attempts, "retry_delay": retry_delay});
        if let Some(seconds) = not_after {
            request["not_after"] = json!(at(NOW + seconds).to_string());
        }
        validate::parse(request.to_string().as_bytes(), at(NOW)).expect("a valid request").spec
    }

    /// A call whose attempts have ended so, one after another; the last one has just been claimed.
    fn claimed(outcomes: &[Outcome]) -> StatusEvent {
        let id = CallId::parse("a").expect("an id");
        let mut event = StatusEvent::sample(id, Fingerprint::of(b"request"), at(NOW), 10);
        for outcome in outcomes {
            event = claim(&event);
            event = event.next(ended(*outcome), at(NOW)).expect("a legal step");
            event = event.next(Change::Scheduled { due_at: at(NOW) }, at(NOW)).expect("a legal step");
        }
        claim(&event)
    }

    fn claim(event: &StatusEvent) -> StatusEvent {
        let change = Change::Pending {
            attempt: event.attempt + 1,
            cluster: "c".into(),
            namespace: "n".into(),
            trunk: "default".into(),
            ends_by: at(NOW + 3600),
        };
        event.next(change, at(NOW)).expect("a legal step")
    }

    fn ended(outcome: Outcome) -> Change {
        Change::Ended(Ended {
            outcome,
            sip_code: None,
            exit_code: None,
            completed_at: at(NOW),
            reason: None,
            message: None,
            evidence: None,
            redial: true,
        })
    }

    fn busy(times: u32) -> Vec<Outcome> {
        vec![Outcome::Busy; usize::try_from(times).expect("few")]
    }

    #[test]
    fn the_wait_after_attempts_that_never_ran_doubles() {
        let spec = spec(1, 300, None);
        let failed = claimed(&[Outcome::NotStarted, Outcome::NotStarted]);
        let failed = failed.next(ended(Outcome::NotStarted), at(NOW)).expect("a legal step");
        let Change::Scheduled { due_at } = after_failure(&spec, &failed, false, at(NOW)) else {
            panic!("it is tried again")
        };
        assert!((at(NOW + 20)..=at(NOW + 22)).contains(&due_at), "the third wait is four times the first: {due_at}");
    }

    #[test]
    fn after_a_fault_of_its_trunk_it_goes_to_the_next_one_at_once_or_waits_for_as_long_as_is_asked_for() {
        let (spec, now) = (spec(1, 300, None), at(NOW));
        let congested = claimed(&[]).next(ended(Outcome::Congestion), now).expect("a legal step");
        let told =
            |seconds: &str| StatusEvent { message: Some(format!("Retry-After: {seconds}")), ..congested.clone() };
        let due = |last: &StatusEvent, has_other_trunk| match after_failure(&spec, last, has_other_trunk, now) {
            Change::Scheduled { due_at } => due_at.as_second() - NOW,
            other => panic!("it is tried again: {other:?}"),
        };
        assert_eq!(due(&told("120"), true), 0);
        assert!((120..=132).contains(&due(&told("120"), false)));
        assert!((5..=6).contains(&due(&told("1"), false)) && (5..=6).contains(&due(&congested, false)));
        assert!(due(&told("86400"), false) <= 3960);
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    proptest! {
        #[test]
        fn the_next_attempt_comes_after_its_delay_and_at_most_a_tenth_more_or_not_at_all(
            retry_delay in 1_u32..=86_400,
            attempt in 1_u32..10,
            not_after in prop::option::of(1_i64..200_000),
        ) {
            let spec = spec(10, retry_delay, not_after);
            let delay = i64::from(retry_delay).saturating_mul(1 << (attempt - 1)).min(86_400);
            let (earliest, latest) = (at(NOW + delay), at(NOW + delay + delay / 10 + 1));
            let last = claimed(&busy(attempt - 1)).next(ended(Outcome::Busy), at(NOW)).expect("a legal step");
            match after_failure(&spec, &last, false, at(NOW)) {
                Change::Scheduled { due_at } => {
                    prop_assert!((earliest..=latest).contains(&due_at), "{due_at} is not within {earliest} to {latest}");
                    prop_assert!(not_after.is_none_or(|end| due_at < at(NOW + end)));
                }
                Change::Expired => prop_assert!(not_after.is_some_and(|end| at(NOW + end) <= latest)),
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
