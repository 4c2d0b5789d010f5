//! One function per route: read, ask the api, answer.

use bytes::{Buf, Bytes};
use futures::Stream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::json;
use warp::reply::Response;

use super::dto::{self, Accepted, Job, JobWithOutlook, Ready};
use super::problem::{Kind, Problem};
use super::{HttpSettings, body, metrics, query, same_origin};
use crate::api::{Api, Error, Scope};
use crate::call::cloud_event::Opened;
use crate::call::validate;
use crate::clock::now;

/// `POST /call`.
pub(super) async fn submit<S, B>(
    api: &Api,
    settings: &HttpSettings,
    headers: &HeaderMap,
    body: S,
) -> Result<Response, Problem>
where
    S: Stream<Item = Result<B, warp::Error>>,
    B: Buf,
{
    same_origin::check(headers)?;
    body::json_type(headers)?;
    let key = body::idempotency_key(headers)?;
    let body = body::read(settings, headers, body).await?;
    let Opened { request, id: by_event } = body::open(headers, &body)?;
    let mut parsed = validate::parse(&request, now())?;
    // The id in the body identifies the call wherever else the request is sent, so it takes precedence; then that of an event.
    parsed.id = parsed.id.or(by_event);
    let by_key = parsed.id.is_none() && key.is_some();
    let accepted = api.submit(parsed, request, key, body::traceparent(headers)).await.map_err(|error| match error {
        Error::Conflict(key) if by_key => Problem::key_reused(&key),
        other => other.into(),
    })?;
    let mut response = dto::json(StatusCode::ACCEPTED, &Accepted::from(&accepted));
    let location = format!("/jobs/{}", accepted.event.name);
    let location = HeaderValue::try_from(location).expect("a call's name is a DNS label");
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// `GET /jobs`.
pub(super) async fn list(api: &Api, raw_query: &str) -> Result<Response, Problem> {
    let query = query::page(raw_query)?;
    let page = api.page(&query).await?;
    let jobs: Vec<_> = page.calls.iter().map(Job::from).collect();
    let mut response = dto::json(StatusCode::OK, &jobs);
    if let Some(cursor) = page.next {
        let link = HeaderValue::try_from(query::next_link(&query, &cursor)).expect("percent-encoded text is ASCII");
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

/// `GET /jobs/{name}`; `tail` is the path after `/jobs/`, still encoded.
pub(super) async fn show(api: &Api, tail: &str) -> Result<Response, Problem> {
    let name_or_id = query::name_or_id(tail)?;
    match api.find(&name_or_id).await? {
        Some(event) => {
            let outlook = api.outlook(&event).await?;
            Ok(dto::json(StatusCode::OK, &JobWithOutlook { job: Job::from(&event), outlook }))
        }
        None => Err(Problem::no_such_call(&name_or_id)),
    }
}

/// `DELETE /jobs/{name}`: a waiting call ends at once, a running one is stopped, and one that has ended stays as it is.
pub(super) async fn cancel(api: &Api, headers: &HeaderMap, tail: &str) -> Result<Response, Problem> {
    same_origin::check(headers)?;
    let name_or_id = query::name_or_id(tail)?;
    match api.cancel(&name_or_id).await? {
        Some(event) => Ok(dto::json(StatusCode::ACCEPTED, &Job::from(&event))),
        None => Err(Problem::no_such_call(&name_or_id)),
    }
}

/// `DELETE /jobs?batch=`: the same for every call of a batch; the answer counts them.
pub(super) async fn cancel_by_query(api: &Api, headers: &HeaderMap, raw_query: &str) -> Result<Response, Problem> {
    same_origin::check(headers)?;
    let scope = Scope::Batch(query::batch(raw_query)?);
    Ok(dto::json(StatusCode::ACCEPTED, &api.cancel_all(&scope).await?))
}

/// `DELETE /trunks/{trunk}/jobs`: cancels every call of a trunk that has not ended; the answer counts them.
pub(super) async fn cancel_trunk(api: &Api, headers: &HeaderMap, name: &str) -> Result<Response, Problem> {
    same_origin::check(headers)?;
    let scope = Scope::Trunk(query::trunk_in_path(name)?);
    Ok(dto::json(StatusCode::ACCEPTED, &api.cancel_all(&scope).await?))
}

/// `GET /batches/{batch}`.
pub(super) async fn batch(api: &Api, name: &str) -> Result<Response, Problem> {
    let name = query::batch_in_path(name)?;
    match api.batch(&name).await? {
        Some(state) => Ok(dto::json(StatusCode::OK, &state)),
        None => Err(Problem::new(Kind::NoSuchBatch, format!("no call of a batch `{name}` is known"))),
    }
}

/// `DELETE /batches/{batch}`: as `DELETE /jobs?batch=`.
pub(super) async fn cancel_batch(api: &Api, headers: &HeaderMap, name: &str) -> Result<Response, Problem> {
    same_origin::check(headers)?;
    let scope = Scope::Batch(query::batch_in_path(name)?);
    Ok(dto::json(StatusCode::ACCEPTED, &api.cancel_all(&scope).await?))
}

/// `GET /health`: the process is up, in the form of the Python service, with the last known state of the queue and of the trunks, or null.
pub(super) fn health(api: &Api) -> Response {
    let version = env!("CARGO_PKG_VERSION");
    let (queue, trunks) = (api.queue_state(), api.trunks());
    dto::json(StatusCode::OK, &json!({ "status": "ok", "version": version, "queue": queue, "trunks": trunks }))
}

/// `GET /trunks`.
pub(super) fn trunks(api: &Api) -> Response {
    match api.trunks() {
        Some(trunks) => dto::json(StatusCode::OK, &trunks),
        None => {
            Problem::new(Kind::QueueUnavailable, "it is not known yet how the trunks are; try again").into_response()
        }
    }
}

/// `GET /livez`: the process is up.
pub(super) fn live() -> Response {
    dto::json(StatusCode::OK, &json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") }))
}

/// `GET /metrics`.
pub(super) fn metrics(api: &Api) -> Response {
    let mut response = Response::new(metrics::text(api).into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(metrics::MEDIA_TYPE));
    response
}

/// `GET /readyz`: what is ready and what is not, by name.
pub(super) fn ready(api: &Api) -> Response {
    let ready = Ready::of(api.readiness());
    let status = if ready.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    dto::json(status, &ready)
}

/// `GET /openapi.json`, serialized once at start.
pub(super) fn openapi(document: Bytes) -> Response {
    dto::raw_json(StatusCode::OK, document)
}
