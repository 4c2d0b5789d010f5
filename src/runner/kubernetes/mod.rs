//! Jobs as `batch/v1` Jobs of a Kubernetes cluster, through `kube`. Every request is idempotent and ends within
//! 15 seconds; whether there is another one is the caller's decision.

mod api_error;
mod cache;
mod connect;
mod secret;
mod trimmed;
mod watch;

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use serde::Serialize;
use tokio::sync::Semaphore;

use self::api_error::ApiError;
pub use self::connect::{KubernetesSettings, cluster_is_configured};
use self::trimmed::{Trim, Trimmed};
use self::watch::SharedCache;
use super::{MAX_LOG_BYTES, Observation, Runner, RunnerError, RunnerInfo, StartError};
use crate::call::PodRef;
use crate::error_chain::error_chain;
use crate::job::manifest::CONTAINER;
use crate::job::{ANNOTATION_FINGERPRINT, JobOrder, LABEL_SETTLED, Observed, ObservedJob, POD_GATE, Passed, SELECTOR};

/// How long any request but a watch may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Who the API server notes as the author of a field.
const FIELD_MANAGER: &str = "sipstuff-operator";
/// Logs that are read at once.
const LOGS_AT_ONCE: usize = 4;
/// How long a log may take, the turn for it counted: a call that was answered holds its channel until then.
const LOG_TIMEOUT: Duration = Duration::from_secs(10);
/// As many lines as are read of a log: more than a call writes, and no more than [`MAX_LOG_BYTES`], which would cut the end off.
const LOG_LINES: i64 = 500;
/// Label that the Job controller puts on pods: the name of their Job.
const JOB_NAME_LABEL: &str = "batch.kubernetes.io/job-name";
/// Label that the Job controller puts on pods: the UID of their Job.
const JOB_UID_LABEL: &str = "batch.kubernetes.io/controller-uid";

/// A namespace of a cluster.
pub struct KubernetesRunner {
    info: RunnerInfo,
    ttl_seconds: i32,
    client: Client,
    jobs: Api<Job>,
    pods: Api<Pod>,
    secrets: Api<Secret>,
    cache: SharedCache,
    /// Logs that are read at once: each is a request from the API server to a kubelet.
    logs: Semaphore,
}

impl KubernetesRunner {
    /// Finds the cluster and asks it for the identity of the namespace, unless the settings name the cluster: then it
    /// contacts nobody. Does not wait for an API server that does not answer; [`crate::retry`] does.
    ///
    /// # Errors
    /// [`RunnerError`] when there is no usable configuration, no answer, or no such namespace; it says what to do.
    pub async fn connect(settings: KubernetesSettings) -> Result<Self, RunnerError> {
        let (client, info) = connect::connect(&settings).await?;
        Ok(Self {
            ttl_seconds: settings.ttl_seconds,
            jobs: Api::namespaced(client.clone(), &info.namespace),
            pods: Api::namespaced(client.clone(), &info.namespace),
            secrets: Api::namespaced(client.clone(), &info.namespace),
            client,
            info,
            cache: SharedCache::default(),
            logs: Semaphore::new(LOGS_AT_ONCE),
        })
    }

    /// The Job as the server has it, made now or by an earlier delivery of the same request.
    async fn create_or_adopt(&self, order: &JobOrder) -> Result<Job, StartError> {
        match self.create_job(&order.job).await {
            Ok(job) => Ok(job),
            Err(error) if error.already_exists() => self.adopt(order).await,
            Err(error) => Err(error.fate()),
        }
    }

    async fn adopt(&self, order: &JobOrder) -> Result<Job, StartError> {
        let found = answer(self.jobs.get_opt(order.name())).await.map_err(|error| error.fate())?;
        let job = found.ok_or_else(|| later(format!("the Job {} was removed just now", order.name())))?;
        if fingerprint(&job) != fingerprint(&order.job) {
            return Err(StartError::Conflict(order.name().to_owned()));
        }
        // One that is being removed counts as started too: its call may have been placed.
        Ok(job)
    }

    /// Gives a Job its passwords. After the Job, since only then is there a UID to be owned by, and so no Secret is ever left
    /// over: the pod cannot start before the Secret is there, and a crash in between is healed by the next delivery.
    async fn provide_passwords(&self, order: &JobOrder, job: &Job) -> Result<(), StartError> {
        let Some(secret) = secret::of(order, job).filter(|_| waits(job)) else {
            return Ok(());
        };
        let Err(error) = self.put(&secret).await.map_err(|error| secret::guard(error, order)) else {
            return Ok(());
        };
        let fate = error.fate();
        if matches!(fate, StartError::Refused(_))
            && let Err(error) = self.stop(order.name()).await
        {
            tracing::warn!(job = order.name(), "a Job whose Secret was refused could not be removed: {error}");
        }
        Err(fate)
    }

    /// Creates a Secret in place of one that a deleted Job of the same name left behind. Without reading that one: so the
    /// operator needs no right to read Secrets.
    async fn put(&self, secret: &Secret) -> Result<(), ApiError> {
        match self.create_secret(secret).await {
            Err(error) if error.already_exists() => {}
            other => return other,
        }
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        gone_is_fine(answer(self.secrets.delete(name, &DeleteParams::default())).await)?;
        self.create_secret(secret).await
    }

    async fn create_job(&self, job: &Job) -> Result<Job, ApiError> {
        let request = creation(self.jobs.resource_url(), job)?;
        answer(self.client.request::<Trimmed<Job>>(request)).await.map(|Trimmed(job)| job)
    }

    async fn create_secret(&self, secret: &Secret) -> Result<(), ApiError> {
        let request = creation(self.secrets.resource_url(), secret)?;
        answer(self.client.request::<PartialObjectMeta<Secret>>(request)).await.map(drop)
    }

    /// The pods of a Job as the watch has shown them. The API server is asked only where the watch cannot tell how the Job ended or which
    /// pod has passed the gate, since it looks at every pod of the namespace for that.
    async fn pods_of(&self, job: &Job) -> Result<Vec<Pod>, ApiError> {
        let known = {
            let cache = self.cache.lock();
            cache.is_complete().then(|| cache.pods_of(job))
        };
        let says_enough = |pods: &Vec<Pod>| match ObservedJob::of(job, pods).map(|job| job.state) {
            Some(Observed::Ended(ending)) => ending.exit_code.is_some(),
            Some(Observed::Waiting { gate, .. }) => gate.waits.is_none() || gate.passed != Passed::Nobody,
            _ => true,
        };
        if let Some(pods) = known.filter(says_enough) {
            return Ok(pods);
        }
        let uid = job.metadata.uid.as_deref().unwrap_or_default();
        let selector = ListParams::default().labels(&format!("{JOB_UID_LABEL}={uid}"));
        Ok(answer(self.pods.list(&selector)).await?.items)
    }

    async fn read_log(&self, job: &str, pod: Option<&PodRef>) -> Result<String, RunnerError> {
        let _turn = self.logs.acquire().await;
        let name = match pod {
            Some(pod) => pod.name.clone(),
            None => self.pod_that_ended(job).await?,
        };
        let params = LogParams {
            container: Some(CONTAINER.to_owned()),
            limit_bytes: Some(MAX_LOG_BYTES.into()),
            tail_lines: Some(LOG_LINES),
            ..LogParams::default()
        };
        Ok(answer(self.pods.logs(&name, &params)).await?)
    }

    /// The name of the pod of a Job whose caller succeeded, where none was chosen.
    async fn pod_that_ended(&self, job: &str) -> Result<String, RunnerError> {
        let selector = ListParams::default().labels(&format!("{JOB_NAME_LABEL}={job}"));
        let pods = answer(self.pods.list(&selector)).await?.items;
        let is_over = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Succeeded");
        let name = pods.into_iter().find(is_over).and_then(|pod| pod.metadata.name);
        name.ok_or_else(|| RunnerError { message: "its pod is not there any more".to_owned(), retry_after: None })
    }

    fn api<K: Trim>(&self) -> Api<Trimmed<K>> {
        Api::namespaced(self.client.clone(), &self.info.namespace)
    }
}

#[async_trait]
impl Runner for KubernetesRunner {
    fn info(&self) -> &RunnerInfo {
        &self.info
    }

    async fn check(&self) -> Result<String, RunnerError> {
        let version = answer(self.client.apiserver_version()).await?.git_version;
        let one = ListParams::default().labels(SELECTOR).limit(1);
        answer(self.jobs.list_metadata(&one)).await?;
        answer(self.pods.list_metadata(&one)).await?;
        Ok(format!("API server {version}"))
    }

    async fn start(&self, order: &JobOrder) -> Result<(), StartError> {
        let job = self.create_or_adopt(order).await?;
        self.provide_passwords(order, &job).await
    }

    async fn lift_gate(&self, pod: &PodRef) -> Result<(), RunnerError> {
        // Of another pod that has the name now, the server refuses to change the UID.
        let patch = serde_json::json!({
            "metadata": {"uid": pod.uid},
            "spec": {"schedulingGates": [{"$patch": "delete", "name": POD_GATE}]},
        });
        match answer(self.pods.patch_metadata(&pod.name, &patched(), &Patch::Strategic(patch))).await {
            Err(error) if error.is_of_another() => Ok(()),
            other => Ok(gone_is_fine(other)?),
        }
    }

    async fn find(&self, name: &str) -> Result<Option<ObservedJob>, RunnerError> {
        let Some(job) = answer(self.jobs.get_opt(name)).await? else { return Ok(None) };
        Ok(ObservedJob::of(&job, &self.pods_of(&job).await?))
    }

    async fn log(&self, job: &str, pod: Option<&PodRef>) -> Result<String, RunnerError> {
        match tokio::time::timeout(LOG_TIMEOUT, self.read_log(job, pod)).await {
            Ok(log) => log,
            Err(_) => Err(RunnerError {
                message: format!("no kubelet answered within {} s", LOG_TIMEOUT.as_secs()),
                retry_after: None,
            }),
        }
    }

    async fn release(&self, job: &str) -> Result<(), RunnerError> {
        let patch = serde_json::json!({
            "metadata": {"labels": {LABEL_SETTLED: "true"}},
            "spec": {"ttlSecondsAfterFinished": self.ttl_seconds},
        });
        Ok(gone_is_fine(answer(self.jobs.patch_metadata(job, &patched(), &Patch::Merge(patch))).await)?)
    }

    async fn stop(&self, job: &str) -> Result<(), RunnerError> {
        Ok(gone_is_fine(answer(self.jobs.delete(job, &DeleteParams::foreground())).await)?)
    }

    fn observe(&self) -> BoxStream<'static, Observation> {
        watch::observe(self.api(), self.api(), self.cache.clone())
    }
}

/// What the server says, or why it does not, within [`REQUEST_TIMEOUT`].
async fn answer<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => answer.map_err(ApiError::from),
        Err(_) => {
            Err(ApiError::Silence(format!("the API server did not answer within {} s", REQUEST_TIMEOUT.as_secs())))
        }
    }
}

fn gone_is_fine<T>(answer: Result<T, ApiError>) -> Result<(), ApiError> {
    match answer {
        Err(error) if !error.not_found() => Err(error),
        _ => Ok(()),
    }
}

/// Whether a Job may still need its Secret: a pod that runs has read it.
fn waits(job: &Job) -> bool {
    let is_ready = job.status.as_ref().and_then(|status| status.ready).is_some_and(|ready| ready > 0);
    !is_ready && ObservedJob::of(job, []).is_none_or(|job| !job.has_ended())
}

fn fingerprint(job: &Job) -> Option<&String> {
    job.metadata.annotations.as_ref()?.get(ANNOTATION_FINGERPRINT)
}

fn later(message: String) -> StartError {
    StartError::Later(RunnerError { message, retry_after: None })
}

/// Asks for the metadata only: of a Job the rest is known, and of a Secret no answer may hold a password, since `kube` logs
/// answers that it cannot read.
fn creation<K: Serialize>(url: &str, resource: &K) -> Result<http::Request<Vec<u8>>, ApiError> {
    let unsendable = |error: &dyn std::error::Error| ApiError::Unsendable(error_chain(error));
    let body = serde_json::to_vec(resource).map_err(|error| unsendable(&error))?;
    let request = kube::core::Request::new(url).create(&post(), body);
    let mut request = request.map_err(|error| unsendable(&error))?;
    let metadata_only = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    request.headers_mut().insert(http::header::ACCEPT, http::HeaderValue::from_static(metadata_only));
    Ok(request)
}

fn post() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

fn patched() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}
