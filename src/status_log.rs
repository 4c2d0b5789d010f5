//! The status log: one subject per call, every change a compare-and-set append, the last message the call's state.
//!
//! The server lets exactly one of several writers append after a given sequence; the loser reads again and decides again.
//! So no lock, election or lease is needed, and no state regresses.
//!
//! Nothing irrevocable rests on what a lagging replica of the stream says: the last record of a call is asked of the stream's leader,
//! and a record that a replica does not have is asked for there again.

use std::fmt::Display;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::Stream;
use async_nats::{HeaderMap, HeaderName};
use bytes::Bytes;
use jiff::Timestamp;

use crate::call::traceparent::HEADER_TRACEPARENT;
use crate::call::{CallName, StatusEvent};
use crate::nats::get::{self, Stored, Which};
use crate::nats::publish::send;
use crate::nats::{Names, NatsError, NatsErrorKind, connect, leader, timestamp};

/// How long a record is kept at most: ten years. The server counts nanoseconds in 64 bits.
const LONGEST_RETENTION: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// An event as the log holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// The event.
    pub event: StatusEvent,
    /// Its sequence in the log: what the next append must name.
    pub sequence: u64,
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The event.
    pub event: StatusEvent,
    /// How long the record is.
    pub bytes: usize,
}

/// How far the log has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// When the stream was made: sequences of another stream mean nothing in this one.
    pub made_at: Timestamp,
    /// The last sequence that was given to a record. The record may be gone.
    pub sequence: u64,
}

/// Reads and appends.
#[derive(Clone)]
pub struct StatusLog {
    jetstream: Context,
    stream: Stream<()>,
    stream_name: String,
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
        let (stream_name, subject) = (names.status_stream.clone(), names.status.clone());
        Ok(Self { jetstream, stream, stream_name, subject, retention })
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
        let sequence = send(&self.jetstream, self.subject_of(&event.name).into(), message).await?.sequence;
        log_change(&event);
        Ok(Recorded { event, sequence })
    }

    /// The state of a call, from the stream's leader; `None` when the log knows nothing of it.
    ///
    /// # Errors
    /// [`NatsError`]; [`NatsErrorKind::Corrupt`] when the record cannot be decoded.
    pub async fn last(&self, name: &CallName) -> Result<Option<Recorded>, NatsError> {
        let subject = self.subject_of(name);
        let stored = self.ask_leader(Which::Last { last_by_subj: &subject }).await?;
        let recorded = |stored: Stored| {
            Ok(Recorded { event: decode(&stored.payload, stored.sequence)?, sequence: stored.sequence })
        };
        stored.map(recorded).transpose()
    }

    /// The state of a call as any replica of the stream has it, which may lag: for what goes on to an append in any case, since that
    /// names the record that it follows.
    ///
    /// # Errors
    /// As for [`Self::last`].
    pub async fn glance(&self, name: &CallName) -> Result<Option<StatusEvent>, NatsError> {
        let subject = self.subject_of(name);
        let payload = self.ask_any_replica(Which::Last { last_by_subj: &subject }).await?;
        payload.map(|payload| decode(&payload, &subject)).transpose()
    }

    /// The record with that sequence, from any replica that has it; `None` when the leader says that it is gone.
    ///
    /// # Errors
    /// As for [`Self::last`].
    pub async fn at(&self, sequence: u64) -> Result<Option<Record>, NatsError> {
        let which = Which::At { seq: sequence };
        let payload = match self.ask_any_replica(which).await? {
            Some(payload) => Some(payload),
            None => self.ask_leader(which).await?.map(|stored| stored.payload),
        };
        let record = |payload: Bytes| Ok(Record { event: decode(&payload, sequence)?, bytes: payload.len() });
        payload.map(record).transpose()
    }

    /// The first record after that sequence, of whatever call, as it is stored; `None` when the leader has none.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn next_after(&self, sequence: u64) -> Result<Option<Stored>, NatsError> {
        self.ask_leader(Which::Next { next_by_subj: &self.all(), seq: sequence + 1 }).await
    }

    async fn ask_any_replica(&self, which: Which<'_>) -> Result<Option<Bytes>, NatsError> {
        get::ask_any_replica(&self.jetstream, &self.stream_name, which).await
    }

    async fn ask_leader(&self, which: Which<'_>) -> Result<Option<Stored>, NatsError> {
        get::ask_leader(&self.jetstream, &self.stream_name, which).await
    }

    /// How far the log has come, by the word of a leader that most of the stream's servers follow.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn head(&self) -> Result<Head, NatsError> {
        let info = leader::info(&self.stream).await?;
        let made_at = timestamp(info.created.unix_timestamp_nanos());
        Ok(Head { made_at, sequence: info.state.last_sequence })
    }

    /// The records of the log, in order, however many there are. With a million calls, the server needs seconds to begin.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn records(&self, from: DeliverPolicy) -> Result<Ordered, NatsError> {
        let config = OrderedConfig { deliver_policy: from, filter_subject: self.all(), ..Default::default() };
        let patient = connect::patient_jetstream(self.jetstream.client());
        let consumer = patient.create_consumer_on_stream(config, self.stream_name.as_str()).await;
        consumer.map_err(NatsError::of)?.messages().await.map_err(NatsError::of)
    }

    /// Forgets a call, so that its id may be used again.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn forget(&self, name: &CallName) -> Result<(), NatsError> {
        let purge = self.stream.purge().filter(self.subject_of(name)).await;
        purge.map(|_| ()).map_err(NatsError::of)
    }

    /// The subjects of all calls.
    fn all(&self) -> String {
        format!("{}.*", self.subject)
    }

    fn subject_of(&self, name: &CallName) -> String {
        format!("{}.{name}", self.subject)
    }
}

/// How long the server keeps the record of an event: from its own time on, or from the moment that the call waits for. Each expires
/// later than the one before it, else that would become the call's state again: the server counts in whole seconds, and an attempt
/// may begin a second before it is due, so each has two seconds more.
fn time_to_live(retention: Duration, event: &StatusEvent) -> Duration {
    let waits_until = event.not_before.max(event.due_at);
    let wait = waits_until.map_or(0, |moment| moment.as_second().saturating_sub(event.time.as_second()));
    let wait = u64::try_from(wait).unwrap_or(0);
    let seconds = retention.as_secs().saturating_add(wait).saturating_add(event.revision.saturating_mul(2));
    Duration::from_secs(seconds).min(LONGEST_RETENTION)
}

/// Decodes a record; `place` says which one it is.
///
/// # Errors
/// [`NatsErrorKind::Corrupt`] when it is not a status event.
fn decode(payload: &[u8], place: impl Display) -> Result<StatusEvent, NatsError> {
    let corrupt = |error| NatsError::new(NatsErrorKind::Corrupt, error).during(format!("read record {place}"));
    serde_json::from_slice(payload).map_err(corrupt)
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
        pod = event.pod.as_ref().map(|pod| pod.name.as_str()),
        outcome = event.outcome.map(|outcome| outcome.as_str()),
        sip_code = event.sip_code,
        reason = event.reason.as_deref(),
        "{}",
        event.status
    );
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::call::{CallId, Change, Ended, Fingerprint, Outcome};

    const HOUR: i64 = 3600;
    const RETENTION: Duration = Duration::from_secs(24 * 3600);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    /// When the record of an event is gone.
    fn expiry(event: &StatusEvent) -> i64 {
        event.time.as_second() + i64::try_from(time_to_live(RETENTION, event).as_secs()).expect("ten years")
    }

    fn queued() -> StatusEvent {
        StatusEvent::sample(CallId::parse("a").expect("an id"), Fingerprint::of(b"request"), at(0), 3)
    }

    fn pending() -> Change {
        let (cluster, namespace, trunk) = ("here".to_owned(), "calls".to_owned(), "default".to_owned());
        Change::Pending { attempt: 1, cluster, namespace, trunk, ends_by: Timestamp::UNIX_EPOCH }
    }

    fn busy() -> Change {
        Change::Ended(Ended {
            outcome: Outcome::Busy,
            sip_code: Some(486),
            exit_code: Some(1),
            completed_at: at(0),
            reason: None,
            message: None,
            evidence: None,
            redial: true,
        })
    }

    #[test]
    fn a_redial_that_is_due_later_than_records_are_kept_has_one_when_it_is_due() {
        let failed = queued().next(pending(), at(1)).and_then(|event| event.next(busy(), at(2))).expect("legal");
        let due = 3 + 26 * HOUR;
        let scheduled = failed.next(Change::Scheduled { due_at: at(due) }, at(3)).expect("legal");
        assert!(expiry(&scheduled) >= due + 24 * HOUR, "it expires at {}", expiry(&scheduled));
        let cancelled = scheduled.next(Change::Cancelled { reason: "cancelled".to_owned() }, at(4)).expect("legal");
        assert!(expiry(&cancelled) > expiry(&scheduled), "the call would be scheduled again");
        let early = scheduled.next(pending(), at(due - 1)).expect("legal");
        assert!(expiry(&early) > expiry(&scheduled), "the call would be scheduled again");
    }

    proptest! {
        #[test]
        fn no_moment_and_no_retention_is_too_long(retention in any::<u64>(), due in any::<i64>(), revision in any::<u64>()) {
            let due = Timestamp::from_second(due).unwrap_or(Timestamp::MAX);
            let event = StatusEvent { due_at: Some(due), not_before: Some(Timestamp::MIN), revision, ..queued() };
            prop_assert!(time_to_live(Duration::from_secs(retention), &event) <= LONGEST_RETENTION);
        }
    }
}
