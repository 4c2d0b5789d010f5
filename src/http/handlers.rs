//! One function per route: read, ask the desk, answer.

use bytes::{Buf, Bytes};
use futures::Stream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::json;
use warp::reply::Response;

use super::problem::Problem;
use super::view::{self, Accepted, Job, Ready};
use super::{HttpSettings, guard, intake, metrics, query};
use crate::call::validate;
use crate::desk::Desk;

/// `POST /call`.
pub(super) async fn submit<S, B>(
    desk: &Desk,
    settings: &HttpSettings,
    headers: &HeaderMap,
    body: S,
) -> Result<Response, Problem>
where
    S: Stream<Item = Result<B, warp::Error>>,
    B: Buf,
{
    guard::same_origin(headers)?;
    intake::json_type(headers)?;
    let body = intake::body(settings, headers, body).await?;
    let parsed = validate::parse(&body)?;
    let key = if parsed.id.is_none() { intake::idempotency_key(headers)? } else { None };
    let accepted = desk.submit(parsed, body, key).await?;
    let mut response = view::json(StatusCode::ACCEPTED, &Accepted::from(&accepted));
    let location = format!("/jobs/{}", accepted.event.name);
    let location = HeaderValue::try_from(location).expect("a call's name is a DNS label");
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// `GET /jobs`.
pub(super) async fn list(desk: &Desk, raw_query: &str) -> Result<Response, Problem> {
    let query = query::page(raw_query)?;
    let page = desk.page(&query).await?;
    let jobs: Vec<_> = page.calls.iter().map(Job::from).collect();
    let mut response = view::json(StatusCode::OK, &jobs);
    if let Some(cursor) = page.next {
        let link = HeaderValue::try_from(query::next_link(&query, &cursor)).expect("percent-encoded text is ASCII");
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

/// `GET /jobs/{name}`; `tail` is the path behind `/jobs/` as it was sent.
pub(super) async fn show(desk: &Desk, tail: &str) -> Result<Response, Problem> {
    let name_or_id = query::name_or_id(tail)?;
    match desk.find(&name_or_id).await? {
        Some(event) => Ok(view::json(StatusCode::OK, &Job::from(&event))),
        None => Err(Problem::no_such_call(&name_or_id)),
    }
}

/// `DELETE /jobs/{name}`: what waits ends at once, what runs is being stopped, what has ended stays as it is.
pub(super) async fn cancel(desk: &Desk, headers: &HeaderMap, tail: &str) -> Result<Response, Problem> {
    guard::same_origin(headers)?;
    let name_or_id = query::name_or_id(tail)?;
    match desk.cancel(&name_or_id).await? {
        Some(event) => Ok(view::json(StatusCode::ACCEPTED, &Job::from(&event))),
        None => Err(Problem::no_such_call(&name_or_id)),
    }
}

/// `DELETE /jobs?batch=`: the same for every call of a batch; the answer counts them.
pub(super) async fn cancel_batch(desk: &Desk, headers: &HeaderMap, raw_query: &str) -> Result<Response, Problem> {
    guard::same_origin(headers)?;
    let batch = query::batch(raw_query)?;
    Ok(view::json(StatusCode::ACCEPTED, &desk.cancel_batch(&batch).await?))
}

/// `GET /health`, as the seed answers it (the process serves), and how the queue was when it was asked last; null while that is
/// not known.
pub(super) fn health(desk: &Desk) -> Response {
    let version = env!("CARGO_PKG_VERSION");
    view::json(StatusCode::OK, &json!({ "status": "ok", "version": version, "queue": desk.queue_state() }))
}

/// `GET /livez`: the process serves.
pub(super) fn live() -> Response {
    view::json(StatusCode::OK, &json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") }))
}

/// `GET /metrics`.
pub(super) fn metrics(desk: &Desk) -> Response {
    let mut response = Response::new(metrics::text(desk).into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(metrics::MEDIA_TYPE));
    response
}

/// `GET /readyz`: what is ready and what is not, by name.
pub(super) fn ready(desk: &Desk) -> Response {
    let ready = Ready::of(desk.readiness());
    let status = if ready.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    view::json(status, &ready)
}

/// `GET /openapi.json`, serialized once at start.
pub(super) fn openapi(document: Bytes) -> Response {
    view::raw_json(StatusCode::OK, document)
}
