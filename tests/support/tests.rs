//! The support itself works: what the other tests rely on.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use async_nats::jetstream::stream;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};
use sipstuff_operator::call::{CallId, Fingerprint, Status, StatusEvent};

use crate::support::node::Instant;
use crate::support::process::{Process, Scratch, alive};
use crate::support::status::{recorded, round_trip};
use crate::support::{
    ControlPlane, Namespace, NatsServer, NodeOptions, Proxy, StatusListener, TestNode, eventually, eventually_some,
};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_nats_server_keeps_its_port_and_streams_when_it_is_killed_and_restarted() {
    let nats = NatsServer::start().await;
    let url = nats.url();
    let js = nats.jetstream().await;
    let config = stream::Config { name: "S".into(), subjects: vec!["s".into()], ..Default::default() };
    js.create_stream(config).await.unwrap();
    js.publish("s", "one".into()).await.unwrap().await.unwrap();

    nats.kill();
    assert_eq!(nats.pid(), None);
    nats.restart().await;
    nats.stop().await;
    nats.restart().await;

    assert_eq!(nats.url(), url);
    let js = nats.jetstream().await;
    js.publish("s", "two".into()).await.unwrap().await.unwrap();
    assert_eq!(js.get_stream("S").await.unwrap().cached_info().state.messages, 2);
}

#[tokio::test]
async fn a_job_runs_on_the_test_node_with_its_secrets_and_references() {
    let (namespace, node) = namespace_with_node(NodeOptions::default()).await;
    let env = json!([
        {"name": "GIVEN", "value": "5$$"},
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "trunk", "key": "word"}}},
        {"name": "ABSENT", "valueFrom": {"secretKeyRef": {"name": "nowhere", "key": "word", "optional": true}}},
    ]);
    create(&namespace, job("speaks", r#"echo "$(GIVEN) $(SECRET) $$GIVEN ${ABSENT-absent}""#, env)).await;
    eventually("the pod waits for its Secret", SOON, async || {
        let pods = namespace.api::<Pod>().list(&ListParams::default()).await.unwrap();
        serde_json::to_string(&pods).unwrap().contains("CreateContainerConfigError")
    })
    .await;
    let secret = json!({"metadata": {"name": "trunk"}, "stringData": {"word": "sesame"}});
    let secret: Secret = serde_json::from_value(secret).unwrap();
    namespace.api().create(&PostParams::default(), &secret).await.unwrap();

    let status = ended(&namespace, "speaks").await.status.unwrap();

    assert_eq!(status.succeeded, Some(1));
    assert_eq!(node.log_of("speaks"), "5$ sesame 5$ absent\n");
    assert_eq!(node.starts_of("speaks").len(), 1);
    assert_eq!(node.starts_of("speaks")[0].env["SECRET"], "sesame");
}

#[tokio::test]
async fn a_failed_job_on_the_test_node_has_an_exit_code_and_the_end_of_its_log() {
    let (namespace, _node) = namespace_with_node(NodeOptions::default()).await;
    create(&namespace, job("fails", "echo Call state: DISCONNECTED >&2; exit 3", json!([]))).await;

    let status = ended(&namespace, "fails").await.status.unwrap();

    assert_eq!(status.failed, Some(1));
    let pods = namespace.api::<Pod>().list(&ListParams::default()).await.unwrap();
    let containers = pods.items[0].status.clone().unwrap().container_statuses.unwrap();
    let terminated = containers[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!(terminated.exit_code, 3);
    assert_eq!(terminated.message.as_deref(), Some("Call state: DISCONNECTED\n"));
    assert!(terminated.finished_at >= terminated.started_at);
}

#[tokio::test]
async fn deleting_a_job_ends_its_process_first_and_a_stubborn_one_by_force() {
    let (namespace, node) = namespace_with_node(NodeOptions::default()).await;
    let stubborn = r#"trap "" TERM; echo "pid $$$$"; while :; do sleep 0.1; done"#;
    create(&namespace, job("stubborn", stubborn, json!([]))).await;
    let pid = eventually_some("the process runs", SOON, async || {
        node.log_of("stubborn").lines().find_map(|line| line.strip_prefix("pid ")?.parse::<u32>().ok())
    })
    .await;

    namespace.api::<Job>().delete("stubborn", &DeleteParams::foreground()).await.unwrap();

    eventually("the Job is gone", SOON, async || {
        let gone = namespace.api::<Job>().get_opt("stubborn").await.unwrap().is_none();
        assert!(!gone || !alive(pid), "the Job went before its process");
        gone
    })
    .await;
}

#[tokio::test]
async fn an_instant_node_ends_many_pods_without_a_process() {
    let instant = Some(Instant { exit_code: 0, after: Duration::from_millis(100) });
    let (namespace, node) = namespace_with_node(NodeOptions { instant, ..Default::default() }).await;
    for n in 0..20 {
        create(&namespace, job(&format!("instant-{n}"), "exit 1", json!([]))).await;
    }
    eventually("all Jobs succeed", SOON, async || {
        let jobs = namespace.api::<Job>().list(&ListParams::default()).await.unwrap().items;
        jobs.iter().filter(|job| job.status.as_ref().is_some_and(|status| status.succeeded == Some(1))).count() == 20
    })
    .await;
    assert_eq!(node.start_count(), 20);
}

#[tokio::test]
async fn a_job_ends_while_the_api_server_is_away_and_is_reported_when_it_is_back() {
    let plane = ControlPlane::start_own().await;
    let namespace = plane.namespace().await;
    let node = TestNode::start(namespace.client.clone(), &namespace.name, NodeOptions::default());
    create(&namespace, job("outlasts", "echo begins; sleep 1; echo ends; exit 7", json!([]))).await;
    eventually("the process runs", SOON, async || node.log_of("outlasts").contains("begins")).await;

    plane.kill_apiserver();
    eventually("the process ends", SOON, async || node.log_of("outlasts").contains("ends")).await;
    plane.restart_apiserver().await;

    assert_eq!(ended(&namespace, "outlasts").await.status.unwrap().failed, Some(1));
    assert_eq!(node.start_count(), 1);
}

#[tokio::test]
async fn a_service_account_may_do_what_its_role_says_and_no_more() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let role = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "reader"},
         "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "reader"},
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
         "subjects": [{"kind": "ServiceAccount", "name": "default"}]},
    ]});
    namespace.apply(&role.to_string()).await;
    let account = namespace.service_account_kubeconfig("default").await;

    let may = namespace.kubectl_with(&account, &["get", "pods"], None).await;
    let may_not = namespace.kubectl_with(&account, &["get", "secrets"], None).await;

    assert!(may.status.success(), "{may:?}");
    assert!(String::from_utf8_lossy(&may_not.stderr).contains("forbidden"), "{may_not:?}");
}

#[tokio::test]
async fn a_proxy_stalls_cuts_and_refuses() {
    let nats = NatsServer::start().await;
    let proxy = Proxy::start(format!("127.0.0.1:{}", nats.port())).await;
    let client = async_nats::connect(proxy.url("nats")).await.unwrap();
    round_trip(&client).await;

    proxy.stall(true);
    assert!(tokio::time::timeout(Duration::from_millis(300), round_trip(&client)).await.is_err());
    proxy.stall(false);
    round_trip(&client).await;
    proxy.refuse(true);
    proxy.cut();
    eventually("no connection is left", SOON, async || proxy.connections() == 0).await;
    proxy.refuse(false);
    eventually("the client is back", SOON, async || proxy.connections() == 1).await;
    round_trip(&client).await;
}

#[tokio::test]
async fn the_callers_command_line_reaches_the_simulated_caller() {
    let (namespace, node) = namespace_with_node(NodeOptions::default()).await;
    let mut job = job("calls", "", json!([]));
    let command = ["python3", "-m", "sipstuff.cli", "call", "--dest", "100", "--text", "hello", "--timeout", "60"];
    let pod = job.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
    pod.containers[0].command = Some(command.map(str::to_owned).to_vec());
    create(&namespace, job).await;

    let status = ended(&namespace, "calls").await.status.unwrap();

    assert_eq!(status.succeeded, Some(1), "{}", node.log_of("calls"));
    assert_eq!(node.starts_of("calls")[0].argv, command);
}

#[tokio::test]
async fn a_listener_hears_events_in_order_and_the_log_has_them() {
    let nats = NatsServer::start().await;
    let js = nats.jetstream().await;
    let republish =
        stream::Republish { source: "sip.status.*".into(), destination: "sip.status".into(), headers_only: false };
    let config = stream::Config {
        name: "SIP_STATUS".into(),
        subjects: vec!["sip.status.*".into()],
        republish: Some(republish),
        ..Default::default()
    };
    js.create_stream(config).await.unwrap();
    let all = StatusListener::subscribe(&nats.client().await, "sip.status").await;
    let ids = ["a", "b", "c"].map(|id| CallId::parse(id).unwrap());
    for id in &ids {
        let now = jiff::Timestamp::now();
        let event = StatusEvent::rejected(id.clone(), Fingerprint::default(), "ns", now, "a test".into(), now);
        let payload = serde_json::to_vec(&event).unwrap();
        js.publish(format!("sip.status.{}", event.name), payload.into()).await.unwrap().await.unwrap();
    }

    let last = all.final_of("c", SOON).await;

    assert_eq!(last.reason.as_deref(), Some("a test"));
    assert_eq!(all.statuses_of(ids[0].name().as_str()), [Status::Rejected]);
    assert_eq!(all.finals().into_iter().map(|event| event.id).collect::<Vec<_>>(), ids);
    assert_eq!(all.finals(), recorded(&js, "sip.status.*").await);
    assert!(all.heard()[0].headers.get("Nats-Sequence").is_some());
    assert!(recorded(&js, "sip.status.nobody").await.is_empty());
}

/// This test is two: started by itself, with the variable below, it is the owner that gets killed.
#[tokio::test]
async fn servers_and_folders_go_when_the_test_process_is_killed() {
    const OWNER: &str = "SUPPORT_TESTS_OWNER";
    if let Some(report) = std::env::var_os(OWNER) {
        let nats = NatsServer::start().await;
        let scratch = Scratch::new("sleeper");
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 300 & wait"]);
        let sleeper = Process::spawn("sleeper", command, &scratch.join("log"));
        let report = PathBuf::from(report);
        let lines = format!("{}\n{}\n{}\n", nats.pid().unwrap(), sleeper.pid(), scratch.path().display());
        std::fs::write(report.with_extension("new"), lines).unwrap();
        std::fs::rename(report.with_extension("new"), report).unwrap();
        std::future::pending::<()>().await;
    }
    let scratch = Scratch::new("report");
    let report = scratch.join("report");
    let name = "support::tests::servers_and_folders_go_when_the_test_process_is_killed";
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact"])
        .env(OWNER, &report)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = eventually_some("the owner's report", SOON, async || std::fs::read_to_string(&report).ok()).await;
    let lines: Vec<&str> = lines.lines().collect();
    let pids: Vec<u32> = lines[..2].iter().map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.iter().all(|pid| alive(*pid)));

    owner.kill().unwrap();
    owner.wait().unwrap();

    eventually("its servers die", SOON, async || !pids.iter().any(|pid| alive(*pid))).await;
    eventually("its folders go", SOON, async || !PathBuf::from(lines[2]).parent().unwrap().exists()).await;
}

async fn namespace_with_node(options: NodeOptions) -> (Namespace, TestNode) {
    let namespace = ControlPlane::shared().await.namespace().await;
    let node = TestNode::start(namespace.client.clone(), &namespace.name, options);
    (namespace, node)
}

fn job(name: &str, script: &str, env: Value) -> Job {
    let container = json!({
        "name": "c", "image": "none", "command": ["sh", "-c", script], "env": env,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    let pod = json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container]});
    let job = json!({"metadata": {"name": name}, "spec": {"backoffLimit": 0, "template": {"spec": pod}}});
    serde_json::from_value(job).unwrap()
}

async fn create(namespace: &Namespace, job: Job) {
    namespace.api::<Job>().create(&PostParams::default(), &job).await.unwrap();
}

async fn ended(namespace: &Namespace, name: &str) -> Job {
    eventually_some(format!("Job {name} ends"), SOON, async || {
        let job = namespace.api::<Job>().get(name).await.ok()?;
        job.status.as_ref()?.conditions.iter().flatten().find(|c| matches!(&*c.type_, "Complete" | "Failed"))?;
        Some(job)
    })
    .await
}
