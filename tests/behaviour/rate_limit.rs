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
    setup.events.until("all have ended", PATIENCE, |events| events.iter().filter(|e| e.is_final).count() == 16).await;
    let claimed = |event: &StatusEvent| (event.status == Status::Pending).then_some(event.time);
    let mut times: Vec<_> = setup.events.heard().iter().filter_map(|heard| claimed(&heard.event)).collect();
    times.sort();
    let span = times[15].duration_since(times[0]).as_secs_f64();
    assert!(span >= 15.0 / 4.0 - 0.3, "16 calls at 4 per second took {span} s");
    for three in times.windows(3) {
        let took = three[2].duration_since(three[0]).as_secs_f64();
        assert!(took > 0.25, "three calls within {took} s are a burst: {times:?}");
    }
}
