//! Publishing into a stream: done once the server has stored the message.

use async_nats::jetstream::Context;
use async_nats::jetstream::message::PublishMessage;
use async_nats::{HeaderMap, Subject};
use bytes::Bytes;

use super::NatsError;

/// What the server says of a message that it was given.
#[derive(Debug, Clone, Copy)]
pub struct Stored {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// Whether one with the same `Nats-Msg-Id` was there already, and this one is not stored.
    pub is_duplicate: bool,
}

/// Publishes a message and returns its sequence once the stream has it.
///
/// # Errors
/// [`NatsError`]; when NATS is unavailable, the message may be stored all the same.
pub async fn publish(
    jetstream: &Context,
    subject: Subject,
    headers: HeaderMap,
    payload: Bytes,
) -> Result<u64, NatsError> {
    send(jetstream, subject, PublishMessage::build().payload(payload).headers(headers))
        .await
        .map(|stored| stored.sequence)
}

/// [`publish`] for a message that has more than headers, such as an expected sequence.
///
/// # Errors
/// As for [`publish`].
pub async fn send(jetstream: &Context, subject: Subject, message: PublishMessage) -> Result<Stored, NatsError> {
    let ack = jetstream.send_publish(subject, message).await.map_err(NatsError::of)?;
    let ack = ack.await.map_err(NatsError::of)?;
    Ok(Stored { sequence: ack.sequence, is_duplicate: ack.duplicate })
}
