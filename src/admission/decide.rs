//! What becomes of a request that arrives or comes due, by the call's last state: one pure function, tested as a table.
//!
//! The log alone says which attempt is next. So a request that is published twice, delivered twice, or whose timer fires twice
//! comes to the same as once.

use jiff::{SignedDuration, Timestamp};

use crate::call::{Change, Fingerprint, Status, StatusEvent};

/// A call may be queued this much before its moment by our clock: timers fire by the server's.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(1);

/// What a message asks for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Of its request.
    pub fingerprint: Fingerprint,
    /// The moment of the timer that fired it, and the attempt that the timer was for; none where it comes from outside.
    pub fired: Option<(Timestamp, u32)>,
    /// Its `not_before`.
    pub not_before: Option<Timestamp>,
    /// Its `not_after`.
    pub not_after: Option<Timestamp>,
}

/// The next step.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Record this, and decide again.
    Record(Change),
    /// Put the attempt into the queue, and settle the message.
    Queue(u32),
    /// Let the server fire the attempt then, and settle the message.
    Schedule {
        /// The attempt.
        attempt: u32,
        /// When.
        due: Timestamp,
    },
    /// The attempt is in progress: see to it that the window has it, and settle the message.
    Dial(u32),
    /// Nothing is left to do for the message.
    Done,
    /// The id belongs to another request.
    Conflict,
}

/// Decides the next step.
pub fn decide(last: Option<&StatusEvent>, asked: &Asked, now: Timestamp) -> Step {
    let Some(last) = last else { return unknown(asked, now) };
    if last.fingerprint != asked.fingerprint {
        return Step::Conflict;
    }
    match last.status {
        _ if last.is_final => Step::Done,
        Status::Queued | Status::Scheduled if is_late(asked, now) => Step::Record(Change::Expired),
        Status::Queued => queued(last, asked, now),
        Status::Scheduled => scheduled(last, asked, now),
        _ => Step::Dial(last.attempt),
    }
}

/// The log knows nothing of the call, or has lost it. Of a later attempt than the first, the timer alone knows.
fn unknown(asked: &Asked, now: Timestamp) -> Step {
    match asked.fired {
        _ if is_late(asked, now) => Step::Record(Change::Expired),
        Some((_, attempt)) if attempt > 1 => Step::Queue(attempt),
        Some(_) => Step::Record(Change::Queued),
        None => match asked.not_before.filter(|begin| *begin > now + CLOCK_TOLERANCE) {
            Some(due_at) => Step::Record(Change::Scheduled { due_at }),
            None => Step::Record(Change::Queued),
        },
    }
}

/// One that is to wait and was only recorded as queued comes from version 0.1.
fn queued(last: &StatusEvent, asked: &Asked, now: Timestamp) -> Step {
    match asked.not_before.filter(|begin| *begin > now + CLOCK_TOLERANCE) {
        Some(due_at) if last.due_at.is_none() => Step::Record(Change::Scheduled { due_at }),
        _ => Step::Queue(last.attempt + 1),
    }
}

/// The timer's own message is due even if our clock is behind the server's.
fn scheduled(last: &StatusEvent, asked: &Asked, now: Timestamp) -> Step {
    let due = last.due_at.unwrap_or(now);
    if due <= now + CLOCK_TOLERANCE || asked.fired.is_some_and(|(moment, _)| moment == due) {
        Step::Record(Change::Queued)
    } else {
        Step::Schedule { attempt: last.attempt + 1, due }
    }
}

fn is_late(asked: &Asked, now: Timestamp) -> bool {
    asked.not_after.is_some_and(|end| end <= now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::{CallId, Ended, Outcome};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn asked() -> Asked {
        Asked { fingerprint: Fingerprint::of(b"request"), fired: None, not_before: None, not_after: None }
    }

    /// A call's state after some changes, all at second 100.
    fn after(changes: &[Change]) -> Option<StatusEvent> {
        let id = CallId::parse("a").expect("an id");
        let queued = StatusEvent::sample(id, Fingerprint::of(b"request"), at(100), 3);
        let next = |event: StatusEvent, change: &Change| event.next(change.clone(), at(100)).expect("a legal step");
        Some(changes.iter().fold(queued, next))
    }

    fn scheduled(second: i64) -> Change {
        Change::Scheduled { due_at: at(second) }
    }

    fn pending() -> Change {
        Change::Pending {
            attempt: 1,
            cluster: "c".into(),
            namespace: "n".into(),
            trunk: "default".into(),
            ends_by: at(900),
        }
    }

    fn busy() -> Change {
        Change::Ended(Ended {
            outcome: Outcome::Busy,
            sip_code: Some(486),
            exit_code: Some(1),
            completed_at: at(100),
            reason: None,
            message: None,
            evidence: None,
            redial: true,
        })
    }

    #[test]
    fn what_a_request_means_by_the_calls_last_state() {
        let fired = |second, attempt| Asked { fired: Some((at(second), attempt)), ..asked() };
        let not_before = |second| Asked { not_before: Some(at(second)), ..asked() };
        let late = Asked { not_after: Some(at(200)), ..asked() };
        let cancelled = Change::Cancelled { reason: "x".into() };
        let redial = [pending(), busy(), scheduled(300)];
        let due = [pending(), busy(), scheduled(150), Change::Queued];
        let table = [
            ("new", None, asked(), Step::Record(Change::Queued)),
            ("new, to wait", None, not_before(300), Step::Record(scheduled(300))),
            ("new, and its moment has come", None, not_before(201), Step::Record(Change::Queued)),
            ("new, too late", None, late.clone(), Step::Record(Change::Expired)),
            ("due, and its record is lost", None, fired(150, 1), Step::Record(Change::Queued)),
            ("due, and the record of its attempts is lost", None, fired(150, 3), Step::Queue(3)),
            ("queued", after(&[]), asked(), Step::Queue(1)),
            ("queued by version 0.1, to wait", after(&[]), not_before(300), Step::Record(scheduled(300))),
            ("queued, too late", after(&[]), late.clone(), Step::Record(Change::Expired)),
            (
                "to wait, its timer may be missing",
                after(&[scheduled(300)]),
                not_before(300),
                Step::Schedule { attempt: 1, due: at(300) },
            ),
            ("its moment has come", after(&[scheduled(150)]), fired(150, 1), Step::Record(Change::Queued)),
            ("fired by a clock that is ahead", after(&[scheduled(300)]), fired(300, 1), Step::Record(Change::Queued)),
            (
                "fired by a timer that was set again",
                after(&[scheduled(300)]),
                fired(150, 1),
                Step::Schedule { attempt: 1, due: at(300) },
            ),
            ("a redial is to come", after(&redial), asked(), Step::Schedule { attempt: 2, due: at(300) }),
            ("a redial is due", after(&due), fired(150, 2), Step::Queue(2)),
            ("a redial is due, published again", after(&due), not_before(120), Step::Queue(2)),
            ("a redial is too late", after(&redial), late, Step::Record(Change::Expired)),
            ("in progress", after(&[pending()]), asked(), Step::Dial(1)),
            ("failed, and to be redialled", after(&[pending(), busy()]), asked(), Step::Dial(1)),
            ("over", after(&[cancelled]), asked(), Step::Done),
            (
                "another request",
                after(&[pending()]),
                Asked { fingerprint: Fingerprint::of(b"other"), ..asked() },
                Step::Conflict,
            ),
        ];
        for (what, last, asked, step) in table {
            assert_eq!(decide(last.as_ref(), &asked, at(200)), step, "{what}");
        }
    }
}
