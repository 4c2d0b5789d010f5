//! Accepting calls: the request into the queue, and the record that it is there.

use bytes::Bytes;

use super::{Api, Error, Parts};
use crate::call::validate::Parsed;
use crate::call::{Call, CallId, Change, Status, StatusEvent, TraceParent};
use crate::clock::{self, now};
use crate::nats::NatsErrorKind;
use crate::queue::inbox::Labels;

/// A call that was accepted durably.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// Its present state.
    pub event: StatusEvent,
    /// False when the same id and request had been accepted before.
    pub fresh: bool,
}

impl Api {
    /// Accepts a call: returns once the queue has it durably. `body` is the request as it came; `idempotency_key` is used as id
    /// when the request has none, `traceparent` is handed on.
    ///
    /// # Errors
    /// [`Error`]; nothing was accepted then (or, when NATS is unavailable, perhaps), and the same request with the same
    /// id may be sent again.
    pub async fn submit(
        &self,
        parsed: Parsed,
        body: Bytes,
        idempotency_key: Option<CallId>,
        traceparent: Option<TraceParent>,
    ) -> Result<Accepted, Error> {
        let parts = self.parts()?;
        let given = parsed.id.or(idempotency_key);
        let is_new = given.is_none();
        let call = Call::new(given.unwrap_or_else(clock::fresh_id), parsed.spec).in_trace(traceparent);
        if is_new {
            parts.accept(&call, body, Unrecorded::Accepted).await
        } else {
            parts.accept_once(&call, body).await
        }
    }
}

/// What it means that the queue has a call whose record is not confirmed.
#[derive(Clone, Copy)]
enum Unrecorded {
    /// It was accepted. Without an id of the client's, sending it again would be another call.
    Accepted,
    /// The client sends it again. A call that is not in the log is missed by a cancel of its batch.
    Retry,
}

impl Parts {
    /// The request first, then the record that it is queued: a refused request leaves nothing behind, and a record that gets
    /// lost is made up for by whoever dials.
    async fn accept(&self, call: &Call, body: Bytes, unrecorded: Unrecorded) -> Result<Accepted, Error> {
        let queued_at = now();
        let labels = Labels { id: &call.id, attempt: 1, queued_at, traceparent: call.traceparent.as_ref() };
        let queued = StatusEvent::first(call, &self.namespace, queued_at, Change::Queued, queued_at)
            .expect("a call may begin with `queued`");
        self.inbox.publish(labels, body).await?;
        match self.log.append(queued.clone(), 0).await {
            Ok(recorded) => Ok(Accepted { event: recorded.event, fresh: true }),
            Err(error) if error.kind() == NatsErrorKind::Stale => {
                let last = self.log.last(&call.name).await?.map(|last| last.event);
                Ok(Accepted { event: unless_conflict(call, last)?.unwrap_or(queued), fresh: true })
            }
            Err(error) if matches!(unrecorded, Unrecorded::Retry) => Err(Error::Unavailable(error)),
            Err(error) => {
                tracing::debug!(error = error.chain(), "a call is in the queue, and its record is not confirmed");
                Ok(Accepted { event: queued, fresh: true })
            }
        }
    }

    /// As [`Self::accept`] for an id that may have been used before. While the call is only queued it is published again: the
    /// first answer may have been lost on the way, and the dialler drops the second message.
    async fn accept_once(&self, call: &Call, body: Bytes) -> Result<Accepted, Error> {
        // A replica that lags costs no more than a second message.
        let known = self.log.glance(&call.name).await?;
        let Some(event) = unless_conflict(call, known)? else {
            return self.accept(call, body, Unrecorded::Retry).await;
        };
        if event.status == Status::Queued {
            let traceparent = event.traceparent.as_ref();
            let labels = Labels { id: &call.id, attempt: 1, queued_at: event.queued_at, traceparent };
            self.inbox.publish(labels, body).await?;
        }
        Ok(Accepted { event, fresh: false })
    }
}

/// What is recorded under the call's id, unless it belongs to another request.
fn unless_conflict(call: &Call, recorded: Option<StatusEvent>) -> Result<Option<StatusEvent>, Error> {
    match recorded {
        Some(event) if event.fingerprint != call.fingerprint => Err(Error::Conflict(call.id.to_string())),
        recorded => Ok(recorded),
    }
}
