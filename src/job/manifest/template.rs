//! `JOB_TEMPLATE_FILE`: a partial Job merged over every built one, for what a cluster wants of its pods (resources,
//! tolerations, affinity, pull secrets, claims). What makes an attempt the only one of its name is not the template's.

use k8s_openapi::DeepMerge;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::{CONTAINER, env};

/// Reads a template: a partial `batch/v1` Job, as YAML or JSON. `apiVersion` and `kind` may be left out; lists of containers,
/// variables and volumes are merged by name, so these need one.
///
/// Name, namespace, the operator's labels and annotations, the caller's command, restart policy, backoff limit,
/// TTL and the number of pods are set again after the merge: a template cannot change them.
///
/// # Errors
/// A text for people: not YAML, another kind, a wrong type, a field that no Job has (with its path), or a container
/// without a name.
pub fn parse_template(text: &str) -> Result<Job, String> {
    let value: Value = serde_saphyr::from_str(text).map_err(|error| format!("not YAML or JSON: {error}"))?;
    let Value::Object(fields) = &value else {
        return Err("not a Job: an object such as `spec: {template: {…}}` is expected".to_owned());
    };
    for (field, accepted) in [("apiVersion", "batch/v1"), ("kind", "Job")] {
        if let Some(other) = fields.get(field).filter(|value| *value != accepted) {
            return Err(format!("{field} is {other}; accepted: {accepted}, or nothing"));
        }
    }
    let job: Job = serde_saphyr::from_str(text).map_err(|error| format!("not a Job: {error}"))?;
    let known = serde_json::to_value(&job).map_err(|error| error.to_string())?;
    let unknown = unknown_fields(&value, &known);
    if !unknown.is_empty() {
        return Err(format!("a Job has no field {}", unknown.join(", ")));
    }
    if containers(&job).any(|container| container.name.is_empty()) {
        return Err(format!("a container has no name; the caller's is `{CONTAINER}`"));
    }
    Ok(job)
}

/// Paths of what was written and did not survive the trip through the Kubernetes types, which ignore what they do not know.
fn unknown_fields(written: &Value, known: &Value) -> Vec<String> {
    let mut unknown = Vec::new();
    collect_unknown("", written, known, &mut unknown);
    unknown
}

fn collect_unknown(path: &str, written: &Value, known: &Value, unknown: &mut Vec<String>) {
    match (written, known) {
        (Value::Object(written), Value::Object(known)) => {
            for (field, value) in written.iter().filter(|(_, value)| !value.is_null()) {
                let path = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
                match known.get(field) {
                    Some(known) => collect_unknown(&path, value, known, unknown),
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(written), Value::Array(known)) => {
            for (index, (value, known)) in written.iter().zip(known).enumerate() {
                collect_unknown(&format!("{path}[{index}]"), value, known, unknown);
            }
        }
        _ => {}
    }
}

/// Merges a template over a built Job and takes back what is not the template's to say.
pub(super) fn merge(built: Job, template: &Job) -> Job {
    let template = without_call_variables(&built, template.clone());
    let mut merged = built.clone();
    make_way(&mut merged, &template);
    merged.merge_from(template);
    enforce(&mut merged, built);
    merged
}

/// What the request says about the call is nearer to it than the template.
fn without_call_variables(built: &Job, mut template: Job) -> Job {
    let job = built.metadata.name.as_deref().unwrap_or_default();
    let decided: Vec<_> = caller(built)
        .and_then(|caller| caller.env.as_ref())
        .into_iter()
        .flatten()
        .filter(|variable| env::is_decided_by_call(variable, job))
        .map(|variable| variable.name.clone())
        .collect();
    if let Some(variables) = caller_mut(&mut template).and_then(|caller| caller.env.as_mut()) {
        variables.retain(|variable| !decided.contains(&variable.name));
    }
    template
}

/// A volume or a variable has one source: merging a claim into a host path, or a value into a reference, would make
/// something that the API server refuses. So ours goes where the template has one of that name.
fn make_way(built: &mut Job, template: &Job) {
    if let Some(ours) = pod_mut(built).and_then(|pod| pod.volumes.as_mut()) {
        let theirs = pod(template).and_then(|pod| pod.volumes.as_deref()).unwrap_or_default();
        ours.retain(|volume| theirs.iter().all(|other| other.name != volume.name));
    }
    if let Some(ours) = caller_mut(built).and_then(|caller| caller.env.as_mut()) {
        let theirs = caller(template).and_then(|caller| caller.env.as_deref()).unwrap_or_default();
        ours.retain(|variable| theirs.iter().all(|other| other.name != variable.name));
    }
}

/// Sets again everything that makes this Job one pod that places this call, once.
fn enforce(merged: &mut Job, built: Job) {
    merged.status = None;
    enforce_identity(&mut merged.metadata, built.metadata);
    let (Some(merged), Some(built)) = (merged.spec.as_mut(), built.spec) else { return };
    enforce_single_pod(merged, &built);
    let PodTemplateSpec { metadata: Some(labels), spec: Some(pod) } = built.template else { return };
    enforce_identity(merged.template.metadata.get_or_insert_default(), labels);
    let Some(merged) = merged.template.spec.as_mut() else { return };
    merged.restart_policy = pod.restart_policy;
    let ours = pod.containers.into_iter().find(|container| container.name == CONTAINER);
    let theirs = merged.containers.iter_mut().find(|container| container.name == CONTAINER);
    if let (Some(theirs), Some(ours)) = (theirs, ours) {
        theirs.command = ours.command;
        theirs.args = None;
    }
}

/// Of a template's metadata only labels and annotations make sense for every Job; ours win.
fn enforce_identity(merged: &mut ObjectMeta, mut built: ObjectMeta) {
    for (ours, theirs) in
        [(&mut built.labels, merged.labels.take()), (&mut built.annotations, merged.annotations.take())]
    {
        for (key, value) in theirs.into_iter().flatten() {
            ours.get_or_insert_default().entry(key).or_insert(value);
        }
    }
    *merged = built;
}

fn enforce_single_pod(merged: &mut JobSpec, built: &JobSpec) {
    merged.backoff_limit = built.backoff_limit;
    merged.ttl_seconds_after_finished = built.ttl_seconds_after_finished;
    merged.parallelism = None;
    merged.completions = None;
    merged.completion_mode = None;
    merged.backoff_limit_per_index = None;
    merged.max_failed_indexes = None;
    merged.success_policy = None;
    merged.manual_selector = None;
    merged.selector = None;
}

fn pod(job: &Job) -> Option<&PodSpec> {
    job.spec.as_ref()?.template.spec.as_ref()
}

fn pod_mut(job: &mut Job) -> Option<&mut PodSpec> {
    job.spec.as_mut()?.template.spec.as_mut()
}

fn caller(job: &Job) -> Option<&Container> {
    pod(job)?.containers.iter().find(|container| container.name == CONTAINER)
}

fn caller_mut(job: &mut Job) -> Option<&mut Container> {
    pod_mut(job)?.containers.iter_mut().find(|container| container.name == CONTAINER)
}

fn containers(job: &Job) -> impl Iterator<Item = &Container> {
    pod(job).into_iter().flat_map(|pod| pod.containers.iter().chain(pod.init_containers.iter().flatten()))
}
