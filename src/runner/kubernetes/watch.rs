//! What the API server has, then every change. Apart, because staying honest over a connection that may be cut without a
//! word is a subject of its own.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::time::Instant;

use super::trimmed::TrimmedJob;
use crate::error_chain::error_chain;
use crate::job::{ObservedJob, SELECTOR};
use crate::retry::Retry;
use crate::runner::Observation;

/// How long one watch request lasts. The server ends it then, after a bookmark two seconds before that keeps a resumed watch
/// from starting too far back; so silence for 5 s longer (`kube`'s margin) means that the connection is dead. A request in
/// 25 s is the price for noticing that within 30 s.
const WATCH_SECONDS: u32 = 25;
/// A full list even without a sign of loss: the state counts, and whatever was missed is caught here at the latest.
const LIST_EVERY: Duration = Duration::from_secs(15 * 60);

/// Follows the Jobs that are ours, for ever.
pub(super) fn observe(jobs: Api<TrimmedJob>) -> BoxStream<'static, Observation> {
    stream::unfold(Watch::new(jobs), |mut watch| async { Some((watch.next().await, watch)) }).boxed()
}

struct Watch {
    jobs: Api<TrimmedJob>,
    events: BoxStream<'static, watcher::Result<Event<TrimmedJob>>>,
    list: Vec<ObservedJob>,
    list_again_at: Instant,
    retry: Retry,
}

impl Watch {
    fn new(jobs: Api<TrimmedJob>) -> Self {
        let retry = Retry::new(format!("watch the Jobs of {}", jobs.namespace().unwrap_or_default()));
        Self { events: events(&jobs), jobs, list: Vec::new(), list_again_at: Instant::now() + LIST_EVERY, retry }
    }

    async fn next(&mut self) -> Observation {
        loop {
            match tokio::time::timeout_at(self.list_again_at, self.events.next()).await {
                Ok(Some(Ok(event))) => {
                    if let Some(observation) = self.apply(event) {
                        self.retry.worked();
                        return observation;
                    }
                }
                Ok(Some(Err(error))) => tokio::time::sleep(self.retry.failed(error_chain(&error))).await,
                // A watcher does not end; if one did, a new one begins with a list as well.
                Ok(None) | Err(_) => self.events = events(&self.jobs),
            }
        }
    }

    /// Keeps of each Job only what is needed, and of a list nothing before it is complete.
    fn apply(&mut self, event: Event<TrimmedJob>) -> Option<Observation> {
        match event {
            Event::Init => {
                self.list.clear();
                self.list_again_at = Instant::now() + LIST_EVERY;
                None
            }
            Event::InitApply(job) => {
                self.list.extend(ObservedJob::of(&job.0));
                None
            }
            Event::InitDone => Some(Observation::All(std::mem::take(&mut self.list))),
            Event::Apply(job) => ObservedJob::of(&job.0).map(Observation::Changed),
            Event::Delete(job) => ObservedJob::of(&job.0).map(Observation::Removed),
        }
    }
}

fn events(jobs: &Api<TrimmedJob>) -> BoxStream<'static, watcher::Result<Event<TrimmedJob>>> {
    watcher(jobs.clone(), watcher::Config::default().labels(SELECTOR).timeout(WATCH_SECONDS)).boxed()
}
