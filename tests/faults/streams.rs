//! Streams that differ from what the settings say, or that somebody deletes.

use std::time::Duration;

use async_nats::jetstream::stream::Compression;
use futures::StreamExt;

use crate::support::status::queue_is_empty;
use crate::support::{Operator, PATIENCE, Setup, eventually};

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
    assert_eq!(seen.collect::<Vec<_>>().await, ["$JS.EVENT.ADVISORY.STREAM.UPDATED.SIP_CALLS"]);
    assert_eq!(setup.js.get_stream("SIP_STATUS").await.unwrap().cached_info().config, chosen);
    assert_eq!(setup.js.get_stream("SIP_CALLS").await.unwrap().cached_info().config.max_messages, 1234);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_somebody_deletes_are_made_again() {
    let setup = Setup::local(0.5).await;
    let mut operator = setup.operator().await;
    let first = setup.run_calls("before", 1).await;
    setup.all_end_once(&first).await;
    setup.js.delete_stream("SIP_CALLS").await.unwrap();
    eventually("the queue is there again", PATIENCE, async || queue_is_empty(&setup.js, "SIP_CALLS").await).await;
    let second = setup.run_calls("after", 1).await;
    setup.all_end_once(&second).await;
    operator.ready().await;
}
