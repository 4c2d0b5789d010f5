//! Every error response, as one table: kind → status, type, title. RFC 9457 (`application/problem+json`). The only
//! place where an error becomes a status code.

use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use warp::reply::Response;
use warp::{Rejection, reject};

use crate::api;
use crate::call::{FieldError, Refusal};
use crate::error_chain::error_chain;

/// What went wrong. Clients distinguish the kinds by `type`, `urn:sipstuff:problem:<slug>`, which never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    BadRequest,
    MalformedJson,
    CrossOrigin,
    NoSuchRoute,
    NoSuchCall,
    NoSuchBatch,
    MethodNotAllowed,
    BodyTimeout,
    LengthRequired,
    TooLarge,
    UnsupportedMediaType,
    InvalidRequest,
    IdConflict,
    NoRoute,
    Busy,
    KeyReused,
    QueueFull,
    QueueUnavailable,
    IndexBehind,
    Internal,
}

struct Row {
    status: u16,
    slug: &'static str,
    title: &'static str,
    /// Seconds.
    retry_after: Option<u16>,
}

impl Kind {
    const fn row(self) -> Row {
        const fn row(status: u16, slug: &'static str, title: &'static str) -> Row {
            Row { status, slug, title, retry_after: None }
        }
        match self {
            Kind::BadRequest => row(400, "bad-request", "The request cannot be read"),
            Kind::MalformedJson => row(400, "malformed-json", "The body is not JSON"),
            Kind::CrossOrigin => row(403, "cross-origin", "Pages of other sites may not do this"),
            Kind::NoSuchRoute => row(404, "no-such-route", "There is nothing at this path"),
            Kind::NoSuchBatch => row(404, "no-such-batch", "There is no such batch"),
            Kind::NoSuchCall => row(404, "no-such-call", "There is no such call"),
            Kind::MethodNotAllowed => row(405, "method-not-allowed", "This path does not allow this method"),
            Kind::BodyTimeout => row(408, "body-timeout", "The body took too long to arrive"),
            Kind::LengthRequired => row(411, "length-required", "The length of the body must be given"),
            Kind::TooLarge => row(413, "too-large", "The request is too large"),
            Kind::UnsupportedMediaType => row(415, "unsupported-media-type", "The body must be JSON"),
            Kind::InvalidRequest => row(422, "invalid-request", "The request is not valid"),
            Kind::IdConflict => row(409, "id-conflict", "The id belongs to another request"),
            Kind::NoRoute => row(409, "no-route", "No trunk can dial the call"),
            Kind::KeyReused => row(422, "idempotency-key-reused", "The Idempotency-Key belongs to another request"),
            Kind::Internal => row(500, "internal", "The operator failed"),
            Kind::Busy => Row { retry_after: Some(2), ..row(503, "busy", "Too many large requests at once") },
            // A full queue drains at the speed of phone calls; a lost connection is usually back at once.
            Kind::QueueFull => Row { retry_after: Some(10), ..row(503, "queue-full", "The queue is full") },
            Kind::IndexBehind => {
                Row { retry_after: Some(5), ..row(503, "index-behind", "The index of calls is not complete") }
            }
            Kind::QueueUnavailable => {
                Row { retry_after: Some(2), ..row(503, "queue-unavailable", "The queue does not answer") }
            }
        }
    }
}

/// An error on its way to the client. Its texts are for the client: never a password, nor an address.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    kind: Kind,
    detail: String,
    errors: Vec<FieldError>,
    allow: Option<&'static str>,
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldError],
}

impl Problem {
    /// `detail` says what is wrong with this request, and what to do about it.
    pub(super) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), errors: Vec::new(), allow: None }
    }

    /// 404 for a name or id that no call has.
    pub(super) fn no_such_call(name_or_id: &str) -> Self {
        Self::new(Kind::NoSuchCall, format!("no call has the name or id `{name_or_id}`"))
    }

    /// 422 with every field that is wrong.
    pub(super) fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [one] => format!("{}: {}", one.field, one.message),
            more => format!("{} fields are invalid, see `errors`", more.len()),
        };
        Self { errors, ..Self::new(Kind::InvalidRequest, detail) }
    }

    /// 422 with one field that is wrong.
    pub(super) fn invalid_field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid(vec![FieldError { field: field.into(), message: message.into() }])
    }

    /// 422 for an `Idempotency-Key` that was sent with another request, as its draft asks (section 2.7).
    pub(super) fn key_reused(key: &str) -> Self {
        let message = format!(
            "`{key}` was used for another request; the first call is untouched. Use a new key, or send the same request"
        );
        let errors = vec![FieldError { field: "Idempotency-Key".to_owned(), message: message.clone() }];
        Self { errors, ..Self::new(Kind::KeyReused, message) }
    }

    /// 405; `allow` is the list of methods for the `Allow` header, which RFC 9110 section 15.5.6 asks for.
    pub(super) fn method_not_allowed(allow: &'static str) -> Self {
        Self { allow: Some(allow), ..Self::new(Kind::MethodNotAllowed, format!("use one of {allow}")) }
    }

    /// 413, naming the limit in bytes.
    pub(super) fn too_large(limit: usize) -> Self {
        Self::new(Kind::TooLarge, format!("the body is too large; send at most {limit} bytes"))
    }

    #[cfg(test)]
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    #[cfg(test)]
    pub(super) fn errors(&self) -> &[FieldError] {
        &self.errors
    }

    pub(super) fn into_response(self) -> Response {
        let row = self.kind.row();
        let body = Body {
            kind: format!("urn:sipstuff:problem:{}", row.slug),
            title: row.title,
            status: row.status,
            detail: &self.detail,
            errors: &self.errors,
        };
        let body = serde_json::to_vec(&body).expect("texts and numbers always serialize");
        let mut response = Response::new(body.into());
        *response.status_mut() = StatusCode::from_u16(row.status).expect("the table holds valid codes, see its test");
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = row.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        if self.kind == Kind::BodyTimeout {
            // The rest of the body may still arrive, and must not be mistaken for the next request.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Malformed(why) => Self::new(Kind::MalformedJson, why),
            Refusal::Invalid { errors, .. } => Self::invalid(errors),
        }
    }
}

impl From<api::Error> for Problem {
    fn from(error: api::Error) -> Self {
        // Addresses and server messages belong in the operator's log, not in a response.
        tracing::debug!(error = error_chain(&error), "a request failed");
        let text = error.to_string();
        let about = |field: &str| vec![FieldError { field: field.to_owned(), message: text.clone() }];
        match error {
            api::Error::Conflict(_) => Self { errors: about("id"), ..Self::new(Kind::IdConflict, &text) },
            api::Error::BadCursor(_) => Self::invalid(about("cursor")),
            api::Error::Unroutable(error) => Self { errors: vec![error], ..Self::new(Kind::NoRoute, &text) },
            api::Error::Full(_) => Self::new(Kind::QueueFull, &text),
            api::Error::TooLarge(_) => Self::new(Kind::TooLarge, &text),
            api::Error::Unreadable(_) => Self::new(Kind::Internal, &text),
            api::Error::Behind(_) | api::Error::NotAdmitted => Self::new(Kind::IndexBehind, &text),
            api::Error::Unavailable(_) => Self::new(Kind::QueueUnavailable, &text),
        }
    }
}

impl From<&Rejection> for Problem {
    /// Warp's own rejections. Our routes answer nearly everything themselves, so only "no such route" is common; the
    /// others are mapped so that a filter added later cannot answer in plain text.
    fn from(rejection: &Rejection) -> Self {
        let kind = if rejection.find::<reject::MethodNotAllowed>().is_some() {
            Kind::MethodNotAllowed
        } else if rejection.find::<reject::PayloadTooLarge>().is_some() {
            Kind::TooLarge
        } else if rejection.find::<reject::LengthRequired>().is_some() {
            Kind::LengthRequired
        } else if rejection.find::<reject::UnsupportedMediaType>().is_some() {
            Kind::UnsupportedMediaType
        } else if rejection.find::<reject::InvalidQuery>().is_some()
            || rejection.find::<reject::InvalidHeader>().is_some()
            || rejection.find::<reject::MissingHeader>().is_some()
            || rejection.find::<warp::body::BodyDeserializeError>().is_some()
        {
            Kind::BadRequest
        } else if rejection.is_not_found() {
            return Self::new(Kind::NoSuchRoute, "see /openapi.json for the paths that exist");
        } else {
            tracing::error!(?rejection, "an unmapped rejection");
            Kind::Internal
        };
        Self::new(kind, kind.row().title)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use warp::Filter;
    use warp::hyper::body::Bytes;

    use super::*;
    use crate::nats::{NatsError, NatsErrorKind};

    const ALL: [Kind; 18] = [
        Kind::BadRequest,
        Kind::MalformedJson,
        Kind::CrossOrigin,
        Kind::NoSuchRoute,
        Kind::NoSuchCall,
        Kind::MethodNotAllowed,
        Kind::BodyTimeout,
        Kind::LengthRequired,
        Kind::TooLarge,
        Kind::UnsupportedMediaType,
        Kind::InvalidRequest,
        Kind::IdConflict,
        Kind::Busy,
        Kind::KeyReused,
        Kind::QueueFull,
        Kind::QueueUnavailable,
        Kind::IndexBehind,
        Kind::Internal,
    ];

    async fn answer(problem: Problem) -> (http::response::Parts, serde_json::Value) {
        let filter = warp::any().map(move || problem.clone().into_response());
        let response: http::Response<Bytes> = warp::test::request().reply(&filter).await;
        let (parts, body) = response.into_parts();
        (parts, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn every_kind_answers_a_whole_problem_document_of_its_own_type() {
        let mut types = std::collections::BTreeSet::new();
        for kind in ALL {
            let (parts, body) = answer(Problem::new(kind, "why")).await;
            assert_eq!(parts.headers["content-type"], "application/problem+json", "{kind:?}");
            assert_eq!(body["status"], parts.status.as_u16(), "{kind:?}");
            assert_eq!(body["detail"], "why");
            assert!(!body["title"].as_str().unwrap().is_empty());
            assert_eq!(parts.headers.contains_key("retry-after"), parts.status == 503, "{kind:?}");
            assert!(types.insert(body["type"].to_string()), "{kind:?} shares its type");
        }
    }

    #[test]
    fn errors_of_the_core_have_the_status_of_the_table() {
        let field = FieldError { field: "dest".to_owned(), message: "required".to_owned() };
        let nats = |kind| {
            let cause = std::io::Error::other("nats://ann:hunter2@10.0.0.1:4222");
            api::Error::from(NatsError::new(kind, cause)).into()
        };
        let table: [(Problem, Kind, u16); 9] = [
            (Refusal::Malformed("line 1".to_owned()).into(), Kind::MalformedJson, 400),
            (Refusal::Invalid { id: None, errors: vec![field] }.into(), Kind::InvalidRequest, 422),
            (api::Error::Conflict("a".to_owned()).into(), Kind::IdConflict, 409),
            (Problem::key_reused("a"), Kind::KeyReused, 422),
            (api::Error::BadCursor("x".to_owned()).into(), Kind::InvalidRequest, 422),
            (nats(NatsErrorKind::Full), Kind::QueueFull, 503),
            (nats(NatsErrorKind::TooLarge), Kind::TooLarge, 413),
            (nats(NatsErrorKind::Unavailable), Kind::QueueUnavailable, 503),
            (nats(NatsErrorKind::Corrupt), Kind::Internal, 500),
        ];
        for (problem, kind, status) in table {
            assert_eq!((problem.kind, problem.kind.row().status), (kind, status));
            assert!(!problem.detail.contains("hunter2"), "an internal detail is shown: {}", problem.detail);
        }
    }

    #[tokio::test]
    async fn rejections_of_warp_have_the_status_that_warp_gives_them() {
        let status = |rejection: &Rejection| Problem::from(rejection).kind.row().status;
        let request = || warp::test::request().path("/a");
        assert_eq!(status(&request().filter(&warp::path("b")).await.unwrap_err()), 404);
        assert_eq!(status(&request().filter(&warp::post()).await.unwrap_err()), 405);
        assert_eq!(status(&request().filter(&warp::body::content_length_limit(1)).await.unwrap_err()), 411);
        let long = request().header("content-length", "9");
        assert_eq!(status(&long.filter(&warp::body::content_length_limit(1)).await.unwrap_err()), 413);
        assert_eq!(status(&request().filter(&warp::query::raw()).await.unwrap_err()), 400);
        let header = warp::header::<u8>("x");
        assert_eq!(status(&request().filter(&header).await.unwrap_err()), 400);
        let text = request().header("content-type", "text/xml").method("POST");
        assert_eq!(status(&text.filter(&warp::body::json::<u8>()).await.unwrap_err()), 415);
    }
}
