//! `serve`: wires everything together, and shuts it down at the end. The only module that knows all parts.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_nats::{Client, jetstream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::cli::Effective;
use super::listen::listen;
use super::{banner, durability, nats_session, open_runner};
use crate::admission::{Admission, Source};
use crate::api::{self, Api};
use crate::call::Status;
use crate::call_index::{Brief, CallIndex};
use crate::clock::now;
use crate::config::{QueueArgs, Settings};
use crate::dialler::{Dialler, Starts};
use crate::feed::Feed;
use crate::http::{self, HttpSettings};
use crate::job::JobDefaults;
use crate::job::advance::Patience;
use crate::job_watch::{self, Claim, JobStore};
use crate::nats::connect::{self, Refusal};
use crate::nats::{Names, StreamSettings, streams};
use crate::queue::control::{self, Pause};
use crate::queue::dead_letters::DeadLetters;
use crate::queue::rate_limit::RateLimit;
use crate::queue::scheduled::Timers;
use crate::queue::{Delivery, InFlight, Inbox, Keeper, Waiting, Window, pull, undecodable};
use crate::reconcile::Reconciler;
use crate::status_log::StatusLog;
use crate::{retry, schema, shutdown};

/// How old the state of the queue in `/health` and `/metrics` may be.
const QUEUE_STATE_EVERY: Duration = Duration::from_secs(2);
/// How long the calls in progress may take to be handed back at the end.
const HAND_BACK_WITHIN: Duration = Duration::from_secs(8);

/// Why nothing was started; not shown, since a signal came first.
const STOPPED: &str = "stopped before the start was complete";

/// Serves until a signal. HTTP answers from the beginning, and says what is not ready yet.
///
/// # Errors
/// What makes it impossible to start (the port is in use, a file cannot be read, the server is too old), or NATS has
/// refused the credentials for a minute.
pub async fn run(settings: Settings, effective: &[Effective]) -> Result<()> {
    let closing = shutdown::on_signal().context("cannot listen for signals")?;
    banner::print(effective);
    let defaults = settings.job.defaults()?;
    let listeners = listen(&settings.http).await?;
    let api = Api::default();
    let stopped = closing.clone().cancelled_owned();
    let server = tokio::spawn(http::serve(listeners.api, api.clone(), http_settings(), stopped));
    // Until the process ends: the kubelet goes on probing while calls are handed back.
    tokio::spawn(http::serve_admin(listeners.admin, api.clone(), std::future::pending()));
    let refusal = Refusal::default();
    let work = async {
        tokio::select! {
            started = Engine::start(&settings, defaults, &api, &closing, &refusal) => started?.run(&closing).await,
            () = closing.cancelled() => {}
        }
        anyhow::Ok(())
    };
    tokio::select! {
        worked = work => worked?,
        error = nats_session::refused_for_long(&settings, &refusal) => return Err(error),
    }
    server.await.context("the HTTP server failed")?;
    tracing::info!("shut down cleanly");
    Ok(())
}

fn http_settings() -> HttpSettings {
    let document = schema::all().into_iter().find(|(name, _)| *name == "openapi.json");
    HttpSettings { openapi: document.map(|(_, document)| document).unwrap_or_default(), ..Default::default() }
}

/// The part that dials.
struct Engine {
    client: Client,
    jetstream: jetstream::Context,
    streams: StreamSettings,
    keeper: Arc<Keeper>,
    waiting: Waiting,
    /// Says that something waits, or that the window has room.
    feed_wanted: Arc<Notify>,
    dialler: Arc<Dialler>,
    handing_back: CancellationToken,
    background: JoinSet<()>,
}

impl Engine {
    /// Connects to NATS and the runner, however long that takes, and begins to follow both.
    async fn start(
        settings: &Settings,
        defaults: JobDefaults,
        api: &Api,
        closing: &CancellationToken,
        refusal: &Refusal,
    ) -> Result<Self> {
        let client = nats_session::open_patiently(settings, api, refusal);
        let (client, runner) = tokio::try_join!(client, open_runner::open(settings, &defaults))?;
        let jetstream = connect::jetstream(client.clone());
        let streams = settings.queue.settings();
        let in_flight = InFlight::new(client.clone());
        let keeper = Arc::new(Keeper::new(jetstream.clone(), streams.clone(), in_flight.clone()));
        retry::until_stopped(closing, "prepare the streams", || keeper.look()).await.context(STOPPED)?;
        let log = StatusLog::open(jetstream.clone(), &streams.names, settings.queue.status_retention).await?;
        let open = || streams::bucket(&jetstream, &streams);
        let bucket = retry::until_stopped(closing, "open the bucket", open).await.context(STOPPED)?;
        let waiting = Waiting::open(jetstream.clone(), &streams.names).await?;
        let feed_wanted = Arc::new(Notify::new());
        let QueueArgs { calls_per_second, fault_patience, .. } = settings.queue;
        let patience = Patience { start_seconds: defaults.start_seconds, faults: fault_patience };
        let (handing_back, tasks, store) = (CancellationToken::new(), TaskTracker::new(), JobStore::default());
        let cluster = settings.runner.cluster_name.clone().unwrap_or_else(|| runner.info().cluster.clone());
        let reconciler = Reconciler::new(
            log.clone(),
            runner.clone(),
            store.clone(),
            patience,
            cluster.clone(),
            handing_back.clone(),
            tasks.clone(),
        );
        let dialler = Arc::new(Dialler {
            log: log.clone(),
            runner: runner.clone(),
            store,
            reconciler,
            in_flight,
            timers: Timers::new(jetstream.clone(), &streams.names),
            dead: DeadLetters::new(jetstream.clone(), &streams.names),
            defaults,
            cluster,
            pause: Pause::default(),
            rate_limit: (calls_per_second > 0.0).then(|| RateLimit::new(bucket.clone(), calls_per_second)),
            on_settled: notifier(&feed_wanted),
            patience,
            closing: handing_back.clone(),
            tasks,
            starts: Starts::default(),
        });
        let background = JoinSet::new();
        let mut engine =
            Self { client, jetstream, streams, keeper, waiting, feed_wanted, dialler, handing_back, background };
        engine.background.spawn(engine.dialler.pause.clone().follow(bucket, closing.clone()));
        engine.background.spawn(durability::watch(settings.nats.nats_monitoring_url.clone(), api.clone()));
        let index = engine.follow(api, &settings.queue, closing);
        engine.admit(index.clone(), closing);
        engine.dial(index, settings.queue.calls_per_second, closing);
        tracing::info!(runner = runner.info().kind, cluster = engine.dialler.cluster, "ready to dial");
        Ok(engine)
    }

    /// The index follows the log, the store follows the runner, and the ack waits of what is in progress are extended.
    fn follow(&mut self, api: &Api, settings: &QueueArgs, closing: &CancellationToken) -> CallIndex {
        let dialler = &self.dialler;
        let index = CallIndex::new(settings.index_max_calls);
        api.open(api::Parts {
            client: self.client.clone(),
            log: dialler.log.clone(),
            inbox: Inbox::new(self.jetstream.clone(), &self.streams.names),
            waiting: self.waiting.clone(),
            timers: dialler.timers.clone(),
            index: index.clone(),
            namespace: dialler.defaults.namespace.clone(),
        });
        let store = dialler.store.clone();
        let cluster = dialler.cluster.clone();
        let on_change = move |brief: &Brief| note_change(&store, &cluster, brief);
        self.background.spawn(index.clone().follow(dialler.log.clone(), on_change));
        self.background.spawn(index.clone().sweep(settings.status_retention));
        let (listed, reconciler) = (api.clone(), dialler.reconciler.clone());
        self.background.spawn(job_watch::watch_runner(dialler.runner.clone(), dialler.store.clone(), move || {
            listed.set_runner_listed();
            reconciler.request();
        }));
        self.background.spawn(dialler.reconciler.clone().run());
        self.background.spawn(dialler.in_flight.clone().keep_in_progress(self.handing_back.clone()));
        let (state, names, pause) = (api.clone(), self.streams.names.clone(), dialler.pause.clone());
        self.background.spawn(keep_queue_state(self.jetstream.clone(), names, state, pause, closing.clone()));
        index
    }

    /// Keeps the streams, and admits what arrives and what comes due, until `closing`.
    fn admit(&mut self, index: CallIndex, closing: &CancellationToken) {
        let (names, dialler) = (&self.streams.names, &self.dialler);
        let (keeper, stop) = (self.keeper.clone(), closing.clone());
        self.background.spawn(async move { keeper.run(stop).await });
        let admission = Arc::new(Admission {
            log: dialler.log.clone(),
            waiting: self.waiting.clone(),
            window: Window::new(self.jetstream.clone(), names),
            timers: dialler.timers.clone(),
            dead: dialler.dead.clone(),
            due: names.due.clone(),
            index,
            namespace: dialler.defaults.namespace.clone(),
            on_queued: notifier(&self.feed_wanted),
        });
        let sources = [(&names.calls_stream, &names.admission_consumer), (&names.schedule_stream, &names.due_consumer)];
        for (stream, consumer) in sources {
            let source = Source { stream: stream.clone(), consumer: consumer.clone() };
            let (jetstream, keeper) = (self.jetstream.clone(), self.keeper.clone());
            // Waited for at the end, as the calls in progress are.
            dialler.tasks.spawn(admission.clone().run(jetstream, source, keeper, closing.clone()));
        }
        let refuse = move |delivery: Delivery, problem: String| {
            let admission = admission.clone();
            async move { admission.refuse_unreadable(&delivery, &problem).await }
        };
        self.background.spawn(undecodable::watch(self.jetstream.clone(), names.clone(), closing.clone(), refuse));
    }

    /// Feeds the window and dials what is in it, until `closing`.
    fn dial(&mut self, index: CallIndex, calls_per_second: f64, closing: &CancellationToken) {
        let window = Window::new(self.jetstream.clone(), &self.streams.names);
        let pace = (calls_per_second > 0.0).then_some(calls_per_second);
        let (waiting, pause, wanted) = (self.waiting.clone(), self.dialler.pause.clone(), self.feed_wanted.clone());
        let feed = Feed::new(waiting, window, pause, index, pace, wanted);
        self.background.spawn(feed.run(self.keeper.clone(), closing.clone()));
        let (dialler, handing_back) = (self.dialler.clone(), self.handing_back.clone());
        let pull = pull::pull(
            self.jetstream.clone(),
            self.streams.clone(),
            self.keeper.clone(),
            closing.clone(),
            move |delivery, permit| {
                dialler.accept(delivery, permit);
            },
        );
        self.background.spawn(async move {
            pull.await;
            handing_back.cancel();
        });
    }

    /// Works until `closing`, then hands back what is in progress: first pulling ends, then every task ends its step.
    async fn run(self, closing: &CancellationToken) {
        closing.cancelled().await;
        self.handing_back.cancelled().await;
        self.dialler.tasks.close();
        if tokio::time::timeout(HAND_BACK_WITHIN, self.dialler.tasks.wait()).await.is_err() {
            tracing::warn!(messages = self.dialler.in_flight.count(), "some messages were not handed back in time");
        }
        connect::flush(&self.client).await;
    }
}

fn notifier(wanted: &Arc<Notify>) -> Box<dyn Fn() + Send + Sync> {
    let wanted = wanted.clone();
    Box::new(move || wanted.notify_one())
}

/// Whoever holds a call that is to be cancelled learns of it from the log.
fn note_change(store: &JobStore, cluster: &str, brief: &Brief) {
    let Brief { name, job, status, .. } = brief;
    let is_ours = brief.cluster.as_deref() == Some(cluster);
    let claimed = job.as_ref().filter(|_| is_ours && status.is_active());
    store.set_claim(name, claimed.map(|job| Claim { job: job.clone(), recorded_at: brief.time }));
    if *status == Status::Cancelling
        && let Some(job) = job
    {
        store.wake(job);
    }
}

/// Keeps up to date what health and metrics say about the queue, until `stop`.
async fn keep_queue_state(
    jetstream: jetstream::Context,
    names: Names,
    api: Api,
    pause: Pause,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let state = match api.in_progress() {
            Some(count) => control::state(&jetstream, &names, count, pause.paused(now())).await.ok(),
            None => None,
        };
        api.set_queue_state(state);
        retry::sleep(&stop, QUEUE_STATE_EVERY).await;
    }
}
