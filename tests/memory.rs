//! How much memory the operator takes: idle, with a thousand calls in progress, and with many calls in its index.

use std::time::Duration;

use futures::future::join_all;
use futures::{StreamExt, stream};
use serde_json::json;
use sipstuff_operator::call::Status;

use crate::support::node::Instant;
use crate::support::status::messages_in;
use crate::support::{ControlPlane, NodeOptions, Operator, PATIENCE, Setup, eventually, name_of, request_of};

/// What an idle operator may take, and one with [`CALLS`] calls in progress, in KiB: 20 and 60 MB resident. Most of it when idle
/// is the program itself, 17 MB of a release build and twice that of one without optimization; so of the latter only the data
/// is measured, against what the program leaves, with 3 MB on top since its data is larger by that.
const LIMITS_KB: [u64; 2] = if cfg!(debug_assertions) { [7_500, 47_000] } else { [19_531, 58_593] };
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
    assert_eq!((setup.in_flight().await, messages_in(&setup.js, "SIP_DIAL").await), (CALLS, CALLS as u64));
    println!("with {CALLS} running calls {busy} KiB; resident with its code {} KiB", operator.rss_kb());
    assert!(busy < LIMITS_KB[1], "{busy} KiB of {LIMITS_KB:?}");
    let begin = std::time::Instant::now();
    assert!(operator.terminate(Duration::from_secs(10)).await.success());
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

/// Calls in the status log, and below how many of them the bounded index may hold.
const RECORDED: usize = 100_000;
const BOUND: usize = 10_000;
/// What a call in the index may take, in bytes, with what is left over from reading the log.
const BYTES_PER_CALL: u64 = 400;

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_the_index_is_bounded_by_the_calls_that_it_may_hold() {
    let setup = Setup::local(0.0).await;
    let empty = setup.operator().await;
    let without = empty.data_kb();
    drop(empty);
    record_calls(&setup.js, RECORDED).await;
    let with_index = async |max: usize| {
        let operator = Operator::start(setup.options().env("RUST_LOG", "info").env("INDEX_MAX_CALLS", max)).await;
        operator.data_kb().saturating_sub(without)
    };
    let (all, bounded) = (with_index(RECORDED).await, with_index(BOUND).await);
    let per_call = all * 1024 / RECORDED as u64;
    println!("{RECORDED} calls take {all} KiB, {per_call} bytes each; {BOUND} of them {bounded} KiB");
    assert!(per_call < BYTES_PER_CALL, "{per_call} bytes for each call");
    assert!(bounded < all / 3, "{bounded} KiB of {all} KiB");
}

async fn record_calls(js: &async_nats::jetstream::Context, count: usize) {
    let records = (0..count).map(|n| {
        let id = format!("call-{n}");
        let name = name_of(&id);
        let record = json!({
            "id": id, "name": name, "namespace": "calls", "status": "succeeded", "revision": 4, "final": true,
            "attempt": 1, "time": jiff::Timestamp::now(), "queued_at": jiff::Timestamp::now(), "batch": "march",
            "fingerprint": "0".repeat(64), "max_attempts": 1,
        });
        async move {
            js.publish(format!("sip.status.{name}"), record.to_string().into()).await.unwrap().await.unwrap();
        }
    });
    stream::iter(records).buffer_unordered(1024).collect::<()>().await;
}
