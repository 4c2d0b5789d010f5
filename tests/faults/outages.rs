//! What the operator stands on goes and comes back while calls run: everything continues by itself, and nothing is lost.

use std::time::{Duration, Instant};

use k8s_openapi::api::batch::v1::Job;
use serde_json::json;
use sipstuff_operator::call::{Outcome, Status};

use crate::behaviour::http;
use crate::support::operator::Runner;
use crate::support::setup::{PATIENCE, Stage, name_of, request_of};
use crate::support::{ControlPlane, Operator, Proxy, eventually, get_json, post_call};

/// Publishes calls and waits until they run.
async fn running(stage: &Stage, prefix: &str, count: usize) -> Vec<String> {
    let ids: Vec<String> = (0..count).map(|n| format!("{prefix}-{n}")).collect();
    for id in &ids {
        stage.publish(&[], request_of(id).to_string()).await;
    }
    for id in &ids {
        stage.becomes(id, Status::Running).await;
    }
    ids
}

/// Asserts that all calls end well and once.
async fn all_end_once(stage: &Stage, ids: &[String]) {
    for id in ids {
        stage.end_of(id).await;
    }
    stage.queue_empties().await;
    for id in ids {
        stage.was_placed_once(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_outlast_a_nats_server_that_is_killed_or_restarted() {
    let stage = Stage::machine(2.0).await;
    let mut operator = stage.operator().await;
    // Away for longer than the calls take, then back within them, then in good order.
    let mut all = running(&stage, "killed", 5).await;
    stage.nats.kill();
    eventually("it is not ready", PATIENCE, async || get_json(operator.base(), "/readyz").await.status == 503).await;
    http::without_nats_nothing_is_accepted_and_health_holds(operator.base()).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    stage.nats.restart().await;
    operator.ready().await;
    all.extend(running(&stage, "restarted", 5).await);
    stage.nats.restart().await;
    operator.ready().await;
    all.extend(running(&stage, "stopped", 5).await);
    stage.nats.stop().await;
    stage.nats.restart().await;
    all_end_once(&stage, &all).await;

    let reply = post_call(operator.base(), &request_of("afterwards")).await;
    assert_eq!(reply.status, 202, "{reply:?}");
    all_end_once(&stage, &["afterwards".to_owned()]).await;
    // The view follows the log again, too.
    eventually("all are listed", PATIENCE, async || {
        get_json(operator.base(), "/jobs?status=succeeded").await.json.as_array().is_some_and(|jobs| jobs.len() == 16)
    })
    .await;
    assert!(operator.ended().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_outlast_a_network_that_swallows_everything_for_a_while() {
    let stage = Stage::machine(1.0).await;
    let proxy = Proxy::start(format!("127.0.0.1:{}", stage.nats.port())).await;
    let mut operator = Operator::start(stage.options().nats_url(proxy.url("nats"))).await;
    let mut all = running(&stage, "stalled", 5).await;
    // No word is lost, but for a while none arrives: requests time out, connections look alive.
    proxy.stall(true);
    tokio::time::sleep(Duration::from_secs(12)).await;
    proxy.stall(false);
    proxy.cut();
    all.extend(running(&stage, "cut", 5).await);
    proxy.cut();
    all_end_once(&stage, &all).await;
    operator.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_outlast_an_api_server_that_is_killed_or_freezes() {
    let plane = ControlPlane::start_own().await;
    let stage = Stage::in_namespace(plane.namespace().await, 3.0).await;
    let mut operator = stage.operator().await;

    let mut all = running(&stage, "killed", 5).await;
    plane.kill_apiserver();
    // Taken from the queue while there is nowhere to put a Job.
    stage.publish(&[], request_of("homeless").to_string()).await;
    stage.becomes("homeless", Status::Pending).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    plane.restart_apiserver().await;
    all.push("homeless".to_owned());
    all_end_once(&stage, &all).await;

    let mut all = running(&stage, "frozen", 5).await;
    plane.freeze_apiserver();
    stage.publish(&[], request_of("cold").to_string()).await;
    stage.becomes("cold", Status::Pending).await;
    // Longer than a request may take.
    tokio::time::sleep(Duration::from_secs(18)).await;
    plane.thaw_apiserver();
    all.push("cold".to_owned());
    all_end_once(&stage, &all).await;
    assert!(operator.ended().is_none());
    assert_eq!(stage.node().start_count(), 12);
}

/// An operator takes no more calls ahead than it has room for: otherwise the one whose requests go unanswered would draw all of
/// them, and sit on them.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_api_server_is_silent_leaves_the_calls_to_the_other() {
    let plane = ControlPlane::shared().await;
    let stage = Stage::cluster(0.1).await;
    let proxy = Proxy::start(plane.addr()).await;
    let options = stage.options().env("MAX_ACTIVE_CALLS", 16);
    let mut cut_off = options.clone();
    let kubeconfig = stage.namespace().proxied_kubeconfig(&proxy);
    cut_off.runner = Runner::Kubernetes { kubeconfig, namespace: stage.namespace().name.clone() };
    let silent = Operator::start(cut_off).await;
    proxy.stall(true);
    let _other = Operator::start(options).await;
    let ids: Vec<String> = (0..60).map(|n| format!("shared-{n}")).collect();
    for id in &ids {
        stage.publish(&[], request_of(id).to_string()).await;
    }
    // A quarter of the active calls is what it may hold; the rest is dialled meanwhile.
    let unstarted = async || ids.iter().filter(|id| stage.calls_with(id) == 0).count();
    eventually("only what the silent one holds waits", PATIENCE, async || unstarted().await <= 4).await;
    eventually("the others have left the queue", PATIENCE, async || stage.held().await <= 4).await;
    proxy.stall(false);
    all_end_once(&stage, &ids).await;
    drop(silent);
}

/// A Job without a TTL stays until its outcome is in the log, however long nobody could write there.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_gets_its_ttl_when_its_end_is_recorded_and_not_before() {
    let stage = Stage::cluster(4.0).await;
    let mut operator = stage.operator().await;
    let id = running(&stage, "kept", 1).await.remove(0);
    let jobs = stage.namespace().api::<Job>();
    let name = name_of(&id);
    let spec_and_status = async || {
        let job = jobs.get(&name).await.expect("it is not removed");
        (job.spec.expect("a spec"), job.status.unwrap_or_default())
    };
    stage.nats.kill();
    eventually("the Job has ended", PATIENCE, async || spec_and_status().await.1.succeeded == Some(1)).await;
    // Time enough to let it go, were it not for the log.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(spec_and_status().await.0.ttl_seconds_after_finished, None);
    stage.nats.restart().await;
    operator.ready().await;
    let ttl = async || spec_and_status().await.0.ttl_seconds_after_finished;
    eventually("it has a TTL", PATIENCE, async || ttl().await == Some(3600)).await;
    assert!(stage.state(&id).await.expect("the log is there").is_final);
    all_end_once(&stage, &[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_starts_before_nats_waits_for_it() {
    let stage = Stage::machine(0.2).await;
    stage.nats.kill();
    let mut operator = Operator::start_unready(stage.options()).await;
    let ready = get_json(operator.base(), "/readyz").await;
    assert_eq!((ready.status.as_u16(), &ready.json["ready"]), (503, &json!(false)));
    let nats = ready.json["checks"].as_array().unwrap().iter().find(|check| check["name"] == "nats").unwrap();
    assert_eq!(nats["ready"], false, "{ready:?}");
    http::without_nats_nothing_is_accepted_and_health_holds(operator.base()).await;
    stage.nats.restart().await;
    operator.ready().await;
    assert_eq!(post_call(operator.base(), &request_of("patient")).await.status, 202);
    all_end_once(&stage, &["patient".to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_starts_before_the_api_server_waits_for_it() {
    let plane = ControlPlane::start_own().await;
    let stage = Stage::in_namespace(plane.namespace().await, 0.2).await;
    plane.kill_apiserver();
    let mut operator = Operator::start_unready(stage.options()).await;
    let ready = get_json(operator.base(), "/readyz").await;
    let runner = ready.json["checks"].as_array().unwrap().iter().find(|check| check["name"] == "runner").unwrap();
    assert_eq!((ready.status.as_u16(), &runner["ready"]), (503, &json!(false)), "{ready:?}");
    plane.restart_apiserver().await;
    operator.ready().await;
    stage.publish(&[], request_of("patient").to_string()).await;
    all_end_once(&stage, &["patient".to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_deleted_by_hand_is_a_cancelled_call() {
    let stage = Stage::cluster(20.0).await;
    let operator = stage.operator().await;
    let ids = running(&stage, "deleted", 3).await;
    let begin = Instant::now();
    for (id, cascade) in ids.iter().zip(["background", "foreground", "orphan"]) {
        let delete = ["delete", "job", &name_of(id), &format!("--cascade={cascade}"), "--wait=false"];
        let answer = stage.namespace().kubectl(&delete, None).await;
        assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    }
    for id in &ids {
        let end = stage.end_of(id).await;
        assert_eq!((end.status, end.reason.as_deref()), (Status::Cancelled, Some("deleted")), "{id}");
    }
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    stage.queue_empties().await;
    let answer = stage.namespace().kubectl(&["delete", "jobs", "--all"], None).await;
    assert!(answer.status.success());
    // Also when nobody saw it go.
    let id = running(&stage, "unseen", 1).await.remove(0);
    let mut operator = operator;
    operator.kill9();
    assert!(stage.namespace().kubectl(&["delete", "job", &name_of(&id)], None).await.status.success());
    let _operator = stage.operator().await;
    let end = stage.end_of(&id).await;
    assert_eq!((end.status, end.reason.as_deref(), end.outcome), (Status::Cancelled, Some("deleted"), None::<Outcome>));
    stage.queue_empties().await;
    assert_eq!(stage.node().start_count(), 4);
}
