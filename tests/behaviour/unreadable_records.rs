//! A record of the status log that cannot be read, since it was published by hand: it hurts its own call only.

use serde_json::json;
use sipstuff_operator::call::Status;

use crate::support::status::messages_in;
use crate::support::{
    Operator, PATIENCE, Setup, accepted, delete, eventually, get_json, name_of, request, request_of, with,
};

/// An operator that dials nothing, and three calls of a batch that wait in the queue.
async fn three_queued_calls(setup: &Setup) -> Operator {
    let operator = setup.operator().await;
    assert_eq!(setup.command(&["pause", "--for", "1h"]).await.code, Some(0));
    for number in 1..=3 {
        let body = with(request_of(&format!("call-{number}")), json!({"batch": "march"}));
        accepted(&operator, &body).await;
    }
    operator
}

async fn publish_record(setup: &Setup, id: &str, record: &'static str) {
    let subject = format!("sip.status.{}", name_of(id));
    setup.js.publish(subject, record.into()).await.unwrap().await.unwrap();
}

const NOT_JSON: &str = "{\"status\": ";
/// JSON that the index can read, and an event that nobody can.
fn not_an_event(id: &str) -> &'static str {
    let record = json!({
        "name": name_of(id), "status": "queued", "final": false, "batch": "march",
        "queued_at": "2026-11-24T00:00:00Z", "time": "2026-11-24T00:00:00Z",
    });
    record.to_string().leak()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_record_cannot_be_read_becomes_a_dead_letter_and_all_others_are_dialled() {
    let setup = Setup::local(0.1).await;
    let _operator = three_queued_calls(&setup).await;
    publish_record(&setup, "call-1", NOT_JSON).await;
    publish_record(&setup, "call-2", not_an_event("call-2")).await;
    assert_eq!(setup.command(&["resume"]).await.code, Some(0));

    assert_eq!(setup.end_of("call-3").await.status, Status::Succeeded);
    setup.queue_empties().await;
    assert_eq!((setup.calls_with("call-1"), setup.calls_with("call-2")), (0, 0));
    let letters = setup.dead_letters().await;
    assert_eq!(letters.len(), 2, "{letters:?}");
    for (reason, _) in letters {
        assert!(reason.contains("cannot be decoded"), "{reason}");
    }
    // No slot is held: as many calls as ever are dialled.
    let ids: Vec<String> = (0..5).map(|n| format!("later-{n}")).collect();
    for id in &ids {
        setup.publish(&[], request_of(id).to_string()).await;
    }
    setup.all_end_once(&ids).await;
    assert_eq!(setup.in_flight().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_a_call_whose_record_cannot_be_read_is_answered_500_and_says_so() {
    let setup = Setup::local(0.1).await;
    let operator = three_queued_calls(&setup).await;
    publish_record(&setup, "call-1", NOT_JSON).await;
    for reply in [get_json(operator.base(), "/jobs/call-1").await, delete(operator.base(), "/jobs/call-1").await] {
        assert_eq!(reply.status, 500, "{reply:?}");
        assert_eq!(reply.json["detail"], "the record of this call cannot be read");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_leave_out_what_cannot_be_read_and_a_batch_cancel_counts_it() {
    let setup = Setup::local(0.1).await;
    let operator = three_queued_calls(&setup).await;
    publish_record(&setup, "call-1", NOT_JSON).await;
    publish_record(&setup, "call-2", not_an_event("call-2")).await;
    let listed = async || {
        let reply = get_json(operator.base(), "/jobs?batch=march").await;
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json.as_array().unwrap().iter().all(|job| job["id"] != "call-2")
    };
    eventually("the list leaves it out", PATIENCE, listed).await;

    let reply = delete(operator.base(), "/jobs?batch=march").await;
    assert_eq!(reply.json, json!({"cancelled": 1, "cancelling": 0, "ended": 0, "unreadable": 2}));
    assert_eq!(setup.end_of("call-3").await.status, Status::Cancelled);
}

/// The client library ends the connection on such a header block, so a consumer never gets past it.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_with_headers_that_cannot_be_read_is_read_without_them() {
    let setup = Setup::local(0.1).await;
    let operator = three_queued_calls(&setup).await;
    let record = setup.state("call-1").await.unwrap();
    let record = serde_json::to_vec(&record).unwrap();
    let subject = format!("sip.status.{}", name_of("call-1"));
    setup.nats.publish_raw(&subject, b"NATS/1.0\r\nX-Bytes: \xff\xfe\r\n\r\n", &record).await;
    eventually("it is stored", PATIENCE, async || messages_in(&setup.js, "SIP_STATUS").await == 4).await;

    let shown = async || get_json(operator.base(), "/jobs/call-1").await.json["id"] == "call-1";
    eventually("it is shown", PATIENCE, shown).await;
    // The index gets past it.
    accepted(&operator, &with(request("+491", "later"), json!({"id": "later", "batch": "april"}))).await;
    let listed = async || get_json(operator.base(), "/jobs?batch=april").await.json.as_array().map(Vec::len) == Some(1);
    eventually("a later call is listed", PATIENCE, listed).await;
    let cancelled = async || delete(operator.base(), "/jobs?batch=march").await.json["cancelled"] == 3;
    eventually("the batch is cancelled", PATIENCE, cancelled).await;
    // A new operator reads it from the start.
    let operator = operator.restart().await;
    let all = async || get_json(operator.base(), "/jobs").await.json.as_array().map(Vec::len) == Some(4);
    eventually("all are listed", PATIENCE, all).await;
}
