//! What an error means for the message in hand: the one function that decides it, tested as a table. What an answer of the API
//! server means is decided before, in `runner/kubernetes/api_error.rs`; a message that is not a call gets no further than
//! [`super::decode`].

use std::time::Duration;

use crate::error_chain::error_chain;
use crate::nats::{NatsError, NatsErrorKind};
use crate::runner::{RunnerError, StartError};

/// Whatever a step may fail with.
#[derive(Debug, Clone)]
pub(super) enum StepError {
    Nats(NatsError),
    Start(StartError),
    Runner(RunnerError),
}

/// What becomes of the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// The log says more than is known here: read it and decide again, at once.
    ReadAgain,
    /// It may heal: decide again after a wait, at least this long where one was asked for.
    Retry { reason: String, after: Option<Duration> },
    /// No wait will help: the call ends `rejected`, with the words of whoever refused it.
    Reject(String),
    /// What the log holds of this call cannot be read, so nothing can be decided about it: the message is put aside.
    PutAside(String),
}

/// Decides. What is not known to be permanent may heal.
pub(super) fn error_policy(error: &StepError) -> Action {
    let retry = |error: &dyn std::error::Error, after| Action::Retry { reason: error_chain(error), after };
    match error {
        StepError::Nats(error) => match error.kind() {
            NatsErrorKind::Stale => Action::ReadAgain,
            NatsErrorKind::TooLarge => Action::Reject(error.chain()),
            NatsErrorKind::Corrupt => Action::PutAside(error.chain()),
            NatsErrorKind::Unavailable | NatsErrorKind::Refused | NatsErrorKind::Full => retry(error, None),
        },
        StepError::Start(error @ (StartError::Refused(_) | StartError::Conflict(_))) => {
            Action::Reject(error.to_string())
        }
        StepError::Start(StartError::Later(error)) | StepError::Runner(error) => retry(error, error.retry_after),
    }
}

impl From<NatsError> for StepError {
    fn from(error: NatsError) -> Self {
        Self::Nats(error)
    }
}

impl From<StartError> for StepError {
    fn from(error: StartError) -> Self {
        Self::Start(error)
    }
}

impl From<RunnerError> for StepError {
    fn from(error: RunnerError) -> Self {
        Self::Runner(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_action() {
        let nats = |kind| StepError::from(NatsError::new(kind, std::io::Error::other("cause")));
        let busy = RunnerError { message: "too busy".to_owned(), retry_after: Some(Duration::from_secs(7)) };
        let retry = |reason: &str, seconds: Option<u64>| Action::Retry {
            reason: reason.to_owned(),
            after: seconds.map(Duration::from_secs),
        };
        let table = [
            (nats(NatsErrorKind::Stale), Action::ReadAgain),
            (nats(NatsErrorKind::Unavailable), retry("NATS does not answer: cause", None)),
            (nats(NatsErrorKind::Refused), retry("NATS refused the request: cause", None)),
            (nats(NatsErrorKind::Full), retry("the stream is full: cause", None)),
            (
                nats(NatsErrorKind::TooLarge),
                Action::Reject("the message is larger than NATS accepts: cause".to_owned()),
            ),
            (nats(NatsErrorKind::Corrupt), Action::PutAside("a stored message cannot be decoded: cause".to_owned())),
            (busy.clone().into(), retry("too busy", Some(7))),
            (StartError::Later(busy).into(), retry("too busy", Some(7))),
            (StartError::Refused("no such field".to_owned()).into(), Action::Reject("no such field".to_owned())),
            (
                StartError::Conflict("sipcall-a".to_owned()).into(),
                Action::Reject("a Job named sipcall-a exists and belongs to another request".to_owned()),
            ),
        ];
        for (error, action) in table {
            assert_eq!(error_policy(&error), action, "{error:?}");
        }
    }
}
