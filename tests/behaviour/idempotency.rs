//! Idempotency: one call per id, however often it is requested: by whom, in which way, at once or after its Job is gone.

use futures::future::join_all;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::http::{http_client, send};
use crate::support::status::messages_in;
use crate::support::{Operator, PATIENCE, Setup, accepted, eventually, name_of, post_call, request_of, with};

/// Asserts that there was one call in all, and no dead letter.
async fn one_call_in_all(setup: &Setup, id: &str) {
    setup.all_end_once(&[id]).await;
    assert_eq!(setup.jobs().await.len(), 1);
    assert_eq!(setup.node().start_count(), 1);
    assert_eq!(messages_in(&setup.js, "SIP_DEAD").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_published_many_times_is_one_call() {
    let setup = Setup::kubernetes(1.0).await;
    let _operators = Operator::start_replicas(&setup.options(), 2).await;
    // Without `Nats-Msg-Id`, so that the server does not drop duplicates.
    let request = request_of("by-nats").to_string();
    join_all((0..10).map(|_| setup.publish(&[], request.clone()))).await;
    one_call_in_all(&setup, "by-nats").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_comes_by_nats_and_by_http_to_two_replicas_at_once_is_one_call() {
    let setup = Setup::kubernetes(1.0).await;
    let operators = Operator::start_replicas(&setup.options(), 2).await;
    let request = request_of("by-both");
    let posts = join_all((0..10).map(async |n| post_call(operators[n % 2].base(), &request).await));
    let publishes = join_all((0..10).map(|_| setup.publish(&[], request.to_string())));
    let (posts, _) = futures::join!(posts, publishes);
    for reply in posts {
        assert_eq!((reply.status.as_u16(), &reply.json["job_name"]), (202, &json!(name_of("by-both"))), "{reply:?}");
    }
    one_call_in_all(&setup, "by-both").await;
}

/// A request without an id, whose text is this id.
fn nameless(id: &str) -> Value {
    let mut request = request_of(id);
    request.as_object_mut().unwrap().remove("id");
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_a_header_is_one_call_by_nats_and_by_http() {
    let setup = Setup::kubernetes(1.0).await;
    let operators = Operator::start_replicas(&setup.options(), 2).await;
    let request = nameless("by-key");
    let post = async |n: usize| {
        let post = http_client().post(format!("{}/call", operators[n % 2].base()));
        send(post.header("Idempotency-Key", "by-key").json(&request)).await
    };
    for reply in join_all((0..10).map(post)).await {
        assert_eq!((reply.status.as_u16(), &reply.json["id"]), (202, &json!("by-key")), "{reply:?}");
    }
    setup.publish(&[("Nats-Msg-Id", "by-key")], request.to_string()).await;
    one_call_in_all(&setup, "by-key").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_whose_job_was_removed_is_still_the_call_that_has_ended() {
    removed_and_requested_again(&Setup::kubernetes(0.2).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_whose_local_job_was_removed_is_still_the_call_that_has_ended() {
    removed_and_requested_again(&Setup::local(0.2).await).await;
}

async fn removed_and_requested_again(setup: &Setup) {
    let operator = Operator::start(setup.options().env("JOB_TTL_SECONDS", 0)).await;
    let request = request_of("again");
    setup.publish(&[], request.to_string()).await;
    setup.all_end_once(&["again"]).await;
    eventually("the Job is removed", PATIENCE, async || setup.jobs().await.is_empty()).await;

    let reply = accepted(&operator, &request).await;
    assert_eq!(reply.json["status"], "succeeded", "{reply:?}");
    setup.publish(&[], request.to_string()).await;
    setup.publish(&[], request_of("marker").to_string()).await;
    setup.end_of("marker").await;
    let operator = operator.restart().await;
    assert_eq!(post_call(operator.base(), &request).await.json["duplicate"], json!(true));
    setup.all_end_once(&["again"]).await;
}

/// A call that runs for longer than the ack wait of 30 s, held by an operator that is frozen now; and another operator, which
/// has been delivered the call meanwhile.
async fn taken_over_from_a_frozen_operator(setup: &Setup) -> (Operator, Operator) {
    let mut first = setup.operator().await;
    setup.run_calls("call", 1).await;
    first.freeze();
    let second = setup.operator().await;
    eventually("the call is redelivered", PATIENCE, async || setup.redelivered().await == 1).await;
    (first, second)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_replica_is_killed_is_carried_on_by_another() {
    let setup = Setup::kubernetes(45.0).await;
    let mut first = setup.operator().await;
    let ids = setup.run_calls("call", 1).await;
    first.kill9();
    let _second = setup.operator().await;
    eventually("the call is redelivered", PATIENCE, async || setup.redelivered().await == 1).await;
    setup.all_end_once(&ids).await;
    assert_eq!(setup.node().start_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_replica_freezes_and_thaws_is_carried_on_once() {
    let setup = Setup::kubernetes(45.0).await;
    let (mut first, _second) = taken_over_from_a_frozen_operator(&setup).await;
    first.signal(Signal::SIGCONT);
    first.ready().await;
    setup.all_end_once(&["call-0"]).await;
    assert_eq!(setup.node().start_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_replica_freezes_thaws_and_is_killed_is_carried_on_by_another() {
    let setup = Setup::kubernetes(45.0).await;
    let (mut first, _second) = taken_over_from_a_frozen_operator(&setup).await;
    first.signal(Signal::SIGCONT);
    first.ready().await;
    first.kill9();
    setup.all_end_once(&["call-0"]).await;
    assert_eq!(setup.node().start_count(), 1);
}

/// An operator with a call, and another request with the id of that call.
async fn with_a_taken_id(setup: &Setup) -> (Operator, Value) {
    let operator = setup.operator().await;
    accepted(&operator, &request_of("taken")).await;
    (operator, with(request_of("taken"), json!({"text": "another text"})))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_for_another_request_is_refused_while_the_call_runs_and_after_it_has_ended() {
    let setup = Setup::local(1.0).await;
    let (operator, other) = with_a_taken_id(&setup).await;
    let reply = post_call(operator.base(), &other).await;
    assert_eq!((reply.status.as_u16(), &reply.json["errors"][0]["field"]), (409, &json!("id")), "{reply:?}");
    setup.all_end_once(&["taken"]).await;
    assert_eq!(post_call(operator.base(), &other).await.status, 409);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_that_is_reused_for_another_request_is_refused_with_422() {
    let setup = Setup::local(0.2).await;
    let operator = setup.operator().await;
    let post = async |text: &str| {
        let request = http_client().post(format!("{}/call", operator.base())).header("Idempotency-Key", "\"key-1\"");
        send(request.json(&json!({"dest": "+49301", "text": text}))).await
    };
    assert_eq!(post("key-1").await.status, 202);
    let reply = post("second").await;
    assert_eq!(reply.status, 422, "{reply:?}");
    assert_eq!(reply.json["type"], json!("urn:sipstuff:problem:idempotency-key-reused"));
    assert_eq!(reply.json["errors"][0]["field"], json!("Idempotency-Key"));
    setup.all_end_once(&["key-1"]).await;
    assert_eq!(setup.calls_with("second"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_for_another_request_leaves_the_first_call_untouched() {
    let setup = Setup::local(1.0).await;
    let (_operator, other) = with_a_taken_id(&setup).await;
    setup.publish(&[], other.to_string()).await;
    setup.all_end_once(&["taken"]).await;
    // After the first has ended too.
    setup.publish(&[], other.to_string()).await;
    setup.queue_empties().await;
    assert_eq!(setup.calls_with("another text"), 0);
    assert_eq!(messages_in(&setup.js, "SIP_DEAD").await, 2);
    setup.all_end_once(&["taken"]).await;
    assert_eq!(setup.events.finals().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_with_an_id_of_another_request_is_a_dead_letter_as_it_was_with_the_reason() {
    let setup = Setup::local(0.2).await;
    let (_operator, other) = with_a_taken_id(&setup).await;
    setup.publish(&[("X-Mine", "1")], other.to_string()).await;
    setup.all_end_once(&["taken"]).await;
    let dead = setup.js.get_stream("SIP_DEAD").await.unwrap();
    let letter = dead.get_raw_message(1).await.unwrap();
    let reason = letter.headers.get("Sip-Dead-Reason").unwrap().as_str();
    assert!(reason.contains("`taken`") && reason.contains("untouched"), "{reason}");
    assert_eq!((&*letter.payload, letter.headers.get("X-Mine").unwrap().as_str()), (other.to_string().as_bytes(), "1"));
}
