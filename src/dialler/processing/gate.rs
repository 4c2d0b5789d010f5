//! The gate of an attempt's pods: one is chosen at its turn, that is recorded, and then its gate is lifted. Whoever dies between any two of
//! these is followed by one who lifts the gate of the same pod.

use std::ops::ControlFlow;

use jiff::SignedDuration;

use super::{HAND_BACK, Next, Processing};
use crate::call::{Change, PodRef};
use crate::clock::now;
use crate::dialler::limits;
use crate::job::Observed;
use crate::job::gate::{Choice, choice};
use crate::retry;

/// How much later than its turn a call may begin. A turn that is older would make a burst with those that come after it.
const LATE: SignedDuration = SignedDuration::from_millis(100);

impl Processing<'_> {
    /// Lets the pod of the attempt run, at its turn and unless dialling is paused or it is too late for the call.
    pub(super) async fn at_the_gate(&mut self, observed: &Observed) -> ControlFlow<Next> {
        let last = self.last.as_ref().map(|last| &last.event);
        match last.and_then(|last| choice(last, observed)) {
            None => ControlFlow::Continue(()),
            // Its Job is about to be removed.
            Some(_) if self.moments().start_is_late() => ControlFlow::Continue(()),
            Some(Choice::Lift(pod)) => self.lift(&pod).await,
            Some(Choice::Choose(_)) if self.is_paused() => ControlFlow::Continue(()),
            Some(Choice::Choose(pod)) => {
                if !self.has_come_to_its_turn().await {
                    return ControlFlow::Break(HAND_BACK);
                }
                if limits::is_past_not_after(&self.asked, now()) {
                    return ControlFlow::Break(self.expire(observed).await);
                }
                if self.is_paused() {
                    return ControlFlow::Continue(());
                }
                self.choose(pod).await
            }
        }
    }

    /// Whether a pod still waits for us at the gate.
    pub(super) fn is_held_at_the_gate(&self, observed: &Observed) -> bool {
        let last = self.last.as_ref().map(|last| &last.event);
        last.is_some_and(|last| choice(last, observed).is_some())
    }

    fn is_paused(&self) -> bool {
        let Self { dialler, call, asked, .. } = self;
        let breaker = dialler.trunks.breakers.get(&asked.trunk);
        dialler.pause.holds(call.spec.batch.as_deref(), now()).is_some()
            || breaker.is_some_and(|breaker| breaker.is_open_by_hand())
    }

    /// Waits for the turn that the call was claimed for, or for another one when that has passed; false when the process is to end.
    async fn has_come_to_its_turn(&mut self) -> bool {
        if self.lacks_a_turn() && !self.take_turn(SignedDuration::ZERO).await {
            return false;
        }
        if let Some(wait) = self.turn.and_then(|turn| turn.duration_since(now()).try_into().ok()) {
            self.pause(wait).await;
        }
        !self.dialler.closing.is_cancelled()
    }

    /// Whether the call has no turn on a trunk with a pace, or none any more.
    pub(super) fn lacks_a_turn(&self) -> bool {
        let is_over = |turn| now().duration_since(turn) > LATE;
        self.dialler.trunks.is_paced(&self.asked.trunk) && self.turn.is_none_or(is_over)
    }

    /// Reserves a turn, and waits until so long before it comes; false when the process is to end. A trunk without a pace has none.
    pub(super) async fn take_turn(&mut self, lead: SignedDuration) -> bool {
        let Self { dialler, asked, .. } = self;
        let turn = tokio::select! {
            turn = retry::until_stopped(&dialler.closing, "reserve a turn", || dialler.trunks.turn(&asked.trunk, lead)) => turn,
            () = dialler.closing.cancelled() => None,
        };
        let is_reserved = turn.is_some();
        self.turn = turn.flatten();
        is_reserved
    }

    async fn choose(&mut self, pod: PodRef) -> ControlFlow<Next> {
        let next = self.record(Change::Chosen { pod: pod.clone() }).await;
        let chosen = self.last.as_ref().and_then(|last| last.event.pod.as_ref());
        if chosen != Some(&pod) || !matches!(next, Next::Decide) {
            return ControlFlow::Break(next);
        }
        fail::fail_point!("after-choice", |_| ControlFlow::Break(HAND_BACK));
        self.lift(&pod).await
    }

    async fn lift(&mut self, pod: &PodRef) -> ControlFlow<Next> {
        match self.dialler.runner.lift_gate(pod).await {
            Ok(()) => {
                fail::fail_point!("after-gate", |_| ControlFlow::Break(HAND_BACK));
                ControlFlow::Continue(())
            }
            Err(error) => ControlFlow::Break(self.fail(error).await),
        }
    }

    /// It is too late for the call, and nobody was dialled: the Job goes.
    async fn expire(&mut self, observed: &Observed) -> Next {
        let next = self.record(Change::Expired).await;
        if self.last.as_ref().is_some_and(|last| last.event.is_final) {
            return self.let_go(observed);
        }
        next
    }
}
