//! What is dialled next: by priority, what came due before what is new, batches in turn.

use jiff::Timestamp;
use serde_json::{Value, json};
use sipstuff_operator::call::Status;

use crate::support::{Operator, PATIENCE, Setup, eventually, in_seconds, request_of, with};

/// An operator that dials one call at a time and is busy with the first.
async fn one_at_a_time(setup: &Setup) -> Operator {
    let operator = Operator::start(setup.options().env("MAX_ACTIVE_CALLS", 1)).await;
    setup.run_calls("first", 1).await;
    operator
}

async fn queue(setup: &Setup, id: &str, fields: Value) {
    setup.publish(&[], with(request_of(id), fields).to_string()).await;
    setup.becomes(id, Status::Queued).await;
}

/// When each of these calls was placed, as soon as all of them were.
async fn placed(setup: &Setup, ids: &[&str]) -> Vec<Timestamp> {
    for id in ids {
        assert_eq!(setup.end_of(id).await.status, Status::Succeeded, "{id}");
    }
    let mut moments = Vec::new();
    for id in ids {
        let history = setup.history(id).await;
        moments.push(history.iter().find(|event| event.status == Status::Pending).expect("it was claimed").time);
    }
    moments
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_urgent_is_next_and_what_is_bulk_comes_last() {
    let setup = Setup::local(2.0).await;
    let _operator = one_at_a_time(&setup).await;
    queue(&setup, "bulk", json!({"priority": "bulk"})).await;
    queue(&setup, "normal", json!({})).await;
    queue(&setup, "urgent", json!({"priority": "urgent"})).await;
    setup.publish(&[("Sip-Priority", "urgent")], request_of("header").to_string()).await;
    setup.becomes("header", Status::Queued).await;
    let order = placed(&setup, &["urgent", "header", "normal", "bulk"]).await;
    assert!(order.is_sorted(), "{order:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_priority_that_does_not_exist_is_refused() {
    let setup = Setup::local(0.1).await;
    let _operator = setup.operator().await;
    setup.publish(&[("Sip-Priority", "high")], request_of("header").to_string()).await;
    let end = setup.end_of("header").await;
    assert_eq!(end.status, Status::Rejected);
    assert!(
        end.reason.is_some_and(|reason| reason.contains("Sip-Priority") && reason.contains("urgent, normal, bulk"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_due_goes_before_what_is_new() {
    let setup = Setup::local(5.0).await;
    let _operator = one_at_a_time(&setup).await;
    queue(&setup, "new", json!({})).await;
    setup.publish(&[], with(request_of("due"), json!({"not_before": in_seconds(2)})).to_string()).await;
    setup.becomes("due", Status::Scheduled).await;
    let order = placed(&setup, &["due", "new"]).await;
    assert!(order.is_sorted(), "{order:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_batch_and_a_small_one_take_turns() {
    let setup = Setup::local(0.3).await;
    assert_eq!(setup.command(&["pause"]).await.code, Some(0));
    let _operator = Operator::start(setup.options().env("MAX_ACTIVE_CALLS", 1)).await;
    for n in 0..20 {
        queue(&setup, &format!("large-{n}"), json!({"batch": "large"})).await;
    }
    for n in 0..3 {
        queue(&setup, &format!("small-{n}"), json!({"batch": "small"})).await;
    }
    assert_eq!(setup.command(&["resume"]).await.code, Some(0));
    eventually("the small one is dialled", PATIENCE, async || setup.calls_with("small-2") == 1).await;
    let before = (0..20).filter(|n| setup.calls_with(&format!("large-{n}")) > 0).count();
    assert!((2..=5).contains(&before), "{before} calls of the large batch came before the third of the small one");
}

/// Both feed the window with the same calls.
#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_that_feed_at_once_are_not_in_each_others_way() {
    let setup = Setup::local(0.0).await;
    assert_eq!(setup.command(&["pause"]).await.code, Some(0));
    let one = setup.operator().await;
    let other = Operator::start(setup.options_of_machine("other")).await;
    let ids: Vec<String> = (0..300).map(|n| format!("call-{n}")).collect();
    for id in &ids {
        setup.publish(&[], request_of(id).to_string()).await;
    }
    setup.becomes("call-299", Status::Queued).await;
    assert_eq!(setup.command(&["resume"]).await.code, Some(0));
    setup.all_end_once(&ids).await;
    for operator in [one, other] {
        assert!(!operator.log().contains("could not feed"), "{}", operator.log());
    }
}
