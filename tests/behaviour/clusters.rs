//! Several clusters on one queue: each carries on its own calls only.

use serde_json::json;
use sipstuff_operator::call::Status;

use crate::support::{Operator, PATIENCE, Setup, accepted, eventually, request, with};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_another_cluster_is_left_alone() {
    let setup = Setup::local(6.0).await;
    let mut first = setup.operator().await;
    accepted(&first, &with(request("+490", "a"), json!({"id": "theirs"}))).await;
    setup.becomes("theirs", Status::Running).await;
    first.terminate(PATIENCE).await;

    let second = Operator::start(setup.options_of_machine("other").env("SIMULATE_SECONDS", 0.2)).await;
    accepted(&second, &with(request("+491", "b"), json!({"id": "ours"}))).await;
    assert_eq!(setup.events.final_of("ours", PATIENCE).await.status, Status::Succeeded);
    eventually("the other cluster's call was looked at", PATIENCE, async || second.log().contains("GiveBack")).await;
    drop(second);

    let _first = first.restart().await;
    assert_eq!(setup.events.final_of("theirs", PATIENCE).await.status, Status::Succeeded);
    assert_eq!(setup.calls_to("+490").len(), 1);
    setup.queue_empties().await;
}
