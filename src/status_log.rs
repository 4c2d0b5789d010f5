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
    call::{CallName, StatusEvent, traceparent::HEADER_TRACEPARENT},
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
            .ttl(time_to_live(self.retention, &event))
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
}

/// Every event of a call expires later than the one before it, else that would become its state again: the server counts in
/// whole seconds, so each has a second more.
fn time_to_live(retention: Duration, event: &StatusEvent) -> Duration {
    let wait = event.not_before.map_or(0, |moment| moment.as_second() - event.time.as_second());
    retention + Duration::from_secs(u64::try_from(wait).unwrap_or(0).saturating_add(event.revision))
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

/// CloudEvents 1.0 attributes in binary mode (NATS protocol binding), and the trace of the request.
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
    if let Some(traceparent) = &event.traceparent {
        headers.insert(name(HEADER_TRACEPARENT), traceparent.as_str());
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use jiff::{SignedDuration, Timestamp};
    use proptest::prelude::*;

    use super::*;
    use crate::call::{CallId, Fingerprint, validate};

    const TEN_YEARS: Duration = Duration::from_secs(3650 * 86_400);

    proptest! {
        /// `Nats-TTL` is a signed number of nanoseconds at the server.
        #[test]
        fn no_accepted_request_can_overflow_the_lifetime_of_a_record(
            now in 0..4_000_000_000_i64, ahead in -4_000_000_000..400 * 86_400_i64, revision in 0..1000_u64,
        ) {
            let (now, id) = (Timestamp::from_second(now).unwrap(), CallId::parse("a").unwrap());
            let moment = now + SignedDuration::from_secs(ahead);
            let body = serde_json::json!({"dest": "1", "text": "a", "not_before": moment}).to_string();
            if let Ok(parsed) = validate::parse(body.as_bytes(), now) {
                let mut event = StatusEvent::sample(id, Fingerprint::of(b""), now, 1);
                (event.not_before, event.revision) = (parsed.spec.not_before, revision);
                let lifetime = time_to_live(TEN_YEARS, &event);
                prop_assert!(lifetime >= TEN_YEARS && lifetime.as_nanos() < i64::MAX as u128 / 10, "{:?}", lifetime);
            }
        }
    }
}
