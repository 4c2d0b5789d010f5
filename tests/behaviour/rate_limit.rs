//! Rate limit: `CALLS_PER_SECOND`, over all replicas.

use serde_json::json;
use sipstuff_operator::call::{Status, StatusEvent};

use crate::support::{Operator, PATIENCE, Setup, accepted, request, with};

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_evenly_spaced_over_two_replicas() {
    let setup = Setup::local(0.2).await;
    let replica = |name: &str| setup.options_of_machine(name).env("CALLS_PER_SECOND", 4).env("CLUSTER_NAME", name);
    let operators = [Operator::start(replica("a")).await, Operator::start(replica("b")).await];
    for number in 0..16 {
        let id = json!({"id": format!("call-{number}")});
        accepted(&operators[number % 2], &with(request("+490", "a"), id)).await;
    }
    let claimed = |event: &StatusEvent| event.status == Status::Pending;
    are_evenly_spaced(&setup, 16, claimed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_let_through_at_the_pace_of_their_trunk() {
    let setup = Setup::kubernetes(0.2).await;
    let replica = || Operator::start(setup.options().env("CALLS_PER_SECOND", 4));
    let operators = [replica().await, replica().await];
    for number in 0..16 {
        let id = json!({"id": format!("call-{number}")});
        accepted(&operators[number % 2], &with(request("+490", "a"), id)).await;
    }
    let let_through = |event: &StatusEvent| event.status == Status::Pending && event.pod.is_some();
    are_evenly_spaced(&setup, 16, let_through).await;
}

/// Waits until so many calls have ended, and asserts that they were begun at four a second, by the events that say so.
async fn are_evenly_spaced(setup: &Setup, calls: usize, begins: impl Fn(&StatusEvent) -> bool) {
    let have_ended = |events: &[StatusEvent]| events.iter().filter(|event| event.is_final).count() == calls;
    setup.events.until("all have ended", PATIENCE, have_ended).await;
    let heard = setup.events.heard();
    let mut times: Vec<_> = heard.iter().filter(|heard| begins(&heard.event)).map(|heard| heard.event.time).collect();
    times.sort();
    assert_eq!(times.len(), calls);
    let span = times[calls - 1].duration_since(times[0]).as_secs_f64();
    assert!(span >= (calls - 1) as f64 / 4.0 - 0.3, "{calls} calls at 4 per second took {span} s");
    for three in times.windows(3) {
        let took = three[2].duration_since(three[0]).as_secs_f64();
        assert!(took > 0.25, "three calls within {took} s are a burst: {times:?}");
    }
}
