//! The Kubernetes runner against a real control plane: what it makes, what it leaves behind, and which errors it returns when
//! the API server refuses.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace as CoreNamespace, Pod, PodSchedulingGate, Secret};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;
use sipstuff_operator::call::{Call, CallId, PodRef, validate};
use sipstuff_operator::clock;
use sipstuff_operator::job::{Ending, Gate, JobDefaults, JobOrder, Observed, ObservedJob, POD_GATE, manifest};
use sipstuff_operator::runner::kubernetes::{KubernetesRunner, KubernetesSettings};
use sipstuff_operator::runner::{Observation, Runner, RunnerError, StartError};

use crate::support::node::{self, Callee};
use crate::support::{
    ControlPlane, Namespace, NodeOptions, Proxy, TestNode, eventually, eventually_some, job_defaults,
};

/// Longest that a controller may take on a machine that does much else.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// The password of the tests: nothing but the Secret may ever show it.
const PASSWORD: &str = "correct-horse";

pub(crate) fn settings(namespace: &Namespace) -> KubernetesSettings {
    KubernetesSettings {
        namespace: namespace.name.clone(),
        ttl_seconds: 0,
        cluster_name: None,
        kubeconfig: Some(namespace.kubeconfig.clone()),
    }
}

pub(crate) async fn runner(namespace: &Namespace) -> KubernetesRunner {
    KubernetesRunner::connect(settings(namespace)).await.unwrap()
}

/// A namespace of the shared control plane, and a runner for it.
async fn connected() -> (Namespace, KubernetesRunner) {
    let namespace = ControlPlane::shared().await.namespace().await;
    let runner = runner(&namespace).await;
    (namespace, runner)
}

fn defaults(namespace: &Namespace) -> JobDefaults {
    JobDefaults {
        namespace: namespace.name.clone(),
        image: "example/caller".to_owned(),
        ttl_seconds: 0,
        host_network: false,
        pod_gate: false,
        ..job_defaults()
    }
}

/// The order for a request, with an id that makes its name.
fn order_of(namespace: &Namespace, id: &str, request: serde_json::Value) -> JobOrder {
    let parsed = validate::parse(request.to_string().as_bytes(), jiff::Timestamp::now()).unwrap();
    let call = Call::new(CallId::parse(id).unwrap(), parsed.spec);
    manifest::build(&call, 1, &defaults(namespace))
}

/// An order whose pod waits at its gate.
pub(crate) fn gated(order: JobOrder) -> JobOrder {
    let mut order = order;
    let spec = order.job.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
    spec.scheduling_gates = Some(vec![gate(POD_GATE)]);
    order
}

fn gate(name: &str) -> PodSchedulingGate {
    PodSchedulingGate { name: name.to_owned() }
}

/// Waits until a pod of a Job waits at its gate, and returns which.
async fn waits_at_its_gate(runner: &KubernetesRunner, job: &str) -> Result<PodRef, RunnerError> {
    let begin = std::time::Instant::now();
    loop {
        if let Some(Observed::Waiting { gate: Gate { waits: Some(pod), .. }, .. }) =
            runner.find(job).await?.map(|job| job.state)
        {
            return Ok(pod);
        }
        assert!(begin.elapsed() < SOON, "no pod of {job} waits at its gate");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) fn order(namespace: &Namespace, id: &str) -> JobOrder {
    order_of(namespace, id, json!({"dest": "+49301", "text": "Hello"}))
}

pub(crate) fn order_with_password(namespace: &Namespace, id: &str) -> JobOrder {
    order_of(namespace, id, json!({"dest": "+49301", "text": "Hello", "sip_password": PASSWORD}))
}

/// What the caller of [`run_pods`] leaves in the log when the callee is busy.
const BUSY: &str = "Call state: DISCONNECTED (last code: 486)";

/// A node that runs the pods of the namespace from now on: their callers end at once, with this exit code.
pub(crate) fn run_pods(namespace: &Namespace, callee: fn(&[String]) -> Callee) -> TestNode {
    let instant = Some(node::Instant { exit_code: 0, after: Duration::ZERO });
    let options = NodeOptions { instant, callee: Some(callee), ..Default::default() };
    TestNode::start(namespace.client.clone(), &namespace.name, options)
}

pub(crate) fn answers(_: &[String]) -> Callee {
    Callee { exit_code: 0, after: Duration::ZERO, message: None }
}

fn is_busy(_: &[String]) -> Callee {
    Callee { exit_code: 1, after: Duration::ZERO, message: Some(BUSY.to_owned()) }
}

/// Waits until an attempt has ended, and returns how.
pub(crate) async fn ends(runner: &KubernetesRunner, job: &str) -> Result<Ending, RunnerError> {
    let begin = std::time::Instant::now();
    loop {
        if let Some(ending) = runner.find(job).await?.and_then(|job| job.ending().cloned()) {
            return Ok(ending);
        }
        assert!(begin.elapsed() < SOON, "{job} does not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_cluster_is_known_by_the_uid_of_its_namespace() {
    let (namespace, runner) = connected().await;
    let found = Api::<CoreNamespace>::all(namespace.client.clone()).get(&namespace.name).await.unwrap();
    assert_eq!(Some(&runner.info().cluster), found.metadata.uid.as_ref());
}

#[tokio::test]
async fn a_cluster_is_known_by_its_name_where_one_is_set() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let named = KubernetesSettings { cluster_name: Some("here".to_owned()), ..settings(&namespace) };
    assert_eq!(KubernetesRunner::connect(named).await.unwrap().info().cluster, "here");
}

#[tokio::test]
async fn a_check_names_the_version_and_a_place_address_and_context() {
    let (_namespace, runner) = connected().await;
    assert_eq!(runner.info().address, format!("{} (context test)", ControlPlane::shared().await.url()));
    let says = runner.check().await.unwrap();
    assert!(says.starts_with("API server v1."), "{says}");
}

#[tokio::test]
async fn a_missing_namespace_is_named_with_the_command_that_makes_it() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let elsewhere = KubernetesSettings { namespace: "nowhere".to_owned(), ..settings(&namespace) };
    let error = KubernetesRunner::connect(elsewhere).await.err().unwrap();
    assert!(error.message.contains("`nowhere` does not exist"), "{error}");
    assert!(error.message.contains("kubectl create namespace nowhere"), "{error}");
}

#[tokio::test]
async fn an_api_server_that_is_down_is_an_error_that_says_so() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let text = std::fs::read_to_string(&namespace.kubeconfig).unwrap();
    let server = ControlPlane::shared().await.url();
    let kubeconfig = namespace.kubeconfig.with_extension("down");
    std::fs::write(&kubeconfig, text.replace(&server, "https://127.0.0.1:1")).unwrap();
    let down = KubernetesSettings { kubeconfig: Some(kubeconfig), ..settings(&namespace) };
    let error = KubernetesRunner::connect(down).await.err().unwrap();
    assert!(error.message.to_lowercase().contains("connection refused"), "{error}");
}

#[tokio::test]
async fn a_pod_runs_once_its_gate_is_lifted_and_lifting_it_again_is_fine() {
    let (namespace, runner) = connected().await;
    let order = gated(order(&namespace, "gated"));
    let node = run_pods(&namespace, answers);
    runner.start(&order).await.unwrap();
    let pod = waits_at_its_gate(&runner, order.name()).await.unwrap();
    let of_another = PodRef { uid: "00000000-0000-0000-0000-000000000000".to_owned(), ..pod.clone() };
    runner.lift_gate(&of_another).await.unwrap();
    assert_eq!(waits_at_its_gate(&runner, order.name()).await.unwrap(), pod, "it is another pod that has the name");
    assert_eq!(node.start_count(), 0);
    runner.lift_gate(&pod).await.unwrap();
    assert!(ends(&runner, order.name()).await.unwrap().succeeded);
    runner.lift_gate(&pod).await.unwrap();
    runner.stop(order.name()).await.unwrap();
    eventually("it is gone", SOON, async || runner.find(order.name()).await.unwrap().is_none()).await;
    runner.lift_gate(&pod).await.unwrap();
    assert_eq!(node.start_count(), 1);
}

#[tokio::test]
async fn the_gates_of_others_stay() {
    let (namespace, runner) = connected().await;
    let mut order = gated(order(&namespace, "kueue"));
    let spec = order.job.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
    spec.scheduling_gates.as_mut().unwrap().push(gate("kueue.x-k8s.io/admission"));
    runner.start(&order).await.unwrap();
    let pod = waits_at_its_gate(&runner, order.name()).await.unwrap();
    runner.lift_gate(&pod).await.unwrap();
    let lifted = namespace.api::<Pod>().get(&pod.name).await.unwrap();
    assert_eq!(lifted.spec.unwrap().scheduling_gates, Some(vec![gate("kueue.x-k8s.io/admission")]));
}

#[tokio::test]
async fn a_second_start_of_the_same_request_makes_nothing_new() {
    let (namespace, runner) = connected().await;
    let order = order(&namespace, "twice");

    runner.start(&order).await.unwrap();
    let first = namespace.api::<Job>().get(order.name()).await.unwrap();
    runner.start(&order).await.unwrap();

    let second = namespace.api::<Job>().get(order.name()).await.unwrap();
    assert_eq!(first.metadata.uid, second.metadata.uid);
    let seen = runner.find(order.name()).await.unwrap().unwrap();
    assert_eq!((seen.name.as_str(), seen.id.as_str(), seen.settled), (order.name(), "twice", false));
}

#[tokio::test]
async fn starts_of_one_call_by_several_replicas_at_once_all_succeed() {
    let (namespace, runner) = connected().await;
    let order = order_with_password(&namespace, "crowd");

    let starts = futures::future::join_all((0..8).map(|_| runner.start(&order))).await;

    // One that finds the Secret being replaced by another may have to try again; none is refused.
    assert!(starts.iter().all(|start| matches!(start, Ok(()) | Err(StartError::Later(_)))), "{starts:?}");
    runner.start(&order).await.unwrap();
    assert!(secret_has_password(&namespace, order.name()).await);
}

#[tokio::test]
async fn a_job_of_that_name_for_another_request_is_a_conflict_and_stays_as_it_is() {
    let (namespace, runner) = connected().await;
    let first = order(&namespace, "same-id");
    runner.start(&first).await.unwrap();

    let other = order_of(&namespace, "same-id", json!({"dest": "+49309", "text": "Hello"}));
    let refused = runner.start(&other).await.unwrap_err();

    assert!(matches!(&refused, StartError::Conflict(name) if name == first.name()), "{refused:?}");
    let job = namespace.api::<Job>().get(first.name()).await.unwrap();
    assert!(serde_json::to_string(&job).unwrap().contains("+49301"));
}

#[tokio::test]
async fn a_job_that_is_being_removed_counts_as_started() {
    let (namespace, runner) = connected().await;
    let mut held = order(&namespace, "leaving");
    held.job.metadata.finalizers = Some(vec!["example.com/hold".to_owned()]);
    runner.start(&held).await.unwrap();
    let uid = namespace.api::<Job>().get(held.name()).await.unwrap().metadata.uid;
    namespace.api::<Job>().delete(held.name(), &DeleteParams::background()).await.unwrap();

    runner
        .start(&order(&namespace, "leaving"))
        .await
        .expect("its call may have been placed, so there is not a second one");
    assert_eq!(namespace.api::<Job>().get(held.name()).await.unwrap().metadata.uid, uid);
    let release = json!({"metadata": {"finalizers": null}});
    namespace.api::<Job>().patch(held.name(), &PatchParams::default(), &Patch::Merge(release)).await.unwrap();
}

async fn secret_has_password(namespace: &Namespace, name: &str) -> bool {
    let Ok(Some(secret)) = namespace.api::<Secret>().get_opt(name).await else { return false };
    secret.data.unwrap().get("SIP_PASSWORD").is_some_and(|value| value.0 == PASSWORD.as_bytes())
}

#[tokio::test]
async fn a_password_is_in_a_secret_of_the_job_and_nowhere_else_and_goes_with_it() {
    let (namespace, runner) = connected().await;
    let order = order_with_password(&namespace, "secretive");
    runner.start(&order).await.unwrap();

    assert!(secret_has_password(&namespace, order.name()).await);
    let job = namespace.api::<Job>().get(order.name()).await.unwrap();
    let owners = namespace.api::<Secret>().get(order.name()).await.unwrap().metadata.owner_references.unwrap();
    assert_eq!(Some(&owners[0].uid), job.metadata.uid.as_ref());
    assert!(!serde_json::to_string(&job).unwrap().contains(PASSWORD));

    namespace.api::<Job>().delete(order.name(), &DeleteParams::background()).await.unwrap();
    eventually("the Secret goes with its Job", SOON, async || {
        namespace.api::<Secret>().get_opt(order.name()).await.unwrap().is_none()
    })
    .await;
}

#[tokio::test]
async fn a_start_that_crashed_between_job_and_secret_is_completed_by_the_next() {
    let (namespace, runner) = connected().await;
    let order = order_with_password(&namespace, "half-done");
    let only_the_job = JobOrder { passwords: BTreeMap::new(), ..order.clone() };
    runner.start(&only_the_job).await.unwrap();
    assert!(!secret_has_password(&namespace, order.name()).await);

    runner.start(&order).await.unwrap();

    assert!(secret_has_password(&namespace, order.name()).await);
}

#[tokio::test]
async fn a_secret_that_a_deleted_job_left_behind_is_replaced() {
    let (namespace, runner) = connected().await;
    let order = order_with_password(&namespace, "left-over");
    let stale = json!({"metadata": {"name": order.name()}, "stringData": {"SIP_PASSWORD": "stale"}});
    let stale: Secret = serde_json::from_value(stale).unwrap();
    namespace.api::<Secret>().create(&Default::default(), &stale).await.unwrap();

    runner.start(&order).await.unwrap();

    assert!(secret_has_password(&namespace, order.name()).await);
}

#[tokio::test]
async fn the_end_of_a_call_can_be_read_and_its_job_goes_once_released() {
    let (namespace, runner) = connected().await;
    let order = order_with_password(&namespace, "busy-callee");
    runner.start(&order).await.unwrap();
    assert!(!runner.find(order.name()).await.unwrap().unwrap().has_ended());

    let _node = run_pods(&namespace, is_busy);

    let ending = ends(&runner, order.name()).await.unwrap();
    assert_eq!((ending.succeeded, ending.exit_code, ending.message.as_deref()), (false, Some(1), Some(BUSY)));
    assert!(!runner.find(order.name()).await.unwrap().unwrap().settled);

    runner.release(order.name()).await.unwrap();
    eventually("a released Job goes after its TTL", SOON, async || runner.find(order.name()).await.unwrap().is_none())
        .await;
    runner.release(order.name()).await.unwrap();
    eventually("and its Secret", SOON, async || !secret_has_password(&namespace, order.name()).await).await;
}

#[tokio::test]
async fn a_stopped_job_goes_with_its_pod_and_stopping_it_again_is_fine() {
    let (namespace, runner) = connected().await;
    let order = order(&namespace, "stopped");
    runner.start(&order).await.unwrap();
    let pods = namespace.api::<Pod>();
    let pod_exists = async || !pods.list(&ListParams::default()).await.unwrap().items.is_empty();
    eventually("its pod exists", SOON, pod_exists).await;

    runner.stop(order.name()).await.unwrap();
    runner.stop(order.name()).await.unwrap();

    eventually("the Job is gone", SOON, async || runner.find(order.name()).await.unwrap().is_none()).await;
    assert!(!pod_exists().await, "pods go before their Job does");
    runner.stop(order.name()).await.unwrap();
}

/// The next observation that fulfils the condition; others are skipped.
async fn observed(
    stream: &mut BoxStream<'_, Observation>,
    what: &str,
    wanted: impl Fn(&Observation) -> bool,
) -> Observation {
    let look = async {
        loop {
            let observation = stream.next().await.expect("observing never ends");
            if wanted(&observation) {
                return observation;
            }
        }
    };
    tokio::time::timeout(SOON, look).await.unwrap_or_else(|_| panic!("not observed: {what}"))
}

fn is(job: &ObservedJob, order: &JobOrder) -> bool {
    job.name == order.name()
}

/// Whether an observation says that the Job of this order exists.
fn has(seen: &Observation, order: &JobOrder) -> bool {
    match seen {
        Observation::All(jobs) => jobs.iter().any(|job| is(job, order)),
        Observation::Changed(job) => is(job, order),
        Observation::Removed(_) => false,
    }
}

#[tokio::test]
async fn observing_begins_with_all_jobs_and_then_reports_every_change() {
    let (namespace, runner) = connected().await;
    let (before, after) = (order(&namespace, "before"), order(&namespace, "after"));
    runner.start(&before).await.unwrap();
    namespace
        .apply("{apiVersion: batch/v1, kind: Job, metadata: {name: foreign}, spec: {template: {spec: {restartPolicy: Never, containers: [{name: x, image: x}]}}}}")
        .await;

    let mut stream = runner.observe();
    let first = stream.next().await.unwrap();
    assert!(matches!(&first, Observation::All(jobs) if jobs.len() == 1 && is(&jobs[0], &before)), "{first:?}");

    runner.start(&after).await.unwrap();
    observed(&mut stream, "a new Job", |seen| matches!(seen, Observation::Changed(job) if is(job, &after))).await;
    let _node = run_pods(&namespace, answers);
    let finished = |seen: &Observation| matches!(seen, Observation::Changed(job) if is(job, &after) && job.ending().is_some_and(|ending| ending.succeeded));
    observed(&mut stream, "its end", finished).await;
    runner.release(after.name()).await.unwrap();
    observed(&mut stream, "its removal", |seen| matches!(seen, Observation::Removed(job) if is(job, &after))).await;
}

#[tokio::test]
async fn observing_outlives_an_api_server_that_dies_and_comes_back() {
    let plane = ControlPlane::start_own().await;
    let namespace = plane.namespace().await;
    let runner = runner(&namespace).await;
    let (before, after) = (order(&namespace, "before"), order(&namespace, "after"));
    runner.start(&before).await.unwrap();
    let mut stream = runner.observe();
    stream.next().await.unwrap();

    plane.kill_apiserver();
    assert!(matches!(runner.start(&after).await, Err(StartError::Later(_))));
    plane.restart_apiserver().await;
    eventually("a Job can be started again", SOON, async || runner.start(&after).await.is_ok()).await;

    observed(&mut stream, "the Job that was made after the restart", |seen| has(seen, &after)).await;
}

#[tokio::test]
async fn an_api_server_that_freezes_is_noticed() {
    let plane = ControlPlane::start_own().await;
    let namespace = plane.namespace().await;
    let runner = runner(&namespace).await;
    let mut stream = runner.observe();
    stream.next().await.unwrap();

    plane.freeze_apiserver();
    let begin = Instant::now();
    let silence = runner.start(&order(&namespace, "into-the-void")).await.unwrap_err();
    assert!(matches!(silence, StartError::Later(_)), "{silence:?}");
    assert!(begin.elapsed() < Duration::from_secs(20), "a request took {:?}", begin.elapsed());
    plane.thaw_apiserver();

    let order = order(&namespace, "after-the-silence");
    eventually("a Job can be started again", SOON, async || runner.start(&order).await.is_ok()).await;
    observed(&mut stream, "the Job that was made after the silence", |seen| has(seen, &order)).await;
}

#[tokio::test]
async fn a_connection_that_goes_silent_is_noticed_within_half_a_minute_and_no_change_is_missed() {
    let plane = ControlPlane::shared().await;
    let (namespace, direct) = connected().await;
    let proxy = Proxy::start(plane.addr()).await;
    let kubeconfig = Some(namespace.proxied_kubeconfig(&proxy));
    let far = KubernetesRunner::connect(KubernetesSettings { kubeconfig, ..settings(&namespace) }).await.unwrap();
    let mut stream = far.observe();
    let (seen, unseen) = (order(&namespace, "seen"), order(&namespace, "unseen"));
    // The watch is under way, and the client keeps a connection for further requests.
    stream.next().await.unwrap();
    let changed = |order| move |seen: &Observation| matches!(seen, Observation::Changed(job) if is(job, order));
    tokio::join!(observed(&mut stream, "a Job", changed(&seen)), async { direct.start(&seen).await.unwrap() });
    far.find(seen.name()).await.unwrap();

    proxy.silence();
    let begin = Instant::now();
    direct.start(&unseen).await.unwrap();
    let request = async { (far.find(unseen.name()).await, begin.elapsed()) };
    // A watch that is resumed, not begun anew, sends no `All` in between.
    let news = |seen: &Observation| matches!(seen, Observation::All(_)) || changed(&unseen)(seen);
    let change = async { (observed(&mut stream, "the Job made meanwhile", news).await, begin.elapsed()) };
    let ((answer, answered), (change, noticed)) = tokio::join!(request, change);

    assert!(answer.is_err() && answered < Duration::from_secs(20), "{answer:?} after {answered:?}");
    assert!(changed(&unseen)(&change) && noticed < Duration::from_secs(40), "{change:?} after {noticed:?}");
    assert!(far.find(unseen.name()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_job_that_the_api_server_rejects_is_refused_in_its_words() {
    let (namespace, runner) = connected().await;
    let mut order = order(&namespace, "invalid");
    order.job.spec.as_mut().unwrap().template.spec.as_mut().unwrap().restart_policy = Some("Always".to_owned());

    let refused = runner.start(&order).await.unwrap_err();

    assert!(matches!(&refused, StartError::Refused(words) if words.contains("restartPolicy")), "{refused:?}");
}

#[tokio::test]
async fn a_secret_that_the_api_server_rejects_refuses_the_call_and_leaves_no_job() {
    let (namespace, runner) = connected().await;
    let mut order = order(&namespace, "bad-secret");
    order.passwords.insert("NOT/A KEY".to_owned(), PASSWORD.into());

    let refused = runner.start(&order).await.unwrap_err();

    assert!(matches!(&refused, StartError::Refused(words) if words.contains("NOT/A KEY")), "{refused:?}");
    assert!(!refused.to_string().contains(PASSWORD));
    eventually("the Job is gone", SOON, async || runner.find(order.name()).await.unwrap().is_none()).await;
}

#[tokio::test]
async fn a_policy_that_denies_a_job_refuses_it() {
    let (namespace, runner) = connected().await;
    let policy = include_str!("../data/deny-calls-to-49309.yaml").replace("NAMESPACE", &namespace.name);
    namespace.apply(&policy).await;
    // The API server compiles policies in the background.
    let denied = eventually_some("the policy is in force", SOON, async || {
        let id = clock::fresh_id();
        let order = order_of(&namespace, id.as_str(), json!({"dest": "+49309", "text": "Hello"}));
        runner.start(&order).await.err()
    })
    .await;

    assert!(matches!(&denied, StartError::Refused(words) if words.contains("that number is not for us")), "{denied:?}");
    runner.start(&order(&namespace, "allowed")).await.unwrap();
}

#[tokio::test]
async fn a_full_quota_is_a_reason_to_try_again_later() {
    let (namespace, runner) = connected().await;
    namespace
        .apply(
            "{apiVersion: v1, kind: ResourceQuota, metadata: {name: calls}, spec: {hard: {count/jobs.batch: \"1\"}}}",
        )
        .await;
    let full = eventually_some("the quota is in force", SOON, async || {
        runner.start(&order(&namespace, clock::fresh_id().as_str())).await.err()
    })
    .await;

    assert!(
        matches!(&full, StartError::Later(error) if error.message.contains("exceeded quota")
        || error.message.contains("status unknown for quota")),
        "{full:?}"
    );
}
