//! The steps of an attempt that is ours: it is claimed, its Job is made and followed to its end, and one that failed may be
//! redialled. Apart, since only here a step lasts as long as a call does, and much may happen beside it meanwhile.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{HAND_BACK, Next, Processing};
use crate::{
    call::{Change, Outcome},
    clock::now,
    dialler::{after, redial},
    job::{
        Observed,
        advance::{Moments, advance, lost},
        manifest::{build, job_deadline},
    },
    job_watch::{Follower, News, Report},
    reconcile::has_ended,
    retry,
    runner::RunnerError,
};

/// How long what was read of the log is good enough to make a Job by. By the wall clock, which goes on while a machine is
/// suspended.
const FRESH: SignedDuration = SignedDuration::from_secs(1);
/// How often whoever follows a Job reads the log again, should a wake-up have been lost.
const READ_AGAIN_EVERY: Duration = Duration::from_secs(5);
/// How much longer an attempt may take than its Job, so that the cluster's own word arrives first.
const GRACE: SignedDuration = SignedDuration::from_secs(15);
/// How long the runner is asked for an attempt that is past its time, before its end counts as unknown.
const LAST_TRY: SignedDuration = SignedDuration::from_secs(30);

impl Processing<'_> {
    /// Claims the attempt, at its turn. While it waited for that, the call may have been cancelled or have expired: so it is
    /// decided on again.
    pub(super) async fn claim(&mut self, attempt: u32) -> Next {
        if let Some(rate_limit) = &self.dialler.rate_limit
            && !std::mem::take(&mut self.has_turn)
        {
            let closing = &self.dialler.closing;
            let turn = tokio::select! {
                turn = retry::until_stopped(closing, "reserve a turn", || rate_limit.turn()) => turn,
                () = closing.cancelled() => None,
            };
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
            ends_by: self.ends_by(),
        };
        let next = self.record(change).await;
        fail::fail_point!("after-claim");
        next
    }

    /// The time to start, the longest conversation and the margin are the Job's own deadline.
    fn ends_by(&self) -> Timestamp {
        let deadline = job_deadline(&self.call.spec, &self.dialler.defaults);
        now().saturating_add(SignedDuration::from_secs(deadline.into()) + GRACE).unwrap_or(Timestamp::MAX)
    }

    pub(super) fn moments(&self) -> Moments {
        let last = self.last.as_ref().map(|last| &last.event);
        last.map_or(Moments { now: now(), start_by: Timestamp::MAX, ends_by: Timestamp::MAX }, |last| {
            Moments::of(last, self.dialler.defaults.start_seconds, now())
        })
    }

    /// Makes the Job and follows it. What can heal is tried again here, in the slot that the call has, while there is time.
    pub(super) async fn start(&mut self) -> Next {
        let order = build(&self.call, self.attempt(), &self.dialler.defaults);
        let mut follower = self.dialler.store.follow(order.name());
        let result = {
            let Ok(_permit) = self.dialler.starts.0.acquire().await else { return HAND_BACK };
            if let Some(next) = self.changed_meanwhile().await {
                return next;
            }
            if self.is_too_late() || self.moments().start_is_late() {
                return self.give_up_unless_started(&mut follower).await;
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

    /// The time to make the Job has passed, or `not_after` has; unless it was made, and only the answer got lost.
    async fn give_up_unless_started(&mut self, follower: &mut Follower) -> Next {
        match self.dialler.runner.find(&self.job()).await {
            Ok(None) if self.is_too_late() => self.record(Change::Expired).await,
            Ok(None) => self.advance_to(&Observed::Gone).await,
            Ok(Some(job)) => self.follow(follower, job.state).await,
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
    async fn fail(&mut self, error: RunnerError) -> Next {
        let moments = self.moments();
        if moments.is_over() && moments.now.duration_since(self.began) >= LAST_TRY {
            let reason = format!("its end was not heard of in time: {error}");
            return self.end_unknown(&reason).await;
        }
        self.handle(error).await
    }

    async fn follow_from(&mut self, follower: &mut Follower, report: Report) -> Next {
        match self.confirmed(report).await {
            Ok(observed) => self.follow(follower, observed).await,
            Err(error) => self.fail(error).await,
        }
    }

    /// Appends what the Job shows until the attempt is over, the log was changed by somebody else, or the process is to end.
    async fn follow(&mut self, follower: &mut Follower, observed: Observed) -> Next {
        self.permit = None;
        let mut observed = observed;
        loop {
            let next = self.advance_to(&observed).await;
            if !matches!(next, Next::Decide) || !self.is_active() {
                return next;
            }
            if let Err(error) = self.stop_what_does_not_start(&observed).await {
                return self.fail(error).await;
            }
            let before = after(self.last.as_ref());
            let news = tokio::select! {
                news = follower.next() => news,
                () = tokio::time::sleep(self.until_next_look()) => News::Woken,
                () = self.dialler.closing.cancelled() => return HAND_BACK,
            };
            observed = match news {
                News::Report(report) => match self.confirmed(report).await {
                    Ok(observed) => observed,
                    Err(error) => return self.fail(error).await,
                },
                News::Woken => match self.read().await {
                    Next::Decide if after(self.last.as_ref()) == before => observed,
                    next => return next,
                },
            };
        }
    }

    fn is_active(&self) -> bool {
        self.last.as_ref().is_some_and(|last| !last.event.is_final && last.event.status.is_active())
    }

    /// Until the log is read again, or the attempt's time to start or to end is over.
    fn until_next_look(&self) -> Duration {
        let Moments { now, start_by, ends_by } = self.moments();
        let ahead = [start_by, ends_by].into_iter().filter(|moment| *moment > now);
        let next = ahead.min().and_then(|moment| Duration::try_from(moment.duration_since(now)).ok());
        next.unwrap_or(READ_AGAIN_EVERY).min(READ_AGAIN_EVERY)
    }

    /// A Job whose container had its time to start is removed; once it is gone, the attempt has ended.
    async fn stop_what_does_not_start(&mut self, observed: &Observed) -> Result<(), RunnerError> {
        let Observed::Waiting { reason } = observed else { return Ok(()) };
        if self.waits_for.is_none() && reason.is_some() {
            self.waits_for.clone_from(reason);
        }
        if self.moments().start_is_late() && !std::mem::replace(&mut self.is_stopped, true) {
            tracing::warn!(reason = reason.as_deref(), "a container does not start in time; its Job is removed");
            self.dialler.runner.stop(&self.job()).await?;
        }
        Ok(())
    }

    /// Appends the difference between what is known of the Job and the log; lets the Job go once its attempt is over.
    async fn advance_to(&mut self, observed: &Observed) -> Next {
        let Some(last) = self.last.as_ref().map(|last| last.event.clone()) else { return Next::Decide };
        let changes = advance(&last, observed, self.moments(), |outcome| self.redials(outcome));
        for change in changes {
            let expected = change.status();
            let next = self.record(self.explained(change)).await;
            let is_recorded = self.last.as_ref().is_some_and(|last| last.event.status == expected);
            if !is_recorded || !matches!(next, Next::Decide) {
                return next;
            }
        }
        self.let_go_if_over(observed)
    }

    /// An attempt that did not start says what it waited for, where the cluster said so.
    fn explained(&self, change: Change) -> Change {
        match (change, &self.waits_for) {
            (Change::Ended(mut ended), Some(waited)) if ended.outcome == Outcome::NotStarted => {
                let reason = ended.reason.as_deref().unwrap_or_default();
                if !reason.contains(waited.as_str()) {
                    ended.reason = Some(if reason.is_empty() { waited.clone() } else { format!("{reason}: {waited}") });
                }
                Change::Ended(ended)
            }
            (change, _) => change,
        }
    }

    fn let_go_if_over(&self, observed: &Observed) -> Next {
        if !self.is_active() {
            fail::fail_point!("after-end", |_| HAND_BACK);
            self.dialler.reconciler.let_go(self.job(), has_ended(observed));
        }
        Next::Decide
    }

    /// What a report says, asked anew where it says nothing, or not how the attempt ended.
    async fn confirmed(&self, report: Report) -> Result<Observed, RunnerError> {
        match report {
            Report::State(Observed::Ended(ending)) if ending.exit_code.is_none() => {
                let found = self.dialler.runner.find(&self.job()).await?;
                let ended = found.filter(|job| job.has_ended()).map(|job| job.state);
                Ok(ended.unwrap_or(Observed::Ended(ending)))
            }
            Report::State(observed) => Ok(observed),
            Report::Unknown => Ok(Observed::Waiting { reason: None }),
            Report::Missing => Ok(self.dialler.runner.find(&self.job()).await?.map_or(Observed::Gone, |job| job.state)),
        }
    }

    /// Records when the next attempt is due, or that it would be too late.
    pub(super) async fn redial(&mut self) -> Next {
        let Some(last) = &self.last else { return Next::Decide };
        let change = redial::after_failure(&self.call.spec, &last.event, now());
        self.record(change).await
    }

    /// Records that nobody knows how the attempt ended.
    pub(super) async fn end_unknown(&mut self, reason: &str) -> Next {
        let change = lost(Outcome::Unknown, self.moments(), reason, |outcome| self.redials(outcome));
        self.record(change).await
    }

    fn redials(&self, outcome: Outcome) -> bool {
        let Some(last) = &self.last else { return false };
        redial::is_redialled(&self.call.spec, &last.event, outcome, self.dialler.fault_patience, now())
    }
}
