//! Admission: every request is judged as soon as it arrives, whatever the backlog. It is recorded as `queued`, `scheduled`, `expired` or
//! `rejected`, and waits from then on in the queue or in a timer, or lies with the dead letters. What comes due takes the same way.
//!
//! Decode → identify → (decide → record)* → put where it belongs → acknowledge. Every step is idempotent, so a crash between any two
//! of them is a redelivery.

pub mod decide;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{AckKind, Context, Message};
use decide::{Asked, Step, decide};
use futures::stream::{FuturesUnordered, TryReadyChunksError};
use futures::{FutureExt, StreamExt, TryStreamExt};
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::call::{Call, CallId, Change, FieldError, Fingerprint, Refusal, Status, StatusEvent, validate};
use crate::call_index::CallIndex;
use crate::clock::now;
use crate::nats::{NatsError, NatsErrorKind};
use crate::policy::{DEFAULT_TRUNK, TrunkGroup, Wanted};
use crate::queue::dead_letters::DeadLetters;
use crate::queue::decode::{Decoded, Unfit, decode};
use crate::queue::inbox::{HEADER_CALL_ID, HEADER_DUE, HEADER_EXPIRY, Labels};
use crate::queue::scheduled::Timers;
use crate::queue::waiting::Waiting;
use crate::queue::window::Window;
use crate::queue::{Delivery, Keeper, LiveTrunks};
use crate::retry::{self, Retry};
use crate::status_log::{Recorded, StatusLog};

/// How often the server shows that a waiting pull request is alive; after two missed ones the pull is made again.
const PULL_HEARTBEAT: Duration = Duration::from_secs(5);
/// Requests under way at once, of each source.
const AT_ONCE: usize = 256;
/// Requests that are begun at once, at most.
const BUNCH: usize = 128;
/// Requests that come within this time of each other are begun at once: what they need of the server then shares its reads and writes.
/// One that comes alone does not wait.
const GATHERED_FOR: Duration = Duration::from_millis(2);
/// Requests that the server sends ahead.
const AHEAD: usize = 512;
/// How long a request waits that could not be admitted, before it is delivered again.
const RETRY_DELAY: Duration = Duration::from_secs(2);

/// What is needed to admit a request.
pub struct Admission {
    /// The status log.
    pub log: StatusLog,
    /// For what is to be dialled.
    pub waiting: Waiting,
    /// For what is in progress.
    pub window: Window,
    /// For what has to wait for its moment.
    pub timers: Timers,
    /// For what cannot be a call.
    pub dead: DeadLetters,
    /// Where timers fire into. What comes from elsewhere cannot say that it is due.
    pub due: String,
    /// How many calls wait.
    pub index: CallIndex,
    /// Which trunks may dial a call.
    pub trunks: LiveTrunks,
    /// Namespace of the Jobs.
    pub namespace: String,
    /// Called when something was put into the queue for some trunks.
    pub on_queued: Box<dyn Fn(&TrunkGroup) + Send + Sync>,
}

/// Where requests come from.
#[derive(Debug, Clone)]
pub struct Source {
    /// The stream.
    pub stream: String,
    /// Its durable consumer.
    pub consumer: String,
}

impl Admission {
    /// Admits what `source` delivers, until `stop`. After an error it begins anew, once `keeper` has made what is missing. When it
    /// returns, what had been delivered is admitted or handed back.
    pub async fn run(
        self: Arc<Self>,
        jetstream: Context,
        source: Source,
        keeper: Arc<Keeper>,
        stop: CancellationToken,
    ) {
        let mut retry = Retry::new(format!("admit requests of {}", source.stream));
        while !stop.is_cancelled() {
            if let Err(error) = self.run_until_error(&jetstream, &source, &stop).await {
                keeper.look_soon();
                retry::sleep(&stop, retry.failed(error.chain())).await;
            }
        }
    }

    async fn run_until_error(
        &self,
        jetstream: &Context,
        source: &Source,
        stop: &CancellationToken,
    ) -> Result<(), NatsError> {
        let consumer = jetstream.get_consumer_from_stream(&source.consumer, &source.stream).await;
        let consumer: PullConsumer = consumer.map_err(NatsError::of)?;
        let messages = consumer.stream().max_messages_per_batch(AHEAD).heartbeat(PULL_HEARTBEAT).messages().await;
        let mut bunches = messages.map_err(NatsError::of)?.try_ready_chunks(BUNCH);
        let mut gathered = pin!(tokio::time::sleep(Duration::ZERO));
        let mut admissions = FuturesUnordered::new();
        let ended = loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break Ok(()),
                Some(()) = admissions.next() => {}
                () = &mut gathered, if !gathered.is_elapsed() => {}
                bunch = bunches.next(), if gathered.is_elapsed() && admissions.len() <= AT_ONCE - BUNCH => match bunch {
                    Some(Ok(messages)) => {
                        admissions.extend(messages.into_iter().map(|message| self.admit(message)));
                        gathered.as_mut().reset(Instant::now() + GATHERED_FOR);
                    }
                    Some(Err(TryReadyChunksError(messages, error))) => {
                        admissions.extend(messages.into_iter().map(|message| self.admit(message)));
                        break Err(NatsError::of(error));
                    }
                    None => break Err(NatsError::unavailable("the stream of requests ended")),
                },
            }
        };
        while let Some(Some(Ok(messages))) = bunches.next().now_or_never() {
            for message in messages {
                hand_back(&message).await;
            }
        }
        admissions.collect::<()>().await;
        ended
    }

    async fn admit(&self, message: Message) {
        let Some(delivery) = Delivery::of(message.clone()) else { return };
        let ack = match self.process(&delivery).await {
            Ok(()) => AckKind::Ack,
            Err(error) => {
                tracing::warn!(
                    error = error.chain(),
                    sequence = delivery.sequence,
                    "could not admit a request, will try again"
                );
                AckKind::Nak(Some(RETRY_DELAY))
            }
        };
        if let Err(error) = message.ack_with(ack).await {
            tracing::debug!(%error, "a request was not acknowledged; it will be admitted again, to the same end");
        }
    }

    /// Judges a request and puts it where it belongs; whatever it is, it may be acknowledged then.
    ///
    /// # Errors
    /// [`NatsError`]; the request must then be kept.
    pub async fn process(&self, delivery: &Delivery) -> Result<(), NatsError> {
        if delivery.subject == self.due && delivery.header(HEADER_EXPIRY).is_some() {
            return self.expire(delivery).await;
        }
        match decode(delivery, now()) {
            Ok(decoded) => match self.settle(&decoded, delivery).await {
                Err(error) if is_hopeless(&error) => self.put_aside(&decoded.call, delivery, error.chain()).await,
                settled => settled,
            },
            Err(unfit) => self.refuse(delivery, unfit).await,
        }
    }

    /// Step by step until the request is where it belongs.
    async fn settle(&self, decoded: &Decoded, delivery: &Delivery) -> Result<(), NatsError> {
        let Decoded { call, request } = decoded;
        let asked = self.asked(call, delivery);
        let route = self.trunks.borrow().candidates(&Wanted::of(&call.spec, None)).map(drop);
        // Most are new, and the append says so when one is not.
        let is_new = asked.fired.is_none() && route.is_ok();
        let mut last = if is_new { None } else { self.log.last(&call.name).await? };
        if let (Err(unroutable), None) = (route, &last) {
            let errors = vec![unroutable.as_field_error()];
            let reason = Refusal::Invalid { id: Some(call.id.clone()), errors }.to_string();
            tracing::warn!(call_id = %call.id, reason, "a message becomes a dead letter");
            self.dead.put(delivery, &reason, now()).await?;
            return self.record(call, None, Change::Rejected { reason }, delivery).await.map(drop);
        }
        loop {
            let step = decide(last.as_ref().map(|last| &last.event), &asked, now());
            tracing::trace!(call_id = %call.id, ?step, "admission");
            match step {
                Step::Record(change) => last = self.record(call, last, change, delivery).await?,
                Step::Queue(attempt) => return self.queue(decoded, last.as_ref(), attempt, delivery).await,
                Step::Schedule { attempt, due } => {
                    self.watch_expiry(call).await?;
                    let labels = labels(call, last.as_ref(), attempt, delivery);
                    return self.timers.set(&call.name, labels, due, request.clone()).await;
                }
                Step::Dial(attempt) => {
                    let labels = labels(call, last.as_ref(), attempt, delivery);
                    let job = call.name.job(attempt);
                    let trunk = last.as_ref().and_then(|last| last.event.trunk.as_deref()).unwrap_or(DEFAULT_TRUNK);
                    return self.window.put(trunk, &job, labels.headers(), request.clone()).await.map(drop);
                }
                Step::Done => return Ok(()),
                Step::Conflict => return self.refuse_conflict(call, delivery).await,
            }
        }
    }

    /// Appends a change, and returns the call's last record: another writer's, where that came first.
    async fn record(
        &self,
        call: &Call,
        last: Option<Recorded>,
        change: Change,
        delivery: &Delivery,
    ) -> Result<Option<Recorded>, NatsError> {
        let event = match &last {
            Some(last) => last.event.next(change, now()),
            None => StatusEvent::first(call, &self.namespace, delivery.queued_at(), change, now()),
        };
        let event = event.expect("admission decides on legal steps");
        let group = || self.group(call, last.as_ref());
        let event = match event.status {
            Status::Queued => event.for_trunks(group().names()).behind(self.index.count_of(Status::Queued) as u64),
            Status::Scheduled => event.for_trunks(group().names()),
            _ => event,
        };
        match self.log.append(event, last.map_or(0, |last| last.sequence)).await {
            Ok(recorded) => {
                fail::fail_point!("admission-recorded");
                Ok(Some(recorded))
            }
            Err(error) if error.kind() == NatsErrorKind::Stale => self.log.last(&call.name).await,
            Err(error) => Err(error),
        }
    }

    async fn refuse_conflict(&self, call: &Call, delivery: &Delivery) -> Result<(), NatsError> {
        let id = &call.id;
        let reason = format!("id `{id}` was used for another request before; the first call is untouched");
        tracing::warn!(reason, "a message becomes a dead letter");
        self.dead.put(delivery, &reason, now()).await
    }

    /// A call's `not_after` has passed: it expires if it still waits, and leaves nothing in the queue or in a timer.
    async fn expire(&self, delivery: &Delivery) -> Result<(), NatsError> {
        let Some(Ok(id)) = delivery.header(HEADER_CALL_ID).map(CallId::parse) else { return Ok(()) };
        loop {
            let Some(Recorded { event, sequence }) = self.log.last(&id.name()).await? else { return Ok(()) };
            if event.fingerprint.as_str().as_bytes() != &delivery.payload[..] {
                return Ok(());
            }
            let expired = match event.status {
                Status::Queued | Status::Scheduled => event.next(Change::Expired, now()),
                // A crash may have come between the record and what follows it.
                Status::Expired => {
                    self.waiting.withdraw(&event).await?;
                    return self.timers.remove(&event.name, event.attempt + 1).await;
                }
                _ => return Ok(()),
            };
            match self.log.append(expired.expect("what waits may expire"), sequence).await {
                Err(error) if error.kind() != NatsErrorKind::Stale => return Err(error),
                _ => {}
            }
        }
    }

    async fn queue(
        &self,
        decoded: &Decoded,
        last: Option<&Recorded>,
        attempt: u32,
        delivery: &Delivery,
    ) -> Result<(), NatsError> {
        let Decoded { call, request } = decoded;
        let labels = labels(call, last, attempt, delivery);
        let place = match last {
            Some(last) => last.event.clone(),
            // The log has lost it; the queue needs to know no more than what the request says.
            None => StatusEvent::first(call, &self.namespace, labels.queued_at, Change::Queued, now())
                .expect("a call may begin with `queued`"),
        };
        self.watch_expiry(call).await?;
        let trunks = self.group(call, last);
        self.waiting.put(&place, attempt, &trunks, labels.headers(), request.clone()).await?;
        fail::fail_point!("admission-placed");
        (self.on_queued)(&trunks);
        Ok(())
    }

    /// The trunks that may dial a call.
    fn group(&self, call: &Call, last: Option<&Recorded>) -> TrunkGroup {
        self.trunks.borrow().group(&Wanted::of(&call.spec, last.map(|last| &last.event)))
    }

    /// Wherever a call waits, it is told when it has done so for too long.
    async fn watch_expiry(&self, call: &Call) -> Result<(), NatsError> {
        match call.spec.not_after {
            Some(end) => self.timers.set_expiry(call, end).await,
            None => Ok(()),
        }
    }

    /// No further try will admit this one: it becomes a dead letter, and its call is rejected.
    async fn put_aside(&self, call: &Call, delivery: &Delivery, reason: String) -> Result<(), NatsError> {
        tracing::warn!(call_id = %call.id, reason, "a message becomes a dead letter");
        self.dead.put(delivery, &reason, now()).await?;
        match self.log.last(&call.name).await {
            Ok(Some(Recorded { event, sequence }))
                if !event.status.is_active() && event.fingerprint == call.fingerprint =>
            {
                let Ok(rejected) = event.next(Change::Rejected { reason }, now()) else { return Ok(()) };
                self.log.append(rejected, sequence).await.map(drop)
            }
            Err(error) if error.kind() != NatsErrorKind::Corrupt => Err(error),
            _ => Ok(()),
        }
    }

    fn asked(&self, call: &Call, delivery: &Delivery) -> Asked {
        let due = delivery.header(HEADER_DUE).filter(|_| delivery.subject == self.due);
        let due = due.and_then(|text| text.parse::<Timestamp>().ok());
        Asked {
            fingerprint: call.fingerprint.clone(),
            fired: due.map(|due| (due, delivery.attempt())),
            not_before: call.spec.not_before,
            not_after: call.spec.not_after,
        }
    }

    /// Refuses a message that was delivered and never arrived, since its headers cannot be read.
    ///
    /// # Errors
    /// [`NatsError`]; the message must then be kept.
    pub async fn refuse_unreadable(&self, delivery: &Delivery, problem: &str) -> Result<(), NatsError> {
        let id = validate::parse(&delivery.payload, now()).ok().and_then(|parsed| parsed.id);
        let message = format!("cannot be read: {problem}");
        let errors = vec![FieldError { field: "headers".to_owned(), message }];
        self.refuse(delivery, Unfit { id: id.clone(), refusal: Refusal::Invalid { id, errors } }).await
    }

    /// Makes a message that cannot be a call a dead letter and, where it has an id, records that it is rejected. A call that has that id
    /// already is left alone.
    async fn refuse(&self, delivery: &Delivery, unfit: Unfit) -> Result<(), NatsError> {
        let reason = unfit.refusal.to_string();
        tracing::warn!(
            sequence = delivery.sequence,
            reason,
            "a message is not a valid call request; it becomes a dead letter"
        );
        self.dead.put(delivery, &reason, now()).await?;
        let Some(id) = unfit.id else { return Ok(()) };
        let fingerprint = Fingerprint::of(&delivery.payload);
        let event = StatusEvent::rejected(id, fingerprint, &self.namespace, delivery.queued_at(), reason, now());
        match self.log.append(event.in_trace(delivery.traceparent()), 0).await {
            Err(error) if error.kind() != NatsErrorKind::Stale => Err(error),
            _ => Ok(()),
        }
    }
}

/// Lets another replica have a request at once.
async fn hand_back(message: &Message) {
    if let Err(error) = message.ack_with(AckKind::Nak(None)).await {
        tracing::debug!(%error, "a request was not handed back; it is delivered again after the ack wait");
    }
}

/// Whether another try comes to the same: the message is too large for what is added to it, or the call's record cannot be read.
fn is_hopeless(error: &NatsError) -> bool {
    matches!(error.kind(), NatsErrorKind::TooLarge | NatsErrorKind::Corrupt)
}

fn labels<'a>(call: &'a Call, last: Option<&Recorded>, attempt: u32, delivery: &Delivery) -> Labels<'a> {
    let queued_at = last.map_or_else(|| delivery.queued_at(), |last| last.event.queued_at);
    Labels { id: &call.id, attempt, queued_at, priority: call.spec.priority, traceparent: call.traceparent.as_ref() }
}
