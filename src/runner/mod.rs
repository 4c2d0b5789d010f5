//! Where Jobs run. The core owns the trait; [`kubernetes`] and [`local`] implement it. Level-triggered: what a runner
//! *has* counts; an event only says when to check.

#![warn(missing_docs)]

pub mod kubernetes;
pub mod local;

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::call::PodRef;
use crate::job::{JobOrder, ObservedJob};

/// As much as is read of the log of a caller, in bytes: ten times what a call usually writes.
pub const MAX_LOG_BYTES: u32 = 64 << 10;

/// Runs Jobs: a namespace of a cluster, or this machine.
#[async_trait]
pub trait Runner: Send + Sync + 'static {
    /// Where this runner runs Jobs; known since it was created.
    fn info(&self) -> &RunnerInfo;

    /// Checks that the cluster or machine can be used; the text names server and version.
    ///
    /// # Errors
    /// [`RunnerError`] when it does not answer, or refuses what the operator needs.
    async fn check(&self) -> Result<String, RunnerError>;

    /// Starts a Job. Idempotent by name: a Job of that name with the same fingerprint is success.
    ///
    /// # Errors
    /// [`StartError`], which says whether a retry can help.
    async fn start(&self, order: &JobOrder) -> Result<(), StartError>;

    /// Lifts the gate ([`crate::job::POD_GATE`]) that a pod waits before. Idempotent; a pod that is gone, or has no gate, is success.
    ///
    /// # Errors
    /// [`RunnerError`] when the runner does not answer.
    async fn lift_gate(&self, pod: &PodRef) -> Result<(), RunnerError>;

    /// The Job of that name as it is now, with how it ended if it has.
    ///
    /// # Errors
    /// [`RunnerError`] when the runner does not answer.
    async fn find(&self, job: &str) -> Result<Option<ObservedJob>, RunnerError>;

    /// The end of the log of a Job's caller, at most [`MAX_LOG_BYTES`]; `pod` is the one that was chosen, where one was.
    ///
    /// # Errors
    /// [`RunnerError`] when it is not there, or the runner does not answer.
    async fn log(&self, job: &str, pod: Option<&PodRef>) -> Result<String, RunnerError>;

    /// Releases a Job whose outcome is recorded: it is not observed any more (Kubernetes: sets its TTL and a label).
    /// Idempotent; a Job that is gone is success.
    ///
    /// # Errors
    /// [`RunnerError`] when the runner does not answer.
    async fn release(&self, job: &str) -> Result<(), RunnerError>;

    /// Stops a Job and removes it once its pod has ended. Idempotent; a Job that is gone is success.
    ///
    /// # Errors
    /// [`RunnerError`] when the runner does not answer.
    async fn stop(&self, job: &str) -> Result<(), RunnerError>;

    /// The Jobs that are not settled, then every change; never ends. Begins with a full list, and sends a full list
    /// again whenever changes may have been missed. Errors are logged and retried inside.
    fn observe(&self) -> BoxStream<'static, Observation>;
}

/// Where a runner runs Jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerInfo {
    /// `kubernetes` or `local`.
    pub kind: &'static str,
    /// The default of `CLUSTER_NAME`: an identity that no other cluster or machine has.
    pub cluster: String,
    /// Namespace of the Jobs.
    pub namespace: String,
    /// Whether a pod that has a gate waits at it.
    pub has_gates: bool,
    /// For people: the API server's address and the context, or the state directory.
    pub address: String,
}

/// What a runner reports.
#[derive(Debug, Clone, PartialEq)]
pub enum Observation {
    /// Everything there is; what is not in it is gone.
    All(Vec<ObservedJob>),
    /// A Job is there, or changed.
    Changed(ObservedJob),
    /// A Job was removed; this is the last that was known of it.
    Removed(ObservedJob),
}

/// The cluster or machine does not answer, or not as it should.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct RunnerError {
    /// In the server's own words.
    pub message: String,
    /// How long it asked to wait (`Retry-After`).
    pub retry_after: Option<Duration>,
}

/// Why a Job was not started.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StartError {
    /// A retry may help: no answer, too busy, quota, missing rights, missing namespace.
    #[error(transparent)]
    Later(RunnerError),
    /// No retry will help: the Job is not accepted as it is; in the server's own words.
    #[error("{0}")]
    Refused(String),
    /// A Job of that name exists and does not belong to this call.
    #[error("a Job named {0} exists and belongs to another request")]
    Conflict(String),
}
