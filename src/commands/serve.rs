//! `serve`: puts everything together, and takes it apart again at the end. The only place that knows all parts.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use async_nats::{Client, jetstream};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{banner, place};
use crate::{
    call::Status,
    cli::Effective,
    config::{HttpArgs, QueueArgs, Settings},
    desk::{self, Desk},
    dialler::{Dialler, Limits},
    http::{self, HttpSettings},
    job::JobDefaults,
    jobs::{Brief, JobView},
    log::StatusLog,
    queue::{
        Delivery, Names, StreamSettings,
        connect::{self, ConnectError},
        control,
        dead::DeadLetters,
        due,
        intake::{self, Holds},
        pace::Pace,
        presence::Presence,
        streams,
        submit::Submitter,
        unreadable,
    },
    retry::{self, Retry},
    schema, shutdown,
    tracker::{self, Sightings},
};

/// How old what health and metrics tell of the queue may be.
const QUEUE_LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long the calls in progress may take to be handed back at the end.
const HAND_BACK_WITHIN: Duration = Duration::from_secs(8);

/// Serves until a signal. HTTP answers from the first moment on, and says what is not ready yet.
///
/// # Errors
/// What makes it impossible to begin: the port is taken, a file cannot be read, the server is too old.
pub async fn run(settings: Settings, effective: &[Effective]) -> Result<()> {
    let closing = shutdown::on_signal().context("signals cannot be listened to")?;
    banner::tell(effective);
    let defaults = settings.job.defaults()?;
    let listener = listen(&settings.http).await?;
    let desk = Desk::default();
    let stopped = closing.clone().cancelled_owned();
    let server = tokio::spawn(http::serve(listener, desk.clone(), http_settings(), stopped));
    tokio::select! {
        started = Engine::start(&settings, defaults, &desk, &closing) => started?.run(&closing).await,
        () = closing.cancelled() => {}
    }
    server.await.context("the HTTP server broke down")?;
    tracing::info!("ended in order");
    Ok(())
}

async fn listen(settings: &HttpArgs) -> Result<TcpListener> {
    let HttpArgs { host, port } = *settings;
    let address = SocketAddr::new(host, port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; choose another HOST or PORT"))?;
    tracing::info!("listening on http://{}", listener.local_addr()?);
    Ok(listener)
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
    dialler: Arc<Dialler>,
    handing_back: CancellationToken,
    background: JoinSet<()>,
}

impl Engine {
    /// Connects to NATS and the runner, however long that takes, and begins to follow both.
    async fn start(
        settings: &Settings,
        defaults: JobDefaults,
        desk: &Desk,
        closing: &CancellationToken,
    ) -> Result<Self> {
        let (client, runner) = tokio::try_join!(connected(settings), place::open(settings, &defaults))?;
        let jetstream = connect::jetstream(client.clone());
        let streams = settings.queue.settings();
        retry::forever("prepare the queue", || streams::ensure(&jetstream, &streams)).await;
        let log = StatusLog::open(jetstream.clone(), &streams.names, settings.queue.status_retention).await?;
        let bucket = retry::forever("prepare the bucket", || streams::bucket(&jetstream, &streams)).await;
        let QueueArgs { calls_per_second, orphan_after, .. } = settings.queue;
        let handing_back = CancellationToken::new();
        let dialler = Arc::new(Dialler {
            log: log.clone(),
            runner: runner.clone(),
            sightings: Sightings::default(),
            holds: Holds::new(client.clone()),
            submitter: Submitter::new(jetstream.clone(), &streams.names),
            dead: DeadLetters::new(jetstream.clone(), &streams.names),
            defaults,
            cluster: settings.runner.cluster_name.clone().unwrap_or_else(|| runner.place().cluster.clone()),
            pace: (calls_per_second > 0.0).then(|| Pace::new(bucket.clone(), calls_per_second)),
            presence: Presence::new(bucket, orphan_after),
            closing: handing_back.clone(),
            tasks: TaskTracker::new(),
            limits: Limits::default(),
        });
        let mut engine = Self { client, jetstream, streams, dialler, handing_back, background: JoinSet::new() };
        engine.follow(desk, settings.queue.status_retention);
        engine.take_in(closing);
        tracing::info!(runner = runner.place().kind, cluster = engine.dialler.cluster, "ready to dial");
        Ok(engine)
    }

    /// The view follows the log, the sightings follow the runner, and the server hears of what is in progress.
    fn follow(&mut self, desk: &Desk, retention: Duration) {
        let dialler = &self.dialler;
        let view = JobView::default();
        desk.open(desk::Parts {
            client: self.client.clone(),
            log: dialler.log.clone(),
            submitter: dialler.submitter.clone(),
            view: view.clone(),
            namespace: dialler.defaults.namespace.clone(),
        });
        let sightings = dialler.sightings.clone();
        let stream = self.streams.names.status_stream.clone();
        let patient = connect::patient_jetstream(self.client.clone());
        let told = move |brief: &Brief| wake_if_cancelling(&sightings, brief);
        self.background.spawn(view.clone().follow(patient, dialler.log.clone(), stream, told));
        self.background.spawn(view.sweep(retention));
        let (listed, others) = (desk.clone(), dialler.clone());
        self.background.spawn(tracker::watch_runner(
            dialler.runner.clone(),
            dialler.sightings.clone(),
            move |unfollowed| {
                listed.runner_has_listed();
                others.reconcile(unfollowed);
            },
        ));
        self.background.spawn(dialler.holds.clone().keep());
        let (state, names) = (desk.clone(), self.streams.names.clone());
        self.background.spawn(look_at_queue(self.jetstream.clone(), names, state));
        self.background.spawn(dialler.presence.clone().show(dialler.cluster.clone()));
    }

    /// Moves what comes due into the queue, and takes from the queue, until `closing`.
    fn take_in(&mut self, closing: &CancellationToken) {
        let (names, submitter) = (self.streams.names.clone(), self.dialler.submitter.clone());
        self.background.spawn(due::run(self.jetstream.clone(), names, submitter, closing.clone()));
        let dialler = self.dialler.clone();
        let refuse = move |delivery: Delivery, problem: String| {
            let dialler = dialler.clone();
            async move { dialler.refuse_unreadable(&delivery, &problem).await }
        };
        let (names, holds) = (self.streams.names.clone(), self.dialler.holds.clone());
        self.background.spawn(unreadable::watch(self.jetstream.clone(), names, holds, refuse));
        let (dialler, handing_back) = (self.dialler.clone(), self.handing_back.clone());
        let pull =
            intake::pull(self.jetstream.clone(), self.streams.clone(), closing.clone(), move |delivery, room| {
                dialler.take(delivery, room);
            });
        self.background.spawn(async move {
            pull.await;
            handing_back.cancel();
        });
    }

    /// Works until `closing`, then hands back what is in progress: first nothing more is taken, then every task ends its step.
    async fn run(self, closing: &CancellationToken) {
        closing.cancelled().await;
        self.handing_back.cancelled().await;
        self.dialler.tasks.close();
        if tokio::time::timeout(HAND_BACK_WITHIN, self.dialler.tasks.wait()).await.is_err() {
            tracing::warn!(messages = self.dialler.holds.count(), "not everything was handed back in time");
        }
        connect::flush(&self.client).await;
    }
}

/// Whoever holds a call that is to be cancelled learns of it from the log.
fn wake_if_cancelling(sightings: &Sightings, brief: &Brief) {
    if brief.status == Status::Cancelling
        && let Some(job) = &brief.job
    {
        sightings.wake(job);
    }
}

/// Keeps, for ever, what health and metrics tell of the queue.
async fn look_at_queue(jetstream: jetstream::Context, names: Names, desk: Desk) {
    let mut ticks = tokio::time::interval(QUEUE_LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        desk.queue_is(control::state(&jetstream, &names).await.ok());
    }
}

/// A connection to NATS, however long it takes; only what cannot heal is an error.
async fn connected(settings: &Settings) -> Result<Client> {
    let nats = settings.nats.settings();
    let mut trouble = Retry::new("connect to NATS");
    loop {
        match connect::connect(&nats).await {
            Ok(client) => return Ok(client),
            Err(ConnectError::Away(away)) => tokio::time::sleep(trouble.failed(away)).await,
            Err(fatal) => return Err(fatal.into()),
        }
    }
}
