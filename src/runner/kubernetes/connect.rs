//! From the environment's word on where the cluster is to a client whose requests all end, and the cluster's identity.
//! Apart, because only this file knows where configuration comes from.

use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client, Config};

use super::{ApiError, answer};
use crate::error_chain::error_chain;
use crate::runner::{RunnerError, RunnerInfo};

/// To establish a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Without a byte from the server, while one is expected. It ends what a request's own limit does not cover (the lists and
/// the starts of a watch), and empties the pool of connections that were cut. Longer than a watch request, so that a quiet
/// watch does not run into it.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the Jobs go.
#[derive(Debug, Clone)]
pub struct KubernetesSettings {
    /// Namespace of the Jobs (`JOB_NAMESPACE`).
    pub namespace: String,
    /// How long a settled Job is kept, in seconds, 0 or more (`JOB_TTL_SECONDS`).
    pub ttl_seconds: i32,
    /// `CLUSTER_NAME`; without it, the UID of the namespace.
    pub cluster_name: Option<String>,
    /// A kubeconfig; without it, that of `KUBECONFIG` or of the user, else the pod's service account.
    pub kubeconfig: Option<PathBuf>,
}

/// Whether this process runs in a pod, or has a kubeconfig: whether `kubernetes` is the default of `RUNNER`. Contacts nobody.
pub fn cluster_is_configured() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let at_home = || std::env::home_dir().is_some_and(|home| home.join(".kube/config").is_file());
    set("KUBERNETES_SERVICE_HOST") || set("KUBECONFIG") || at_home()
}

/// A client, and where it leads.
pub(super) async fn connect(settings: &KubernetesSettings) -> Result<(Client, RunnerInfo), RunnerError> {
    let (mut config, context) = configuration(settings.kubeconfig.as_deref()).await?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(SILENCE_TIMEOUT);
    config.reset_reader_on_write = true;
    // The callers decide about further tries, and they need to know of the first.
    config.default_retry = false;
    let address = format!("{} ({context})", config.cluster_url.to_string().trim_end_matches('/'));
    let client = Client::try_from(config).map_err(|error| unusable(&error))?;
    let cluster = match settings.cluster_name.clone() {
        Some(name) => name,
        None => identity(&client, &settings.namespace).await?,
    };
    let namespace = settings.namespace.clone();
    Ok((client, RunnerInfo { kind: "kubernetes", cluster, namespace, has_gates: true, address }))
}

/// A kubeconfig goes before the service account, as with `kubectl`.
async fn configuration(file: Option<&std::path::Path>) -> Result<(Config, String), RunnerError> {
    let kubeconfig = match file {
        Some(file) => Kubeconfig::read_from(file),
        None => Kubeconfig::read(),
    };
    match kubeconfig {
        Ok(kubeconfig) => {
            let context = kubeconfig.current_context.clone().unwrap_or_default();
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
            Ok((config.map_err(|error| unusable(&error))?, format!("context {context}")))
        }
        Err(error) if file.is_some() => Err(unusable(&error)),
        Err(error) => service_account(&error),
    }
}

fn service_account(no_kubeconfig: &KubeconfigError) -> Result<(Config, String), RunnerError> {
    match Config::incluster() {
        Ok(config) => Ok((config, "in cluster".to_owned())),
        Err(error) => Err(RunnerError {
            message: format!(
                "no cluster is configured: kubeconfig: {}; service account: {}",
                error_chain(no_kubeconfig),
                error_chain(&error)
            ),
            retry_after: None,
        }),
    }
}

fn unusable(error: &dyn std::error::Error) -> RunnerError {
    RunnerError {
        message: format!("the configuration of the cluster cannot be used: {}", error_chain(error)),
        retry_after: None,
    }
}

/// The UID of the namespace: no other cluster has it, it outlives every restart, and a namespaced Role can grant reading it.
async fn identity(client: &Client, namespace: &str) -> Result<String, RunnerError> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    match answer(namespaces.get(namespace)).await {
        Ok(found) => found.metadata.uid.ok_or_else(|| RunnerError {
            message: format!("the API server gave no UID for the namespace `{namespace}`"),
            retry_after: None,
        }),
        Err(error) => Err(explain(error, namespace)),
    }
}

fn explain(error: ApiError, namespace: &str) -> RunnerError {
    let advice = if error.not_found() {
        format!(
            "the namespace `{namespace}` does not exist; create it (`kubectl create namespace {namespace}`) or set JOB_NAMESPACE"
        )
    } else if error.forbidden() {
        format!(
            "the namespace `{namespace}` may not be read; grant `get` on it (deploy/base has a Role) or set CLUSTER_NAME"
        )
    } else {
        return error.into();
    };
    RunnerError { message: format!("{advice}: {}", error.words()), ..error.into() }
}
