//! `/health`, `/livez`, `/readyz`; and what is answered without NATS.

use serde_json::json;
use tokio::sync::OnceCell;

use super::{new_request, problem, shared_operator};
use crate::support::process::Scratch;
use crate::support::{NatsServer, Operator, OperatorOptions, PATIENCE, eventually, get_json, post_call};

#[tokio::test]
async fn health_has_the_version() {
    let health = get_json(shared_operator().await, "/health").await.json;
    assert_eq!((&health["status"], &health["version"]), (&json!("ok"), &json!(env!("CARGO_PKG_VERSION"))));
}

#[tokio::test]
async fn a_process_that_answers_is_live() {
    assert_eq!(get_json(shared_operator().await, "/livez").await.status, 200);
}

#[tokio::test]
async fn readiness_names_its_checks() {
    let reply = get_json(shared_operator().await, "/readyz").await;
    assert_eq!(reply.status, 200);
    let ready = &reply.json;
    assert_eq!(ready["ready"], true);
    let checks = ready["checks"].as_array().expect("checks");
    for name in ["nats", "runner", "index"] {
        assert!(checks.iter().any(|check| check["name"] == name && check["ready"] == true), "{name} in {ready}");
    }
}

/// The base URLs of two operators without NATS: one that had it before, and one that never did. Shared, as
/// [`shared_operator`] is.
async fn without_nats() -> [&'static str; 2] {
    static SHARED: OnceCell<(NatsServer, Scratch, [Operator; 2])> = OnceCell::const_new();
    let (_, _, operators) = SHARED
        .get_or_init(async || {
            let nats = NatsServer::start().await;
            let folder = Scratch::new("without-nats");
            let before = Operator::start(OperatorOptions::local(&nats, &folder.join("before"))).await;
            nats.kill();
            let never = Operator::start_unready(OperatorOptions::local(&nats, &folder.join("never"))).await;
            let noticed = async || get_json(before.base(), "/readyz").await.status == 503;
            eventually("it is not ready", PATIENCE, noticed).await;
            (nats, folder, [before, never])
        })
        .await;
    [operators[0].base(), operators[1].base()]
}

#[tokio::test]
async fn without_nats_a_call_is_refused_with_503_and_when_to_try_again() {
    for base in without_nats().await {
        let reply = post_call(base, &new_request()).await;
        assert!(reply.header("retry-after").parse::<u32>().is_ok());
        problem(&reply, 503);
    }
}

#[tokio::test]
async fn without_nats_calls_cannot_be_listed() {
    for base in without_nats().await {
        problem(&get_json(base, "/jobs").await, 503);
    }
}

#[tokio::test]
async fn without_nats_the_operator_is_healthy_but_not_ready() {
    for base in without_nats().await {
        let ready = get_json(base, "/readyz").await;
        assert_eq!((ready.status.as_u16(), &ready.json["ready"]), (503, &json!(false)));
        let checks = ready.json["checks"].as_array().unwrap();
        let nats = checks.iter().find(|check| check["name"] == "nats").unwrap();
        assert_eq!(nats["ready"], false, "{ready:?}");
        assert_eq!(get_json(base, "/health").await.status, 200);
        assert_eq!(get_json(base, "/livez").await.status, 200);
    }
}
