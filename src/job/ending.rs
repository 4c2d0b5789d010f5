//! How an attempt ended, or what it waits for, from its Job and its pods. Everything may be missing: pods are evicted,
//! collected, or never started.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod};

use super::manifest::CONTAINER;
use super::observed::{Ending, MAX_MESSAGE_BYTES, Ran, caller, end, is_gated, running_since, terminated};

impl Ending {
    /// How a finished attempt ended, by the Job's conditions and the last of its pods that came to an end. For one that is not
    /// finished it says how things stand, as a failure.
    pub fn of(job: &Job, pods: &[&Pod]) -> Self {
        let pod = last(pods);
        let caller = pod.and_then(terminated);
        let succeeded = match end(job) {
            Some((succeeded, _)) => succeeded,
            None => caller.is_some_and(|end| end.exit_code == 0),
        };
        let ran = if succeeded { Ran::Yes } else { ran(job, pods) };
        Self {
            succeeded,
            ran,
            has_gate: has_gate(job),
            exit_code: caller.filter(|end| !is_lost(end)).map(|end| end.exit_code),
            message: caller.and_then(|end| end.message.as_deref()).filter(|text| !text.is_empty()).map(the_end_of),
            reason: if succeeded { None } else { reason(job, pod) },
            started_at: caller.filter(|_| ran != Ran::No).and_then(|end| Some(end.started_at.as_ref()?.0)),
            completed_at: caller.and_then(|end| Some(end.finished_at.as_ref()?.0)).unwrap_or_else(|| job_end(job)),
        }
    }
}

fn has_gate(job: &Job) -> bool {
    let spec = job.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    spec.is_some_and(is_gated)
}

/// Whether the caller's container ran, in any of the pods. A pod that is not there any more may have been there: the Job has
/// counted it.
pub(super) fn ran(job: &Job, pods: &[&Pod]) -> Ran {
    let counted = job.status.as_ref().and_then(|status| status.failed).unwrap_or(0);
    let seen: Vec<Ran> = pods.iter().map(|pod| pod_ran(pod)).collect();
    if seen.contains(&Ran::Yes) {
        Ran::Yes
    } else if seen.contains(&Ran::Unknown) || usize::try_from(counted).unwrap_or(0) > pods.len() {
        Ran::Unknown
    } else {
        Ran::No
    }
}

/// Whether a pod's caller runs or has run, as far as is known.
pub fn has_run(pod: &Pod) -> bool {
    pod_ran(pod) != Ran::No
}

fn pod_ran(pod: &Pod) -> Ran {
    match terminated(pod) {
        Some(end) if is_lost(end) => Ran::Unknown,
        Some(end) if never_began(end) => Ran::No,
        Some(_) => Ran::Yes,
        None if running_since(pod).is_some() || is_orphan(pod) => Ran::Unknown,
        None => Ran::No,
    }
}

/// Whether a pod was given up with its node, which may run it still.
fn is_orphan(pod: &Pod) -> bool {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|condition| {
        condition.type_ == "DisruptionTarget" && condition.reason.as_deref() == Some("DeletionByPodGC")
    })
}

/// What the kubelet writes for a container whose end it did not see.
fn is_lost(end: &ContainerStateTerminated) -> bool {
    end.reason.as_deref() == Some("ContainerStatusUnknown")
}

/// What the kubelet writes for a container that the runtime could not start.
fn never_began(end: &ContainerStateTerminated) -> bool {
    matches!(end.reason.as_deref(), Some("StartError" | "ContainerCannotRun"))
}

/// The pod that ended last; of pods that never ended, the youngest. The order of the pods does not matter: times are whole seconds,
/// so the name decides between two of the same.
fn last<'a>(pods: &[&'a Pod]) -> Option<&'a Pod> {
    pods.iter().copied().max_by_key(|pod| {
        let ended = terminated(pod).and_then(|end| Some(end.finished_at.as_ref()?.0));
        (terminated(pod).is_some(), ended, age(pod))
    })
}

/// The youngest pod that has not ended; if all have, the youngest.
fn youngest<'a>(pods: &[&'a Pod]) -> Option<&'a Pod> {
    pods.iter().copied().max_by_key(|pod| (terminated(pod).is_none(), age(pod)))
}

/// Orders pods: the younger is the greater.
pub(super) fn age(pod: &Pod) -> (Option<Timestamp>, Option<&str>) {
    (pod.metadata.creation_timestamp.as_ref().map(|time| time.0), pod.metadata.name.as_deref())
}

/// Without a clock and without a pod: the Job's own end, or the latest moment that it knows of.
fn job_end(job: &Job) -> Timestamp {
    let status = job.status.as_ref();
    let transition = end(job).and_then(|(_, condition)| condition.last_transition_time.as_ref());
    status
        .and_then(|status| status.completion_time.as_ref())
        .or(transition)
        .or_else(|| status?.start_time.as_ref())
        .or(job.metadata.creation_timestamp.as_ref())
        .map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

/// What the Job says, and then what its pod adds: the Job's `BackoffLimitExceeded` alone helps nobody whose image has a
/// typing error.
fn reason(job: &Job, pod: Option<&Pod>) -> Option<String> {
    let job = end(job).and_then(|(_, end)| sentence(end.reason.as_deref(), end.message.as_deref()));
    let parts: Vec<_> = job.into_iter().chain(pod.into_iter().flat_map(pod_reasons)).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// What the youngest pod waits for, where the cluster says so.
pub(super) fn waiting_for(pods: &[&Pod]) -> Option<String> {
    let pod = youngest(pods)?;
    let reasons: Vec<_> = unscheduled(pod).into_iter().chain(pod_reasons(pod)).collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

fn unscheduled(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let refused =
        conditions.iter().find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
    sentence(refused.reason.as_deref(), refused.message.as_deref())
}

fn pod_reasons(pod: &Pod) -> Vec<String> {
    let status = pod.status.as_ref();
    let evicted = status.and_then(|status| sentence(Some(status.reason.as_deref()?), status.message.as_deref()));
    evicted.into_iter().chain(containers(pod).filter_map(container_reason)).collect()
}

/// Why a container did not do its work; `None` when its exit code says it all.
fn container_reason(container: &ContainerStatus) -> Option<String> {
    let ContainerState { terminated, waiting, .. } = container.state.as_ref()?;
    let name = &container.name;
    if let Some(end) = terminated.as_ref().filter(|end| end.exit_code != 0) {
        let killed = end.reason.as_deref().filter(|reason| !matches!(*reason, "Error" | "Completed"));
        if name == CONTAINER {
            return Some(format!("container {name}: {}", killed?));
        }
        let said = sentence(killed, end.message.as_deref().map(str::trim)).map(|text| format!(": {text}"));
        return Some(format!("container {name} ended with exit code {}{}", end.exit_code, said.unwrap_or_default()));
    }
    let waiting = waiting.as_ref()?;
    let waits_for = waiting.reason.as_deref().filter(|reason| !is_on_its_way(reason))?;
    Some(format!("container {name}: {}", sentence(Some(waits_for), waiting.message.as_deref())?))
}

/// A container that only waits for its turn.
fn is_on_its_way(reason: &str) -> bool {
    matches!(reason, "ContainerCreating" | "PodInitializing")
}

/// Init containers first, as they run.
fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let init = pod.status.iter().flat_map(|status| status.init_container_statuses.iter().flatten());
    init.chain(caller(pod))
}

fn sentence(reason: Option<&str>, message: Option<&str>) -> Option<String> {
    let parts: Vec<_> = [reason, message].into_iter().flatten().filter(|part| !part.is_empty()).collect();
    (!parts.is_empty()).then(|| parts.join(": "))
}

/// The last [`MAX_MESSAGE_BYTES`] of a text: the SIP code stands at the end of the caller's log.
fn the_end_of(text: &str) -> String {
    text[text.ceil_char_boundary(text.len().saturating_sub(MAX_MESSAGE_BYTES))..].to_owned()
}
