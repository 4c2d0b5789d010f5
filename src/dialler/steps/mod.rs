//! A message's life, step by step, and what every step has in common: it begins with what was read of the log, ends with what
//! is recorded there, and meets errors in one way. Steps that are more than one record are below: [`attempt`] has those that
//! dial, [`handover`] those that leave it to others.

mod attempt;
mod handover;

use std::time::Duration;

use jiff::Timestamp;

use super::{
    Dialler, Origin, after,
    decide::{Asked, Step, decide},
    fate::{Fate, Trouble, fate},
};
use crate::{
    call::{Call, Change, IllegalStep, StatusEvent},
    log::{Recorded, now},
    queue::{
        Delivery,
        intake::{Room, Settlement},
    },
    retry::{self, Retry},
};

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
