//! The steps of a message's life, each with a name of the field's.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{
    Dialler, Origin, after,
    decide::{Asked, Step, decide},
    fate::{Fate, Trouble, fate},
    redial,
};
use crate::{
    call::{Call, Change, Ended, IllegalStep, Outcome, StatusEvent},
    job::{Ending, ObservedJob, Phase, build::build},
    log::{Recorded, now},
    queue::{
        Delivery,
        intake::{Room, Settlement},
        submit::Labels,
    },
    retry::{self, Retry},
    runner::RunnerError,
    tracker::{self, Facts, Follower, Sighting},
};

/// How long another cluster's attempt is left alone before it is looked at again.
const ELSEWHERE_DELAY: Duration = Duration::from_secs(15);
/// How long what was read of the log is good enough to make a Job by. By the wall clock, which goes on while a machine is
/// suspended.
const FRESH: SignedDuration = SignedDuration::from_secs(1);

/// A message that asks for a call, on its way to a settlement.
pub(super) struct Life<'a> {
    dialler: &'a Dialler,
    call: Call,
    asked: Asked,
    delivery: Delivery,
    origin: Origin,
    last: Option<Recorded>,
    read_at: Timestamp,
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
        let patience = Retry::new(format!("take the next step of {}", call.name.job(asked.attempt)));
        let room = Some(room);
        Self { dialler, call, asked, delivery, origin, last: None, read_at: now(), patience, has_turn: false, room }
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
        (self.last, self.read_at) =
            retry::forever("read the status log", || async { log.last(name).await.map(|last| (last, now())) }).await;
    }

    /// Does with an error what [`fate`] says, and decides again on what the log says then.
    async fn meet(&mut self, trouble: impl Into<Trouble>) -> Next {
        match fate(trouble.into()) {
            Fate::ReadAgain => self.read().await,
            Fate::TryAgain { words, after } => {
                let wait = after.unwrap_or_default().max(self.patience.failed(words));
                self.pause(wait).await;
                self.read().await;
            }
            // Boxed, since to record it may meet with an error in turn.
            Fate::Reject(reason) => return Box::pin(self.record(Change::Rejected { reason })).await,
        }
        Next::Decide
    }

    /// Appends a change after what is known.
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
            Ok(recorded) => {
                (self.last, self.read_at) = (Some(recorded), now());
                self.patience.worked();
                Next::Decide
            }
            Err(error) => self.meet(error).await,
        }
    }

    fn event(&self, change: Change) -> Result<StatusEvent, IllegalStep> {
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
        let order = build(&self.call, self.attempt(), &self.dialler.defaults);
        let mut follower = self.dialler.sightings.follow(order.name());
        let result = {
            let Ok(_permit) = self.dialler.limits.starts.acquire().await else { return HAND_BACK };
            if self.has_changed_meanwhile().await {
                return Next::Decide;
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
                self.patience.worked();
                match self.facts(follower.first().clone()).await {
                    Ok(facts) => self.follow(&mut follower, facts).await,
                    Err(error) => self.meet(error).await,
                }
            }
            Err(error) => self.meet(error).await,
        }
    }

    /// Whether the log has changed since it was decided to start: whoever had to wait for long, or was suspended, may be the
    /// last to learn that the call is over and its Job gone.
    async fn has_changed_meanwhile(&mut self) -> bool {
        if now().duration_since(self.read_at).abs() < FRESH {
            return false;
        }
        let decided_on = after(self.last.as_ref());
        self.read().await;
        after(self.last.as_ref()) != decided_on
    }

    fn is_too_late(&self) -> bool {
        self.asked.not_after.is_some_and(|end| end <= now())
    }

    /// `not_after` passed while the Job could not be made; unless it was made, and only the answer got lost.
    async fn expire_unless_started(&mut self, follower: &mut Follower) -> Next {
        match tracker::facts(self.dialler.runner.as_ref(), &self.job()).await {
            Ok(Facts::Gone) => self.record(Change::Expired).await,
            Ok(facts) => self.follow(follower, facts).await,
            Err(error) => self.meet(error).await,
        }
    }

    /// Follows a Job that was started before this delivery.
    async fn watch(&mut self) -> Next {
        let job = self.job();
        let mut follower = self.dialler.sightings.follow(&job);
        match tracker::facts(self.dialler.runner.as_ref(), &job).await {
            Ok(facts) => self.follow(&mut follower, facts).await,
            Err(error) => self.meet(error).await,
        }
    }

    /// Stops the Job of a call that is to be cancelled and follows it to its end.
    async fn stop(&mut self) -> Next {
        let job = self.job();
        match self.dialler.runner.stop(&job).await {
            Ok(()) => self.watch().await,
            Err(error) => self.meet(error).await,
        }
    }

    /// Appends what the Job shows until the attempt is over, the log was changed by somebody else, or the process is to end.
    async fn follow(&mut self, follower: &mut Follower, facts: Facts) -> Next {
        self.room = None;
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
                self.read().await;
                return Next::Decide;
            }
            seen = sighting.clone();
            match self.facts(sighting).await {
                Ok(next) => facts = next,
                Err(error) => return self.meet(error).await,
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
            Sighting::Present(job) => tracker::facts_of(runner, &job).await,
            Sighting::Removed(job) => Ok(removed(&job)),
            Sighting::Unknown => Ok(Facts::Waiting),
            Sighting::Missing => tracker::facts(runner, &self.job()).await,
        }
    }

    /// Records when the next attempt is due, or that it would be too late.
    async fn redial(&mut self) -> Next {
        let change = redial::after_failure(&self.call.spec, &self.job(), self.attempt(), now());
        self.record(change).await
    }

    /// Another cluster has the call. Only when that one was not heard of for long is it given up; it is never dialled again.
    async fn give_back(&mut self) -> Next {
        let Some(last) = self.last.as_ref().map(|last| last.event.clone()) else { return Next::Decide };
        let cluster = last.cluster.unwrap_or_default();
        match self.dialler.presence.is_given_up(&cluster, last.time).await {
            Ok(true) => self.record(Change::Ended(orphaned(&cluster))).await,
            Ok(false) => Next::Settle(Settlement::GiveBack(Some(ELSEWHERE_DELAY))),
            Err(away) => self.meet(away).await,
        }
    }

    async fn schedule(&mut self, attempt: u32, due: Timestamp) -> Next {
        let labels = Labels { id: &self.call.id, attempt, queued_at: self.origin.queued_at };
        let body = self.origin.body.clone();
        match self.dialler.submitter.schedule(&self.call.name, labels, due, body).await {
            Ok(()) => DONE,
            Err(error) => self.meet(error).await,
        }
    }

    /// The same id, another request: the first call is untouched, this message is put aside.
    async fn conflict(&mut self) -> Next {
        let reason = format!("id `{}` was used for another request before; the first call is untouched", self.call.id);
        tracing::warn!(reason, "a message becomes a dead letter");
        match self.dialler.dead.put(&self.delivery, &reason, now()).await {
            Ok(()) => DONE,
            Err(away) => self.meet(away).await,
        }
    }

    fn redials(&self, outcome: Outcome) -> bool {
        redial::is_redialled(&self.call.spec, self.attempt(), outcome)
    }

    fn attempt(&self) -> u32 {
        self.last.as_ref().map_or(self.asked.attempt, |last| last.event.attempt.max(1))
    }

    fn job(&self) -> String {
        self.call.name.job(self.attempt())
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
