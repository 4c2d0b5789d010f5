//! What a Job and its pods say of an attempt: one state, from everything that is known. Pure; keeps only what a decision needs,
//! since ten thousand Jobs are sixty megabytes of JSON.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodSpec};
use serde::{Deserialize, Serialize};

use super::manifest::CONTAINER;
use super::{ANNOTATION_ATTEMPT, ANNOTATION_FINGERPRINT, ANNOTATION_ID, LABEL_SETTLED, POD_GATE, ending};
use crate::call::{CallId, Fingerprint, PodRef};

/// Longest termination message that is kept, in bytes: what the kubelet itself allows a container.
pub const MAX_MESSAGE_BYTES: usize = 4096;

/// An attempt as a runner has it.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedJob {
    /// The Job's name.
    pub name: String,
    /// The id of the call that it places.
    pub id: CallId,
    /// The attempt, from 1.
    pub attempt: u32,
    /// Fingerprint of the call's request.
    pub fingerprint: Fingerprint,
    /// Where the attempt stands.
    pub state: Observed,
    /// Whether the outcome was recorded before: a settled Job only waits for its removal.
    pub settled: bool,
}

/// Where an attempt stands, as far as its runner says.
#[derive(Debug, Clone, PartialEq)]
pub enum Observed {
    /// Its Job is there, its container does not run yet.
    Waiting {
        /// What it waits for, where the cluster says so: no node, no image.
        reason: Option<String>,
        /// How its pods stand at their gate.
        gate: Gate,
    },
    /// Its container runs.
    Running {
        /// Since when.
        started_at: Timestamp,
    },
    /// It ended by itself.
    Ended(Ending),
    /// There is no such Job: it was removed before it ended, or never made.
    Gone,
}

/// How the pods of an attempt stand at the gate that one of them may pass; nobody is there where pods have none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gate {
    /// The oldest pod that waits before it.
    pub waits: Option<PodRef>,
    /// Those that have passed it.
    pub passed: Passed,
}

/// What became of the pods that have passed the gate, or had none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Passed {
    /// There are none.
    #[default]
    Nobody,
    /// One is to run, or the Job is about to say what its end means.
    Lives,
    /// All were disrupted or replaced; and whether a container ran.
    Over(Ran),
}

/// How an attempt ended: what the Job and the last of its pods say.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// Whether it is a success (exit code 0).
    pub succeeded: bool,
    /// Whether the caller's container ran at all.
    pub ran: Ran,
    /// Whether its pods had a gate, so that none ran but the chosen one.
    pub has_gate: bool,
    /// The caller's exit code; absent when no container ran to its end.
    pub exit_code: Option<i32>,
    /// The termination message: the end of the caller's log.
    pub message: Option<String>,
    /// Why, where the exit code alone does not say, such as `DeadlineExceeded` or `Evicted`, in the cluster's words.
    pub reason: Option<String>,
    /// When the container began to run; absent when it never did.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Timestamp,
}

/// Whether a caller's container ran.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ran {
    /// It did, and its end is known.
    Yes,
    /// It surely did not: nobody was called.
    No,
    /// It may have, and its end is lost.
    #[default]
    Unknown,
}

impl ObservedJob {
    /// What a Job and its pods say; `None` when it is not one that [`super::manifest`] made: an annotation is missing or invalid, or
    /// the name is not the one that its call and attempt have (a copy made by hand).
    pub fn of<'a>(job: &Job, pods: impl IntoIterator<Item = &'a Pod>) -> Option<Self> {
        let name = job.metadata.name.clone()?;
        let annotation = |key: &str| job.metadata.annotations.as_ref()?.get(key);
        let id = CallId::parse(annotation(ANNOTATION_ID)?.as_str()).ok()?;
        let attempt = annotation(ANNOTATION_ATTEMPT)?.parse().ok().filter(|attempt| *attempt >= 1)?;
        let fingerprint = annotation(ANNOTATION_FINGERPRINT).filter(|text| !text.is_empty())?;
        if id.name().job(attempt) != name {
            return None;
        }
        let pods: Vec<&Pod> = pods.into_iter().collect();
        Some(Self {
            name,
            id,
            attempt,
            fingerprint: Fingerprint::from_annotation(fingerprint),
            state: Observed::of(job, &pods),
            settled: is_settled(job),
        })
    }

    /// Whether it ended by itself.
    pub fn has_ended(&self) -> bool {
        self.ending().is_some()
    }

    /// How it ended, if it has.
    pub fn ending(&self) -> Option<&Ending> {
        match &self.state {
            Observed::Ended(ending) => Some(ending),
            _ => None,
        }
    }
}

fn is_settled(job: &Job) -> bool {
    let has_ttl = job.spec.as_ref().is_some_and(|spec| spec.ttl_seconds_after_finished.is_some());
    has_ttl || job.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(LABEL_SETTLED))
}

impl Observed {
    /// Where an attempt stands. Its pods say so first: the Job's status follows theirs a second later.
    pub fn of(job: &Job, pods: &[&Pod]) -> Self {
        // What waits before its gate says nothing of the attempt.
        let (gated, pods): (Vec<&Pod>, Vec<&Pod>) =
            pods.iter().copied().partition(|pod| pod.spec.as_ref().is_some_and(is_gated));
        if end(job).is_some() || pods.iter().any(|pod| ends_the_attempt(job, pod)) {
            return Self::Ended(Ending::of(job, &pods));
        }
        match pods.iter().filter_map(|pod| running_since(pod)).min() {
            Some(started_at) => Self::Running { started_at },
            None => Self::Waiting { reason: ending::waiting_for(&pods), gate: Gate::of(job, &gated, &pods) },
        }
    }

    /// A Job of which no more is known than that it is there.
    pub fn waiting() -> Self {
        Self::Waiting { reason: None, gate: Gate::default() }
    }
}

impl Gate {
    fn of(job: &Job, gated: &[&Pod], passed: &[&Pod]) -> Self {
        let is_wanted = |pod: &&&Pod| pod.metadata.deletion_timestamp.is_none();
        let waits = gated.iter().filter(is_wanted).min_by_key(|pod| ending::age(pod));
        // What a pod's end means that was not disrupted, the Job says; and of one that goes with its Job, nothing.
        let is_replaced = !is_being_deleted(job) && (waits.is_some() || passed.iter().all(|pod| is_disrupted(pod)));
        let passed = match passed {
            [] => Passed::Nobody,
            pods if is_replaced && pods.iter().all(|pod| is_over(pod)) => Passed::Over(ending::ran(job, pods)),
            _ => Passed::Lives,
        };
        Self { waits: waits.and_then(|pod| reference(pod)), passed }
    }
}

fn reference(pod: &Pod) -> Option<PodRef> {
    Some(PodRef { name: pod.metadata.name.clone()?, uid: pod.metadata.uid.clone()? })
}

/// Whether a pod waits to be chosen. Gates of others do not count.
pub(super) fn is_gated(pod: &PodSpec) -> bool {
    pod.scheduling_gates.iter().flatten().any(|gate| gate.name == POD_GATE)
}

/// Whether no container of a pod runs any more, nor ever will.
fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed")) || terminated(pod).is_some()
}

/// Whether the Job has ended, and as a success; with the condition that says so. `FailureTarget` and `SuccessCriteriaMet` do not
/// end it yet: its pod may still be talking. One that fails while it is being deleted (with its pods first,
/// `--cascade=foreground`) fails by that, and has no end of its own: it will be gone.
pub(super) fn end(job: &Job) -> Option<(bool, &JobCondition)> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    conditions.iter().filter(|condition| condition.status == "True").find_map(|condition| {
        match condition.type_.as_str() {
            "Complete" => Some((true, condition)),
            "Failed" if !failed_by_deletion(job, condition) => Some((false, condition)),
            _ => None,
        }
    })
}

fn failed_by_deletion(job: &Job, failed: &JobCondition) -> bool {
    failed.last_transition_time.as_ref().map_or(is_being_deleted(job), |at| is_deleted_by(job, at.0))
}

fn is_being_deleted(job: &Job) -> bool {
    job.metadata.deletion_timestamp.is_some()
}

/// Whether the Job was being deleted at that moment; Kubernetes cuts both times to whole seconds.
fn is_deleted_by(job: &Job, moment: Timestamp) -> bool {
    job.metadata.deletion_timestamp.as_ref().is_some_and(|deleted_at| moment >= deleted_at.0)
}

/// Whether a pod's end is the attempt's, though the Job does not say so yet: the caller succeeded, or it failed by itself and
/// nothing would make another pod.
fn ends_the_attempt(job: &Job, pod: &Pod) -> bool {
    let Some(end) = terminated(pod) else { return false };
    if end.exit_code == 0 {
        return true;
    }
    let is_last_pod = job.spec.as_ref().is_none_or(|spec| spec.backoff_limit == Some(0));
    let ended_by_deletion = match end.finished_at.as_ref() {
        Some(at) => is_deleted_by(job, at.0),
        None => is_being_deleted(job),
    };
    is_last_pod && !ended_by_deletion && !is_disrupted(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// A pod that was drained, preempted or evicted does not end the attempt: the Job makes another one.
fn is_disrupted(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True")
}

/// The caller's container, once the kubelet has told of it.
pub(super) fn caller(pod: &Pod) -> Option<&ContainerStatus> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|container| container.name == CONTAINER)
}

pub(super) fn terminated(pod: &Pod) -> Option<&k8s_openapi::api::core::v1::ContainerStateTerminated> {
    caller(pod)?.state.as_ref()?.terminated.as_ref()
}

pub(super) fn running_since(pod: &Pod) -> Option<Timestamp> {
    let running = caller(pod)?.state.as_ref()?.running.as_ref()?;
    Some(running.started_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

#[cfg(test)]
mod tests;
