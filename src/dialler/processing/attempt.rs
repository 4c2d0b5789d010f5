//! The steps of an attempt that is ours: it is claimed, its Job is made and followed to its end, and one that failed may be
//! redialled. Apart, since only here a step lasts as long as a call does, and much may happen beside it meanwhile.

use jiff::SignedDuration;

use super::{HAND_BACK, Next, Processing};
use crate::{
    call::{Change, Outcome},
    clock::now,
    dialler::{after, redial},
    job::{Ending, ObservedJob, Phase, manifest::build},
    job_watch::{self, Facts, Follower, Sighting},
    queue::{control::PAUSED_DELAY, in_flight::Settlement},
    retry,
    runner::RunnerError,
};

/// How long what was read of the log is good enough to make a Job by. By the wall clock, which goes on while a machine is
/// suspended.
const FRESH: SignedDuration = SignedDuration::from_secs(1);

impl Processing<'_> {
    /// Claims the attempt, at its turn and unless dialling is paused. While it waited for that, the call may have been cancelled or have expired: so it is
    /// decided on again.
    pub(super) async fn claim(&mut self, attempt: u32) -> Next {
        if self.dialler.pause.is_paused(now()) {
            return Next::Settle(Settlement::Nak(Some(PAUSED_DELAY)));
        }
        if let Some(rate_limit) = &self.dialler.rate_limit
            && !std::mem::take(&mut self.has_turn)
        {
            let turn = retry::until_stopped(&self.dialler.closing, "reserve a turn", || rate_limit.turn()).await;
            if turn.is_none() {
                return HAND_BACK;
            }
            self.has_turn = true;
            return Next::Decide;
        }
        let change = Change::Pending {
            attempt,
            cluster: self.dialler.cluster.clone(),
            namespace: self.dialler.defaults.namespace.clone(),
            queue_sequence: self.asked.sequence,
        };
        self.record(change).await;
        fail::fail_point!("after-claim");
        Next::Decide
    }

    /// Makes the Job and follows it. What can heal is tried again here, in the slot that the call has.
    pub(super) async fn start(&mut self) -> Next {
        let order = build(&self.call, self.attempt(), &self.dialler.defaults);
        let mut follower = self.dialler.sightings.follow(order.name());
        let result = {
            let Ok(_permit) = self.dialler.limits.starts.acquire().await else { return HAND_BACK };
            match self.changed_meanwhile().await {
                None => {}
                Some(next) => return next,
            }
            if self.is_too_late() {
                return self.expire_unless_started(&mut follower).await;
            }
            self.dialler.runner.start(&order).await
        };
        // Not kept while the call runs: a Job is a dozen kilobytes.
        drop(order);
        match result {
            Ok(()) => {
                fail::fail_point!("after-start", |_| HAND_BACK);
                self.retry.worked();
                match self.facts(follower.first().clone()).await {
                    Ok(facts) => self.follow(&mut follower, facts).await,
                    Err(error) => self.handle(error).await,
                }
            }
            Err(error) => self.handle(error).await,
        }
    }

    /// What to do instead when the log has changed since it was decided to start: whoever had to wait for long, or was suspended,
    /// may be the last to learn that the call is over and its Job gone.
    async fn changed_meanwhile(&mut self) -> Option<Next> {
        if now().duration_since(self.read_at).abs() < FRESH {
            return None;
        }
        let decided_on = after(self.last.as_ref());
        match self.read().await {
            Next::Decide if after(self.last.as_ref()) == decided_on => None,
            next => Some(next),
        }
    }

    fn is_too_late(&self) -> bool {
        self.asked.not_after.is_some_and(|end| end <= now())
    }

    /// `not_after` passed while the Job could not be made; unless it was made, and only the answer got lost.
    async fn expire_unless_started(&mut self, follower: &mut Follower) -> Next {
        match job_watch::facts(self.dialler.runner.as_ref(), &self.job()).await {
            Ok(Facts::Gone) => self.record(Change::Expired).await,
            Ok(facts) => self.follow(follower, facts).await,
            Err(error) => self.handle(error).await,
        }
    }

    /// Follows a Job that was started before this delivery.
    pub(super) async fn watch(&mut self) -> Next {
        let job = self.job();
        let mut follower = self.dialler.sightings.follow(&job);
        match job_watch::facts(self.dialler.runner.as_ref(), &job).await {
            Ok(facts) => self.follow(&mut follower, facts).await,
            Err(error) => self.handle(error).await,
        }
    }

    /// Stops the Job of a call that is to be cancelled and follows it to its end.
    pub(super) async fn stop(&mut self) -> Next {
        let job = self.job();
        match self.dialler.runner.stop(&job).await {
            Ok(()) => self.watch().await,
            Err(error) => self.handle(error).await,
        }
    }

    /// Appends what the Job shows until the attempt is over, the log was changed by somebody else, or the process is to end.
    async fn follow(&mut self, follower: &mut Follower, facts: Facts) -> Next {
        self.permit = None;
        let (mut facts, mut seen) = (facts, follower.first().clone());
        loop {
            if self.catch_up(&facts).await {
                return self.after_catching_up(&facts);
            }
            let sighting = tokio::select! {
                sighting = follower.next() => sighting,
                () = self.dialler.closing.cancelled() => return HAND_BACK,
            };
            if sighting == seen {
                // Nothing new of the Job: somebody woke us, since the log has changed.
                return self.read().await;
            }
            seen = sighting.clone();
            match self.facts(sighting).await {
                Ok(next) => facts = next,
                Err(error) => return self.handle(error).await,
            }
        }
    }

    /// Appends the difference; true when there is nothing more to follow for this decision.
    async fn catch_up(&mut self, facts: &Facts) -> bool {
        let Some(last) = self.last.as_ref().map(|last| last.event.clone()) else { return true };
        let changes = job_watch::difference(&last, facts, |outcome| self.redials(outcome));
        for change in changes {
            let expected = change.status();
            self.record(change).await;
            let is_recorded = self.last.as_ref().is_some_and(|last| last.event.status == expected);
            if !is_recorded {
                return true;
            }
        }
        self.last.as_ref().is_none_or(|last| last.event.is_final || !last.event.status.is_active())
    }

    fn after_catching_up(&self, facts: &Facts) -> Next {
        if let Some(last) = &self.last
            && !last.event.status.is_active()
        {
            fail::fail_point!("after-end", |_| HAND_BACK);
            let is_over = !matches!(facts, Facts::Waiting | Facts::Running { .. });
            self.dialler.let_go(self.job(), is_over, last.event.status);
        }
        Next::Decide
    }

    async fn facts(&self, sighting: Sighting) -> Result<Facts, RunnerError> {
        let runner = self.dialler.runner.as_ref();
        match sighting {
            Sighting::Present(job) => job_watch::facts_of(runner, &job).await,
            Sighting::Removed(job) => Ok(removed(&job)),
            Sighting::Unknown => Ok(Facts::Waiting),
            Sighting::Missing => job_watch::facts(runner, &self.job()).await,
        }
    }

    /// Records when the next attempt is due, or that it would be too late.
    pub(super) async fn redial(&mut self) -> Next {
        let change = redial::after_failure(&self.call.spec, &self.job(), self.attempt(), now());
        self.record(change).await
    }

    fn redials(&self, outcome: Outcome) -> bool {
        redial::is_redialled(&self.call.spec, self.attempt(), outcome)
    }
}

/// A Job that ended and was removed before its end could be read is known by how Kubernetes called it.
fn removed(job: &ObservedJob) -> Facts {
    match job.phase {
        Phase::Finished { succeeded } => Facts::Ended(Ending {
            succeeded,
            exit_code: None,
            message: None,
            reason: Some("the Job was removed before its end could be read".to_owned()),
            started_at: None,
            completed_at: now(),
        }),
        _ => Facts::Gone,
    }
}
