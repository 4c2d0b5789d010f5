//! One call per id, however often it is asked for: by whom, by which way, at once or after its Job is long gone.

use futures::future::join_all;
use nix::sys::signal::Signal;
use serde_json::json;
use sipstuff_operator::call::Status;

use crate::support::setup::{PATIENCE, Stage, name_of, request_of};
use crate::support::status::{http_client, messages_in, send};
use crate::support::{Operator, eventually, post_call};

/// Asserts that the call was placed once and that nothing of it is left in the queue.
async fn once(stage: &Stage, id: &str) {
    stage.end_of(id).await;
    stage.queue_empties().await;
    stage.was_placed_once(id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_comes_many_times_by_nats_and_by_http_is_one_call() {
    let stage = Stage::cluster(1.0).await;
    let operators = Operator::start_replicas(&stage.options(), 2).await;
    let base = |n: usize| operators[n % 2].base().to_owned();

    // By NATS, within the server's own window for duplicates and past it, which is what no `Nats-Msg-Id` means.
    let by_nats = request_of("by-nats").to_string();
    join_all((0..10).map(|_| stage.publish(&[], by_nats.clone()))).await;
    // By both ways at once, to both replicas.
    let by_both = request_of("by-both");
    let posts = join_all((0..10).map(async |n| post_call(&base(n), &by_both).await));
    let publishes = join_all((0..10).map(|_| stage.publish(&[], by_both.to_string())));
    let (posts, _) = futures::join!(posts, publishes);
    for reply in posts {
        assert_eq!((reply.status.as_u16(), &reply.json["job_name"]), (202, &json!(name_of("by-both"))), "{reply:?}");
    }
    // By a header, where the body has no id.
    let mut nameless = request_of("by-key");
    nameless.as_object_mut().unwrap().remove("id");
    let post = async |n: usize| {
        let request = http_client().post(format!("{}/call", base(n))).header("Idempotency-Key", "by-key");
        send(request.json(&nameless)).await
    };
    for reply in join_all((0..10).map(post)).await {
        assert_eq!((reply.status.as_u16(), &reply.json["id"]), (202, &json!("by-key")), "{reply:?}");
    }
    stage.publish(&[("Nats-Msg-Id", "by-key")], nameless.to_string()).await;

    for id in ["by-nats", "by-both", "by-key"] {
        once(&stage, id).await;
    }
    assert_eq!(stage.jobs().await.len(), 3);
    assert_eq!(stage.node().start_count(), 3);
    assert_eq!(messages_in(&stage.js, "SIP_DEAD").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_whose_job_was_removed_is_still_the_call_that_has_ended() {
    let cluster = async {
        let stage = Stage::cluster(0.2).await;
        removed_and_asked_again(&stage).await;
    };
    let machine = async {
        let stage = Stage::machine(0.2).await;
        removed_and_asked_again(&stage).await;
    };
    futures::join!(cluster, machine);
}

async fn removed_and_asked_again(stage: &Stage) {
    let operator = Operator::start(stage.options().env("JOB_TTL_SECONDS", 0)).await;
    let request = request_of("again");
    stage.publish(&[], request.to_string()).await;
    once(stage, "again").await;
    eventually("the Job is removed", PATIENCE, async || stage.jobs().await.is_empty()).await;

    let reply = post_call(operator.base(), &request).await;
    assert_eq!((reply.status.as_u16(), &reply.json["status"]), (202, &json!("succeeded")), "{reply:?}");
    stage.publish(&[], request.to_string()).await;
    stage.publish(&[], request_of("marker").to_string()).await;
    stage.end_of("marker").await;
    let operator = operator.restart().await;
    assert_eq!(post_call(operator.base(), &request).await.json["duplicate"], json!(true));
    once(stage, "again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_replica_is_killed_or_freezes_is_carried_on_by_another() {
    // Longer than the ack wait of 30 s and the time until the frozen one is thawed.
    let stage = Stage::cluster(45.0).await;
    let mut first = Operator::start(stage.options()).await;
    for id in ["killed", "frozen"] {
        stage.publish(&[], request_of(id).to_string()).await;
        stage.becomes(id, Status::Running).await;
    }
    first.signal(Signal::SIGSTOP);
    let _second = stage.operator().await;
    let second_holds = async || {
        let stream = stage.js.get_stream("SIP_CALLS").await.unwrap();
        let mut consumer: async_nats::jetstream::consumer::PullConsumer = stream.get_consumer("dialler").await.unwrap();
        consumer.info().await.unwrap().num_redelivered == 2
    };
    eventually("both are redelivered", PATIENCE, second_holds).await;
    first.signal(Signal::SIGCONT);
    first.ready().await;
    first.kill9();
    for id in ["killed", "frozen"] {
        once(&stage, id).await;
    }
    assert_eq!(stage.node().start_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_that_is_reused_for_another_request_is_refused_with_422() {
    let stage = Stage::machine(0.2).await;
    let operator = stage.operator().await;
    let post = async |text: &str| {
        let request = http_client().post(format!("{}/call", operator.base())).header("Idempotency-Key", "\"key-1\"");
        send(request.json(&json!({"dest": "+49301", "text": text}))).await
    };
    assert_eq!(post("key-1").await.status, 202);
    let reply = post("second").await;
    assert_eq!(reply.status, 422, "{reply:?}");
    assert_eq!(reply.json["type"], json!("urn:sipstuff:problem:idempotency-key-reused"));
    assert_eq!(reply.json["errors"][0]["field"], json!("Idempotency-Key"));
    once(&stage, "key-1").await;
    assert_eq!(stage.calls_with("second"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_for_another_request_leaves_the_first_call_untouched() {
    let stage = Stage::machine(1.0).await;
    let operator = stage.operator().await;
    let (first, mut other) = (request_of("taken"), request_of("taken"));
    other["text"] = json!("another text");
    assert_eq!(post_call(operator.base(), &first).await.status, 202);

    let reply = post_call(operator.base(), &other).await;
    assert_eq!((reply.status.as_u16(), &reply.json["errors"][0]["field"]), (409, &json!("id")), "{reply:?}");
    stage.publish(&[("X-Mine", "1")], other.to_string()).await;
    once(&stage, "taken").await;
    // After the first has ended too.
    stage.publish(&[], other.to_string()).await;
    assert_eq!(post_call(operator.base(), &other).await.status, 409);
    stage.queue_empties().await;

    assert_eq!(stage.calls_with("another text"), 0);
    let dead = stage.js.get_stream("SIP_DEAD").await.unwrap();
    assert_eq!(dead.cached_info().state.messages, 2);
    let letter = dead.get_raw_message(1).await.unwrap();
    let reason = letter.headers.get("Sip-Dead-Reason").unwrap().as_str();
    assert!(reason.contains("`taken`") && reason.contains("untouched"), "{reason}");
    assert_eq!((&*letter.payload, letter.headers.get("X-Mine").unwrap().as_str()), (other.to_string().as_bytes(), "1"));
    once(&stage, "taken").await;
    assert_eq!(stage.events.finals().len(), 1);
}
