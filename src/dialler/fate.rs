//! What an error means for the message in hand: the one function that decides it, tested as a table. What is wrong with an
//! answer of the API server is decided before, in `runner/kubernetes/trouble.rs`; what is no call at all gets no further than
//! [`super::decode`].

use std::time::Duration;

use crate::{
    log::AppendError,
    queue::{Away, submit::PublishRefusal},
    runner::{RunnerError, StartError},
};

/// Whatever a step may meet with.
#[derive(Debug, Clone)]
pub(super) enum Trouble {
    Append(AppendError),
    Publish(PublishRefusal),
    Start(StartError),
    Runner(RunnerError),
    Away(Away),
}

/// What becomes of the message. It is held in every case, so nothing is lost by waiting but its place among the active calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// The log says more than is known here: read it and decide again, at once.
    ReadAgain,
    /// It may heal: the same after a wait, at least this long where one was asked for. What is still to do is decided anew.
    TryAgain { words: String, after: Option<Duration> },
    /// No wait will help: the call ends `rejected`, with the words of who refused it.
    Reject(String),
}

/// Decides. What is not known to be hopeless may heal.
pub(super) fn fate(trouble: Trouble) -> Fate {
    let later = |words: String, after| Fate::TryAgain { words, after };
    match trouble {
        Trouble::Append(AppendError::Stale) => Fate::ReadAgain,
        Trouble::Publish(refusal @ PublishRefusal::TooLarge(_)) => Fate::Reject(refusal.to_string()),
        Trouble::Start(refusal @ (StartError::Refused(_) | StartError::Conflict(_))) => {
            Fate::Reject(refusal.to_string())
        }
        Trouble::Start(StartError::Later(error)) | Trouble::Runner(error) => later(error.message, error.retry_after),
        Trouble::Publish(refusal @ PublishRefusal::Full(_)) => later(refusal.to_string(), None),
        Trouble::Append(AppendError::Away(away))
        | Trouble::Publish(PublishRefusal::Away(away))
        | Trouble::Away(away) => later(away.to_string(), None),
    }
}

impl From<AppendError> for Trouble {
    fn from(error: AppendError) -> Self {
        Self::Append(error)
    }
}

impl From<PublishRefusal> for Trouble {
    fn from(refusal: PublishRefusal) -> Self {
        Self::Publish(refusal)
    }
}

impl From<StartError> for Trouble {
    fn from(error: StartError) -> Self {
        Self::Start(error)
    }
}

impl From<RunnerError> for Trouble {
    fn from(error: RunnerError) -> Self {
        Self::Runner(error)
    }
}

impl From<Away> for Trouble {
    fn from(away: Away) -> Self {
        Self::Away(away)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fate_of_every_error() {
        let away = || Away("no answer".to_owned());
        let asked = Some(Duration::from_secs(7));
        let busy = |retry_after| RunnerError { message: "busy".to_owned(), retry_after };
        let later = |words: &str, after| Fate::TryAgain { words: words.to_owned(), after };
        let reject = |words: &str| Fate::Reject(words.to_owned());
        let table: [(Trouble, Fate); 12] = [
            (AppendError::Stale.into(), Fate::ReadAgain),
            (AppendError::Away(away()).into(), later("NATS does not answer: no answer", None)),
            (PublishRefusal::Full("10077".into()).into(), later("the queue is full: 10077", None)),
            (PublishRefusal::Away(away()).into(), later("NATS does not answer: no answer", None)),
            (
                PublishRefusal::TooLarge("1 MB".into()).into(),
                reject("the request is larger than a message may be: 1 MB"),
            ),
            (StartError::Later(busy(None)).into(), later("busy", None)),
            (StartError::Later(busy(asked)).into(), later("busy", asked)),
            (StartError::Refused("no host network".into()).into(), reject("no host network")),
            (StartError::Conflict("x".into()).into(), reject("a Job named x exists and belongs to another request")),
            (busy(None).into(), later("busy", None)),
            (busy(asked).into(), later("busy", asked)),
            (away().into(), later("NATS does not answer: no answer", None)),
        ];
        for (trouble, expected) in table {
            assert_eq!(fate(trouble.clone()), expected, "{trouble:?}");
        }
    }
}
