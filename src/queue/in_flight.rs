//! The messages in flight here: a message in flight is a call in progress.
//!
//! [`InFlight`] keeps the latest delivery of every message that is being worked on, extends its ack wait, and in the end
//! acknowledges it or hands it back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::{Client, Subject};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::Delivery;
use crate::nats::streams::ACK_WAIT;

/// How often the server is told that a message is being worked on: three times within the ack wait.
const IN_PROGRESS_EVERY: Duration = Duration::from_secs(ACK_WAIT.as_secs() / 3);
/// Longest delay of a message that is handed back: it keeps its place among the active calls meanwhile.
const MAX_DELAY: Duration = Duration::from_secs(30);

/// The registry of the messages in flight.
#[derive(Clone)]
pub struct InFlight {
    client: Client,
    entries: Arc<Mutex<HashMap<u64, Entry>>>,
}

/// A message in flight: where its latest delivery is acknowledged, and when it was stored. A stream that was lost and made again
/// counts from 1, so its sequence alone would confuse another message with one that is still in flight.
#[derive(Clone)]
struct Entry {
    reply: Subject,
    published: Timestamp,
}

/// See [`InFlight::release_on_panic`].
pub struct ReleaseOnPanic {
    in_flight: InFlight,
    message: MessageId,
}

/// Which message of the queue: its sequence, and when it was stored.
pub type MessageId = (u64, Timestamp);

impl Drop for ReleaseOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.in_flight.remove(self.message);
        }
    }
}

/// How the work on a message ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// Acknowledged: the server removes it.
    Ack,
    /// Handed back: the server delivers it again, at once or after a delay of at most 30 s.
    Nak(Option<Duration>),
}

impl InFlight {
    /// An empty registry.
    pub fn new(client: Client) -> Self {
        Self { client, entries: Arc::default() }
    }

    /// Registers a delivery; false when its message is in flight already, and then this delivery is the one to acknowledge.
    pub fn register(&self, delivery: &Delivery) -> bool {
        let entry = Entry { reply: delivery.reply.clone(), published: delivery.published };
        let before = self.lock().insert(delivery.sequence, entry);
        before.is_none_or(|before| before.published != delivery.published)
    }

    /// Removes a message from the registry when the work on it ends in a panic: the server then delivers it again, where
    /// otherwise its ack wait would be extended until the process ends.
    pub fn release_on_panic(&self, message: MessageId) -> ReleaseOnPanic {
        ReleaseOnPanic { in_flight: self.clone(), message }
    }

    fn remove(&self, (sequence, published): MessageId) -> Option<Entry> {
        let mut entries = self.lock();
        entries.get(&sequence).filter(|entry| entry.published == published)?;
        entries.remove(&sequence)
    }

    /// Drops what was in flight of a queue that was lost and made again at that moment: the work on it goes on, and there is no
    /// message left to settle.
    pub fn forget_before(&self, made_at: Timestamp) {
        let mut entries = self.lock();
        let before = entries.len();
        entries.retain(|_, entry| entry.published >= made_at);
        let lost = before - entries.len();
        tracing::warn!(lost, "the window was lost and made again: calls in progress go on without their messages");
    }

    /// Whether a message is in flight here.
    pub fn contains(&self, sequence: u64) -> bool {
        self.lock().contains_key(&sequence)
    }

    /// How many messages are in flight here.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Ends the work on a message. An acknowledgement is confirmed by the server; should no confirmation come, the message will
    /// be delivered again, and the status log says then what became of its call.
    pub async fn settle(&self, message: MessageId, settlement: Settlement) {
        let Some(Entry { reply, .. }) = self.remove(message) else { return };
        let result = match settlement {
            Settlement::Ack => {
                self.client.request(reply, AckKind::Ack.into()).await.map(|_| ()).map_err(|e| e.to_string())
            }
            Settlement::Nak(delay) => {
                let nak = AckKind::Nak(delay.map(|delay| delay.min(MAX_DELAY)));
                self.client.publish(reply, nak.into()).await.map_err(|e| e.to_string())
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, sequence = message.0, "a message could not be settled; it will be delivered again");
        }
    }

    /// Keeps extending the ack wait of every message in flight, until `stop`.
    pub async fn keep_in_progress(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(IN_PROGRESS_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            let replies: Vec<Subject> = self.lock().values().map(|entry| entry.reply.clone()).collect();
            for reply in replies {
                if let Err(error) = self.client.publish(reply, AckKind::Progress.into()).await {
                    tracing::debug!(%error, "an ack wait could not be extended");
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
