//! Which method on which path leads to which handler. A path that matches always answers, if only with 405, so that no
//! request falls through to another route and warp rejects nothing but unknown paths.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use warp::path::Tail;
use warp::reply::Response;
use warp::{Filter, Rejection};

use super::problem::Problem;
use super::{HttpSettings, handlers};
use crate::api::Api;

const READ: &str = "GET, HEAD, OPTIONS";
const SUBMIT: &str = "POST, OPTIONS";
const CANCEL: &str = "DELETE, OPTIONS";
const READ_OR_CANCEL: &str = "GET, HEAD, DELETE, OPTIONS";

/// The whole API; it rejects nothing.
///
/// Not boxed: warp's boxes can reject. Every request clones it, so what is in it is behind [`Arc`]s.
pub(super) fn api(
    api: Api,
    settings: Arc<HttpSettings>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static {
    let api = Arc::new(api);
    let openapi = openapi(&settings.openapi);
    let routes = call(api.clone(), settings).or(jobs(api.clone())).unify().or(job(api.clone())).unify();
    let routes = routes.or(batch(api.clone())).unify().or(trunks(api.clone())).unify();
    closed(routes.or(state(api)).unify().or(openapi).unify())
}

/// Probes and metrics alone, for the admin listener; it rejects nothing.
pub(super) fn admin(
    api: Api,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static {
    closed(state(Arc::new(api)))
}

/// `GET /openapi.json`.
fn openapi(
    document: &serde_json::Value,
) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone + Send + Sync + use<> {
    let document = Bytes::from(document.to_string());
    read(warp::path!("openapi.json"), move || handlers::openapi(document.clone()))
}

/// `POST /call`.
fn call(
    api: Arc<Api>,
    settings: Arc<HttpSettings>,
) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone + Send + Sync {
    let submit = warp::post()
        .and(with(api))
        .and(with(settings))
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(|api: Arc<Api>, settings: Arc<HttpSettings>, headers: HeaderMap, body| async move {
            answer(handlers::submit(&api, &settings, &headers, body).await)
        });
    warp::path!("call").and(submit.or(other_methods(SUBMIT)).unify())
}

/// `GET /jobs`, `DELETE /jobs?batch=`.
fn jobs(api: Arc<Api>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone + Send + Sync {
    let raw_query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let list = get_or_head()
        .and(with(api.clone()))
        .and(raw_query)
        .then(|api: Arc<Api>, query: String| async move { answer(handlers::list(&api, &query).await) });
    let cancel = warp::delete().and(with(api)).and(warp::header::headers_cloned()).and(raw_query).then(
        |api: Arc<Api>, headers: HeaderMap, query: String| async move {
            answer(handlers::cancel_by_query(&api, &headers, &query).await)
        },
    );
    warp::path!("jobs").and(list.or(cancel).unify().or(other_methods(READ_OR_CANCEL)).unify())
}

/// `GET /jobs/{name}`, `DELETE /jobs/{name}`.
fn job(api: Arc<Api>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone + Send + Sync {
    let show = get_or_head()
        .and(with(api.clone()))
        .and(warp::path::tail())
        .then(|api: Arc<Api>, tail: Tail| async move { answer(handlers::show(&api, tail.as_str()).await) });
    let cancel = warp::delete().and(with(api)).and(warp::header::headers_cloned()).and(warp::path::tail()).then(
        |api: Arc<Api>, headers: HeaderMap, tail: Tail| async move {
            answer(handlers::cancel(&api, &headers, tail.as_str()).await)
        },
    );
    warp::path("jobs").and(show.or(cancel).unify().or(other_methods(READ_OR_CANCEL)).unify())
}

/// `GET /batches/{batch}`, `DELETE /batches/{batch}`.
fn batch(api: Arc<Api>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone + Send + Sync {
    let show = get_or_head()
        .and(with(api.clone()))
        .and(warp::path::tail())
        .then(|api: Arc<Api>, tail: Tail| async move { answer(handlers::batch(&api, tail.as_str()).await) });
    let cancel = warp::delete().and(with(api)).and(warp::header::headers_cloned()).and(warp::path::tail()).then(
        |api: Arc<Api>, headers: HeaderMap, tail: Tail| async move {
            answer(handlers::cancel_batch(&api, &headers, tail.as_str()).await)
        },
    );
    warp::path("batches").and(show.or(cancel).unify().or(other_methods(READ_OR_CANCEL)).unify())
}

/// `GET /trunks`, `DELETE /trunks/{trunk}/jobs`.
fn trunks(api: Arc<Api>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone + Send + Sync {
    let cancel = warp::path!("trunks" / String / "jobs")
        .and(warp::method())
        .and(with(api.clone()))
        .and(warp::header::headers_cloned())
        .then(|name: String, method: Method, api: Arc<Api>, headers: HeaderMap| async move {
            if method == Method::DELETE {
                answer(handlers::cancel_trunk(&api, &headers, &name).await)
            } else {
                not_that_method(&method, CANCEL)
            }
        });
    let list = read(warp::path!("trunks"), move || handlers::trunks(&api));
    list.or(cancel).unify()
}

/// `GET /health`, `GET /livez`, `GET /readyz`, `GET /metrics`.
fn state(api: Arc<Api>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone + Send + Sync {
    let (of_health, of_metrics) = (api.clone(), api.clone());
    let health = read(warp::path!("health"), move || handlers::health(&of_health));
    let ready = read(warp::path!("readyz"), move || handlers::ready(&api));
    let metrics = read(warp::path!("metrics"), move || handlers::metrics(&of_metrics));
    let live = read(warp::path!("livez"), handlers::live);
    health.or(live).unify().or(ready).unify().or(metrics).unify()
}

/// A read-only path whose response is available at once.
fn read<P, F>(path: P, answer: F) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone + Send + Sync
where
    P: Filter<Extract = (), Error = Rejection> + Clone + Send + Sync,
    F: Fn() -> Response + Clone + Send + Sync,
{
    path.and(get_or_head().map(answer).or(other_methods(READ)).unify())
}

/// HEAD is GET without the body, which hyper omits (RFC 9110 section 9.3.2).
fn get_or_head() -> impl Filter<Extract = (), Error = Rejection> + Copy + Send + Sync {
    warp::get().or(warp::head()).unify()
}

/// The response to all other methods: 405, or the allowed methods to OPTIONS.
fn other_methods(allow: &'static str) -> impl Filter<Extract = (Response,), Error = Infallible> + Copy + Send + Sync {
    warp::method().map(move |method| not_that_method(&method, allow))
}

fn not_that_method(method: &Method, allow: &'static str) -> Response {
    if method != Method::OPTIONS {
        return Problem::method_not_allowed(allow).into_response();
    }
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

/// Turns every rejection into a problem document.
fn closed<F>(routes: F) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync
where
    F: Filter<Extract = (Response,), Error = Rejection> + Clone + Send + Sync,
{
    routes
        .recover(|rejection: Rejection| async move { Ok::<_, Infallible>(Problem::from(&rejection).into_response()) })
        .unify()
}

fn with<T: Clone + Send + Sync>(value: T) -> impl Filter<Extract = (T,), Error = Infallible> + Clone + Send + Sync {
    warp::any().map(move || value.clone())
}

fn answer(result: Result<Response, Problem>) -> Response {
    result.unwrap_or_else(Problem::into_response)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn routes() -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static {
        let settings = HttpSettings { openapi: json!({"openapi": "3.1.0"}), ..HttpSettings::default() };
        // An API without NATS: a request that gets as far as needing it is answered 503.
        api(Api::default(), Arc::new(settings))
    }

    async fn ask(method: &str, path: &str) -> (http::response::Parts, Bytes) {
        warp::test::request().method(method).path(path).reply(&routes()).await.into_parts()
    }

    fn status_of(body: &[u8]) -> Value {
        serde_json::from_slice::<Value>(body).unwrap()["status"].clone()
    }

    #[tokio::test]
    async fn health_and_livez_answer_status_and_version() {
        for path in ["/health", "/health/", "/livez", "/health?t=1"] {
            let (parts, body) = ask("GET", path).await;
            assert_eq!(parts.status, 200, "{path}");
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((&body["status"], &body["version"]), (&json!("ok"), &json!(env!("CARGO_PKG_VERSION"))));
        }
    }

    #[tokio::test]
    async fn the_admin_listener_answers_probes_and_metrics_and_places_no_calls() {
        let ask = async |method: &str, path: &str| {
            warp::test::request().method(method).path(path).reply(&admin(Api::default())).await.status().as_u16()
        };
        for (path, status) in [("/livez", 200), ("/health", 200), ("/metrics", 200), ("/readyz", 503)] {
            assert_eq!(ask("GET", path).await, status, "{path}");
        }
        for path in ["/call", "/jobs", "/jobs/a", "/openapi.json"] {
            assert_eq!((ask("GET", path).await, ask("POST", path).await), (404, 404), "{path}");
        }
    }

    #[tokio::test]
    async fn the_openapi_document_is_the_one_of_the_settings() {
        let (parts, body) = ask("GET", "/openapi.json").await;
        assert_eq!((parts.status.as_u16(), &body[..]), (200, &br#"{"openapi":"3.1.0"}"#[..]));
    }

    #[tokio::test]
    async fn a_method_that_a_path_does_not_take_is_405_with_those_it_takes() {
        let table = [
            ("/call", SUBMIT, "GET HEAD PUT DELETE PATCH TRACE BREW"),
            ("/jobs", READ_OR_CANCEL, "POST PUT"),
            ("/jobs/a%2Fb", READ_OR_CANCEL, "POST PUT PATCH"),
            ("/health", READ, "POST DELETE CONNECT"),
            ("/readyz", READ, "POST"),
        ];
        for (path, allow, methods) in table {
            for method in methods.split(' ') {
                let (parts, body) = ask(method, path).await;
                assert_eq!((parts.status.as_u16(), &parts.headers["allow"]), (405, &allow.parse().unwrap()), "{path}");
                assert_eq!(status_of(&body), 405, "{method} {path}");
            }
            let (parts, body) = ask("OPTIONS", path).await;
            assert_eq!((parts.status.as_u16(), &parts.headers["allow"]), (204, &allow.parse().unwrap()), "{path}");
            assert!(body.is_empty());
        }
        assert_eq!(ask("HEAD", "/health").await.0.status, 200);
    }

    #[tokio::test]
    async fn a_path_that_is_not_there_is_a_problem_document() {
        for path in ["/", "/nothing", "/health/more", "/call/more", "/%FF", "//health", "/Jobs"] {
            let (parts, body) = ask("GET", path).await;
            assert_eq!(parts.status, 404, "{path}");
            assert_eq!(parts.headers["content-type"], "application/problem+json");
            assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["type"], "urn:sipstuff:problem:no-such-route");
        }
    }

    #[tokio::test]
    async fn a_request_is_judged_even_while_nats_is_unavailable() {
        let good = r#"{"dest": "+49301234567", "text": "Hello"}"#;
        let table = [
            ("{", "application/json", 400, "malformed-json"),
            ("", "application/json", 400, "malformed-json"),
            (r#"{"dest": ""}"#, "application/json", 422, "invalid-request"),
            (good, "text/xml", 415, "unsupported-media-type"),
            (good, "application/json", 503, "queue-unavailable"),
        ];
        for (sent, media_type, status, kind) in table {
            let request = warp::test::request().method("POST").path("/call").header("content-type", media_type);
            let (parts, body) = request.body(sent).reply(&routes()).await.into_parts();
            assert_eq!(parts.status, status, "{sent}");
            assert_eq!(parts.headers["content-type"], "application/problem+json");
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["type"], format!("urn:sipstuff:problem:{kind}"));
        }
    }

    #[tokio::test]
    async fn an_invalid_idempotency_key_is_refused_whether_it_would_be_used_or_not() {
        for sent in [r#"{"id": "a", "dest": "1", "text": "x"}"#, r#"{"dest": "1", "text": "x"}"#] {
            let request = warp::test::request().method("POST").path("/call").header("idempotency-key", "");
            assert_eq!(request.body(sent).reply(&routes()).await.status(), 422, "{sent}");
        }
    }

    #[tokio::test]
    async fn a_page_of_another_site_cannot_place_a_call() {
        let request = warp::test::request().method("POST").path("/call").header("sec-fetch-site", "cross-site");
        assert_eq!(request.body(r#"{"dest": "1", "text": "x"}"#).reply(&routes()).await.status(), 403);
    }

    #[tokio::test]
    async fn reads_say_what_is_wrong_or_that_nats_is_unavailable() {
        let table =
            [("/jobs?page=2", 422), ("/jobs?limit=0", 422), ("/jobs/%FF", 400), ("/jobs", 503), ("/jobs/a%2Fb", 503)];
        for (path, status) in table {
            let (parts, body) = ask("GET", path).await;
            assert_eq!((parts.status.as_u16(), status_of(&body)), (status, json!(status)), "{path}");
            assert_eq!(parts.headers.contains_key("retry-after"), status == 503, "{path}");
        }
    }

    #[tokio::test]
    async fn a_cancel_names_its_calls_and_comes_from_no_other_site() {
        let table =
            [("/jobs", 422), ("/jobs?batch=", 422), ("/jobs?batch=a&status=queued", 422), ("/jobs?batch=a", 503)];
        for (path, status) in table {
            assert_eq!(ask("DELETE", path).await.0.status, status, "{path}");
        }
        assert_eq!(ask("DELETE", "/jobs/a").await.0.status, 503);
        for path in ["/jobs/a", "/jobs?batch=a"] {
            let request = warp::test::request().method("DELETE").path(path).header("sec-fetch-site", "cross-site");
            assert_eq!(request.reply(&routes()).await.status(), 403, "{path}");
        }
    }

    #[tokio::test]
    async fn readiness_names_each_check() {
        let (parts, body) = ask("GET", "/readyz").await;
        assert_eq!(parts.status, 503);
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["ready"], false);
        let names: Vec<_> = body["checks"].as_array().unwrap().iter().map(|check| check["name"].clone()).collect();
        assert_eq!(names, ["nats", "runner", "index"]);
    }
}
