//! What a Job and its pod say: the phase, and at the end how it ended. Pure; keeps only what a decision needs, since ten
//! thousand Jobs are sixty megabytes of JSON.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition};

use super::{ANNOTATION_ATTEMPT, ANNOTATION_FINGERPRINT, ANNOTATION_ID};
use crate::call::{CallId, Fingerprint};

/// Longest termination message that is kept, in bytes: what the kubelet itself allows a container.
pub const MAX_MESSAGE_BYTES: usize = 4096;

/// What is worth keeping of a Job that a runner has.
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
    /// Where the Job stands.
    pub phase: Phase,
    /// Whether the outcome was recorded before: a settled Job only waits for its removal.
    pub settled: bool,
}

/// Where a Job stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// Made, its pod does not run yet.
    Waiting,
    /// Its pod runs.
    Running {
        /// Since when.
        started_at: Timestamp,
    },
    /// It ended by itself; the details are in its [`Ending`], which may have to be fetched.
    Finished {
        /// Whether Kubernetes calls it a success.
        succeeded: bool,
    },
}

/// How a Job ended: what the Job and its last pod say.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// Whether the Job is a success (exit code 0).
    pub succeeded: bool,
    /// The caller's exit code; absent when no container ran to its end.
    pub exit_code: Option<i32>,
    /// The termination message: the end of the caller's log.
    pub message: Option<String>,
    /// The Job's own reason, such as `DeadlineExceeded` or `BackoffLimitExceeded`, with its message.
    pub reason: Option<String>,
    /// When the container began to run; absent when it never did.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Timestamp,
}

impl ObservedJob {
    /// What a Job says; `None` when it is not one that [`super::manifest`] made: an annotation is missing or invalid, or the name is not
    /// the one that its call and attempt have (a copy made by hand).
    pub fn of(job: &Job) -> Option<Self> {
        let name = job.metadata.name.clone()?;
        let annotation = |key: &str| job.metadata.annotations.as_ref()?.get(key);
        let id = CallId::parse(annotation(ANNOTATION_ID)?.as_str()).ok()?;
        let attempt = annotation(ANNOTATION_ATTEMPT)?.parse().ok().filter(|attempt| *attempt >= 1)?;
        let fingerprint = annotation(ANNOTATION_FINGERPRINT).filter(|text| !text.is_empty())?;
        if id.name().job(attempt) != name {
            return None;
        }
        Some(Self {
            name,
            id,
            attempt,
            fingerprint: Fingerprint::from_annotation(fingerprint),
            phase: Phase::of(job),
            settled: job.spec.as_ref().is_some_and(|spec| spec.ttl_seconds_after_finished.is_some()),
        })
    }
}

impl Phase {
    /// Where a Job stands, by its status alone. `FailureTarget` and `SuccessCriteriaMet` do not end it yet: its pod may still
    /// be talking.
    pub fn of(job: &Job) -> Self {
        if let Some((succeeded, _)) = end(job) {
            return Self::Finished { succeeded };
        }
        match &job.status {
            Some(status) if status.ready.unwrap_or_default() > 0 => {
                Self::Running { started_at: started_at(job).unwrap_or(Timestamp::UNIX_EPOCH) }
            }
            _ => Self::Waiting,
        }
    }
}

/// Whether the Job succeeded, with the condition that says so; `None` before its end. One that fails while it is being deleted
/// (with its pods first, `--cascade=foreground`) fails by that, and has no end of its own: it will be gone.
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
    let failed_at = failed.last_transition_time.as_ref();
    job.metadata.deletion_timestamp.as_ref().is_some_and(|deleted_at| failed_at.is_none_or(|at| at.0 >= deleted_at.0))
}

/// When the Job controller took the Job up; the nearest that a Job itself says of its pod's start.
fn started_at(job: &Job) -> Option<Timestamp> {
    let status = job.status.as_ref()?;
    status.start_time.as_ref().or(job.metadata.creation_timestamp.as_ref()).map(|time| time.0)
}

#[cfg(test)]
mod tests;
