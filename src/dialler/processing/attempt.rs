//! The steps of an attempt that is ours: it is claimed, its Job is made or stopped, and one that failed may be redialled. How a Job
//! is followed to its end is in [`super::follow`].

use std::time::Duration;

use jiff::SignedDuration;

use super::{HAND_BACK, Next, Processing};
use crate::call::{Change, Outcome};
use crate::clock::now;
use crate::dialler::decide::Asked;
use crate::dialler::{Dialler, after, limits, redial};
use crate::job::advance::{Moments, lost};
use crate::job::manifest::build;
use crate::job::{JobOrder, Observed};
use crate::job_watch::{Follower, Report};
use crate::nats::NatsError;
use crate::policy::Wanted;
use crate::policy::breaker::Ending;
use crate::runner::RunnerError;
use crate::status_log::Recorded;

/// How long before its turn a call is claimed whose pod waits for that turn at its gate.
const LEAD: SignedDuration = SignedDuration::from_secs(1);
/// How long a call stays in the window whose trunk is not configured here.
const UNKNOWN_TRUNK_DELAY: Duration = Duration::from_secs(1);

impl Processing<'_> {
    /// Claims the attempt, at its turn and unless dialling is paused or the trunk is held. While it waited for that, the call may have been
    /// cancelled or have expired: so it is decided on again.
    pub(super) async fn claim(&mut self, attempt: u32) -> Next {
        if let Some(why) = self.dialler.pause.holds(self.call.spec.batch.as_deref(), now()) {
            return self.give_back(&why).await;
        }
        let Dialler { trunks, cluster, defaults, .. } = self.dialler;
        let trunk = &self.asked.trunk;
        if let Some(held) = trunks.held(trunk, now()) {
            if trunks.get(trunk).is_none() {
                // Another replica may not know that yet, and would offer it again at once.
                self.pause(UNKNOWN_TRUNK_DELAY).await;
            }
            return self.give_back(&held.why).await;
        }
        if self.lacks_a_turn() {
            // The pod of a Job is there some moments after its claim.
            let waits_at_a_gate = defaults.pod_gate && self.dialler.runner.info().has_gates;
            let lead = if waits_at_a_gate { LEAD } else { SignedDuration::ZERO };
            return if self.take_turn(lead).await { Next::Decide } else { HAND_BACK };
        }
        let (job, ends_by) = (self.call.name.job(attempt), limits::ends_by(&self.call, defaults, now()));
        match trunks.breakers.admit(trunk, &job, ends_by).await {
            Ok(Ok(())) => {}
            Ok(Err(held)) => return self.give_back(&held.why).await,
            Err(error) => return self.handle(error).await,
        }
        let change = limits::claim(&self.call, attempt, trunk, cluster, defaults, now());
        let next = self.record(change).await;
        fail::fail_point!("after-claim");
        next
    }

    pub(super) fn moments(&self) -> Moments {
        let of = |last: &Recorded| self.dialler.judge.moments(&last.event);
        self.last.as_ref().map_or_else(|| Moments::unlimited(now()), of)
    }

    /// Makes the Job and follows it. What can heal is tried again here, in the slot that the call has, while there is time.
    pub(super) async fn start(&mut self) -> Next {
        let mut follower = self.dialler.store.follow(&self.job());
        let Some(order) = self.order() else { return Box::pin(self.give_up_without_trunk(&mut follower)).await };
        let result = {
            let Ok(_permit) = self.dialler.starts.0.acquire().await else { return HAND_BACK };
            if let Some(next) = Box::pin(self.changed_meanwhile()).await {
                return next;
            }
            if limits::is_too_late_to_start(&self.asked, self.moments()) {
                return Box::pin(self.give_up_unless_started(&mut follower)).await;
            }
            self.dialler.runner.start(&order).await
        };
        // Not kept while the call runs: a Job is a dozen kilobytes.
        drop(order);
        match result {
            Ok(()) => {
                fail::fail_point!("after-start", |_| HAND_BACK);
                self.retry.worked();
                let report = follower.known();
                self.follow_from(&mut follower, report).await
            }
            Err(error) => Box::pin(self.handle(error)).await,
        }
    }

    /// The Job, with the account of its trunk; `None` where that is gone. Boxed: it is three kilobytes, and would be a part of every call in
    /// progress.
    fn order(&self) -> Option<Box<JobOrder>> {
        let trunk = self.dialler.trunks.get(&self.asked.trunk)?;
        let defaults = self.dialler.defaults.on(&trunk.secret, trunk.node_selector.as_ref());
        Some(Box::new(build(&self.call, self.asked.attempt, &defaults)))
    }

    /// What to do instead when the log has changed since it was decided to start: whoever had to wait for long, or was suspended,
    /// may be the last to learn that the call is over and its Job gone.
    pub(super) async fn changed_meanwhile(&mut self) -> Option<Next> {
        if limits::is_fresh(self.read_at, now()) {
            return None;
        }
        let decided_on = after(self.last.as_ref());
        match self.read().await {
            Next::Decide if after(self.last.as_ref()) == decided_on => None,
            next => Some(next),
        }
    }

    /// The time to make the Job has passed, or `not_after` has; unless it was made, and only the answer got lost.
    async fn give_up_unless_started(&mut self, follower: &mut Follower) -> Next {
        match self.dialler.runner.find(&self.job()).await {
            Ok(None) if limits::is_past_not_after(&self.asked, now()) => self.record(Change::Expired).await,
            Ok(None) => self.advance_to(&Observed::Gone).await.break_value().unwrap_or(Next::Decide),
            Ok(Some(job)) => self.follow(follower, job.state).await,
            Err(error) => self.fail(error).await,
        }
    }

    /// The trunk went between the claim and the start: the attempt is the next one's, unless its Job was made.
    async fn give_up_without_trunk(&mut self, follower: &mut Follower) -> Next {
        match self.dialler.runner.find(&self.job()).await {
            Ok(Some(job)) => self.follow(follower, job.state).await,
            Ok(None) => self.end_lost(Outcome::NotStarted, "its trunk was removed from the configuration").await,
            Err(error) => self.fail(error).await,
        }
    }

    /// Follows a Job that was started before this delivery.
    pub(super) async fn watch(&mut self) -> Next {
        let mut follower = self.dialler.store.follow(&self.job());
        self.follow_from(&mut follower, Report::Missing).await
    }

    /// Stops the Job of a call that is to be cancelled and follows it to its end.
    pub(super) async fn stop(&mut self) -> Next {
        match self.dialler.runner.stop(&self.job()).await {
            Ok(()) => self.watch().await,
            Err(error) => self.fail(error).await,
        }
    }

    /// What a runner that does not answer means: another try, until the attempt has had all its time and some more tries.
    pub(super) async fn fail(&mut self, error: RunnerError) -> Next {
        if limits::is_given_up(self.moments(), self.began) {
            let reason = format!("its end was not heard of in time: {error}");
            return Box::pin(self.end_unknown(&reason)).await;
        }
        Box::pin(self.handle(error)).await
    }

    /// Records when the next attempt is due, or that it would be too late.
    pub(super) async fn redial(&mut self) -> Next {
        if let Err(error) = self.tell_breaker().await {
            return self.handle(error).await;
        }
        let Some(last) = &self.last else { return Next::Decide };
        let trunks = self.dialler.trunks.now();
        let has_other_trunk = trunks.failover(&Wanted::of(&self.call.spec, Some(&last.event))).is_some();
        let change = redial::after_failure(&self.call.spec, &last.event, has_other_trunk, now());
        self.record(change).await
    }

    /// Tells the breaker of the trunk how the attempt has ended, or that it is not made.
    pub(super) async fn tell_breaker(&self) -> Result<(), NatsError> {
        let Asked { trunk, attempt, .. } = &self.asked;
        let job = self.call.name.job(*attempt);
        let last = self.last.as_ref().map(|last| &last.event);
        let of_this = last.filter(|last| last.attempt == *attempt && last.trunk.as_ref() == Some(trunk));
        let ending = of_this.and_then(Ending::of).unwrap_or(Ending::none(&job));
        self.dialler.trunks.breakers.record(trunk, &ending).await
    }

    /// Records that nobody knows how the attempt ended.
    pub(super) async fn end_unknown(&mut self, reason: &str) -> Next {
        self.end_lost(Outcome::Unknown, reason).await
    }

    async fn end_lost(&mut self, outcome: Outcome, reason: &str) -> Next {
        let Some(last) = &self.last else { return Next::Decide };
        let change = lost(&last.event, outcome, self.moments(), reason);
        self.record(change).await
    }
}
