//! `kill -9` at every instruction that matters: after it the same single Job, the right end, an empty queue.
//!
//! A failpoint holds the operator where it is to be killed; `reached` looks from outside whether it is there.

use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::api::batch::v1::Job;
use nix::sys::signal::Signal;
use sipstuff_operator::call::Status;

use crate::support::setup::{PATIENCE, Stage, name_of, request_of};
use crate::support::status::messages_in;
use crate::support::{Operator, eventually, post_call};

/// Long enough for the next step of a call to show, were the operator not held.
const A_STEP: Duration = Duration::from_millis(500);

/// Where the operator is killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Point {
    AfterClaim,
    AfterStart,
    Running,
    AfterEnd,
}

const POINTS: [Point; 4] = [Point::AfterClaim, Point::AfterStart, Point::Running, Point::AfterEnd];

impl Point {
    fn failpoints(self) -> &'static str {
        match self {
            Point::AfterClaim => "after-claim=pause",
            Point::AfterStart => "after-start=pause",
            Point::Running => "",
            Point::AfterEnd => "after-end=pause",
        }
    }

    /// Waits until the operator is there, and asserts that it stays.
    async fn reached(self, stage: &Stage, id: &str) {
        let (status, jobs) = match self {
            Point::AfterClaim => (Status::Pending, 0),
            Point::AfterStart => (Status::Pending, 1),
            Point::Running => (Status::Running, 1),
            Point::AfterEnd => (Status::Succeeded, 1),
        };
        stage.becomes(id, status).await;
        eventually(format!("{self:?}: {jobs} Jobs"), PATIENCE, async || stage.jobs().await.len() == jobs).await;
        tokio::time::sleep(A_STEP).await;
        assert_eq!(stage.state(id).await.map(|event| event.status), Some(status), "{self:?}");
        assert_eq!(stage.jobs().await.len(), jobs, "{self:?}");
        // Not acknowledged, not even after the final record.
        assert_eq!((messages_in(&stage.js, "SIP_CALLS").await, stage.held().await), (1, 1), "{self:?}");
    }
}

async fn killed_at(point: Point, stage: Stage) {
    let id = "crash";
    let mut operator = Operator::start(stage.options().failpoints(point.failpoints())).await;
    assert_eq!(post_call(operator.base(), &request_of(id)).await.status, 202);
    point.reached(&stage, id).await;
    operator.kill9();

    let _operator = stage.operator().await;
    let end = stage.end_of(id).await;
    assert_eq!((end.status, end.exit_code), (Status::Succeeded, Some(0)), "{point:?}");
    stage.queue_empties().await;
    stage.was_placed_once(id).await;
    assert_eq!(stage.jobs().await, [name_of(id)], "{point:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_point_it_carries_on_with_the_same_job_in_a_cluster() {
    join_all(POINTS.map(async |point| {
        let stage = Stage::cluster(8.0).await;
        killed_at(point, stage).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_point_it_carries_on_with_the_same_process_on_a_machine() {
    join_all(POINTS.map(async |point| killed_at(point, Stage::machine(8.0).await).await)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_while_no_operator_lives_is_settled_as_soon_as_one_does() {
    let stage = Stage::cluster(5.0).await;
    let mut operator = stage.operator().await;
    let ids = ["ends-alone", "ends-busy", "ends-pending"];
    for id in &ids[..2] {
        let mut request = request_of(id);
        request["dest"] = if *id == "ends-busy" { "486".into() } else { "200".into() };
        stage.publish(&[], request.to_string()).await;
        stage.becomes(id, Status::Running).await;
    }
    operator.kill9();
    let mut operator = Operator::start(stage.options().failpoints("after-start=pause")).await;
    stage.publish(&[], request_of(ids[2]).to_string()).await;
    eventually("the third Job is made", PATIENCE, async || stage.jobs().await.len() == 3).await;
    operator.kill9();
    eventually("all Jobs have ended", PATIENCE, async || {
        let jobs = stage.namespace().api::<Job>().list(&Default::default()).await.unwrap().items;
        let ended = |job: &&Job| {
            job.status.as_ref().is_some_and(|status| status.completion_time.is_some() || status.failed == Some(1))
        };
        jobs.iter().filter(ended).count() == 3
    })
    .await;

    let begin = Instant::now();
    let _operator = stage.operator().await;
    for (id, status) in ids.iter().zip([Status::Succeeded, Status::Failed, Status::Succeeded]) {
        assert_eq!(stage.end_of(id).await.status, status, "{id}");
    }
    // By the full list at start: the messages themselves come again only after the ack wait of 30 s.
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    eventually("settled Jobs have a time to live", PATIENCE, async || {
        let jobs = stage.namespace().api::<Job>().list(&Default::default()).await.unwrap().items;
        jobs.iter().all(|job| job.spec.as_ref().is_some_and(|spec| spec.ttl_seconds_after_finished.is_some()))
    })
    .await;
    stage.queue_empties().await;
    assert_eq!(stage.node().start_count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_is_asked_to_end_hands_its_calls_over_at_once() {
    let stage = Stage::cluster(15.0).await;
    let mut leaves = stage.operator().await;
    let ids: Vec<String> = (0..10).map(|n| format!("handed-{n}")).collect();
    for id in &ids {
        stage.publish(&[], request_of(id).to_string()).await;
    }
    for id in &ids {
        stage.becomes(id, Status::Running).await;
    }
    let stays = stage.operator().await;
    let begin = Instant::now();
    let status = leaves.terminate(Duration::from_secs(10)).await;
    assert!(status.success(), "{status}");
    eventually("the other one watches all of them", Duration::from_secs(5), async || {
        ids.iter().all(|id| stays.log().lines().any(|line| line.contains(id.as_str()) && line.contains("Watch")))
    })
    .await;
    // A second to end and a second to take over, on a machine that does much else.
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    for id in &ids {
        stage.end_of(id).await;
    }
    stage.queue_empties().await;
    for id in &ids {
        stage.was_placed_once(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let stage = Stage::machine(2.0).await;
    let mut operator = stage.operator().await;
    stage.publish(&[], request_of("goes-on").to_string()).await;
    stage.becomes("goes-on", Status::Running).await;
    // Without NATS nothing can be handed back, which takes its time.
    stage.nats.kill();
    operator.signal(Signal::SIGTERM);
    tokio::time::sleep(A_STEP).await;
    assert!(operator.ended().is_none(), "it ended without a second signal: {:?}", operator.ended());
    operator.signal(Signal::SIGINT);
    assert_eq!(operator.wait(Duration::from_secs(2)).await.code(), Some(130));

    stage.nats.restart().await;
    let _operator = stage.operator().await;
    stage.end_of("goes-on").await;
    stage.queue_empties().await;
    stage.was_placed_once("goes-on").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_without_nats_ends_all_the_same_when_it_is_asked_to() {
    let stage = Stage::machine(1.0).await;
    let mut operator = stage.operator().await;
    stage.publish(&[], request_of("x").to_string()).await;
    stage.becomes("x", Status::Running).await;
    stage.nats.kill();
    let status = operator.terminate(Duration::from_secs(15)).await;
    assert!(status.success(), "{status}");
}
