//! Chooses and opens the runner for the commands that need one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::config::{RunnerArgs, RunnerKind, Settings};
use crate::job::JobDefaults;
use crate::retry::Retry;
use crate::runner::kubernetes::{KubernetesRunner, KubernetesSettings, cluster_is_configured};
use crate::runner::local::{LocalRunner, LocalSettings};
use crate::runner::{Runner, RunnerError};

/// The runner that the settings ask for; waits until its cluster answers.
///
/// # Errors
/// When no runner is configured and no cluster is found, or when the local runner's directory cannot be used.
pub async fn open(settings: &Settings, defaults: &JobDefaults) -> Result<Arc<dyn Runner>> {
    let mut retry = Retry::new("reach the cluster");
    loop {
        match open_once(settings, defaults).await? {
            Ok(runner) => return Ok(runner),
            Err(error) => tokio::time::sleep(retry.failed(error)).await,
        }
    }
}

/// Like [`open`], but tries once: the inner error is one that a retry may fix.
///
/// # Errors
/// As for [`open`].
pub async fn open_once(settings: &Settings, defaults: &JobDefaults) -> Result<Result<Arc<dyn Runner>, RunnerError>> {
    match kind(&settings.runner, cluster_is_configured())? {
        RunnerKind::Kubernetes => Ok(kubernetes(&settings.runner, defaults).await),
        RunnerKind::Local => local(&settings.runner, defaults).await.map(Ok),
    }
}

/// The configured runner, else the cluster if there is one; never the local one by default, since it dials from this
/// machine.
fn kind(settings: &RunnerArgs, is_cluster: bool) -> Result<RunnerKind> {
    match settings.runner {
        Some(kind) => Ok(kind),
        None if is_cluster => Ok(RunnerKind::Kubernetes),
        None => bail!(
            "no Kubernetes cluster is configured (no service account, no kubeconfig), and RUNNER is not set: \
             set RUNNER=kubernetes and provide a kubeconfig, or RUNNER=local to run calls as processes on this machine"
        ),
    }
}

async fn kubernetes(settings: &RunnerArgs, defaults: &JobDefaults) -> Result<Arc<dyn Runner>, RunnerError> {
    let runner = KubernetesRunner::connect(KubernetesSettings {
        namespace: defaults.namespace.clone(),
        ttl_seconds: defaults.ttl_seconds,
        cluster_name: settings.cluster_name.clone(),
        kubeconfig: None,
    });
    Ok(Arc::new(runner.await?))
}

async fn local(settings: &RunnerArgs, defaults: &JobDefaults) -> Result<Arc<dyn Runner>> {
    let RunnerArgs { runner: _, cluster_name: _, state_dir, local_caller, local_secrets_file } = settings.clone();
    let runner = LocalRunner::open(LocalSettings {
        state_dir: state_dir.map_or_else(default_state_dir, Ok)?,
        caller: local_caller,
        secrets_file: local_secrets_file,
        sip_secret_name: defaults.sip_secret_name.clone(),
        namespace: defaults.namespace.clone(),
        ttl: Duration::from_secs(u64::try_from(defaults.ttl_seconds).unwrap_or(0)),
        self_exe: std::env::current_exe().context("cannot find the file of this program")?,
    });
    let runner = runner.await?;
    Ok(Arc::new(runner))
}

/// `$XDG_STATE_HOME/sipstuff-operator`, else the same under `~/.local/state` (XDG Base Directory Specification).
fn default_state_dir() -> Result<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    std::env::var_os("XDG_STATE_HOME")
        .and_then(|path| absolute(path.into()))
        .or_else(|| std::env::home_dir().map(|home| home.join(".local/state")))
        .map(|folder| folder.join("sipstuff-operator"))
        .context("there is no home directory; set STATE_DIR")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(runner: Option<RunnerKind>) -> RunnerArgs {
        RunnerArgs { runner, cluster_name: None, state_dir: None, local_caller: None, local_secrets_file: None }
    }

    #[test]
    fn a_cluster_is_used_if_there_is_one_and_nothing_is_guessed_if_there_is_none() {
        assert_eq!(kind(&args(None), true).ok(), Some(RunnerKind::Kubernetes));
        assert_eq!(kind(&args(Some(RunnerKind::Local)), true).ok(), Some(RunnerKind::Local));
        let refusal = kind(&args(None), false).map(|_| ()).expect_err("nothing to choose from").to_string();
        assert!(refusal.contains("RUNNER=kubernetes") && refusal.contains("RUNNER=local"), "{refusal}");
    }
}
