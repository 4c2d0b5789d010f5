//! Level-triggered: what the runner has is compared with what the log says, after every full list and periodically, for the Jobs
//! whose calls nobody here holds, and for those that should be there and are not. So what changed while no operator looked is recorded, a Job that is to be stopped is stopped
//! whoever asked for it, and a settled Job is let go.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::SignedDuration;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::call::{CallName, Change, Evidence, Outcome, StatusEvent};
use crate::clock::now;
use crate::job::advance::{Moments, Patience};
use crate::job::compare::{Comparison, LATE_REQUEST, compare, compare_absent};
use crate::job::gate::misses_its_pod;
use crate::job::redial::is_redialled_after_an_answer;
use crate::job::{Observed, ObservedJob};
use crate::job_watch::JobStore;
use crate::nats::{NatsError, NatsErrorKind};
use crate::queue::Breakers;
use crate::retry;
use crate::runner::{Runner, RunnerError};
use crate::status_log::{Recorded, StatusLog};

/// How often it is compared, beside every full list.
const EVERY: Duration = Duration::from_secs(30);
/// How often what has just ended is: an end must be in the log before the attempt's time is up, whoever has its message.
const ENDED_EVERY: Duration = Duration::from_secs(5);
/// How long a Job has just ended for.
const JUST: SignedDuration = SignedDuration::from_secs(60);
/// Jobs that are compared at once.
const AT_ONCE: usize = 32;
/// Jobs that are let go at once: after an outage there are hundreds, and those that wait for their start go first.
const RELEASED_AT_ONCE: usize = 16;

/// What an attempt is judged by.
#[derive(Clone)]
pub struct Judge {
    /// How long is waited for attempts.
    pub patience: Patience,
    /// How its trunk does for others.
    pub breakers: Breakers,
}

impl Judge {
    /// The moments of the attempt that was claimed last.
    pub fn moments(&self, last: &StatusEvent) -> Moments {
        let on = last.trunk.as_deref().zip(last.job.as_deref());
        let trunk = on.map(|(trunk, job)| self.breakers.health_for(trunk, job)).unwrap_or_default();
        Moments::of(last, self.patience, now()).on_trunk(trunk)
    }
}

/// Compares, stops and lets go.
#[derive(Clone)]
pub struct Reconciler {
    log: StatusLog,
    runner: Arc<dyn Runner>,
    store: JobStore,
    judge: Judge,
    cluster: String,
    closing: CancellationToken,
    tasks: TaskTracker,
    releases: Arc<Semaphore>,
    /// The Jobs that are being let go.
    leaving: Arc<Mutex<HashSet<String>>>,
    wanted: Arc<Notify>,
}

impl Reconciler {
    /// For the Jobs of a runner. `cluster` is who we are among the clusters.
    pub fn new(
        log: StatusLog,
        runner: Arc<dyn Runner>,
        store: JobStore,
        judge: Judge,
        cluster: String,
        closing: CancellationToken,
        tasks: TaskTracker,
    ) -> Self {
        let (releases, leaving, wanted) = (Arc::new(Semaphore::new(RELEASED_AT_ONCE)), Arc::default(), Arc::default());
        Self { log, runner, store, judge, cluster, closing, tasks, releases, leaving, wanted }
    }

    /// Asks [`Self::run`] to compare now.
    pub fn request(&self) {
        self.wanted.notify_one();
    }

    /// Compares when it is asked to, and periodically; until the end.
    pub async fn run(self) {
        let mut all_at = Instant::now() + EVERY;
        loop {
            let is_wanted = tokio::select! {
                () = self.wanted.notified() => true,
                () = tokio::time::sleep(ENDED_EVERY) => false,
                () = self.closing.cancelled() => return,
            };
            let mut jobs = self.store.unfollowed();
            if is_wanted || Instant::now() >= all_at {
                all_at = Instant::now() + EVERY;
            } else {
                jobs.retain(has_just_ended);
            }
            self.reconcile(jobs).await;
            self.reconcile_absent().await;
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
        if self.leaving().contains(&job.name) {
            return;
        }
        let name = job.id.name();
        let read = || async { self.log.last(&name).await.or_else(corrupt_is_nothing) };
        let Some(last) = retry::until_stopped(&self.closing, "read the status log", read).await else { return };
        let Some(last) = last else {
            tracing::warn!("the status log knows nothing of this Job; it is left alone");
            return;
        };
        let observed = match confirmed(job.state.clone(), &job.name, &last.event, &*self.runner).await {
            Ok(state) => ObservedJob { state, ..job.clone() },
            Err(error) => {
                tracing::warn!(%error, "it cannot be read how a Job has ended; it is tried again");
                return;
            }
        };
        let Some(comparison) = self.catch_up(last, &observed).await else { return };
        match comparison {
            Comparison::Stop => self.stop(&job.name).await,
            Comparison::LetGo { has_ended } => self.let_go(job.name.clone(), has_ended),
            Comparison::Append(_) | Comparison::Leave => {}
        }
    }

    /// Compares the Jobs that the log knows of and the runner does not have: they were never made, or removed while nobody followed
    /// them.
    async fn reconcile_absent(&self) {
        let start_by = SignedDuration::from_secs(self.judge.patience.start_seconds.into());
        for job in self.store.absent(now() - start_by - LATE_REQUEST) {
            let span = tracing::info_span!("reconcile", job);
            if let Err(error) = self.reconcile_absent_one(&job).instrument(span).await {
                tracing::warn!(job, %error, "it cannot be read what became of a Job; it is tried again");
                return;
            }
        }
    }

    async fn reconcile_absent_one(&self, job: &str) -> Result<(), RunnerError> {
        let Some(name) = CallName::of_job(job) else { return Ok(()) };
        let Ok(Some(last)) = self.log.last(&name).await else { return Ok(()) };
        let moments = self.judge.moments(&last.event);
        let Some(change) = compare_absent(&last.event, job, &self.cluster, moments) else { return Ok(()) };
        if self.runner.find(job).await?.is_none()
            && let Ok(event) = last.event.next(change, now())
        {
            // Whoever was faster is right, too.
            let _ = self.log.append(event, last.sequence).await;
        }
        Ok(())
    }

    /// Appends what the Job shows, and says what is left to do then; `None` when somebody else is at it.
    async fn catch_up(&self, mut last: Recorded, job: &ObservedJob) -> Option<Comparison> {
        loop {
            let moments = self.judge.moments(&last.event);
            match compare(&last.event, job, &self.cluster, moments) {
                Comparison::Append(change) => {
                    let change = with_evidence(change, &last.event, &job.name, &*self.runner).await;
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
        if !self.leaving().insert(job.clone()) {
            return;
        }
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
            this.leaving().remove(&job);
        });
    }

    fn leaving(&self) -> MutexGuard<'_, HashSet<String>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn has_just_ended(job: &ObservedJob) -> bool {
    job.ending().is_some_and(|ending| now().duration_since(ending.completed_at) < JUST)
}

/// What was reported of a Job, asked anew where it has ended and it is not known how, and where the chosen pod is missing.
///
/// # Errors
/// [`RunnerError`] when the place does not answer.
pub async fn confirmed(
    observed: Observed,
    job: &str,
    last: &StatusEvent,
    runner: &dyn Runner,
) -> Result<Observed, RunnerError> {
    match &observed {
        _ if misses_its_pod(last, &observed) => Ok(runner.find(job).await?.map_or(Observed::Gone, |job| job.state)),
        Observed::Ended(ending) if ending.exit_code.is_none() => {
            let found = runner.find(job).await?.filter(ObservedJob::has_ended);
            Ok(found.map_or(observed, |job| job.state))
        }
        _ => Ok(observed),
    }
}

/// The same change with what the caller's log says of a call that was answered, and where that says nothing, with why.
pub async fn with_evidence(change: Change, last: &StatusEvent, job: &str, runner: &dyn Runner) -> Change {
    let Change::Ended(mut ended) = change else { return change };
    if ended.outcome == Outcome::Answered {
        let (evidence, why) = match runner.log(job, last.pod.as_ref()).await {
            Ok(log) => (Evidence::read(&log, ended.completed_at), "the log of the caller does not say".to_owned()),
            Err(error) => (Evidence::default(), format!("the log of the caller cannot be read: {error}")),
        };
        ended.redial = is_redialled_after_an_answer(last, evidence.heard);
        if evidence.heard.is_none() {
            ended.reason = Some(format!("what was heard is not known: {why}"));
        }
        ended.evidence = Some(Box::new(evidence));
    }
    Change::Ended(ended)
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
