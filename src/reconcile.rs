//! Level-triggered: what the runner has is compared with what the log says, after every full list and periodically, for the Jobs
//! whose calls nobody here holds. So what changed while no operator looked is recorded, a Job that is to be stopped is stopped
//! whoever asked for it, and a settled Job is let go.

use std::{sync::Arc, time::Duration};

use tokio::sync::{Notify, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use crate::{
    clock::now,
    job::{
        Observed, ObservedJob,
        advance::Moments,
        compare::{Comparison, compare},
    },
    job_watch::JobStore,
    nats::{NatsError, NatsErrorKind},
    retry,
    runner::Runner,
    status_log::{Recorded, StatusLog},
};

/// How often it is compared, beside every full list.
const EVERY: Duration = Duration::from_secs(30);
/// Jobs that are compared at once.
const AT_ONCE: usize = 32;
/// Jobs that are let go at once: after an outage there are hundreds, and those that wait for their start go first.
const RELEASED_AT_ONCE: usize = 16;

/// Compares, stops and lets go.
#[derive(Clone)]
pub struct Reconciler {
    log: StatusLog,
    runner: Arc<dyn Runner>,
    store: JobStore,
    start_seconds: u32,
    cluster: String,
    closing: CancellationToken,
    tasks: TaskTracker,
    releases: Arc<Semaphore>,
    wanted: Arc<Notify>,
}

impl Reconciler {
    /// For the Jobs of a runner. `start_seconds` is `JOB_START_SECONDS`, `cluster` who we are among the clusters.
    pub fn new(
        log: StatusLog,
        runner: Arc<dyn Runner>,
        store: JobStore,
        start_seconds: u32,
        cluster: String,
        closing: CancellationToken,
        tasks: TaskTracker,
    ) -> Self {
        let (releases, wanted) = (Arc::new(Semaphore::new(RELEASED_AT_ONCE)), Arc::default());
        Self { log, runner, store, start_seconds, cluster, closing, tasks, releases, wanted }
    }

    /// Asks [`Self::run`] to compare now.
    pub fn request(&self) {
        self.wanted.notify_one();
    }

    /// Compares when it is asked to, and periodically; until the end.
    pub async fn run(self) {
        loop {
            tokio::select! {
                () = self.wanted.notified() => {}
                () = tokio::time::sleep(EVERY) => {}
                () = self.closing.cancelled() => return,
            }
            self.reconcile(self.store.unfollowed()).await;
        }
    }

    /// Compares some Jobs with the log.
    pub async fn reconcile(&self, jobs: Vec<ObservedJob>) {
        let permits = Semaphore::new(AT_ONCE);
        let each = jobs.iter().map(|job| async {
            let _permit = permits.acquire().await;
            let span = tracing::info_span!("reconcile", call_id = %job.id, job = job.name, attempt = job.attempt);
            self.reconcile_one(job).instrument(span).await;
        });
        futures::future::join_all(each).await;
    }

    async fn reconcile_one(&self, job: &ObservedJob) {
        let name = job.id.name();
        let read = || async { self.log.last(&name).await.or_else(corrupt_is_nothing) };
        let Some(last) = retry::until_stopped(&self.closing, "read the status log", read).await else { return };
        let Some(last) = last else {
            tracing::warn!("the status log knows nothing of this Job; it is left alone");
            return;
        };
        let Some(comparison) = self.catch_up(last, job).await else { return };
        match comparison {
            Comparison::Stop => self.stop(&job.name).await,
            Comparison::LetGo { has_ended } => self.let_go(job.name.clone(), has_ended),
            Comparison::Append(_) | Comparison::Leave => {}
        }
    }

    /// Appends what the Job shows, and says what is left to do then; `None` when somebody else is at it.
    async fn catch_up(&self, mut last: Recorded, job: &ObservedJob) -> Option<Comparison> {
        loop {
            let moments = Moments::of(&last.event, self.start_seconds, now());
            match compare(&last.event, job, &self.cluster, moments) {
                Comparison::Append(change) => {
                    let event = last.event.next(change, now()).ok()?;
                    last = self.log.append(event, last.sequence).await.ok()?;
                }
                comparison => return Some(comparison),
            }
        }
    }

    async fn stop(&self, job: &str) {
        if let Err(error) = self.runner.stop(job).await {
            tracing::warn!(job, %error, "a Job whose call is to be cancelled could not be stopped yet");
        }
    }

    /// Lets a Job go whose attempt has its end in the log, in the background, since the call does not wait for it. One that lives all
    /// the same is stopped: its call has ended otherwise, or its next attempt is under way.
    pub fn let_go(&self, job: String, has_ended: bool) {
        let this = self.clone();
        self.tasks.spawn(async move {
            if !has_ended {
                tracing::warn!(job, "a Job lives though its attempt is over; it is stopped");
            }
            retry::until_stopped(&this.closing, "let a settled Job go", || async {
                let _permit = this.releases.acquire().await;
                if has_ended { this.runner.release(&job).await } else { this.runner.stop(&job).await }
            })
            .await;
        });
    }
}

/// Whether an attempt's Job has ended, or is not there any more: then there is nothing to stop.
pub fn has_ended(observed: &Observed) -> bool {
    matches!(observed, Observed::Ended(_) | Observed::Gone)
}

/// A record that cannot be read says nothing of a Job, which is left alone then.
fn corrupt_is_nothing(error: NatsError) -> Result<Option<Recorded>, NatsError> {
    match error.kind() {
        NatsErrorKind::Corrupt => {
            tracing::warn!(error = error.chain(), "the record of a call cannot be read");
            Ok(None)
        }
        _ => Err(error),
    }
}
