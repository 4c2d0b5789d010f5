//! The inbox: publishing requests into it, and what one delivery of a request says, wherever it is on its way.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{Context, Message};
use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::decode::HEADER_PRIORITY;
use super::in_flight::MessageId;
use crate::call::traceparent::HEADER_TRACEPARENT;
use crate::call::{Call, CallId, Priority, TraceParent};
use crate::nats::publish::send;
use crate::nats::{Names, NatsError, leader, timestamp};

/// Header: the call's id, where the body does not name one. Survives the server's scheduler, which drops `Nats-Msg-Id`.
pub const HEADER_CALL_ID: &str = "Sip-Call-Id";
/// Header: which attempt a message asks for, from 1 (when absent).
pub const HEADER_ATTEMPT: &str = "Sip-Attempt";
/// Header: when the request first entered the inbox, RFC 3339. Only what has been admitted has it.
pub const HEADER_QUEUED_AT: &str = "Sip-Queued-At";
/// Header: when a message that a timer fired was due, RFC 3339. Absent from any other.
pub const HEADER_DUE: &str = "Sip-Due";

/// Header: the `not_after` whose passing a timer says, RFC 3339. Absent from any other message.
pub const HEADER_EXPIRY: &str = "Sip-Expiry";

/// Highest attempt that a message may ask for: ten that count, and those that never ran, at most one in a few seconds for a day.
pub const MAX_ATTEMPT: u32 = 100_000;

/// How many requests for a call that is not known ask the server at once whether everything is admitted. More wait for their turn.
const WAITS_AT_ONCE: usize = 16;
/// How often each of them asks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What a request is published with once it has been admitted.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a> {
    /// The call's id.
    pub id: &'a CallId,
    /// The attempt that it asks for, from 1.
    pub attempt: u32,
    /// When the request first entered the queue.
    pub queued_at: Timestamp,
    /// Its priority.
    pub priority: Priority,
    /// The trace that it belongs to.
    pub traceparent: Option<&'a TraceParent>,
}

impl Labels<'_> {
    /// As headers of a message.
    pub fn headers(self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER_CALL_ID, self.id.as_str());
        headers.insert(HEADER_ATTEMPT, self.attempt.to_string().as_str());
        headers.insert(HEADER_QUEUED_AT, self.queued_at.to_string().as_str());
        if !self.priority.is_default() {
            headers.insert(HEADER_PRIORITY, self.priority.as_str());
        }
        if let Some(traceparent) = self.traceparent {
            headers.insert(HEADER_TRACEPARENT, traceparent.as_str());
        }
        headers
    }
}

/// Publishes requests.
#[derive(Clone)]
pub struct Inbox {
    jetstream: Context,
    subject: Subject,
    stream: String,
    /// Turns to ask the server whether everything is admitted.
    waits: Arc<Semaphore>,
}

impl Inbox {
    /// Publishes to the subject of call requests.
    pub fn new(jetstream: Context, names: &Names) -> Self {
        let Names { calls, calls_stream, .. } = names.clone();
        let waits = Arc::new(Semaphore::new(WAITS_AT_ONCE));
        Self { jetstream, subject: calls.into(), stream: calls_stream, waits }
    }

    /// Publishes a request and returns once the server has stored it.
    ///
    /// # Errors
    /// [`NatsError`]; when NATS is unavailable, it may be stored all the same.
    pub async fn publish(&self, call: &Call, body: Bytes) -> Result<(), NatsError> {
        self.send(headers(call), body).await.map(drop)
    }

    /// The same, unless a message with this id was published within the last two minutes: then it is not stored, and the answer is `false`.
    ///
    /// # Errors
    /// As for [`Self::publish`].
    pub async fn publish_once(&self, call: &Call, body: Bytes) -> Result<bool, NatsError> {
        let mut headers = headers(call);
        headers.insert("Nats-Msg-Id", call.id.as_str());
        self.send(headers, body).await
    }

    async fn send(&self, headers: HeaderMap, body: Bytes) -> Result<bool, NatsError> {
        let message = PublishMessage::build().payload(body).headers(headers);
        send(&self.jetstream, self.subject.clone(), message).await.map(|stored| !stored.is_duplicate)
    }
}

fn headers(call: &Call) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(HEADER_CALL_ID, call.id.as_str());
    if let Some(traceparent) = &call.traceparent {
        headers.insert(HEADER_TRACEPARENT, traceparent.as_str());
    }
    headers
}

impl Inbox {
    /// Waits until everything that is in the inbox now has been admitted; false when that takes longer than `within`.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn is_admitted(&self, within: Duration) -> Result<bool, NatsError> {
        let deadline = Instant::now() + within;
        let Ok(Ok(_turn)) = tokio::time::timeout_at(deadline, self.waits.acquire()).await else { return Ok(false) };
        let stream = self.jetstream.get_stream_no_info(&self.stream).await.map_err(NatsError::of)?;
        let mut inbox = leader::info(&stream).await?.state;
        let last = inbox.last_sequence;
        // What is admitted leaves the stream.
        while inbox.messages > 0 && inbox.first_sequence <= last {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(LOOK_EVERY).await;
            inbox = leader::info(&stream).await?.state;
        }
        Ok(true)
    }
}

/// One delivery of one message.
pub struct Delivery {
    /// The request as it was published.
    pub payload: Bytes,
    /// Its headers.
    pub headers: HeaderMap,
    /// The subject it was published on.
    pub subject: String,
    /// Its sequence in the queue's stream: the same for every delivery of it.
    pub sequence: u64,
    /// How often it was delivered, this delivery included.
    pub deliveries: u64,
    /// When it was stored.
    pub published: Timestamp,
    /// Where this delivery is acknowledged.
    pub reply: Subject,
}

impl Delivery {
    /// Takes a message apart; `None` when it does not come from a JetStream consumer.
    pub fn of(message: Message) -> Option<Self> {
        let (sequence, deliveries, published) = {
            let info = message.info().ok()?;
            let deliveries = u64::try_from(info.delivered).unwrap_or(1);
            (info.stream_sequence, deliveries, timestamp(info.published.unix_timestamp_nanos()))
        };
        let message = message.message;
        Some(Self {
            payload: message.payload,
            headers: message.headers.unwrap_or_default(),
            subject: message.subject.to_string(),
            sequence,
            deliveries,
            published,
            reply: message.reply?,
        })
    }

    /// Which message this is a delivery of.
    pub fn message(&self) -> MessageId {
        (self.sequence, self.published)
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.as_str())
    }

    /// Which attempt the message asks for, from 1 to [`MAX_ATTEMPT`]; 1 where the header says nothing or nonsense.
    pub fn attempt(&self) -> u32 {
        let given = self.header(HEADER_ATTEMPT).and_then(|text| text.parse().ok());
        given.filter(|attempt| (1..=MAX_ATTEMPT).contains(attempt)).unwrap_or(1)
    }

    /// The trace that the request belongs to; an invalid one is ignored.
    pub fn traceparent(&self) -> Option<TraceParent> {
        self.header(HEADER_TRACEPARENT).and_then(TraceParent::parse)
    }

    /// When the request first entered the queue.
    pub fn queued_at(&self) -> Timestamp {
        self.header(HEADER_QUEUED_AT).and_then(|text| text.parse().ok()).unwrap_or(self.published)
    }
}
