//! What is dialled now, or is next: the stream `SIP_DIAL`, one message for each attempt, `sip.dial.<trunk>.<job>`. A message that is
//! delivered and not settled is a call in progress, and the consumer of its trunk lets as many be delivered as there are channels.

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::PullConsumer;
use bytes::Bytes;

use crate::nats::publish::publish;
use crate::nats::{Names, NatsError, NatsErrorKind, get};

/// The window of what is dialled.
#[derive(Clone)]
pub struct Window {
    jetstream: Context,
    names: Names,
}

/// How the window is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupancy {
    /// Messages that are delivered and not settled.
    pub in_flight: u64,
    /// Messages that are not delivered yet.
    pub undelivered: u64,
    /// How many may be in flight.
    pub channels: u64,
}

impl Occupancy {
    /// How many messages there are.
    pub fn messages(self) -> u64 {
        self.in_flight + self.undelivered
    }

    /// How many calls could be begun at once.
    pub fn free(self) -> usize {
        usize::try_from(self.channels.saturating_sub(self.messages())).unwrap_or(usize::MAX)
    }
}

impl Window {
    /// The one in the stream that `names` names.
    pub fn new(jetstream: Context, names: &Names) -> Self {
        Self { jetstream, names: names.clone() }
    }

    /// Puts an attempt there, to be dialled on a trunk. One that is there already stays as it is, whether or not it is dialled yet; then the
    /// answer is `false`.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn put(&self, trunk: &str, job: &str, headers: HeaderMap, body: Bytes) -> Result<bool, NatsError> {
        let subject = self.subject(trunk, job);
        match publish(&self.jetstream, subject.into(), headers, body).await {
            // The stream has no other limit than one message a subject.
            Err(error) if error.kind() == NatsErrorKind::Full => Ok(false),
            put => put.map(|_| true),
        }
    }

    /// The sequence of an attempt that is there.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn sequence_of(&self, trunk: &str, job: &str) -> Result<Option<u64>, NatsError> {
        let subject = self.subject(trunk, job);
        let which = get::Which::Last { last_by_subj: &subject };
        let stored = get::ask_leader(&self.jetstream, &self.names.dial_stream, which).await?;
        Ok(stored.map(|stored| stored.sequence))
    }

    fn subject(&self, trunk: &str, job: &str) -> String {
        format!("{}.{trunk}.{job}", self.names.dial)
    }

    /// The trunk that a message is for, by its subject.
    pub fn trunk_of<'a>(&self, subject: &'a str) -> Option<&'a str> {
        self.names.trunk_of(subject)
    }

    /// How full it is, of what is dialled on a trunk.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn occupancy(&self, trunk: &str) -> Result<Occupancy, NatsError> {
        let name = self.names.dial_consumer(trunk);
        let consumer = self.jetstream.get_consumer_from_stream(&name, &self.names.dial_stream).await;
        let consumer: PullConsumer = consumer.map_err(NatsError::of)?;
        let info = consumer.cached_info();
        Ok(Occupancy {
            in_flight: u64::try_from(info.num_ack_pending).unwrap_or(0),
            undelivered: info.num_pending,
            channels: u64::try_from(info.config.max_ack_pending).unwrap_or(0),
        })
    }
}
