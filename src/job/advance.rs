//! What the runner has × what the log says → what to append: the one function that brings a call's record up to its Job.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::gate::pod_is_lost;
use super::redial::is_redialled;
use super::{Ending, Observed, Ran};
use crate::call::{Change, Ended, Outcome, Status, StatusEvent, TrunkHealth, Verdict};

/// How much earlier than by our clock a container may say that it started: clocks agree within a second, and Kubernetes cuts times
/// to whole seconds.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(2);

/// How long is waited for attempts.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// `JOB_START_SECONDS`: for a container to run.
    pub start_seconds: u32,
    /// `FAULT_PATIENCE`: for a call whose attempts end by faults of ours.
    pub faults: Duration,
}

/// The moments by which an attempt is judged, and how its trunk is at the present one.
#[derive(Debug, Clone, Copy)]
pub struct Moments {
    /// The present one.
    pub now: Timestamp,
    /// When its container has to run at the latest: `JOB_START_SECONDS` after the claim.
    pub start_by: Timestamp,
    /// When it is over at the latest.
    pub ends_by: Timestamp,
    /// Until when another one follows after a fault of ours: `FAULT_PATIENCE` after the end of the first of them in a row.
    pub patience_ends: Timestamp,
    /// How its trunk does for others at the present moment.
    pub trunk: TrunkHealth,
}

impl Moments {
    /// Those of the attempt that was claimed last.
    pub fn of(last: &StatusEvent, patience: Patience, now: Timestamp) -> Self {
        let to_start = Duration::from_secs(patience.start_seconds.into());
        let after = |moment: Timestamp, wait: Duration| moment.saturating_add(wait).unwrap_or(Timestamp::MAX);
        Self {
            now,
            start_by: after(last.created_at.unwrap_or(last.time), to_start),
            ends_by: last.ends_by.unwrap_or(Timestamp::MAX),
            patience_ends: after(last.faults_since.unwrap_or(now), patience.faults),
            trunk: TrunkHealth::default(),
        }
    }

    /// The same for an attempt on a trunk that does so for others.
    #[must_use]
    pub fn on_trunk(self, trunk: TrunkHealth) -> Self {
        Self { trunk, ..self }
    }

    /// Those of a call that nothing is known of yet: all the time in the world.
    pub fn unlimited(now: Timestamp) -> Self {
        let end = Timestamp::MAX;
        Self { now, start_by: end, ends_by: end, patience_ends: end, trunk: TrunkHealth::default() }
    }

    /// Whether the attempt's container had its time to start.
    pub fn start_is_late(&self) -> bool {
        self.now >= self.start_by
    }

    /// Whether the attempt had all its time.
    pub fn is_over(&self) -> bool {
        self.now >= self.ends_by
    }
}

/// The changes that bring the log up to what is known of the Job; nothing when it is.
pub fn advance(last: &StatusEvent, observed: &Observed, moments: Moments) -> Vec<Change> {
    if last.is_final || !last.status.is_active() {
        return Vec::new();
    }
    let is_cancelling = last.status == Status::Cancelling;
    match observed {
        Observed::Ended(ending) if is_cancelling => vec![end_of_a_cancelled(last, ending, moments)],
        Observed::Ended(ending) => ended(last, ending, moments),
        Observed::Gone => vec![gone(last, moments)],
        _ if moments.is_over() => vec![over(last, moments)],
        Observed::Running { started_at } if last.status == Status::Pending => {
            vec![Change::Running { started_at: *started_at }]
        }
        Observed::Waiting { .. } => pod_is_lost(last, observed, moments).into_iter().collect(),
        Observed::Running { .. } => Vec::new(),
    }
}

/// Whether an attempt's change to `to` is what the log says now, whoever has appended it.
pub fn is_recorded(now: &StatusEvent, attempt: u32, to: Status) -> bool {
    now.status == to && now.attempt == attempt
}

fn ended(last: &StatusEvent, ending: &Ending, moments: Moments) -> Vec<Change> {
    let began = ending.started_at.or(ending.succeeded.then_some(ending.completed_at));
    let running = began.filter(|_| last.status == Status::Pending).map(|started_at| Change::Running { started_at });
    running.into_iter().chain([end(last, ending, moments)]).collect()
}

/// An attempt that ended before it could be stopped keeps its own end; one that was stopped is cancelled, and so is one whose
/// pod went with its Job before anybody read how it had ended.
fn end_of_a_cancelled(last: &StatusEvent, ending: &Ending, moments: Moments) -> Change {
    let had_failed = ending.exit_code.is_some() && latest_end(ending.completed_at) < last.time;
    if ending.succeeded || had_failed { end(last, ending, moments) } else { cancelled("cancelled") }
}

/// Kubernetes cuts times to whole seconds: what ended at such a time ended at any moment of that second.
fn latest_end(completed_at: Timestamp) -> Timestamp {
    match completed_at.subsec_nanosecond() {
        0 => completed_at + SignedDuration::from_millis(999),
        _ => completed_at,
    }
}

fn end(last: &StatusEvent, ending: &Ending, moments: Moments) -> Change {
    let Verdict { outcome, sip_code } = verdict(last, ending);
    Change::Ended(Ended {
        outcome,
        sip_code,
        exit_code: ending.exit_code,
        completed_at: ending.completed_at,
        reason: ending.reason.clone(),
        message: ending.message.clone(),
        evidence: None,
        redial: is_redialled(last, outcome, moments),
    })
}

/// What the caller said, where it ran. The log is a witness, too: what was seen running has run.
fn verdict(last: &StatusEvent, ending: &Ending) -> Verdict {
    let has_run = last.started_at.is_some() && last.status != Status::Pending;
    let outcome = |outcome| Verdict { outcome, sip_code: None };
    match ending.ran {
        // Of the pods of a Job with a gate, none runs before the log names it.
        Ran::No | Ran::Unknown if ending.has_gate && last.pod.is_none() && !has_run => outcome(Outcome::NotStarted),
        Ran::Yes => Verdict::read(ending.succeeded, ending.exit_code, ending.message.as_deref()),
        Ran::No if !has_run => outcome(Outcome::NotStarted),
        Ran::No | Ran::Unknown => outcome(Outcome::Unknown),
    }
}

/// The Job was removed before its end. One that had its time to start was removed by us; any other, by somebody else.
fn gone(last: &StatusEvent, moments: Moments) -> Change {
    match last.status {
        Status::Cancelling => cancelled("cancelled"),
        Status::Pending if moments.start_is_late() => {
            lost(last, Outcome::NotStarted, moments, "its container did not start in time")
        }
        Status::Running
            if last.started_at.is_some_and(|started_at| started_at + CLOCK_TOLERANCE >= moments.start_by) =>
        {
            lost(last, Outcome::Unknown, moments, "it was stopped for not starting in time, and had just started")
        }
        _ => cancelled("deleted"),
    }
}

/// The attempt had all its time.
fn over(last: &StatusEvent, moments: Moments) -> Change {
    let reason = match last.status {
        Status::Cancelling => "it was to be stopped, and its end was not heard of in time",
        _ => "its end was not heard of in time",
    };
    lost(last, Outcome::Unknown, moments, reason)
}

fn cancelled(reason: &str) -> Change {
    Change::Cancelled { reason: reason.to_owned() }
}

/// The end of an attempt that nobody has seen end.
pub fn lost(last: &StatusEvent, outcome: Outcome, moments: Moments, reason: &str) -> Change {
    Change::Ended(Ended {
        outcome,
        sip_code: None,
        exit_code: None,
        completed_at: moments.now,
        reason: Some(reason.to_owned()),
        message: None,
        evidence: None,
        redial: is_redialled(last, outcome, moments),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::call::{CallId, Fingerprint, PodRef, RedialOn};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    /// In the middle of an attempt that was claimed at second 100.
    const IN_TIME: i64 = 200;
    const LATE_START: i64 = 700;
    const OVER: i64 = 1000;

    fn moments(now: i64) -> Moments {
        let (start_by, ends_by) = (at(LATE_START), at(OVER));
        Moments { now: at(now), start_by, ends_by, patience_ends: at(now), trunk: TrunkHealth::default() }
    }

    fn call(changes: Vec<Change>) -> StatusEvent {
        redialled_on(&[Outcome::Busy], changes)
    }

    /// A call of three attempts that is dialled again after these outcomes.
    fn redialled_on(outcomes: &[Outcome], changes: Vec<Change>) -> StatusEvent {
        let id = CallId::parse("a").expect("an id");
        let queued = StatusEvent::sample(id, Fingerprint::of(b"request"), at(100), 3);
        let mut event = StatusEvent { redial_on: outcomes.iter().copied().map(RedialOn::from).collect(), ..queued };
        for change in changes {
            event = event.next(change, at(100)).expect("a legal step");
        }
        event
    }

    fn pending() -> Change {
        Change::Pending {
            attempt: 1,
            cluster: "c".into(),
            namespace: "n".into(),
            trunk: "default".into(),
            ends_by: at(OVER),
        }
    }

    fn running() -> Change {
        Change::Running { started_at: at(100) }
    }

    fn ended(ran: Ran, code: Option<i32>, completed: i64) -> Observed {
        Observed::Ended(Ending {
            succeeded: code == Some(0),
            ran,
            has_gate: false,
            exit_code: code,
            message: Some("12:00 | INFO | x - Call state: DISCONNECTED (last code: 486)".to_owned()),
            reason: None,
            started_at: (ran == Ran::Yes).then(|| at(100)),
            completed_at: at(completed),
        })
    }

    fn waiting() -> Observed {
        Observed::waiting()
    }

    #[test]
    fn of_a_job_with_a_gate_nobody_was_called_while_the_log_names_no_pod() {
        let with_gate = |ran| match ended(ran, None, 150) {
            Observed::Ended(ending) => Observed::Ended(Ending { has_gate: true, ..ending }),
            other => other,
        };
        let chosen = || Change::Chosen { pod: PodRef { name: "pod".to_owned(), uid: "uid".to_owned() } };
        let (claimed, let_through) = (call(vec![pending()]), call(vec![pending(), chosen()]));
        for (last, ran, outcome) in [
            (&claimed, Ran::Unknown, Outcome::NotStarted),
            (&claimed, Ran::No, Outcome::NotStarted),
            (&let_through, Ran::Unknown, Outcome::Unknown),
            (&let_through, Ran::No, Outcome::NotStarted),
            (&call(vec![pending(), running()]), Ran::Unknown, Outcome::Unknown),
        ] {
            assert_eq!(steps(last, &with_gate(ran), IN_TIME).1, Some(outcome), "{:?} {ran:?}", last.pod);
        }
    }

    /// The states that follow, and the outcome of the last.
    fn steps(last: &StatusEvent, observed: &Observed, now: i64) -> (Vec<Status>, Option<Outcome>) {
        let changes = advance(last, observed, moments(now));
        let mut event = last.clone();
        for change in &changes {
            event = event.next(change.clone(), at(now)).expect("only legal steps are decided on");
        }
        let outcome = (!changes.is_empty()).then_some(event.outcome).flatten();
        (changes.iter().map(Change::status).collect(), outcome)
    }

    #[test]
    fn the_log_is_brought_up_to_what_is_known_by_legal_steps_only() {
        use Outcome::{Answered, Busy, NotStarted, Unknown};
        use Status::*;
        let claimed = call(vec![pending()]);
        let runs = call(vec![pending(), running()]);
        let started_late = call(vec![pending(), Change::Running { started_at: at(LATE_START + 1) }]);
        let by_another_clock = call(vec![pending(), Change::Running { started_at: at(LATE_START - 2) }]);
        let stopping = call(vec![pending(), Change::Cancelling]);
        let over = call(vec![Change::Cancelled { reason: "x".into() }]);
        let run = Observed::Running { started_at: at(100) };
        type Row<'a> = (&'a str, &'a StatusEvent, Observed, i64, &'a [Status], Option<Outcome>);
        let table: [Row<'_>; 27] = [
            ("nothing new", &claimed, waiting(), IN_TIME, &[], None),
            ("it runs", &claimed, run.clone(), IN_TIME, &[Running], None),
            ("it runs still", &runs, run.clone(), IN_TIME, &[], None),
            ("a lagging watch", &runs, waiting(), IN_TIME, &[], None),
            ("answered", &claimed, ended(Ran::Yes, Some(0), 150), IN_TIME, &[Running, Succeeded], Some(Answered)),
            ("failed, unseen", &claimed, ended(Ran::Yes, Some(1), 150), IN_TIME, &[Running, Failed], Some(Busy)),
            ("failed", &runs, ended(Ran::Yes, Some(1), 150), IN_TIME, &[Failed], Some(Busy)),
            ("it never ran", &claimed, ended(Ran::No, None, 150), IN_TIME, &[Failed], Some(NotStarted)),
            (
                "it ran, and its pod is lost",
                &claimed,
                ended(Ran::Unknown, None, 150),
                IN_TIME,
                &[Failed],
                Some(Unknown),
            ),
            ("seen running, then lost", &runs, ended(Ran::No, None, 150), IN_TIME, &[Failed], Some(Unknown)),
            ("deleted by hand before it ran", &claimed, Observed::Gone, IN_TIME, &[Cancelled], None),
            ("deleted by hand", &runs, Observed::Gone, IN_TIME, &[Cancelled], None),
            ("it did not start in time", &claimed, Observed::Gone, LATE_START, &[Failed], Some(NotStarted)),
            ("it waits too long", &claimed, waiting(), LATE_START, &[], None),
            ("started while it was stopped", &started_late, Observed::Gone, LATE_START + 2, &[Failed], Some(Unknown)),
            (
                "the same, by a clock that is behind",
                &by_another_clock,
                Observed::Gone,
                LATE_START,
                &[Failed],
                Some(Unknown),
            ),
            ("deleted by hand, much later", &runs, Observed::Gone, LATE_START, &[Cancelled], None),
            ("silent until its time was up", &claimed, waiting(), OVER, &[Failed], Some(Unknown)),
            ("running when its time was up", &runs, run.clone(), OVER, &[Failed], Some(Unknown)),
            ("ended before its time was up", &runs, ended(Ran::Yes, Some(1), 150), OVER, &[Failed], Some(Busy)),
            ("stopped", &stopping, Observed::Gone, IN_TIME, &[Cancelled], None),
            ("the stop does not come through", &stopping, run.clone(), IN_TIME, &[], None),
            ("the stop did not come through", &stopping, run.clone(), OVER, &[Failed], Some(Unknown)),
            ("stopped by a signal", &stopping, ended(Ran::Yes, Some(143), 150), IN_TIME, &[Cancelled], None),
            ("ended before the cancel", &stopping, ended(Ran::Yes, Some(1), 50), IN_TIME, &[Failed], Some(Busy)),
            ("ended before, nobody knows how", &stopping, ended(Ran::Unknown, None, 50), IN_TIME, &[Cancelled], None),
            ("over", &over, ended(Ran::Yes, Some(0), 150), OVER, &[], None),
        ];
        for (what, last, observed, now, states, outcome) in table {
            assert_eq!(steps(last, &observed, now), (states.to_vec(), outcome), "{what}");
        }
    }

    fn observed() -> impl Strategy<Value = Observed> {
        let ran = prop_oneof![Just(Ran::Yes), Just(Ran::No), Just(Ran::Unknown)];
        prop_oneof![
            Just(waiting()),
            Just(Observed::Running { started_at: at(100) }),
            (ran, prop::option::of(0..3_i32), 50_i64..150).prop_map(|(ran, code, end)| ended(ran, code, end)),
            Just(Observed::Gone),
        ]
    }

    /// An active call, or one that was just found to have failed with a redial to come, or has ended.
    fn last() -> impl Strategy<Value = StatusEvent> {
        let changes = prop::collection::vec(prop_oneof![Just(running()), Just(Change::Cancelling)], 0..3);
        (any::<bool>(), changes, prop::option::of(observed())).prop_map(|(redial, changes, then)| {
            let mut event = redialled_on(if redial { &Outcome::ALL } else { &[] }, vec![pending()]);
            for change in changes {
                event = event.next(change, at(100)).unwrap_or(event);
            }
            if let Some(observed) = then {
                for change in advance(&event, &observed, moments(IN_TIME)) {
                    event = event.next(change, at(100)).expect("a legal step");
                }
            }
            event
        })
    }

    proptest! {
        #[test]
        fn whatever_is_known_the_steps_are_legal_and_advancing_again_changes_nothing(
            last in last(),
            observed in observed(),
            now in 150_i64..1200,
        ) {
            let mut event = last.clone();
            for change in advance(&last, &observed, moments(now)) {
                event = event.next(change, at(now)).expect("a legal step");
            }
            prop_assert_eq!(advance(&event, &observed, moments(now)), Vec::new());
            let is_over = matches!(observed, Observed::Ended(_) | Observed::Gone) || now >= OVER;
            prop_assert!(!is_over || !event.status.is_active(), "an attempt that is over is not active");
            prop_assert!(is_over || event.is_final == last.is_final, "nothing ends a call whose Job lives and has time");
        }
    }

    #[test]
    fn what_another_attempt_has_come_to_is_not_a_change_of_this_one() {
        let first = call(vec![pending(), running()]);
        let redialled = advance(&first, &ended(Ran::Yes, Some(1), 150), moments(IN_TIME)).pop().expect("it ended");
        let due = Change::Scheduled { due_at: at(IN_TIME) };
        let claim = Change::Pending {
            attempt: 2,
            cluster: "c".into(),
            namespace: "n".into(),
            trunk: "default".into(),
            ends_by: at(OVER),
        };
        let second = [redialled, due, claim, running()]
            .into_iter()
            .fold(first.clone(), |last, change| last.next(change, at(IN_TIME)).expect("a legal step"));
        assert!(is_recorded(&first, 1, Status::Running) && is_recorded(&second, 2, Status::Running));
        assert!(!is_recorded(&second, 1, Status::Running));
    }

    #[test]
    fn an_end_in_the_second_of_the_cancel_is_the_cancels() {
        let cancelled_at = at(100) + SignedDuration::from_millis(500);
        let stopping = call(vec![pending(), running()]).next(Change::Cancelling, cancelled_at).expect("a legal step");
        assert_eq!(steps(&stopping, &ended(Ran::Yes, Some(143), 100), IN_TIME).0, [Status::Cancelled]);
        assert_eq!(steps(&stopping, &ended(Ran::Yes, Some(1), 99), IN_TIME).0, [Status::Failed]);
    }

    #[test]
    fn a_failed_attempt_is_final_unless_its_outcome_is_redialled() {
        let end = |redial_on: &[Outcome]| {
            let last = redialled_on(redial_on, vec![pending(), running()]);
            let observed = ended(Ran::Yes, Some(1), 150);
            let change = advance(&last, &observed, moments(IN_TIME)).pop().expect("it ended");
            last.next(change, at(200)).expect("a legal step")
        };
        let (final_end, redialled) = (end(&[Outcome::NoAnswer]), end(&[Outcome::Busy]));
        assert!(final_end.is_final && !redialled.is_final);
        assert_eq!(redialled.sip_code, Some(486));
    }

    #[test]
    fn a_cancelled_call_whose_end_nobody_heard_of_is_not_dialled_again() {
        let stopping = redialled_on(&Outcome::ALL, vec![pending(), running(), Change::Cancelling]);
        let change = advance(&stopping, &waiting(), moments(OVER)).pop().expect("it ends");
        assert!(stopping.next(change, at(OVER)).expect("a legal step").is_final);
    }
}
