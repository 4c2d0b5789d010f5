//! Whether an attempt that failed is followed by another, and when: pure, as [`super::decide`] is.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::call::{CallSpec, Change, Fingerprint, OnUnknown, Outcome, Status, StatusEvent};

/// Seconds before a call is tried again whose attempt never ran; doubles with each further one.
const FIRST_FAULT_DELAY: u32 = 5;
/// The longest of these waits, in seconds.
const MAX_FAULT_DELAY: u32 = 300;

/// Whether the attempt in hand is followed by another if it ends so. What never ran is tried again without counting, until it has
/// not run for as long as `patience`. A call that is to be cancelled is not dialled again, however its attempt ends.
pub(super) fn is_redialled(
    spec: &CallSpec,
    last: &StatusEvent,
    outcome: Outcome,
    patience: Duration,
    now: Timestamp,
) -> bool {
    if last.status == Status::Cancelling {
        return false;
    }
    let has_attempts_left = last.counted_attempts() < spec.max_attempts();
    match outcome {
        Outcome::NotStarted => {
            let since = last.faults_since.unwrap_or(now);
            now.duration_since(since) < SignedDuration::try_from(patience).unwrap_or(SignedDuration::MAX)
        }
        Outcome::Unknown => has_attempts_left && spec.on_unknown == OnUnknown::Redial,
        outcome => has_attempts_left && spec.redials(outcome),
    }
}

/// What follows an attempt that failed and is redialled: when the next one is due, or that it would be too late.
pub(super) fn after_failure(spec: &CallSpec, last: &StatusEvent, now: Timestamp) -> Change {
    let seconds = match last.outcome {
        Some(Outcome::NotStarted) => fault_delay(last.faults),
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

    fn spec(max_attempts: u32, retry_delay: u32, redial_on: Option<&[Outcome]>, not_after: Option<i64>) -> CallSpec {
        let mut request = json!({"dest": "1", "text": "a", "max_attempts": max_attempts, "retry_delay": retry_delay});
        if let Some(outcomes) = redial_on {
            request["redial_on"] = json!(outcomes);
        }
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
            queue_sequence: 1,
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
            redial: true,
        })
    }

    fn busy(times: u32) -> Vec<Outcome> {
        vec![Outcome::Busy; usize::try_from(times).expect("few")]
    }

    const PATIENCE: Duration = Duration::from_secs(3600);

    #[test]
    fn an_attempt_that_never_ran_does_not_count_and_is_tried_again_until_patience_ends() {
        let spec = spec(1, 300, None, None);
        let faults = claimed(&[Outcome::NotStarted, Outcome::NotStarted]);
        assert_eq!((faults.attempt, faults.faults, faults.counted_attempts()), (3, 2, 1));
        assert!(is_redialled(&spec, &faults, Outcome::NotStarted, PATIENCE, at(NOW + 3599)));
        assert!(!is_redialled(&spec, &faults, Outcome::NotStarted, PATIENCE, at(NOW + 3600)));
        assert!(!is_redialled(&spec, &claimed(&[]), Outcome::NotStarted, Duration::ZERO, at(NOW)));
        let failed = faults.next(ended(Outcome::NotStarted), at(NOW)).expect("a legal step");
        let Change::Scheduled { due_at } = after_failure(&spec, &failed, at(NOW)) else { panic!("it is tried again") };
        assert!((at(NOW + 20)..=at(NOW + 22)).contains(&due_at), "the third wait is four times the first: {due_at}");
    }

    #[test]
    fn after_an_unknown_end_it_is_dialled_again_only_if_the_request_says_so() {
        let hold = spec(3, 300, None, None);
        let redial = CallSpec { on_unknown: OnUnknown::Redial, ..hold.clone() };
        let last = claimed(&busy(1));
        assert!(!is_redialled(&hold, &last, Outcome::Unknown, PATIENCE, at(NOW)));
        assert!(is_redialled(&redial, &last, Outcome::Unknown, PATIENCE, at(NOW)));
        assert!(!is_redialled(&redial, &claimed(&busy(2)), Outcome::Unknown, PATIENCE, at(NOW)));
    }

    #[test]
    fn a_call_that_is_to_be_cancelled_is_not_dialled_again_however_it_ends() {
        let spec = CallSpec { on_unknown: OnUnknown::Redial, ..spec(3, 300, None, None) };
        let stopping = claimed(&[]).next(Change::Cancelling, at(NOW)).expect("a legal step");
        for outcome in Outcome::ALL {
            assert!(!is_redialled(&spec, &stopping, outcome, PATIENCE, at(NOW)), "{outcome}");
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn redialled() -> impl Strategy<Value = Vec<Outcome>> {
        let may = Outcome::ALL.into_iter().filter(|outcome| outcome.may_redial()).collect::<Vec<_>>();
        prop::sample::subsequence(may.clone(), 0..=may.len())
    }

    proptest! {
        #[test]
        fn a_call_is_redialled_while_attempts_are_left_for_what_the_request_names(
            max_attempts in 1_u32..=10,
            attempt in 1_u32..=12,
            outcome in prop::sample::select(Outcome::ALL.to_vec()),
            named in prop::option::of(redialled()),
        ) {
            let spec = spec(max_attempts, 300, named.as_deref(), None);
            let is_named = match &named {
                Some(outcomes) => outcomes.contains(&outcome),
                None => [Outcome::Busy, Outcome::NoAnswer, Outcome::Congestion, Outcome::Network].contains(&outcome),
            };
            prop_assume!(outcome.counts() && outcome != Outcome::Unknown);
            let last = claimed(&busy(attempt - 1));
            let redialled = is_redialled(&spec, &last, outcome, PATIENCE, at(NOW));
            prop_assert_eq!(redialled, is_named && attempt < max_attempts);
        }

        #[test]
        fn the_next_attempt_comes_after_its_delay_and_at_most_a_tenth_more_or_not_at_all(
            retry_delay in 1_u32..=86_400,
            attempt in 1_u32..10,
            not_after in prop::option::of(1_i64..200_000),
        ) {
            let spec = spec(10, retry_delay, None, not_after);
            let delay = i64::from(retry_delay).saturating_mul(1 << (attempt - 1)).min(86_400);
            let (earliest, latest) = (at(NOW + delay), at(NOW + delay + delay / 10 + 1));
            let last = claimed(&busy(attempt - 1)).next(ended(Outcome::Busy), at(NOW)).expect("a legal step");
            match after_failure(&spec, &last, at(NOW)) {
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
