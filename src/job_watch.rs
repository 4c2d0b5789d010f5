//! What the runner reported last of every Job, who follows one, and which there should be: the store that its observations are
//! written into.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use jiff::Timestamp;
use tokio::sync::watch;

use crate::call::CallName;
use crate::job::{Observed, ObservedJob};
use crate::runner::{Observation, Runner};

/// What is known of a Job by its runner's last report.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// Nothing yet.
    Unknown,
    /// Where it stands. [`Observed::Gone`] after its removal.
    State(Observed),
    /// It was not in a full list: to be confirmed, since it may be younger than the list.
    Missing,
}

/// What wakes a follower.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// The runner has reported something new.
    Report(Report),
    /// The call's record has changed.
    Woken,
}

/// What the runner reported last of every Job that is not settled, who follows it, and which Jobs the log says are in progress.
#[derive(Clone, Default)]
pub struct JobStore {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    present: HashMap<String, ObservedJob>,
    followed: HashMap<String, Followed>,
    claims: HashMap<CallName, Claim>,
}

/// An attempt of this cluster that the log says is in progress.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Its Job.
    pub job: String,
    /// When its state was recorded.
    pub recorded_at: Timestamp,
}

/// The channels to whoever follows a Job. Apart, since a wake-up must not be lost in a report that comes with it.
struct Followed {
    reports: watch::Sender<Report>,
    wakes: watch::Sender<u64>,
}

/// Follows one Job for as long as it lives.
pub struct Follower {
    job: String,
    store: JobStore,
    reports: watch::Receiver<Report>,
    wakes: watch::Receiver<u64>,
}

impl JobStore {
    /// Follows a Job from what is known of it now.
    pub fn follow(&self, job: &str) -> Follower {
        let mut inner = self.lock();
        let known = inner.present.get(job).map_or(Report::Unknown, |job| Report::State(job.state.clone()));
        let followed = inner
            .followed
            .entry(job.to_owned())
            .or_insert_with(|| Followed { reports: watch::channel(Report::Unknown).0, wakes: watch::channel(0).0 });
        followed.reports.send_replace(known);
        let (reports, wakes) = (followed.reports.subscribe(), followed.wakes.subscribe());
        Follower { job: job.to_owned(), store: self.clone(), reports, wakes }
    }

    /// Wakes whoever follows a Job, for instance since its call is to be cancelled; false when nobody does.
    pub fn wake(&self, job: &str) -> bool {
        let inner = self.lock();
        let followed = inner.followed.get(job);
        followed.is_some_and(|followed| {
            followed.wakes.send_modify(|count| *count += 1);
            true
        })
    }

    /// Writes down what the runner reports; true after a full list.
    pub fn apply(&self, observation: Observation) -> bool {
        let mut inner = self.lock();
        match observation {
            Observation::All(jobs) => inner.replace(jobs),
            Observation::Changed(job) => inner.insert(job),
            Observation::Removed(job) => inner.remove(job),
        }
    }

    /// The Jobs that are not settled and that nobody here follows.
    pub fn unfollowed(&self) -> Vec<ObservedJob> {
        let inner = self.lock();
        let jobs = inner.present.values().filter(|job| !inner.followed.contains_key(&job.name));
        jobs.cloned().collect()
    }

    /// Writes down what the log says of a call: which attempt of this cluster is in progress, if any is.
    pub fn set_claim(&self, call: &CallName, claim: Option<Claim>) {
        let mut inner = self.lock();
        match claim {
            Some(claim) => inner.claims.insert(call.clone(), claim),
            None => inner.claims.remove(call),
        };
    }

    /// The Jobs that should be in progress by what was recorded before a moment, that the runner does not have, and that nobody here
    /// follows.
    pub fn absent(&self, recorded_before: Timestamp) -> Vec<String> {
        let inner = self.lock();
        let is_there = |job: &String| inner.present.contains_key(job) || inner.followed.contains_key(job);
        let claims = inner.claims.values().filter(|claim| claim.recorded_at < recorded_before);
        claims.map(|claim| claim.job.clone()).filter(|job| !is_there(job)).collect()
    }

    /// How many Jobs the runner has that are not settled.
    pub fn count(&self) -> usize {
        self.lock().present.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn insert(&mut self, job: ObservedJob) -> bool {
        self.report(&job.name, Report::State(job.state.clone()));
        if job.settled {
            self.present.remove(&job.name);
        } else {
            self.present.insert(job.name.clone(), job);
        }
        false
    }

    fn replace(&mut self, jobs: Vec<ObservedJob>) -> bool {
        self.present.clear();
        for job in jobs {
            self.insert(job);
        }
        let missing: Vec<String> =
            self.followed.keys().filter(|job| !self.present.contains_key(*job)).cloned().collect();
        for job in missing {
            self.report(&job, Report::Missing);
        }
        true
    }

    /// A Job that ended and was removed before anybody looked has ended all the same.
    fn remove(&mut self, job: ObservedJob) -> bool {
        self.present.remove(&job.name);
        let state = if job.has_ended() { job.state } else { Observed::Gone };
        self.report(&job.name, Report::State(state));
        false
    }

    fn report(&self, job: &str, report: Report) {
        if let Some(followed) = self.followed.get(job) {
            followed.reports.send_if_modified(|known| {
                let is_news = *known != report;
                *known = report;
                is_news
            });
        }
    }
}

impl Follower {
    /// What is known now; the next [`Self::next`] waits for something newer.
    pub fn known(&mut self) -> Report {
        self.reports.borrow_and_update().clone()
    }

    /// Waits until there is something new, or somebody wakes. Cancel-safe. A wake-up goes first, and loses no report.
    pub async fn next(&mut self) -> News {
        tokio::select! {
            biased;
            Ok(()) = self.wakes.changed() => News::Woken,
            Ok(()) = self.reports.changed() => News::Report(self.known()),
            // The senders live as long as somebody follows.
            else => std::future::pending().await,
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut inner = self.store.lock();
        let is_last = inner.followed.get(&self.job).is_some_and(|followed| followed.reports.receiver_count() <= 1);
        if is_last {
            inner.followed.remove(&self.job);
        }
    }
}

/// Writes down what the runner reports and never returns; `on_list` is called after every full list.
pub async fn watch_runner(runner: Arc<dyn Runner>, store: JobStore, on_list: impl Fn()) {
    let mut observations = runner.observe();
    while let Some(observation) = observations.next().await {
        if store.apply(observation) {
            on_list();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::{CallId, Fingerprint};

    fn job(name: &str, settled: bool) -> ObservedJob {
        let id = CallId::parse("a").expect("an id");
        ObservedJob {
            name: name.into(),
            id,
            attempt: 1,
            fingerprint: Fingerprint::of(b"x"),
            state: Observed::waiting(),
            settled,
        }
    }

    fn waiting() -> Report {
        Report::State(Observed::waiting())
    }

    #[tokio::test]
    async fn a_full_list_tells_a_follower_what_is_missing_and_others_what_nobody_follows() {
        let store = JobStore::default();
        let mut mine = store.follow("mine");
        assert_eq!(mine.known(), Report::Unknown);
        assert!(store.apply(Observation::All(vec![job("other", false), job("old", true)])));
        assert_eq!(store.unfollowed(), [job("other", false)]);
        assert_eq!(mine.next().await, News::Report(Report::Missing));
        store.apply(Observation::Changed(job("mine", false)));
        assert_eq!(mine.next().await, News::Report(waiting()));
        store.apply(Observation::Removed(job("mine", false)));
        assert_eq!(mine.next().await, News::Report(Report::State(Observed::Gone)));
        drop(mine);
        assert!(!store.wake("mine"), "nobody follows any more");
    }

    #[test]
    fn a_job_that_the_log_knows_of_and_the_runner_does_not_have_is_absent() {
        let store = JobStore::default();
        let claim = |job: &str| {
            let recorded_at = Timestamp::UNIX_EPOCH;
            store.set_claim(&CallId::parse(job).expect("an id").name(), Some(Claim { job: job.into(), recorded_at }));
        };
        for job in ["present", "followed", "absent", "over"] {
            claim(job);
        }
        store.apply(Observation::Changed(job("present", false)));
        let _follower = store.follow("followed");
        store.set_claim(&CallId::parse("over").expect("an id").name(), None);
        assert_eq!(store.absent(Timestamp::UNIX_EPOCH), Vec::<String>::new());
        assert_eq!(store.absent(Timestamp::MAX), ["absent"]);
    }

    #[tokio::test]
    async fn a_wake_up_that_comes_with_a_report_is_not_lost_and_loses_no_report() {
        let store = JobStore::default();
        let mut mine = store.follow("mine");
        assert_eq!(mine.known(), Report::Unknown);
        assert!(store.wake("mine"));
        store.apply(Observation::Changed(job("mine", false)));
        assert_eq!(mine.next().await, News::Woken);
        assert_eq!(mine.next().await, News::Report(waiting()));
    }
}
