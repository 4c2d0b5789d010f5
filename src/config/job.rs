//! The settings that all Jobs share, and the [`JobDefaults`] made from them. Reads two files: the Job template, and the
//! namespace of the pod's service account.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;

use super::BadSetting;
use super::values::{command, namespace_name, not_empty, secret_name, selector, template_file, truth, whole};
use crate::job::JobDefaults;
use crate::job::manifest::parse_template;

/// Where a pod finds the namespace of its service account.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
/// The namespace when nothing names one.
const DEFAULT_NAMESPACE: &str = "sipstuff";

/// As process 1 of a container, the caller ignores SIGTERM (Python does) and hangs up on SIGINT. Its image certainly
/// has Python.
const HANG_UP: &str = "python3 -c 'import os,signal;os.kill(1,signal.SIGINT)'";

/// What every Job has in common.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Jobs")]
pub struct JobArgs {
    /// Namespace of the Jobs; defaults to the service account's, or sipstuff
    #[arg(long, env = "JOB_NAMESPACE", global = true, value_parser = namespace_name)]
    pub job_namespace: Option<String>,
    /// Image of the caller
    #[arg(long, env = "JOB_IMAGE", default_value = "xomoxcc/somestuff:latest", global = true, value_parser = not_empty)]
    pub job_image: String,
    /// Secret with SIP_SERVER, SIP_USER, SIP_PASSWORD and so on, used for what a request does not set
    #[arg(long, env = "SIP_SECRET_NAME", default_value = "sip-credentials", global = true, value_parser = secret_name)]
    pub sip_secret_name: String,
    /// Seconds to keep a finished Job after its outcome is recorded
    #[arg(long, env = "JOB_TTL_SECONDS", default_value_t = 3600, global = true, value_parser = whole(0_i32..=i32::MAX))]
    pub job_ttl_seconds: i32,
    /// How many times Kubernetes replaces a failed pod within one attempt
    #[arg(long, env = "JOB_BACKOFF_LIMIT", default_value_t = 0, global = true, value_parser = whole(0_i32..=i32::MAX))]
    pub job_backoff_limit: i32,
    /// Whether pods use the host network, which SIP behind NAT often needs
    #[arg(long, env = "JOB_HOST_NETWORK", default_value = "true", global = true, value_parser = truth, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub job_host_network: bool,
    /// Seconds from an attempt's claim until its container must run; after that its Job is removed and the call is
    /// tried again later
    #[arg(long, env = "JOB_START_SECONDS", default_value_t = 600, global = true, value_parser = whole(1_u32..=86_400))]
    pub job_start_seconds: u32,
    /// Seconds added to the longest possible conversation; the sum is the pod's deadline
    #[arg(long, env = "JOB_DEADLINE_MARGIN_SECONDS", default_value_t = 600, global = true, value_parser = whole(0_u32..=86_400))]
    pub job_deadline_margin_seconds: u32,
    /// Command that makes the caller hang up, run in its container before the container is stopped (split into words as
    /// a shell does); `none` to run nothing
    #[arg(long, env = "JOB_HANG_UP_COMMAND", default_value = HANG_UP, global = true, value_parser = command, value_name = "COMMAND")]
    pub job_hang_up_command: HangUp,
    /// Whether a pod waits until it is chosen, so that one pod of an attempt dials and no other (Kubernetes 1.27 or
    /// later); without effect where `JOB_BACKOFF_LIMIT` is above 0
    #[arg(long, env = "JOB_POD_GATE", default_value = "true", global = true, value_parser = truth, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub job_pod_gate: bool,
    /// YAML or JSON file with a partial Job, merged over every Job (resources, tolerations, pull secrets …)
    #[arg(long, env = "JOB_TEMPLATE_FILE", global = true, value_parser = template_file, value_name = "FILE")]
    pub job_template_file: Option<PathBuf>,
    /// Host directory with text-to-speech models
    #[arg(long, env = "PIPER_DATA_DIR", global = true, value_name = "DIR")]
    pub piper_data_dir: Option<String>,
    /// Host directory with speech-to-text models
    #[arg(long, env = "WHISPER_DATA_DIR", global = true, value_name = "DIR")]
    pub whisper_data_dir: Option<String>,
    /// Host directory for recordings
    #[arg(long, env = "RECORDING_DIR", global = true, value_name = "DIR")]
    pub recording_dir: Option<String>,
    /// User id of the caller's process
    #[arg(long, env = "RUN_AS_USER", global = true, value_parser = whole(0..=i64::from(u32::MAX)))]
    pub run_as_user: Option<i64>,
    /// Group id of the caller's process
    #[arg(long, env = "RUN_AS_GROUP", global = true, value_parser = whole(0..=i64::from(u32::MAX)))]
    pub run_as_group: Option<i64>,
    /// Group id of the volumes
    #[arg(long, env = "FS_GROUP", global = true, value_parser = whole(0..=i64::from(u32::MAX)))]
    pub fs_group: Option<i64>,
    /// Labels of the nodes that may run Jobs, `key=value,key2=value2`; a request's `node_selector` replaces it
    #[arg(long, env = "NODE_SELECTOR", global = true, value_parser = selector, value_name = "K=V,…")]
    pub default_node_selector: Option<Selector>,
}

/// A command, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HangUp(pub Option<Vec<String>>);

/// `nodeSelector` of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector(pub BTreeMap<String, String>);

impl JobArgs {
    /// The form that the Job builder works with.
    ///
    /// # Errors
    /// [`BadSetting`]: the template file cannot be read or is not a partial Job; the text names the variable and the
    /// file.
    pub fn defaults(&self) -> Result<JobDefaults, BadSetting> {
        let Self {
            job_namespace,
            job_image,
            sip_secret_name,
            job_ttl_seconds,
            job_backoff_limit,
            job_host_network,
            job_start_seconds,
            job_deadline_margin_seconds,
            job_hang_up_command,
            job_pod_gate,
            job_template_file,
            piper_data_dir,
            whisper_data_dir,
            recording_dir,
            run_as_user,
            run_as_group,
            fs_group,
            default_node_selector,
        } = self.clone();
        let template = job_template_file.map(|path| {
            let named = |error: String| BadSetting(format!("JOB_TEMPLATE_FILE {}: {error}", path.display()));
            let text = std::fs::read_to_string(&path).map_err(|error| named(error.to_string()))?;
            parse_template(&text).map_err(named)
        });
        Ok(JobDefaults {
            namespace: job_namespace.unwrap_or_else(own_namespace),
            image: job_image,
            sip_secret_name,
            ttl_seconds: job_ttl_seconds,
            backoff_limit: job_backoff_limit,
            host_network: job_host_network,
            piper_data_dir,
            whisper_data_dir,
            recording_dir,
            run_as_user,
            run_as_group,
            fs_group,
            node_selector: default_node_selector.unwrap_or_default().0,
            start_seconds: job_start_seconds,
            deadline_margin: job_deadline_margin_seconds,
            hang_up: job_hang_up_command.0,
            // With retries of its own, Kubernetes is asked for more than one pod.
            pod_gate: job_pod_gate && job_backoff_limit == 0,
            template: template.transpose()?,
        })
    }
}

fn own_namespace() -> String {
    let text = std::fs::read_to_string(NAMESPACE_FILE).unwrap_or_default();
    let name = text.trim();
    if name.is_empty() { DEFAULT_NAMESPACE.to_owned() } else { name.to_owned() }
}
