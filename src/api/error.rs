//! Why a request of the outside was not carried out, in terms that every way in can word for its users.

use crate::call::FieldError;
use crate::call_index::{Behind, CatchUpError};
use crate::nats::{NatsError, NatsErrorKind};

/// Why not.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The id belongs to another request.
    #[error(
        "id `{0}` was used for another request; the first call is untouched. Use a new id, or send the same request"
    )]
    Conflict(String),
    /// No trunk may dial the call.
    #[error("{}: {}", .0.field, .0.message)]
    Unroutable(FieldError),
    /// The cursor was not made by this program.
    #[error("`{0}` is not a valid cursor; pass the one from the `Link` header")]
    BadCursor(String),
    /// The queue is full: nothing was accepted.
    #[error("the queue is full; nothing was accepted, try again later")]
    Full(#[source] NatsError),
    /// The request does not fit into a message.
    #[error("the request is larger than a message may be")]
    TooLarge(#[source] NatsError),
    /// The record of this one call cannot be decoded.
    #[error("the record of this call cannot be read")]
    Unreadable(#[source] NatsError),
    /// The index of calls is not complete, so nothing was answered from it, and nothing was done.
    #[error("{0}; nothing was done, try again later")]
    Behind(#[from] Behind),
    /// Requests lie in the inbox for longer than anybody waits, so it cannot be said which calls there are.
    #[error("requests wait to be admitted, so this may be about one of them; try again later")]
    NotAdmitted,
    /// NATS does not answer. What was asked for may have been done.
    #[error("NATS does not answer; with an id, the same request may safely be sent again")]
    Unavailable(#[source] NatsError),
}

impl From<NatsError> for Error {
    fn from(error: NatsError) -> Self {
        match error.kind() {
            NatsErrorKind::Full => Self::Full(error),
            NatsErrorKind::TooLarge => Self::TooLarge(error),
            NatsErrorKind::Corrupt => Self::Unreadable(error),
            NatsErrorKind::Unavailable | NatsErrorKind::Refused | NatsErrorKind::Stale => Self::Unavailable(error),
        }
    }
}

impl From<CatchUpError> for Error {
    fn from(error: CatchUpError) -> Self {
        match error {
            CatchUpError::Behind(behind) => behind.into(),
            CatchUpError::Nats(error) => error.into(),
        }
    }
}
