//! The manifests in deploy/ against a real control plane: they are accepted, and grant just the rights that are used.

use std::future::ready;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use serde_json::json;
use sipstuff_operator::call::{CallId, PodRef, Status};
use sipstuff_operator::job::{JobOrder, Observed, ObservedJob};
use sipstuff_operator::runner::kubernetes::{KubernetesRunner, KubernetesSettings};
use sipstuff_operator::runner::{Observation, Runner, RunnerError, StartError};

use crate::runners::kubernetes::{SOON, answers, ends, gated, order_with_password, run_pods, settings};
use crate::support::{
    ControlPlane, Namespace, Operator, Setup, accepted, delete, eventually, operator, request_of, with,
};

#[tokio::test]
async fn the_rendered_manifests_are_accepted_down_to_the_last_field() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let manifests = [
        include_str!("../deploy/rendered/base.yaml"),
        include_str!("../deploy/rendered/try.yaml"),
        include_str!("../deploy/sip-credentials.example.yaml"),
    ];
    for manifest in manifests {
        let here = manifest
            .replace("namespace: sipstuff\n", &format!("namespace: {}\n", namespace.name))
            .replace("name: sipstuff\n", &format!("name: {}\n", namespace.name));
        let apply = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
        let answer = namespace.kubectl(&apply, Some(&here)).await;
        assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    }
}

/// Gives the namespace the rights of deploy/base, less one verb on one resource; returns a kubeconfig with what is left.
async fn deploy(namespace: &Namespace, less: Option<(&str, &str)>) -> PathBuf {
    let documents = include_str!("../deploy/base/rbac.yaml").split("\n---\n");
    for mut manifest in documents.map(|text| serde_saphyr::from_str::<serde_json::Value>(text).unwrap()) {
        if let (Some((verb, resource)), Some(rules)) = (less, manifest["rules"].as_array_mut()) {
            for rule in rules.iter_mut().filter(|rule| rule["resources"] == json!([resource])) {
                rule["verbs"].as_array_mut().unwrap().retain(|granted| granted != verb);
            }
            rules.retain(|rule| rule["verbs"] != json!([]));
        }
        namespace.apply(&manifest.to_string()).await;
    }
    namespace.service_account_kubeconfig("sipstuff-operator").await
}

/// A whole life of a call, with every request that the runner knows; ends with the first thing that does not work.
async fn whole_life(namespace: &Namespace, kubeconfig: &Path) -> Result<(), RunnerError> {
    let settings = KubernetesSettings { kubeconfig: Some(kubeconfig.to_owned()), ..settings(namespace) };
    let runner = KubernetesRunner::connect(settings).await?;
    let order = gated(order_with_password(namespace, sipstuff_operator::clock::fresh_id().as_str()));
    runner.check().await?;
    let mut stream = runner.observe();
    stream.next().await;
    start(&runner, &order).await?;
    start(&runner, &order).await?;
    let change = tokio::time::timeout(Duration::from_secs(10), stream.next()).await;
    change.map_err(|_| unwatched("jobs"))?;
    let _node = run_pods(namespace, answers);
    let mut at_gate = stream.by_ref().filter_map(|seen| ready(waits_at_its_gate(&seen)));
    let pod = tokio::time::timeout(Duration::from_secs(10), at_gate.next()).await.map_err(|_| unwatched("pods"))?;
    let pod = pod.expect("the watch never ends");
    runner.lift_gate(&pod).await?;
    let mut of_pods = stream.filter(|seen| ready(shows_a_pod(seen)));
    tokio::time::timeout(Duration::from_secs(10), of_pods.next()).await.map_err(|_| unwatched("pods"))?;
    ends(&runner, order.name()).await?;
    // There is no kubelet here that would have the log; whether it is allowed to ask is told all the same.
    match runner.log(order.name(), Some(&pod)).await {
        Err(error) if error.message.contains("cannot ") => return Err(error),
        _ => {}
    }
    runner.release(order.name()).await?;
    runner.stop(order.name()).await
}

/// What a watch that is refused would say: it is tried again inside, so here it only stays silent.
fn unwatched(resource: &str) -> RunnerError {
    RunnerError { message: format!("cannot watch resource \"{resource}\""), retry_after: None }
}

/// The pod that a report shows at its gate.
fn waits_at_its_gate(seen: &Observation) -> Option<PodRef> {
    match seen {
        Observation::Changed(ObservedJob { state: Observed::Waiting { gate, .. }, .. }) => gate.waits.clone(),
        _ => None,
    }
}

/// Whether a report says what only a pod can: that its container runs, or its exit code.
fn shows_a_pod(seen: &Observation) -> bool {
    match seen {
        Observation::Changed(job) => match &job.state {
            Observed::Running { .. } => true,
            Observed::Ended(ending) => ending.exit_code.is_some(),
            Observed::Waiting { .. } | Observed::Gone => false,
        },
        Observation::All(_) | Observation::Removed(_) => false,
    }
}

async fn start(runner: &KubernetesRunner, order: &JobOrder) -> Result<(), RunnerError> {
    runner.start(order).await.map_err(|error| match error {
        StartError::Later(error) => error,
        other => panic!("missing rights must not be final: {other:?}"),
    })
}

#[tokio::test]
async fn the_role_of_the_deployment_is_enough_and_reads_no_secret() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let kubeconfig = deploy(&namespace, None).await;
    eventually("every request is allowed", SOON, async || match whole_life(&namespace, &kubeconfig).await {
        Ok(()) => true,
        // The authorizer learns of a new Role in the background.
        Err(error) if error.message.contains("cannot ") => false,
        Err(error) => panic!("{error}"),
    })
    .await;

    for verb in ["get", "list", "watch", "patch", "update"] {
        let answer = namespace.kubectl_with(&kubeconfig, &["auth", "can-i", verb, "secrets"], None).await;
        assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "no", "{verb} secrets");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_lives_through_calls_a_crash_and_a_cancel_with_its_own_token() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let account = deploy(&namespace, None).await;
    let setup = Setup::in_namespace(namespace, 3.0).await;
    let mut options = setup.options();
    let operator::Runner::Kubernetes { kubeconfig, .. } = &mut options.runner else { panic!("a cluster") };
    *kubeconfig = account;
    // From the start: where the Job's end is seen late, the first one may have settled it before it is killed.
    let options = options.env("JOB_TTL_SECONDS", 0);
    let mut first = Operator::start(options.clone()).await;
    accepted(&first, &with(request_of("own-token"), json!({"sip_password": "correct-horse"}))).await;
    setup.becomes("own-token", Status::Running).await;
    first.kill9();
    let second = Operator::start(options).await;
    assert_eq!(setup.end_of("own-token").await.status, Status::Succeeded);
    setup.was_placed_once("own-token").await;
    setup.publish(&[], request_of("cancelled").to_string()).await;
    setup.becomes("cancelled", Status::Running).await;
    assert_eq!(delete(second.base(), "/jobs/cancelled").await.status, 202);
    assert_eq!(setup.end_of("cancelled").await.status, Status::Cancelled);
    setup.queue_empties().await;
    eventually("all Jobs are removed", SOON, async || setup.jobs().await.is_empty()).await;
    assert!(!second.log().contains("forbidden"), "{}", second.log());
}

#[tokio::test]
async fn the_role_of_the_deployment_grants_nothing_that_is_not_used() {
    let plane = ControlPlane::shared().await;
    let jobs = ["create", "get", "list", "watch", "patch", "delete"].map(|verb| (verb, "jobs"));
    let others = [
        ("list", "pods"),
        ("watch", "pods"),
        ("patch", "pods"),
        ("get", "pods/log"),
        ("create", "secrets"),
        ("delete", "secrets"),
        ("get", "namespaces"),
    ];
    let each = jobs.into_iter().chain(others).map(async |(verb, resource)| {
        let namespace = plane.namespace().await;
        let kubeconfig = deploy(&namespace, Some((verb, resource))).await;
        let missed = format!("cannot {verb} resource \"{resource}\"");
        eventually(format!("it fails with: {missed}"), SOON, async || {
            whole_life(&namespace, &kubeconfig).await.is_err_and(|error| error.message.contains(&missed))
        })
        .await;
    });
    futures::future::join_all(each).await;
}
