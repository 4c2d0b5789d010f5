//! Following a Job to its end. Apart, since only here a step lasts as long as a call does, and much may happen beside it
//! meanwhile.

use std::ops::ControlFlow;
use std::time::Duration;

use super::{HAND_BACK, Next, Processing};
use crate::call::{Change, Outcome, Status};
use crate::dialler::{after, limits};
use crate::job::Observed;
use crate::job::advance::{Moments, advance, is_recorded};
use crate::job_watch::{Follower, News, Report};
use crate::reconcile::{confirmed, has_ended, with_evidence};
use crate::runner::RunnerError;

/// How often whoever follows a Job reads the log again, should a wake-up have been lost.
const READ_AGAIN_EVERY: Duration = Duration::from_secs(5);

/// How often whoever is held at the gate by a pause looks whether it has ended.
const HELD_AGAIN_EVERY: Duration = Duration::from_secs(1);

/// What became of a Job that was to be removed since it did not start in time.
enum Stopped {
    Now,
    Not(Observed),
    Changed(Next),
}

impl Processing<'_> {
    pub(super) async fn follow_from(&mut self, follower: &mut Follower, report: Report) -> Next {
        match self.confirmed(report).await {
            Ok(observed) => self.follow(follower, observed).await,
            Err(error) => self.fail(error).await,
        }
    }

    /// Appends what the Job shows until the attempt is over, the log was changed by somebody else, or the process is to end.
    pub(super) async fn follow(&mut self, follower: &mut Follower, observed: Observed) -> Next {
        self.permit = None;
        let mut observed = observed;
        loop {
            if let ControlFlow::Break(next) = Box::pin(self.advance_to(&observed)).await {
                return next;
            }
            if let ControlFlow::Break(next) = Box::pin(self.at_the_gate(&observed)).await {
                return next;
            }
            if self.has_not_started_in_time(&observed) {
                match Box::pin(self.stop_unless_started()).await {
                    Stopped::Now => {}
                    Stopped::Not(by_now) => {
                        observed = by_now;
                        continue;
                    }
                    Stopped::Changed(next) => return next,
                }
            }
            let before = after(self.last.as_ref());
            let news = tokio::select! {
                news = follower.next() => news,
                () = tokio::time::sleep(self.until_next_look(&observed)) => News::Woken,
                () = self.dialler.closing.cancelled() => return HAND_BACK,
            };
            observed = match news {
                News::Report(report) => match Box::pin(self.confirmed(report)).await {
                    Ok(observed) => observed,
                    Err(error) => return self.fail(error).await,
                },
                News::Woken => match Box::pin(self.read()).await {
                    Next::Decide if after(self.last.as_ref()) == before => {
                        if let Err(error) = Box::pin(self.stop_again()).await {
                            return self.fail(error).await;
                        }
                        observed
                    }
                    next => return next,
                },
            };
        }
    }

    fn is_active(&self) -> bool {
        self.last.as_ref().is_some_and(|last| !last.event.is_final && last.event.status.is_active())
    }

    /// Until the log is read again, or the attempt's time to start or to end is over.
    fn until_next_look(&self, observed: &Observed) -> Duration {
        if self.is_held_at_the_gate(observed) {
            return HELD_AGAIN_EVERY;
        }
        let Moments { now, start_by, ends_by, .. } = self.moments();
        let ahead = [start_by, ends_by].into_iter().filter(|moment| *moment > now);
        let next = ahead.min().and_then(|moment| Duration::try_from(moment.duration_since(now)).ok());
        next.unwrap_or(READ_AGAIN_EVERY).min(READ_AGAIN_EVERY)
    }

    fn has_not_started_in_time(&mut self, observed: &Observed) -> bool {
        if let Observed::Waiting { reason: Some(reason), .. } = observed {
            self.waits_for.get_or_insert_with(|| reason.clone());
        }
        let last = self.last.as_ref().map(|last| &last.event);
        !self.is_stopped && last.is_some_and(|last| limits::has_not_started_in_time(last, observed, self.moments()))
    }

    /// Removes a Job whose container had its time to start; once it is gone, the attempt has ended. Watch and log may be behind, so
    /// both are asked first whether it has started after all.
    async fn stop_unless_started(&mut self) -> Stopped {
        if let Some(next) = self.changed_meanwhile().await {
            return Stopped::Changed(next);
        }
        match self.confirmed(Report::Missing).await {
            Ok(Observed::Waiting { .. }) => {}
            Ok(by_now) => return Stopped::Not(by_now),
            Err(error) => return Stopped::Changed(self.fail(error).await),
        }
        let reason = self.waits_for.as_deref();
        tracing::warn!(reason, "a container does not start in time; its Job is removed");
        match self.dialler.runner.stop(&self.job()).await {
            Ok(()) => {
                self.is_stopped = true;
                Stopped::Now
            }
            Err(error) => Stopped::Changed(self.fail(error).await),
        }
    }

    /// A request to make the Job that was on its way may have arrived after the one to stop it.
    async fn stop_again(&self) -> Result<(), RunnerError> {
        match &self.last {
            Some(last) if last.event.status == Status::Cancelling => self.dialler.runner.stop(&self.job()).await,
            _ => Ok(()),
        }
    }

    /// Appends the difference between what is known of the Job and the log; lets the Job go once its attempt is over. Goes on only while
    /// the log says what the Job shows: after an error it may be about the next attempt, of which this Job says nothing.
    pub(super) async fn advance_to(&mut self, observed: &Observed) -> ControlFlow<Next> {
        let Some(last) = self.last.as_ref().map(|last| last.event.clone()) else {
            return ControlFlow::Break(Next::Decide);
        };
        let changes = advance(&last, observed, self.moments());
        for change in changes {
            let change = with_evidence(self.explained(change), &last, &self.job(), &*self.dialler.runner).await;
            let expected = change.status();
            let next = self.record(change).await;
            let is_recorded = self.last.as_ref().is_some_and(|now| is_recorded(&now.event, last.attempt, expected));
            if !is_recorded || !matches!(next, Next::Decide) {
                return ControlFlow::Break(next);
            }
        }
        if self.is_active() { ControlFlow::Continue(()) } else { ControlFlow::Break(self.let_go(observed)) }
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

    pub(super) fn let_go(&self, observed: &Observed) -> Next {
        fail::fail_point!("after-end", |_| HAND_BACK);
        self.dialler.reconciler.let_go(self.job(), has_ended(observed));
        Next::Decide
    }

    /// What a report says, asked anew where it says nothing, or not how the attempt ended.
    async fn confirmed(&self, report: Report) -> Result<Observed, RunnerError> {
        match report {
            Report::State(observed) => match &self.last {
                Some(last) => confirmed(observed, &self.job(), &last.event, &*self.dialler.runner).await,
                None => Ok(observed),
            },
            Report::Unknown => Ok(Observed::waiting()),
            Report::Missing => Ok(self.dialler.runner.find(&self.job()).await?.map_or(Observed::Gone, |job| job.state)),
        }
    }
}
