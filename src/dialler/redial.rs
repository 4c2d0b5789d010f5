//! Whether an attempt that failed is followed by another, and when: pure, as [`super::decide`] is.

use jiff::{SignedDuration, Timestamp};

use crate::call::{CallSpec, Change, Fingerprint, Outcome};

/// Whether an attempt with that outcome is followed by another.
pub(super) fn is_redialled(spec: &CallSpec, attempt: u32, outcome: Outcome) -> bool {
    attempt < spec.max_attempts() && spec.redials(outcome)
}

/// What follows an attempt that failed and is redialled: when the next one is due, or that it would be too late. `job` is the
/// failed attempt's.
pub(super) fn after_failure(spec: &CallSpec, job: &str, attempt: u32, now: Timestamp) -> Change {
    let wait = SignedDuration::from_millis(jittered(spec.retry_delay_seconds(attempt), job));
    let due_at = now.checked_add(wait).unwrap_or(Timestamp::MAX);
    match spec.not_after {
        Some(end) if end <= due_at => Change::Expired,
        _ => Change::Scheduled { due_at },
    }
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
    use crate::call::validate;

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
            prop_assert_eq!(is_redialled(&spec, attempt, outcome), is_named && attempt < max_attempts);
        }

        #[test]
        fn the_next_attempt_comes_after_its_delay_and_at_most_a_tenth_more_or_not_at_all(
            retry_delay in 1_u32..=86_400,
            attempt in 1_u32..10,
            not_after in prop::option::of(1_i64..200_000),
            job in "[a-z0-9-]{1,54}",
        ) {
            let spec = spec(10, retry_delay, None, not_after);
            let delay = i64::from(retry_delay).saturating_mul(1 << (attempt - 1)).min(86_400);
            let (earliest, latest) = (at(NOW + delay), at(NOW + delay + delay / 10 + 1));
            match after_failure(&spec, &job, attempt, at(NOW)) {
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
