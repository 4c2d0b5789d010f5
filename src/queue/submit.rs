//! Publishing requests: into the queue at once, or as a schedule that the server fires into it.

use async_nats::{
    HeaderMap, Subject,
    jetstream::{
        Context,
        context::{PublishError, PublishErrorKind},
        message::PublishMessage,
    },
};
use bytes::Bytes;
use jiff::Timestamp;

use super::{Away, Delivery, HEADER_ATTEMPT, HEADER_CALL_ID, HEADER_DUE, HEADER_QUEUED_AT, Names};
use crate::call::{CallId, CallName};

/// Header of the server's scheduler: when to fire (ADR-51).
const NATS_SCHEDULE: &str = "Nats-Schedule";
/// Header of the server's scheduler: where to.
const NATS_SCHEDULE_TARGET: &str = "Nats-Schedule-Target";

/// Publishes requests.
#[derive(Clone)]
pub struct Submitter {
    jetstream: Context,
    calls: Subject,
    schedule: String,
    schedule_stream: String,
    due: String,
}

/// What a request is published with.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a> {
    /// The call's id.
    pub id: &'a CallId,
    /// The attempt that it asks for, from 1.
    pub attempt: u32,
    /// When the request first entered the queue.
    pub queued_at: Timestamp,
}

/// Why a request was not stored.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishRefusal {
    /// The stream has reached its limits.
    #[error("the queue is full: {0}")]
    Full(String),
    /// The message is larger than the server takes.
    #[error("the request is larger than a message may be: {0}")]
    TooLarge(String),
    /// No answer, or one that another try may change.
    #[error(transparent)]
    Away(#[from] Away),
}

impl Submitter {
    /// Publishes to the subjects given.
    pub fn new(jetstream: Context, names: &Names) -> Self {
        Self {
            jetstream,
            calls: names.calls.clone().into(),
            schedule: names.schedule.clone(),
            schedule_stream: names.schedule_stream.clone(),
            due: names.due.clone(),
        }
    }

    /// Puts a request into the queue and returns once the server has stored it.
    ///
    /// # Errors
    /// [`PublishRefusal`]; after [`PublishRefusal::Away`] it may be stored all the same.
    pub async fn publish(&self, labels: Labels<'_>, body: Bytes) -> Result<(), PublishRefusal> {
        self.send(self.calls.clone(), headers(labels), body).await
    }

    /// Lets the server put a request into the queue at a moment. A second schedule for the same attempt replaces the first; one
    /// whose moment has passed fires at once.
    ///
    /// # Errors
    /// [`PublishRefusal`], as for [`Self::publish`].
    pub async fn schedule(
        &self,
        name: &CallName,
        labels: Labels<'_>,
        due: Timestamp,
        body: Bytes,
    ) -> Result<(), PublishRefusal> {
        let mut headers = headers(labels);
        headers.insert(HEADER_DUE, due.to_string().as_str());
        headers.insert(NATS_SCHEDULE, format!("@at {due}").as_str());
        headers.insert(NATS_SCHEDULE_TARGET, self.due.as_str());
        self.send(self.schedule_subject(name, labels.attempt).into(), headers, body).await
    }

    /// Takes the timer of an attempt away.
    ///
    /// # Errors
    /// [`Away`]; it may fire then.
    pub async fn unschedule(&self, name: &CallName, attempt: u32) -> Result<(), Away> {
        let away = |error: &dyn std::error::Error| Away(describe(error));
        let stream = self.jetstream.get_stream_no_info(&self.schedule_stream).await.map_err(|error| away(&error))?;
        let purge = stream.purge().filter(self.schedule_subject(name, attempt)).await;
        purge.map(|_| ()).map_err(|error| away(&error))
    }

    /// The subject that holds the schedule of an attempt.
    pub fn schedule_subject(&self, name: &CallName, attempt: u32) -> String {
        format!("{}.{}", self.schedule, name.job(attempt))
    }

    /// Puts a request that came due into the queue, as it was.
    ///
    /// # Errors
    /// [`PublishRefusal`], as for [`Self::publish`].
    pub async fn forward(&self, delivery: &Delivery) -> Result<(), PublishRefusal> {
        let mut headers = HeaderMap::new();
        for name in [HEADER_CALL_ID, HEADER_ATTEMPT, HEADER_QUEUED_AT, HEADER_DUE] {
            if let Some(value) = delivery.header(name) {
                headers.insert(name, value);
            }
        }
        self.send(self.calls.clone(), headers, delivery.payload.clone()).await
    }

    async fn send(&self, subject: Subject, headers: HeaderMap, body: Bytes) -> Result<(), PublishRefusal> {
        let message = PublishMessage::build().payload(body).headers(headers);
        let ack = self.jetstream.send_publish(subject, message).await.map_err(refusal)?;
        ack.await.map(|_| ()).map_err(refusal)
    }
}

fn headers(labels: Labels<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(HEADER_CALL_ID, labels.id.as_str());
    headers.insert(HEADER_ATTEMPT, labels.attempt.to_string().as_str());
    headers.insert(HEADER_QUEUED_AT, labels.queued_at.to_string().as_str());
    headers
}

/// The server's error codes for a stream at its limits: messages, bytes, and the account's storage.
const FULL: [u64; 4] = [10047, 10023, 10077, 10122];

fn refusal(error: PublishError) -> PublishRefusal {
    let words = describe(&error);
    if error.kind() == PublishErrorKind::MaxPayloadExceeded {
        return PublishRefusal::TooLarge(words);
    }
    let code = std::error::Error::source(&error)
        .and_then(|source| source.downcast_ref::<async_nats::jetstream::Error>())
        .map(|error| error.error_code().0);
    match code {
        Some(code) if FULL.contains(&code) => PublishRefusal::Full(words),
        Some(10054) => PublishRefusal::TooLarge(words),
        _ => PublishRefusal::Away(Away(words)),
    }
}

/// An error with what it was caused by.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) if !error.to_string().contains(&source.to_string()) => format!("{error}: {source}"),
        _ => error.to_string(),
    }
}
