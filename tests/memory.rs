//! What the operator weighs: resident memory, idle and with a thousand calls in progress.

use std::time::Duration;

use futures::future::join_all;
use sipstuff_operator::call::Status;

use crate::stage::{PATIENCE, Stage, request_of};
use crate::support::node::Instant;
use crate::support::status::messages_in;
use crate::support::{ControlPlane, NodeOptions, Operator, eventually};

/// What an idle operator may take.
const IDLE_KB: u64 = 20 * 1024;
/// What one with [`CALLS`] calls in progress may take.
const BUSY_KB: u64 = 60 * 1024;
const CALLS: usize = 1000;

/// The pages of its program file that a release build has in memory at work: measured, 18.0 MB; idle it is 12.
const CODE_KB: u64 = 18 * 1024;
const IDLE_CODE_KB: u64 = 12 * 1024;

/// What the operator weighs, or would: the code of a build without optimization is two times as large, so only its data
/// is measured, and a release's code added.
fn weight(operator: &Operator, release_code_kb: u64) -> u64 {
    if cfg!(debug_assertions) { operator.data_kb() + release_code_kb } else { operator.rss_kb() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_operator_takes_less_than_20_mb_and_one_with_a_thousand_calls_less_than_60() {
    let namespace = ControlPlane::shared().await.namespace().await;
    // They run until the node is told otherwise, which is never: what is measured is a thousand calls in progress.
    let instant = Some(Instant { exit_code: 0, after: Duration::from_secs(3600) });
    let stage = Stage::with_node(namespace, NodeOptions { instant, ..Default::default() }, 0.0).await;
    // At the level that is on by default.
    let options = stage.options().env("MAX_ACTIVE_CALLS", CALLS).env("RUST_LOG", "info");
    let mut operator = Operator::start(options).await;
    println!("idle RSS {} KiB", operator.rss_kb());
    let idle = weight(&operator, IDLE_CODE_KB);
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
    let busy = weight(&operator, CODE_KB);
    println!("RSS {} KiB", operator.rss_kb());
    assert_eq!((stage.held().await, messages_in(&stage.js, "SIP_CALLS").await), (CALLS, CALLS as u64));
    println!("idle {idle} KiB, with {CALLS} running calls {busy} KiB, of it data {} KiB", operator.data_kb());
    assert!(idle < IDLE_KB, "idle: {idle} KiB");
    assert!(busy < BUSY_KB, "with {CALLS} running calls: {busy} KiB");
    // Handing all of them back takes no time.
    let begin = std::time::Instant::now();
    assert!(operator.terminate(Duration::from_secs(10)).await.success());
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}
