//! Keeps the streams, the bucket and the consumers as they should be while the operator runs: what somebody deletes or changes is
//! made again within seconds, and what rests on it goes on.
//!
//! Looking costs the server one small request for each of them. Whoever stumbles over something missing asks for a look at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::PullConsumer;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{InFlight, LiveTrunks, Window, control};
use crate::clock::now;
use crate::nats::streams::{self, StreamKind};
use crate::nats::{NatsError, NatsErrorKind, StreamSettings};
use crate::policy::Trunks;
use crate::retry::{self, Retry};

/// How often everything is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How long the consumer of a trunk that is gone is kept with nothing to dial: by then every replica knows that the trunk is.
const FORMER_KEPT: SignedDuration = SignedDuration::from_mins(10);

/// See the module.
pub struct Keeper {
    jetstream: Context,
    settings: StreamSettings,
    trunks: LiveTrunks,
    in_flight: InFlight,
    started: Timestamp,
    wanted: Notify,
    window_made_at: Mutex<Option<Timestamp>>,
    /// The trunks that the consumers were made for last, and since when they are in force.
    in_force: Mutex<(Arc<Trunks>, Timestamp)>,
    dialled: watch::Sender<Dialled>,
    /// Trunks that are gone and have nothing to dial, and since when.
    idle: Mutex<HashMap<String, Timestamp>>,
}

/// The trunks that there are messages to pull for, and how many of each may be in flight: those that are configured, and those that are
/// not any more.
pub type Dialled = BTreeMap<String, u32>;

impl Keeper {
    /// Keeps what `settings` describe. `in_flight` has to know when the window is a new one.
    pub fn new(jetstream: Context, settings: StreamSettings, trunks: LiveTrunks, in_flight: InFlight) -> Self {
        let started = now();
        let in_force = Mutex::new((trunks.borrow().clone(), started));
        Self {
            jetstream,
            settings,
            trunks,
            in_flight,
            started,
            wanted: Notify::new(),
            window_made_at: Mutex::default(),
            in_force,
            dialled: watch::Sender::default(),
            idle: Mutex::default(),
        }
    }

    /// The trunks that there are messages to pull for, from now on.
    pub fn dialled(&self) -> watch::Receiver<Dialled> {
        self.dialled.subscribe()
    }

    /// Asks for a look at once.
    pub fn look_soon(&self) {
        self.wanted.notify_one();
    }

    /// Looks every few seconds, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut retry = Retry::new("keep streams and consumers as they should be");
        let mut trunks = self.trunks.clone();
        while !stop.is_cancelled() {
            tokio::select! {
                // Without a file they never change, and nobody is there to say so.
                Ok(()) = trunks.changed() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.wanted.notified() => {}
                () = stop.cancelled() => return,
            }
            match self.look().await {
                Ok(()) => retry.worked(),
                Err(error) => retry::sleep(&stop, retry.failed(error.chain())).await,
            }
        }
    }

    /// Makes everything as it should be, once. What fails does not keep the others from being looked at.
    ///
    /// # Errors
    /// The first [`NatsError`].
    pub async fn look(&self) -> Result<(), NatsError> {
        let mut results = Vec::new();
        for kind in StreamKind::ALL {
            let made = streams::ensure_stream(&self.jetstream, &self.settings, kind, self.started).await;
            if let (StreamKind::Dial, Ok(made_at)) = (kind, &made) {
                self.window_was_made(*made_at);
            }
            results.push(made.map(drop));
        }
        results.push(self.look_at_consumers().await);
        results.into_iter().collect()
    }

    async fn look_at_consumers(&self) -> Result<(), NatsError> {
        let Self { jetstream, settings, started, .. } = self;
        match streams::ensure_consumers(jetstream, settings, *started).await {
            Err(error) if error.kind() == NatsErrorKind::Refused && self.take_over_former_queue().await? => {
                streams::ensure_consumers(jetstream, settings, *started).await?;
            }
            ensured => ensured?,
        }
        self.look_at_trunks().await
    }

    /// One consumer for each trunk. That of a trunk that is gone stays for as long as there is something in flight or to be handed on.
    async fn look_at_trunks(&self) -> Result<(), NatsError> {
        let Self { jetstream, settings, .. } = self;
        let (trunks, since) = self.in_force();
        let mut dialled = Dialled::new();
        for trunk in trunks.iter() {
            let consumer = streams::ensure_dialler(jetstream, settings, &trunk.name, trunk.max_active, since).await?;
            self.adopt_pause(&settings.names.dial_stream, &consumer).await?;
            dialled.insert(trunk.name.clone(), trunk.max_active);
        }
        let present = streams::dialled_trunks(jetstream, &settings.names).await?;
        for former in present.into_iter().filter(|name| trunks.get(name).is_none()) {
            if let Some(channels) = self.look_at_former(&former).await? {
                dialled.insert(former, channels);
            }
        }
        self.dialled.send_if_modified(|known| {
            let is_new = *known != dialled;
            *known = dialled;
            is_new
        });
        Ok(())
    }

    fn in_force(&self) -> (Arc<Trunks>, Timestamp) {
        let trunks = self.trunks.borrow().clone();
        let mut in_force = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        if in_force.0 != trunks {
            *in_force = (trunks, now());
        }
        in_force.clone()
    }

    /// How many may be in flight on a trunk that is gone; `None` when its consumer was removed.
    async fn look_at_former(&self, trunk: &str) -> Result<Option<u32>, NatsError> {
        let Self { jetstream, settings, .. } = self;
        let occupancy = Window::new(jetstream.clone(), &settings.names).occupancy(trunk).await?;
        let idle_since = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if occupancy.messages() > 0 {
                idle.remove(trunk);
            }
            (occupancy.messages() == 0).then(|| *idle.entry(trunk.to_owned()).or_insert_with(now))
        };
        if idle_since.is_some_and(|since| now().duration_since(since) >= FORMER_KEPT) {
            streams::remove_dialler(jetstream, &settings.names, trunk).await?;
            tracing::info!(trunk, "nothing is left to dial on a trunk that is gone");
            return Ok(None);
        }
        Ok(Some(u32::try_from(occupancy.channels).unwrap_or(u32::MAX)))
    }

    /// What version 0.1 has in its queue, calls in progress included, is admitted anew. False when there is nothing of it.
    async fn take_over_former_queue(&self) -> Result<bool, NatsError> {
        let Self { jetstream, settings: StreamSettings { names, .. }, .. } = self;
        let Some(former) = streams::former_consumer(jetstream, names).await? else { return Ok(false) };
        self.adopt_pause(&names.calls_stream, &former).await?;
        streams::remove_former_consumer(jetstream, names).await?;
        tracing::info!("took over the queue of version 0.1, calls in progress included");
        Ok(true)
    }

    async fn adopt_pause(&self, stream: &str, consumer: &PullConsumer) -> Result<(), NatsError> {
        if !consumer.cached_info().paused {
            return Ok(());
        }
        let store = streams::bucket(&self.jetstream, &self.settings).await?;
        control::adopt_consumer_pause(&self.jetstream, stream, consumer, &store).await
    }

    /// A window that was made again counts from 1: an acknowledgement for a message of the lost one would settle another message.
    fn window_was_made(&self, made_at: Timestamp) {
        let known = self.window_made_at.lock().unwrap_or_else(PoisonError::into_inner).replace(made_at);
        if known.is_some_and(|known| known != made_at) {
            self.in_flight.forget_before(made_at);
        }
    }
}
