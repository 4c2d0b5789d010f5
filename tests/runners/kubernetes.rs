//! The Kubernetes runner against a real control plane: what it makes, what it leaves behind, and what it says when the API
//! server says no.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace as CoreNamespace, Pod, Secret};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;
use sipstuff_operator::call::validate;
use sipstuff_operator::call::{Call, CallId};
use sipstuff_operator::job::{JobDefaults, JobOrder, ObservedJob, Phase, manifest};
use sipstuff_operator::runner::kubernetes::{KubernetesRunner, KubernetesSettings};
use sipstuff_operator::runner::{Observation, Runner, StartError};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::{ControlPlane, Namespace, eventually, eventually_some, job_defaults};

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

fn defaults(namespace: &Namespace) -> JobDefaults {
    JobDefaults {
        namespace: namespace.name.clone(),
        image: "example/caller".to_owned(),
        ttl_seconds: 0,
        host_network: false,
        ..job_defaults()
    }
}

/// The order for a request, with an id that makes its name.
fn order_of(namespace: &Namespace, id: &str, request: serde_json::Value) -> JobOrder {
    let parsed = validate::parse(request.to_string().as_bytes(), jiff::Timestamp::now()).unwrap();
    let call = Call::new(CallId::parse(id).unwrap(), parsed.spec);
    manifest::build(&call, 1, &defaults(namespace))
}

pub(crate) fn order(namespace: &Namespace, id: &str) -> JobOrder {
    order_of(namespace, id, json!({"dest": "+49301", "text": "Hello"}))
}

pub(crate) fn order_with_password(namespace: &Namespace, id: &str) -> JobOrder {
    order_of(namespace, id, json!({"dest": "+49301", "text": "Hello", "sip_password": PASSWORD}))
}

/// The pod that the Job controller made for a Job.
async fn pod_of(namespace: &Namespace, job: &str) -> Pod {
    let pods: Api<Pod> = namespace.api();
    let selector = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={job}"));
    eventually_some(format!("a pod of {job}"), SOON, async || pods.list(&selector).await.ok()?.items.pop()).await
}

/// Says what a kubelet would say of a pod whose caller has ended.
pub(crate) async fn end_pod(namespace: &Namespace, job: &str, exit_code: i32, message: &str) {
    let pod = pod_of(namespace, job).await;
    let state = json!({"terminated": {
        "exitCode": exit_code, "message": message, "startedAt": "2026-01-01T10:00:00Z", "finishedAt": "2026-01-01T10:00:05Z",
    }});
    let container = json!({
        "name": manifest::CONTAINER, "image": "example/caller", "imageID": "", "ready": false, "restartCount": 0, "state": state,
    });
    let phase = if exit_code == 0 { "Succeeded" } else { "Failed" };
    let status = json!({"status": {"phase": phase, "containerStatuses": [container]}});
    let pods: Api<Pod> = namespace.api();
    pods.patch_status(&pod.metadata.name.unwrap(), &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

pub(crate) async fn phase_becomes(runner: &KubernetesRunner, job: &str, wanted: &Phase) {
    eventually(format!("{job} is {wanted:?}"), SOON, async || {
        runner.find(job).await.unwrap().is_some_and(|seen| seen.phase == *wanted)
    })
    .await;
}

#[tokio::test]
async fn a_place_is_the_namespace_by_its_uid_or_by_the_name_that_it_is_given() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace().await;
    let by_uid = runner(&namespace).await;
    let found = Api::<CoreNamespace>::all(namespace.client.clone()).get(&namespace.name).await.unwrap();
    assert_eq!(Some(&by_uid.place().cluster), found.metadata.uid.as_ref());
    assert_eq!(by_uid.place().address, format!("{} (context test)", plane.url()));
    let says = by_uid.check().await.unwrap();
    assert!(says.starts_with("kubernetes v1.") && says.ends_with(&format!("namespace {}", namespace.name)), "{says}");

    let named = KubernetesSettings { cluster_name: Some("here".to_owned()), ..settings(&namespace) };
    assert_eq!(KubernetesRunner::connect(named).await.unwrap().place().cluster, "here");
}

#[tokio::test]
async fn a_missing_namespace_is_named_with_the_way_to_make_it() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let elsewhere = KubernetesSettings { namespace: "nowhere".to_owned(), ..settings(&namespace) };
    let error = KubernetesRunner::connect(elsewhere).await.err().unwrap();
    assert!(error.message.contains("`nowhere` does not exist"), "{error}");
    assert!(error.message.contains("kubectl create namespace nowhere"), "{error}");
}

#[tokio::test]
async fn an_api_server_that_is_away_is_an_error_that_says_so() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let text = std::fs::read_to_string(&namespace.kubeconfig).unwrap();
    let server = ControlPlane::shared().await.url();
    let kubeconfig = namespace.kubeconfig.with_extension("away");
    std::fs::write(&kubeconfig, text.replace(&server, "https://127.0.0.1:1")).unwrap();
    let away = KubernetesSettings { kubeconfig: Some(kubeconfig), ..settings(&namespace) };
    let error = KubernetesRunner::connect(away).await.err().unwrap();
    assert!(error.message.to_lowercase().contains("connection refused"), "{error}");
}

#[tokio::test]
async fn a_second_start_of_the_same_request_makes_nothing_new() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let runner = runner(&namespace).await;
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
    let namespace = ControlPlane::shared().await.namespace().await;
    let runner = runner(&namespace).await;
    let order = order_with_password(&namespace, "crowd");

    let starts = futures::future::join_all((0..8).map(|_| runner.start(&order))).await;

    // One that met another's replacement of the Secret may be told to come again; none is refused.
    assert!(starts.iter().all(|start| matches!(start, Ok(()) | Err(StartError::Later(_)))), "{starts:?}");
    runner.start(&order).await.unwrap();
    assert!(secret_has_password(&namespace, order.name()).await);
}

#[tokio::test]
async fn a_job_of_that_name_for_another_request_is_a_conflict_and_stays_as_it_is() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let runner = runner(&namespace).await;
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
    let namespace = ControlPlane::shared().await.namespace().await;
    let runner = runner(&namespace).await;
    let mut held = order(&namespace, "leaving");
    held.job.metadata.finalizers = Some(vec!["example.com/hold".to_owned()]);
    runner.start(&held).await.unwrap();
    let uid = namespace.api::<Job>().get(held.name()).await.unwrap().metadata.uid;
    namespace.api::<Job>().delete(held.name(), &DeleteParams::background()).await.unwrap();

    runner.start(&order(&namespace, "leaving")).await.expect("its call may have been placed: there is no second one");
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
    let namespace = ControlPlane::shared().await.namespace().await;
    let runner = runner(&namespace).await;
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
    let namespace = ControlPlane::shared().await.namespace().await;
    let runner = runner(&namespace).await;
    let order = order_with_password(&namespace, "half-done");
    let only_the_job = JobOrder { passwords: BTreeMap::new(), ..order.clone() };
    runner.start(&only_the_job).await.unwrap();
    assert!(!secret_has_password(&namespace, order.name()).await);

    runner.start(&order).await.unwrap();

    assert!(secret_has_password(&namespace, order.name()).await);
}

#[tokio::test]
async fn a_secret_that_a_deleted_job_left_behind_is_replaced() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let runner = runner(&namespace).await;
    let order = order_with_password(&namespace, "left-over");
    let stale = json!({"metadata": {"name": order.name()}, "stringData": {"SIP_PASSWORD": "stale"}});
    let stale: Secret = serde_json::from_value(stale).unwrap();
    namespace.api::<Secret>().create(&Default::default(), &stale).await.unwrap();

    runner.start(&order).await.unwrap();

    assert!(secret_has_password(&namespace, order.name()).await);
}

#[tokio::test]
async fn the_end_of_a_call_is_told_and_its_job_goes_once_released() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let runner = runner(&namespace).await;
    let order = order_with_password(&namespace, "busy-callee");
    runner.start(&order).await.unwrap();
    assert!(runner.ending(order.name()).await.unwrap_err().message.contains("not finished"));

    let words = "Call state: DISCONNECTED (last code: 486)";
    end_pod(&namespace, order.name(), 1, words).await;
    phase_becomes(&runner, order.name(), &Phase::Finished { succeeded: false }).await;

    let ending = runner.ending(order.name()).await.unwrap();
    assert_eq!((ending.succeeded, ending.exit_code, ending.message.as_deref()), (false, Some(1), Some(words)));
    assert!(!runner.find(order.name()).await.unwrap().unwrap().settled);

    runner.release(order.name()).await.unwrap();
    eventually("a released Job goes after its TTL", SOON, async || runner.find(order.name()).await.unwrap().is_none())
        .await;
    runner.release(order.name()).await.unwrap();
    eventually("and its Secret", SOON, async || !secret_has_password(&namespace, order.name()).await).await;
}

#[tokio::test]
async fn a_stopped_job_goes_with_its_pod_and_stopping_it_again_is_fine() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let runner = runner(&namespace).await;
    let order = order(&namespace, "stopped");
    runner.start(&order).await.unwrap();
    pod_of(&namespace, order.name()).await;

    runner.stop(order.name()).await.unwrap();
    runner.stop(order.name()).await.unwrap();

    eventually("the Job is gone", SOON, async || runner.find(order.name()).await.unwrap().is_none()).await;
    let pods = namespace.api::<Pod>().list(&ListParams::default()).await.unwrap();
    assert!(pods.items.is_empty(), "pods go before their Job does");
    runner.stop(order.name()).await.unwrap();
}

/// The next observation that the condition takes; others are skipped.
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

#[tokio::test]
async fn observing_begins_with_all_there_is_and_tells_every_change() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let runner = runner(&namespace).await;
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
    end_pod(&namespace, after.name(), 0, "").await;
    let finished = |seen: &Observation| matches!(seen, Observation::Changed(job) if is(job, &after) && job.phase == Phase::Finished { succeeded: true });
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

    let told = |seen: &Observation| match seen {
        Observation::All(jobs) => jobs.iter().any(|job| is(job, &after)),
        Observation::Changed(job) => is(job, &after),
        Observation::Removed(_) => false,
    };
    observed(&mut stream, "the Job that was made after the restart", told).await;
}

#[tokio::test]
async fn an_api_server_that_says_nothing_any_more_is_noticed() {
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
    let told = |seen: &Observation| match seen {
        Observation::All(jobs) => jobs.iter().any(|job| is(job, &order)),
        Observation::Changed(job) => is(job, &order),
        Observation::Removed(_) => false,
    };
    observed(&mut stream, "the Job that was made after the silence", told).await;
}

/// A line to the API server whose present connections can die without a word: nobody is told, nothing passes any more. New
/// ones work.
async fn mortal_line(target: String) -> (SocketAddr, watch::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (death, alive) = watch::channel(());
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (target, mut alive) = (target.clone(), alive.clone());
            alive.mark_unchanged();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(&target).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = alive.changed() => std::future::pending().await,
                }
            });
        }
    });
    (address, death)
}

#[tokio::test]
async fn a_line_that_dies_without_a_word_is_noticed_within_half_a_minute_and_nothing_is_missed() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace().await;
    let direct = runner(&namespace).await;
    let server = plane.url().trim_start_matches("https://").to_owned();
    let (line, death) = mortal_line(server.clone()).await;
    let kubeconfig = namespace.kubeconfig.with_extension("line");
    let text = std::fs::read_to_string(&namespace.kubeconfig).unwrap().replace(&server, &line.to_string());
    std::fs::write(&kubeconfig, text).unwrap();
    let far = KubernetesRunner::connect(KubernetesSettings { kubeconfig: Some(kubeconfig), ..settings(&namespace) });
    let far = far.await.unwrap();
    let mut stream = far.observe();
    let (seen, unseen) = (order(&namespace, "seen"), order(&namespace, "unseen"));
    // The watch is under way, and the client keeps a connection for further requests.
    stream.next().await.unwrap();
    let told = |order| move |seen: &Observation| matches!(seen, Observation::Changed(job) if is(job, order));
    tokio::join!(observed(&mut stream, "a Job", told(&seen)), async { direct.start(&seen).await.unwrap() });
    far.find(seen.name()).await.unwrap();

    death.send(()).unwrap();
    let begin = Instant::now();
    direct.start(&unseen).await.unwrap();
    let request = async { (far.find(unseen.name()).await, begin.elapsed()) };
    // A watch that is resumed, not begun anew, tells no `All` in between.
    let news = |seen: &Observation| matches!(seen, Observation::All(_)) || told(&unseen)(seen);
    let change = async { (observed(&mut stream, "the Job made meanwhile", news).await, begin.elapsed()) };
    let ((answer, answered), (change, noticed)) = tokio::join!(request, change);

    assert!(answer.is_err() && answered < Duration::from_secs(20), "{answer:?} after {answered:?}");
    assert!(told(&unseen)(&change) && noticed < Duration::from_secs(40), "{change:?} after {noticed:?}");
    assert!(far.find(unseen.name()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_job_that_the_api_server_does_not_take_is_refused_in_its_words() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let runner = runner(&namespace).await;
    let mut order = order(&namespace, "invalid");
    order.job.spec.as_mut().unwrap().template.spec.as_mut().unwrap().restart_policy = Some("Always".to_owned());

    let refused = runner.start(&order).await.unwrap_err();

    assert!(matches!(&refused, StartError::Refused(words) if words.contains("restartPolicy")), "{refused:?}");
}

#[tokio::test]
async fn a_secret_that_the_api_server_does_not_take_refuses_the_call_and_leaves_no_job() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let runner = runner(&namespace).await;
    let mut order = order(&namespace, "bad-secret");
    order.passwords.insert("NOT/A KEY".to_owned(), PASSWORD.into());

    let refused = runner.start(&order).await.unwrap_err();

    assert!(matches!(&refused, StartError::Refused(words) if words.contains("NOT/A KEY")), "{refused:?}");
    assert!(!refused.to_string().contains(PASSWORD));
    eventually("the Job is gone", SOON, async || runner.find(order.name()).await.unwrap().is_none()).await;
}

#[tokio::test]
async fn a_policy_that_denies_a_job_refuses_it() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let runner = runner(&namespace).await;
    let policy = include_str!("../data/deny-calls-to-49309.yaml").replace("NAMESPACE", &namespace.name);
    namespace.apply(&policy).await;
    // The API server compiles policies in the background.
    let denied = eventually_some("the policy is in force", SOON, async || {
        let id = sipstuff_operator::clock::fresh_id();
        let order = order_of(&namespace, id.as_str(), json!({"dest": "+49309", "text": "Hello"}));
        runner.start(&order).await.err()
    })
    .await;

    assert!(matches!(&denied, StartError::Refused(words) if words.contains("that number is not for us")), "{denied:?}");
    runner.start(&order(&namespace, "allowed")).await.unwrap();
}

#[tokio::test]
async fn a_full_quota_is_a_reason_to_try_again_later() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let runner = runner(&namespace).await;
    namespace
        .apply(
            "{apiVersion: v1, kind: ResourceQuota, metadata: {name: calls}, spec: {hard: {count/jobs.batch: \"1\"}}}",
        )
        .await;
    let full = eventually_some("the quota is in force", SOON, async || {
        runner.start(&order(&namespace, sipstuff_operator::clock::fresh_id().as_str())).await.err()
    })
    .await;

    assert!(
        matches!(&full, StartError::Later(error) if error.message.contains("exceeded quota")
        || error.message.contains("status unknown for quota")),
        "{full:?}"
    );
}
