//! Errors: each has its status, and a problem document.

use reqwest::{Method, StatusCode};
use serde_json::json;

use super::{fields_with_errors, new_request, post_body, problem, shared_operator};
use crate::support::http::{http_client, send};
use crate::support::{get_json, post_call};

#[tokio::test]
async fn a_body_that_is_not_json_is_400() {
    let base = shared_operator().await;
    for body in [b"{".to_vec(), b"\xff".to_vec(), Vec::new()] {
        problem(&post_body(base, "application/json", body).await, 400);
    }
}

#[tokio::test]
async fn a_body_of_another_media_type_is_415() {
    let base = shared_operator().await;
    for media_type in ["text/xml", "text/plain", "application/x-www-form-urlencoded"] {
        problem(&post_body(base, media_type, new_request().to_string()).await, 415);
    }
}

#[tokio::test]
async fn a_request_that_is_not_valid_is_422_with_every_field_that_is_wrong() {
    let base = shared_operator().await;
    let reply = post_call(base, &json!({"text": "x", "repeat": 0, "colour": "red"})).await;
    let fields = fields_with_errors(problem(&reply, 422));
    for field in ["dest", "repeat", "colour"] {
        assert!(fields.contains(&field), "{field} in {fields:?}");
    }
}

#[tokio::test]
async fn a_path_that_does_not_exist_is_404() {
    let base = shared_operator().await;
    for path in ["/nothing", "/call/more", "/jobs/sipcall-none-aaaaaaaaaa", "/jobs/none%2Fsuch", "/jobs/none/such"] {
        problem(&get_json(base, path).await, 404);
    }
}

#[tokio::test]
async fn a_path_that_is_not_utf_8_is_400() {
    let base = shared_operator().await;
    problem(&get_json(base, "/jobs/%FF").await, 400);
}

#[tokio::test]
async fn a_method_that_a_path_does_not_take_is_405_with_those_that_it_takes() {
    let base = shared_operator().await;
    let table = [(Method::GET, "/call", "POST"), (Method::POST, "/jobs", "GET"), (Method::DELETE, "/health", "GET")];
    for (method, path, takes) in table {
        let reply = send(http_client().request(method, format!("{base}{path}"))).await;
        assert!(reply.header("allow").contains(takes));
        problem(&reply, 405);
    }
}

#[tokio::test]
async fn options_names_the_methods_of_a_path() {
    let base = shared_operator().await;
    let options = send(http_client().request(Method::OPTIONS, format!("{base}/call"))).await;
    assert_eq!((options.status, options.header("allow")), (StatusCode::NO_CONTENT, "POST, OPTIONS"));
}

#[tokio::test]
async fn head_is_answered_like_get() {
    let base = shared_operator().await;
    let head = send(http_client().head(format!("{base}/jobs"))).await;
    assert_eq!(head.status, StatusCode::OK);
}
