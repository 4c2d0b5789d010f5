//! Processing one message of the window: (decide → do one step) until it is settled.
//!
//! Every step ends in the status log or begins with reading it, so a crash between any two of them leaves nothing but a
//! message that is delivered again and a log that says what it means.

pub mod decide;
mod error_policy;
mod limits;
mod processing;
mod redial;

use std::sync::Arc;

use bytes::Bytes;
use decide::Asked;
use processing::Processing;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::call::Call;
use crate::clock::now;
use crate::job::JobDefaults;
use crate::job_watch::JobStore;
use crate::queue::control::Pause;
use crate::queue::dead_letters::DeadLetters;
use crate::queue::decode::{Decoded, decode};
use crate::queue::in_flight::Settlement;
use crate::queue::pull::PrefetchPermit;
use crate::queue::scheduled::Timers;
use crate::queue::{Delivery, InFlight, TrunkControl, Waiting, Window};
use crate::reconcile::{Judge, Reconciler};
use crate::retry;
use crate::runner::Runner;
use crate::status_log::{Recorded, StatusLog};

/// Job creations under way at once: where an API server is at its fastest, and small enough not to crowd out other clients.
const STARTS_IN_FLIGHT: usize = 64;

/// Everything that is needed to process a message.
pub struct Dialler {
    /// The status log.
    pub log: StatusLog,
    /// Where Jobs run.
    pub runner: Arc<dyn Runner>,
    /// What the runner reported.
    pub store: JobStore,
    /// Lets settled Jobs go.
    pub reconciler: Reconciler,
    /// The messages in flight here.
    pub in_flight: InFlight,
    /// For attempts that wait for their moment.
    pub timers: Timers,
    /// For what cannot be a call.
    pub dead: DeadLetters,
    /// What every Job has in common.
    pub defaults: JobDefaults,
    /// Who we are among the clusters.
    pub cluster: String,
    /// Which new calls are held back.
    pub pause: Pause,
    /// The trunks, and how they are.
    pub trunks: TrunkControl,
    /// Where messages come from.
    pub window: Window,
    /// Where those go back to that may not be begun now.
    pub waiting: Waiting,
    /// Called when a call has left the window.
    pub on_settled: Box<dyn Fn() + Send + Sync>,
    /// What attempts are judged by.
    pub judge: Judge,
    /// Cancelled when the process is to end: messages are handed back.
    pub closing: CancellationToken,
    /// Every task that works on a message.
    pub tasks: TaskTracker,
    /// Job creations under way.
    pub starts: Starts,
}

/// Job creations under way at once.
#[derive(Debug)]
pub struct Starts(Semaphore);

impl Default for Starts {
    fn default() -> Self {
        Self(Semaphore::new(STARTS_IN_FLIGHT))
    }
}

impl Dialler {
    /// Processes a delivery in a task of its own; of a message that is in flight already, only the delivery is replaced.
    pub fn accept(self: &Arc<Self>, delivery: Delivery, permit: PrefetchPermit) {
        if self.in_flight.register(&delivery) {
            let dialler = self.clone();
            self.tasks.spawn(async move { dialler.process(delivery, permit).await });
        }
    }

    async fn process(&self, delivery: Delivery, permit: PrefetchPermit) {
        let message = delivery.message();
        let _released = self.in_flight.release_on_panic(message);
        let settlement = match decode(&delivery, now()) {
            Ok(Decoded { call, .. }) => {
                let asked = self.asked(&delivery, &call);
                let span = tracing::info_span!("call", call_id = %call.id, job = call.name.job(asked.attempt), attempt = asked.attempt);
                let mut processing = Processing::new(self, call, asked, delivery, permit);
                processing.run().instrument(span).await
            }
            Err(unfit) => Box::pin(self.refuse(&delivery, &unfit.refusal.to_string())).await,
        };
        self.in_flight.settle(message, settlement).await;
        (self.on_settled)();
    }

    fn asked(&self, delivery: &Delivery, call: &Call) -> Asked {
        Asked {
            attempt: delivery.attempt(),
            trunk: self.window.trunk_of(&delivery.subject).unwrap_or_default().to_owned(),
            deliveries: delivery.deliveries,
            fingerprint: call.fingerprint.clone(),
            not_after: call.spec.not_after,
        }
    }

    /// Admission lets nothing else through, so somebody else has published this to the window.
    async fn refuse(&self, delivery: &Delivery, reason: &str) -> Settlement {
        tracing::warn!(sequence = delivery.sequence, reason, "a message becomes a dead letter");
        let put = || self.dead.put(delivery, reason, now());
        match retry::until_stopped(&self.closing, "put a dead letter aside", put).await {
            Some(()) => Settlement::Ack,
            None => Settlement::Nak(None),
        }
    }
}

/// The parts of a delivery that outlive its decoding.
pub(crate) struct Origin {
    pub(crate) body: Bytes,
    pub(crate) queued_at: jiff::Timestamp,
}

impl From<&Delivery> for Origin {
    fn from(delivery: &Delivery) -> Self {
        Self { body: delivery.payload.clone(), queued_at: delivery.queued_at() }
    }
}

/// What a record in hand is good for: the state, and the sequence to append after.
pub(crate) fn after(last: Option<&Recorded>) -> u64 {
    last.map_or(0, |last| last.sequence)
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
