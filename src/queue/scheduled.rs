//! Requests that wait for their moment: the server's timers, and moving what came due into the queue.
//!
//! A timer fires into its own stream only; any replica takes it from there, and keeps it there until the queue has it. A crash
//! in between moves it twice, and the dialler drops the second.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{AckKind, Context, Message};
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::inbox::{HEADER_DUE, Labels};
use super::{Delivery, Inbox, Keeper};
use crate::call::CallName;
use crate::nats::publish::publish;
use crate::nats::{Names, NatsError};
use crate::retry::{self, Retry};

/// Header of the server's scheduler: when to fire (ADR-51).
const NATS_SCHEDULE: &str = "Nats-Schedule";
/// Header of the server's scheduler: where to.
const NATS_SCHEDULE_TARGET: &str = "Nats-Schedule-Target";
/// How often the server shows that a waiting pull request is alive; after two missed ones the pull is made again.
const PULL_HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a request that the queue did not accept waits before the next try.
const RETRY_DELAY: Duration = Duration::from_secs(2);
/// Requests under way into the queue at once.
const MOVED_AT_ONCE: usize = 64;

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

    /// Removes the timer of an attempt.
    ///
    /// # Errors
    /// [`NatsError`]; it may fire then.
    pub async fn remove(&self, name: &CallName, attempt: u32) -> Result<(), NatsError> {
        let stream = self.jetstream.get_stream_no_info(&self.stream).await.map_err(NatsError::of)?;
        stream.purge().filter(self.subject(name, attempt)).await.map(drop).map_err(NatsError::of)
    }

    /// The subject that holds the timer of an attempt.
    pub fn subject(&self, name: &CallName, attempt: u32) -> String {
        format!("{}.{}", self.prefix, name.job(attempt))
    }
}

/// Moves what comes due into the queue, until `stop`. After an error it begins anew, once `keeper` has made what is missing.
pub async fn move_due(jetstream: Context, names: Names, inbox: Inbox, keeper: Arc<Keeper>, stop: CancellationToken) {
    let mut retry = Retry::new("move due requests into the queue");
    while !stop.is_cancelled() {
        tokio::select! {
            Err(error) = move_until_error(&jetstream, &names, &inbox) => {
                keeper.look_soon();
                retry::sleep(&stop, retry.failed(error.chain())).await;
            }
            () = stop.cancelled() => {}
        }
    }
}

async fn move_until_error(jetstream: &Context, names: &Names, inbox: &Inbox) -> Result<(), NatsError> {
    let consumer = jetstream.get_consumer_from_stream(&names.due_consumer, &names.schedule_stream).await;
    let consumer: PullConsumer = consumer.map_err(NatsError::of)?;
    let messages = consumer.stream().heartbeat(PULL_HEARTBEAT).messages().await.map_err(NatsError::of)?;
    let mut moves = messages
        .map(|message| async move {
            move_one(inbox, message.map_err(NatsError::of)?).await;
            Ok::<(), NatsError>(())
        })
        .buffer_unordered(MOVED_AT_ONCE);
    while let Some(moved) = moves.next().await {
        moved?;
    }
    Err(NatsError::unavailable("the stream of due requests ended"))
}

async fn move_one(inbox: &Inbox, message: Message) {
    let Some(delivery) = Delivery::of(message.clone()) else { return };
    let ack = match inbox.forward(&delivery).await {
        Ok(()) => AckKind::Ack,
        Err(error) => {
            tracing::warn!(error = error.chain(), "could not move a due request into the queue, will try again");
            AckKind::Nak(Some(RETRY_DELAY))
        }
    };
    if let Err(error) = message.ack_with(ack).await {
        tracing::debug!(%error, "a due request was not acknowledged; it will be moved again");
    }
}
