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
    Client, StatusCode, Subject, Subscriber,
    jetstream::{
        AckKind, Context, Message,
        consumer::{PullConsumer, pull},
    },
};
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
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

/// Below that many active calls a replica may take all of them.
const FEW: usize = 16;

/// The messages that are being worked on.
#[derive(Clone)]
pub struct Holds {
    client: Client,
    held: Arc<Mutex<HashMap<u64, Held>>>,
}

/// A message in hand: where its latest delivery is acknowledged, and when it was stored. A stream that was lost and made anew
/// counts from 1 again, so its sequence alone would take another message for one that is still in hand.
#[derive(Clone)]
struct Held {
    reply: Subject,
    published: Timestamp,
}

/// See [`Holds::release_on_drop`].
pub struct ReleaseOnDrop {
    holds: Holds,
    message: MessageId,
}

/// Which message of the queue: its sequence, and when it was stored.
pub type MessageId = (u64, Timestamp);

impl Drop for ReleaseOnDrop {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.holds.remove(self.message);
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
        let held = Held { reply: delivery.reply.clone(), published: delivery.published };
        let before = self.lock().insert(delivery.sequence, held);
        before.is_none_or(|before| before.published != delivery.published)
    }

    /// Lets a message go when the work on it ends without a settlement, as by a panic: the server then delivers it again, where it
    /// would be held for ever.
    pub fn release_on_drop(&self, message: MessageId) -> ReleaseOnDrop {
        ReleaseOnDrop { holds: self.clone(), message }
    }

    fn remove(&self, (sequence, published): MessageId) -> Option<Held> {
        let mut held = self.lock();
        held.get(&sequence).filter(|held| held.published == published)?;
        held.remove(&sequence)
    }

    /// Whether a message is held.
    pub fn has(&self, sequence: u64) -> bool {
        self.lock().contains_key(&sequence)
    }

    /// How many messages are held.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Ends the work on a message. An acknowledgement is confirmed by the server; should no confirmation come, the message will
    /// be delivered again, and the status log says then what became of its call.
    pub async fn settle(&self, message: MessageId, settlement: Settlement) {
        let Some(Held { reply, .. }) = self.remove(message) else { return };
        let result = match settlement {
            Settlement::Done => {
                self.client.request(reply, AckKind::Ack.into()).await.map(|_| ()).map_err(|e| e.to_string())
            }
            Settlement::GiveBack(delay) => {
                self.client.publish(reply, AckKind::Nak(delay).into()).await.map_err(|e| e.to_string())
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, sequence = message.0, "a message could not be settled, it will be delivered again");
        }
    }

    /// Tells the server, for ever, that the held messages are being worked on.
    pub async fn keep(self) {
        let mut ticks = tokio::time::interval(IN_PROGRESS_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let replies: Vec<Subject> = self.lock().values().map(|held| held.reply.clone()).collect();
            for reply in replies {
                if let Err(error) = self.client.publish(reply, AckKind::Progress.into()).await {
                    tracing::debug!(%error, "no in-progress sign could be sent");
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room for one message that is taken and not under way yet; dropped once its Job is there, or it is settled.
pub type Room = OwnedSemaphorePermit;

/// How many messages one replica may take ahead of their Jobs. A quarter of all: a replica whose cluster does not answer would
/// otherwise draw every call that ends elsewhere, until nobody dials any more. All of them where they are few: a quarter
/// would be one, and a call that cannot start would stop the others.
fn ahead(settings: &StreamSettings) -> usize {
    let all = usize::try_from(settings.max_active_calls).unwrap_or(MAX_AHEAD);
    if all < FEW { all.max(1) } else { (all / 4).min(MAX_AHEAD) }
}

/// Brings messages to `work` until `stop`, never more than there is [`Room`] for: what lay here unheeded would be delivered again
/// after the server's patience. After a lost connection, a stall or a deleted consumer everything is made anew. When it returns, the
/// server knows that nothing more is wanted here: what is handed back then goes to somebody else.
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
    let mut request = Request::open(jetstream, settings).await?;
    loop {
        let free = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            free = free(rooms) => free?,
        };
        request.ask_for(free.len()).await?;
        tokio::select! {
            biased;
            fulfilled = request.fulfil(jetstream, free, work) => fulfilled?,
            () = stop.cancelled() => return request.take_what_has_come(jetstream, rooms, work),
        }
    }
}

/// All the room there is; waits until there is some.
async fn free(rooms: &Arc<Semaphore>) -> Result<Vec<Room>, Away> {
    let closed = |error: tokio::sync::AcquireError| Away(error.to_string());
    let mut free = vec![rooms.clone().acquire_owned().await.map_err(closed)?];
    free.extend(std::iter::from_fn(|| rooms.clone().try_acquire_owned().ok()));
    Ok(free)
}

/// One pull request after another, all answered on one subject. (The client library's own stream asks ahead for as much as fits
/// its buffer, whether there is room or not.)
struct Request {
    consumer: PullConsumer,
    inbox: Subject,
    messages: Subscriber,
}

impl Request {
    async fn open(jetstream: &Context, settings: &StreamSettings) -> Result<Self, Away> {
        let consumer = streams::ensure(jetstream, settings).await?;
        let inbox = Subject::from(jetstream.client().new_inbox());
        let messages = jetstream.client().subscribe(inbox.clone()).await.map_err(|error| Away(error.to_string()))?;
        Ok(Self { consumer, inbox, messages })
    }

    async fn ask_for(&self, batch: usize) -> Result<(), Away> {
        let wish = pull::BatchConfig {
            batch,
            expires: Some(PULL_EXPIRES),
            idle_heartbeat: PULL_HEARTBEAT,
            ..Default::default()
        };
        self.consumer.request_batch(wish, self.inbox.clone()).await.map_err(|error| Away(describe(&error)))
    }

    /// Hands on what comes until the request is fulfilled or has expired; a server that shows no sign of life is an error.
    async fn fulfil(
        &mut self,
        jetstream: &Context,
        free: Vec<Room>,
        work: &impl Fn(Delivery, Room),
    ) -> Result<(), Away> {
        let mut free = free.into_iter().peekable();
        while free.peek().is_some() {
            let message = tokio::time::timeout(PULL_HEARTBEAT * 2, self.messages.next())
                .await
                .map_err(|_| Away("no sign of life for a waiting pull request".to_owned()))?
                .ok_or_else(|| Away("the subscription ended".to_owned()))?;
            match message.status {
                None | Some(StatusCode::OK) => hand_on(jetstream, message, free.next(), work),
                Some(StatusCode::IDLE_HEARTBEAT) => {}
                Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND) => return Ok(()),
                Some(status) => {
                    let words = message.description.unwrap_or_default();
                    return Err(Away(format!("a pull request was refused: {status} {words}")));
                }
            }
        }
        Ok(())
    }

    /// At the end: what was delivered before the server heard that nothing more is wanted is taken too, and so is handed back at
    /// once like the rest.
    fn take_what_has_come(
        &mut self,
        jetstream: &Context,
        rooms: &Arc<Semaphore>,
        work: &impl Fn(Delivery, Room),
    ) -> Result<(), Away> {
        while let Some(Some(message)) = self.messages.next().now_or_never() {
            if message.status.is_none() {
                hand_on(jetstream, message, rooms.clone().try_acquire_owned().ok(), work);
            }
        }
        Ok(())
    }
}

fn hand_on(jetstream: &Context, message: async_nats::Message, room: Option<Room>, work: &impl Fn(Delivery, Room)) {
    let message = Message { message, context: jetstream.clone() };
    if let (Some(delivery), Some(room)) = (Delivery::of(message), room) {
        work(delivery, room);
    }
}
