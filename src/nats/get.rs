//! Reading stored messages, without their headers: a header block that the client library cannot parse ends the connection, and
//! nothing that is read here is in a header. (`no_hdr` is there from nats-server 2.12 on, the oldest that is accepted.)
//!
//! A direct get is answered by any replica of the stream, also by one that lags, so its "there is no such message" proves nothing.
//! The leader's answer does.

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::response::Response;
use bytes::Bytes;
use data_encoding::BASE64;
use futures::StreamExt;
use serde::{Deserialize, Serialize};

use super::{NatsError, NatsErrorKind};

/// The server's code for there being no such message.
pub(crate) const NO_MESSAGE: u64 = 10037;

/// About as many bytes of messages are in one answer, and one message at least.
const BATCH_BYTES: usize = 4 << 20;
/// How long the server may take for the next message of several.
const BATCH_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// A stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// Its body.
    pub payload: Bytes,
}

/// Which message is wanted.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
pub enum Which<'a> {
    /// The one with this sequence.
    At {
        /// The sequence.
        seq: u64,
    },
    /// The last one of a subject.
    Last {
        /// The subject.
        last_by_subj: &'a str,
    },
    /// The first one of a subject, which may have wildcards, from a sequence on.
    Next {
        /// The subject.
        next_by_subj: &'a str,
        /// The first sequence that counts.
        seq: u64,
    },
}

#[derive(Serialize)]
struct Request<'a> {
    #[serde(flatten)]
    which: Which<'a>,
    no_hdr: bool,
}

#[derive(Deserialize)]
struct Answer {
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    seq: u64,
    #[serde(default)]
    data: String,
}

/// Asks the stream's leader. `None` means that there is no such message.
///
/// # Errors
/// [`NatsError`].
pub async fn ask_leader(jetstream: &Context, stream: &str, which: Which<'_>) -> Result<Option<Stored>, NatsError> {
    let request = Request { which, no_hdr: true };
    let answer = jetstream.request(format!("STREAM.MSG.GET.{stream}"), &request).await.map_err(NatsError::of)?;
    match answer {
        Response::Ok(Answer { message: Message { seq, data } }) => {
            let payload = BASE64.decode(data.as_bytes());
            let payload = payload.map_err(|error| NatsError::new(NatsErrorKind::Corrupt, error))?.into();
            Ok(Some(Stored { sequence: seq, payload }))
        }
        Response::Err { error } if error.error_code().0 == NO_MESSAGE => Ok(None),
        Response::Err { error } => Err(NatsError::of(error)),
    }
}

/// Asks any replica, which takes half the time or less, and returns the body. `None` means that this replica does not have the
/// message, or not yet.
///
/// # Errors
/// [`NatsError`].
pub async fn ask_any_replica(jetstream: &Context, stream: &str, which: Which<'_>) -> Result<Option<Bytes>, NatsError> {
    let request = serde_json::to_vec(&Request { which, no_hdr: true }).expect("numbers and texts always serialize");
    let subject = format!("$JS.API.DIRECT.GET.{stream}");
    let answer = jetstream.client().request(subject, request.into()).await.map_err(NatsError::of)?;
    match answer.status.map(|status| status.as_u16()) {
        None => Ok(Some(answer.payload)),
        Some(404) => Ok(None),
        Some(_) => Err(NatsError::unavailable("the server did not take a direct get")),
    }
}

/// A message of a stream with its headers, and how many like it there are.
#[derive(Debug, Clone)]
pub struct Head {
    /// Its subject.
    pub subject: String,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// Its headers, those that the server has added left out.
    pub headers: HeaderMap,
    /// Its body.
    pub payload: Bytes,
    /// How many messages that match come after it.
    pub after: u64,
}

/// The oldest messages from a sequence on whose subject matches `filter`, at most so many, from any replica: one request, however many there are in
/// the stream. Their headers are ours, so they can be read.
///
/// # Errors
/// [`NatsError`].
pub async fn oldest(
    jetstream: &Context,
    stream: &str,
    filter: &str,
    first: u64,
    at_most: usize,
) -> Result<Vec<Head>, NatsError> {
    let client = jetstream.client();
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(NatsError::of)?;
    let request = serde_json::json!({"seq": first, "next_by_subj": filter, "batch": at_most, "max_bytes": BATCH_BYTES});
    let request = serde_json::to_vec(&request).expect("numbers and texts always serialize");
    let subject = format!("$JS.API.DIRECT.GET.{stream}");
    client.publish_with_reply(subject, inbox, request.into()).await.map_err(NatsError::of)?;
    let mut heads = Vec::new();
    loop {
        let answer = tokio::time::timeout(BATCH_PATIENCE, answers.next()).await;
        let answer = answer.ok().flatten().ok_or_else(|| NatsError::unavailable("a direct get was not answered"))?;
        match answer.status.map(|status| status.as_u16()) {
            // A direct get of several ends with a message that has no body: 204, or 404 where there was none.
            Some(204 | 404) => return Ok(heads),
            Some(_) => return Err(NatsError::unavailable("the server did not take a direct get")),
            None => heads.extend(head(answer)),
        }
    }
}

fn head(message: async_nats::Message) -> Option<Head> {
    let mut headers = HeaderMap::new();
    let given = message.headers.unwrap_or_default();
    let text = |name: &str| given.get(name).map(|value| value.as_str().to_owned());
    let number = |name: &str| text(name).and_then(|text| text.parse().ok());
    let (subject, sequence) = (text("Nats-Subject")?, number("Nats-Sequence")?);
    let after = number("Nats-Num-Pending").unwrap_or(0);
    for (name, values) in given.iter().filter(|(name, _)| !AsRef::<str>::as_ref(*name).starts_with("Nats-")) {
        for value in values {
            headers.append(name.clone(), value.clone());
        }
    }
    Some(Head { subject, sequence, headers, payload: message.payload, after })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_request_has_the_fields_of_the_servers_api() {
        let sent = |which| serde_json::to_value(Request { which, no_hdr: true }).unwrap();
        let table: [(Which<'_>, Value); 3] = [
            (Which::At { seq: 7 }, json!({"seq": 7, "no_hdr": true})),
            (Which::Last { last_by_subj: "a.b" }, json!({"last_by_subj": "a.b", "no_hdr": true})),
            (Which::Next { next_by_subj: "a.*", seq: 8 }, json!({"next_by_subj": "a.*", "seq": 8, "no_hdr": true})),
        ];
        for (which, expected) in table {
            assert_eq!(sent(which), expected);
        }
    }
}
