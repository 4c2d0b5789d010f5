//! The processing of one delivery, step by step, and what every step has in common: it begins with what was read of the log, ends
//! with what is recorded there, and treats errors in one way. Steps that are more than one record are below: [`attempt`] has those that
//! dial, [`follow`] what lasts until the call has ended, [`gate`] how its pod comes to run, [`handover`] those that leave it to others.

mod attempt;
mod follow;
mod gate;
mod handover;

use std::time::Duration;

use jiff::Timestamp;

use super::decide::{Asked, Step, decide};
use super::error_policy::{Action, StepError, error_policy};
use super::{Dialler, Origin, after};
use crate::call::{Call, Change, IllegalStep, Status, StatusEvent};
use crate::clock::now;
use crate::policy::{TrunkGroup, Wanted};
use crate::queue::Delivery;
use crate::queue::in_flight::Settlement;
use crate::queue::pull::PrefetchPermit;
use crate::retry::Retry;
use crate::status_log::Recorded;

/// A message that asks for a call, until it is settled.
pub(super) struct Processing<'a> {
    dialler: &'a Dialler,
    call: Call,
    asked: Asked,
    delivery: Delivery,
    origin: Origin,
    last: Option<Recorded>,
    read_at: Timestamp,
    retry: Retry,
    /// When its turn comes on a trunk that has a pace.
    turn: Option<Timestamp>,
    permit: Option<PrefetchPermit>,
    /// When this delivery came.
    began: Timestamp,
    /// What the container waits for, as the cluster says.
    waits_for: Option<String>,
    /// Whether the Job was removed since its container did not start in time.
    is_stopped: bool,
}

/// How long a message that is ahead of the log is handed back for.
const AHEAD_DELAY: Duration = Duration::from_secs(1);

/// What follows a step.
enum Next {
    Decide,
    Settle(Settlement),
}

const DONE: Next = Next::Settle(Settlement::Ack);
const HAND_BACK: Next = Next::Settle(Settlement::Nak(None));

impl<'a> Processing<'a> {
    pub(super) fn new(
        dialler: &'a Dialler,
        call: Call,
        asked: Asked,
        delivery: Delivery,
        permit: PrefetchPermit,
    ) -> Self {
        let origin = Origin::from(&delivery);
        let retry = Retry::new(format!("take the next step of {}", call.name.job(asked.attempt)));
        let permit = Some(permit);
        Self {
            dialler,
            call,
            asked,
            delivery,
            origin,
            last: None,
            read_at: now(),
            retry,
            turn: None,
            permit,
            began: now(),
            waits_for: None,
            is_stopped: false,
        }
    }

    /// Step by step until the message is settled.
    pub(super) async fn run(&mut self) -> Settlement {
        if let Next::Settle(settlement) = Box::pin(self.read()).await {
            return settlement;
        }
        loop {
            let last = self.last.as_ref().map(|last| &last.event);
            let step = decide(last, &self.asked, &self.dialler.cluster, now());
            tracing::debug!(?step, "next");
            match self.perform(step).await {
                Next::Decide if self.dialler.closing.is_cancelled() => return Settlement::Nak(None),
                Next::Decide => {}
                Next::Settle(settlement) => return settlement,
            }
        }
    }

    /// Every step is boxed, so that a call in progress takes no more than the one that follows it.
    async fn perform(&mut self, step: Step) -> Next {
        match step {
            Step::RecordQueued => Box::pin(self.record(Change::Queued)).await,
            Step::Schedule { attempt, due } => Box::pin(self.schedule(attempt, due)).await,
            Step::Expire => Box::pin(self.record(Change::Expired)).await,
            Step::Claim(attempt) => Box::pin(self.claim(attempt)).await,
            Step::Start => Box::pin(self.start()).await,
            Step::Watch => Box::pin(self.watch()).await,
            Step::Stop => Box::pin(self.stop()).await,
            Step::Redial => Box::pin(self.redial()).await,
            Step::HandBack => Next::Settle(Settlement::Nak(Some(AHEAD_DELAY))),
            Step::Elsewhere => Box::pin(self.elsewhere()).await,
            Step::Done => Box::pin(self.done()).await,
            Step::Conflict => Box::pin(self.conflict()).await,
            Step::Implausible => Box::pin(self.implausible()).await,
        }
    }

    /// Reads what the log says of the call, however long that takes.
    async fn read(&mut self) -> Next {
        loop {
            let error = match self.dialler.log.last(&self.call.name).await {
                Ok(last) => {
                    (self.last, self.read_at) = (last, now());
                    return Next::Decide;
                }
                Err(error) => error.into(),
            };
            match error_policy(&error) {
                Action::PutAside(reason) => return Box::pin(self.put_aside(&reason)).await,
                Action::Retry { reason, after } if !self.dialler.closing.is_cancelled() => {
                    self.wait(reason, after).await;
                }
                _ => return HAND_BACK,
            }
        }
    }

    /// Does with an error what the [`error_policy`] says, and decides again on what the log says then.
    async fn handle(&mut self, error: impl Into<StepError>) -> Next {
        match error_policy(&error.into()) {
            Action::ReadAgain => self.read().await,
            Action::Retry { reason, after } => {
                self.wait(reason, after).await;
                self.read().await
            }
            // Boxed, since recording it may fail in turn.
            Action::Reject(reason) => Box::pin(self.record(Change::Rejected { reason })).await,
            Action::PutAside(reason) => Box::pin(self.put_aside(&reason)).await,
        }
    }

    async fn wait(&mut self, reason: String, after: Option<Duration>) {
        let wait = after.unwrap_or_default().max(self.retry.failed(reason));
        self.pause(wait).await;
    }

    /// Appends a change after what is known.
    async fn record(&mut self, change: Change) -> Next {
        let event = match self.event(change) {
            Ok(event) => event,
            Err(illegal) => {
                tracing::error!(%illegal, "an illegal step was decided on; reading the log again");
                self.pause(Duration::from_secs(1)).await;
                return self.read().await;
            }
        };
        match self.dialler.log.append(event, after(self.last.as_ref())).await {
            Ok(recorded) => {
                (self.last, self.read_at) = (Some(recorded), now());
                self.retry.worked();
                Next::Decide
            }
            Err(error) => self.handle(error).await,
        }
    }

    fn event(&self, change: Change) -> Result<StatusEvent, IllegalStep> {
        let event = match &self.last {
            Some(last) => last.event.next(change, now()),
            None => {
                let namespace = &self.dialler.defaults.namespace;
                StatusEvent::first(&self.call, namespace, self.origin.queued_at, change, now())
            }
        }?;
        Ok(match event.status {
            Status::Queued | Status::Scheduled => event.for_trunks(self.group().names()),
            _ => event,
        })
    }

    /// The trunks that may dial the next attempt.
    fn group(&self) -> TrunkGroup {
        let last = self.last.as_ref().map(|last| &last.event);
        self.dialler.trunks.now().group(&Wanted::of(&self.call.spec, last))
    }

    /// The Job of the attempt that the message is for.
    fn job(&self) -> String {
        self.call.name.job(self.asked.attempt)
    }

    async fn pause(&self, wait: Duration) {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.dialler.closing.cancelled() => {}
        }
    }
}
