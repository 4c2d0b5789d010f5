//! The HTTP API, as a client sees it. Most tests need no more than a running operator, and share one.

mod errors;
mod health;
mod limits;
mod pages;
mod same_origin;
mod submit;

use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::support::http::{Reply, http_client, send};
use crate::support::process::Scratch;
use crate::support::{NatsServer, Operator, OperatorOptions, with};

/// The base URL of an operator that all tests of this process share, with a local runner whose calls end at once. It stays
/// until the process ends: neither it nor its nats-server belongs to the runtime of the test that started it.
async fn shared_operator() -> &'static str {
    static SHARED: OnceCell<(NatsServer, Scratch, Operator)> = OnceCell::const_new();
    let (_, _, operator) = SHARED
        .get_or_init(async || {
            let nats = NatsServer::start().await;
            let folder = Scratch::new("http");
            let options = OperatorOptions::local(&nats, &folder.join("state")).env("SIMULATE_SECONDS", 0);
            let operator = Operator::start(options).await;
            (nats, folder, operator)
        })
        .await;
    operator.base()
}

/// A valid request with an id that no other test uses.
fn new_request() -> Value {
    with(request_without_id(), json!({"id": format!("test/{} ä%", uuid::Uuid::now_v7())}))
}

fn request_without_id() -> Value {
    json!({"dest": "+49301234567", "text": "Hello"})
}

/// `POST /call` with this media type and body.
async fn post_body(base: &str, media_type: &str, body: impl Into<reqwest::Body>) -> Reply {
    send(http_client().post(format!("{base}/call")).header("content-type", media_type).body(body)).await
}

/// Asserts that the answer is a problem document with that status, and returns it.
fn problem(reply: &Reply, status: u16) -> &Value {
    assert_eq!(reply.status.as_u16(), status, "{reply:?}");
    assert_eq!(reply.header("content-type"), "application/problem+json");
    let problem = &reply.json;
    assert_eq!(problem["status"], status);
    for field in ["type", "title", "detail"] {
        assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{field} in {problem}");
    }
    problem
}

/// The fields that a problem document has errors for, sorted.
fn fields_with_errors(problem: &Value) -> Vec<&str> {
    let errors = problem["errors"].as_array().expect("errors");
    let mut fields: Vec<&str> = errors.iter().map(|error| error["field"].as_str().expect("a field")).collect();
    fields.sort_unstable();
    fields
}
