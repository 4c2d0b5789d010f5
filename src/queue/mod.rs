//! NATS: the connection, the streams, and the messages of the queue. Everything that knows a subject, a stream or a header
//! is below here or in [`crate::log`].

pub mod connect;
pub mod control;
pub mod dead;
pub mod due;
pub mod intake;
pub mod letters;
pub mod pace;
pub mod presence;
pub mod streams;
pub mod submit;
pub mod unreadable;

pub use connect::NatsSettings;
pub use streams::{Names, StreamSettings};

use async_nats::{HeaderMap, Subject, jetstream::Message};
use bytes::Bytes;
use jiff::Timestamp;

/// Header: the call's id, where the body does not name one. Survives the server's scheduler, which drops `Nats-Msg-Id`.
pub const HEADER_CALL_ID: &str = "Sip-Call-Id";
/// Header: which attempt a message asks for, from 1 (when absent).
pub const HEADER_ATTEMPT: &str = "Sip-Attempt";
/// Header: when the request first entered the queue, RFC 3339. Present when it was accepted by us, and on a redial.
pub const HEADER_QUEUED_AT: &str = "Sip-Queued-At";

/// Header: when a message that a timer fired was due, RFC 3339. Absent from any other.
pub const HEADER_DUE: &str = "Sip-Due";

/// NATS does not answer, or not in time.
#[derive(Debug, Clone, thiserror::Error)]
#[error("NATS does not answer: {0}")]
pub struct Away(pub String);

/// One delivery of one message of the queue.
pub struct Delivery {
    /// The request as it was published.
    pub payload: Bytes,
    /// Its headers.
    pub headers: HeaderMap,
    /// The subject it was published on.
    pub subject: String,
    /// Its sequence in the queue's stream: the same for every delivery of it.
    pub sequence: u64,
    /// When it was stored.
    pub published: Timestamp,
    /// Where this delivery is acknowledged.
    pub reply: Subject,
}

impl Delivery {
    /// Takes a message apart; `None` when it does not come from a JetStream consumer.
    pub fn of(message: Message) -> Option<Self> {
        let (sequence, published) = {
            let info = message.info().ok()?;
            (info.stream_sequence, timestamp(info.published.unix_timestamp_nanos()))
        };
        let message = message.message;
        Some(Self {
            payload: message.payload,
            headers: message.headers.unwrap_or_default(),
            subject: message.subject.to_string(),
            sequence,
            published,
            reply: message.reply?,
        })
    }

    /// Which message this is a delivery of.
    pub fn message(&self) -> intake::MessageId {
        (self.sequence, self.published)
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.as_str())
    }

    /// Which attempt the message asks for, from 1.
    pub fn attempt(&self) -> u32 {
        self.header(HEADER_ATTEMPT).and_then(|text| text.parse().ok()).filter(|attempt| *attempt > 0).unwrap_or(1)
    }

    /// When the request first entered the queue.
    pub fn queued_at(&self) -> Timestamp {
        self.header(HEADER_QUEUED_AT).and_then(|text| text.parse().ok()).unwrap_or(self.published)
    }
}

/// Nanoseconds since the epoch as a timestamp; NATS sends none outside of its range.
pub(crate) fn timestamp(nanoseconds: i128) -> Timestamp {
    Timestamp::from_nanosecond(nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH)
}
