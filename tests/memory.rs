//! What the operator weighs: resident memory, idle and with a thousand calls in progress.

use std::time::Duration;

use futures::future::join_all;
use sipstuff_operator::call::Status;

use crate::support::node::Instant;
use crate::support::setup::{PATIENCE, Stage, request_of};
use crate::support::status::messages_in;
use crate::support::{ControlPlane, NodeOptions, Operator, eventually};

/// What an idle operator may take, and one with [`CALLS`] calls in progress, in KiB: 20 and 60 MB resident. Most of it when idle
/// is the program itself, 17 MB of a release build and twice that of one without optimization; so of the latter only the data
/// is weighed, against what the program leaves, with 3 MB on top since its data is larger by that.
const LIMITS_KB: [u64; 2] = if cfg!(debug_assertions) { [6_000, 44_000] } else { [19_531, 58_593] };
const CALLS: usize = 1000;

fn weight_kb(operator: &Operator) -> u64 {
    if cfg!(debug_assertions) { operator.data_kb() } else { operator.rss_kb() }
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
    let idle = weight_kb(&operator);
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
    let busy = weight_kb(&operator);
    assert_eq!((stage.held().await, messages_in(&stage.js, "SIP_CALLS").await), (CALLS, CALLS as u64));
    println!(
        "idle {idle} KiB, with {CALLS} running calls {busy} KiB; resident with its code {} KiB",
        operator.rss_kb()
    );
    assert!(idle < LIMITS_KB[0] && busy < LIMITS_KB[1], "{idle} KiB and {busy} KiB of {LIMITS_KB:?}");
    // Handing all of them back takes no time.
    let begin = std::time::Instant::now();
    assert!(operator.terminate(Duration::from_secs(10)).await.success());
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}
