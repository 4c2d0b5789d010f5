//! Whether an attempt that failed is followed by another: by the log alone, so that whoever records an end decides the same.

use super::advance::Moments;
use crate::call::{Heard, Outcome, RedialOn, Status, StatusEvent, TrunkHealth};

/// Whether the attempt in hand is followed by another if it ends so. What is our fault is tried again without counting while there is
/// patience. A trunk that is stopped costs no call its patience; one that works for others and refuses this call a second time means it. A
/// call that is to be cancelled is not dialled again, however its attempt ends.
pub(super) fn is_redialled(last: &StatusEvent, outcome: Outcome, moments: Moments) -> bool {
    match outcome {
        _ if last.status == Status::Cancelling => false,
        Outcome::NotStarted => moments.now < moments.patience_ends,
        Outcome::Auth | Outcome::Congestion if moments.trunk == TrunkHealth::Stopped => true,
        Outcome::Auth if moments.trunk == TrunkHealth::Works && last.faults_since.is_some() => false,
        Outcome::Auth | Outcome::Congestion => moments.now < moments.patience_ends,
        outcome => is_named(last, outcome.into()),
    }
}

/// Whether an attempt that was answered is followed by another, by how much was heard.
pub fn is_redialled_after_an_answer(last: &StatusEvent, heard: Option<Heard>) -> bool {
    last.status != Status::Cancelling && heard.is_some_and(|heard| is_named(last, heard.into()))
}

fn is_named(last: &StatusEvent, reason: RedialOn) -> bool {
    last.counted_attempts() < last.max_attempts && last.redial_on.contains(&reason)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::call::{Call, CallId, Change, Ended, validate};
    use crate::job::advance::Patience;

    const NOW: i64 = 1_893_456_000;
    const PATIENCE: Patience = Patience { start_seconds: 60, faults: Duration::from_secs(3600) };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    /// The call that a request asks for, after attempts that have ended so; the last one has just been claimed.
    fn claimed(extra: Value, outcomes: &[Outcome]) -> StatusEvent {
        let mut request = json!({"dest": "1", "text": "a"});
        request.as_object_mut().expect("an object").append(&mut extra.as_object().expect("an object").clone());
        let spec = validate::parse(request.to_string().as_bytes(), at(NOW)).expect("a valid request").spec;
        let call = Call::new(CallId::parse("a").expect("an id"), spec);
        let mut event = StatusEvent::first(&call, "n", at(NOW), Change::Queued, at(NOW)).expect("a legal step");
        for outcome in outcomes {
            for change in [claim(event.attempt + 1), ended(*outcome), Change::Scheduled { due_at: at(NOW) }] {
                event = event.next(change, at(NOW)).expect("a legal step");
            }
        }
        event.next(claim(event.attempt + 1), at(NOW)).expect("a legal step")
    }

    fn claim(attempt: u32) -> Change {
        Change::Pending {
            attempt,
            cluster: "c".into(),
            namespace: "n".into(),
            trunk: "default".into(),
            ends_by: at(NOW + 3600),
        }
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

    fn redials(last: &StatusEvent, outcome: Outcome, now: i64) -> bool {
        is_redialled(last, outcome, Moments::of(last, PATIENCE, at(now)))
    }

    fn busy(times: u32) -> Vec<Outcome> {
        vec![Outcome::Busy; usize::try_from(times).expect("few")]
    }

    #[test]
    fn an_attempt_that_never_ran_does_not_count_and_is_tried_again_until_patience_ends() {
        let faults = claimed(json!({}), &[Outcome::NotStarted, Outcome::NotStarted]);
        assert_eq!((faults.attempt, faults.faults, faults.counted_attempts()), (3, 2, 1));
        assert!(redials(&faults, Outcome::NotStarted, NOW + 3599));
        assert!(!redials(&faults, Outcome::NotStarted, NOW + 3600));
        let (first, none) = (claimed(json!({}), &[]), Patience { faults: Duration::ZERO, ..PATIENCE });
        assert!(!is_redialled(&first, Outcome::NotStarted, Moments::of(&first, none, at(NOW))));
    }

    #[test]
    fn after_a_fault_of_its_trunk_it_is_dialled_again_by_how_the_trunk_does_for_others() {
        let (first, again) = (claimed(json!({}), &[]), claimed(json!({}), &[Outcome::Auth]));
        let redials = |last: &StatusEvent, outcome, trunk, now| {
            is_redialled(last, outcome, Moments::of(last, PATIENCE, at(now)).on_trunk(trunk))
        };
        let (soon, late) = (NOW + 3599, NOW + 3600);
        for (outcome, trunk, last, now, expected) in [
            (Outcome::Auth, TrunkHealth::Works, &first, NOW, true),
            (Outcome::Auth, TrunkHealth::Works, &again, NOW, false),
            (Outcome::Auth, TrunkHealth::InDoubt, &again, soon, true),
            (Outcome::Auth, TrunkHealth::InDoubt, &again, late, false),
            (Outcome::Auth, TrunkHealth::Stopped, &again, late, true),
            (Outcome::Congestion, TrunkHealth::Works, &again, soon, true),
            (Outcome::Congestion, TrunkHealth::Works, &again, late, false),
            (Outcome::Congestion, TrunkHealth::InDoubt, &again, late, false),
            (Outcome::Congestion, TrunkHealth::Stopped, &again, late, true),
        ] {
            assert_eq!(redials(last, outcome, trunk, now), expected, "{outcome}, {trunk:?}, {now}");
        }
    }

    #[test]
    fn after_an_unknown_end_it_is_dialled_again_only_if_the_request_says_so() {
        let (hold, redial) = (json!({"max_attempts": 3}), json!({"max_attempts": 3, "on_unknown": "redial"}));
        assert!(!redials(&claimed(hold, &busy(1)), Outcome::Unknown, NOW));
        assert!(redials(&claimed(redial.clone(), &busy(1)), Outcome::Unknown, NOW));
        assert!(!redials(&claimed(redial, &busy(2)), Outcome::Unknown, NOW));
    }

    #[test]
    fn one_that_was_answered_is_dialled_again_by_how_much_was_heard_where_the_request_names_that() {
        let named = |reasons: &[&str]| json!({"max_attempts": 2, "redial_on": reasons});
        let table = [
            (named(&["heard:none"]), Some(Heard::None), true),
            (named(&["heard:none"]), Some(Heard::Part), false),
            (named(&["heard:none", "heard:part"]), Some(Heard::Part), true),
            (named(&["heard:none", "heard:part"]), Some(Heard::Full), false),
            (named(&["heard:none", "heard:part"]), None, false),
            (named(&["busy"]), Some(Heard::None), false),
            (json!({"max_attempts": 2}), Some(Heard::None), false),
            (json!({"redial_on": ["heard:none"]}), Some(Heard::None), false),
        ];
        for (request, heard, expected) in table {
            let last = claimed(request.clone(), &[]);
            assert_eq!(is_redialled_after_an_answer(&last, heard), expected, "{request} {heard:?}");
            let cancelling = last.next(Change::Cancelling, at(NOW)).expect("a legal step");
            assert!(!is_redialled_after_an_answer(&cancelling, heard));
            // Without its log nobody knows, and the call has ended.
            assert!(!is_redialled(&last, Outcome::Answered, Moments::of(&last, PATIENCE, at(NOW))));
        }
        let last = claimed(named(&["heard:none"]), &[Outcome::Busy]);
        assert!(!is_redialled_after_an_answer(&last, Some(Heard::None)), "no attempt is left");
    }

    #[test]
    fn a_call_that_is_to_be_cancelled_is_not_dialled_again_however_it_ends() {
        let last = claimed(json!({"max_attempts": 3, "on_unknown": "redial"}), &[]);
        let stopping = last.next(Change::Cancelling, at(NOW)).expect("a legal step");
        for outcome in Outcome::ALL {
            assert!(!redials(&stopping, outcome, NOW), "{outcome}");
        }
    }

    fn named() -> impl Strategy<Value = Vec<Outcome>> {
        let may = Outcome::ALL.into_iter().filter(|outcome| outcome.may_redial()).collect::<Vec<_>>();
        prop::sample::subsequence(may.clone(), 0..=may.len())
    }

    proptest! {
        #[test]
        fn a_call_is_redialled_while_attempts_are_left_for_what_the_request_names(
            max_attempts in 1_u32..=10,
            attempt in 1_u32..=12,
            outcome in prop::sample::select(Outcome::ALL.to_vec()),
            named in prop::option::of(named()),
        ) {
            prop_assume!(outcome.counts() && outcome != Outcome::Unknown);
            let request = match &named {
                Some(outcomes) => json!({"max_attempts": max_attempts, "redial_on": outcomes}),
                None => json!({"max_attempts": max_attempts}),
            };
            let is_named = match &named {
                Some(outcomes) => outcomes.contains(&outcome),
                None => [Outcome::Busy, Outcome::NoAnswer, Outcome::Congestion, Outcome::Network].contains(&outcome),
            };
            let redialled = redials(&claimed(request, &busy(attempt - 1)), outcome, NOW);
            prop_assert_eq!(redialled, is_named && attempt < max_attempts);
        }
    }
}
