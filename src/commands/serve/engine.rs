//! The part of `serve` that dials: wires everything together, and hands over what is in progress at the end. The only module that knows
//! all parts.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_nats::jetstream::kv::Store;
use async_nats::{Client, jetstream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{Admission, Source};
use crate::api::{self, Api};
use crate::call::Status;
use crate::call_index::{Brief, CallIndex};
use crate::commands::{durability, nats_session, open_runner};
use crate::config::trunks::Reload;
use crate::config::{QueueArgs, Settings};
use crate::dialler::{Dialler, Starts};
use crate::feed::{Feed, FeedSignal};
use crate::job::JobDefaults;
use crate::job::advance::Patience;
use crate::job_watch::{self, Claim, JobStore};
use crate::nats::connect::{self, Refusal};
use crate::nats::{StreamSettings, streams};
use crate::queue::control::Pause;
use crate::queue::dead_letters::DeadLetters;
use crate::queue::keeper::Dialled;
use crate::queue::scheduled::Timers;
use crate::queue::state::Look;
use crate::queue::{
    Breakers, Delivery, InFlight, Inbox, Keeper, LiveTrunks, TrunkControl, Waiting, Window, pull, undecodable,
};
use crate::reconcile::{Judge, Reconciler};
use crate::retry;
use crate::runner::Runner;
use crate::status_log::StatusLog;

/// How old the state of the queue in `/health` and `/metrics` may be.
const QUEUE_STATE_EVERY: Duration = Duration::from_secs(2);
/// How long the calls in progress may take to be handed back at the end.
const HAND_BACK_WITHIN: Duration = Duration::from_secs(8);

/// Why nothing was started; not shown, since a signal came first.
const STOPPED: &str = "stopped before the start was complete";

/// The part that dials.
pub(super) struct Engine {
    session: Session,
    feed_signal: Arc<FeedSignal>,
    dialler: Arc<Dialler>,
    handing_back: CancellationToken,
    background: JoinSet<()>,
}

/// What there is of NATS.
struct Session {
    client: Client,
    jetstream: jetstream::Context,
    streams: StreamSettings,
    in_flight: InFlight,
    keeper: Arc<Keeper>,
    log: StatusLog,
    waiting: Waiting,
    bucket: Store,
}

impl Session {
    /// Makes the streams as they should be, however long that takes.
    async fn open(settings: &Settings, client: Client, live: &LiveTrunks, closing: &CancellationToken) -> Result<Self> {
        let (jetstream, streams) = (connect::jetstream(client.clone()), settings.queue.settings());
        let in_flight = InFlight::new(client.clone());
        let keeper = Arc::new(Keeper::new(jetstream.clone(), streams.clone(), live.clone(), in_flight.clone()));
        retry::until_stopped(closing, "prepare the streams", || keeper.look()).await.context(STOPPED)?;
        let log = StatusLog::open(jetstream.clone(), &streams.names, settings.queue.status_retention).await?;
        let waiting = Waiting::open(jetstream.clone(), &streams.names).await?;
        let open = || streams::bucket(&jetstream, &streams);
        let bucket = retry::until_stopped(closing, "open the bucket", open).await.context(STOPPED)?;
        Ok(Self { client, jetstream, streams, in_flight, keeper, log, waiting, bucket })
    }

    /// What holds calls back, as it is now.
    async fn steering(
        &self,
        settings: &Settings,
        live: LiveTrunks,
        closing: &CancellationToken,
    ) -> Result<(Pause, TrunkControl)> {
        let Self { jetstream, streams, bucket, .. } = self;
        let (alerts, failures) = (&streams.names.alerts, settings.trunks.breaker_failures);
        let breakers = Breakers::new(bucket.clone(), jetstream.clone(), alerts, failures);
        let pause = Pause::default();
        let read = || async {
            pause.read(bucket).await?;
            breakers.read_all(live.borrow().iter().map(|trunk| trunk.name.clone()).collect()).await
        };
        retry::until_stopped(closing, "read what holds calls back", read).await.context(STOPPED)?;
        Ok((pause, TrunkControl::new(live.clone(), breakers, bucket.clone())))
    }

    /// What processes the messages of the window.
    fn dialler(
        &self,
        settings: &Settings,
        (defaults, runner): (JobDefaults, Arc<dyn Runner>),
        (pause, trunks): (Pause, TrunkControl),
        on_settled: impl Fn() + Send + Sync + 'static,
        closing: CancellationToken,
    ) -> Dialler {
        let Self { jetstream, streams: StreamSettings { names, .. }, log, in_flight, waiting, .. } = self;
        let patience = Patience { start_seconds: defaults.start_seconds, faults: settings.queue.fault_patience };
        let judge = Judge { patience, breakers: trunks.breakers.clone() };
        let (tasks, store) = (TaskTracker::new(), JobStore::default());
        let cluster = settings.runner.cluster_name.clone().unwrap_or_else(|| runner.info().cluster.clone());
        let reconciler = Reconciler::new(
            log.clone(),
            runner.clone(),
            store.clone(),
            judge.clone(),
            cluster.clone(),
            closing.clone(),
            tasks.clone(),
        );
        Dialler {
            log: log.clone(),
            runner,
            store,
            reconciler,
            in_flight: in_flight.clone(),
            timers: Timers::new(jetstream.clone(), names),
            dead: DeadLetters::new(jetstream.clone(), names),
            defaults,
            cluster,
            pause,
            trunks,
            window: Window::new(jetstream.clone(), names),
            waiting: waiting.clone(),
            on_settled: Box::new(on_settled),
            judge,
            closing,
            tasks,
            starts: Starts::default(),
        }
    }
}

impl Engine {
    /// Connects to NATS and the runner, however long that takes, and begins to follow both.
    ///
    /// # Errors
    /// What makes it impossible to start; that the process is to end.
    pub(super) async fn start(
        settings: &Settings,
        (defaults, (live, reload)): (JobDefaults, (LiveTrunks, Option<Reload>)),
        api: &Api,
        closing: &CancellationToken,
        refusal: &Refusal,
    ) -> Result<Self> {
        let client = nats_session::open_patiently(settings, api, refusal);
        let (client, runner) = tokio::try_join!(client, open_runner::open(settings, &defaults))?;
        let session = Session::open(settings, client, &live, closing).await?;
        let (pause, trunks) = session.steering(settings, live, closing).await?;
        let (feed_signal, handing_back) = (Arc::new(FeedSignal::default()), CancellationToken::new());
        let signal = feed_signal.clone();
        let on_settled = move || signal.room();
        let (runner_kind, stop) = (runner.info().kind, handing_back.clone());
        let dialler = session.dialler(settings, (defaults, runner), (pause, trunks), on_settled, stop);
        let background = JoinSet::new();
        let mut engine = Self { session, feed_signal, dialler: Arc::new(dialler), handing_back, background };
        engine.watch_settings(settings, reload, api, closing);
        let index = engine.follow(api, &settings.queue, closing);
        engine.admit(index.clone(), closing);
        engine.dial(index, closing);
        tracing::info!(runner = runner_kind, cluster = engine.dialler.cluster, "ready to dial");
        Ok(engine)
    }

    /// Follows what people set while it runs: the file of the trunks, breakers and pauses; and whether the server keeps what it accepts.
    fn watch_settings(&mut self, settings: &Settings, reload: Option<Reload>, api: &Api, closing: &CancellationToken) {
        let Dialler { trunks, pause, .. } = &*self.dialler;
        let live = trunks.live();
        let names = move || live.borrow().iter().map(|trunk| trunk.name.clone()).collect();
        self.background.spawn(trunks.breakers.clone().follow(names, closing.clone()));
        self.background.spawn(pause.clone().follow(self.session.bucket.clone(), closing.clone()));
        self.background.spawn(durability::watch(settings.nats.nats_monitoring_url.clone(), api.clone()));
        if let Some(reload) = reload {
            self.background.spawn(reload.run(closing.clone()));
        }
    }

    /// The index follows the log, the store follows the runner, and the ack waits of what is in progress are extended.
    fn follow(&mut self, api: &Api, settings: &QueueArgs, closing: &CancellationToken) -> CallIndex {
        let dialler = &self.dialler;
        let index = CallIndex::new(settings.index_max_calls);
        api.open(api::Parts {
            client: self.session.client.clone(),
            log: dialler.log.clone(),
            inbox: Inbox::new(self.session.jetstream.clone(), &self.session.streams.names),
            waiting: self.session.waiting.clone(),
            timers: dialler.timers.clone(),
            index: index.clone(),
            trunks: dialler.trunks.clone(),
            pause: dialler.pause.clone(),
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
        let look = Look {
            jetstream: self.session.jetstream.clone(),
            names: self.session.streams.names.clone(),
            waiting: self.session.waiting.clone(),
            window: dialler.window.clone(),
            trunks: dialler.trunks.clone(),
            pause: dialler.pause.clone(),
        };
        self.background.spawn(keep_state(look, self.session.keeper.dialled(), api.clone(), closing.clone()));
        index
    }

    /// Keeps the streams, and admits what arrives and what comes due, until `closing`.
    fn admit(&mut self, index: CallIndex, closing: &CancellationToken) {
        let (names, dialler) = (&self.session.streams.names, &self.dialler);
        let (keeper, stop) = (self.session.keeper.clone(), closing.clone());
        self.background.spawn(async move { keeper.run(stop).await });
        let admission = Arc::new(Admission {
            log: dialler.log.clone(),
            waiting: self.session.waiting.clone(),
            window: dialler.window.clone(),
            timers: dialler.timers.clone(),
            dead: dialler.dead.clone(),
            due: names.due.clone(),
            index,
            trunks: dialler.trunks.live(),
            namespace: dialler.defaults.namespace.clone(),
            on_queued: Box::new({
                let signal = self.feed_signal.clone();
                move |trunks| signal.queued(trunks)
            }),
        });
        let sources = [(&names.calls_stream, &names.admission_consumer), (&names.schedule_stream, &names.due_consumer)];
        for (stream, consumer) in sources {
            let source = Source { stream: stream.clone(), consumer: consumer.clone() };
            let (jetstream, keeper) = (self.session.jetstream.clone(), self.session.keeper.clone());
            // Waited for at the end, as the calls in progress are.
            dialler.tasks.spawn(admission.clone().run(jetstream, source, keeper, closing.clone()));
        }
        let refuse = move |delivery: Delivery, problem: String| {
            let admission = admission.clone();
            async move { admission.refuse_unreadable(&delivery, &problem).await }
        };
        self.background.spawn(undecodable::watch(
            self.session.jetstream.clone(),
            names.clone(),
            closing.clone(),
            refuse,
        ));
    }

    /// Feeds the window and dials what is in it, until `closing`.
    fn dial(&mut self, index: CallIndex, closing: &CancellationToken) {
        let Dialler { window, trunks, pause, .. } = &*self.dialler;
        let (window, trunks, pause) = (window.clone(), trunks.clone(), pause.clone());
        let feed = Feed::new(self.session.waiting.clone(), window, trunks, pause, index, self.feed_signal.clone());
        self.background.spawn(feed.run(self.session.keeper.clone(), closing.clone()));
        let (dialler, handing_back) = (self.dialler.clone(), self.handing_back.clone());
        let work = Arc::new(move |delivery, permit| dialler.accept(delivery, permit));
        let (jetstream, names) = (self.session.jetstream.clone(), self.session.streams.names.clone());
        let pull = pull::pull(jetstream, names, self.session.keeper.clone(), closing.clone(), work);
        self.background.spawn(async move {
            pull.await;
            handing_back.cancel();
        });
    }

    /// Works until `closing`, then hands back what is in progress: first pulling ends, then every task ends its step.
    pub(super) async fn run(self, closing: &CancellationToken) {
        closing.cancelled().await;
        self.handing_back.cancelled().await;
        self.dialler.tasks.close();
        if tokio::time::timeout(HAND_BACK_WITHIN, self.dialler.tasks.wait()).await.is_err() {
            tracing::warn!(messages = self.dialler.in_flight.count(), "some messages were not handed back in time");
        }
        connect::flush(&self.session.client).await;
    }
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

/// Keeps up to date what health, metrics and the list of trunks say, until `stop`.
async fn keep_state(look: Look, dialled: watch::Receiver<Dialled>, api: Api, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let overview = match api.in_progress() {
            Some(count) => {
                let dialled = dialled.borrow().clone();
                look.look(&dialled, count, |trunk| api.active_on(trunk)).await.ok()
            }
            None => None,
        };
        api.set_overview(overview);
        retry::sleep(&stop, QUEUE_STATE_EVERY).await;
    }
}
