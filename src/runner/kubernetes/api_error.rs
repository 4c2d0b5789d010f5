//! What goes wrong between here and an API server, and the one function that decides what a failed start means. Apart,
//! because it is pure and because `kube`'s own texts repeat themselves and print whole structures.

use std::time::Duration;

use kube::core::Status;

use crate::error_chain::error_chain;
use crate::runner::{RunnerError, StartError};

/// For an overloaded server that does not say how long: API priority and fairness always sends one second, but in a header
/// that `kube` does not hand on.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why a request failed.
#[derive(Debug)]
pub(super) enum ApiError {
    /// The server said no.
    Answer(Box<Status>),
    /// No answer, or none that could be understood: it may or may not have been carried out.
    Silence(String),
    /// It could not even be written down.
    Unsendable(String),
}

impl ApiError {
    /// Whether a create met an object of that name.
    pub(super) fn already_exists(&self) -> bool {
        matches!(self, Self::Answer(status) if status.is_already_exists())
    }

    /// Whether there is no such object.
    pub(super) fn not_found(&self) -> bool {
        matches!(self, Self::Answer(status) if status.is_not_found())
    }

    /// Whether an object has another UID than the patch of it names.
    pub(super) fn is_of_another(&self) -> bool {
        matches!(self, Self::Answer(status) if status.code == 422 || status.code == 409 && status.message.contains("UID"))
    }

    /// Whether the operator lacks a right.
    pub(super) fn forbidden(&self) -> bool {
        matches!(self, Self::Answer(status) if status.is_forbidden())
    }

    /// In the server's own words.
    pub(super) fn words(&self) -> String {
        match self {
            // "Unauthorized" alone does not say who said so.
            Self::Answer(status) if status.message.is_empty() || status.message == status.reason => {
                format!("the API server answered {} {}", status.code, status.reason)
            }
            Self::Answer(status) => status.message.clone(),
            Self::Silence(words) | Self::Unsendable(words) => words.clone(),
        }
    }

    /// Decides what it means for a Job that was to be started. What the server will always say of this very Job is a
    /// refusal; all that depends on the state of the cluster, or on rights and quotas that somebody can change, is not.
    pub(super) fn fate(&self) -> StartError {
        match self {
            Self::Answer(status) if refuses(status) => StartError::Refused(self.words()),
            Self::Unsendable(words) => StartError::Refused(words.clone()),
            Self::Answer(_) | Self::Silence(_) => StartError::Later(self.into()),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        let Self::Answer(status) = self else { return None };
        let asked = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
        match (asked, status.code) {
            (0, 429) => Some(PATIENCE),
            (0, _) => None,
            (seconds, _) => Some(Duration::from_secs(u64::from(seconds))),
        }
    }
}

/// 400, 413 and 422 are about the object; so is the word of an admission webhook or policy, which comes with 403 or whatever
/// 4xx its author chose. Everything else that is forbidden is a right or a quota.
fn refuses(status: &Status) -> bool {
    let denied = status.message.contains("denied the request") || status.message.contains("denied request:");
    match status.code {
        400 | 413 | 422 => true,
        429 => false,
        401..=499 => denied,
        _ => false,
    }
}

impl From<&ApiError> for RunnerError {
    fn from(error: &ApiError) -> Self {
        Self { message: error.words(), retry_after: error.retry_after() }
    }
}

impl From<ApiError> for RunnerError {
    fn from(error: ApiError) -> Self {
        Self::from(&error)
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Answer(status),
            error @ (kube::Error::BuildRequest(_) | kube::Error::HttpError(_)) => Self::Unsendable(error_chain(&error)),
            error => Self::Silence(error_chain(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::response::StatusDetails;

    use super::*;

    fn answer(code: u16, reason: &str, message: &str) -> ApiError {
        ApiError::Answer(Status::failure(message, reason).with_code(code).boxed())
    }

    #[test]
    fn what_is_wrong_with_the_job_itself_is_refused_and_all_else_may_be_tried_again() {
        let refused = [
            answer(400, "BadRequest", "Job in version \"v1\" cannot be handled as a Job"),
            answer(413, "RequestEntityTooLarge", "limit is 3145728"),
            answer(422, "Invalid", "Job.batch \"x\" is invalid: spec.template.spec.containers: Required value"),
            answer(403, "Forbidden", "admission webhook \"a.example\" denied the request: no host network"),
            answer(400, "", "admission webhook \"a.example\" denied the request without explanation"),
            answer(
                403,
                "Forbidden",
                "jobs.batch \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no",
            ),
            ApiError::Unsendable("failed to build request".to_owned()),
        ];
        for error in refused {
            assert!(matches!(error.fate(), StartError::Refused(words) if words == error.words()), "{error:?}");
        }
        let later = [
            answer(401, "Unauthorized", "Unauthorized"),
            answer(
                403,
                "Forbidden",
                "jobs.batch \"x\" is forbidden: exceeded quota: calls, requested: count/jobs.batch=1",
            ),
            answer(403, "Forbidden", "jobs.batch is forbidden: User \"x\" cannot create resource \"jobs\""),
            answer(403, "Forbidden", "unable to create new content in namespace x because it is being terminated"),
            answer(404, "NotFound", "namespaces \"x\" not found"),
            answer(409, "AlreadyExists", "secrets \"x\" already exists"),
            answer(409, "Conflict", "the object has been modified"),
            answer(429, "", "Too many requests, please try again later."),
            answer(429, "TooManyRequests", "admission webhook \"a.example\" denied the request: slow down"),
            answer(500, "InternalError", "failed calling webhook \"a.example\": connection refused"),
            answer(503, "ServiceUnavailable", "apiserver is shutting down"),
            answer(504, "Timeout", "request did not complete within the allotted timeout"),
            answer(0, "", ""),
            ApiError::Silence("no answer within 15 s".to_owned()),
        ];
        for error in later {
            assert!(matches!(error.fate(), StartError::Later(_)), "{error:?}");
        }
    }

    #[test]
    fn the_wait_that_the_server_asks_for_is_handed_on() {
        let details = StatusDetails {
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: 7,
        };
        let status = Status::failure("busy", "ServerTimeout").with_code(500).with_details(details);
        assert_eq!(RunnerError::from(ApiError::Answer(status.boxed())).retry_after, Some(Duration::from_secs(7)));
        assert_eq!(RunnerError::from(answer(429, "", "Too many requests")).retry_after, Some(PATIENCE));
        assert_eq!(RunnerError::from(answer(503, "", "away")).retry_after, None);
    }

    #[test]
    fn an_answer_without_words_still_says_something() {
        assert_eq!(answer(502, "BadGateway", "").words(), "the API server answered 502 BadGateway");
        assert_eq!(answer(401, "Unauthorized", "Unauthorized").words(), "the API server answered 401 Unauthorized");
    }

    #[test]
    fn a_story_names_every_cause_once() {
        let refused = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
        let error = kube::Error::Service(Box::new(refused));
        assert_eq!(error_chain(&error), "ServiceError: connection refused");
    }
}
