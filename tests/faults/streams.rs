//! Streams, consumers and the bucket that somebody deletes or changes under a running operator: they are made again within
//! seconds, and what rests on them goes on.

use std::time::Duration;

use async_nats::jetstream::stream::Compression;
use futures::StreamExt;
use serde_json::{Value, json};
use sipstuff_operator::call::Status;

use crate::support::status::messages_in;
use crate::support::{Operator, PATIENCE, Setup, eventually, get_json, in_seconds, post_call, request_of, with};

/// Looks of the keeper are 3 s apart; this is two of them.
const TWO_LOOKS: Duration = Duration::from_secs(7);

/// What somebody deletes.
#[derive(Debug, Clone, Copy)]
enum Lost {
    Stream(&'static str),
    Consumer(&'static str, &'static str),
}

const ALL: [Lost; 10] = [
    Lost::Stream("SIP_CALLS"),
    Lost::Stream("SIP_QUEUE"),
    Lost::Stream("SIP_DIAL"),
    Lost::Stream("SIP_SCHEDULE"),
    Lost::Stream("SIP_STATUS"),
    Lost::Stream("SIP_DEAD"),
    Lost::Stream("KV_SIP_OPERATOR"),
    Lost::Consumer("SIP_CALLS", "admission"),
    Lost::Consumer("SIP_DIAL", "dialler-default"),
    Lost::Consumer("SIP_SCHEDULE", "due"),
];

impl Lost {
    async fn delete(self, setup: &Setup) {
        match self {
            Lost::Stream(stream) => {
                setup.js.delete_stream(stream).await.unwrap();
            }
            Lost::Consumer(stream, consumer) => {
                setup.js.delete_consumer_from_stream(consumer, stream).await.unwrap();
            }
        }
    }

    async fn is_there(self, setup: &Setup) -> bool {
        match self {
            Lost::Stream(stream) => setup.js.get_stream(stream).await.is_ok(),
            Lost::Consumer(stream, consumer) => match setup.js.get_stream(stream).await {
                Ok(stream) => stream.consumer_info(consumer).await.is_ok(),
                Err(_) => false,
            },
        }
    }
}

/// Posts a call and asserts that it is accepted; while its stream is missing it is refused, and that is fine.
async fn post(operator: &Operator, request: Value) {
    eventually(format!("{} is accepted", request["id"]), PATIENCE, async || {
        post_call(operator.base(), &request).await.status == 202
    })
    .await;
}

/// Calls of every kind that begin after the loss: all of them end as they should.
async fn new_calls_work(setup: &Setup, operator: &Operator, n: usize) {
    let id = |kind: &str| format!("{kind}-{n}");
    let request = |kind: &str, fields: Value| with(request_of(&id(kind)), fields);
    post(operator, request("plain", json!({}))).await;
    post(operator, request("redialled", json!({"dest": "+49486", "max_attempts": 2, "retry_delay": 1}))).await;
    post(operator, request("later", json!({"not_before": in_seconds(3)}))).await;
    setup.publish(&[], request("invalid", json!({"timeout": -1})).to_string()).await;

    assert_eq!(setup.end_of(&id("plain")).await.status, Status::Succeeded);
    assert_eq!(setup.end_of(&id("later")).await.status, Status::Succeeded);
    let end = setup.end_of(&id("redialled")).await;
    assert_eq!((end.status, end.attempt), (Status::Failed, 2));
    assert_eq!(setup.end_of(&id("invalid")).await.status, Status::Rejected);
    for (kind, count) in [("plain", 1), ("later", 1), ("redialled", 2), ("invalid", 0)] {
        assert_eq!(setup.calls_with(&id(kind)), count, "calls of {kind}-{n}");
    }
    eventually("the invalid one is a dead letter", PATIENCE, async || messages_in(&setup.js, "SIP_DEAD").await > 0)
        .await;
    setup.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_deleted_is_made_again_and_calls_go_on() {
    let setup = Setup::local(3.0).await;
    let mut operator = Operator::start(setup.options().env("CALLS_PER_SECOND", 20)).await;
    for (n, lost) in ALL.into_iter().enumerate() {
        let running = format!("running-{n}");
        post(&operator, request_of(&running)).await;
        setup.becomes(&running, Status::Running).await;
        lost.delete(&setup).await;
        eventually(format!("{lost:?} is there again"), Duration::from_secs(10), async || lost.is_there(&setup).await)
            .await;
        new_calls_work(&setup, &operator, n).await;
        assert_eq!(setup.end_of(&running).await.status, Status::Succeeded, "after {lost:?}");
        assert_eq!(setup.calls_with(&running), 1, "calls of {running}, after {lost:?}");
        let listed = async || {
            let page = get_json(operator.base(), "/jobs?limit=1000").await.json;
            let ids = page.as_array().cloned().unwrap_or_default();
            [format!("plain-{n}"), running.clone()].iter().all(|id| ids.iter().any(|job| job["id"] == id.as_str()))
        };
        eventually(format!("new calls are listed after {lost:?}"), PATIENCE, listed).await;
    }
    operator.ready().await;
}

/// A window that was made again counts from 1, so its messages have the numbers of those that were lost with calls in progress.
#[tokio::test(flavor = "multi_thread")]
async fn calls_of_a_lost_window_settle_no_message_of_the_new_one() {
    let setup = Setup::local(8.0).await;
    let _first = setup.operator().await;
    let old = setup.run_calls("old", 8).await;
    setup.js.delete_stream("SIP_DIAL").await.unwrap();
    eventually("the queue is there again", PATIENCE, async || setup.js.get_stream("SIP_DIAL").await.is_ok()).await;
    // Half of the new messages are in flight elsewhere when the calls with their numbers end.
    let _second = Operator::start(setup.options_of_machine("other")).await;
    let new = setup.run_calls("new", 8).await;
    for id in &old {
        assert_eq!(setup.end_of(id).await.status, Status::Succeeded);
    }
    let messages = messages_in(&setup.js, "SIP_DIAL").await;
    let mut in_progress = 0;
    for id in &new {
        in_progress += u64::from(setup.state(id).await.is_some_and(|state| !state.is_final));
    }
    assert!(messages >= in_progress, "{in_progress} calls are in progress, and {messages} messages are left");
    setup.all_end_once(&new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_somebody_changes_are_set_again() {
    let setup = Setup::local(0.5).await;
    let _operator = Operator::start(setup.options().env("MAX_ACTIVE_CALLS", 7)).await;
    let queue = setup.js.get_stream("SIP_CALLS").await.unwrap();
    let mut changed = queue.cached_info().config.clone();
    changed.max_messages = 5;
    setup.js.update_stream(changed).await.unwrap();
    let window = setup.js.get_stream("SIP_DIAL").await.unwrap();
    let mut consumer: async_nats::jetstream::consumer::PullConsumer =
        window.get_consumer("dialler-default").await.unwrap();
    let mut changed = consumer.info().await.unwrap().config.clone();
    changed.max_ack_pending = 1;
    window.update_consumer(changed).await.unwrap();
    eventually("the settings are as before", PATIENCE, async || {
        let stream = setup.js.get_stream("SIP_CALLS").await.unwrap();
        let active = consumer.info().await.unwrap().config.max_ack_pending;
        (stream.cached_info().config.max_messages, active) == (1_000_000, 7)
    })
    .await;
}

/// Otherwise each would undo what the other has set, every few seconds.
#[tokio::test(flavor = "multi_thread")]
async fn of_operators_with_different_settings_the_one_that_started_last_decides() {
    let setup = Setup::local(0.5).await;
    let _first = Operator::start(setup.options().env("QUEUE_MAX_MESSAGES", 5)).await;
    let _second = Operator::start(setup.options_of_machine("other").env("QUEUE_MAX_MESSAGES", 7)).await;
    let updates = setup.client.subscribe("$JS.EVENT.ADVISORY.STREAM.UPDATED.>").await.unwrap();
    let updates = updates.take_until(tokio::time::sleep(TWO_LOOKS)).map(|message| message.subject.to_string());
    assert_eq!(updates.collect::<Vec<_>>().await, [""; 0]);
    assert_eq!(setup.js.get_stream("SIP_CALLS").await.unwrap().cached_info().config.max_messages, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_updated_only_where_it_differs_and_keeps_what_somebody_else_chose() {
    let setup = Setup::local(0.5).await;
    drop(setup.operator().await);
    let mut chosen = setup.js.get_stream("SIP_STATUS").await.unwrap().cached_info().config.clone();
    chosen.compression = Some(Compression::S2);
    setup.js.update_stream(chosen.clone()).await.unwrap();
    let updates = setup.client.subscribe("$JS.EVENT.ADVISORY.STREAM.UPDATED.>").await.unwrap();
    setup.client.flush().await.unwrap();
    drop(Operator::start(setup.options().env("QUEUE_MAX_MESSAGES", 1234)).await);
    let seen =
        updates.take_until(tokio::time::sleep(Duration::from_secs(1))).map(|message| message.subject.to_string());
    let updated = ["SIP_CALLS", "SIP_QUEUE"].map(|stream| format!("$JS.EVENT.ADVISORY.STREAM.UPDATED.{stream}"));
    assert_eq!(seen.collect::<Vec<_>>().await, updated);
    assert_eq!(setup.js.get_stream("SIP_STATUS").await.unwrap().cached_info().config, chosen);
    assert_eq!(setup.js.get_stream("SIP_CALLS").await.unwrap().cached_info().config.max_messages, 1234);
}
