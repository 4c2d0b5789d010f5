//! How a Job ended, from the Job and its pods. Everything may be missing: pods are evicted, collected, or never started.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod};

use super::manifest::CONTAINER;
use super::observed::{Ending, MAX_MESSAGE_BYTES, end};

impl Ending {
    /// How a finished Job ended, by its conditions and the last of its pods that came to an end. For a Job that is not
    /// finished it tells how things stand, as a failure.
    pub fn of(job: &Job, pods: &[Pod]) -> Self {
        let condition = end(job);
        let succeeded = condition.is_some_and(|(succeeded, _)| succeeded);
        let pod = last(pods);
        let caller = pod.and_then(caller_end);
        Self {
            succeeded,
            exit_code: caller.map(|end| end.exit_code),
            message: caller.and_then(|end| end.message.as_deref()).filter(|text| !text.is_empty()).map(the_end_of),
            reason: if succeeded { None } else { reason(job, pod) },
            started_at: caller.and_then(|end| Some(end.started_at.as_ref()?.0)),
            completed_at: caller.and_then(|end| Some(end.finished_at.as_ref()?.0)).unwrap_or_else(|| job_end(job)),
        }
    }
}

/// The pod that ended last; of pods that never ended, the youngest.
fn last(pods: &[Pod]) -> Option<&Pod> {
    pods.iter().max_by_key(|pod| {
        let ended = caller_end(pod).and_then(|end| Some(end.finished_at.as_ref()?.0));
        let made = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (caller_end(pod).is_some(), ended, made)
    })
}

fn caller_end(pod: &Pod) -> Option<&ContainerStateTerminated> {
    let caller = containers(pod).find(|container| container.name == CONTAINER)?;
    caller.state.as_ref()?.terminated.as_ref()
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
    pod.status.iter().flat_map(|status| {
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten())
    })
}

fn sentence(reason: Option<&str>, message: Option<&str>) -> Option<String> {
    let parts: Vec<_> = [reason, message].into_iter().flatten().filter(|part| !part.is_empty()).collect();
    (!parts.is_empty()).then(|| parts.join(": "))
}

/// The last [`MAX_MESSAGE_BYTES`] of a text: the SIP code stands at the end of the caller's log.
fn the_end_of(text: &str) -> String {
    text[text.ceil_char_boundary(text.len().saturating_sub(MAX_MESSAGE_BYTES))..].to_owned()
}
