//! What holds for the life of any call, whatever happens to it in whatever order.
#![allow(clippy::unwrap_used)]

use jiff::Timestamp;
use proptest::prelude::*;

use super::{
    Call, CallId, Change, Ended, Evidence, Heard, Outcome, PodRef, Status, StatusEvent, TraceParent, validate,
};

fn call() -> Call {
    let body =
        br#"{"dest": "+4930123456", "text": "Hello", "batch": "b", "metadata": {"order": "7"}, "max_attempts": 3}"#;
    let trace = TraceParent::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    Call::new(CallId::parse("order-7").unwrap(), validate::parse(body, Timestamp::UNIX_EPOCH).unwrap().spec)
        .in_trace(trace)
}

fn moment() -> impl Strategy<Value = Timestamp> {
    (1_893_456_000_000_i64..1_893_542_400_000).prop_map(|millis| Timestamp::from_millisecond(millis).unwrap())
}

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,10}"
}

fn ended() -> impl Strategy<Value = Ended> {
    let verdict =
        (prop::sample::select(Outcome::ALL.to_vec()), prop::option::of(100..700_u16), prop::option::of(0..256_i32));
    let rest = (moment(), prop::option::of(text()), prop::option::of(text()), any::<bool>());
    (verdict, rest).prop_map(|((outcome, sip_code, exit_code), (completed_at, reason, message, redial))| Ended {
        outcome,
        sip_code,
        exit_code,
        completed_at,
        reason,
        message,
        evidence: evidence(outcome),
        redial,
    })
}

/// Of some that were answered, something is known.
fn evidence(outcome: Outcome) -> Option<Box<Evidence>> {
    let known = Evidence { talk_seconds: Some(2.5), heard: Some(Heard::Part), passes: Some(3), ..Evidence::default() };
    (outcome == Outcome::Answered).then(|| Box::new(known))
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        Just(Change::Queued),
        moment().prop_map(|due_at| Change::Scheduled { due_at }),
        text().prop_map(|cluster| Change::Pending {
            attempt: 0,
            cluster,
            namespace: "calls".to_owned(),
            trunk: "default".to_owned(),
            ends_by: Timestamp::UNIX_EPOCH,
        }),
        text().prop_map(|uid| Change::Chosen { pod: PodRef { name: "pod".to_owned(), uid } }),
        moment().prop_map(|started_at| Change::Running { started_at }),
        Just(Change::Cancelling),
        ended().prop_map(Change::Ended),
        text().prop_map(|reason| Change::Cancelled { reason }),
        Just(Change::Expired),
        text().prop_map(|reason| Change::Rejected { reason }),
    ]
}

/// The diagram of states, edge by edge, as a second opinion on `may_follow`.
const DIAGRAM: &str = "
    none: queued scheduled pending expired rejected
    queued: scheduled pending cancelled expired rejected
    scheduled: queued pending cancelled expired rejected
    pending: pending running failed cancelling cancelled expired rejected
    running: succeeded failed cancelling cancelled
    cancelling: cancelled succeeded failed
    failed: scheduled cancelled expired";

fn is_in_diagram(from: Option<Status>, to: Status) -> bool {
    let from = from.map_or("none", Status::as_str);
    let lines = DIAGRAM.lines().filter_map(|line| line.trim().split_once(": "));
    lines.filter(|(name, _)| *name == from).any(|(_, steps)| steps.split(' ').any(|step| step == to.as_str()))
}

/// Whoever claims an attempt counts on from the one before.
fn numbered(change: Change, attempt: u32) -> Change {
    match change {
        Change::Pending { cluster, namespace, trunk, ends_by, .. } => {
            Change::Pending { attempt, cluster, namespace, trunk, ends_by }
        }
        other => other,
    }
}

/// Takes every step that is legal, and checks each that is refused.
fn live(changes: Vec<(Change, Timestamp)>) -> Result<Vec<StatusEvent>, TestCaseError> {
    let call = call();
    let mut story: Vec<StatusEvent> = Vec::new();
    for (change, now) in changes {
        let last = story.last();
        let from = last.map(|event| event.status);
        let change = numbered(change, last.map_or(0, |event| event.attempt) + 1);
        let to = change.status();
        // One pod of an attempt is chosen, and an attempt in progress is not claimed again.
        let is_in_turn = match &change {
            Change::Chosen { .. } => from == Some(Status::Pending) && last.is_some_and(|event| event.pod.is_none()),
            Change::Pending { .. } => from != Some(Status::Pending),
            _ => true,
        };
        let next = match last {
            None => StatusEvent::first(&call, "calls", now, change, now),
            Some(last) => last.next(change, now),
        };
        let is_legal = is_in_turn && is_in_diagram(from, to) && !last.is_some_and(|event| event.is_final);
        prop_assert_eq!(next.is_ok(), is_legal, "{:?} to {}", from, to);
        story.extend(next.ok());
    }
    Ok(story)
}

/// The parts that no step may change.
fn unchanging(event: &StatusEvent) -> impl PartialEq + std::fmt::Debug + use<> {
    let event = event.clone();
    (
        event.id,
        event.name,
        event.fingerprint,
        event.queued_at,
        event.batch,
        event.dest,
        event.metadata,
        event.max_attempts,
        event.traceparent,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_life_leaves_its_end_skips_a_step_or_counts_back(changes in prop::collection::vec((change(), moment()), 1..60)) {
        let story = live(changes)?;
        for (index, event) in story.iter().enumerate() {
            prop_assert_eq!(event.revision, index as u64 + 1);
            prop_assert!(!event.is_final || index + 1 == story.len(), "something follows the end");
        }
        for step in story.windows(2) {
            prop_assert!(step[0].attempt <= step[1].attempt);
            let is_claim = step[1].status == Status::Pending && step[0].status != Status::Pending;
            prop_assert_eq!(step[1].attempt - step[0].attempt, u32::from(is_claim));
            prop_assert_eq!(unchanging(&step[0]), unchanging(&step[1]));
        }
    }

    #[test]
    fn final_is_what_ends_a_call(changes in prop::collection::vec((change(), moment()), 1..60)) {
        for event in live(changes)? {
            match event.status {
                Status::Succeeded | Status::Cancelled | Status::Expired | Status::Rejected => prop_assert!(event.is_final),
                Status::Failed => {} // Final or not by whether a redial is to come: below.
                _ => prop_assert!(!event.is_final),
            }
        }
    }

    #[test]
    fn a_failed_attempt_is_final_unless_a_redial_is_to_come(ended in ended(), now in moment()) {
        let claim = Change::Pending {
            attempt: 1,
            cluster: "c".to_owned(),
            namespace: "n".to_owned(),
            trunk: "default".to_owned(),
            ends_by: Timestamp::UNIX_EPOCH,
        };
        let running = StatusEvent::first(&call(), "n", now, claim, now).unwrap();
        let running = running.next(Change::Running { started_at: now }, now).unwrap();
        let redial = ended.redial;
        let end = running.next(Change::Ended(ended), now).unwrap();
        prop_assert_eq!(end.is_final, !redial);
        prop_assert_eq!(end.next(Change::Scheduled { due_at: now }, now).is_ok(), redial);
    }

    #[test]
    fn an_event_says_of_its_own_attempt_only(changes in prop::collection::vec((change(), moment()), 1..60)) {
        for event in live(changes)? {
            prop_assert_eq!(event.job.clone(), (event.attempt > 0).then(|| event.name.job(event.attempt)));
            prop_assert_eq!(event.trunk.is_some(), event.attempt > 0);
            match event.status {
                Status::Scheduled => prop_assert!(event.due_at.is_some()),
                Status::Queued | Status::Cancelled | Status::Expired => {}
                _ => prop_assert_eq!(event.due_at, None),
            }
            if event.status == Status::Pending {
                prop_assert!(event.outcome.is_none() && event.exit_code.is_none() && event.completed_at.is_none());
            }
            prop_assert!(event.completed_at.is_some() || !event.is_final, "an end without its time");
        }
    }

    #[test]
    fn an_event_survives_json(changes in prop::collection::vec((change(), moment()), 1..20)) {
        for event in live(changes)? {
            let wire = serde_json::to_string(&event).unwrap();
            prop_assert_eq!(serde_json::from_str::<StatusEvent>(&wire).unwrap(), event);
        }
    }
}

#[test]
fn every_edge_of_the_diagram_is_legal_and_no_other() {
    for from in std::iter::once(None).chain(Status::ALL.map(Some)) {
        for to in Status::ALL {
            assert_eq!(to.may_follow(from), is_in_diagram(from, to), "{from:?} to {to}");
        }
    }
}

#[test]
fn a_request_that_could_not_be_read_ends_at_once() {
    let now = Timestamp::UNIX_EPOCH;
    let id = CallId::parse("order-7").unwrap();
    let event = StatusEvent::rejected(id, super::Fingerprint::of(b""), "calls", now, "no dest".to_owned(), now);
    assert!(event.is_final && event.revision == 1 && event.status == Status::Rejected);
    assert_eq!(event.reason.as_deref(), Some("no dest"));
}
