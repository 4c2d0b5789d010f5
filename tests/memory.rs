//! How much memory the operator takes, idle and with a thousand calls in progress.

use std::time::Duration;

use futures::future::join_all;
use sipstuff_operator::call::Status;

use crate::support::node::Instant;
use crate::support::status::messages_in;
use crate::support::{ControlPlane, NodeOptions, Operator, PATIENCE, Setup, eventually, request_of};

/// What an idle operator may take, and one with [`CALLS`] calls in progress, in KiB: 20 and 60 MB resident. Most of it when idle
/// is the program itself, 17 MB of a release build and twice that of one without optimization; so of the latter only the data
/// is measured, against what the program leaves, with 3 MB on top since its data is larger by that.
const LIMITS_KB: [u64; 2] = if cfg!(debug_assertions) { [6_000, 44_000] } else { [19_531, 58_593] };
const CALLS: usize = 1000;

fn memory_kb(operator: &Operator) -> u64 {
    if cfg!(debug_assertions) { operator.data_kb() } else { operator.rss_kb() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_operator_takes_less_than_20_mb() {
    let setup = Setup::kubernetes(0.0).await;
    let operator = Operator::start(setup.options().env("RUST_LOG", "info")).await;
    let idle = memory_kb(&operator);
    println!("idle {idle} KiB; resident with its code {} KiB", operator.rss_kb());
    assert!(idle < LIMITS_KB[0], "{idle} KiB of {LIMITS_KB:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_with_a_thousand_calls_takes_less_than_60_mb_and_hands_them_back_at_once() {
    let namespace = ControlPlane::shared().await.namespace().await;
    // They run until the test ends: what is measured is a thousand calls in progress.
    let instant = Some(Instant { exit_code: 0, after: Duration::from_secs(3600) });
    let setup = Setup::with_node(namespace, NodeOptions { instant, ..Default::default() }, 0.0).await;
    // At the level that is on by default.
    let options = setup.options().env("MAX_ACTIVE_CALLS", CALLS).env("RUST_LOG", "info");
    let mut operator = Operator::start(options).await;
    let requests: Vec<String> = (0..CALLS).map(|n| request_of(&format!("call-{n}")).to_string()).collect();
    join_all(requests.into_iter().map(|request| setup.publish(&[], request))).await;
    eventually("all calls run", PATIENCE * 2, async || {
        setup.events.heard().iter().filter(|heard| heard.event.status == Status::Running).count() == CALLS
    })
    .await;
    let busy = memory_kb(&operator);
    assert_eq!((setup.in_flight().await, messages_in(&setup.js, "SIP_CALLS").await), (CALLS, CALLS as u64));
    println!("with {CALLS} running calls {busy} KiB; resident with its code {} KiB", operator.rss_kb());
    assert!(busy < LIMITS_KB[1], "{busy} KiB of {LIMITS_KB:?}");
    let begin = std::time::Instant::now();
    assert!(operator.terminate(Duration::from_secs(10)).await.success());
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}
