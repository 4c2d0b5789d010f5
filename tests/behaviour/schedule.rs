//! Schedule: a call with `not_before` waits for its moment.

use jiff::Timestamp;
use serde_json::json;
use sipstuff_operator::call::Status;

use crate::support::status::queue_is_empty;
use crate::support::{PATIENCE, Setup, accepted, eventually, get_json, in_seconds, request, with};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_waits_for_its_moment_through_a_restart_of_everything() {
    let setup = Setup::local(0.2).await;
    let operator = setup.operator().await;
    let not_before = in_seconds(6);
    let later = json!({"id": "later", "not_before": not_before});
    accepted(&operator, &with(request("+491", "a"), later)).await;
    setup.becomes("later", Status::Scheduled).await;
    let has_left_the_queue = async || queue_is_empty(&setup.js, "SIP_CALLS").await;
    eventually("its message has left the queue", PATIENCE, has_left_the_queue).await;

    setup.nats.restart().await;
    let operator = operator.restart().await;
    let shown = async || get_json(operator.base(), "/jobs/later").await.json["status"] == "succeeded";
    eventually("the call succeeds", PATIENCE, shown).await;
    let starts = setup.calls_to("+491");
    assert_eq!(starts.len(), 1);
    let due: Timestamp = not_before.parse().unwrap();
    assert!(starts[0] >= due, "{} is before {due}", starts[0]);
    setup.queue_empties().await;
}
