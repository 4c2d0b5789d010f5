//! Cancel: by `DELETE`, of one call or a batch, and by deleting a Job by hand.

use std::time::{Duration, Instant};

use serde_json::json;
use sipstuff_operator::call::{Outcome, Status};

use crate::support::{Operator, PATIENCE, Setup, accepted, delete, eventually, in_seconds, name_of, request, with};

/// An operator that is busy with one call, so that all further ones wait.
async fn busy_operator(setup: &Setup) -> Operator {
    let operator = Operator::start(setup.options().env("MAX_ACTIVE_CALLS", 1)).await;
    accepted(&operator, &with(request("+490", "a"), json!({"id": "first"}))).await;
    setup.becomes("first", Status::Running).await;
    operator
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_call_is_cancelled_without_a_job() {
    let setup = Setup::local(4.0).await;
    let operator = busy_operator(&setup).await;
    accepted(&operator, &with(request("+491", "b"), json!({"id": "queued"}))).await;

    let reply = delete(operator.base(), "/jobs/queued").await;
    assert_eq!((reply.status.as_u16(), &reply.json["status"]), (202, &json!("cancelled")));
    assert_eq!(setup.events.final_of("first", PATIENCE).await.status, Status::Succeeded);
    setup.queue_empties().await;
    assert_eq!(setup.calls_to("+491").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_a_cancelled_call_again_changes_nothing() {
    let setup = Setup::local(4.0).await;
    let operator = busy_operator(&setup).await;
    accepted(&operator, &with(request("+491", "b"), json!({"id": "queued"}))).await;
    delete(operator.base(), "/jobs/queued").await;
    let history = setup.history("queued").await;

    assert_eq!(delete(operator.base(), "/jobs/queued").await.json["status"], "cancelled");
    assert_eq!(setup.history("queued").await, history);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_not_known_cannot_be_cancelled() {
    let setup = Setup::local(0.2).await;
    let operator = setup.operator().await;
    assert_eq!(delete(operator.base(), "/jobs/nobody").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_cancelled_whether_its_calls_are_queued_scheduled_or_cancelled_already() {
    let setup = Setup::local(4.0).await;
    let operator = busy_operator(&setup).await;
    for number in 1..=3 {
        let queued = json!({"id": format!("queued-{number}"), "batch": "march"});
        accepted(&operator, &with(request("+491", "b"), queued)).await;
    }
    let later = json!({"id": "scheduled", "batch": "march", "not_before": in_seconds(3600)});
    accepted(&operator, &with(request("+491", "c"), later)).await;
    assert_eq!(delete(operator.base(), "/jobs/queued-1").await.status, 202);

    let reply = delete(operator.base(), "/jobs?batch=march").await;
    assert_eq!(reply.json, json!({"cancelled": 4, "cancelling": 0, "ended": 0, "unreadable": 0}));
    assert_eq!(setup.events.final_of("first", PATIENCE).await.status, Status::Succeeded);
    setup.queue_empties().await;
    assert_eq!(setup.calls_to("+491").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_call_is_stopped() {
    let setup = Setup::local(60.0).await;
    let operator = setup.operator().await;
    accepted(&operator, &with(request("+490", "a"), json!({"id": "long"}))).await;
    setup.becomes("long", Status::Running).await;

    let reply = delete(operator.base(), "/jobs/long").await;
    assert_eq!((reply.status.as_u16(), &reply.json["status"]), (202, &json!("cancelling")));
    let end = setup.events.final_of("long", Duration::from_secs(20)).await;
    assert_eq!((end.status, end.reason.as_deref()), (Status::Cancelled, Some("cancelled")));
    assert_eq!(delete(operator.base(), "/jobs/long").await.json["status"], "cancelled");
    setup.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_has_ended_stays_as_it_ended() {
    let setup = Setup::local(0.2).await;
    let operator = setup.operator().await;
    accepted(&operator, &with(request("+490", "a"), json!({"id": "ended"}))).await;
    setup.end_of("ended").await;
    let history = setup.history("ended").await;

    assert_eq!(delete(operator.base(), "/jobs/ended").await.json["status"], "succeeded");
    assert_eq!(setup.history("ended").await, history);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_a_running_call_deletes_its_job_and_ends_its_pod() {
    let setup = Setup::kubernetes(120.0).await;
    let operator = setup.operator().await;
    accepted(&operator, &with(request("+490", "a"), json!({"id": "long"}))).await;
    setup.becomes("long", Status::Running).await;

    assert_eq!(delete(operator.base(), "/jobs/long").await.json["status"], "cancelling");
    let end = setup.events.final_of("long", PATIENCE).await;
    assert_eq!((end.status, end.reason.as_deref()), (Status::Cancelled, Some("cancelled")));
    eventually("the Job is gone", PATIENCE, async || setup.jobs().await.is_empty()).await;
    eventually("the pod has ended", PATIENCE, async || setup.node().running() == 0).await;
    assert_eq!(setup.node().start_count(), 1);
    setup.queue_empties().await;
}

/// As process 1 of its container, the caller ignores SIGTERM: without a hang-up it would talk until it is killed, 30 s later.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_call_hangs_up_at_once() {
    let setup = Setup::kubernetes(120.0).await;
    let operator = setup.operator().await;
    accepted(&operator, &with(request("+490", "a"), json!({"id": "long"}))).await;
    setup.becomes("long", Status::Running).await;
    let begin = Instant::now();
    delete(operator.base(), "/jobs/long").await;
    setup.events.final_of("long", PATIENCE).await;
    let log = setup.node().log_of(&name_of("long"));
    assert!(log.contains("SIGINT: hanging up"), "{log}");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_deleted_by_hand_is_a_cancelled_call() {
    let setup = Setup::kubernetes(20.0).await;
    let _operator = setup.operator().await;
    let ids = setup.run_calls("deleted", 3).await;
    let begin = Instant::now();
    for (id, cascade) in ids.iter().zip(["background", "foreground", "orphan"]) {
        let delete = ["delete", "job", &name_of(id), &format!("--cascade={cascade}"), "--wait=false"];
        let answer = setup.namespace().kubectl(&delete, None).await;
        assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    }
    for id in &ids {
        let end = setup.end_of(id).await;
        assert_eq!((end.status, end.reason.as_deref()), (Status::Cancelled, Some("deleted")), "{id}");
    }
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    setup.queue_empties().await;
    assert_eq!(setup.node().start_count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_deleted_while_no_operator_runs_is_a_cancelled_call() {
    let setup = Setup::kubernetes(20.0).await;
    let mut operator = setup.operator().await;
    let id = setup.run_calls("unseen", 1).await.remove(0);
    operator.kill9();
    assert!(setup.namespace().kubectl(&["delete", "job", &name_of(&id)], None).await.status.success());

    let _operator = setup.operator().await;
    let end = setup.end_of(&id).await;
    assert_eq!((end.status, end.reason.as_deref(), end.outcome), (Status::Cancelled, Some("deleted"), None::<Outcome>));
    setup.queue_empties().await;
    assert_eq!(setup.node().start_count(), 1);
}
