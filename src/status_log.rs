//! The status log: one subject per call, every change a compare-and-set append, the last message the call's state.
//!
//! The server lets exactly one of several writers append after a given sequence; the loser reads again and decides again.
//! So no lock, election or lease is needed, and no state regresses.

use std::time::Duration;

use async_nats::{
    HeaderMap, HeaderName,
    jetstream::{
        Context,
        message::{PublishMessage, StreamMessage},
        stream::{DirectGetError, DirectGetErrorKind, Info, Stream},
    },
};

use crate::{
    call::{CallName, StatusEvent},
    nats::{Names, NatsError, NatsErrorKind, publish::send},
};

/// An event as the log holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// The event.
    pub event: StatusEvent,
    /// Its sequence in the log: what the next append must name.
    pub sequence: u64,
}

/// Reads and appends.
#[derive(Clone)]
pub struct StatusLog {
    jetstream: Context,
    stream: Stream<()>,
    subject: String,
    retention: Duration,
}

impl StatusLog {
    /// The log in the stream that `names` names. Events are kept for `retention`, counted from when they are recorded or, for a
    /// call that is to wait, from when it is due.
    ///
    /// # Errors
    /// [`NatsError`] when the name is none.
    pub async fn open(jetstream: Context, names: &Names, retention: Duration) -> Result<Self, NatsError> {
        let stream = jetstream.get_stream_no_info(&names.status_stream).await.map_err(NatsError::of)?;
        Ok(Self { jetstream, stream, subject: names.status.clone(), retention })
    }

    /// Appends an event after the record with sequence `after` on the call's subject; 0 when it is to be the first.
    ///
    /// # Errors
    /// [`NatsErrorKind::Stale`] when that is not the last record any more. When NATS is unavailable, the event may be stored all
    /// the same.
    pub async fn append(&self, event: StatusEvent, after: u64) -> Result<Recorded, NatsError> {
        let payload = serde_json::to_vec(&event).expect("an event is numbers, strings and maps of strings");
        let message = PublishMessage::build()
            .payload(payload.into())
            .headers(headers(&event))
            .ttl(self.time_to_live(&event))
            .expected_last_subject_sequence(after);
        let sequence = send(&self.jetstream, self.subject_of(&event.name).into(), message).await?;
        log_change(&event);
        Ok(Recorded { event, sequence })
    }

    /// The state of a call; `None` when the log knows nothing of it.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn last(&self, name: &CallName) -> Result<Option<Recorded>, NatsError> {
        match self.stream.direct_get_last_for_subject(self.subject_of(name)).await {
            Ok(message) => read(&message).map(Some),
            Err(error) => absent(error),
        }
    }

    /// The record with that sequence; `None` when it is no more.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn at(&self, sequence: u64) -> Result<Option<Recorded>, NatsError> {
        match self.stream.direct_get(sequence).await {
            Ok(message) => read(&message).map(Some),
            Err(error) => absent(error),
        }
    }

    /// What the server says of the stream.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn info(&self) -> Result<Info, NatsError> {
        self.stream.get_info().await.map_err(NatsError::of)
    }

    /// Forgets a call, so that its id may be used again.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn forget(&self, name: &CallName) -> Result<(), NatsError> {
        let purge = self.stream.purge().filter(self.subject_of(name)).await;
        purge.map(|_| ()).map_err(NatsError::of)
    }

    /// The subject under which every call has its own.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    fn subject_of(&self, name: &CallName) -> String {
        format!("{}.{name}", self.subject)
    }

    /// Every event of a call expires later than the one before it, else that would become its state again: the server counts in
    /// whole seconds, so each has a second more.
    fn time_to_live(&self, event: &StatusEvent) -> Duration {
        let wait = event.not_before.map_or(0, |moment| moment.as_second() - event.time.as_second());
        self.retention + Duration::from_secs(u64::try_from(wait).unwrap_or(0).saturating_add(event.revision))
    }
}

/// Decodes a message of the log.
///
/// # Errors
/// [`NatsErrorKind::Corrupt`] when it is not a status event.
fn read(message: &StreamMessage) -> Result<Recorded, NatsError> {
    let corrupt =
        |error| NatsError::new(NatsErrorKind::Corrupt, error).during(format!("read record {}", message.sequence));
    let event = serde_json::from_slice(&message.payload).map_err(corrupt)?;
    Ok(Recorded { event, sequence: message.sequence })
}

fn absent(error: DirectGetError) -> Result<Option<Recorded>, NatsError> {
    match error.kind() {
        DirectGetErrorKind::NotFound => Ok(None),
        DirectGetErrorKind::ErrorResponse(status, _) if status.as_u16() == 404 => Ok(None),
        _ => Err(NatsError::of(error)),
    }
}

/// CloudEvents 1.0 attributes in binary mode (NATS protocol binding).
fn headers(event: &StatusEvent) -> HeaderMap {
    let name = HeaderName::from_static;
    let source = event.cluster.as_deref().map_or("/sipstuff-operator".to_owned(), source_of);
    let mut headers = HeaderMap::new();
    headers.insert(name("ce-specversion"), "1.0");
    headers.insert(name("ce-id"), format!("{}/{}", event.name, event.revision));
    headers.insert(name("ce-source"), source);
    headers.insert(name("ce-type"), format!("sipstuff.call.{}", event.status));
    headers.insert(name("ce-subject"), event.name.as_str());
    headers.insert(name("ce-time"), event.time.to_string());
    headers.insert(name("content-type"), "application/json");
    headers
}

fn source_of(cluster: &str) -> String {
    format!("/sipstuff-operator/{}", cluster.replace(|c: char| c.is_control() || c == ' ', "-"))
}

/// One line per change of state, with what a person looks for; outside of any span, which would say half of it again.
fn log_change(event: &StatusEvent) {
    tracing::info!(
        parent: None,
        call_id = %event.id,
        job = event.job.as_deref().unwrap_or_else(|| event.name.as_str()),
        attempt = event.attempt,
        outcome = event.outcome.map(|outcome| outcome.as_str()),
        sip_code = event.sip_code,
        reason = event.reason.as_deref(),
        "{}",
        event.status
    );
}
