//! The pod around the caller: its directories, its user and what it is not allowed to do.

use k8s_openapi::api::core::v1::{
    Container, ExecAction, HostPathVolumeSource, Lifecycle, LifecycleHandler, PodSchedulingGate, PodSecurityContext,
    PodSpec, PodTemplateSpec, SeccompProfile, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{CONTAINER, INIT_CONTAINER, command, env, own_labels};
use crate::call::Call;
use crate::job::{JobDefaults, POD_GATE};

/// Seconds that a caller has to hang up once its pod is to be stopped. The BYE goes out at once; the rest is for its answer and for
/// writing the recording down.
const GRACE_SECONDS: i64 = 10;

/// A directory of the node that the caller keeps something in.
pub(super) struct HostDirectory<'a> {
    pub(super) volume: &'static str,
    pub(super) mount_path: &'static str,
    /// Tells the caller where it is mounted.
    pub(super) variable: &'static str,
    pub(super) path: &'a str,
}

/// The directories that are configured.
pub(super) fn host_directories(defaults: &JobDefaults) -> impl Iterator<Item = HostDirectory<'_>> {
    [
        ("piper-data", "/data/piper", "PIPER_DATA_DIR", &defaults.piper_data_dir),
        ("whisper-data", "/data/whisper", "WHISPER_DATA_DIR", &defaults.whisper_data_dir),
        ("recording-data", "/data/recordings", "RECORDING_DIR", &defaults.recording_dir),
    ]
    .into_iter()
    .filter_map(|(volume, mount_path, variable, path)| {
        Some(HostDirectory { volume, mount_path, variable, path: path.as_deref()? })
    })
}

/// The pod of the Job `job`.
pub(super) fn pod_template(call: &Call, job: &str, defaults: &JobDefaults) -> PodTemplateSpec {
    let spec = &call.spec;
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(own_labels(spec.batch.as_deref())), ..ObjectMeta::default() }),
        spec: Some(PodSpec {
            active_deadline_seconds: Some(super::pod_deadline(spec, defaults).into()),
            // The caller has no business with the Kubernetes API, nor with other services of the namespace.
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            containers: vec![caller(call, job, defaults)],
            host_network: Some(defaults.host_network),
            init_containers: fix_permissions(defaults).map(|container| vec![container]),
            node_selector: Some(spec.node_selector.as_ref().unwrap_or(&defaults.node_selector).clone())
                .filter(|selector| !selector.is_empty()),
            restart_policy: Some("Never".to_owned()),
            scheduling_gates: defaults.pod_gate.then(|| vec![PodSchedulingGate { name: POD_GATE.to_owned() }]),
            security_context: Some(pod_security(defaults)),
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            volumes: unless_empty(host_directories(defaults).map(|directory| volume(&directory)).collect()),
            ..PodSpec::default()
        }),
    }
}

fn caller(call: &Call, job: &str, defaults: &JobDefaults) -> Container {
    Container {
        name: CONTAINER.to_owned(),
        image: Some(defaults.image.clone()),
        image_pull_policy: Some("Always".to_owned()),
        command: Some(command::command_line(&call.spec)),
        env: Some(env::environment(call, job, defaults)),
        lifecycle: hang_up(defaults),
        volume_mounts: unless_empty(mounts(defaults)),
        security_context: Some(no_escalation()),
        // The end of the caller's log names the SIP code: it becomes the termination message, and no log has to be read.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

/// As process 1 of its container, Python ignores SIGTERM, and would go on talking until it is killed, without a BYE; SIGINT makes
/// it hang up at once.
fn hang_up(defaults: &JobDefaults) -> Option<Lifecycle> {
    let command = defaults.hang_up.as_ref()?.iter().map(|word| super::literal(word)).collect();
    let exec = Some(ExecAction { command: Some(command) });
    Some(Lifecycle { pre_stop: Some(LifecycleHandler { exec, ..Default::default() }), ..Default::default() })
}

/// A directory that the kubelet makes belongs to root; a caller that runs as somebody else gets it handed over first.
fn fix_permissions(defaults: &JobDefaults) -> Option<Container> {
    let user = defaults.run_as_user?;
    let paths: Vec<_> = host_directories(defaults).map(|directory| directory.mount_path.to_owned()).collect();
    if paths.is_empty() {
        return None;
    }
    let owner = match defaults.fs_group.or(defaults.run_as_group) {
        Some(group) => format!("{user}:{group}"),
        None => user.to_string(),
    };
    Some(Container {
        name: INIT_CONTAINER.to_owned(),
        image: Some("busybox:latest".to_owned()),
        command: Some(["chown", "-R"].map(str::to_owned).into_iter().chain([owner]).chain(paths).collect()),
        security_context: Some(SecurityContext { run_as_user: Some(0), ..no_escalation() }),
        volume_mounts: unless_empty(mounts(defaults)),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    })
}

fn pod_security(defaults: &JobDefaults) -> PodSecurityContext {
    PodSecurityContext {
        run_as_user: defaults.run_as_user,
        run_as_group: defaults.run_as_group,
        fs_group: defaults.fs_group,
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}

/// Capabilities stay as the runtime gives them: `chown` needs CAP_CHOWN, and a caller that runs as root may need
/// CAP_DAC_OVERRIDE to write into its directories.
fn no_escalation() -> SecurityContext {
    SecurityContext { allow_privilege_escalation: Some(false), ..SecurityContext::default() }
}

fn volume(directory: &HostDirectory<'_>) -> Volume {
    Volume {
        name: directory.volume.to_owned(),
        host_path: Some(HostPathVolumeSource {
            path: directory.path.to_owned(),
            type_: Some("DirectoryOrCreate".to_owned()),
        }),
        ..Volume::default()
    }
}

fn mounts(defaults: &JobDefaults) -> Vec<VolumeMount> {
    host_directories(defaults)
        .map(|directory| VolumeMount {
            name: directory.volume.to_owned(),
            mount_path: directory.mount_path.to_owned(),
            ..VolumeMount::default()
        })
        .collect()
}

fn unless_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}
