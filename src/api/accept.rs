//! Accepting calls: a request is accepted when the inbox has it durably.

use std::time::Duration;

use bytes::Bytes;

use super::{Api, Error, Parts};
use crate::call::validate::Parsed;
use crate::call::{Call, CallId, CallName, Change, StatusEvent, TraceParent};
use crate::clock::{self, now};
use crate::policy::Wanted;

/// How long a request may lie in the inbox while somebody waits for what becomes of it.
pub(super) const ADMITTED_WITHIN: Duration = Duration::from_secs(5);

/// A call that was accepted durably.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// Its present state.
    pub event: StatusEvent,
    /// False when the same id and request had been accepted before.
    pub fresh: bool,
}

impl Api {
    /// Accepts a call: returns once the inbox has it durably. `body` is the request as it came; `idempotency_key` is used as id
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
        if !is_new && let Some(event) = unless_conflict(&call, parts.log.glance(&call.name).await?)? {
            // Should its message have been lost, it is carried on by this one; otherwise admission finds nothing to do.
            if !event.is_final {
                parts.inbox.publish(&call, body).await?;
            }
            return Ok(Accepted { event, fresh: false });
        }
        if let Err(unroutable) = parts.trunks.now().candidates(&Wanted::of(&call.spec, None)) {
            return Err(Error::Unroutable(unroutable.as_field_error()));
        }
        if !parts.inbox.publish_once(&call, body.clone()).await? {
            // A message with this id came a moment ago: what became of that one says what becomes of this one, unless it was another call.
            if let Some(event) = unless_conflict(&call, parts.admitted(&call.name).await?)? {
                return Ok(Accepted { event, fresh: false });
            }
            parts.inbox.publish(&call, body).await?;
        }
        Ok(Accepted { event: parts.to_be_queued(&call), fresh: true })
    }
}

impl Parts {
    /// The event by which admission will record the call.
    fn to_be_queued(&self, call: &Call) -> StatusEvent {
        let now = now();
        StatusEvent::first(call, &self.namespace, now, Change::Queued, now).expect("a call may begin with `queued`")
    }

    /// The state of a call once everything that is in the inbox now has been admitted.
    ///
    /// # Errors
    /// [`Error::NotAdmitted`] when that takes more than some seconds.
    pub(super) async fn admitted(&self, name: &CallName) -> Result<Option<StatusEvent>, Error> {
        self.all_admitted(ADMITTED_WITHIN).await?;
        Ok(self.log.last(name).await?.map(|last| last.event))
    }

    /// Returns once everything that is in the inbox now has been admitted.
    ///
    /// # Errors
    /// [`Error::NotAdmitted`] when that takes longer than `within`.
    pub(super) async fn all_admitted(&self, within: Duration) -> Result<(), Error> {
        if self.inbox.is_admitted(within).await? { Ok(()) } else { Err(Error::NotAdmitted) }
    }
}

/// What is recorded under the call's id, unless it belongs to another request.
fn unless_conflict(call: &Call, recorded: Option<StatusEvent>) -> Result<Option<StatusEvent>, Error> {
    match recorded {
        Some(event) if event.fingerprint != call.fingerprint => Err(Error::Conflict(call.id.to_string())),
        recorded => Ok(recorded),
    }
}
