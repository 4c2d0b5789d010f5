//! What a built Job holds beside what the golden files show.

#![allow(clippy::unwrap_used)]

use k8s_openapi::api::core::v1::{Container, PodSchedulingGate, PodSpec};

use super::*;
use crate::call::spec::SipSettings;
use crate::job::POD_GATE;
use crate::job::samples::{call, defaults, spec};

fn pod(job: &Job) -> &PodSpec {
    job.spec.as_ref().unwrap().template.spec.as_ref().unwrap()
}

pub(super) fn caller(job: &Job) -> &Container {
    pod(job).containers.iter().find(|container| container.name == CONTAINER).unwrap()
}

pub(super) fn command(job: &Job) -> Vec<&str> {
    caller(job).command.as_ref().unwrap().iter().map(String::as_str).collect()
}

pub(super) fn job_of(spec: CallSpec) -> Job {
    build(&call(spec), 1, &defaults()).job
}

fn job_with_template(template: &str) -> Job {
    let defaults = JobDefaults { template: Some(parse_template(template).unwrap()), ..defaults() };
    build(&call(spec()), 1, &defaults).job
}

#[test]
fn the_smallest_call_has_the_smallest_command() {
    let job = job_of(spec());
    let expected =
        ["python3", "-m", "sipstuff.cli", "call", "--dest", "+4930123456", "--text", "Hello", "--timeout", "60"];
    assert_eq!(command(&job), expected);
}

#[test]
fn delays_print_with_a_point() {
    let job = job_of(CallSpec { pre_delay: 2.0, post_delay: 0.00001, wait_for_silence: Some(0.0), ..spec() });
    let expected = ["--pre-delay", "2.0", "--post-delay", "0.00001", "--wait-for-silence", "0.0"];
    assert_eq!(command(&job)[10..], expected);
}

#[test]
fn the_caller_is_told_its_trace_and_no_template_tells_it_another() {
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let template =
        "spec: {template: {spec: {containers: [{name: sip-caller, env: [{name: TRACEPARENT, value: other}]}]}}}";
    let defaults = JobDefaults { template: Some(parse_template(template).unwrap()), ..defaults() };
    let of = |call: &Call, defaults: &JobDefaults| {
        let env = caller(&build(call, 1, defaults).job).env.clone().unwrap();
        env.into_iter()
            .filter(|variable| variable.name == "TRACEPARENT")
            .map(|variable| variable.value.unwrap())
            .collect::<Vec<_>>()
    };
    let traced = call(spec()).in_trace(crate::call::TraceParent::parse(TRACE));
    assert_eq!(of(&traced, &self::defaults()), [TRACE]);
    assert_eq!(of(&traced, &defaults), [TRACE]);
    assert!(of(&call(spec()), &self::defaults()).is_empty());
}

#[test]
fn an_attempt_has_its_own_name_and_says_whose_it_is() {
    let call = call(CallSpec { batch: Some("june".to_owned()), ..spec() });
    let job = build(&call, 3, &defaults()).job;
    assert_eq!(job.metadata.name, Some(format!("{}-3", call.name)));
    let annotations = job.metadata.annotations.unwrap();
    assert_eq!(annotations[ANNOTATION_ID], "order 4711");
    assert_eq!(annotations[ANNOTATION_ATTEMPT], "3");
    assert_eq!(annotations[ANNOTATION_FINGERPRINT], call.fingerprint.as_str());
    let labels = job.metadata.labels.unwrap();
    assert_eq!(labels[LABEL_BATCH], "june");
    assert_eq!(job.spec.unwrap().template.metadata.unwrap().labels.unwrap(), labels);
}

#[test]
fn the_deadline_covers_every_repetition_and_delay() {
    let spec = CallSpec {
        timeout: 30,
        repeat: 3,
        pre_delay: 1.5,
        inter_delay: 2.0,
        post_delay: 0.25,
        wait_for_silence: Some(1.0),
        ..spec()
    };
    // 1.5 + 1 + 3 × 30 + 2 × 2 + 0.25 = 96.75, rounded up, and the margin.
    assert_eq!(pod_deadline(&spec, &defaults()), 97 + 600);
    assert_eq!(job_deadline(&spec, &defaults()), 97 + 600 + 600);
}

#[test]
fn a_pod_waits_at_a_gate_unless_nobody_would_lift_it() {
    let gates = |order: JobOrder| order.job.spec.unwrap().template.spec.unwrap().scheduling_gates;
    let names = |gates: Vec<PodSchedulingGate>| gates.into_iter().map(|gate| gate.name).collect::<Vec<_>>();
    assert_eq!(gates(build(&call(spec()), 1, &defaults())).map(names), Some(vec![POD_GATE.to_owned()]));
    assert_eq!(gates(build(&call(spec()), 1, &JobDefaults { pod_gate: false, ..defaults() })), None);
    assert_eq!(gates(build_unattended(&call(spec()), 1, &defaults())), None);
}

#[test]
fn only_an_unattended_job_removes_itself() {
    let ttl = |order: JobOrder| order.job.spec.unwrap().ttl_seconds_after_finished;
    assert_eq!(ttl(build(&call(spec()), 1, &defaults())), None);
    assert_eq!(ttl(build_unattended(&call(spec()), 1, &defaults())), Some(3600));
}

#[test]
fn a_password_is_in_the_secret_and_nowhere_in_the_job() {
    let sip = SipSettings {
        user: Some("alice".to_owned()),
        password: Some("pa$$word-one".into()),
        turn_password: Some("password-two".into()),
        ..SipSettings::default()
    };
    let order = build(&call(CallSpec { sip, ..spec() }), 2, &defaults());
    let text = serde_json::to_string(&order.job).unwrap();
    assert!(!text.contains("word-one") && !text.contains("word-two"), "{text}");

    let env = caller(&order.job).env.as_ref().unwrap();
    let password = env.iter().find(|variable| variable.name == SIP_PASSWORD).unwrap();
    let reference = password.value_from.as_ref().unwrap().secret_key_ref.as_ref().unwrap();
    assert_eq!(
        (reference.name.as_str(), reference.key.as_str(), reference.optional),
        (order.name(), SIP_PASSWORD, None)
    );

    let secret = secret(&order).unwrap();
    assert_eq!(secret.metadata.name.as_deref(), Some(order.name()));
    assert_eq!(secret.data.unwrap()[SIP_PASSWORD].0, b"pa$$word-one");
    assert!(!format!("{order:?}").contains("word-one"));
}

#[test]
fn a_call_without_passwords_needs_no_secret() {
    assert!(secret(&build(&call(spec()), 1, &defaults())).is_none());
}

#[test]
fn what_the_request_does_not_say_is_read_from_the_secret_it_names() {
    let job = job_of(CallSpec { sip_secret: Some("trunk-b".to_owned()), ..spec() });
    let env = caller(&job).env.as_ref().unwrap();
    assert_eq!(env.len(), 15);
    for variable in env {
        let reference = variable.value_from.as_ref().unwrap().secret_key_ref.as_ref().unwrap();
        assert_eq!(
            (reference.name.as_str(), &reference.key, reference.optional),
            ("trunk-b", &variable.name, Some(true))
        );
    }
}

#[test]
fn a_template_adds_what_the_cluster_wants() {
    let job = job_with_template(
        "spec:
           activeDeadlineSeconds: 7200
           template:
             metadata: {labels: {team: ops}, annotations: {mesh/inject: 'false'}}
             spec:
               imagePullSecrets: [{name: registry}]
               tolerations: [{key: voice, operator: Exists}]
               securityContext: {runAsNonRoot: true}
               containers:
               - name: sip-caller
                 resources: {limits: {cpu: 1, memory: 512Mi}}
                 env: [{name: TZ, value: Europe/Berlin}]",
    );
    let pod = pod(&job);
    assert_eq!(pod.image_pull_secrets.as_ref().unwrap()[0].name, "registry");
    assert_eq!(pod.tolerations.as_ref().unwrap()[0].key.as_deref(), Some("voice"));
    let security = pod.security_context.as_ref().unwrap();
    assert_eq!(security.seccomp_profile.as_ref().unwrap().type_, "RuntimeDefault");
    assert_eq!(security.run_as_non_root, Some(true));
    assert_eq!(pod.containers.len(), 1);
    assert_eq!(caller(&job).resources.as_ref().unwrap().limits.as_ref().unwrap()["cpu"].0, "1");
    assert_eq!(caller(&job).env.as_ref().unwrap().last().unwrap().name, "TZ");
    let spec = job.spec.as_ref().unwrap();
    assert_eq!(spec.active_deadline_seconds, Some(7200));
    let metadata = spec.template.metadata.as_ref().unwrap();
    assert_eq!(metadata.labels.as_ref().unwrap()["team"], "ops");
    assert_eq!(metadata.labels.as_ref().unwrap()["app"], "sipstuff-operator");
    assert_eq!(metadata.annotations.as_ref().unwrap()["mesh/inject"], "false");
}

#[test]
fn a_template_cannot_make_a_second_call_of_a_job() {
    let plain = job_of(spec());
    let job = job_with_template(
        "apiVersion: batch/v1
kind: Job
metadata:
  name: mine
  namespace: theirs
  generateName: mine-
  labels: {app: other, team: ops}
  annotations: {sipstuff-operator/call-id: other, sipstuff-operator/attempt: '9'}
  ownerReferences: [{apiVersion: v1, kind: Pod, name: p, uid: u}]
spec:
  backoffLimit: 6
  parallelism: 2
  completions: 2
  completionMode: Indexed
  backoffLimitPerIndex: 2
  manualSelector: true
  selector: {matchLabels: {a: b}}
  ttlSecondsAfterFinished: 0
  template:
    metadata: {labels: {component: other}}
    spec:
      restartPolicy: OnFailure
      containers:
      - {name: sip-caller, command: [sleep], args: [infinity]}
status: {succeeded: 1}",
    );
    let mut expected = plain;
    expected.metadata.labels.as_mut().unwrap().insert("team".to_owned(), "ops".to_owned());
    assert_eq!(job, expected);
}

#[test]
fn a_template_replaces_sources_but_not_what_the_request_says() {
    let template = "spec: {template: {spec: {
        volumes: [{name: recording-data, persistentVolumeClaim: {claimName: recordings}}],
        containers: [{name: sip-caller, env: [
            {name: SIP_SERVER, value: sip.example.com}, {name: SIP_USER, value: everybody}, {name: SIP_PASSWORD, value: x}]}]}}}";
    let sip = SipSettings { user: Some("alice".to_owned()), password: Some("secret".into()), ..SipSettings::default() };
    let defaults = JobDefaults {
        template: Some(parse_template(template).unwrap()),
        recording_dir: Some("/srv/recordings".to_owned()),
        ..defaults()
    };
    let job = build(&call(CallSpec { sip, ..spec() }), 1, &defaults).job;
    let volumes = pod(&job).volumes.as_ref().unwrap();
    assert_eq!(volumes.len(), 1);
    assert!(volumes[0].host_path.is_none() && volumes[0].persistent_volume_claim.is_some());
    let env = caller(&job).env.as_ref().unwrap();
    let find = |name: &str| env.iter().filter(|variable| variable.name == name).collect::<Vec<_>>();
    assert_eq!(find("SIP_SERVER")[0].value.as_deref(), Some("sip.example.com"));
    assert!(find("SIP_SERVER")[0].value_from.is_none());
    assert_eq!(find("SIP_USER")[0].value.as_deref(), Some("alice"));
    assert!(find("SIP_PASSWORD")[0].value.is_none() && find("SIP_PASSWORD")[0].value_from.is_some());
    assert_eq!(env.len(), 16, "no variable twice");
}

#[test]
fn a_bad_template_says_what_is_wrong() {
    for (template, expected) in [
        ("[", "not YAML or JSON"),
        ("hello", "an object such as"),
        ("", "an object such as"),
        ("kind: CronJob", "kind is \"CronJob\"; accepted: Job"),
        ("apiVersion: v1", "apiVersion is \"v1\"; accepted: batch/v1"),
        ("spec: {template: {spec: {toleration: [{key: a}]}}}", "a Job has no field spec.template.spec.toleration"),
        ("{tolerations: []}", "a Job has no field tolerations"),
        (
            "spec: {template: {spec: {containers: [{name: sip-caller, resource: {}}]}}}",
            "no field spec.template.spec.containers[0].resource",
        ),
        ("spec: {backoffLimit: many}", "not a Job: "),
        (
            "spec: {template: {spec: {containers: [{image: a}]}}}",
            "a container has no name; the caller's is `sip-caller`",
        ),
    ] {
        let error = parse_template(template).unwrap_err();
        assert!(error.contains(expected), "{template}: {error}");
    }
}

#[test]
fn empty_and_null_parts_of_a_template_are_fine() {
    let job = job_with_template(
        "metadata: null\nspec: {template: {spec: {tolerations: [], nodeSelector: {}, volumes: [{name: tmp, emptyDir: {}}]}}}",
    );
    assert_eq!(pod(&job).volumes.as_ref().unwrap().len(), 1);
}
