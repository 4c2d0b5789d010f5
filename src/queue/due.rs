//! Moving what came due into the queue. A timer fires into its own stream only; any replica takes it from there, and keeps
//! it there until the queue has it. A crash in between moves it twice, and the dialler drops the second.

use std::time::Duration;

use async_nats::jetstream::{
    AckKind, Context, Message,
    consumer::{AckPolicy, PullConsumer, pull},
};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{
    Away, Delivery, Names,
    submit::{Submitter, describe},
};
use crate::retry::Retry;

/// The durable consumer of what came due.
const CONSUMER: &str = "due";
/// How long a request that the queue did not take waits before the next try.
const AGAIN: Duration = Duration::from_secs(2);
/// Requests under way into the queue at once.
const MOVED_AT_ONCE: usize = 64;

/// Moves, until `stop`.
pub async fn run(jetstream: Context, names: Names, submitter: Submitter, stop: CancellationToken) {
    let mut trouble = Retry::new("move due requests into the queue");
    while !stop.is_cancelled() {
        tokio::select! {
            Err(error) = move_until_error(&jetstream, &names, &submitter) => tokio::time::sleep(trouble.failed(error)).await,
            () = stop.cancelled() => {}
        }
    }
}

async fn move_until_error(jetstream: &Context, names: &Names, submitter: &Submitter) -> Result<(), Away> {
    let messages = consumer(jetstream, names).await?.messages().await.map_err(|error| Away(describe(&error)))?;
    let mut moves = messages
        .map(|message| async move {
            move_one(submitter, message.map_err(|error| Away(describe(&error)))?).await;
            Ok::<(), Away>(())
        })
        .buffer_unordered(MOVED_AT_ONCE);
    while let Some(moved) = moves.next().await {
        moved?;
    }
    Err(Away("the stream of due requests ended".to_owned()))
}

async fn move_one(submitter: &Submitter, message: Message) {
    let Some(delivery) = Delivery::of(message.clone()) else { return };
    let ack = match submitter.forward(&delivery).await {
        Ok(()) => AckKind::Ack,
        Err(refusal) => {
            tracing::warn!(%refusal, "a request that is due does not get into the queue yet");
            AckKind::Nak(Some(AGAIN))
        }
    };
    if let Err(error) = message.ack_with(ack).await {
        tracing::debug!(%error, "a due request was not acknowledged, it will be moved again");
    }
}

async fn consumer(jetstream: &Context, names: &Names) -> Result<PullConsumer, Away> {
    let config = pull::Config {
        durable_name: Some(CONSUMER.to_owned()),
        description: Some("moves what came due into the queue".to_owned()),
        ack_policy: AckPolicy::Explicit,
        filter_subject: names.due.clone(),
        max_deliver: -1,
        ..Default::default()
    };
    let consumer = jetstream.create_consumer_on_stream(config, names.schedule_stream.clone()).await;
    consumer.map_err(|error| Away(describe(&error)))
}
