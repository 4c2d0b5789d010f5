//! The steps of a message's life, each with a name of the field's.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{
    Dialler, Origin, after,
    decide::{Asked, Step, decide},
};
use crate::{
    call::{Call, Change, Outcome, StatusEvent, status::Ended},
    job::{Ending, ObservedJob, Phase, build::build},
    log::{AppendError, Recorded, now},
    queue::{
        Delivery,
        intake::{Room, Settlement},
        submit::Labels,
    },
    retry::{self, Retry},
    runner::StartError,
    tracker::{self, Facts, Follower, Sighting},
};

/// How long another cluster's attempt is left alone before it is looked at again.
const ELSEWHERE_DELAY: Duration = Duration::from_secs(15);

/// A message that asks for a call, on its way to a settlement.
pub(super) struct Life<'a> {
    dialler: &'a Dialler,
    call: Call,
    asked: Asked,
    delivery: Delivery,
    origin: Origin,
    last: Option<Recorded>,
    patience: Retry,
    has_turn: bool,
    room: Option<Room>,
}

/// What follows a step.
enum Next {
    Decide,
    Settle(Settlement),
}

const DONE: Next = Next::Settle(Settlement::Done);
const HAND_BACK: Next = Next::Settle(Settlement::GiveBack(None));

impl<'a> Life<'a> {
    pub(super) fn new(dialler: &'a Dialler, call: Call, asked: Asked, delivery: Delivery, room: Room) -> Self {
        let origin = Origin::from(&delivery);
        let patience = Retry::new(format!("start {}", call.name.job(asked.attempt)));
        Self { dialler, call, asked, delivery, origin, last: None, patience, has_turn: false, room: Some(room) }
    }

    /// Step by step until the message is settled.
    pub(super) async fn run(mut self) -> Settlement {
        self.read().await;
        loop {
            let last = self.last.as_ref().map(|last| &last.event);
            let step = decide(last, &self.asked, &self.dialler.cluster, now());
            tracing::debug!(?step, "next");
            match self.take(step).await {
                Next::Decide if self.dialler.closing.is_cancelled() => return Settlement::GiveBack(None),
                Next::Decide => {}
                Next::Settle(settlement) => return settlement,
            }
        }
    }

    async fn take(&mut self, step: Step) -> Next {
        match step {
            Step::RecordQueued => self.record(Change::Queued).await,
            Step::Postpone(due_at) => self.record(Change::Scheduled { due_at }).await,
            Step::Schedule { attempt, due } => self.schedule(attempt, due).await,
            Step::Expire => self.record(Change::Expired).await,
            Step::Claim(attempt) => self.claim(attempt).await,
            Step::Start => Box::pin(self.start()).await,
            Step::Watch => Box::pin(self.watch()).await,
            Step::Stop => Box::pin(self.stop()).await,
            Step::Redial => self.redial().await,
            Step::Wait(due) => Next::Settle(Settlement::GiveBack(Some(until(due)))),
            Step::GiveBack => self.give_back().await,
            Step::Done => DONE,
            Step::Conflict => self.conflict().await,
        }
    }

    async fn read(&mut self) {
        let (log, name) = (&self.dialler.log, &self.call.name);
        self.last = retry::forever("read the status log", || log.last(name)).await;
    }

    /// Appends a change after what is known; when somebody else was first, or the answer got lost, the log is read again.
    async fn record(&mut self, change: Change) -> Next {
        let event = match self.event(change) {
            Ok(event) => event,
            Err(illegal) => {
                tracing::error!(%illegal, "a step that does not exist was decided on; reading the log again");
                self.pause(Duration::from_secs(1)).await;
                self.read().await;
                return Next::Decide;
            }
        };
        match self.dialler.log.append(event, after(self.last.as_ref())).await {
            Ok(recorded) => self.last = Some(recorded),
            Err(AppendError::Stale) => self.read().await,
            Err(AppendError::Away(away)) => {
                tracing::warn!(%away, "an append got no answer, reading the log again");
                self.read().await;
            }
        }
        Next::Decide
    }

    fn event(&self, change: Change) -> Result<StatusEvent, crate::call::status::IllegalStep> {
        match &self.last {
            Some(last) => last.event.next(change, now()),
            None => {
                let namespace = &self.dialler.defaults.namespace;
                StatusEvent::first(&self.call, namespace, self.origin.queued_at, change, now())
            }
        }
    }

    /// Claims the attempt, at its turn. While it waited for that, the call may have been cancelled or have expired: so it is
    /// decided on again.
    async fn claim(&mut self, attempt: u32) -> Next {
        if let Some(pace) = &self.dialler.pace
            && !std::mem::take(&mut self.has_turn)
        {
            tokio::select! {
                turn = retry::forever("reserve a turn", || pace.turn()) => turn,
                () = self.dialler.closing.cancelled() => return HAND_BACK,
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
    async fn start(&mut self) -> Next {
        let attempt = self.attempt();
        let order = build(&self.call, attempt, &self.dialler.defaults);
        let mut follower = self.dialler.sightings.follow(order.name());
        let result = {
            let Ok(_permit) = self.dialler.limits.starts.acquire().await else { return HAND_BACK };
            self.dialler.runner.start(&order).await
        };
        match result {
            Ok(()) => {
                fail::fail_point!("after-start", |_| HAND_BACK);
                self.patience.worked();
                match self.facts(follower.first().clone()).await {
                    Ok(facts) => self.follow(&mut follower, facts).await,
                    Err(error) => self.wait_after(error).await,
                }
            }
            Err(StartError::Later(error)) => {
                let wait = error.retry_after.unwrap_or_default().max(self.patience.failed(&error));
                self.pause(wait).await;
                self.read().await;
                Next::Decide
            }
            Err(refused) => self.record(Change::Rejected { reason: refused.to_string() }).await,
        }
    }

    /// Follows a Job that was started before this delivery.
    async fn watch(&mut self) -> Next {
        let job = self.job();
        let mut follower = self.dialler.sightings.follow(&job);
        match tracker::facts(self.dialler.runner.as_ref(), &job).await {
            Ok(facts) => self.follow(&mut follower, facts).await,
            Err(error) => self.wait_after(error).await,
        }
    }

    /// Stops the Job of a call that is to be cancelled and follows it to its end.
    async fn stop(&mut self) -> Next {
        let job = self.job();
        match self.dialler.runner.stop(&job).await {
            Ok(()) => self.watch().await,
            Err(error) => self.wait_after(error).await,
        }
    }

    /// Appends what the Job shows until the attempt is over, the log was changed by somebody else, or the process is to end.
    async fn follow(&mut self, follower: &mut Follower, facts: Facts) -> Next {
        self.room = None;
        let (mut facts, mut seen) = (facts, follower.first().clone());
        loop {
            if self.catch_up(&facts).await {
                return self.after_catching_up();
            }
            let sighting = tokio::select! {
                sighting = follower.next() => sighting,
                () = self.dialler.closing.cancelled() => return HAND_BACK,
            };
            if sighting == seen {
                // Nothing new of the Job: somebody woke us, since the log has changed.
                self.read().await;
                return Next::Decide;
            }
            seen = sighting.clone();
            match self.facts(sighting).await {
                Ok(next) => facts = next,
                Err(error) => return self.wait_after(error).await,
            }
        }
    }

    /// Appends the difference; true when there is nothing more to follow for this decision.
    async fn catch_up(&mut self, facts: &Facts) -> bool {
        let Some(last) = self.last.as_ref().map(|last| last.event.clone()) else { return true };
        let changes = tracker::difference(&last, facts, |outcome| self.redials(outcome));
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

    fn after_catching_up(&self) -> Next {
        if let Some(last) = &self.last
            && !last.event.status.is_active()
            && let Some(job) = &last.event.job
        {
            fail::fail_point!("after-end", |_| HAND_BACK);
            self.dialler.release(job.clone());
        }
        Next::Decide
    }

    async fn facts(&self, sighting: Sighting) -> Result<Facts, crate::runner::RunnerError> {
        let runner = self.dialler.runner.as_ref();
        match sighting {
            Sighting::Present(job) => tracker::facts_of(runner, &job).await,
            Sighting::Removed(job) => Ok(removed(&job)),
            Sighting::Unknown => Ok(Facts::Waiting),
            Sighting::Missing => tracker::facts(runner, &self.job()).await,
        }
    }

    /// Records when the next attempt is due, or that it would be too late.
    async fn redial(&mut self) -> Next {
        let attempt = self.attempt();
        let delay = self.call.spec.retry_delay_seconds(attempt);
        let due_at = now() + SignedDuration::from_millis(jittered(delay, &self.job()));
        match self.asked.not_after {
            Some(end) if end <= due_at => self.record(Change::Expired).await,
            _ => self.record(Change::Scheduled { due_at }).await,
        }
    }

    /// Another cluster has the call. Only when that one was not heard of for long is it given up; it is never dialled again.
    async fn give_back(&mut self) -> Next {
        let Some(last) = self.last.as_ref().map(|last| last.event.clone()) else { return Next::Decide };
        let cluster = last.cluster.unwrap_or_default();
        match self.dialler.presence.is_given_up(&cluster, last.time).await {
            Ok(true) => self.record(Change::Ended(orphaned(&cluster))).await,
            Ok(false) => Next::Settle(Settlement::GiveBack(Some(ELSEWHERE_DELAY))),
            Err(away) => {
                let wait = self.patience.failed(away);
                self.pause(wait).await;
                Next::Decide
            }
        }
    }

    async fn schedule(&mut self, attempt: u32, due: Timestamp) -> Next {
        let labels = Labels { id: &self.call.id, attempt, queued_at: self.origin.queued_at };
        let (submitter, name) = (&self.dialler.submitter, &self.call.name);
        let body = &self.origin.body;
        retry::forever("schedule an attempt", || submitter.schedule(name, labels, due, body.clone())).await;
        DONE
    }

    /// The same id, another request: the first call is untouched, this message is put aside.
    async fn conflict(&mut self) -> Next {
        let reason = format!("id `{}` was used for another request before; the first call is untouched", self.call.id);
        tracing::warn!(reason, "a message becomes a dead letter");
        let (dead, delivery) = (&self.dialler.dead, &self.delivery);
        retry::forever("put a dead letter aside", || dead.put(delivery, &reason, now())).await;
        DONE
    }

    fn redials(&self, outcome: Outcome) -> bool {
        self.attempt() < self.call.spec.max_attempts() && self.call.spec.redials(outcome)
    }

    fn attempt(&self) -> u32 {
        self.last.as_ref().map_or(self.asked.attempt, |last| last.event.attempt.max(1))
    }

    fn job(&self) -> String {
        self.call.name.job(self.attempt())
    }

    async fn wait_after(&mut self, error: crate::runner::RunnerError) -> Next {
        let wait = error.retry_after.unwrap_or_default().max(self.patience.failed(&error));
        self.pause(wait).await;
        self.read().await;
        Next::Decide
    }

    async fn pause(&self, wait: Duration) {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.dialler.closing.cancelled() => {}
        }
    }
}

fn until(moment: Timestamp) -> Duration {
    Duration::try_from(moment.duration_since(now())).unwrap_or_default()
}

/// Nobody can know how a call of a cluster that is no more has ended.
fn orphaned(cluster: &str) -> Ended {
    Ended {
        outcome: Outcome::Error,
        sip_code: None,
        exit_code: None,
        completed_at: now(),
        reason: Some(format!("cluster {cluster}, which had claimed the call, has not been heard of for too long")),
        message: None,
        redial: false,
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

/// Milliseconds to wait: the delay and up to a tenth more, by the Job's name, so that a batch that failed together does not
/// come back together.
fn jittered(seconds: u32, job: &str) -> i64 {
    let spread = crate::call::Fingerprint::of(job.as_bytes())
        .as_str()
        .bytes()
        .fold(0_u64, |sum, byte| sum * 31 % 1000 + u64::from(byte));
    let milliseconds = u64::from(seconds) * 1000;
    i64::try_from(milliseconds + milliseconds / 10 * (spread % 1000) / 1000).unwrap_or(i64::MAX)
}
