//! The gate that one pod of an attempt passes, the one that the log names. So an attempt dials once, however many pods a Job makes for it.

use super::advance::{Moments, lost};
use super::{Gate, Observed, Passed, Ran};
use crate::call::{Change, Outcome, PodRef, Status, StatusEvent};

/// What is to be done for a pod that waits at its gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Record that it is the one, then lift its gate.
    Choose(PodRef),
    /// It is the one: lift its gate, again if need be.
    Lift(PodRef),
}

/// What is to be done at the gate of an attempt's pods. Nothing for a second pod, whatever became of the first.
pub fn choice(last: &StatusEvent, observed: &Observed) -> Option<Choice> {
    let Observed::Waiting { gate: Gate { waits: Some(waits), passed }, .. } = observed else { return None };
    match &last.pod {
        _ if last.status != Status::Pending => None,
        None if *passed == Passed::Nobody => Some(Choice::Choose(waits.clone())),
        Some(chosen) if chosen.uid == waits.uid => Some(Choice::Lift(waits.clone())),
        _ => None,
    }
}

/// Whether the chosen pod is not among those that are shown, while another one waits. Who was shown too little asks again before that
/// means anything.
pub fn misses_its_pod(last: &StatusEvent, observed: &Observed) -> bool {
    let Observed::Waiting { gate: Gate { waits: Some(waits), passed: Passed::Nobody }, .. } = observed else {
        return false;
    };
    last.pod.as_ref().is_some_and(|chosen| chosen.uid != waits.uid)
}

/// The end of an attempt whose chosen pod is lost: no other one takes its place, since that could dial again.
pub(super) fn pod_is_lost(last: &StatusEvent, observed: &Observed, moments: Moments) -> Option<Change> {
    let Observed::Waiting { gate, .. } = observed else { return None };
    let ran = match gate.passed {
        _ if last.pod.is_none() || last.status == Status::Cancelling => return None,
        Passed::Over(ran) => ran,
        _ if misses_its_pod(last, observed) => Ran::Unknown,
        _ => return None,
    };
    let (outcome, reason) = match ran {
        Ran::No if last.status == Status::Pending => (Outcome::NotStarted, "its pod was disrupted before it ran"),
        _ => (Outcome::Unknown, "its pod was disrupted, and nobody knows what was said"),
    };
    Some(lost(last, outcome, moments, reason))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::call::{CallId, Fingerprint};

    fn pod(uid: &str) -> PodRef {
        PodRef { name: format!("pod-{uid}"), uid: uid.to_owned() }
    }

    fn claimed(then: impl IntoIterator<Item = Change>) -> StatusEvent {
        let now = Timestamp::UNIX_EPOCH;
        let mut event = StatusEvent::sample(CallId::parse("a").unwrap(), Fingerprint::of(b"x"), now, 1);
        let claim = Change::Pending {
            attempt: 1,
            cluster: "c".into(),
            namespace: "n".into(),
            trunk: "default".into(),
            ends_by: Timestamp::MAX,
        };
        for change in [claim].into_iter().chain(then) {
            event = event.next(change, now).unwrap();
        }
        event
    }

    fn chosen(uid: &str) -> Change {
        Change::Chosen { pod: pod(uid) }
    }

    fn running() -> Change {
        Change::Running { started_at: Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn one_pod_passes_the_gate_and_an_attempt_is_over_with_it() {
        use Passed::{Lives, Nobody, Over};
        let (lift, choose) = (|uid| Some(Choice::Lift(pod(uid))), |uid| Some(Choice::Choose(pod(uid))));
        type Row<'a> = (&'a str, Vec<Change>, Option<&'a str>, Passed, Option<Choice>, Option<Outcome>);
        let table: [Row<'_>; 14] = [
            ("no pod yet", vec![], None, Nobody, None, None),
            ("the first pod", vec![], Some("a"), Nobody, choose("a"), None),
            ("a pod without a gate", vec![], None, Lives, None, None),
            ("a gate was lifted by hand", vec![], Some("b"), Lives, None, None),
            ("it is chosen, and its gate not lifted yet", vec![chosen("a")], Some("a"), Nobody, lift("a"), None),
            ("it has passed", vec![chosen("a")], None, Lives, None, None),
            ("a second pod beside it", vec![chosen("a")], Some("b"), Lives, None, None),
            ("it is nowhere, and nor is another", vec![chosen("a")], None, Nobody, None, None),
            ("another one is in its place", vec![chosen("a")], Some("b"), Nobody, None, Some(Outcome::Unknown)),
            ("disrupted before it ran", vec![chosen("a")], Some("b"), Over(Ran::No), None, Some(Outcome::NotStarted)),
            ("lost with its node", vec![chosen("a")], Some("b"), Over(Ran::Unknown), None, Some(Outcome::Unknown)),
            ("drained", vec![chosen("a"), running()], None, Over(Ran::Yes), None, Some(Outcome::Unknown)),
            ("seen to run", vec![chosen("a"), running()], Some("b"), Over(Ran::No), None, Some(Outcome::Unknown)),
            ("to be cancelled", vec![chosen("a"), Change::Cancelling], Some("b"), Over(Ran::Yes), None, None),
        ];
        for (what, changes, waits, passed, step, outcome) in table {
            let last = claimed(changes);
            let observed = Observed::Waiting { reason: None, gate: Gate { waits: waits.map(pod), passed } };
            assert_eq!(choice(&last, &observed), step, "{what}");
            let end = pod_is_lost(&last, &observed, Moments::unlimited(last.time));
            let end = end.map(|change| last.next(change, last.time).unwrap().outcome.unwrap());
            assert_eq!(end, outcome, "{what}");
        }
    }

    #[test]
    fn nobody_passes_once_a_cancel_was_asked_for() {
        let observed = Observed::Waiting { reason: None, gate: Gate { waits: Some(pod("a")), passed: Passed::Nobody } };
        for changes in [vec![Change::Cancelling], vec![chosen("a"), Change::Cancelling]] {
            assert_eq!(choice(&claimed(changes), &observed), None);
        }
    }
}
