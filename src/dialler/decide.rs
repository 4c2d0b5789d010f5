//! What a delivered message means, by the call's last state: one pure function, tested as a table.

use jiff::Timestamp;

use crate::call::{Fingerprint, Status, StatusEvent};

/// Deliveries after which a message that is ahead of the log is not believed any more.
pub(super) const MAX_DELIVERIES_AHEAD: u64 = 5;

/// What a message asks for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The attempt, from 1.
    pub attempt: u32,
    /// The trunk that it asks for it on.
    pub trunk: String,
    /// How often it was delivered, from 1.
    pub deliveries: u64,
    /// Of its request.
    pub fingerprint: Fingerprint,
    /// Its `not_after`.
    pub not_after: Option<Timestamp>,
}

/// The next step of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Record that it is queued: the log has lost that.
    RecordQueued,
    /// Let the server fire this attempt then, and settle this message.
    Schedule {
        /// The attempt.
        attempt: u32,
        /// When.
        due: Timestamp,
    },
    /// `not_after` has passed: record it.
    Expire,
    /// Claim this attempt.
    Claim(u32),
    /// The claim is ours: make the Job, unless it is there.
    Start,
    /// Follow the Job.
    Watch,
    /// A cancel was asked for: stop the Job.
    Stop,
    /// The attempt failed and another one is to come: record when.
    Redial,
    /// The log as it was read is behind the message: hand the message back for a moment.
    HandBack,
    /// Another cluster has claimed it: hand the message back, unless the attempt had all its time.
    Elsewhere,
    /// Nothing is left to do for this message.
    Done,
    /// The id belongs to another request.
    Conflict,
    /// The message asks for an attempt that was never to come: its headers are made up.
    Implausible,
}

/// Decides the next step; `docs/decisions/02-the-status-log-decides.md` has the table in words.
pub fn decide(last: Option<&StatusEvent>, asked: &Asked, cluster: &str, now: Timestamp) -> Step {
    let Some(last) = last else { return unknown(asked, now) };
    if last.fingerprint != asked.fingerprint {
        return Step::Conflict;
    }
    match last.status {
        _ if last.is_final => Step::Done,
        Status::Queued | Status::Scheduled => waiting(last, asked, now),
        _ => claimed(last, asked, cluster),
    }
}

/// The log has lost its record.
fn unknown(asked: &Asked, now: Timestamp) -> Step {
    match asked.attempt {
        _ if is_late(asked, now) => Step::Expire,
        1 => Step::RecordQueued,
        later => Step::Claim(later),
    }
}

fn is_late(asked: &Asked, now: Timestamp) -> bool {
    asked.not_after.is_some_and(|end| end <= now)
}

/// A message is in the window only once its attempt is due. One of the attempt before is behind the log: the crash came before its
/// timer was set or the message was acknowledged, so the timer is set again, which replaces what is there.
fn waiting(last: &StatusEvent, asked: &Asked, now: Timestamp) -> Step {
    let attempt = last.attempt + 1;
    match (asked.attempt, last.due_at) {
        _ if is_late(asked, now) => Step::Expire,
        (asked, _) if asked == attempt => Step::Claim(attempt),
        (later, _) if later > attempt => ahead(asked),
        (_, Some(due)) if last.status == Status::Scheduled => Step::Schedule { attempt, due },
        _ => Step::Done,
    }
}

fn claimed(last: &StatusEvent, asked: &Asked, cluster: &str) -> Step {
    if asked.attempt != last.attempt {
        return if asked.attempt > last.attempt { ahead(asked) } else { Step::Done };
    }
    // One on another trunk is left of a call that was handed on to that.
    if last.trunk.as_ref().is_some_and(|trunk| *trunk != asked.trunk) {
        return Step::Done;
    }
    match last.status {
        // Its Job has ended, so nothing of it is left that only its cluster could see to.
        Status::Failed => Step::Redial,
        _ if last.cluster.as_deref() != Some(cluster) => Step::Elsewhere,
        Status::Pending => Step::Start,
        Status::Cancelling => Step::Stop,
        _ => Step::Watch,
    }
}

/// A message asks for an attempt only after that was recorded as to come. Where the log does not say so, it may have been read
/// from a copy that lags, and to acknowledge the message now could lose the call; but not again and again.
fn ahead(asked: &Asked) -> Step {
    if asked.deliveries <= MAX_DELIVERIES_AHEAD { Step::HandBack } else { Step::Implausible }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::call::{CallId, Change, Ended, Outcome};

    const HERE: &str = "here";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn asked(attempt: u32) -> Asked {
        Asked {
            attempt,
            trunk: "default".to_owned(),
            deliveries: 1,
            fingerprint: Fingerprint::of(b"request"),
            not_after: None,
        }
    }

    /// A call's state after some changes, all at second 100.
    fn after(changes: Vec<Change>) -> StatusEvent {
        let id = CallId::parse("a").expect("an id");
        let mut event = StatusEvent::sample(id, Fingerprint::of(b"request"), at(100), 3);
        for change in changes {
            event = event.next(change, at(100)).expect("a legal step");
        }
        event
    }

    fn pending(attempt: u32, cluster: &str) -> Change {
        Change::Pending {
            attempt,
            cluster: cluster.into(),
            namespace: "n".into(),
            trunk: "default".into(),
            ends_by: at(900),
        }
    }

    fn running() -> Change {
        Change::Running { started_at: at(100) }
    }

    fn busy(redial: bool) -> Change {
        Change::Ended(Ended {
            outcome: Outcome::Busy,
            sip_code: Some(486),
            exit_code: Some(1),
            completed_at: at(100),
            reason: None,
            message: None,
            evidence: None,
            redial,
        })
    }

    fn scheduled(second: i64) -> Change {
        Change::Scheduled { due_at: at(second) }
    }

    #[test]
    fn what_a_delivery_means_by_the_calls_last_state() {
        let twice = |then: &[Change]| after([vec![pending(1, HERE), running(), busy(true)], then.to_vec()].concat());
        let on = |trunk: &str| Asked { trunk: trunk.to_owned(), ..asked(1) };
        let late = |attempt| Asked { not_after: Some(at(200)), ..asked(attempt) };
        let cancelled = || Change::Cancelled { reason: "x".into() };
        let table = [
            ("the log has lost it", None, asked(1), Step::RecordQueued),
            ("the log has lost it and its attempts", None, asked(2), Step::Claim(2)),
            ("the log has lost it, and it is too late", None, late(1), Step::Expire),
            ("queued", Some(after(vec![])), asked(1), Step::Claim(1)),
            ("too late", Some(after(vec![])), late(1), Step::Expire),
            ("due, and the log has lost that", Some(after(vec![scheduled(200)])), asked(1), Step::Claim(1)),
            ("claimed here", Some(after(vec![pending(1, HERE)])), asked(1), Step::Start),
            ("claimed on another trunk", Some(after(vec![pending(1, HERE)])), on("other"), Step::Done),
            ("queued, on any trunk", Some(after(vec![])), on("other"), Step::Claim(1)),
            ("claimed elsewhere", Some(after(vec![pending(1, "there")])), asked(1), Step::Elsewhere),
            ("running here", Some(after(vec![pending(1, HERE), running()])), asked(1), Step::Watch),
            ("running elsewhere", Some(after(vec![pending(1, "there"), running()])), asked(1), Step::Elsewhere),
            ("to be stopped", Some(after(vec![pending(1, HERE), Change::Cancelling])), asked(1), Step::Stop),
            ("failed, a redial to come", Some(twice(&[])), asked(1), Step::Redial),
            (
                "failed elsewhere, a redial to come",
                Some(after(vec![pending(1, "there"), running(), busy(true)])),
                asked(1),
                Step::Redial,
            ),
            ("failed for good", Some(after(vec![pending(1, HERE), running(), busy(false)])), asked(1), Step::Done),
            ("behind the log", Some(twice(&[scheduled(300)])), asked(1), Step::Schedule { attempt: 2, due: at(300) }),
            (
                "behind the log, and the redial waits",
                Some(twice(&[scheduled(150), Change::Queued])),
                asked(1),
                Step::Done,
            ),
            ("the redial is due", Some(twice(&[scheduled(150), Change::Queued])), asked(2), Step::Claim(2)),
            ("the redial is due, and the log has lost that", Some(twice(&[scheduled(300)])), asked(2), Step::Claim(2)),
            ("the redial came too late", Some(twice(&[scheduled(150), Change::Queued])), late(2), Step::Expire),
            (
                "of the first attempt, while the second is in progress",
                Some(twice(&[scheduled(150), pending(2, HERE)])),
                asked(1),
                Step::Done,
            ),
            (
                "claimed for the attempt before, as a lagging copy says",
                Some(after(vec![pending(1, HERE)])),
                asked(2),
                Step::HandBack,
            ),
            (
                "to be scheduled for an attempt before, as a lagging copy says",
                Some(after(vec![scheduled(150)])),
                asked(2),
                Step::HandBack,
            ),
            (
                "ahead of the log again and again",
                Some(after(vec![scheduled(150)])),
                Asked { deliveries: 6, ..asked(2) },
                Step::Implausible,
            ),
            ("cancelled", Some(after(vec![cancelled()])), asked(1), Step::Done),
            ("rejected", Some(after(vec![Change::Rejected { reason: "x".into() }])), asked(1), Step::Done),
        ];
        for (what, last, asked, step) in table {
            assert_eq!(decide(last.as_ref(), &asked, HERE, at(200)), step, "{what}");
        }
    }

    #[test]
    fn another_request_under_the_same_id_is_a_conflict_whatever_became_of_the_first() {
        let other = Asked { fingerprint: Fingerprint::of(b"other"), ..asked(1) };
        let done = after(vec![Change::Cancelled { reason: "x".into() }]);
        for last in [after(vec![]), after(vec![pending(1, HERE)]), done] {
            assert_eq!(decide(Some(&last), &other, HERE, at(200)), Step::Conflict);
        }
    }

    fn cluster() -> impl Strategy<Value = String> {
        prop_oneof![Just(HERE.to_owned()), Just("there".to_owned())]
    }

    /// Any change, here or elsewhere, around second 200.
    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            (150_i64..250).prop_map(scheduled),
            Just(Change::Queued),
            cluster().prop_map(|cluster| pending(0, &cluster)),
            Just(running()),
            Just(Change::Cancelling),
            any::<bool>().prop_map(busy),
            Just(Change::Cancelled { reason: "x".into() }),
            Just(Change::Expired),
        ]
    }

    /// The state that some of the changes lead to: the legal ones.
    fn state() -> impl Strategy<Value = Option<StatusEvent>> {
        prop::option::weighted(0.9, prop::collection::vec(change(), 0..12)).prop_map(|changes| {
            let step = |event: StatusEvent, change| {
                let change = match change {
                    Change::Pending { cluster, .. } => pending(event.attempt + 1, &cluster),
                    other => other,
                };
                event.next(change, at(200)).unwrap_or(event)
            };
            changes.map(|changes| changes.into_iter().fold(after(vec![]), step))
        })
    }

    fn any_asked() -> impl Strategy<Value = Asked> {
        let moment = prop::option::of((150_i64..250).prop_map(at));
        (1..4_u32, any::<bool>(), moment).prop_map(|(attempt, is_same, not_after)| Asked {
            fingerprint: Fingerprint::of(if is_same { b"request" } else { b"another" }),
            not_after,
            ..asked(attempt)
        })
    }

    /// The record that a step makes, where it makes one.
    fn record(step: Step) -> Option<Status> {
        match step {
            Step::RecordQueued => Some(Status::Queued),
            Step::Redial => Some(Status::Scheduled),
            Step::Expire => Some(Status::Expired),
            Step::Claim(_) => Some(Status::Pending),
            // When that cluster is given up.
            Step::Elsewhere => Some(Status::Failed),
            _ => None,
        }
    }

    proptest! {
        #[test]
        fn every_step_is_legal_after_every_state(last in state(), asked in any_asked()) {
            let step = decide(last.as_ref(), &asked, HERE, at(200));
            let last = last.as_ref();
            let is_final = last.is_some_and(|last| last.is_final);
            if let Some(status) = record(step) {
                prop_assert!(!is_final, "{step:?} after the end");
                prop_assert!(status.may_follow(last.map(|last| last.status)), "{step:?}");
            }
            let is_of_another = last.is_some_and(|last| last.fingerprint != asked.fingerprint);
            prop_assert_eq!(step == Step::Conflict, is_of_another);
        }

        #[test]
        fn a_job_is_touched_only_by_a_message_of_its_attempt_and_where_it_was_claimed(
            last in state(),
            asked in any_asked(),
        ) {
            let step = decide(last.as_ref(), &asked, HERE, at(200));
            if matches!(step, Step::Start | Step::Watch | Step::Stop) {
                let last = last.expect("a claim");
                prop_assert!(last.status.is_active() && last.cluster.as_deref() == Some(HERE));
                prop_assert_eq!(last.attempt, asked.attempt);
            }
        }

        #[test]
        fn a_message_is_let_go_only_when_the_call_is_over_or_another_message_carries_it(
            last in state(),
            asked in any_asked(),
        ) {
            let step = decide(last.as_ref(), &asked, HERE, at(200));
            if step == Step::Done {
                let last = last.expect("a record");
                let is_of_an_attempt_before = asked.attempt < last.attempt + u32::from(!last.status.is_active());
                prop_assert!(last.is_final || is_of_an_attempt_before);
            }
            if let Step::Schedule { attempt, .. } = step {
                prop_assert!(asked.attempt < attempt, "the timer carries the call on");
            }
        }

        #[test]
        fn a_call_is_claimed_in_its_time_and_attempt_after_attempt(last in state(), asked in any_asked()) {
            if let Step::Claim(attempt) = decide(last.as_ref(), &asked, HERE, at(200)) {
                prop_assert!(asked.not_after.is_none_or(|end| end > at(200)));
                // Where the log is lost, the message alone knows which attempt it is.
                prop_assert_eq!(attempt, last.map_or(asked.attempt, |last| last.attempt + 1));
            }
        }
    }
}
