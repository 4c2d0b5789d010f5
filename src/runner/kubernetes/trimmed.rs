//! Jobs and pods as the API server shows them, without what nobody looks at. A watch sends six kilobytes several times for every
//! Job and for every pod, and five of them are the pod template and the managed fields, which would be read into trees and
//! dropped.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStatus, Pod, PodCondition, PodSchedulingGate, PodSpec, PodStatus, PodTemplateSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use crate::job::POD_GATE;

/// The part of a resource that [`ObservedJob::of`](crate::job::ObservedJob::of) reads; the rest is absent.
#[derive(Debug, Clone)]
pub(super) struct Trimmed<K>(pub(super) K);

/// A resource that is read from a smaller form of it, and kept as such: the types of the whole resource take kilobytes even empty.
pub(super) trait Trim: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Sized {
    /// What is read.
    type Form: DeserializeOwned + Into<Self> + From<Self> + Clone;
}

impl Trim for Job {
    type Form = JobForm;
}

impl Trim for Pod {
    type Form = PodForm;
}

impl<'de, K: Trim> Deserialize<'de> for Trimmed<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        K::Form::deserialize(deserializer).map(|form| Self(form.into()))
    }
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct JobForm {
    metadata: MetadataForm,
    spec: Option<JobSpecForm>,
    status: Option<JobStatus>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct JobSpecForm {
    backoff_limit: Option<i32>,
    ttl_seconds_after_finished: Option<i32>,
    #[serde(default)]
    template: TemplateForm,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct TemplateForm {
    spec: Option<PodSpecForm>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct PodForm {
    metadata: MetadataForm,
    spec: Option<PodSpecForm>,
    status: Option<PodStatusForm>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpecForm {
    #[serde(default, deserialize_with = "has_our_gate", rename = "schedulingGates")]
    has_gate: bool,
}

/// Whether our gate is among them; that of others is not kept.
fn has_our_gate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let gates = Option::<Vec<PodSchedulingGate>>::deserialize(deserializer)?;
    Ok(is_ours_among(gates.as_deref()))
}

fn is_ours_among(gates: Option<&[PodSchedulingGate]>) -> bool {
    gates.is_some_and(|gates| gates.iter().any(|gate| gate.name == POD_GATE))
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStatusForm {
    phase: Option<String>,
    reason: Option<String>,
    message: Option<String>,
    conditions: Option<Vec<PodCondition>>,
    init_container_statuses: Option<Vec<ContainerForm>>,
    container_statuses: Option<Vec<ContainerForm>>,
}

#[derive(Debug, Clone, Deserialize)]
struct ContainerForm {
    name: String,
    state: Option<ContainerState>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetadataForm {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

impl From<JobForm> for Job {
    fn from(JobForm { metadata, spec, status }: JobForm) -> Self {
        let spec = spec.map(|JobSpecForm { backoff_limit, ttl_seconds_after_finished, template }| JobSpec {
            backoff_limit,
            ttl_seconds_after_finished,
            template: PodTemplateSpec { metadata: None, spec: template.spec.map(PodSpec::from) },
            ..Default::default()
        });
        Self { metadata: metadata.into(), spec, status }
    }
}

impl From<Job> for JobForm {
    fn from(Job { metadata, spec, status }: Job) -> Self {
        let spec = spec.map(|spec| JobSpecForm {
            backoff_limit: spec.backoff_limit,
            ttl_seconds_after_finished: spec.ttl_seconds_after_finished,
            template: TemplateForm { spec: spec.template.spec.map(PodSpecForm::from) },
        });
        Self { metadata: metadata.into(), spec, status }
    }
}

impl From<Pod> for PodForm {
    fn from(Pod { metadata, spec, status }: Pod) -> Self {
        Self { metadata: metadata.into(), spec: spec.map(PodSpecForm::from), status: status.map(PodStatusForm::from) }
    }
}

impl From<PodSpec> for PodSpecForm {
    fn from(spec: PodSpec) -> Self {
        Self { has_gate: is_ours_among(spec.scheduling_gates.as_deref()) }
    }
}

impl From<PodSpecForm> for PodSpec {
    fn from(form: PodSpecForm) -> Self {
        let ours = || vec![PodSchedulingGate { name: POD_GATE.to_owned() }];
        Self { scheduling_gates: form.has_gate.then(ours), ..Self::default() }
    }
}

impl From<PodStatus> for PodStatusForm {
    fn from(status: PodStatus) -> Self {
        let containers =
            |containers: Option<Vec<ContainerStatus>>| Some(containers?.into_iter().map(Into::into).collect());
        Self {
            phase: status.phase,
            reason: status.reason,
            message: status.message,
            conditions: status.conditions,
            init_container_statuses: containers(status.init_container_statuses),
            container_statuses: containers(status.container_statuses),
        }
    }
}

impl From<ContainerStatus> for ContainerForm {
    fn from(ContainerStatus { name, state, .. }: ContainerStatus) -> Self {
        Self { name, state }
    }
}

impl From<ObjectMeta> for MetadataForm {
    fn from(metadata: ObjectMeta) -> Self {
        let ObjectMeta { name, namespace, uid, resource_version, creation_timestamp, deletion_timestamp, .. } =
            metadata;
        let ObjectMeta { labels, annotations, .. } = metadata;
        Self { name, namespace, uid, resource_version, creation_timestamp, deletion_timestamp, labels, annotations }
    }
}

impl From<PodForm> for Pod {
    fn from(PodForm { metadata, spec, status }: PodForm) -> Self {
        Self { metadata: metadata.into(), spec: spec.map(PodSpec::from), status: status.map(PodStatus::from) }
    }
}

impl From<PodStatusForm> for PodStatus {
    fn from(form: PodStatusForm) -> Self {
        let PodStatusForm { phase, reason, message, conditions, init_container_statuses, container_statuses } = form;
        let containers = |forms: Option<Vec<ContainerForm>>| Some(forms?.into_iter().map(Into::into).collect());
        Self {
            phase,
            reason,
            message,
            conditions,
            init_container_statuses: containers(init_container_statuses),
            container_statuses: containers(container_statuses),
            ..Default::default()
        }
    }
}

impl From<ContainerForm> for ContainerStatus {
    fn from(ContainerForm { name, state }: ContainerForm) -> Self {
        Self { name, state, ..Default::default() }
    }
}

impl From<MetadataForm> for ObjectMeta {
    fn from(form: MetadataForm) -> Self {
        let MetadataForm {
            name,
            namespace,
            uid,
            resource_version,
            creation_timestamp,
            deletion_timestamp,
            labels,
            annotations,
        } = form;
        Self {
            name,
            namespace,
            uid,
            resource_version,
            creation_timestamp,
            deletion_timestamp,
            labels,
            annotations,
            ..Default::default()
        }
    }
}

/// The same resource as the whole one.
impl<K: Trim> Resource for Trimmed<K> {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group(_: &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version(_: &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural(_: &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;
    use crate::job::manifest::build;
    use crate::job::samples::{call, defaults, spec};
    use crate::job::{ObservedJob, POD_GATE};

    fn job(status: &Value, ttl: Option<i32>, deletion_timestamp: Option<Time>) -> Job {
        let mut job = build(&call(spec()), 2, &defaults()).job;
        job.status = serde_json::from_value(status.clone()).expect("a status");
        job.spec.get_or_insert_default().ttl_seconds_after_finished = ttl;
        job.metadata.deletion_timestamp = deletion_timestamp;
        job
    }

    fn pod(state: &Value, gates: &[&str]) -> Pod {
        let gates: Vec<_> = gates.iter().map(|name| json!({"name": name})).collect();
        let container = json!({"name": "sip-caller", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": state});
        let condition =
            json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node"});
        serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "u", "creationTimestamp": "2026-06-01T10:00:00Z", "labels": {"app": "x"}},
            "spec": {"containers": [{"name": "sip-caller"}], "schedulingGates": gates},
            "status": {"phase": "Running", "conditions": [condition], "containerStatuses": [container]},
        }))
        .expect("a pod")
    }

    fn trimmed<K: Trim + serde::Serialize>(whole: &K) -> K {
        let text = serde_json::to_string(whole).expect("it is JSON");
        serde_json::from_str::<Trimmed<K>>(&text).expect("it is read").0
    }

    #[test]
    fn what_is_read_of_trimmed_resources_is_what_is_read_of_the_whole() {
        let statuses = [
            json!(null),
            json!({"active": 1, "ready": 1, "startTime": "2026-06-01T10:00:00Z"}),
            json!({"failed": 1, "conditions": [{"type": "Failed", "status": "True", "lastTransitionTime": "2026-06-01T10:00:00Z"}]}),
        ];
        let states = [
            json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}),
            json!({"running": {"startedAt": "2026-06-01T10:00:00Z"}}),
            json!({"terminated": {"exitCode": 1, "message": "end", "reason": "OOMKilled", "finishedAt": "2026-06-01T10:01:00Z"}}),
        ];
        let deleted_at = Some(Time("2026-06-01T09:00:00Z".parse::<Timestamp>().expect("RFC 3339")));
        for (status, state) in statuses.iter().flat_map(|status| states.iter().map(move |state| (status, state))) {
            let gates: [&[&str]; 3] = [&[], &["another's"], &[POD_GATE, "another's"]];
            for ((ttl, deleted_at), gates) in
                [(None, None), (Some(60), None), (None, deleted_at.clone())].into_iter().zip(gates)
            {
                let (job, pod) = (job(status, ttl, deleted_at), pod(state, gates));
                let seen = ObservedJob::of(&job, [&pod]);
                assert!(seen.is_some());
                assert_eq!(ObservedJob::of(&trimmed(&job), [&trimmed(&pod)]), seen, "{status} {state}");
            }
        }
    }
}
