//! The steps that hand a message over: to the server's timer, to the cluster that has claimed its call, or to the dead letters.
//! Apart from [`super::attempt`], since no Job of ours comes of them.

use std::time::Duration;

use jiff::Timestamp;

use super::{DONE, HAND_BACK, Next, Processing};
use crate::{
    call::{Call, Change, Ended, Outcome},
    clock::now,
    queue::{in_flight::Settlement, inbox::Labels},
    retry,
};

/// How long another cluster's attempt is left alone before it is looked at again.
const ELSEWHERE_DELAY: Duration = Duration::from_secs(15);

impl Processing<'_> {
    /// Another cluster has the call. Only when that one was not heard of for long is it given up; it is never dialled again.
    pub(super) async fn give_back(&mut self) -> Next {
        let Some(last) = self.last.as_ref().map(|last| last.event.clone()) else { return Next::Decide };
        let cluster = last.cluster.unwrap_or_default();
        match self.dialler.heartbeat.is_given_up(&cluster, last.time).await {
            Ok(true) => self.record(Change::Ended(orphaned(&cluster))).await,
            Ok(false) => Next::Settle(Settlement::Nak(Some(ELSEWHERE_DELAY))),
            Err(error) => self.handle(error).await,
        }
    }

    pub(super) async fn schedule(&mut self, attempt: u32, due: Timestamp) -> Next {
        let Call { id, traceparent, .. } = &self.call;
        let labels = Labels { id, attempt, queued_at: self.origin.queued_at, traceparent: traceparent.as_ref() };
        let body = self.origin.body.clone();
        match self.dialler.timers.set(&self.call.name, labels, due, body).await {
            Ok(()) => DONE,
            Err(error) => self.handle(error).await,
        }
    }

    /// The same id, another request: the first call is untouched, this message is put aside.
    pub(super) async fn conflict(&mut self) -> Next {
        let id = &self.call.id;
        let reason = format!("id `{id}` was used for another request before; the first call is untouched");
        self.put_aside(&reason).await
    }

    /// Makes the message a dead letter.
    pub(super) async fn put_aside(&mut self, reason: &str) -> Next {
        tracing::warn!(reason, "a message becomes a dead letter");
        let put = || self.dialler.dead.put(&self.delivery, reason, now());
        match retry::until_stopped(&self.dialler.closing, "put a dead letter aside", put).await {
            Some(()) => DONE,
            None => HAND_BACK,
        }
    }
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
