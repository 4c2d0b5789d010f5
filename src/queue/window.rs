//! What is dialled now, or is next: the stream `SIP_DIAL`, one message for each attempt, `sip.dial.<trunk>.<job>`. A message that is
//! delivered and not settled is a call in progress, and the consumer lets as many be delivered as there are channels.

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::PullConsumer;
use bytes::Bytes;

use super::waiting::DEFAULT_TRUNK;
use crate::nats::publish::publish;
use crate::nats::{Names, NatsError, NatsErrorKind};

/// The window of what is dialled.
#[derive(Clone)]
pub struct Window {
    jetstream: Context,
    stream: String,
    prefix: String,
    consumer: String,
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
    /// How many calls could be begun at once.
    pub fn free(self) -> usize {
        usize::try_from(self.channels.saturating_sub(self.in_flight + self.undelivered)).unwrap_or(usize::MAX)
    }
}

impl Window {
    /// The one in the stream that `names` names.
    pub fn new(jetstream: Context, names: &Names) -> Self {
        let Names { dial_stream, dial, dial_consumer, .. } = names.clone();
        Self { jetstream, stream: dial_stream, prefix: dial, consumer: dial_consumer }
    }

    /// Puts an attempt there. One that is there already stays as it is, whether or not it is dialled yet.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn put(&self, job: &str, headers: HeaderMap, body: Bytes) -> Result<(), NatsError> {
        let subject = format!("{}.{DEFAULT_TRUNK}.{job}", self.prefix);
        match publish(&self.jetstream, subject.into(), headers, body).await {
            // The stream has no other limit than one message a subject.
            Err(error) if error.kind() == NatsErrorKind::Full => Ok(()),
            put => put.map(drop),
        }
    }

    /// How full it is.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn occupancy(&self) -> Result<Occupancy, NatsError> {
        let consumer = self.jetstream.get_consumer_from_stream(&self.consumer, &self.stream).await;
        let consumer: PullConsumer = consumer.map_err(NatsError::of)?;
        let info = consumer.cached_info();
        Ok(Occupancy {
            in_flight: u64::try_from(info.num_ack_pending).unwrap_or(0),
            undelivered: info.num_pending,
            channels: u64::try_from(info.config.max_ack_pending).unwrap_or(0),
        })
    }
}
