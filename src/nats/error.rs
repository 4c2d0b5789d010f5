//! What can go wrong between here and NATS, by what can be done about it.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use async_nats::jetstream;
use async_nats::jetstream::stream::{ConsumerError, ConsumerErrorKind};

use crate::error_chain::error_chain;

/// What went wrong, by what helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatsErrorKind {
    /// No answer, or not in time, or the stream is not there (yet): another try may help. What was asked for may have been done.
    Unavailable,
    /// The server said no, and will say so again until somebody changes its configuration.
    Refused,
    /// The stream has reached its limits: another try may help once it has drained.
    Full,
    /// The message is larger than the server takes: no try helps.
    TooLarge,
    /// Somebody else has written first: read again and decide again.
    Stale,
    /// What is stored there cannot be decoded: no try helps, and it concerns this one message only.
    Corrupt,
}

/// An error of NATS, or of what is stored there.
#[derive(Debug, Clone)]
pub struct NatsError {
    kind: NatsErrorKind,
    action: Option<String>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

/// The server's codes for a stream at its limits: messages, bytes, messages per subject, and the account's storage.
const FULL: [u64; 4] = [10047, 10023, 10077, 10122];
/// For a message that is larger than the stream allows.
const TOO_LARGE: u64 = 10054;
/// For an expected last sequence that is not the last any more.
const WRONG_LAST_SEQUENCE: [u64; 2] = [10071, 10164];
/// For what may be different at the next try: no leader yet, a stream, consumer or bucket that is about to be made again, JetStream that starts.
const PASSING: [u64; 7] = [10008, 10009, 10014, 10059, 10074, 10118, 10037];

impl NatsError {
    /// An error of a kind, by what caused it.
    pub fn new(kind: NatsErrorKind, source: impl Error + Send + Sync + 'static) -> Self {
        Self { kind, action: None, source: Some(Arc::new(source)) }
    }

    /// An error of the client library: the server's code says of which kind, and without one there was no answer.
    pub fn of(source: impl Error + Send + Sync + 'static) -> Self {
        Self::new(kind_of(&source), source)
    }

    /// No answer, in words, where there is no error to name as the cause.
    pub fn unavailable(words: impl Into<String>) -> Self {
        Self { kind: NatsErrorKind::Unavailable, action: Some(words.into()), source: None }
    }

    /// The same error, saying what was to be done: "create the stream SIP_CALLS".
    #[must_use]
    pub fn during(self, action: impl Into<String>) -> Self {
        Self { action: Some(action.into()), ..self }
    }

    /// What went wrong, by what helps.
    pub fn kind(&self) -> NatsErrorKind {
        self.kind
    }
}

fn kind_of(error: &(dyn Error + 'static)) -> NatsErrorKind {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(answer) = error.downcast_ref::<jetstream::Error>() {
            return kind_of_code(answer.error_code().0);
        }
        if let Some(consumer) = error.downcast_ref::<ConsumerError>()
            && let ConsumerErrorKind::JetStream(answer) = consumer.kind()
        {
            return kind_of_code(answer.error_code().0);
        }
        if let Some(publish) = error.downcast_ref::<jetstream::context::PublishError>()
            && publish.kind() == jetstream::context::PublishErrorKind::MaxPayloadExceeded
        {
            return NatsErrorKind::TooLarge;
        }
        next = error.source();
    }
    NatsErrorKind::Unavailable
}

fn kind_of_code(code: u64) -> NatsErrorKind {
    match code {
        code if FULL.contains(&code) => NatsErrorKind::Full,
        TOO_LARGE => NatsErrorKind::TooLarge,
        code if WRONG_LAST_SEQUENCE.contains(&code) => NatsErrorKind::Stale,
        code if PASSING.contains(&code) => NatsErrorKind::Unavailable,
        _ => NatsErrorKind::Refused,
    }
}

impl fmt::Display for NatsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            NatsErrorKind::Unavailable => "NATS does not answer",
            NatsErrorKind::Refused => "NATS refused the request",
            NatsErrorKind::Full => "the stream is full",
            NatsErrorKind::TooLarge => "the message is larger than NATS accepts",
            NatsErrorKind::Stale => "somebody else has written first",
            NatsErrorKind::Corrupt => "a stored message cannot be decoded",
        })?;
        self.action.iter().try_for_each(|action| write!(f, " ({action})"))
    }
}

impl Error for NatsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl NatsError {
    /// The error and its causes as one line.
    pub fn chain(&self) -> String {
        error_chain(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_code_decides_the_kind() {
        let table = [
            (10071, NatsErrorKind::Stale),
            (10077, NatsErrorKind::Full),
            (10047, NatsErrorKind::Full),
            (10054, NatsErrorKind::TooLarge),
            (10059, NatsErrorKind::Unavailable),
            (10052, NatsErrorKind::Refused),
        ];
        for (code, kind) in table {
            assert_eq!(kind_of_code(code), kind, "{code}");
        }
    }

    #[test]
    fn without_an_answer_of_the_server_nats_is_unavailable_and_the_cause_is_named() {
        let error = NatsError::of(std::io::Error::other("connection reset")).during("read a record");
        assert_eq!(error.kind(), NatsErrorKind::Unavailable);
        assert_eq!(error.chain(), "NATS does not answer (read a record): connection reset");
    }
}
