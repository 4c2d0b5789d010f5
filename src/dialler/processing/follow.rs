//! Following a Job to its end. Apart, since only here a step lasts as long as a call does, and much may happen beside it
//! meanwhile.

use std::time::Duration;

use super::{HAND_BACK, Next, Processing};
use crate::{
    call::{Change, Outcome},
    dialler::after,
    job::{
        Observed,
        advance::{Moments, advance},
    },
    job_watch::{Follower, News, Report},
    reconcile::has_ended,
    runner::RunnerError,
};

/// How often whoever follows a Job reads the log again, should a wake-up have been lost.
const READ_AGAIN_EVERY: Duration = Duration::from_secs(5);

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
    pub(super) async fn advance_to(&mut self, observed: &Observed) -> Next {
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
}
