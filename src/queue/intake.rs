//! Taking messages from the queue and holding them: a message in flight is a call in progress.
//!
//! [`Holds`] keeps the latest delivery of every message that is being worked on, tells the server that it still is, and at
//! the end acknowledges it or gives it back. [`pull()`] brings messages, for ever.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_nats::{
    Client, Subject,
    jetstream::{AckKind, Context, consumer::pull},
};
use futures::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{Away, Delivery, StreamSettings, connect, streams, submit::describe};
use crate::retry::Retry;

/// How often the server is told that a message is being worked on: three times within its patience.
const IN_PROGRESS_EVERY: Duration = Duration::from_secs(streams::ACK_WAIT.as_secs() / 3);
/// How long a pull request waits on the server.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// How often the server shows that a waiting pull request is alive; two missed ones and the pull is made anew.
const PULL_HEARTBEAT: Duration = Duration::from_secs(5);
/// Most messages that are taken and not under way yet: several times what an API server makes at once.
const MAX_AHEAD: usize = 128;

/// The messages that are being worked on.
#[derive(Clone)]
pub struct Holds {
    client: Client,
    held: Arc<Mutex<HashMap<u64, Subject>>>,
}

/// See [`Holds::release_on_drop`].
pub struct ReleaseOnDrop {
    holds: Holds,
    sequence: u64,
}

impl Drop for ReleaseOnDrop {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.holds.lock().remove(&self.sequence);
        }
    }
}

/// What becomes of a held message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// Done: the server forgets it.
    Done,
    /// Given back: the server delivers it again, at once or after a while.
    GiveBack(Option<Duration>),
}

impl Holds {
    /// Holds nothing yet.
    pub fn new(client: Client) -> Self {
        Self { client, held: Arc::default() }
    }

    /// Holds a delivery; false when the message is held already, and then this delivery is the one to acknowledge.
    pub fn hold(&self, delivery: &Delivery) -> bool {
        self.lock().insert(delivery.sequence, delivery.reply.clone()).is_none()
    }

    /// Lets a message go when the work on it ends without a settlement, as by a panic: the server then delivers it again, where it
    /// would be held for ever.
    pub fn release_on_drop(&self, sequence: u64) -> ReleaseOnDrop {
        ReleaseOnDrop { holds: self.clone(), sequence }
    }

    /// How many messages are held.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Ends the work on a message. An acknowledgement is confirmed by the server; should no confirmation come, the message will
    /// be delivered again, and the status log says then what became of its call.
    pub async fn settle(&self, sequence: u64, settlement: Settlement) {
        let Some(reply) = self.lock().remove(&sequence) else { return };
        let result = match settlement {
            Settlement::Done => {
                self.client.request(reply, AckKind::Ack.into()).await.map(|_| ()).map_err(|e| e.to_string())
            }
            Settlement::GiveBack(delay) => {
                self.client.publish(reply, AckKind::Nak(delay).into()).await.map_err(|e| e.to_string())
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, sequence, "a message could not be settled, it will be delivered again");
        }
    }

    /// Tells the server, for ever, that the held messages are being worked on.
    pub async fn keep(self) {
        let mut ticks = tokio::time::interval(IN_PROGRESS_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let replies: Vec<Subject> = self.lock().values().cloned().collect();
            for reply in replies {
                if let Err(error) = self.client.publish(reply, AckKind::Progress.into()).await {
                    tracing::debug!(%error, "no in-progress sign could be sent");
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Subject>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room for one message that is taken and not under way yet; dropped once its Job is there, or it is settled.
pub type Room = OwnedSemaphorePermit;

/// How many messages one replica may take ahead of their Jobs. A quarter of all: a replica whose cluster does not answer would
/// otherwise draw every call that ends elsewhere, until nobody dials any more.
fn ahead(settings: &StreamSettings) -> usize {
    usize::try_from(settings.max_active_calls / 4).unwrap_or(MAX_AHEAD).clamp(1, MAX_AHEAD)
}

/// Brings messages to `work` until `stop`, as long as there is [`Room`]. After a lost connection, a stall or a deleted consumer everything is made anew. When it
/// returns, the server knows that nothing more is wanted here: what is handed back then goes to somebody else.
pub async fn pull(
    jetstream: Context,
    settings: StreamSettings,
    stop: CancellationToken,
    work: impl Fn(Delivery, Room),
) {
    let rooms = Arc::new(Semaphore::new(ahead(&settings)));
    let mut trouble = Retry::new("pull from the queue");
    while !stop.is_cancelled() {
        let pulled = pull_until_error(&jetstream, &settings, &rooms, &stop, &work).await;
        let Err(error) = pulled else { break };
        let wait = trouble.failed(error);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => {}
        }
    }
    connect::flush(&jetstream.client()).await;
}

async fn pull_until_error(
    jetstream: &Context,
    settings: &StreamSettings,
    rooms: &Arc<Semaphore>,
    stop: &CancellationToken,
    work: &impl Fn(Delivery, Room),
) -> Result<(), Away> {
    let mut messages = subscribe(jetstream, settings).await?;
    loop {
        let room = tokio::select! {
            biased;
            room = rooms.clone().acquire_owned() => room.map_err(|error| Away(error.to_string()))?,
            () = stop.cancelled() => return give_back(&mut messages).await,
        };
        let next = tokio::select! {
            biased;
            next = messages.next() => next,
            () = stop.cancelled() => return Ok(()),
        };
        let message = next.ok_or_else(|| Away("the stream of messages ended".to_owned()))?;
        if let Some(delivery) = Delivery::of(message.map_err(|error| Away(describe(&error)))?) {
            work(delivery, room);
        }
    }
}

/// Hands back at once what has come and was not taken.
async fn give_back(messages: &mut pull::Stream) -> Result<(), Away> {
    while let Some(Some(Ok(message))) = messages.next().now_or_never() {
        message.ack_with(AckKind::Nak(None)).await.map_err(|error| Away(error.to_string()))?;
    }
    Ok(())
}

async fn subscribe(jetstream: &Context, settings: &StreamSettings) -> Result<pull::Stream, Away> {
    let consumer = streams::ensure(jetstream, settings).await?;
    consumer
        .stream()
        .max_messages_per_batch(ahead(settings))
        .expires(PULL_EXPIRES)
        .heartbeat(PULL_HEARTBEAT)
        .messages()
        .await
        .map_err(|error| Away(describe(&error)))
}
