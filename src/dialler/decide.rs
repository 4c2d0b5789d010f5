//! What a delivered message means, by the call's last state: one pure function, tested as a table.

use jiff::{SignedDuration, Timestamp};

use crate::call::{Fingerprint, Status, StatusEvent};

/// A call may be dialled this much before its moment by our clock: timers fire by the server's.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(1);
/// Deliveries after which a message that is ahead of the log is not believed any more.
pub(super) const MAX_DELIVERIES_AHEAD: u64 = 5;

/// What a message asks for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The attempt, from 1.
    pub attempt: u32,
    /// The message's sequence in the queue: the same for every delivery of it.
    pub sequence: u64,
    /// How often it was delivered, from 1.
    pub deliveries: u64,
    /// Of its request.
    pub fingerprint: Fingerprint,
    /// Whether one of us accepted it, so that `queued` was or will be recorded.
    pub accepted: bool,
    /// The moment of the timer that fired it.
    pub fired_at: Option<Timestamp>,
    /// Its `not_before`.
    pub not_before: Option<Timestamp>,
    /// Its `not_after`.
    pub not_after: Option<Timestamp>,
}

/// The next step of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Record that it is queued: whoever accepted it has not come to it.
    RecordQueued,
    /// Record that it waits until then.
    Postpone(Timestamp),
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
    if last.is_final {
        return Step::Done;
    }
    match last.status {
        Status::Queued => dialable(asked, now),
        Status::Scheduled => scheduled(last, asked, now),
        _ => claimed(last, asked, cluster),
    }
}

/// The log has no record, or has lost it. A later attempt than the first has waited for its `not_before` already.
fn unknown(asked: &Asked, now: Timestamp) -> Step {
    match asked.attempt {
        1 if asked.accepted => Step::RecordQueued,
        1 => dialable(asked, now),
        _ if is_late(asked, now) => Step::Expire,
        later => Step::Claim(later),
    }
}

fn dialable(asked: &Asked, now: Timestamp) -> Step {
    match asked.not_before {
        _ if is_late(asked, now) => Step::Expire,
        Some(begin) if begin > now + CLOCK_TOLERANCE => Step::Postpone(begin),
        _ => Step::Claim(1),
    }
}

fn is_late(asked: &Asked, now: Timestamp) -> bool {
    asked.not_after.is_some_and(|end| end <= now)
}

/// The attempt before, if any, is over. A message of that attempt is behind the log: the crash came before its timer was
/// set or the message was acknowledged, so it is set again, which replaces what is there. The timer's own message is due even if
/// our clock is behind the server's.
fn scheduled(last: &StatusEvent, asked: &Asked, now: Timestamp) -> Step {
    let attempt = last.attempt + 1;
    let due = last.due_at.unwrap_or(now);
    let is_due = due <= now + CLOCK_TOLERANCE || asked.fired_at == Some(due);
    match asked.attempt {
        _ if is_late(asked, now) => Step::Expire,
        asked if asked == attempt && is_due => Step::Claim(attempt),
        later if later > attempt => ahead(asked),
        _ => Step::Schedule { attempt, due },
    }
}

fn claimed(last: &StatusEvent, asked: &Asked, cluster: &str) -> Step {
    if last.queue_sequence != Some(asked.sequence) {
        return if asked.attempt > last.attempt { ahead(asked) } else { Step::Done };
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
    const SEQUENCE: u64 = 7;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn asked(attempt: u32, sequence: u64) -> Asked {
        let fingerprint = Fingerprint::of(b"request");
        Asked {
            attempt,
            sequence,
            deliveries: 1,
            fingerprint,
            accepted: false,
            fired_at: None,
            not_before: None,
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
            queue_sequence: SEQUENCE,
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
            redial,
        })
    }

    fn scheduled(second: i64) -> Change {
        Change::Scheduled { due_at: at(second) }
    }

    #[test]
    fn what_a_delivery_means_by_the_calls_last_state() {
        let twice = |then: Change| after(vec![pending(1, HERE), running(), busy(true), then]);
        let table = [
            ("first seen", None, asked(1, SEQUENCE), Step::Claim(1)),
            ("first seen, accepted by us", None, Asked { accepted: true, ..asked(1, SEQUENCE) }, Step::RecordQueued),
            ("first seen, the log has expired", None, Asked { accepted: true, ..asked(2, SEQUENCE) }, Step::Claim(2)),
            ("queued", Some(after(vec![])), asked(1, SEQUENCE), Step::Claim(1)),
            (
                "too early",
                Some(after(vec![])),
                Asked { not_before: Some(at(300)), ..asked(1, 7) },
                Step::Postpone(at(300)),
            ),
            (
                "early by a clock",
                Some(after(vec![])),
                Asked { not_before: Some(at(201)), ..asked(1, 7) },
                Step::Claim(1),
            ),
            ("too late", Some(after(vec![])), Asked { not_after: Some(at(200)), ..asked(1, 7) }, Step::Expire),
            ("due", Some(after(vec![scheduled(200)])), asked(1, 8), Step::Claim(1)),
            (
                "not due, the schedule may be missing",
                Some(after(vec![scheduled(300)])),
                asked(1, SEQUENCE),
                Step::Schedule { attempt: 1, due: at(300) },
            ),
            (
                "fired by a clock that is ahead of ours",
                Some(after(vec![scheduled(300)])),
                Asked { fired_at: Some(at(300)), ..asked(1, SEQUENCE) },
                Step::Claim(1),
            ),
            (
                "fired by another timer, or so it says",
                Some(after(vec![scheduled(300)])),
                Asked { fired_at: Some(at(150)), ..asked(1, SEQUENCE) },
                Step::Schedule { attempt: 1, due: at(300) },
            ),
            ("claimed here by this message", Some(after(vec![pending(1, HERE)])), asked(1, SEQUENCE), Step::Start),
            ("claimed by another message", Some(after(vec![pending(1, HERE)])), asked(1, 8), Step::Done),
            ("claimed elsewhere", Some(after(vec![pending(1, "there")])), asked(1, SEQUENCE), Step::Elsewhere),
            ("claimed elsewhere by another message", Some(after(vec![pending(1, "there")])), asked(1, 8), Step::Done),
            ("running here", Some(after(vec![pending(1, HERE), running()])), asked(1, SEQUENCE), Step::Watch),
            (
                "running elsewhere",
                Some(after(vec![pending(1, "there"), running()])),
                asked(1, SEQUENCE),
                Step::Elsewhere,
            ),
            ("to be stopped", Some(after(vec![pending(1, HERE), Change::Cancelling])), asked(1, SEQUENCE), Step::Stop),
            (
                "failed, a redial to come",
                Some(after(vec![pending(1, HERE), running(), busy(true)])),
                asked(1, SEQUENCE),
                Step::Redial,
            ),
            (
                "failed elsewhere, a redial to come",
                Some(after(vec![pending(1, "there"), running(), busy(true)])),
                asked(1, SEQUENCE),
                Step::Redial,
            ),
            (
                "failed for good",
                Some(after(vec![pending(1, HERE), running(), busy(false)])),
                asked(1, SEQUENCE),
                Step::Done,
            ),
            (
                "behind the log",
                Some(twice(scheduled(300))),
                asked(1, SEQUENCE),
                Step::Schedule { attempt: 2, due: at(300) },
            ),
            (
                "behind the log, and due",
                Some(twice(scheduled(150))),
                asked(1, SEQUENCE),
                Step::Schedule { attempt: 2, due: at(150) },
            ),
            ("the redial is due", Some(twice(scheduled(150))), asked(2, 9), Step::Claim(2)),
            (
                "the redial came too late",
                Some(twice(scheduled(150))),
                Asked { not_after: Some(at(180)), ..asked(2, 9) },
                Step::Expire,
            ),
            (
                "claimed for the attempt before, as a lagging copy says",
                Some(after(vec![pending(1, HERE)])),
                asked(2, 9),
                Step::HandBack,
            ),
            (
                "to be scheduled for an attempt before, as a lagging copy says",
                Some(after(vec![scheduled(150)])),
                asked(2, 9),
                Step::HandBack,
            ),
            (
                "ahead of the log again and again",
                Some(after(vec![scheduled(150)])),
                Asked { deliveries: 6, ..asked(2, SEQUENCE) },
                Step::Implausible,
            ),
            (
                "a later attempt of a call whose record is gone, with a moment to come",
                None,
                Asked { not_before: Some(at(300)), ..asked(2, SEQUENCE) },
                Step::Claim(2),
            ),
            ("cancelled", Some(after(vec![Change::Cancelled { reason: "x".into() }])), asked(1, SEQUENCE), Step::Done),
            ("rejected", Some(after(vec![Change::Rejected { reason: "x".into() }])), asked(1, SEQUENCE), Step::Done),
        ];
        for (what, last, asked, step) in table {
            assert_eq!(decide(last.as_ref(), &asked, HERE, at(200)), step, "{what}");
        }
    }

    #[test]
    fn another_request_under_the_same_id_is_a_conflict_whatever_became_of_the_first() {
        let other = Asked { fingerprint: Fingerprint::of(b"other"), ..asked(1, SEQUENCE) };
        let done = after(vec![Change::Cancelled { reason: "x".into() }]);
        for last in [after(vec![]), after(vec![pending(1, HERE)]), done] {
            assert_eq!(decide(Some(&last), &other, HERE, at(200)), Step::Conflict);
        }
    }

    fn cluster() -> impl Strategy<Value = String> {
        prop_oneof![Just(HERE.to_owned()), Just("there".to_owned())]
    }

    /// Any change, by this message or another, here or elsewhere, around second 200.
    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            (150_i64..250).prop_map(scheduled),
            (cluster(), 6_u64..9).prop_map(|(cluster, queue_sequence)| Change::Pending {
                attempt: 0,
                cluster,
                namespace: "n".into(),
                queue_sequence,
                ends_by: at(900),
            }),
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
                    Change::Pending { cluster, namespace, queue_sequence, ends_by, .. } => {
                        Change::Pending { attempt: event.attempt + 1, cluster, namespace, queue_sequence, ends_by }
                    }
                    other => other,
                };
                event.next(change, at(200)).unwrap_or(event)
            };
            changes.map(|changes| changes.into_iter().fold(after(vec![]), step))
        })
    }

    fn any_asked() -> impl Strategy<Value = Asked> {
        let moment = || prop::option::of((150_i64..250).prop_map(at));
        (1..4_u32, 6_u64..9, any::<bool>(), any::<bool>(), moment(), moment(), moment()).prop_map(
            |(attempt, sequence, is_same, accepted, fired_at, not_before, not_after)| Asked {
                fingerprint: Fingerprint::of(if is_same { b"request" } else { b"another" }),
                accepted,
                fired_at,
                not_before,
                not_after,
                ..asked(attempt, sequence)
            },
        )
    }

    /// The record that a step makes, where it makes one.
    fn record(step: Step) -> Option<Status> {
        match step {
            Step::RecordQueued => Some(Status::Queued),
            Step::Postpone(_) | Step::Redial => Some(Status::Scheduled),
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
        fn a_job_is_touched_only_by_the_message_that_claimed_it_and_where_it_was_claimed(
            last in state(),
            asked in any_asked(),
        ) {
            let step = decide(last.as_ref(), &asked, HERE, at(200));
            if matches!(step, Step::Start | Step::Watch | Step::Stop) {
                let last = last.expect("a claim");
                prop_assert!(last.status.is_active() && last.cluster.as_deref() == Some(HERE));
                prop_assert_eq!(last.queue_sequence, Some(asked.sequence));
            }
        }

        #[test]
        fn a_message_is_let_go_only_when_the_call_is_over_or_somebody_else_carries_it(
            last in state(),
            asked in any_asked(),
        ) {
            let step = decide(last.as_ref(), &asked, HERE, at(200));
            if step == Step::Done {
                let last = last.expect("a record");
                let is_anothers = last.queue_sequence.is_some() && last.queue_sequence != Some(asked.sequence);
                prop_assert!(last.is_final || is_anothers && asked.attempt <= last.attempt);
            }
            if let Step::Schedule { attempt, .. } = step {
                prop_assert!(asked.attempt <= attempt, "the timer carries the call on");
            }
        }

        #[test]
        fn a_call_is_claimed_within_its_window_and_attempt_after_attempt(last in state(), asked in any_asked()) {
            if let Step::Claim(attempt) = decide(last.as_ref(), &asked, HERE, at(200)) {
                prop_assert!(asked.not_after.is_none_or(|end| end > at(200)));
                let due = last.as_ref().and_then(|last| last.due_at);
                prop_assert!(due.is_none_or(|due| due <= at(201) || asked.fired_at == Some(due)));
                // Of a call whose record is lost, a later attempt has waited for that moment before.
                let waits = due.is_none() && attempt == 1;
                prop_assert!(!waits || asked.not_before.is_none_or(|begin| begin <= at(201)));
                // Where the log is lost, the message alone knows which attempt it is.
                prop_assert_eq!(attempt, last.map_or(asked.attempt, |last| last.attempt + 1));
            }
        }
    }
}
