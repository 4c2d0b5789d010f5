//! Processing one message: decode → identify → (decide → do one step) until it is settled.
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

use crate::call::{Call, CallId, FieldError, Fingerprint, Refusal, StatusEvent, validate};
use crate::clock::now;
use crate::job::JobDefaults;
use crate::job::advance::Patience;
use crate::job_watch::JobStore;
use crate::nats::NatsErrorKind;
use crate::queue::control::Pause;
use crate::queue::dead_letters::DeadLetters;
use crate::queue::in_flight::Settlement;
use crate::queue::inbox::{HEADER_CALL_ID, HEADER_DUE, HEADER_QUEUED_AT};
use crate::queue::pull::PrefetchPermit;
use crate::queue::rate_limit::RateLimit;
use crate::queue::scheduled::Timers;
use crate::queue::{Delivery, InFlight};
use crate::reconcile::Reconciler;
use crate::retry;
use crate::runner::Runner;
use crate::status_log::{Recorded, StatusLog};

/// Job creations under way at once: where an API server is at its fastest, and small enough not to crowd out other clients.
const STARTS_IN_FLIGHT: usize = 64;
/// How much the clocks of two replicas may differ: a moment that one of them accepts must not be too far ahead for the other.
const CLOCKS_DIFFER_BY: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);

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
    /// Whether new calls are held back.
    pub pause: Pause,
    /// Spaces the calls, where a rate is set.
    pub rate_limit: Option<RateLimit>,
    /// How long is waited for attempts.
    pub patience: Patience,
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
        let settlement = match decode(&delivery) {
            Ok(call) => {
                let asked = asked(&delivery, &call);
                let span = tracing::info_span!("call", call_id = %call.id, job = call.name.job(asked.attempt), attempt = asked.attempt);
                Processing::new(self, call, asked, delivery, permit).run().instrument(span).await
            }
            Err(unfit) => self.refuse(&delivery, unfit).await,
        };
        self.in_flight.settle(message, settlement).await;
    }

    /// Refuses a message that was delivered and never arrived, since its headers cannot be read.
    pub async fn refuse_unreadable(&self, delivery: &Delivery, problem: &str) {
        let id = validate::parse(&delivery.payload, now()).ok().and_then(|parsed| parsed.id);
        let message = format!("cannot be read: {problem}");
        let errors = vec![FieldError { field: "headers".to_owned(), message }];
        self.refuse(delivery, Unfit { id: id.clone(), refusal: Refusal::Invalid { id, errors } }).await;
    }

    /// Puts a message that cannot be a call aside and, where it has an id, records that it is rejected.
    async fn refuse(&self, delivery: &Delivery, unfit: Unfit) -> Settlement {
        let reason = unfit.refusal.to_string();
        tracing::warn!(
            sequence = delivery.sequence,
            reason,
            "a message is not a valid call request; it becomes a dead letter"
        );
        let put = || self.dead.put(delivery, &reason, now());
        if retry::until_stopped(&self.closing, "put a dead letter aside", put).await.is_none() {
            return Settlement::Nak(None);
        }
        if let Some(id) = unfit.id {
            let fingerprint = Fingerprint::of(&delivery.payload);
            let namespace = &self.defaults.namespace;
            let event = StatusEvent::rejected(id, fingerprint, namespace, delivery.queued_at(), reason, now());
            if self.append_first(event.in_trace(delivery.traceparent())).await.is_none() {
                return Settlement::Nak(None);
            }
        }
        Settlement::Ack
    }

    /// Appends the first event of a call; a call that has one already is left alone. `None` when the process is to end first.
    async fn append_first(&self, event: StatusEvent) -> Option<()> {
        retry::until_stopped(&self.closing, "append to the status log", || async {
            match self.log.append(event.clone(), 0).await {
                Err(error) if error.kind() != NatsErrorKind::Stale => Err(error),
                _ => Ok(()),
            }
        })
        .await
    }
}

/// Why a message is not a call, and whose it is when that much is known.
struct Unfit {
    id: Option<CallId>,
    refusal: Refusal,
}

/// Decode → validate → identify.
fn decode(delivery: &Delivery) -> Result<Call, Unfit> {
    // The clock of whoever accepted it may be ahead of this one.
    match validate::parse(&delivery.payload, now() + CLOCKS_DIFFER_BY) {
        Ok(parsed) => match identify(delivery, parsed.id) {
            Ok(id) => Ok(Call::new(id, parsed.spec).in_trace(delivery.traceparent())),
            Err(refusal) => Err(Unfit { id: None, refusal }),
        },
        Err(refusal) => {
            let body_id = match &refusal {
                Refusal::Invalid { id, .. } => id.clone(),
                Refusal::Malformed(_) => None,
            };
            Err(Unfit { id: body_id.or_else(|| named(delivery).and_then(Result::ok)), refusal })
        }
    }
}

/// The id in the body, else the one in a header, else one made of what the queue knows of the message.
fn identify(delivery: &Delivery, body_id: Option<CallId>) -> Result<CallId, Refusal> {
    match body_id.map(Ok).or_else(|| named(delivery)) {
        Some(named) => named,
        None => Ok(CallId::of_message(delivery.sequence, delivery.published)),
    }
}

/// The id that a header names.
fn named(delivery: &Delivery) -> Option<Result<CallId, Refusal>> {
    [HEADER_CALL_ID, "Nats-Msg-Id"].into_iter().find_map(|name| {
        let text = delivery.header(name)?;
        Some(CallId::parse(text).map_err(|error| Refusal::Invalid {
            id: None,
            errors: vec![FieldError { field: name.to_owned(), message: error.to_string() }],
        }))
    })
}

fn asked(delivery: &Delivery, call: &Call) -> Asked {
    Asked {
        attempt: delivery.attempt(),
        sequence: delivery.sequence,
        fingerprint: call.fingerprint.clone(),
        accepted: delivery.header(HEADER_QUEUED_AT).is_some(),
        fired_at: delivery.header(HEADER_DUE).and_then(|text| text.parse().ok()),
        deliveries: delivery.deliveries,
        not_before: call.spec.not_before,
        not_after: call.spec.not_after,
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
