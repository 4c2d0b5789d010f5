//! Requests that wait for their moment: the server's timers. A timer fires into its own stream only, from where it is admitted as every
//! request is.

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use bytes::Bytes;
use jiff::Timestamp;

use super::inbox::{HEADER_CALL_ID, HEADER_DUE, HEADER_EXPIRY, Labels};
use crate::call::{Call, CallName};
use crate::nats::publish::publish;
use crate::nats::{Names, NatsError};

/// Header of the server's scheduler: when to fire (ADR-51).
const NATS_SCHEDULE: &str = "Nats-Schedule";
/// Header of the server's scheduler: where to.
const NATS_SCHEDULE_TARGET: &str = "Nats-Schedule-Target";
/// Sets and removes the timers of attempts.
#[derive(Clone)]
pub struct Timers {
    jetstream: Context,
    stream: String,
    prefix: String,
    due: String,
}

impl Timers {
    /// Timers in the stream that `names` names.
    pub fn new(jetstream: Context, names: &Names) -> Self {
        let Names { schedule_stream, schedule, due, .. } = names;
        Self { jetstream, stream: schedule_stream.clone(), prefix: schedule.clone(), due: due.clone() }
    }

    /// Lets the server put a request into the queue at a moment. A second timer for the same attempt replaces the first; one
    /// whose moment has passed fires at once.
    ///
    /// # Errors
    /// [`NatsError`]; when NATS is unavailable, it may be set all the same.
    pub async fn set(&self, name: &CallName, labels: Labels<'_>, due: Timestamp, body: Bytes) -> Result<(), NatsError> {
        let mut headers = labels.headers();
        headers.insert(HEADER_DUE, due.to_string().as_str());
        headers.insert(NATS_SCHEDULE, format!("@at {due}").as_str());
        headers.insert(NATS_SCHEDULE_TARGET, self.due.as_str());
        publish(&self.jetstream, self.subject(name, labels.attempt).into(), headers, body).await.map(drop)
    }

    /// Lets the server say when the call's `not_after` has passed, wherever it waits then. The timer may outlast the call, so it has nothing
    /// of the request but which one it is.
    ///
    /// # Errors
    /// As for [`Self::set`].
    pub async fn set_expiry(&self, call: &Call, end: Timestamp) -> Result<(), NatsError> {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER_CALL_ID, call.id.as_str());
        headers.insert(HEADER_EXPIRY, end.to_string().as_str());
        headers.insert(NATS_SCHEDULE, format!("@at {end}").as_str());
        headers.insert(NATS_SCHEDULE_TARGET, self.due.as_str());
        let fingerprint = Bytes::copy_from_slice(call.fingerprint.as_str().as_bytes());
        publish(&self.jetstream, self.expiry_subject(&call.name).into(), headers, fingerprint).await.map(drop)
    }

    /// Removes that timer.
    ///
    /// # Errors
    /// [`NatsError`]; it may fire then, which does no harm.
    pub async fn remove_expiry(&self, name: &CallName) -> Result<(), NatsError> {
        self.purge(self.expiry_subject(name)).await
    }

    /// Removes the timer of an attempt.
    ///
    /// # Errors
    /// [`NatsError`]; it may fire then.
    pub async fn remove(&self, name: &CallName, attempt: u32) -> Result<(), NatsError> {
        self.purge(self.subject(name, attempt)).await
    }

    async fn purge(&self, subject: String) -> Result<(), NatsError> {
        let stream = self.jetstream.get_stream_no_info(&self.stream).await.map_err(NatsError::of)?;
        stream.purge().filter(subject).await.map(drop).map_err(NatsError::of)
    }

    /// The subject that holds the timer of an attempt.
    pub fn subject(&self, name: &CallName, attempt: u32) -> String {
        format!("{}.{}", self.prefix, name.job(attempt))
    }

    fn expiry_subject(&self, name: &CallName) -> String {
        format!("{}.expiry.{name}", self.prefix)
    }
}
