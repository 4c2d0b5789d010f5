//! What a call costs nats-server beyond its own messages.

use async_nats::jetstream;
use async_nats::jetstream::stream::Config;
use futures::{FutureExt, StreamExt};
use serde_json::Value;
use sipstuff_operator::call::Status;
use sipstuff_operator::nats::delete::delete;

use crate::support::{NatsServer, Operator, PATIENCE, Setup, request_of};

#[tokio::test(flavor = "multi_thread")]
async fn what_leaves_the_queue_is_not_erased_from_disk_which_would_write_a_whole_file_for_each_call() {
    let setup = Setup::local(0.1).await;
    let mut deletes = setup.client.subscribe("$JS.API.STREAM.MSG.DELETE.SIP_QUEUE").await.expect("a subscription");
    let _operator = setup.operator().await;
    setup.publish(&[], request_of("call").to_string()).await;
    assert_eq!(setup.end_of("call").await.status, Status::Succeeded);
    let delete = tokio::time::timeout(PATIENCE, deletes.next()).await.expect("it leaves the queue in time");
    let request: Value = serde_json::from_slice(&delete.expect("a delete").payload).expect("JSON");
    assert_eq!(request["no_erase"], true, "{request}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_may_be_deleted_again_wherever_it_lay_since_another_replica_may_be_faster() {
    let nats = NatsServer::start().await;
    let js = jetstream::new(nats.client().await);
    let stream = js.create_stream(Config { name: "S".into(), subjects: vec!["s".into()], ..Config::default() }).await;
    let mut stream = stream.expect("a stream");
    for _ in 0..5 {
        js.publish("s", "".into()).await.expect("a publish").await.expect("an acknowledgement");
    }
    for sequence in [3, 1, 5, 2, 4, 99] {
        for _ in 0..2 {
            delete(&js, "S", sequence).await.unwrap_or_else(|error| panic!("{sequence}: {}", error.chain()));
        }
    }
    assert_eq!(stream.info().await.expect("its state").state.messages, 0);
    assert!(delete(&js, "T", 1).await.is_err(), "there is no such stream");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_all_channels_are_taken_the_feed_does_not_ask_for_room_with_every_call_that_is_queued() {
    const CALLS: usize = 200;
    let setup = Setup::local(600.0).await;
    let _operator = Operator::start(setup.options().env("MAX_ACTIVE_CALLS", 1)).await;
    setup.run_calls("first", 1).await;
    let mut looks = setup.client.subscribe("$JS.API.CONSUMER.INFO.SIP_DIAL.>").await.expect("a subscription");
    for number in 0..CALLS {
        let id = format!("waits-{number}");
        setup.publish(&[], request_of(&id).to_string()).await;
        setup.becomes(&id, Status::Queued).await;
    }
    // Twice a second it looks all the same.
    let looks = std::iter::from_fn(|| looks.next().now_or_never().flatten()).count();
    assert!(looks < CALLS / 2, "{looks} for {CALLS} calls");
}
