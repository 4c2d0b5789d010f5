//! What is asked for, and the streams that it is asked on: the same for every part.

use std::time::{Duration, Instant};

use async_nats::jetstream::Context;
use futures::{StreamExt, stream};
use serde_json::json;
use sipstuff_operator::call::{Call, CallId, validate};
use sipstuff_operator::nats::{Names, StreamSettings, connect, streams};
use sipstuff_operator::policy::DEFAULT_TRUNK;

use super::support::NatsServer;

/// Publishes under way at once while something is prepared.
const PIPELINE: usize = 1024;

/// A request as people send them.
pub(crate) fn body() -> Vec<u8> {
    let text = "This is the operations api. The pump station reports high water. Please confirm by pressing one.";
    let request = json!({"dest": "+4930123456789", "text": text, "timeout": 45, "repeat": 2, "batch": "bench"});
    request.to_string().into_bytes()
}

/// The call that the n-th request asks for.
pub(crate) fn call(number: usize) -> Call {
    let parsed = validate::parse(&body(), jiff::Timestamp::UNIX_EPOCH).expect("a valid request");
    Call::new(CallId::parse(format!("bench/{number}")).expect("an id"), parsed.spec)
}

/// JetStream as the operator itself uses it, over a connection of its own.
pub(crate) async fn jetstream(nats: &NatsServer) -> Context {
    connect::jetstream(nats.client().await)
}

/// The operator's streams, without limits, as it would make them.
pub(crate) fn stream_settings() -> StreamSettings {
    StreamSettings { names: Names::default(), replicas: 1, queue_max_messages: -1, queue_max_bytes: -1 }
}

/// Makes the operator's streams before it does.
pub(crate) async fn ensure_streams(jetstream: &Context, channels: u32) {
    streams::ensure(jetstream, &stream_settings(), DEFAULT_TRUNK, channels).await.expect("the streams");
}

/// Puts so many requests into the queue, as any NATS client would.
pub(crate) async fn publish(jetstream: &Context, count: usize) {
    publish_all(jetstream, count, body()).await;
}

/// The same as calls of a batch.
pub(crate) async fn publish_batch(jetstream: &Context, count: usize, batch: &str) {
    let mut request: serde_json::Value = serde_json::from_slice(&body()).expect("a request");
    request["batch"] = batch.into();
    publish_all(jetstream, count, request.to_string().into_bytes()).await;
}

async fn publish_all(jetstream: &Context, count: usize, body: Vec<u8>) {
    let body = bytes::Bytes::from(body);
    let publishes = (0..count).map(|number| {
        let body = body.clone();
        async move {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Msg-Id", format!("bench/{number}").as_str());
            let ack = jetstream.publish_with_headers("sip.calls", headers, body).await.expect("a publish");
            ack.await.expect("an acknowledgement");
        }
    });
    stream::iter(publishes).buffer_unordered(PIPELINE).collect::<()>().await;
}

/// Waits until the inbox is empty, and returns how long that took.
pub(crate) async fn until_admitted(jetstream: &Context) -> Duration {
    let begin = Instant::now();
    while jetstream.get_stream("SIP_CALLS").await.expect("the inbox").cached_info().state.messages > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    begin.elapsed()
}
