//! What the API server has, then every change, by one watch of Jobs and one of pods. Apart, because staying honest over a
//! connection that may be cut without a word is a subject of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::cache::Cache;
use super::trimmed::{Trim, Trimmed};
use crate::error_chain::error_chain;
use crate::job::{SELECTOR, UNSETTLED};
use crate::retry::Retry;
use crate::runner::Observation;

/// How long one watch request lasts. The server ends it then, after a bookmark two seconds before that keeps a resumed watch
/// from starting too far back; so silence for 5 s longer (`kube`'s margin) means that the connection is dead. A request in
/// 25 s is the price for noticing that within 30 s.
const WATCH_SECONDS: u32 = 25;
/// A full list of Jobs even without a sign of loss: the state counts, and whatever was missed is caught here at the latest. Of pods
/// there are lists only where a watch cannot be resumed: those of settled Jobs cannot be left out.
const LIST_EVERY: Duration = Duration::from_secs(15 * 60);

/// What the watches have shown, shared with whoever asks for one Job.
#[derive(Clone, Default)]
pub(super) struct SharedCache(Arc<Mutex<Cache>>);

impl SharedCache {
    pub(super) fn lock(&self) -> MutexGuard<'_, Cache> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows the Jobs that are ours and not settled, and their pods; never ends. The Jobs are listed after the pods: so a pod whose
/// Job is not listed is known to be that of a settled one, and is not kept.
pub(super) fn observe(
    jobs: Api<Trimmed<Job>>,
    pods: Api<Trimmed<Pod>>,
    cache: SharedCache,
) -> BoxStream<'static, Observation> {
    *cache.lock() = Cache::default();
    let (of_jobs, of_pods) = (cache.clone(), cache);
    let pods_are_listed = Arc::new(Notify::new());
    let may_begin = Arc::clone(&pods_are_listed);
    let jobs = stream::once(async move { may_begin.notified().await })
        .flat_map(move |()| events(jobs.clone(), UNSETTLED, "Jobs", Some(LIST_EVERY)))
        .map(move |event| of_jobs.lock().apply_job(event));
    let pods = events(pods, SELECTOR, "pods", None).map(move |event| {
        if matches!(event, Event::InitDone) {
            pods_are_listed.notify_one();
        }
        of_pods.lock().apply_pod(event)
    });
    stream::select(jobs, pods).filter_map(std::future::ready).boxed()
}

type Events<K> = BoxStream<'static, Event<Trimmed<K>>>;

/// The events of one watch, which begins again with a list after `list_every`; errors are logged and tried again inside.
fn events<K>(api: Api<Trimmed<K>>, selector: &'static str, what: &str, list_every: Option<Duration>) -> Events<K>
where
    K: Trim + Clone + std::fmt::Debug + Send + 'static,
    K::Form: DeserializeOwned,
{
    let retry = Retry::new(format!("watch the {what} of {}", api.namespace().unwrap_or_default()));
    let watch = Watch { events: watch(&api, selector), api, selector, list_every, began: Instant::now(), retry };
    stream::unfold(watch, |mut watch| async { Some((watch.next().await, watch)) }).boxed()
}

struct Watch<K: Trim> {
    api: Api<Trimmed<K>>,
    selector: &'static str,
    events: BoxStream<'static, watcher::Result<Event<Trimmed<K>>>>,
    list_every: Option<Duration>,
    began: Instant,
    retry: Retry,
}

impl<K> Watch<K>
where
    K: Trim + Clone + std::fmt::Debug + Send + 'static,
    K::Form: DeserializeOwned,
{
    async fn next(&mut self) -> Event<Trimmed<K>> {
        loop {
            let list_again = async {
                match self.list_every {
                    Some(every) => tokio::time::sleep_until(self.began + every).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                event = self.events.next() => event,
                () = list_again => None,
            };
            match event {
                Some(Ok(event)) => {
                    if !matches!(event, Event::Init) {
                        self.retry.worked();
                    }
                    return event;
                }
                Some(Err(error)) => tokio::time::sleep(self.retry.failed(error_chain(&error))).await,
                // A watcher does not end; if one did, a new one begins with a list as well.
                None => (self.events, self.began) = (watch(&self.api, self.selector), Instant::now()),
            }
        }
    }
}

fn watch<K>(api: &Api<Trimmed<K>>, selector: &str) -> BoxStream<'static, watcher::Result<Event<Trimmed<K>>>>
where
    K: Trim + Clone + std::fmt::Debug + Send + 'static,
    K::Form: DeserializeOwned,
{
    watcher(api.clone(), watcher::Config::default().labels(selector).timeout(WATCH_SECONDS)).boxed()
}
