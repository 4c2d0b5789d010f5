//! Call + configuration → `batch/v1` Job. Pure; golden files hold its results, byte for byte.
//!
//! The same request and configuration give the same command line and the same environment as sipstuff-k8s-operator gives
//! them, so that a caller image which works with one works with the other.

mod command;
mod env;
mod pod;
mod template;

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use secrecy::ExposeSecret;

pub use self::env::{SIP_PASSWORD, SIP_TURN_PASSWORD};
pub use self::template::parse_template;
use super::{ANNOTATION_ATTEMPT, ANNOTATION_FINGERPRINT, ANNOTATION_ID, JobDefaults, JobOrder, LABEL_BATCH};
use crate::call::{Call, CallSpec};

/// Name of the container that places the call.
pub const CONTAINER: &str = "sip-caller";
/// Name of the init container that hands the host directories to the caller's user.
pub const INIT_CONTAINER: &str = "fix-permissions";

/// Builds the Job of one attempt (from 1) of a call. Without `ttlSecondsAfterFinished`: a Job may be removed only once its
/// outcome is recorded, so whoever records it sets the TTL.
pub fn build(call: &Call, attempt: u32, defaults: &JobDefaults) -> JobOrder {
    let name = call.name.job(attempt);
    let built = Job {
        metadata: metadata(call, attempt, &name, defaults),
        spec: Some(job_spec(call, &name, defaults)),
        status: None,
    };
    let job = match &defaults.template {
        Some(template) => template::merge(built, template),
        None => built,
    };
    JobOrder { job, passwords: env::passwords(&call.spec.sip) }
}

/// [`build`] for a Job that nobody will settle (`dumpjob`, `startjob`): Kubernetes removes it by itself,
/// `JOB_TTL_SECONDS` after its end, and its pod has no gate.
pub fn build_unattended(call: &Call, attempt: u32, defaults: &JobDefaults) -> JobOrder {
    let mut order = build(call, attempt, &JobDefaults { pod_gate: false, ..defaults.clone() });
    if let Some(spec) = &mut order.job.spec {
        spec.ttl_seconds_after_finished = Some(defaults.ttl_seconds);
    }
    order
}

/// The Secret that the Job of `order` reads its call's passwords from, named like the Job and without an owner, since the
/// owner's uid is known only once the Job exists; `None` when the request gave no password.
pub fn secret(order: &JobOrder) -> Option<Secret> {
    if order.passwords.is_empty() {
        return None;
    }
    let data = order.passwords.iter().map(|(variable, password)| {
        // Data is not expanded by the kubelet: a `$` is a `$` here.
        (variable.clone(), ByteString(password.expose_secret().as_bytes().to_vec()))
    });
    Some(Secret {
        metadata: ObjectMeta {
            name: order.job.metadata.name.clone(),
            namespace: order.job.metadata.namespace.clone(),
            labels: Some(own_labels(None)),
            ..ObjectMeta::default()
        },
        data: Some(data.collect()),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    })
}

/// Seconds that the pod may take once a node has it: the longest that the conversation can last, and a margin for image pull,
/// text to speech and transcription.
fn pod_deadline(spec: &CallSpec, defaults: &JobDefaults) -> u32 {
    spec.longest_conversation().saturating_add(defaults.deadline_margin)
}

/// Seconds after its creation that Kubernetes ends the Job whatever it does, even if no operator is there: the time to start, and
/// then that of the pod.
pub fn job_deadline(spec: &CallSpec, defaults: &JobDefaults) -> u32 {
    pod_deadline(spec, defaults).saturating_add(defaults.start_seconds)
}

fn metadata(call: &Call, attempt: u32, name: &str, defaults: &JobDefaults) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(defaults.namespace.clone()),
        labels: Some(own_labels(call.spec.batch.as_deref())),
        annotations: Some(BTreeMap::from([
            (ANNOTATION_ID.to_owned(), call.id.to_string()),
            (ANNOTATION_ATTEMPT.to_owned(), attempt.to_string()),
            (ANNOTATION_FINGERPRINT.to_owned(), call.fingerprint.as_str().to_owned()),
        ])),
        ..ObjectMeta::default()
    }
}

/// The labels that [`super::SELECTOR`] selects, and the batch.
fn own_labels(batch: Option<&str>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        ("app".to_owned(), "sipstuff-operator".to_owned()),
        ("component".to_owned(), "sip-caller".to_owned()),
    ]);
    if let Some(batch) = batch {
        labels.insert(LABEL_BATCH.to_owned(), batch.to_owned());
    }
    labels
}

fn job_spec(call: &Call, name: &str, defaults: &JobDefaults) -> JobSpec {
    JobSpec {
        active_deadline_seconds: Some(job_deadline(&call.spec, defaults).into()),
        // Kubernetes would take 6 for an absent one, which is six more calls.
        backoff_limit: Some(defaults.backoff_limit),
        pod_failure_policy: Some(ignore_disruptions()),
        template: pod::pod_template(call, name, defaults),
        ..JobSpec::default()
    }
}

/// A drained node or a preempted pod says nothing about the callee: it does not count as a failure.
fn ignore_disruptions() -> PodFailurePolicy {
    PodFailurePolicy {
        rules: vec![PodFailurePolicyRule {
            action: "Ignore".to_owned(),
            on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
                type_: "DisruptionTarget".to_owned(),
                status: Some("True".to_owned()),
            }]),
            ..PodFailurePolicyRule::default()
        }],
    }
}

/// Doubles every `$`: the kubelet expands `$(NAME)` in command, args and env values and turns `$$` into `$`, so a text such
/// as `$(SIP_PASSWORD)` would be read out to the callee.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
