//! Keeps the streams, the bucket and the consumers as they should be while the operator runs: what somebody deletes or changes is
//! made again within seconds, and what rests on it goes on.
//!
//! Looking costs the server one small request for each of them. Whoever stumbles over something missing asks for a look at once.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::PullConsumer;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{InFlight, control};
use crate::clock::now;
use crate::nats::streams::{self, StreamKind};
use crate::nats::{NatsError, NatsErrorKind, StreamSettings};
use crate::retry::{self, Retry};

/// How often everything is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// See the module.
pub struct Keeper {
    jetstream: Context,
    settings: StreamSettings,
    in_flight: InFlight,
    started: Timestamp,
    wanted: Notify,
    window_made_at: Mutex<Option<Timestamp>>,
}

impl Keeper {
    /// Keeps what `settings` describe. `in_flight` has to know when the window is a new one.
    pub fn new(jetstream: Context, settings: StreamSettings, in_flight: InFlight) -> Self {
        let (wanted, window_made_at) = (Notify::new(), Mutex::default());
        Self { jetstream, settings, in_flight, started: now(), wanted, window_made_at }
    }

    /// Asks for a look at once.
    pub fn look_soon(&self) {
        self.wanted.notify_one();
    }

    /// Looks every few seconds, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut retry = Retry::new("keep streams and consumers as they should be");
        while !stop.is_cancelled() {
            tokio::select! {
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
        let consumer = match streams::ensure_consumers(jetstream, settings, *started).await {
            Err(error) if error.kind() == NatsErrorKind::Refused && self.take_over_former_queue().await? => {
                streams::ensure_consumers(jetstream, settings, *started).await?
            }
            ensured => ensured?,
        };
        self.adopt_pause(&settings.names.dial_stream, &consumer).await
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
