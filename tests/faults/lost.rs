//! A node, a cluster or a container that is never heard of again: the attempt ends when its time is up, and its place among the
//! active calls is free for others.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use sipstuff_operator::call::{Outcome, Status};

use crate::support::{
    NodeOptions, Operator, OperatorOptions, PATIENCE, Setup, TestNode, accepted, delete, eventually, name_of, request,
    request_of, with,
};

/// An operator whose attempts have little time: about half a minute from the claim to the end.
fn hasty(options: OperatorOptions) -> OperatorOptions {
    let options = options.env("JOB_START_SECONDS", 3).env("JOB_DEADLINE_MARGIN_SECONDS", 3);
    options.env("MAX_ACTIVE_CALLS", 1)
}

/// A request for a short conversation.
fn short(id: &str) -> Value {
    with(request_of(id), json!({"timeout": 1}))
}

/// Another node for the pods of the setup's namespace.
fn another_node(setup: &Setup) -> TestNode {
    let env = vec![("SIMULATE_SECONDS".to_owned(), "0.2".to_owned())];
    let options = NodeOptions { env, ..Default::default() };
    TestNode::start(setup.namespace().client.clone(), &setup.namespace().name, options)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_node_vanishes_ends_unknown_and_frees_its_place() {
    let setup = Setup::kubernetes(120.0).await;
    let operator = Operator::start(hasty(setup.options())).await;
    accepted(&operator, &short("lost")).await;
    setup.becomes("lost", Status::Running).await;
    setup.node().vanish();
    accepted(&operator, &short("waits")).await;
    let end = setup.end_of("lost").await;
    assert_eq!((end.status, end.outcome), (Status::Failed, Some(Outcome::Unknown)), "{end:?}");
    assert!(end.time >= end.ends_by.expect("the claim says when it is over"));
    let _node = another_node(&setup);
    assert_eq!(setup.end_of("waits").await.status, Status::Succeeded);
    setup.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_does_not_come_through_ends_when_the_attempts_time_is_up() {
    let setup = Setup::kubernetes(120.0).await;
    let operator = Operator::start(hasty(setup.options())).await;
    accepted(&operator, &with(short("stuck"), json!({"on_unknown": "redial", "max_attempts": 3}))).await;
    setup.becomes("stuck", Status::Running).await;
    setup.node().vanish();
    assert_eq!(delete(operator.base(), "/jobs/stuck").await.json["status"], "cancelling");
    let end = setup.end_of("stuck").await;
    assert_eq!((end.status, end.outcome, end.attempt), (Status::Failed, Some(Outcome::Unknown), 1), "{end:?}");
    setup.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_a_cluster_that_is_gone_ends_unknown_or_is_dialled_by_another_as_asked() {
    let setup = Setup::local(120.0).await;
    let mut gone = Operator::start(hasty(setup.options_of_machine("gone")).env("MAX_ACTIVE_CALLS", 2)).await;
    for (id, on_unknown) in [("held", "hold"), ("redialled", "redial")] {
        let wish = json!({"on_unknown": on_unknown, "max_attempts": 2, "retry_delay": 1});
        accepted(&gone, &with(short(id), wish)).await;
        setup.becomes(id, Status::Running).await;
    }
    gone.kill9();
    let other = hasty(setup.options_of_machine("other")).env("MAX_ACTIVE_CALLS", 2).env("SIMULATE_SECONDS", 0.2);
    let other = Operator::start(other).await;
    accepted(&other, &short("waits")).await;

    let held = setup.end_of("held").await;
    assert_eq!((held.status, held.outcome, held.attempt), (Status::Failed, Some(Outcome::Unknown), 1), "{held:?}");
    let redialled = setup.end_of("redialled").await;
    assert_eq!((redialled.status, redialled.attempt), (Status::Succeeded, 2), "{redialled:?}");
    assert_eq!(setup.end_of("waits").await.status, Status::Succeeded);
    setup.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_finds_no_node_is_tried_again_without_counting() {
    let setup = Setup::kubernetes(0.2).await;
    setup.node().vanish();
    let operator = Operator::start(hasty(setup.options()).env("JOB_START_SECONDS", 20)).await;
    accepted(&operator, &short("homeless")).await;
    // `failed` is the last status for a moment only: its redial follows at once.
    let fault = setup.becomes("homeless", Status::Scheduled).await;
    assert_eq!((fault.outcome, fault.is_final), (Some(Outcome::NotStarted), false), "{fault:?}");
    let jobs = setup.namespace().api::<Job>();
    let first = name_of("homeless");
    eventually("its Job is removed", PATIENCE, async || jobs.get_opt(&first).await.unwrap().is_none()).await;

    let node = another_node(&setup);
    let end = setup.end_of("homeless").await;
    assert_eq!((end.status, end.max_attempts), (Status::Succeeded, 1), "{end:?}");
    assert_eq!(end.counted_attempts(), 1, "{end:?}");
    assert_eq!(node.start_count(), 1);
    setup.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_never_ran_ends_not_started_once_patience_ends_and_leaves_no_job() {
    let setup = Setup::kubernetes(0.2).await;
    let label = ["label", "namespace", &setup.namespace().name, "pod-security.kubernetes.io/enforce=restricted"];
    assert!(setup.namespace().kubectl(&label, None).await.status.success());
    let operator = Operator::start(hasty(setup.options()).env("FAULT_PATIENCE", 0)).await;
    accepted(&operator, &short("refused")).await;
    let end = setup.end_of("refused").await;
    assert_eq!((end.status, end.outcome), (Status::Failed, Some(Outcome::NotStarted)), "{end:?}");
    let jobs = setup.namespace().api::<Job>();
    eventually("no Job is left", PATIENCE, async || {
        jobs.list(&Default::default()).await.is_ok_and(|jobs| jobs.items.is_empty())
    })
    .await;
    setup.queue_empties().await;
    assert_eq!(setup.node().start_count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_may_start_late_and_is_not_cut_off_for_it() {
    let setup = Setup::kubernetes(6.0).await;
    setup.node().vanish();
    let options = setup.options().env("JOB_START_SECONDS", 60).env("JOB_DEADLINE_MARGIN_SECONDS", 10);
    let operator = Operator::start(options).await;
    accepted(&operator, &with(request("+49200", "late"), json!({"id": "late", "timeout": 1}))).await;
    setup.becomes("late", Status::Pending).await;
    // Longer than the conversation and the margin together, which count from when the pod starts.
    tokio::time::sleep(std::time::Duration::from_secs(12)).await;
    let env = vec![("SIMULATE_SECONDS".to_owned(), "6".to_owned())];
    let options = NodeOptions { env, ..Default::default() };
    let _node = TestNode::start(setup.namespace().client.clone(), &setup.namespace().name, options);
    assert_eq!(setup.end_of("late").await.status, Status::Succeeded);
}

/// Gives up the pods that are there, for a reason, as whoever drains a node or needs its room does.
async fn disrupt(setup: &Setup, reason: &str) {
    let pods = setup.namespace().api::<Pod>();
    let present = pods.list(&Default::default()).await.unwrap().items;
    assert_eq!(present.len(), 1, "{present:?}");
    let disrupted = json!({"type": "DisruptionTarget", "status": "True", "reason": reason});
    let status = json!({"status": {"phase": "Failed", "conditions": [disrupted], "containerStatuses": null}});
    let name = present[0].metadata.name.as_ref().unwrap();
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_node_is_drained_ends_unknown_and_no_other_pod_dials() {
    let setup = Setup::kubernetes(120.0).await;
    let operator = setup.operator().await;
    accepted(&operator, &request_of("drained")).await;
    setup.becomes("drained", Status::Running).await;
    setup.node().vanish();
    let node = another_node(&setup);
    disrupt(&setup, "EvictionByEvictionAPI").await;
    let end = setup.end_of("drained").await;
    assert_eq!((end.status, end.outcome, end.attempt), (Status::Failed, Some(Outcome::Unknown), 1), "{end:?}");
    eventually("its Job is removed", PATIENCE, async || setup.jobs().await.is_empty()).await;
    setup.queue_empties().await;
    assert_eq!((setup.node().start_count(), node.start_count()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_pod_is_disrupted_before_it_runs_is_dialled_by_its_next_attempt() {
    let setup = Setup::kubernetes(0.2).await;
    setup.node().vanish();
    let operator = setup.operator().await;
    accepted(&operator, &request_of("preempted")).await;
    let is_chosen = async || setup.state("preempted").await.is_some_and(|event| event.pod.is_some());
    eventually("its pod is chosen", PATIENCE, is_chosen).await;
    disrupt(&setup, "PreemptionByScheduler").await;
    let node = another_node(&setup);
    let end = setup.end_of("preempted").await;
    assert_eq!((end.status, end.attempt, end.counted_attempts()), (Status::Succeeded, 2, 1), "{end:?}");
    let history = setup.history("preempted").await;
    assert!(history.iter().any(|event| event.outcome == Some(Outcome::NotStarted)), "{history:?}");
    assert_eq!(node.start_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_node_is_drained_goes_on_in_another_pod_where_pods_have_no_gate() {
    let setup = Setup::kubernetes(120.0).await;
    let options = hasty(setup.options()).env("JOB_DEADLINE_MARGIN_SECONDS", 60).env("JOB_POD_GATE", false);
    let operator = Operator::start(options).await;
    accepted(&operator, &short("drained")).await;
    let runs = setup.becomes("drained", Status::Running).await;
    let start_by = runs.created_at.expect("it is claimed") + SignedDuration::from_secs(3);
    eventually("its time to start is over", PATIENCE, async || Timestamp::now() > start_by).await;

    setup.node().vanish();
    disrupt(&setup, "EvictionByEvictionAPI").await;
    let _node = another_node(&setup);
    let end = setup.end_of("drained").await;
    assert_eq!((end.status, end.attempt), (Status::Succeeded, 1), "{end:?}");
    setup.queue_empties().await;
}
