//! Pulling messages from the window, trunk by trunk, no more than there are prefetch permits for: what lay here unattended would be delivered
//! again after the ack wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::{Context, Message};
use async_nats::{StatusCode, Subject, Subscriber};
use futures::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Delivery, Keeper};
use crate::nats::{Names, NatsError, NatsErrorKind, connect};
use crate::retry::{self, Retry};

/// How long a pull request waits on the server.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// How often the server shows that a waiting pull request is alive; after two missed ones the pull is made again.
const PULL_HEARTBEAT: Duration = Duration::from_secs(5);
/// Most messages that are taken and not under way yet: several times what an API server makes at once.
const MAX_PREFETCH: usize = 128;
/// Below that many active calls a replica may take all of them.
const FEW: usize = 16;

/// Permits one message to be taken whose call is not under way yet; dropped once its Job is there, or it is settled.
pub type PrefetchPermit = OwnedSemaphorePermit;

/// How many messages one replica may take ahead of their Jobs, of those of a trunk. A quarter of all: a replica whose cluster does not answer would
/// otherwise draw every call that ends elsewhere, until nobody dials any more. All of them where they are few: a quarter
/// would be one, and a call that cannot start would stop the others.
fn prefetch(channels: u32) -> usize {
    let all = usize::try_from(channels).unwrap_or(MAX_PREFETCH);
    if all < FEW { all.max(1) } else { (all / 4).min(MAX_PREFETCH) }
}

/// What is done with a message.
pub type Work = Arc<dyn Fn(Delivery, PrefetchPermit) + Send + Sync>;

/// Hands the messages of every trunk that there are any for to `work`, until `stop`. When it returns, the server knows that nothing more is
/// wanted here: what is handed back then goes to another replica.
pub async fn pull(jetstream: Context, names: Names, keeper: Arc<Keeper>, stop: CancellationToken, work: Work) {
    let mut dialled = keeper.dialled();
    let mut pulls: HashMap<String, (u32, CancellationToken)> = HashMap::new();
    let mut tasks = JoinSet::new();
    while !stop.is_cancelled() {
        let wanted = dialled.borrow_and_update().clone();
        pulls.retain(|trunk, (channels, stop)| {
            let is_as_wanted = wanted.get(trunk) == Some(channels);
            if !is_as_wanted {
                stop.cancel();
            }
            is_as_wanted
        });
        for (trunk, channels) in wanted.into_iter().filter(|(trunk, _)| !pulls.contains_key(trunk)).collect::<Vec<_>>()
        {
            let stop = stop.child_token();
            pulls.insert(trunk.clone(), (channels, stop.clone()));
            let consumer = Consumer { jetstream: jetstream.clone(), names: names.clone(), trunk, channels };
            tasks.spawn(consumer.pull(keeper.clone(), stop, work.clone()));
        }
        tokio::select! {
            Ok(()) = dialled.changed() => {}
            Some(_) = tasks.join_next() => {}
            () = stop.cancelled() => {}
        }
    }
    while tasks.join_next().await.is_some() {}
    connect::flush(&jetstream.client()).await;
}

/// What is pulled from: the messages of one trunk.
struct Consumer {
    jetstream: Context,
    names: Names,
    trunk: String,
    channels: u32,
}

impl Consumer {
    /// Hands messages to `work` until `stop`. After a lost connection, a stall or a deleted consumer it begins anew, once `keeper` has
    /// made what is missing.
    async fn pull(self, keeper: Arc<Keeper>, stop: CancellationToken, work: Work) {
        let permits = Arc::new(Semaphore::new(prefetch(self.channels)));
        let mut retry = Retry::new(format!("pull from the window of trunk {}", self.trunk));
        while !stop.is_cancelled() {
            let Err(error) = self.pull_until_error(&permits, &stop, &work).await else { break };
            keeper.look_soon();
            retry::sleep(&stop, retry.failed(error.chain())).await;
        }
    }

    async fn pull_until_error(
        &self,
        permits: &Arc<Semaphore>,
        stop: &CancellationToken,
        work: &Work,
    ) -> Result<(), NatsError> {
        let jetstream = &self.jetstream;
        let mut request = Request::open(jetstream, &self.names, &self.trunk).await?;
        loop {
            let free = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                free = free(permits) => free,
            };
            request.ask_for(free.len()).await?;
            tokio::select! {
                biased;
                fulfilled = request.fulfil(jetstream, free, work) => fulfilled?,
                () = stop.cancelled() => {
                    request.hand_on_the_rest(jetstream, permits, work);
                    return Ok(());
                }
            }
        }
    }
}

/// All permits that are free; waits until there is one.
async fn free(permits: &Arc<Semaphore>) -> Vec<PrefetchPermit> {
    let first = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
    let rest = std::iter::from_fn(|| permits.clone().try_acquire_owned().ok());
    std::iter::once(first).chain(rest).collect()
}

/// One pull request after another, all answered on one subject. (The client library's own stream asks ahead for as much as fits
/// its buffer, whether there are permits or not.)
struct Request {
    consumer: PullConsumer,
    inbox: Subject,
    messages: Subscriber,
}

impl Request {
    async fn open(jetstream: &Context, names: &Names, trunk: &str) -> Result<Self, NatsError> {
        let consumer = jetstream.get_consumer_from_stream(names.dial_consumer(trunk), &names.dial_stream).await;
        let consumer = consumer.map_err(NatsError::of)?;
        let inbox = Subject::from(jetstream.client().new_inbox());
        let messages = jetstream.client().subscribe(inbox.clone()).await.map_err(NatsError::of)?;
        Ok(Self { consumer, inbox, messages })
    }

    async fn ask_for(&self, batch: usize) -> Result<(), NatsError> {
        let wish = pull::BatchConfig {
            batch,
            expires: Some(PULL_EXPIRES),
            idle_heartbeat: PULL_HEARTBEAT,
            ..Default::default()
        };
        self.consumer.request_batch(wish, self.inbox.clone()).await.map_err(NatsError::of)
    }

    /// Hands on what comes until the request is fulfilled or has expired; a server that sends no heartbeats is an error.
    async fn fulfil(&mut self, jetstream: &Context, free: Vec<PrefetchPermit>, work: &Work) -> Result<(), NatsError> {
        let mut free = free.into_iter().peekable();
        while free.peek().is_some() {
            let message = tokio::time::timeout(PULL_HEARTBEAT * 2, self.messages.next())
                .await
                .map_err(|_| NatsError::unavailable("the server sends no heartbeats for a waiting pull request"))?
                .ok_or_else(|| NatsError::unavailable("the subscription ended"))?;
            match message.status {
                None | Some(StatusCode::OK) => hand_on(jetstream, message, free.next(), work),
                Some(StatusCode::IDLE_HEARTBEAT) => {}
                Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND) => return Ok(()),
                Some(status) => return Err(refused(status, message.description.unwrap_or_default().as_str())),
            }
        }
        Ok(())
    }

    /// At the end: what was delivered before the server heard that nothing more is wanted is taken too, and so is handed back at
    /// once like everything else.
    fn hand_on_the_rest(&mut self, jetstream: &Context, permits: &Arc<Semaphore>, work: &Work) {
        while let Some(Some(message)) = self.messages.next().now_or_never() {
            if message.status.is_none() {
                hand_on(jetstream, message, permits.clone().try_acquire_owned().ok(), work);
            }
        }
    }
}

fn refused(status: StatusCode, description: &str) -> NatsError {
    let cause = std::io::Error::other(format!("{status} {description}"));
    NatsError::new(NatsErrorKind::Unavailable, cause).during("pull from the window")
}

fn hand_on(jetstream: &Context, message: async_nats::Message, permit: Option<PrefetchPermit>, work: &Work) {
    let message = Message { message, context: jetstream.clone() };
    if let (Some(delivery), Some(permit)) = (Delivery::of(message), permit) {
        work(delivery, permit);
    }
}
