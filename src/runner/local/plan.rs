//! Turns a Job's container into a command on this machine, and resolves what the kubelet would.
//!
//! Only the first container's command, arguments, environment and host directories are used. Image, user, init
//! containers and resources belong to a cluster: the caller is installed on this machine and runs as the operator's
//! user.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, EnvVar, PodSpec, SecretKeySelector};
use secrecy::ExposeSecret;

use super::expand::expand;
use super::folder::Handover;
use super::secrets::Secrets;
use crate::job::JobOrder;
use crate::runner::{RunnerError, StartError};

/// The beginning of every Job's command, which `LOCAL_CALLER` replaces.
const CALLER: [&str; 3] = ["python3", "-m", "sipstuff.cli"];
/// Variables that hold a mount path.
const FOLDER_VARIABLES: [&str; 3] = ["PIPER_DATA_DIR", "WHISPER_DATA_DIR", "RECORDING_DIR"];
/// Flags whose value may be a path below a mount path.
const PATH_FLAGS: [&str; 4] = ["--wav", "--record", "--tts-data-dir", "--stt-data-dir"];
/// Variables that the caller inherits from the operator. An allow list, so that the operator's secrets stay its own and
/// a variable that the Job does not set stays unset.
const INHERITED: [&str; 14] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HF_HOME",
    "HF_HUB_OFFLINE",
];
const INHERITED_PREFIXES: [&str; 7] = ["LC_", "XDG_", "PYTHON", "PULSE_", "ALSA_", "CUDA_", "SIMULATE_"];

/// The command of an order. `caller` replaces [`CALLER`] where the command begins with it.
///
/// # Errors
/// [`StartError::Refused`] for a Job that cannot run here, [`StartError::Later`] when the machine is not ready for it.
pub(super) fn plan(order: &JobOrder, caller: Option<&[String]>, secrets: &Secrets) -> Result<Handover, StartError> {
    let spec = order.job.spec.as_ref().ok_or_else(|| refused("the Job has no spec"))?;
    let pod = spec.template.spec.as_ref().ok_or_else(|| refused("the Job has no pod"))?;
    let container = pod.containers.first().ok_or_else(|| refused("the Job has no container"))?;
    let folders = HostFolders::of(pod, container)?;
    let env = environment(container, order, secrets, &folders)?;
    let (program, args) = command(container, caller, &env, &folders)?;
    let deadline_seconds = pod.active_deadline_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Ok(Handover { program, args, env: inherited().chain(env).collect(), deadline_seconds })
}

fn inherited() -> impl Iterator<Item = (String, String)> {
    let is_inherited =
        |name: &str| INHERITED.contains(&name) || INHERITED_PREFIXES.into_iter().any(|prefix| name.starts_with(prefix));
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(move |(name, _)| is_inherited(name))
}

/// Resolves the variables in order, each with those before it, as the kubelet does.
fn environment(
    container: &Container,
    order: &JobOrder,
    secrets: &Secrets,
    folders: &HostFolders,
) -> Result<HashMap<String, String>, StartError> {
    if container.env_from.as_ref().is_some_and(|sources| !sources.is_empty()) {
        return Err(refused("the local runner does not support `envFrom`; use `env`"));
    }
    let mut known = HashMap::new();
    for variable in container.env.iter().flatten() {
        let Some(mut value) = value_of(variable, &known, order, secrets)? else { continue };
        if FOLDER_VARIABLES.contains(&variable.name.as_str()) {
            value = folders.on_host(&value);
        }
        known.insert(variable.name.clone(), value);
    }
    Ok(known)
}

fn value_of(
    variable: &EnvVar,
    known: &HashMap<String, String>,
    order: &JobOrder,
    secrets: &Secrets,
) -> Result<Option<String>, StartError> {
    let Some(source) = &variable.value_from else {
        return Ok(Some(expand(variable.value.as_deref().unwrap_or_default(), known)));
    };
    let Some(selector) = &source.secret_key_ref else {
        let name = &variable.name;
        return Err(refused(format!(
            "the local runner does not support the source of `{name}`; use `value` or `secretKeyRef`"
        )));
    };
    match secret(selector, order, secrets) {
        None if selector.optional != Some(true) => Err(missing(selector)),
        value => Ok(value),
    }
}

fn secret(selector: &SecretKeySelector, order: &JobOrder, secrets: &Secrets) -> Option<String> {
    if selector.name == order.name() {
        return order.passwords.get(&selector.key).map(|password| password.expose_secret().to_owned());
    }
    secrets.get(&selector.name, &selector.key)
}

fn missing(selector: &SecretKeySelector) -> StartError {
    let SecretKeySelector { name, key, .. } = selector;
    let message = format!("the Job needs `{key}` of the Secret `{name}`, which is not in the secrets file");
    StartError::Later(RunnerError { message, retry_after: None })
}

fn command(
    container: &Container,
    caller: Option<&[String]>,
    known: &HashMap<String, String>,
    folders: &HostFolders,
) -> Result<(String, Vec<String>), StartError> {
    let given: Vec<&String> = container.command.iter().flatten().chain(container.args.iter().flatten()).collect();
    let (own, rest) = match caller {
        Some(own) if given.iter().map(|word| word.as_str()).take(CALLER.len()).eq(CALLER) => {
            (own, &given[CALLER.len()..])
        }
        _ => (&[][..], &given[..]),
    };
    let rest = folders.in_arguments(rest.iter().map(|word| expand(word, known)));
    let mut words = own.iter().cloned().chain(rest);
    if container.command.as_ref().is_none_or(Vec::is_empty) {
        return Err(refused("the Job has no command, and the local runner does not know the one of the image"));
    }
    Ok((words.next().unwrap_or_default(), words.collect()))
}

/// Mount path → host directory.
struct HostFolders(Vec<(String, String)>);

impl HostFolders {
    /// Reads the mounts, and creates the directories (`DirectoryOrCreate`).
    fn of(pod: &PodSpec, container: &Container) -> Result<Self, StartError> {
        let host_path = |volume: &str| {
            let volume = pod.volumes.iter().flatten().find(|candidate| candidate.name == volume)?;
            volume.host_path.as_ref().map(|source| source.path.clone())
        };
        let mut folders = Vec::new();
        for mount in container.volume_mounts.iter().flatten() {
            let Some(host) = host_path(&mount.name) else { continue };
            std::fs::create_dir_all(&host).map_err(|error| {
                let message = format!("cannot create the directory {host}: {error}");
                StartError::Later(RunnerError { message, retry_after: None })
            })?;
            folders.push((mount.mount_path.clone(), host));
        }
        Ok(Self(folders))
    }

    /// The path on this machine; a path outside every mount stays as it is.
    fn on_host(&self, path: &str) -> String {
        let below = |mount: &str| path.strip_prefix(mount).filter(|rest| rest.is_empty() || rest.starts_with('/'));
        self.0
            .iter()
            .find_map(|(mount, host)| Some(format!("{host}{}", below(mount.trim_end_matches('/'))?)))
            .unwrap_or_else(|| path.to_owned())
    }

    fn in_arguments(&self, words: impl Iterator<Item = String>) -> Vec<String> {
        let mut mapped: Vec<String> = Vec::new();
        for word in words {
            let follows_flag = mapped.last().is_some_and(|last| PATH_FLAGS.contains(&last.as_str()));
            let word = match word.split_once('=') {
                _ if follows_flag => self.on_host(&word),
                Some((flag, path)) if PATH_FLAGS.contains(&flag) => format!("{flag}={}", self.on_host(path)),
                _ => word,
            };
            mapped.push(word);
        }
        mapped
    }
}

fn refused(why: impl Into<String>) -> StartError {
    StartError::Refused(why.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::*;

    fn order(container: Value, volumes: Value) -> JobOrder {
        let job = serde_json::from_value(json!({
            "metadata": {"name": "sipcall-a-aaaaaaaaaa"},
            "spec": {"template": {"spec": {"activeDeadlineSeconds": 90, "containers": [container], "volumes": volumes}}},
        }));
        JobOrder { job: job.unwrap(), passwords: [("SIP_PASSWORD".to_owned(), "p$$w".to_owned().into())].into() }
    }

    fn env(plan: &Handover, name: &str) -> Option<String> {
        plan.env.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }

    #[test]
    fn references_are_resolved_in_order_and_secret_values_are_taken_as_they_are() {
        let order = order(
            json!({"name": "c", "command": ["python3", "-m", "sipstuff.cli", "call"],
            "args": ["--text", "$$5 $(SIP_PASSWORD) $(NOPE)", "--dest", "$(B)"],
            "env": [
                {"name": "A", "value": "$(B)-a"},
                {"name": "SIP_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "sipcall-a-aaaaaaaaaa", "key": "SIP_PASSWORD"}}},
                {"name": "B", "value": "$(A)+$(SIP_PASSWORD)"},
                {"name": "SIP_USER", "valueFrom": {"secretKeyRef": {"name": "x", "key": "SIP_USER", "optional": true}}}
            ]}),
            json!([]),
        );
        let caller = ["sim".to_owned(), "$(B)".to_owned()];
        let plan = plan(&order, Some(&caller), &Secrets::default()).unwrap();
        assert_eq!(plan.program, "sim");
        let args = ["$(B)", "call", "--text", "$5 p$$w $(NOPE)", "--dest", "$(B)-a+p$$w"];
        assert_eq!(plan.args, args, "LOCAL_CALLER itself is not expanded");
        assert_eq!(env(&plan, "A").as_deref(), Some("$(B)-a"), "B is not known yet where A is resolved");
        assert_eq!(env(&plan, "SIP_USER"), None, "an optional key that is missing leaves the variable absent");
        assert_eq!(plan.deadline_seconds, Some(90));
    }

    #[test]
    fn mount_paths_become_host_directories() {
        let host = tempfile::tempdir().unwrap();
        let recordings = host.path().join("rec").display().to_string();
        let order = order(
            json!({"name": "c", "command": ["python3", "-m", "sipstuff.cli", "call", "--text", "/data/recordings/x",
                    "--record", "/data/recordings/a.wav", "--wav=/data/recordingsx"],
                "env": [{"name": "RECORDING_DIR", "value": "/data/recordings"}, {"name": "X", "value": "/data/recordings"}],
                "volumeMounts": [{"name": "recording-data", "mountPath": "/data/recordings"}]}),
            json!([{"name": "recording-data", "hostPath": {"path": recordings, "type": "DirectoryOrCreate"}}]),
        );
        let plan = plan(&order, None, &Secrets::default()).unwrap();
        assert_eq!(plan.program, "python3");
        assert_eq!(env(&plan, "RECORDING_DIR").as_deref(), Some(recordings.as_str()));
        assert_eq!(env(&plan, "X").as_deref(), Some("/data/recordings"));
        let record = format!("{recordings}/a.wav");
        assert_eq!(plan.args[3..], ["--text", "/data/recordings/x", "--record", &record, "--wav=/data/recordingsx"]);
        assert!(std::path::Path::new(&recordings).is_dir());
    }

    #[test]
    fn what_cannot_be_resolved_is_not_started() {
        let with = |env: Value| order(json!({"name": "c", "command": ["x"], "env": [env]}), json!([]));
        let key = json!({"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "K"}}});
        let error = plan(&with(key), None, &Secrets::default()).map(drop).unwrap_err();
        assert!(matches!(error, StartError::Later(_)), "{error}");
        let field = json!({"name": "F", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}});
        let error = plan(&with(field), None, &Secrets::default()).map(drop).unwrap_err();
        assert!(matches!(&error, StartError::Refused(why) if why.contains("`F`")), "{error}");
        let none = order(json!({"name": "c"}), json!([]));
        assert!(matches!(plan(&none, None, &Secrets::default()), Err(StartError::Refused(_))));
    }
}
