//! Publishing into a stream: done once the server has stored the message.

use async_nats::jetstream::Context;
use async_nats::jetstream::message::PublishMessage;
use async_nats::{HeaderMap, Subject};
use bytes::Bytes;

use super::NatsError;

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
    send(jetstream, subject, PublishMessage::build().payload(payload).headers(headers)).await
}

/// [`publish`] for a message that has more than headers, such as an expected sequence.
///
/// # Errors
/// As for [`publish`].
pub async fn send(jetstream: &Context, subject: Subject, message: PublishMessage) -> Result<u64, NatsError> {
    let ack = jetstream.send_publish(subject, message).await.map_err(NatsError::of)?;
    ack.await.map(|ack| ack.sequence).map_err(NatsError::of)
}
