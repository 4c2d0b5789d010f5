//! Pause: nothing new is dialled until `resume`, while running calls go on.

use serde_json::json;
use sipstuff_operator::call::Status;

use crate::support::{Operator, PATIENCE, Setup, accepted, eventually, get_json, request, with};

/// An operator with a call that runs, a pause, and a call that waits.
async fn paused(setup: &Setup) -> Operator {
    let operator = setup.operator().await;
    accepted(&operator, &with(request("+490", "a"), json!({"id": "running"}))).await;
    setup.becomes("running", Status::Running).await;
    let paused = setup.command(&["pause", "--for", "10m"]).await;
    assert_eq!(paused.code, Some(0), "{}", paused.text());
    accepted(&operator, &with(request("+491", "b"), json!({"id": "held"}))).await;
    operator
}

async fn says_that_it_is_paused(operator: &Operator) {
    let paused = async || !get_json(operator.base(), "/health").await.json["queue"]["paused_until"].is_null();
    eventually("/health says that it is paused", PATIENCE, paused).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_lets_running_calls_end() {
    let setup = Setup::local(2.0).await;
    let _operator = paused(&setup).await;
    assert_eq!(setup.events.final_of("running", PATIENCE).await.status, Status::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_shown_by_health_and_metrics() {
    let setup = Setup::local(2.0).await;
    let operator = paused(&setup).await;
    says_that_it_is_paused(&operator).await;
    assert!(get_json(operator.base(), "/metrics").await.text.contains("sipstuff_queue_paused 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_holds_new_calls_back_through_a_restart_until_resume() {
    let setup = Setup::local(2.0).await;
    let operator = paused(&setup).await;
    setup.end_of("running").await;

    let operator = operator.restart().await;
    says_that_it_is_paused(&operator).await;
    assert!(get_json(operator.base(), "/metrics").await.text.contains("sipstuff_queue_paused 1"));
    assert_eq!(setup.events.statuses_of("held"), [Status::Queued]);
    assert_eq!(setup.command(&["resume"]).await.code, Some(0));
    assert_eq!(setup.events.final_of("held", PATIENCE).await.status, Status::Succeeded);
}
