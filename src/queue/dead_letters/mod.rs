//! Dead letters: messages that cannot become calls, kept with the reason, so that nothing is dropped silently. [`read`] has
//! what is done with them later.

pub mod read;

use async_nats::jetstream::Context;
use async_nats::{HeaderMap, HeaderValue, Subject};
use bytes::Bytes;
use jiff::Timestamp;

use super::Delivery;
use crate::call::CallId;
use crate::nats::publish::publish;
use crate::nats::{Names, NatsError};

/// Header of a dead letter: why it is one.
pub const HEADER_REASON: &str = "Sip-Dead-Reason";
/// Header of a dead letter: the subject it came from.
pub const HEADER_SUBJECT: &str = "Sip-Dead-Subject";
/// Header of a dead letter: its sequence in the stream it came from.
pub const HEADER_SEQUENCE: &str = "Sip-Dead-Sequence";
/// Header of a dead letter: when it was put aside, RFC 3339.
pub const HEADER_TIME: &str = "Sip-Dead-Time";
/// Header of a dead letter: the size of the original in bytes, where there was no room for all of it.
pub const HEADER_TRUNCATED: &str = "Sip-Dead-Truncated";
/// Prefix of the original's headers that the server would act upon.
pub const PREFIX_ORIGINAL: &str = "Sip-Original-";
/// Longest reason in a header, in bytes.
const MAX_REASON: usize = 2048;

/// Puts messages aside.
#[derive(Clone)]
pub struct DeadLetters {
    jetstream: Context,
    subject: Subject,
}

impl DeadLetters {
    /// Publishes to the subject of dead letters.
    pub fn new(jetstream: Context, names: &Names) -> Self {
        Self { jetstream, subject: names.dead.clone().into() }
    }

    /// Puts a message aside; returns once it is stored. A second time for the same message is dropped by the server.
    ///
    /// # Errors
    /// [`NatsError`]; the message must then be kept.
    pub async fn put(&self, delivery: &Delivery, reason: &str, now: Timestamp) -> Result<(), NatsError> {
        let room = self.jetstream.client().max_payload();
        let (headers, payload) = letter(delivery, reason, now, room);
        publish(&self.jetstream, self.subject.clone(), headers, payload).await.map(drop)
    }
}

/// The dead letter of a message: its own payload and headers, ours beside them. What does not fit into `room` bytes is cut,
/// and said so: a message that cannot be put aside would stall the queue.
fn letter(delivery: &Delivery, reason: &str, now: Timestamp, room: usize) -> (HeaderMap, Bytes) {
    let mut headers = original_headers(&delivery.headers);
    if header_bytes(&headers) > room / 2 {
        headers = HeaderMap::new();
    }
    // With the moment, since a stream that was lost and made anew counts from 1 again.
    headers.insert("Nats-Msg-Id", CallId::of_message(delivery.sequence, delivery.published).as_str());
    headers.insert(HEADER_REASON, one_line(reason).as_str());
    headers.insert(HEADER_SUBJECT, delivery.subject.as_str());
    headers.insert(HEADER_SEQUENCE, delivery.sequence.to_string().as_str());
    headers.insert(HEADER_TIME, now.to_string().as_str());
    let left = room.saturating_sub(header_bytes(&headers) + 256);
    if delivery.payload.len() <= left {
        return (headers, delivery.payload.clone());
    }
    headers.insert(HEADER_TRUNCATED, delivery.payload.len().to_string().as_str());
    (headers, delivery.payload.slice(..left))
}

fn original_headers(original: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, values) in original.iter() {
        let name: &str = name.as_ref();
        let is_servers = name.to_ascii_lowercase().starts_with("nats-");
        let name = if is_servers { format!("{PREFIX_ORIGINAL}{name}") } else { name.to_owned() };
        for value in values {
            headers.append(name.as_str(), value.clone());
        }
    }
    headers
}

fn header_bytes(headers: &HeaderMap) -> usize {
    headers.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value))).map(line_bytes).sum()
}

fn line_bytes((name, value): (&async_nats::HeaderName, &HeaderValue)) -> usize {
    AsRef::<str>::as_ref(name).len() + value.as_str().len() + 4
}

/// A header is one line: line breaks become spaces, and the text is cut at [`MAX_REASON`].
fn one_line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let end = (0..=MAX_REASON.min(line.len())).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
    line.truncate(end);
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(payload: usize) -> Delivery {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", "a");
        headers.insert("X-Mine", "b");
        Delivery {
            payload: Bytes::from(vec![b'x'; payload]),
            headers,
            subject: "sip.calls".to_owned(),
            sequence: 7,
            deliveries: 1,
            published: Timestamp::UNIX_EPOCH,
            reply: "reply".into(),
        }
    }

    #[test]
    fn a_dead_letter_keeps_payload_and_headers_and_says_why() {
        let (headers, payload) = letter(&delivery(10), "bad\nthing", Timestamp::UNIX_EPOCH, 1 << 20);
        let get = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
        assert_eq!(payload.len(), 10);
        assert_eq!(get("X-Mine").as_deref(), Some("b"));
        assert_eq!(get("Sip-Original-Nats-Msg-Id").as_deref(), Some("a"));
        assert_eq!(
            get("Nats-Msg-Id").as_deref(),
            Some("7@1970-01-01T00:00:00Z"),
            "the server would act upon the original's"
        );
        assert_eq!(get(HEADER_REASON).as_deref(), Some("bad thing"));
        assert_eq!(get(HEADER_TRUNCATED), None);
    }

    #[test]
    fn a_message_as_large_as_the_server_takes_still_fits_with_its_reason() {
        let room = 4096;
        let (headers, payload) = letter(&delivery(room), &"é".repeat(3000), Timestamp::UNIX_EPOCH, room);
        assert!(header_bytes(&headers) + payload.len() < room);
        assert_eq!(headers.get(HEADER_TRUNCATED).map(|value| value.as_str()), Some("4096"));
    }
}
