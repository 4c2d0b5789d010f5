//! The steps that hand a message over: to the server's timer, to the cluster that has claimed its call, or to the dead letters.
//! Apart from [`super::attempt`], since no Job of ours comes of them.

use std::time::Duration;

use jiff::Timestamp;

use super::{DONE, HAND_BACK, Next, Processing};
use crate::call::Call;
use crate::clock::now;
use crate::queue::in_flight::Settlement;
use crate::queue::inbox::Labels;
use crate::retry;

/// How long a message stays in the window that cannot be given back yet.
const HELD_DELAY: Duration = Duration::from_secs(1);
/// How long another cluster's attempt is left alone before it is looked at again.
const ELSEWHERE_DELAY: Duration = Duration::from_secs(15);

impl Processing<'_> {
    /// Another cluster has the attempt. Past its time nobody waits for that one any more: it may be gone.
    pub(super) async fn elsewhere(&mut self) -> Next {
        let cluster = self.last.as_ref().and_then(|last| last.event.cluster.clone()).unwrap_or_default();
        if self.moments().is_over() {
            return self
                .end_unknown(&format!("cluster {cluster}, which had claimed it, was not heard of in time"))
                .await;
        }
        Next::Settle(Settlement::Nak(Some(ELSEWHERE_DELAY)))
    }

    pub(super) async fn schedule(&mut self, attempt: u32, due: Timestamp) -> Next {
        let body = self.origin.body.clone();
        match self.dialler.timers.set(&self.call.name, self.labels(attempt), due, body).await {
            Ok(()) => DONE,
            Err(error) => self.handle(error).await,
        }
    }

    fn labels(&self, attempt: u32) -> Labels<'_> {
        let Call { id, traceparent, spec, .. } = &self.call;
        let (queued_at, traceparent) = (self.origin.queued_at, traceparent.as_ref());
        Labels { id, attempt, queued_at, priority: spec.priority, traceparent }
    }

    /// The call may not be begun now, or not on this trunk: it waits in the queue until it may, on whatever trunk then may dial it.
    pub(super) async fn give_back(&mut self, why: &str) -> Next {
        tracing::debug!(trunk = self.asked.trunk, why, "the call waits in the queue again");
        // Its place among the first calls of a trunk in doubt is another one's.
        if let Err(error) = self.tell_breaker().await {
            return self.handle(error).await;
        }
        let (attempt, message) = (self.asked.attempt, self.delivery.sequence);
        let (headers, body) = (self.labels(attempt).headers(), self.origin.body.clone());
        let waiting = &self.dialler.waiting;
        match waiting.take_back(&self.call, attempt, &self.group(), message, headers, body).await {
            Ok(true) => {
                fail::fail_point!("given-back");
                DONE
            }
            Ok(false) => Next::Settle(Settlement::Nak(Some(HELD_DELAY))),
            Err(error) => self.handle(error).await,
        }
    }

    /// Whose call has ended needs no timer for its `not_after` any more; should it stay, it does nothing.
    pub(super) async fn done(&mut self) -> Next {
        if let Err(error) = self.tell_breaker().await {
            return self.handle(error).await;
        }
        let is_final = self.last.as_ref().is_some_and(|last| last.event.is_final);
        if is_final
            && self.asked.not_after.is_some_and(|end| end > now())
            && let Err(error) = self.dialler.timers.remove_expiry(&self.call.name).await
        {
            tracing::debug!(error = error.chain(), "a timer of a call that has ended stays");
        }
        DONE
    }

    /// The same id, another request: the first call is untouched, this message is put aside.
    pub(super) async fn conflict(&mut self) -> Next {
        let id = &self.call.id;
        let reason = format!("id `{id}` was used for another request before; the first call is untouched");
        self.put_aside(&reason).await
    }

    /// The message asks for an attempt that the log knows nothing of, however often it is read.
    pub(super) async fn implausible(&mut self) -> Next {
        let (asked, is) = (self.asked.attempt, self.last.as_ref().map_or(0, |last| last.event.attempt));
        self.put_aside(&format!("it asks for attempt {asked} of a call that is at attempt {is}")).await
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
