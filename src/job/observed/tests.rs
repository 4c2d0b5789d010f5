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

#[test]
fn the_phase_follows_the_status() {
    let running = Phase::Running { started_at: time("2026-06-01T10:00:00Z") };
    for (status, expected) in [
        (json!({}), Phase::Waiting),
        (json!({"active": 1, "ready": 0, "startTime": "2026-06-01T10:00:00Z"}), Phase::Waiting),
        (json!({"active": 1, "ready": 1, "startTime": "2026-06-01T10:00:00Z"}), running.clone()),
        (
            json!({"active": 1, "ready": 1, "startTime": "2026-06-01T10:00:00Z", "conditions": [
                {"type": "FailureTarget", "status": "True"}, {"type": "Failed", "status": "False"}]}),
            running,
        ),
        (json!({"conditions": [{"type": "Suspended", "status": "True"}]}), Phase::Waiting),
        (complete(), Phase::Finished { succeeded: true }),
        (failed("BackoffLimitExceeded", ""), Phase::Finished { succeeded: false }),
    ] {
        assert_eq!(Phase::of(&job(status.clone())), expected, "{status}");
    }
    assert_eq!(Phase::of(&Job::default()), Phase::Waiting);
}

#[test]
fn a_job_that_fails_while_it_is_deleted_has_no_end_of_its_own() {
    let deleted = |status: Value, at: &str| {
        let mut job = job(status);
        job.metadata.deletion_timestamp = Some(Time(time(at)));
        Phase::of(&job)
    };
    let fails_at_seven = || failed("BackoffLimitExceeded", "");
    for at in ["2026-06-01T10:06:00Z", "2026-06-01T10:07:00Z"] {
        assert_eq!(deleted(fails_at_seven(), at), Phase::Waiting, "{at}");
        assert_eq!(deleted(complete(), at), Phase::Finished { succeeded: true }, "{at}");
    }
    assert_eq!(deleted(fails_at_seven(), "2026-06-01T10:07:01Z"), Phase::Finished { succeeded: false });
}

#[test]
fn a_built_job_is_recognised() {
    let call = call(spec());
    let observed = ObservedJob::of(&build(&call, 2, &defaults()).job).unwrap();
    let expected = ObservedJob {
        name: call.name.job(2),
        id: CallId::parse("order 4711").unwrap(),
        attempt: 2,
        fingerprint: call.fingerprint.clone(),
        phase: Phase::Waiting,
        settled: false,
    };
    assert_eq!(observed, expected);
    assert!(ObservedJob::of(&build_unattended(&call, 1, &defaults()).job).unwrap().settled);
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
        assert_eq!(ObservedJob::of(&job), None, "{what}");
    }
}

fn set(job: &mut Job, annotation: &str, value: &str) {
    job.metadata.annotations.as_mut().unwrap().insert(annotation.to_owned(), value.to_owned());
}

#[test]
fn an_answered_call_has_no_reason() {
    let ending = Ending::of(&job(complete()), &[ended(0, "", "2026-06-01T10:01:05Z")]);
    let expected = Ending {
        succeeded: true,
        exit_code: Some(0),
        message: None,
        reason: None,
        started_at: Some(time("2026-06-01T10:00:05Z")),
        completed_at: time("2026-06-01T10:01:05Z"),
    };
    assert_eq!(ending, expected);
}

#[test]
fn a_failed_call_tells_its_exit_code_and_the_end_of_its_log() {
    let job = job(failed("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
    let ending = Ending::of(&job, &[ended(1, "Call state: DISCONNECTED (last code: 486)", "2026-06-01T10:01:05Z")]);
    assert!(!ending.succeeded);
    assert_eq!(ending.exit_code, Some(1));
    assert_eq!(ending.message.as_deref(), Some("Call state: DISCONNECTED (last code: 486)"));
    assert_eq!(ending.reason.as_deref(), Some("BackoffLimitExceeded: Job has reached the specified backoff limit"));
}

#[test]
fn the_pod_that_ended_last_counts() {
    let pods = [
        ended(1, "first", "2026-06-01T10:01:00Z"),
        ended(1, "third", "2026-06-01T10:03:00Z"),
        ended(1, "second", "2026-06-01T10:02:00Z"),
        pod("2026-06-01T11:00:00Z", json!({"phase": "Pending"})),
    ];
    let ending = Ending::of(&job(failed("BackoffLimitExceeded", "")), &pods);
    assert_eq!(ending.message.as_deref(), Some("third"));
    assert_eq!(ending.completed_at, time("2026-06-01T10:03:00Z"));
}

#[test]
fn a_job_without_a_pod_ends_when_the_job_did() {
    let ending = Ending::of(&job(failed("DeadlineExceeded", "Job was active longer than specified deadline")), &[]);
    let expected = Ending {
        succeeded: false,
        exit_code: None,
        message: None,
        reason: Some("DeadlineExceeded: Job was active longer than specified deadline".to_owned()),
        started_at: None,
        completed_at: time("2026-06-01T10:07:00Z"),
    };
    assert_eq!(ending, expected);
    assert_eq!(Ending::of(&job(complete()), &[]).completed_at, time("2026-06-01T10:01:10Z"));
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
        let ending = Ending::of(&job(failed("DeadlineExceeded", "")), &[pod("2026-06-01T10:00:00Z", status.clone())]);
        assert_eq!(ending.reason.as_deref(), Some(expected), "{status}");
    }
}

#[test]
fn a_long_message_keeps_its_end_and_stays_text() {
    let long = "ü".repeat(3000) + "last code: 486";
    let ending = Ending::of(&job(failed("BackoffLimitExceeded", "")), &[ended(1, &long, "2026-06-01T10:01:00Z")]);
    let message = ending.message.unwrap();
    assert_eq!(message.len(), MAX_MESSAGE_BYTES);
    assert!(message.starts_with('ü') && message.ends_with("last code: 486"));

    let odd = "x".to_owned() + &long;
    let ending = Ending::of(&job(failed("", "")), &[ended(1, &(odd + "!"), "2026-06-01T10:01:00Z")]);
    assert_eq!(ending.message.unwrap().len(), MAX_MESSAGE_BYTES - 1);
    assert_eq!(ending.reason, None);
}
