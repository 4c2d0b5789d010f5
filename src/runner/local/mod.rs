//! Runs Jobs as processes on this machine, with their state in a directory that outlives the operator.
//!
//! Each attempt has a folder (`folder` describes what is in it) and a supervisor process (`run-attempt`), which
//! outlives the operator and keeps the exit code. `fleet` is what the operator knows about all folders, `plan` turns a
//! Job into a command.

pub mod expand;
mod fleet;
pub(crate) mod folder;
mod plan;
mod secrets;
mod state_dir;

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::spawn_blocking;

use self::fleet::Fleet;
pub use self::secrets::SecretsError;
pub use self::state_dir::OpenError;
use super::{Observation, Runner, RunnerError, RunnerInfo, StartError};
use crate::call::PodRef;
use crate::job::{JobOrder, ObservedJob};

/// How long a caller has to hang up after SIGINT before it is killed.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(10);

/// Maximum number of starts at the same time.
const STARTS: usize = 16;

/// What the local runner needs to know.
#[derive(Debug, Clone)]
pub struct LocalSettings {
    /// `STATE_DIR`: created if it is missing, readable by its owner only.
    pub state_dir: PathBuf,
    /// `LOCAL_CALLER`: replaces the leading `python3 -m sipstuff.cli` of a Job's command; split into words as a shell
    /// does.
    pub caller: Option<String>,
    /// Env file used in place of the Secrets: `KEY=VALUE` lines belong to the Secret `sip_secret_name`, lines after
    /// `[name]` to the Secret of that name. Read again at every start.
    pub secrets_file: Option<PathBuf>,
    /// `SIP_SECRET_NAME`.
    pub sip_secret_name: String,
    /// `JOB_NAMESPACE`, only for display.
    pub namespace: String,
    /// `JOB_TTL_SECONDS`: how long a settled attempt's folder is kept.
    pub ttl: Duration,
    /// This program, whose subcommand `run-attempt` is the supervisor.
    pub self_exe: PathBuf,
}

/// Runs Jobs as processes on this machine.
#[derive(Debug)]
pub struct LocalRunner {
    info: RunnerInfo,
    fleet: Arc<Fleet>,
    /// One start of a name at a time, so that nothing happens between the check for its folder and its creation.
    starting: [Arc<Mutex<()>>; STARTS],
}

impl LocalRunner {
    /// Locks the state directory, adopts what runs there, and watches it until the runner is dropped.
    ///
    /// # Errors
    /// [`OpenError`], such as that another operator uses the directory.
    pub async fn open(settings: LocalSettings) -> Result<Self, OpenError> {
        let (namespace, address) = (settings.namespace.clone(), settings.state_dir.display().to_string());
        let (fleet, cluster) = spawn_blocking(|| Fleet::open(settings)).await.map_err(OpenError::panicked)??;
        let fleet = Arc::new(fleet);
        tokio::spawn(fleet::watch(Arc::downgrade(&fleet)));
        Ok(Self {
            info: RunnerInfo { kind: "local", cluster, namespace, has_gates: false, address },
            fleet,
            starting: Default::default(),
        })
    }

    /// The lock for starts of that name.
    fn turn(&self, job: &str) -> Arc<Mutex<()>> {
        let hash = usize::try_from(BuildHasherDefault::<DefaultHasher>::default().hash_one(job) % STARTS as u64);
        Arc::clone(&self.starting[hash.unwrap_or_default()])
    }

    /// Runs work on files or processes on a thread that may block.
    async fn off_thread<T, F>(&self, work: F) -> Result<T, RunnerError>
    where
        T: Send + 'static,
        F: FnOnce(&Fleet) -> Result<T, RunnerError> + Send + 'static,
    {
        let fleet = Arc::clone(&self.fleet);
        spawn_blocking(move || work(&fleet)).await.map_err(failure)?
    }
}

#[async_trait]
impl Runner for LocalRunner {
    fn info(&self) -> &RunnerInfo {
        &self.info
    }

    async fn check(&self) -> Result<String, RunnerError> {
        self.off_thread(Fleet::check).await
    }

    async fn start(&self, order: &JobOrder) -> Result<(), StartError> {
        let guard = self.turn(order.name()).lock_owned().await;
        let (fleet, order) = (Arc::clone(&self.fleet), order.clone());
        let work = move || {
            // Moved in here, so that it is held until the start is done even if nobody waits for it any more.
            let _guard = guard;
            fleet.start(&order)
        };
        spawn_blocking(work).await.map_err(|error| StartError::Later(failure(error)))?
    }

    async fn find(&self, job: &str) -> Result<Option<ObservedJob>, RunnerError> {
        Ok(self.fleet.find(job))
    }

    /// A process waits before no gate.
    async fn lift_gate(&self, _pod: &PodRef) -> Result<(), RunnerError> {
        Ok(())
    }

    async fn log(&self, job: &str, _pod: Option<&PodRef>) -> Result<String, RunnerError> {
        let job = job.to_owned();
        self.off_thread(move |fleet| fleet.log(&job)).await
    }

    async fn release(&self, job: &str) -> Result<(), RunnerError> {
        let job = job.to_owned();
        self.off_thread(move |fleet| fleet.release(&job)).await
    }

    async fn stop(&self, job: &str) -> Result<(), RunnerError> {
        let job = job.to_owned();
        self.off_thread(move |fleet| fleet.stop(&job)).await
    }

    fn observe(&self) -> BoxStream<'static, Observation> {
        let (all, changes) = self.fleet.observe();
        // Weak: a stream that nobody reads must not keep the directory from the next operator.
        let fleet = Arc::downgrade(&self.fleet);
        let rest = stream::unfold((changes, fleet), |(mut changes, fleet)| async move {
            match changes.recv().await {
                Ok(change) => Some((change, (changes, fleet))),
                Err(RecvError::Closed) => None,
                Err(RecvError::Lagged(_)) => {
                    let (all, changes) = fleet.upgrade()?.observe();
                    Some((all, (changes, fleet)))
                }
            }
        });
        stream::iter([all]).chain(rest).boxed()
    }
}

fn failure(error: impl std::fmt::Display) -> RunnerError {
    RunnerError { message: error.to_string(), retry_after: None }
}
