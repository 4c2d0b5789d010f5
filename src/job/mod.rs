//! The core's view of a Kubernetes Job: how a call becomes one ([`manifest`]) and what one says of its call ([`observed`]). Pure.

#![warn(missing_docs)]

pub mod advance;
pub mod compare;
mod ending;
pub mod gate;
pub mod manifest;
pub mod observed;
pub mod redial;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod unconfigured;

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::Job;
use secrecy::SecretString;

pub use self::ending::has_run;
pub use self::observed::{Ending, Gate, Observed, ObservedJob, Passed, Ran};

/// Label selector of every Job that is ours.
pub const SELECTOR: &str = "app=sipstuff-operator,component=sip-caller";
/// Label of a Job whose outcome is recorded: what has it is left out of every list and watch.
pub const LABEL_SETTLED: &str = "sipstuff-operator/settled";
/// Label selector of every Job that is ours and not settled.
pub const UNSETTLED: &str = "app=sipstuff-operator,component=sip-caller,!sipstuff-operator/settled";
/// Annotation: the call's id.
pub const ANNOTATION_ID: &str = "sipstuff-operator/call-id";
/// Annotation: the attempt, from 1.
pub const ANNOTATION_ATTEMPT: &str = "sipstuff-operator/attempt";
/// Annotation: the fingerprint of the request.
pub const ANNOTATION_FINGERPRINT: &str = "sipstuff-operator/fingerprint";
/// The scheduling gate that keeps a pod of an attempt from running before it is chosen.
pub const POD_GATE: &str = "sipstuff-operator/chosen";
/// Label: the batch, where the request names one.
pub const LABEL_BATCH: &str = "sipstuff-operator/batch";

/// What every Job has in common: the operator's configuration.
#[derive(Debug, Clone)]
pub struct JobDefaults {
    /// `JOB_NAMESPACE`.
    pub namespace: String,
    /// `JOB_IMAGE`.
    pub image: String,
    /// `SIP_SECRET_NAME`.
    pub sip_secret_name: String,
    /// `JOB_TTL_SECONDS`: how long a settled Job is kept.
    pub ttl_seconds: i32,
    /// `JOB_BACKOFF_LIMIT`.
    pub backoff_limit: i32,
    /// `JOB_HOST_NETWORK`.
    pub host_network: bool,
    /// `PIPER_DATA_DIR`: host directory.
    pub piper_data_dir: Option<String>,
    /// `WHISPER_DATA_DIR`: host directory.
    pub whisper_data_dir: Option<String>,
    /// `RECORDING_DIR`: host directory.
    pub recording_dir: Option<String>,
    /// `RUN_AS_USER`.
    pub run_as_user: Option<i64>,
    /// `RUN_AS_GROUP`.
    pub run_as_group: Option<i64>,
    /// `FS_GROUP`.
    pub fs_group: Option<i64>,
    /// `NODE_SELECTOR`.
    pub node_selector: BTreeMap<String, String>,
    /// `JOB_START_SECONDS`: how long after its claim an attempt's container may take to run.
    pub start_seconds: u32,
    /// `JOB_DEADLINE_MARGIN_SECONDS`: added to the longest the conversation can last, for image pull, text to speech and
    /// transcription; together they are the pod's `activeDeadlineSeconds`.
    pub deadline_margin: u32,
    /// `JOB_HANG_UP_COMMAND`: run in the container before it is stopped, so that the caller hangs up; `None` for no command.
    pub hang_up: Option<Vec<String>>,
    /// Whether a pod waits until it is chosen: `JOB_POD_GATE`, unless `JOB_BACKOFF_LIMIT` has Kubernetes dial again by itself.
    pub pod_gate: bool,
    /// `JOB_TEMPLATE_FILE`: a partial Job merged over the built one.
    pub template: Option<Job>,
}

impl JobDefaults {
    /// The same for the account in another Secret, on other nodes where they are named.
    #[must_use]
    pub fn on(&self, secret: &str, node_selector: Option<&BTreeMap<String, String>>) -> Self {
        let node_selector = node_selector.unwrap_or(&self.node_selector).clone();
        Self { sip_secret_name: secret.to_owned(), node_selector, ..self.clone() }
    }
}

/// A Job to start, and the passwords of its call, which go into a Secret of the same name.
#[derive(Debug, Clone)]
pub struct JobOrder {
    /// The Job.
    pub job: Job,
    /// Variable → password; empty when the request gave none.
    pub passwords: BTreeMap<String, SecretString>,
}

impl JobOrder {
    /// The Job's name.
    pub fn name(&self) -> &str {
        self.job.metadata.name.as_deref().unwrap_or_default()
    }
}
