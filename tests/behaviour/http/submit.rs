//! `POST /call`: a call is accepted, found again, and the same request is the same call.

use serde_json::{Value, json};

use super::{new_request, problem, request_without_id, shared_operator};
use crate::support::http::{Reply, http_client, send};
use crate::support::{PATIENCE, eventually, get_json, post_call, with};

fn encoded(id: &str) -> String {
    percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[tokio::test]
async fn an_accepted_call_is_found_by_its_location_its_name_and_its_id() {
    let base = shared_operator().await;
    let request = new_request();
    let id = request["id"].as_str().unwrap();
    let reply = post_call(base, &request).await;
    assert_eq!(reply.status, 202);
    let accepted = &reply.json;
    let name = accepted["job_name"].as_str().expect("a name");
    assert_eq!(reply.header("location"), format!("/jobs/{name}"));
    assert_eq!((&accepted["id"], &accepted["duplicate"]), (&json!(id), &json!(false)));
    assert!(accepted["namespace"].is_string() && accepted["status"].is_string(), "{accepted}");
    for path in [reply.header("location"), &format!("/jobs/{name}"), &format!("/jobs/{}", encoded(id))] {
        let job = get_json(base, path).await.json;
        assert_eq!((&job["name"], &job["id"]), (&json!(name), &json!(id)), "{path}");
        for field in ["namespace", "status", "created_at", "completed_at"] {
            assert!(job.get(field).is_some(), "{field} must be there, null or not: {job}");
        }
    }
}

#[tokio::test]
async fn an_accepted_call_is_shown_with_its_end() {
    let base = shared_operator().await;
    let accepted = post_call(base, &new_request()).await;
    let succeeded = async || get_json(base, accepted.header("location")).await.json["status"] == "succeeded";
    eventually("it is shown as succeeded", PATIENCE, succeeded).await;
}

#[tokio::test]
async fn the_same_id_with_the_same_request_is_the_same_call() {
    let base = shared_operator().await;
    let request = new_request();
    let first = post_call(base, &request).await;
    let second = post_call(base, &request).await;
    assert_eq!(second.status, 202);
    assert_eq!((&second.json["job_name"], &second.json["duplicate"]), (&first.json["job_name"], &json!(true)));
}

#[tokio::test]
async fn the_same_id_with_another_request_is_a_conflict() {
    let base = shared_operator().await;
    let request = new_request();
    post_call(base, &request).await;
    let other = post_call(base, &with(request.clone(), json!({"text": "Something else"}))).await;
    let conflict = problem(&other, 409);
    assert_eq!(conflict["errors"][0]["field"], "id");
    let id = request["id"].as_str().unwrap();
    assert!(conflict["detail"].as_str().is_some_and(|detail| detail.contains(id)), "{conflict}");
}

async fn post_with_key(base: &str, key: &str, body: &Value) -> Reply {
    send(http_client().post(format!("{base}/call")).header("Idempotency-Key", key).json(body)).await
}

#[tokio::test]
async fn an_idempotency_key_is_the_id_of_a_request_without_one_quoted_or_not() {
    let base = shared_operator().await;
    let key = uuid::Uuid::now_v7().to_string();
    let first = post_with_key(base, &key, &request_without_id()).await.json;
    assert_eq!((&first["id"], &first["duplicate"]), (&json!(key), &json!(false)));
    let second = post_with_key(base, &format!("\"{key}\""), &request_without_id()).await.json;
    assert_eq!((&second["job_name"], &second["duplicate"]), (&first["job_name"], &json!(true)));
}

#[tokio::test]
async fn the_id_in_the_body_wins_over_an_idempotency_key() {
    let base = shared_operator().await;
    let request = new_request();
    let key = uuid::Uuid::now_v7().to_string();
    assert_eq!(post_with_key(base, &key, &request).await.json["id"], request["id"]);
}

#[tokio::test]
async fn every_request_without_an_id_is_a_call_of_its_own() {
    let base = shared_operator().await;
    let first = post_call(base, &request_without_id()).await.json;
    let second = post_call(base, &request_without_id()).await.json;
    assert_ne!(first["job_name"], second["job_name"]);
    assert_eq!((&first["duplicate"], &second["duplicate"]), (&json!(false), &json!(false)));
}
