//! NATS, the API server or the network to them fail and come back: everything continues by itself, and nothing is lost.

use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use serde_json::json;
use sipstuff_operator::call::Status;

use crate::support::operator::Runner;
use crate::support::{
    ControlPlane, Operator, PATIENCE, Proxy, Setup, accepted, eventually, get_json, name_of, request_of,
};

#[tokio::test(flavor = "multi_thread")]
async fn calls_outlast_a_nats_server_that_is_down_for_longer_than_they_take() {
    let setup = Setup::local(2.0).await;
    let mut operator = setup.operator().await;
    let ids = setup.run_calls("killed", 5).await;
    setup.nats.kill();
    eventually("it is not ready", PATIENCE, async || get_json(operator.base(), "/readyz").await.status == 503).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    setup.nats.restart().await;
    operator.ready().await;
    setup.all_end_once(&ids).await;
    assert!(operator.ended().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_outlast_a_nats_server_that_is_killed_and_back_at_once() {
    let setup = Setup::local(2.0).await;
    let mut operator = setup.operator().await;
    let ids = setup.run_calls("restarted", 5).await;
    setup.nats.restart().await;
    operator.ready().await;
    setup.all_end_once(&ids).await;
    assert!(operator.ended().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_outlast_a_nats_server_that_is_stopped_in_order() {
    let setup = Setup::local(2.0).await;
    let mut operator = setup.operator().await;
    let ids = setup.run_calls("stopped", 5).await;
    setup.nats.stop().await;
    setup.nats.restart().await;
    setup.all_end_once(&ids).await;
    assert!(operator.ended().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_accepted_and_listed_again_after_three_outages_of_nats() {
    let setup = Setup::local(2.0).await;
    let mut operator = setup.operator().await;
    let mut all = Vec::new();
    for outage in 0..3 {
        all.extend(setup.run_calls(&format!("outage-{outage}"), 5).await);
        setup.nats.kill();
        eventually("it is not ready", PATIENCE, async || get_json(operator.base(), "/readyz").await.status == 503)
            .await;
        setup.nats.restart().await;
        operator.ready().await;
    }
    accepted(&operator, &request_of("afterwards")).await;
    all.push("afterwards".to_owned());
    setup.all_end_once(&all).await;
    eventually("all are listed", PATIENCE, async || {
        get_json(operator.base(), "/jobs?status=succeeded").await.json.as_array().is_some_and(|jobs| jobs.len() == 16)
    })
    .await;
}

/// An operator whose way to NATS leads through a proxy.
async fn behind_a_proxy(setup: &Setup) -> (Operator, Proxy) {
    let proxy = Proxy::start(format!("127.0.0.1:{}", setup.nats.port())).await;
    (Operator::start(setup.options().nats_url(proxy.url("nats"))).await, proxy)
}

/// No byte is lost, but for a while none arrives: requests time out, and connections look alive.
#[tokio::test(flavor = "multi_thread")]
async fn calls_outlast_a_network_on_which_nothing_arrives_for_a_while() {
    let setup = Setup::local(1.0).await;
    let (mut operator, proxy) = behind_a_proxy(&setup).await;
    let ids = setup.run_calls("stalled", 5).await;
    proxy.stall(true);
    tokio::time::sleep(Duration::from_secs(12)).await;
    proxy.stall(false);
    proxy.cut();
    setup.all_end_once(&ids).await;
    operator.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_outlast_connections_that_break() {
    let setup = Setup::local(1.0).await;
    let (mut operator, proxy) = behind_a_proxy(&setup).await;
    let ids = setup.run_calls("cut", 5).await;
    proxy.cut();
    setup.all_end_once(&ids).await;
    operator.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_outlast_an_api_server_that_is_killed() {
    let plane = ControlPlane::start_own().await;
    let setup = Setup::in_namespace(plane.namespace().await, 3.0).await;
    let mut operator = setup.operator().await;
    let mut all = setup.run_calls("killed", 5).await;
    plane.kill_apiserver();
    // Taken from the queue while there is nowhere to make its Job.
    setup.publish(&[], request_of("homeless").to_string()).await;
    setup.becomes("homeless", Status::Pending).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    plane.restart_apiserver().await;
    all.push("homeless".to_owned());
    setup.all_end_once(&all).await;
    assert!(operator.ended().is_none());
    assert_eq!(setup.node().start_count(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_outlast_an_api_server_that_freezes() {
    let plane = ControlPlane::start_own().await;
    let setup = Setup::in_namespace(plane.namespace().await, 3.0).await;
    let mut operator = setup.operator().await;
    let mut all = setup.run_calls("frozen", 5).await;
    plane.freeze_apiserver();
    setup.publish(&[], request_of("cold").to_string()).await;
    setup.becomes("cold", Status::Pending).await;
    // Longer than a request may take.
    tokio::time::sleep(Duration::from_secs(18)).await;
    plane.thaw_apiserver();
    all.push("cold".to_owned());
    setup.all_end_once(&all).await;
    assert!(operator.ended().is_none());
    assert_eq!(setup.node().start_count(), 6);
}

/// An operator takes only so many calls ahead of their Jobs: otherwise one whose requests go unanswered would hold all of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_api_server_is_silent_leaves_the_calls_to_the_other() {
    let plane = ControlPlane::shared().await;
    let setup = Setup::kubernetes(0.1).await;
    let proxy = Proxy::start(plane.addr()).await;
    let options = setup.options().env("MAX_ACTIVE_CALLS", 16);
    let mut cut_off = options.clone();
    let kubeconfig = setup.namespace().proxied_kubeconfig(&proxy);
    cut_off.runner = Runner::Kubernetes { kubeconfig, namespace: setup.namespace().name.clone() };
    let silent = Operator::start(cut_off).await;
    proxy.stall(true);
    let _other = Operator::start(options).await;
    let ids: Vec<String> = (0..60).map(|n| format!("shared-{n}")).collect();
    for id in &ids {
        setup.publish(&[], request_of(id).to_string()).await;
    }
    // A quarter of the active calls is what it may hold; the rest is dialled meanwhile.
    let unstarted = async || ids.iter().filter(|id| setup.calls_with(id) == 0).count();
    eventually("only what the silent one holds waits", PATIENCE, async || unstarted().await <= 4).await;
    eventually("the others have left the queue", PATIENCE, async || setup.in_flight().await <= 4).await;
    proxy.stall(false);
    setup.all_end_once(&ids).await;
    drop(silent);
}

/// A Job without a TTL stays until its outcome is in the log, however long nobody could write there.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_gets_its_ttl_when_its_end_is_recorded_and_not_before() {
    let setup = Setup::kubernetes(4.0).await;
    let mut operator = setup.operator().await;
    let id = setup.run_calls("kept", 1).await.remove(0);
    let jobs = setup.namespace().api::<Job>();
    let name = name_of(&id);
    let spec_and_status = async || {
        let job = jobs.get(&name).await.expect("it is not removed");
        (job.spec.expect("a spec"), job.status.unwrap_or_default())
    };
    setup.nats.kill();
    eventually("the Job has ended", PATIENCE, async || spec_and_status().await.1.succeeded == Some(1)).await;
    // Time enough to let it go, were it not for the log.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(spec_and_status().await.0.ttl_seconds_after_finished, None);
    setup.nats.restart().await;
    operator.ready().await;
    let ttl = async || spec_and_status().await.0.ttl_seconds_after_finished;
    eventually("it has a TTL", PATIENCE, async || ttl().await == Some(3600)).await;
    assert!(setup.state(&id).await.expect("the log is there").is_final);
    setup.all_end_once(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_starts_before_nats_waits_for_it() {
    let setup = Setup::local(0.2).await;
    setup.nats.kill();
    let mut operator = Operator::start_unready(setup.options()).await;
    let ready = get_json(operator.base(), "/readyz").await;
    assert_eq!((ready.status.as_u16(), &ready.json["ready"]), (503, &json!(false)));
    setup.nats.restart().await;
    operator.ready().await;
    accepted(&operator, &request_of("patient")).await;
    setup.all_end_once(&["patient"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_starts_before_the_api_server_waits_for_it() {
    let plane = ControlPlane::start_own().await;
    let setup = Setup::in_namespace(plane.namespace().await, 0.2).await;
    plane.kill_apiserver();
    let mut operator = Operator::start_unready(setup.options()).await;
    let ready = get_json(operator.base(), "/readyz").await;
    let runner = ready.json["checks"].as_array().unwrap().iter().find(|check| check["name"] == "runner").unwrap();
    assert_eq!((ready.status.as_u16(), &runner["ready"]), (503, &json!(false)), "{ready:?}");
    plane.restart_apiserver().await;
    operator.ready().await;
    setup.publish(&[], request_of("patient").to_string()).await;
    setup.all_end_once(&["patient"]).await;
}
