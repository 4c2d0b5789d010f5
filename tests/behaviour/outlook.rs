//! What a call or a batch that waits may expect: how many are before it, about when it is dialled, or why it is held.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sipstuff_operator::call::Status;

use crate::support::{Operator, PATIENCE, Setup, delete, eventually, get_json, request_of, with};

/// One call at a time, half a second each.
async fn one_at_a_time() -> (Setup, Operator) {
    let setup = Setup::local(0.5).await;
    let operator = Operator::start(setup.options().env("MAX_ACTIVE_CALLS", 1)).await;
    (setup, operator)
}

async fn queue(setup: &Setup, id: &str, fields: Value) {
    setup.publish(&[], with(request_of(id), fields).to_string()).await;
    setup.becomes(id, Status::Queued).await;
}

async fn outlook(operator: &Operator, id: &str) -> Value {
    get_json(operator.base(), &format!("/jobs/{id}")).await.json["outlook"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_waits_knows_how_many_are_before_it_and_about_when_its_turn_comes() {
    let (setup, operator) = one_at_a_time().await;
    setup.run_calls("first", 1).await;
    assert_eq!(setup.command(&["pause"]).await.code, Some(0));
    setup.end_of("first-0").await;
    for number in 0..5 {
        queue(&setup, &format!("normal-{number}"), json!({})).await;
    }
    queue(&setup, "bulk", json!({"priority": "bulk"})).await;
    queue(&setup, "urgent", json!({"priority": "urgent"})).await;
    for (id, ahead) in [("urgent", 0), ("normal-0", 1), ("normal-4", 5), ("bulk", 6)] {
        let outlook = outlook(&operator, id).await;
        assert_eq!((&outlook["ahead"], &outlook["expected_at"]), (&json!(ahead), &json!(null)), "{id}: {outlook}");
        assert_eq!(outlook["held"], "dialling is paused", "{id}");
    }
    assert_eq!(setup.command(&["resume"]).await.code, Some(0));
    setup.end_of("normal-0").await;
    let end = eventually_expected(&operator, "bulk").await;
    let now = Timestamp::now();
    assert!(end > now && end < now + SignedDuration::from_secs(60), "{end}");
    assert_eq!(setup.end_of("bulk").await.status, Status::Succeeded);
    assert_eq!(outlook(&operator, "bulk").await, json!(null), "it is over");
}

async fn eventually_expected(operator: &Operator, id: &str) -> Timestamp {
    let mut expected = None;
    eventually("it is expected", PATIENCE, async || {
        expected = outlook(operator, id).await["expected_at"].as_str().map(|text| text.parse().unwrap());
        expected.is_some()
    })
    .await;
    expected.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn in_turn_with_a_large_batch_a_small_one_waits_for_as_many_as_it_has_itself() {
    let (setup, operator) = one_at_a_time().await;
    assert_eq!(setup.command(&["pause"]).await.code, Some(0));
    for number in 0..40 {
        queue(&setup, &format!("large-{number}"), json!({"batch": "large"})).await;
    }
    for number in 0..3 {
        queue(&setup, &format!("small-{number}"), json!({"batch": "small"})).await;
    }
    eventually("the index knows them", PATIENCE, async || outlook(&operator, "small-2").await["ahead"] == json!(5))
        .await;
    assert_eq!(outlook(&operator, "large-39").await["ahead"], json!(42));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_says_what_became_of_its_calls_and_why_it_is_held() {
    let (setup, operator) = one_at_a_time().await;
    for number in 0..3 {
        setup.publish(&[], with(request_of(&format!("call-{number}")), json!({"batch": "list"})).to_string()).await;
    }
    for number in 0..3 {
        setup.end_of(&format!("call-{number}")).await;
    }
    assert_eq!(setup.command(&["pause", "--batch", "list"]).await.code, Some(0));
    eventually("it is paused", PATIENCE, async || {
        get_json(operator.base(), "/health").await.json["queue"]["paused_batches"] == json!(["list"])
    })
    .await;
    queue(&setup, "held", json!({"batch": "list"})).await;
    let state = get_json(operator.base(), "/batches/list").await.json;
    let expected = json!({
        "batch": "list", "total": 4, "counts": {"queued": 1, "succeeded": 3}, "heard": {"full": 3}, "waiting": 1,
        "expected_end": null, "held": "batch list is paused",
    });
    assert_eq!(state, expected);
    let cancelled = delete(operator.base(), "/batches/list").await;
    assert_eq!(
        (cancelled.status.as_u16(), &cancelled.json["cancelled"], &cancelled.json["ended"]),
        (202, &json!(1), &json!(3))
    );
    let unknown = get_json(operator.base(), "/batches/other").await;
    assert_eq!((unknown.status.as_u16(), &unknown.json["type"]), (404, &json!("urn:sipstuff:problem:no-such-batch")));
}
