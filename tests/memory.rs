//! What the operator weighs: resident memory, idle and with a thousand calls in progress.

use std::time::Duration;

use futures::future::join_all;
use sipstuff_operator::call::Status;

use crate::stage::{PATIENCE, Stage, request_of};
use crate::support::node::Instant;
use crate::support::status::{messages_in, queue_is_empty};
use crate::support::{ControlPlane, NodeOptions, Operator, eventually};

/// What an idle operator may take.
const IDLE_KB: u64 = 20 * 1024;
/// What one with [`CALLS`] calls in progress may take.
const BUSY_KB: u64 = 60 * 1024;
const CALLS: usize = 1000;

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_operator_takes_less_than_20_mb_and_one_with_a_thousand_calls_less_than_60() {
    let namespace = ControlPlane::shared().await.namespace().await;
    // They run until the node is told otherwise, which is never: what is measured is a thousand calls in progress.
    let instant = Some(Instant { exit_code: 0, after: Duration::from_secs(3600) });
    let stage = Stage::with_node(namespace, NodeOptions { instant, ..Default::default() }, 0.0).await;
    // At the level that is on by default.
    let options = stage.options().env("MAX_ACTIVE_CALLS", CALLS).env("RUST_LOG", "info");
    let mut operator = Operator::start(options).await;
    let idle = operator.rss_kb();
    join_all((0..CALLS).map(|n| {
        let request = request_of(&format!("call-{n}")).to_string();
        let stage = &stage;
        async move { stage.publish(&[], request).await }
    }))
    .await;
    eventually("all calls run", PATIENCE * 2, async || {
        stage.events.heard().iter().filter(|heard| heard.event.status == Status::Running).count() == CALLS
    })
    .await;
    let busy = operator.rss_kb();
    eprintln!("idle: {idle} KiB; with {CALLS} running calls: {busy} KiB");
    assert_eq!((stage.held().await, messages_in(&stage.js, "SIP_CALLS").await), (CALLS, CALLS as u64));
    assert!(idle < IDLE_KB, "idle: {idle} KiB");
    assert!(busy < BUSY_KB, "with {CALLS} running calls: {busy} KiB");
    // All of them handed back at once, too.
    let begin = std::time::Instant::now();
    assert!(operator.terminate(Duration::from_secs(10)).await.success());
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let stream = stage.js.get_stream("SIP_CALLS").await.unwrap();
    let mut consumer: async_nats::jetstream::consumer::PullConsumer = stream.get_consumer("dialler").await.unwrap();
    eventually("nothing is held", PATIENCE, async || consumer.info().await.unwrap().num_ack_pending == 0).await;
    assert!(!queue_is_empty(&stage.js, "SIP_CALLS").await);
}
