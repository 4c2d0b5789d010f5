//! Expiry: after `not_after` a call is not dialled any more.

use serde_json::json;
use sipstuff_operator::call::{Outcome, Status};

use crate::support::{PATIENCE, Setup, accepted, in_seconds, request, with};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_too_late_expires_in_the_queue() {
    let setup = Setup::local(0.2).await;
    let operator = setup.operator().await;
    accepted(&operator, &with(request("+491", "a"), json!({"id": "late", "not_after": in_seconds(-60)}))).await;

    let end = setup.events.final_of("late", PATIENCE).await;
    assert_eq!((end.status, end.attempt), (Status::Expired, 0));
    assert_eq!(setup.calls_to("+491").len(), 0);
    setup.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_next_attempt_would_be_too_late_expires_after_the_last_one() {
    let setup = Setup::local(0.2).await;
    let operator = setup.operator().await;
    let redialled = json!({"id": "redialled", "max_attempts": 5, "retry_delay": 3600, "not_after": in_seconds(600)});
    accepted(&operator, &with(request("+49486", "b"), redialled)).await;

    let end = setup.events.final_of("redialled", PATIENCE).await;
    assert_eq!((end.status, end.attempt, end.outcome), (Status::Expired, 1, Some(Outcome::Busy)));
    assert_eq!(setup.calls_to("+49486").len(), 1);
    setup.queue_empties().await;
}
