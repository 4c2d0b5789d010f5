//! `kill -9` at every instruction that matters: afterwards there is the same single Job, the right end, and an empty queue. And
//! signals: how an operator ends when it is asked to.
//!
//! A failpoint holds the operator where it is to be killed; `reached` looks from outside whether it is there.

use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::api::batch::v1::Job;
use nix::sys::signal::Signal;
use serde_json::json;
use sipstuff_operator::call::Status;

use crate::support::status::messages_in;
use crate::support::{Operator, PATIENCE, Setup, accepted, eventually, in_seconds, name_of, request_of, with};

/// Long enough for the next step of a call to show, were the operator not held.
const A_STEP: Duration = Duration::from_millis(500);

/// Where the operator is killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Point {
    AfterClaim,
    AfterStart,
    /// Its pod is chosen, and waits at its gate.
    AfterChoice,
    AfterGate,
    Running,
    AfterEnd,
}

const POINTS: [Point; 4] = [Point::AfterClaim, Point::AfterStart, Point::Running, Point::AfterEnd];
/// Besides, in a cluster.
const POINTS_AT_THE_GATE: [Point; 2] = [Point::AfterChoice, Point::AfterGate];

impl Point {
    fn failpoints(self) -> &'static str {
        match self {
            Point::AfterClaim => "after-claim=pause",
            Point::AfterStart => "after-start=pause",
            Point::AfterChoice => "after-choice=pause",
            Point::AfterGate => "after-gate=pause",
            Point::Running => "",
            Point::AfterEnd => "after-end=pause",
        }
    }

    /// Waits until the operator is there, and asserts that it stays.
    async fn reached(self, setup: &Setup, id: &str) {
        let (status, jobs) = match self {
            Point::AfterClaim => (Status::Pending, 0),
            Point::AfterStart | Point::AfterChoice | Point::AfterGate => (Status::Pending, 1),
            Point::Running => (Status::Running, 1),
            Point::AfterEnd => (Status::Succeeded, 1),
        };
        setup.becomes(id, status).await;
        if POINTS_AT_THE_GATE.contains(&self) {
            let is_chosen = async || setup.state(id).await.is_some_and(|event| event.pod.is_some());
            eventually(format!("{self:?}: its pod is chosen"), PATIENCE, is_chosen).await;
        }
        if self == Point::AfterGate {
            eventually(format!("{self:?}: it runs"), PATIENCE, async || setup.node().start_count() == 1).await;
        }
        eventually(format!("{self:?}: {jobs} Jobs"), PATIENCE, async || setup.jobs().await.len() == jobs).await;
        tokio::time::sleep(A_STEP).await;
        assert_eq!(setup.state(id).await.map(|event| event.status), Some(status), "{self:?}");
        assert_eq!(setup.jobs().await.len(), jobs, "{self:?}");
        if self == Point::AfterChoice {
            assert_eq!(setup.node().start_count(), 0, "{self:?}");
        }
        // Not acknowledged, not even after the final record.
        assert_eq!((messages_in(&setup.js, "SIP_DIAL").await, setup.in_flight().await), (1, 1), "{self:?}");
    }
}

async fn killed_at(point: Point, setup: Setup) {
    let id = "crash";
    let mut operator = Operator::start(setup.options().failpoints(point.failpoints())).await;
    accepted(&operator, &request_of(id)).await;
    point.reached(&setup, id).await;
    operator.kill9();

    let _operator = setup.operator().await;
    let end = setup.end_of(id).await;
    assert_eq!((end.status, end.exit_code), (Status::Succeeded, Some(0)), "{point:?}");
    setup.all_end_once(&[id]).await;
    assert_eq!(setup.jobs().await, [name_of(id)], "{point:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_point_it_carries_on_with_the_same_job_in_a_cluster() {
    let points = POINTS.into_iter().chain(POINTS_AT_THE_GATE);
    join_all(points.map(async |point| killed_at(point, Setup::kubernetes(8.0).await).await)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_point_it_carries_on_with_the_same_process_on_this_machine() {
    join_all(POINTS.map(async |point| killed_at(point, Setup::local(8.0).await).await)).await;
}

/// The steps before a call is dialled: of a request, and of what comes due.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_of_admission_and_feed_it_admits_and_dials_once() {
    let points = ["admission-recorded", "admission-placed", "feed-offered"];
    let waits = [None, Some(4)];
    join_all(points.into_iter().flat_map(|point| waits.map(|wait| killed_before_it_dials(point, wait)))).await;
}

async fn killed_before_it_dials(point: &str, seconds: Option<i64>) {
    let setup = Setup::local(0.3).await;
    let failpoint = format!("{point}=pause");
    let mut operator = Operator::start(setup.options().failpoints(&failpoint)).await;
    let body = match seconds {
        None => request_of("a"),
        Some(seconds) => {
            with(request_of("a"), json!({"not_before": in_seconds(seconds), "not_after": in_seconds(600)}))
        }
    };
    setup.publish(&[], body.to_string()).await;
    match point {
        "admission-recorded" => {
            let held = if seconds.is_some() { Status::Scheduled } else { Status::Queued };
            setup.becomes("a", held).await;
            tokio::time::sleep(A_STEP).await;
            assert_eq!(setup.statuses("a").await, [held], "{point} holds it");
        }
        "admission-placed" => {
            // It may be dialled by now, and its request is not acknowledged.
            setup.becomes("a", Status::Queued).await;
            tokio::time::sleep(A_STEP).await;
            let source = if seconds.is_some() { "SIP_SCHEDULE" } else { "SIP_CALLS" };
            assert!(messages_in(&setup.js, source).await > 0, "{point} holds it");
        }
        _ => {
            let both = async || [messages_in(&setup.js, "SIP_QUEUE").await, messages_in(&setup.js, "SIP_DIAL").await];
            eventually("it is in the window and in the queue", PATIENCE, async || both().await == [1, 1]).await;
        }
    }
    operator.kill9();

    let _operator = setup.operator().await;
    assert_eq!(setup.end_of("a").await.status, Status::Succeeded, "{point}");
    assert_eq!(setup.calls_with("a"), 1, "{point}");
    setup.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_end_while_no_operator_runs_are_settled_as_soon_as_one_does() {
    let setup = Setup::kubernetes(5.0).await;
    let mut operator = setup.operator().await;
    let ids = ["ends-alone", "ends-busy", "ends-pending"];
    for (id, dest) in ids.iter().zip(["200", "486"]) {
        setup.publish(&[], with(request_of(id), json!({"dest": dest})).to_string()).await;
        setup.becomes(id, Status::Running).await;
    }
    operator.kill9();
    let mut operator = Operator::start(setup.options().failpoints("after-gate=pause")).await;
    setup.publish(&[], request_of(ids[2]).to_string()).await;
    eventually("the third call begins", PATIENCE, async || setup.node().start_count() == 3).await;
    operator.kill9();
    eventually("all Jobs have ended", PATIENCE, async || {
        let jobs = setup.namespace().api::<Job>().list(&Default::default()).await.unwrap().items;
        let ended = |job: &&Job| {
            job.status.as_ref().is_some_and(|status| status.completion_time.is_some() || status.failed == Some(1))
        };
        jobs.iter().filter(ended).count() == 3
    })
    .await;

    let begin = Instant::now();
    let _operator = setup.operator().await;
    for (id, status) in ids.iter().zip([Status::Succeeded, Status::Failed, Status::Succeeded]) {
        assert_eq!(setup.end_of(id).await.status, status, "{id}");
    }
    // By the full list at start: the messages themselves come again only after the ack wait of 30 s.
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    eventually("settled Jobs have a time to live", PATIENCE, async || {
        let jobs = setup.namespace().api::<Job>().list(&Default::default()).await.unwrap().items;
        jobs.iter().all(|job| job.spec.as_ref().is_some_and(|spec| spec.ttl_seconds_after_finished.is_some()))
    })
    .await;
    setup.queue_empties().await;
    assert_eq!(setup.node().start_count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_is_asked_to_end_hands_its_calls_over_at_once() {
    let setup = Setup::kubernetes(15.0).await;
    let mut leaves = setup.operator().await;
    let ids = setup.run_calls("handed", 10).await;
    let stays = setup.operator().await;
    let begin = Instant::now();
    let status = leaves.terminate(Duration::from_secs(10)).await;
    assert!(status.success(), "{status}");
    eventually("the other one watches all of them", Duration::from_secs(5), async || {
        ids.iter().all(|id| stays.log().lines().any(|line| line.contains(id.as_str()) && line.contains("Watch")))
    })
    .await;
    // A second to end and a second to take over, on a machine that does much else.
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    setup.all_end_once(&ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let setup = Setup::local(2.0).await;
    let mut operator = setup.operator().await;
    let ids = setup.run_calls("goes-on", 1).await;
    // Without NATS nothing can be handed back, which takes its time.
    setup.nats.kill();
    operator.signal(Signal::SIGTERM);
    tokio::time::sleep(A_STEP).await;
    assert!(operator.ended().is_none(), "it ended without a second signal: {:?}", operator.ended());
    operator.signal(Signal::SIGINT);
    assert_eq!(operator.wait(Duration::from_secs(2)).await.code(), Some(130));

    setup.nats.restart().await;
    let _operator = setup.operator().await;
    setup.all_end_once(&ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_without_nats_ends_when_it_is_asked_to() {
    let setup = Setup::local(1.0).await;
    let mut operator = setup.operator().await;
    setup.run_calls("held", 1).await;
    setup.nats.kill();
    let status = operator.terminate(Duration::from_secs(15)).await;
    assert!(status.success(), "{status}");
}
