//! What Jobs and pods say, as tables.

#![allow(clippy::unwrap_used)]

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::*;
use crate::call::CallId;
use crate::job::manifest::{build, build_unattended};
use crate::job::samples::{call, defaults, spec};

/// A Job as the API server would show it with that status.
fn job(status: Value) -> Job {
    let mut job = build(&call(spec()), 2, &defaults()).job;
    job.status = Some(serde_json::from_value(status).unwrap());
    job
}

fn pod(made: &str, status: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"creationTimestamp": made}, "status": status})).unwrap()
}

/// A pod whose caller ended.
fn ended(exit_code: i32, message: &str, finished: &str) -> Pod {
    let terminated = json!({
        "exitCode": exit_code, "message": message, "reason": if exit_code == 0 { "Completed" } else { "Error" },
        "startedAt": "2026-06-01T10:00:05Z", "finishedAt": finished,
    });
    pod(
        "2026-06-01T10:00:00Z",
        json!({"containerStatuses": [container("sip-caller", json!({"terminated": terminated}))]}),
    )
}

fn container(name: &str, state: Value) -> Value {
    json!({"name": name, "state": state, "image": "i", "imageID": "", "ready": false, "restartCount": 0})
}

fn failed(reason: &str, message: &str) -> Value {
    json!({"failed": 1, "startTime": "2026-06-01T10:00:00Z", "conditions": [
        {"type": "FailureTarget", "status": "True", "reason": reason, "message": message},
        {"type": "Failed", "status": "True", "reason": reason, "message": message, "lastTransitionTime": "2026-06-01T10:07:00Z"},
    ]})
}

fn complete() -> Value {
    json!({"succeeded": 1, "completionTime": "2026-06-01T10:01:10Z", "conditions": [
        {"type": "SuccessCriteriaMet", "status": "True", "reason": "CompletionsReached"},
        {"type": "Complete", "status": "True", "reason": "CompletionsReached", "message": "Reached expected number of succeeded pods"},
    ]})
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn state(job: &Job, pods: &[Pod]) -> Observed {
    Observed::of(job, &pods.iter().collect::<Vec<_>>())
}

fn ending(job: &Job, pods: &[Pod]) -> Ending {
    Ending::of(job, &pods.iter().collect::<Vec<_>>())
}

fn has_ended(observed: &Observed) -> Option<bool> {
    match observed {
        Observed::Ended(ending) => Some(ending.succeeded),
        _ => None,
    }
}

fn waiting() -> Observed {
    Observed::waiting()
}

fn lives() -> Gate {
    Gate { waits: None, passed: Passed::Lives }
}

fn running(since: &str) -> Pod {
    let state = json!({"running": {"startedAt": since}});
    pod("2026-06-01T10:00:00Z", json!({"containerStatuses": [container("sip-caller", state)]}))
}

#[test]
fn a_job_alone_says_only_whether_it_has_ended() {
    for (status, expected) in [
        (json!({}), None),
        (json!({"active": 1, "ready": 1, "startTime": "2026-06-01T10:00:00Z"}), None),
        (
            json!({"active": 1, "conditions": [
                {"type": "FailureTarget", "status": "True"}, {"type": "Failed", "status": "False"}]}),
            None,
        ),
        (json!({"conditions": [{"type": "Suspended", "status": "True"}]}), None),
        (complete(), Some(true)),
        (failed("BackoffLimitExceeded", ""), Some(false)),
    ] {
        assert_eq!(has_ended(&state(&job(status.clone()), &[])), expected, "{status}");
    }
    assert_eq!(state(&Job::default(), &[]), waiting());
}

#[test]
fn its_pods_say_first_that_an_attempt_runs_and_how_it_ended() {
    let job = job(json!({"active": 1}));
    let runs = Observed::Running { started_at: time("2026-06-01T10:00:03Z") };
    assert_eq!(state(&job, &[running("2026-06-01T10:00:03Z")]), runs);
    assert_eq!(has_ended(&state(&job, &[ended(0, "", "2026-06-01T10:01:00Z")])), Some(true));
    assert_eq!(has_ended(&state(&job, &[ended(1, "", "2026-06-01T10:01:00Z")])), Some(false));
}

#[test]
fn a_pod_that_is_followed_by_another_does_not_end_the_attempt() {
    let with_limit = |limit: i32| {
        let mut job = job(json!({"active": 1}));
        job.spec.as_mut().unwrap().backoff_limit = Some(limit);
        job
    };
    let failed = || ended(1, "", "2026-06-01T10:01:00Z");
    assert_eq!(has_ended(&state(&with_limit(1), &[failed()])), None, "Kubernetes starts another one");
    let mut drained = failed();
    let disrupted = json!([{"type": "DisruptionTarget", "status": "True"}]);
    drained.status.as_mut().unwrap().conditions = serde_json::from_value(disrupted).unwrap();
    assert_eq!(has_ended(&state(&with_limit(0), &[drained])), None, "a drain does not count");
    let mut deleted = failed();
    deleted.metadata.deletion_timestamp = Some(Time(time("2026-06-01T10:00:50Z")));
    assert_eq!(has_ended(&state(&with_limit(0), &[deleted])), None, "the Job says what a deleted pod means");
    let mut stopped = with_limit(0);
    stopped.metadata.deletion_timestamp = Some(Time(time("2026-06-01T10:00:50Z")));
    assert_eq!(has_ended(&state(&stopped, &[failed()])), None, "it was stopped");
    assert_eq!(has_ended(&state(&stopped, &[ended(1, "", "2026-06-01T10:00:49Z")])), Some(false), "it ended before");
}

#[test]
fn the_order_of_the_pods_does_not_matter() {
    let job = job(json!({"active": 1}));
    let named = |mut pod: Pod, name: &str| {
        pod.metadata.name = Some(name.to_owned());
        pod
    };
    let both_ways = |first: Pod, second: Pod| {
        let seen = state(&job, &[first.clone(), second.clone()]);
        assert_eq!(state(&job, &[second, first]), seen);
        seen
    };
    let runs = both_ways(running("2026-06-01T10:00:03Z"), running("2026-06-01T10:05:00Z"));
    assert_eq!(runs, Observed::Running { started_at: time("2026-06-01T10:00:03Z") }, "since the first of them ran");
    let failed = |message: &str| named(ended(1, message, "2026-06-01T10:01:00Z"), message);
    let end = both_ways(failed("one"), failed("two"));
    assert!(matches!(&end, Observed::Ended(ending) if ending.message.as_deref() == Some("two")), "{end:?}");
    let mut drained = ended(1, "", "2026-06-01T10:01:00Z");
    let evicted = json!({"phase": "Failed", "reason": "Evicted", "containerStatuses": drained.status.unwrap().container_statuses,
        "conditions": [{"type": "DisruptionTarget", "status": "True"}]});
    drained.status = serde_json::from_value(evicted).unwrap();
    let replacement = pod("2026-06-01T10:01:01Z", json!({"phase": "Pending"}));
    assert_eq!(
        both_ways(drained, replacement),
        Observed::Waiting { reason: None, gate: lives() },
        "the pod that replaces it waits for nothing"
    );
}

/// A pod that waits at its gate.
fn gated(made: &str, name: &str) -> Pod {
    let mut pod = pod(
        made,
        json!({"phase": "Pending", "conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "waits for its gate"}]}),
    );
    pod.spec = serde_json::from_value(json!({"containers": [], "schedulingGates": [{"name": POD_GATE}]})).unwrap();
    (pod.metadata.name, pod.metadata.uid) = (Some(name.to_owned()), Some(format!("uid-{name}")));
    pod
}

fn at_gate(waits: Option<&str>, passed: Passed) -> Observed {
    let waits = waits.map(|name| PodRef { name: name.to_owned(), uid: format!("uid-{name}") });
    Observed::Waiting { reason: None, gate: Gate { waits, passed } }
}

fn disrupted(mut pod: Pod, reason: &str) -> Pod {
    let condition = json!([{"type": "DisruptionTarget", "status": "True", "reason": reason}]);
    pod.status.get_or_insert_default().conditions = serde_json::from_value(condition).unwrap();
    pod
}

#[test]
fn the_oldest_pod_at_the_gate_is_the_one_that_may_pass() {
    let job = job(json!({"active": 2}));
    let (older, younger) = (gated("2026-06-01T10:00:00Z", "b"), gated("2026-06-01T10:00:01Z", "a"));
    assert_eq!(state(&job, &[younger.clone(), older.clone()]), at_gate(Some("b"), Passed::Nobody));
    let mut removed = older.clone();
    removed.metadata.deletion_timestamp = Some(Time(time("2026-06-01T10:00:02Z")));
    assert_eq!(state(&job, &[removed, younger.clone()]), at_gate(Some("a"), Passed::Nobody));
    // Another one's gate is not ours to lift, and says what is waited for.
    let mut of_another = older;
    of_another.spec =
        serde_json::from_value(json!({"containers": [], "schedulingGates": [{"name": "kueue"}]})).unwrap();
    let Observed::Waiting { reason, gate } = state(&job, &[of_another]) else { panic!("it waits") };
    assert_eq!((reason.unwrap().split(':').next(), gate), (Some("SchedulingGated"), lives()));
    // One that waits at the gate has no say beside one that has passed it.
    let runs = Observed::Running { started_at: time("2026-06-01T10:00:03Z") };
    assert_eq!(state(&job, &[running("2026-06-01T10:00:03Z"), younger.clone()]), runs);
    let end = ending(&self::job(failed("BackoffLimitExceeded", "")), &[ended(1, "its log", "2026-06-01T10:01:00Z")]);
    let beside = [ended(1, "its log", "2026-06-01T10:01:00Z"), younger];
    assert_eq!(state(&self::job(failed("BackoffLimitExceeded", "")), &beside), Observed::Ended(end));
}

#[test]
fn a_pod_that_was_disrupted_after_the_gate_is_over_for_good() {
    let job = job(json!({"active": 1}));
    let next = || gated("2026-06-01T10:02:00Z", "next");
    let phase = |phase: &str| pod("2026-06-01T10:00:00Z", json!({"phase": phase}));
    for (what, first, is_next_there, passed) in [
        ("it is to run", phase("Pending"), true, Passed::Lives),
        (
            "it ran, and was drained",
            disrupted(ended(1, "", "2026-06-01T10:01:00Z"), "EvictionByEvictionAPI"),
            false,
            Passed::Over(Ran::Yes),
        ),
        ("it never ran", disrupted(phase("Failed"), "PreemptionByScheduler"), true, Passed::Over(Ran::No)),
        (
            "nobody knows, its node is gone",
            disrupted(phase("Failed"), "DeletionByPodGC"),
            true,
            Passed::Over(Ran::Unknown),
        ),
        ("it was deleted and is replaced", phase("Failed"), true, Passed::Over(Ran::No)),
        ("it was deleted, and the Job will say what that means", phase("Failed"), false, Passed::Lives),
    ] {
        let pods: Vec<Pod> = [first].into_iter().chain(is_next_there.then(next)).collect();
        let waits = is_next_there.then_some("next");
        let Observed::Waiting { gate, .. } = state(&job, &pods) else { panic!("{what}: it waits") };
        assert_eq!(Observed::Waiting { reason: None, gate }, at_gate(waits, passed), "{what}");
    }
    // What goes with its Job, goes by that.
    let mut stopped = job;
    stopped.metadata.deletion_timestamp = Some(Time(time("2026-06-01T10:00:50Z")));
    let drained = disrupted(ended(1, "", "2026-06-01T10:01:00Z"), "EvictionByEvictionAPI");
    assert_eq!(state(&stopped, &[drained]), at_gate(None, Passed::Lives));
}

#[test]
fn what_an_attempt_waits_for_is_in_the_clusters_words() {
    let unschedulable = json!({"phase": "Pending", "conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}]});
    let observed = state(&job(json!({"active": 1})), &[pod("2026-06-01T10:00:00Z", unschedulable)]);
    let reason = Some("Unschedulable: 0/3 nodes are available".to_owned());
    assert_eq!(observed, Observed::Waiting { reason, gate: lives() });
}

#[test]
fn whether_the_container_ran_is_known_or_said_to_be_unknown() {
    let container_ended = |end: Value| {
        pod("2026-06-01T10:00:00Z", json!({"containerStatuses": [container("sip-caller", json!({"terminated": end}))]}))
    };
    let no_pod_ever = {
        let mut status = failed("DeadlineExceeded", "");
        status["failed"] = json!(0);
        status
    };
    let evicted = json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."});
    for (what, status, pods, expected) in [
        ("no pod was ever made", no_pod_ever, vec![], Ran::No),
        ("the pod is gone", failed("BackoffLimitExceeded", ""), vec![], Ran::Unknown),
        ("it failed", failed("", ""), vec![ended(1, "", "2026-06-01T10:01:00Z")], Ran::Yes),
        ("evicted before its start", failed("", ""), vec![pod("2026-06-01T10:00:00Z", evicted)], Ran::No),
        ("last seen running", failed("", ""), vec![running("2026-06-01T10:00:03Z")], Ran::Unknown),
        (
            "the kubelet lost it",
            failed("", ""),
            vec![container_ended(json!({"exitCode": 137, "reason": "ContainerStatusUnknown"}))],
            Ran::Unknown,
        ),
        (
            "the runtime could not start it",
            failed("", ""),
            vec![container_ended(json!({"exitCode": 128, "reason": "StartError", "message": "no such file"}))],
            Ran::No,
        ),
    ] {
        assert_eq!(ending(&job(status), &pods).ran, expected, "{what}");
    }
}

#[test]
fn a_job_that_fails_while_it_is_deleted_has_no_end_of_its_own() {
    let deleted = |status: Value, at: &str| {
        let mut job = job(status);
        job.metadata.deletion_timestamp = Some(Time(time(at)));
        has_ended(&state(&job, &[]))
    };
    let fails_at_seven = || failed("BackoffLimitExceeded", "");
    for at in ["2026-06-01T10:06:00Z", "2026-06-01T10:07:00Z"] {
        assert_eq!(deleted(fails_at_seven(), at), None, "{at}");
        assert_eq!(deleted(complete(), at), Some(true), "{at}");
    }
    assert_eq!(deleted(fails_at_seven(), "2026-06-01T10:07:01Z"), Some(false));
}

#[test]
fn a_built_job_is_recognised() {
    let call = call(spec());
    let observed = ObservedJob::of(&build(&call, 2, &defaults()).job, []).unwrap();
    let expected = ObservedJob {
        name: call.name.job(2),
        id: CallId::parse("order 4711").unwrap(),
        attempt: 2,
        fingerprint: call.fingerprint.clone(),
        state: waiting(),
        settled: false,
    };
    assert_eq!(observed, expected);
    assert!(ObservedJob::of(&build_unattended(&call, 1, &defaults()).job, []).unwrap().settled);
}

#[test]
fn what_is_not_the_job_of_a_call_is_left_alone() {
    type Spoil = fn(&mut Job);
    let spoiled: [(&str, Spoil); 8] = [
        ("no name", |job| job.metadata.name = None),
        ("a copy under another name", |job| job.metadata.name = Some("copy".to_owned())),
        ("no annotations", |job| job.metadata.annotations = None),
        ("no id", |job| drop(job.metadata.annotations.as_mut().unwrap().remove(ANNOTATION_ID))),
        ("an empty id", |job| set(job, ANNOTATION_ID, "")),
        ("attempt 0", |job| set(job, ANNOTATION_ATTEMPT, "0")),
        ("no number", |job| set(job, ANNOTATION_ATTEMPT, "two")),
        ("no fingerprint", |job| drop(job.metadata.annotations.as_mut().unwrap().remove(ANNOTATION_FINGERPRINT))),
    ];
    for (what, spoil) in spoiled {
        let mut job = job(json!({}));
        spoil(&mut job);
        assert_eq!(ObservedJob::of(&job, []), None, "{what}");
    }
}

fn set(job: &mut Job, annotation: &str, value: &str) {
    job.metadata.annotations.as_mut().unwrap().insert(annotation.to_owned(), value.to_owned());
}

#[test]
fn an_answered_call_has_no_reason() {
    let end = ending(&job(complete()), &[ended(0, "", "2026-06-01T10:01:05Z")]);
    let expected = Ending {
        succeeded: true,
        ran: Ran::Yes,
        has_gate: true,
        exit_code: Some(0),
        message: None,
        reason: None,
        started_at: Some(time("2026-06-01T10:00:05Z")),
        completed_at: time("2026-06-01T10:01:05Z"),
    };
    assert_eq!(end, expected);
}

#[test]
fn a_failed_call_tells_its_exit_code_and_the_end_of_its_log() {
    let job = job(failed("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
    let end = ending(&job, &[ended(1, "Call state: DISCONNECTED (last code: 486)", "2026-06-01T10:01:05Z")]);
    assert!(!end.succeeded);
    assert_eq!(end.exit_code, Some(1));
    assert_eq!(end.message.as_deref(), Some("Call state: DISCONNECTED (last code: 486)"));
    assert_eq!(end.reason.as_deref(), Some("BackoffLimitExceeded: Job has reached the specified backoff limit"));
}

#[test]
fn the_pod_that_ended_last_counts() {
    let pods = [
        ended(1, "first", "2026-06-01T10:01:00Z"),
        ended(1, "third", "2026-06-01T10:03:00Z"),
        ended(1, "second", "2026-06-01T10:02:00Z"),
        pod("2026-06-01T11:00:00Z", json!({"phase": "Pending"})),
    ];
    let end = ending(&job(failed("BackoffLimitExceeded", "")), &pods);
    assert_eq!(end.message.as_deref(), Some("third"));
    assert_eq!(end.completed_at, time("2026-06-01T10:03:00Z"));
}

#[test]
fn a_job_without_a_pod_ends_when_the_job_did() {
    let end = ending(&job(failed("DeadlineExceeded", "Job was active longer than specified deadline")), &[]);
    let expected = Ending {
        succeeded: false,
        ran: Ran::Unknown,
        has_gate: true,
        exit_code: None,
        message: None,
        reason: Some("DeadlineExceeded: Job was active longer than specified deadline".to_owned()),
        started_at: None,
        completed_at: time("2026-06-01T10:07:00Z"),
    };
    assert_eq!(end, expected);
    assert_eq!(ending(&job(complete()), &[]).completed_at, time("2026-06-01T10:01:10Z"));
}

#[test]
fn the_reason_says_why_the_caller_never_ran() {
    let waiting = |name: &str, reason: &str, message: &str| {
        container(name, json!({"waiting": {"reason": reason, "message": message}}))
    };
    let exited = |name: &str, code: i32, reason: &str, message: &str| {
        container(name, json!({"terminated": {"exitCode": code, "reason": reason, "message": message}}))
    };
    for (status, expected) in [
        (
            json!({"containerStatuses": [waiting("sip-caller", "ImagePullBackOff", "Back-off pulling image \"tpyo\"")]}),
            "DeadlineExceeded; container sip-caller: ImagePullBackOff: Back-off pulling image \"tpyo\"",
        ),
        (
            json!({"containerStatuses": [waiting("sip-caller", "CreateContainerConfigError", "secret \"a\" not found")]}),
            "DeadlineExceeded; container sip-caller: CreateContainerConfigError: secret \"a\" not found",
        ),
        (json!({"containerStatuses": [waiting("sip-caller", "ContainerCreating", "")]}), "DeadlineExceeded"),
        (
            json!({
                "initContainerStatuses": [exited("fix-permissions", 1, "Error", "chown: /data/piper: Read-only file system\n")],
                "containerStatuses": [waiting("sip-caller", "PodInitializing", "")],
            }),
            "DeadlineExceeded; container fix-permissions ended with exit code 1: chown: /data/piper: Read-only file system",
        ),
        (
            json!({
                "initContainerStatuses": [waiting("fix-permissions", "ErrImagePull", "no such host")],
                "containerStatuses": [waiting("sip-caller", "PodInitializing", "")],
            }),
            "DeadlineExceeded; container fix-permissions: ErrImagePull: no such host",
        ),
        (
            json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}),
            "DeadlineExceeded; Evicted: The node was low on resource: memory.",
        ),
        (
            json!({"containerStatuses": [exited("sip-caller", 137, "OOMKilled", "")]}),
            "DeadlineExceeded; container sip-caller: OOMKilled",
        ),
        (json!({}), "DeadlineExceeded"),
    ] {
        let end = ending(&job(failed("DeadlineExceeded", "")), &[pod("2026-06-01T10:00:00Z", status.clone())]);
        assert_eq!(end.reason.as_deref(), Some(expected), "{status}");
    }
}

#[test]
fn a_long_message_keeps_its_end_and_stays_text() {
    let long = "ü".repeat(3000) + "last code: 486";
    let end = ending(&job(failed("BackoffLimitExceeded", "")), &[ended(1, &long, "2026-06-01T10:01:00Z")]);
    let message = end.message.unwrap();
    assert_eq!(message.len(), MAX_MESSAGE_BYTES);
    assert!(message.starts_with('ü') && message.ends_with("last code: 486"));

    let odd = "x".to_owned() + &long;
    let end = ending(&job(failed("", "")), &[ended(1, &(odd + "!"), "2026-06-01T10:01:00Z")]);
    assert_eq!(end.message.unwrap().len(), MAX_MESSAGE_BYTES - 1);
    assert_eq!(end.reason, None);
}
