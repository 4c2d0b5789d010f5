//! Accepting calls: the request into the queue, and the record that it is there.

use bytes::Bytes;

use super::{Away, Desk, Parts};
use crate::{
    call::{Call, CallId, Change, Status, StatusEvent, validate::Parsed},
    log::{AppendError, now},
    queue::submit::{Labels, PublishRefusal},
};

/// A call that was accepted durably.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// Its present state.
    pub event: StatusEvent,
    /// False when the same id and request had been accepted before.
    pub fresh: bool,
}

/// Why a call was not accepted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SubmitError {
    /// The id belongs to another request.
    #[error(
        "id `{0}` was used for another request; the first call is untouched. Use a new id, or send the same request"
    )]
    Conflict(String),
    /// The queue is full.
    #[error("the queue is full: {0}")]
    Full(String),
    /// The request does not fit into a message.
    #[error("the request is larger than a message may be: {0}")]
    TooLarge(String),
    /// NATS does not answer.
    #[error(transparent)]
    Away(#[from] Away),
}

impl Desk {
    /// Accepts a call: returns once the queue has it durably. `body` is the request as it came; `idempotency_key` is used as id
    /// when the request has none.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing was accepted then (or, after [`SubmitError::Away`], perhaps), and the same request with the same
    /// id may be sent again.
    pub async fn submit(
        &self,
        parsed: Parsed,
        body: Bytes,
        idempotency_key: Option<CallId>,
    ) -> Result<Accepted, SubmitError> {
        let parts = self.parts()?;
        let given = parsed.id.or(idempotency_key);
        let is_new = given.is_none();
        let call = Call::new(given.unwrap_or_else(CallId::fresh), parsed.spec);
        if is_new { parts.accept(&call, body).await } else { parts.accept_once(&call, body).await }
    }
}

impl Parts {
    /// The request first, then the record that it is queued: a refused request leaves nothing behind, and a record that gets
    /// lost is made up for by whoever dials.
    async fn accept(&self, call: &Call, body: Bytes) -> Result<Accepted, SubmitError> {
        let queued_at = now();
        let labels = Labels { id: &call.id, attempt: 1, queued_at };
        let queued = StatusEvent::first(call, &self.namespace, queued_at, Change::Queued, queued_at)
            .map_err(|illegal| Away(illegal.to_string()))?;
        self.submitter.publish(labels, body).await?;
        match self.log.append(queued.clone(), 0).await {
            Ok(recorded) => Ok(Accepted { event: recorded.event, fresh: true }),
            Err(AppendError::Stale) => {
                Ok(Accepted { event: self.unless_conflict(call).await?.unwrap_or(queued), fresh: true })
            }
            Err(AppendError::Away(away)) => {
                tracing::debug!(%away, "the record of a queued call got no answer; it is in the queue");
                Ok(Accepted { event: queued, fresh: true })
            }
        }
    }

    /// As [`Self::accept`] for an id that may have been used before. While the call is only queued it is published again: the
    /// first answer may have been lost on the way, and the dialler drops the second message.
    async fn accept_once(&self, call: &Call, body: Bytes) -> Result<Accepted, SubmitError> {
        let Some(event) = self.unless_conflict(call).await? else { return self.accept(call, body).await };
        if event.status == Status::Queued {
            let labels = Labels { id: &call.id, attempt: 1, queued_at: event.queued_at };
            self.submitter.publish(labels, body).await?;
        }
        Ok(Accepted { event, fresh: false })
    }

    async fn unless_conflict(&self, call: &Call) -> Result<Option<StatusEvent>, SubmitError> {
        match self.log.last(&call.name).await? {
            Some(last) if last.event.fingerprint != call.fingerprint => Err(SubmitError::Conflict(call.id.to_string())),
            last => Ok(last.map(|last| last.event)),
        }
    }
}

impl From<PublishRefusal> for SubmitError {
    fn from(refusal: PublishRefusal) -> Self {
        match refusal {
            PublishRefusal::Full(words) => Self::Full(words),
            PublishRefusal::TooLarge(words) => Self::TooLarge(words),
            PublishRefusal::Away(away) => Self::Away(away),
        }
    }
}
