//! The streams, the bucket and the consumers: what they should be, and making them so. Idempotent: several replicas may do it at
//! once, and [`crate::queue::keeper`] does it again and again.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, FromConsumer, PullConsumer, pull};
use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::stream::{
    Config, ConsumerError, ConsumerErrorKind, DiscardPolicy, Republish, RetentionPolicy, StorageType,
};
use async_nats::jetstream::{Context, ErrorCode, kv};
use futures::TryStreamExt;
use jiff::Timestamp;

use super::{NatsError, timestamp};
use crate::clock::now;

/// How long the server waits for an acknowledgement or an in-progress sign before it delivers a message again.
pub const ACK_WAIT: Duration = Duration::from_secs(30);
/// The same for a request that is admitted, which takes milliseconds: so soon another replica admits what one that died had.
const ADMISSION_ACK_WAIT: Duration = Duration::from_secs(10);
/// Within this window the server drops a second publish with the same `Nats-Msg-Id`.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// Requests that are admitted at once, over all replicas.
const MAX_ADMITTED_AT_ONCE: i64 = 4096;
/// The consumer of the inbox in version 0.1.
const FORMER_CONSUMER: &str = "dialler";
/// How long dead letters are kept.
const DEAD_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

/// Names of subjects, streams and the consumer.
#[derive(Debug, Clone)]
pub struct Names {
    /// The inbox: requests that were not admitted yet.
    pub calls_stream: String,
    /// Where requests are published.
    pub calls: String,
    /// The durable consumer of the inbox.
    pub admission_consumer: String,
    /// What waits to be dialled.
    pub queue_stream: String,
    /// Prefix of the subjects of what waits; [`crate::queue::waiting`] says what follows.
    pub queue: String,
    /// What is dialled now, or is next.
    pub dial_stream: String,
    /// Prefix of the subjects of what is dialled; [`crate::queue::window`] says what follows.
    pub dial: String,
    /// Before the name of a trunk: the durable consumer of what is dialled on it.
    pub dial_consumers: String,
    /// The stream of the server's timers.
    pub schedule_stream: String,
    /// Prefix of the timers' subjects; never covered by a consumer.
    pub schedule: String,
    /// Where timers fire into; from there a request goes back into the queue.
    pub due: String,
    /// `STATUS_STREAM`: the status log.
    pub status_stream: String,
    /// `STATUS_SUBJECT`: where every change of every call is republished; one call's is this, a dot and its name.
    pub status: String,
    /// `DEAD_STREAM`.
    pub dead_stream: String,
    /// `DEAD_SUBJECT`.
    pub dead: String,
    /// The durable consumer of the requests that came due.
    pub due_consumer: String,
    /// The bucket for what the replicas share beside calls.
    pub bucket: String,
    /// Where it is told that the breaker of a trunk has changed.
    pub alerts: String,
}

impl Names {
    /// The durable consumer of what is dialled on a trunk.
    pub fn dial_consumer(&self, trunk: &str) -> String {
        format!("{}{trunk}", self.dial_consumers)
    }

    /// The trunk in a subject of what is dialled.
    pub fn trunk_of<'a>(&self, subject: &'a str) -> Option<&'a str> {
        subject.strip_prefix(&self.dial)?.strip_prefix('.')?.split('.').next()
    }
}

impl Default for Names {
    fn default() -> Self {
        Self {
            calls_stream: "SIP_CALLS".to_owned(),
            calls: "sip.calls".to_owned(),
            admission_consumer: "admission".to_owned(),
            queue_stream: "SIP_QUEUE".to_owned(),
            queue: "sip.queue".to_owned(),
            dial_stream: "SIP_DIAL".to_owned(),
            dial: "sip.dial".to_owned(),
            dial_consumers: "dialler-".to_owned(),
            schedule_stream: "SIP_SCHEDULE".to_owned(),
            schedule: "sip.schedule".to_owned(),
            due: "sip.due".to_owned(),
            status_stream: "SIP_STATUS".to_owned(),
            status: "sip.status".to_owned(),
            dead_stream: "SIP_DEAD".to_owned(),
            dead: "sip.dead".to_owned(),
            due_consumer: "due".to_owned(),
            bucket: "SIP_OPERATOR".to_owned(),
            alerts: "sip.alert".to_owned(),
        }
    }
}

/// What the streams are made with.
#[derive(Debug, Clone)]
pub struct StreamSettings {
    /// How they are called.
    pub names: Names,
    /// `NATS_REPLICAS`: copies of each stream, 1 to 5.
    pub replicas: usize,
    /// `QUEUE_MAX_MESSAGES`: the queue refuses more; -1 for no limit.
    pub queue_max_messages: i64,
    /// `QUEUE_MAX_BYTES`: the queue refuses more; -1 for no limit.
    pub queue_max_bytes: i64,
}

/// The streams of the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamKind {
    /// The inbox.
    Calls,
    /// What waits to be dialled.
    Queue,
    /// What is dialled.
    Dial,
    /// The server's timers.
    Schedule,
    /// The status log.
    Status,
    /// The dead letters.
    Dead,
    /// The stream behind the bucket.
    Bucket,
}

impl StreamKind {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Calls, Self::Queue, Self::Dial, Self::Schedule, Self::Status, Self::Dead, Self::Bucket];

    fn name(self, names: &Names) -> String {
        match self {
            Self::Calls => names.calls_stream.clone(),
            Self::Queue => names.queue_stream.clone(),
            Self::Dial => names.dial_stream.clone(),
            Self::Schedule => names.schedule_stream.clone(),
            Self::Status => names.status_stream.clone(),
            Self::Dead => names.dead_stream.clone(),
            Self::Bucket => format!("KV_{}", names.bucket),
        }
    }

    /// What the stream should be, given what it is.
    fn wish(self, settings: &StreamSettings, present: Config) -> Config {
        match self {
            Self::Calls => calls(settings, present),
            Self::Queue => queue(settings, present),
            Self::Dial => dial(settings, present),
            Self::Schedule => schedule(settings, present),
            Self::Status => status(settings, present),
            Self::Dead => dead(settings, present),
            Self::Bucket => key_value(settings, present),
        }
    }
}

/// Metadata of a stream or consumer: when the operator started whose settings it has. Of operators with different settings the
/// one that started last decides, and the others must not change it back.
const STARTED: &str = "sipstuff-operator.started";

/// Makes all streams, the bucket and the consumers as the settings say, once: one of the consumers for a trunk with so many channels.
///
/// # Errors
/// [`NatsError`] with the server's words.
pub async fn ensure(
    jetstream: &Context,
    settings: &StreamSettings,
    trunk: &str,
    channels: u32,
) -> Result<PullConsumer, NatsError> {
    let started = now();
    for kind in StreamKind::ALL {
        ensure_stream(jetstream, settings, kind, started).await?;
    }
    ensure_consumers(jetstream, settings, started).await?;
    ensure_dialler(jetstream, settings, trunk, channels, started).await
}

/// Makes sure that a stream exists as it should, and tells when it was made. One that is as it should be is left alone: with a
/// million subjects an update takes the server seconds, even one that changes nothing. What the settings do not name, such as a
/// placement or a compression that somebody chose, stays.
///
/// # Errors
/// [`NatsError`] with the server's words.
pub async fn ensure_stream(
    jetstream: &Context,
    settings: &StreamSettings,
    kind: StreamKind,
    started: Timestamp,
) -> Result<Timestamp, NatsError> {
    let name = kind.name(&settings.names);
    let failed = |error: NatsError| error.during(format!("create or update the stream {name}"));
    let present = match jetstream.get_stream(&name).await {
        Ok(stream) => Some(stream.cached_info().clone()),
        Err(error) if is_missing(&error) => None,
        Err(error) => return Err(failed(NatsError::of(error))),
    };
    let config = present.as_ref().map(|info| info.config.clone());
    let mut wished = kind.wish(settings, config.clone().unwrap_or_default());
    if let Some(info) = present
        && (info.config == wished || is_newer(&info.config.metadata, started))
    {
        return Ok(timestamp(info.created.unix_timestamp_nanos()));
    }
    wished.metadata.insert(STARTED.to_owned(), started.to_string());
    let made = jetstream.create_or_update_stream(wished).await.map_err(|error| failed(NatsError::of(error)))?;
    tracing::info!(stream = name, "{}", if config.is_some() { "updated a stream" } else { "created a stream" });
    Ok(timestamp(made.created.unix_timestamp_nanos()))
}

fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// Whether these are the settings of an operator that started later.
fn is_newer(metadata: &HashMap<String, String>, started: Timestamp) -> bool {
    let other = metadata.get(STARTED).and_then(|text| text.parse::<Timestamp>().ok());
    other.is_some_and(|other| other > started)
}

/// The bucket for what the replicas share beside calls; made when it is missing.
///
/// # Errors
/// [`NatsError`] with the server's words.
pub async fn bucket(jetstream: &Context, settings: &StreamSettings) -> Result<kv::Store, NatsError> {
    let name = &settings.names.bucket;
    if let Ok(store) = jetstream.get_key_value(name).await {
        return Ok(store);
    }
    ensure_stream(jetstream, settings, StreamKind::Bucket, now()).await?;
    jetstream.get_key_value(name).await.map_err(|error| NatsError::of(error).during(format!("open the bucket {name}")))
}

/// Makes sure that the consumers of requests exist as they should. As [`ensure_stream`], it leaves alone what is.
///
/// # Errors
/// [`NatsError`] with the server's words.
pub async fn ensure_consumers(
    jetstream: &Context,
    settings: &StreamSettings,
    started: Timestamp,
) -> Result<(), NatsError> {
    let names = &settings.names;
    ensure_consumer(jetstream, &names.schedule_stream, &names.due_consumer, started, |present| due(names, present))
        .await?;
    ensure_consumer(jetstream, &names.calls_stream, &names.admission_consumer, started, |present| {
        admission(names, present)
    })
    .await
    .map(drop)
}

/// Makes sure that the consumer of what is dialled on a trunk exists as it should, by settings that are in force since `since`.
///
/// # Errors
/// [`NatsError`] with the server's words.
pub async fn ensure_dialler(
    jetstream: &Context,
    settings: &StreamSettings,
    trunk: &str,
    channels: u32,
    since: Timestamp,
) -> Result<PullConsumer, NatsError> {
    let names = &settings.names;
    let wish = |present| dialler(names, trunk, channels, present);
    ensure_consumer(jetstream, &names.dial_stream, &names.dial_consumer(trunk), since, wish).await
}

/// The trunks that there are consumers for.
///
/// # Errors
/// [`NatsError`] with the server's words.
pub async fn dialled_trunks(jetstream: &Context, names: &Names) -> Result<Vec<String>, NatsError> {
    let stream = jetstream.get_stream_no_info(&names.dial_stream).await.map_err(NatsError::of)?;
    let consumers: Vec<String> = stream.consumer_names().try_collect().await.map_err(NatsError::of)?;
    Ok(consumers.iter().filter_map(|name| name.strip_prefix(&names.dial_consumers)).map(str::to_owned).collect())
}

/// Removes the consumer of a trunk that is gone; with nothing to dial on it, nothing is lost.
///
/// # Errors
/// [`NatsError`] with the server's words.
pub async fn remove_dialler(jetstream: &Context, names: &Names, trunk: &str) -> Result<(), NatsError> {
    remove_consumer(jetstream, &names.dial_stream, &names.dial_consumer(trunk)).await
}

/// The consumer by which version 0.1 dialled from the inbox, if it is there. A work queue has one consumer, so it must go before what it
/// has in flight can be admitted.
///
/// # Errors
/// [`NatsError`] with the server's words.
pub async fn former_consumer(jetstream: &Context, names: &Names) -> Result<Option<PullConsumer>, NatsError> {
    match jetstream.get_consumer_from_stream::<pull::Config, _, _>(FORMER_CONSUMER, &names.calls_stream).await {
        Ok(consumer) => Ok(Some(consumer)),
        Err(error) if is_missing_consumer(&error) => Ok(None),
        Err(error) => Err(NatsError::of(error)),
    }
}

/// Removes it.
///
/// # Errors
/// [`NatsError`] with the server's words.
pub async fn remove_former_consumer(jetstream: &Context, names: &Names) -> Result<(), NatsError> {
    remove_consumer(jetstream, &names.calls_stream, FORMER_CONSUMER).await
}

async fn remove_consumer(jetstream: &Context, stream: &str, name: &str) -> Result<(), NatsError> {
    match jetstream.delete_consumer_from_stream(name, stream).await {
        Err(error) if !is_missing_consumer(&error) => Err(NatsError::of(error)),
        _ => Ok(()),
    }
}

async fn ensure_consumer(
    jetstream: &Context,
    stream: &str,
    name: &str,
    started: Timestamp,
    wish: impl Fn(pull::Config) -> pull::Config,
) -> Result<PullConsumer, NatsError> {
    let failed = |error| NatsError::of(error).during(format!("create or update the consumer {name}"));
    let present = match jetstream.get_consumer_from_stream::<pull::Config, _, _>(name, stream).await {
        Ok(consumer) => Some(consumer),
        Err(error) if is_missing_consumer(&error) => None,
        Err(error) => return Err(failed(error)),
    };
    let config = present.as_ref().map(|present| present.cached_info().config.clone());
    let config = config.and_then(|config| pull::Config::try_from_consumer_config(config).ok());
    let mut wished = wish(config.clone().unwrap_or_default());
    if let (Some(present), Some(config)) = (present, &config)
        && (*config == wished || is_newer(&config.metadata, started))
    {
        return Ok(present);
    }
    wished.metadata.insert(STARTED.to_owned(), started.to_string());
    let made = jetstream.create_consumer_on_stream(wished, stream).await.map_err(failed)?;
    tracing::info!(consumer = name, "{}", if config.is_some() { "updated a consumer" } else { "created a consumer" });
    Ok(made)
}

fn is_missing_consumer(error: &ConsumerError) -> bool {
    matches!(error.kind(), ConsumerErrorKind::JetStream(error) if error.error_code() == ErrorCode::CONSUMER_NOT_FOUND)
}

fn dialler(names: &Names, trunk: &str, channels: u32, present: pull::Config) -> pull::Config {
    pull::Config {
        durable_name: Some(names.dial_consumer(trunk)),
        description: Some("one unacknowledged message is one call in progress".to_owned()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_deliver: -1,
        filter_subject: format!("{}.{trunk}.*", names.dial),
        max_ack_pending: i64::from(channels),
        max_waiting: 512,
        ..present
    }
}

fn admission(names: &Names, present: pull::Config) -> pull::Config {
    pull::Config {
        durable_name: Some(names.admission_consumer.clone()),
        description: Some("admits requests: each is recorded, and waits in the queue from then on".to_owned()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ADMISSION_ACK_WAIT,
        max_deliver: -1,
        filter_subject: names.calls.clone(),
        max_ack_pending: MAX_ADMITTED_AT_ONCE,
        ..present
    }
}

fn due(names: &Names, present: pull::Config) -> pull::Config {
    pull::Config {
        durable_name: Some(names.due_consumer.clone()),
        description: Some("admits what came due into the queue".to_owned()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ADMISSION_ACK_WAIT,
        filter_subject: names.due.clone(),
        max_deliver: -1,
        ..present
    }
}

fn calls(settings: &StreamSettings, present: Config) -> Config {
    let names = &settings.names;
    Config {
        name: names.calls_stream.clone(),
        description: Some("the inbox: call requests that were not admitted yet".to_owned()),
        subjects: vec![names.calls.clone()],
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        max_messages: settings.queue_max_messages,
        max_bytes: settings.queue_max_bytes,
        duplicate_window: DUPLICATE_WINDOW,
        ..base(settings, present)
    }
}

/// What waits has no consumer: whoever feeds the window reads the head of whatever should be next, and a batch that is cancelled is
/// purged. A second message of an attempt is refused.
fn queue(settings: &StreamSettings, present: Config) -> Config {
    let names = &settings.names;
    Config {
        name: names.queue_stream.clone(),
        description: Some("calls that wait to be dialled, by trunk, priority and batch".to_owned()),
        subjects: vec![format!("{}.>", names.queue)],
        retention: RetentionPolicy::Limits,
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        discard_new_per_subject: true,
        max_messages: settings.queue_max_messages,
        max_bytes: settings.queue_max_bytes,
        ..base(settings, present)
    }
}

/// As many messages as there may be active calls, and each stays until its call has ended. A second message of an attempt is refused.
fn dial(settings: &StreamSettings, present: Config) -> Config {
    let names = &settings.names;
    Config {
        name: names.dial_stream.clone(),
        description: Some(
            "calls in progress, and those that are next; a message stays until its call has ended".to_owned(),
        ),
        subjects: vec![format!("{}.>", names.dial)],
        retention: RetentionPolicy::WorkQueue,
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        discard_new_per_subject: true,
        ..base(settings, present)
    }
}

/// A stream of its own: a timer can only fire into its own stream, and from nats-server 2.15 on a stream with timers may not
/// refuse new messages when it is full, as the queue must (error 10052).
fn schedule(settings: &StreamSettings, present: Config) -> Config {
    let names = &settings.names;
    Config {
        name: names.schedule_stream.clone(),
        description: Some("requests that wait for their moment; the server fires them".to_owned()),
        subjects: vec![format!("{}.>", names.schedule), names.due.clone()],
        retention: RetentionPolicy::WorkQueue,
        allow_message_schedules: true,
        ..base(settings, present)
    }
}

fn status(settings: &StreamSettings, present: Config) -> Config {
    let names = &settings.names;
    Config {
        name: names.status_stream.clone(),
        description: Some("the status log: one subject per call, its last message is the call's state".to_owned()),
        subjects: vec![format!("{}.*", names.status)],
        retention: RetentionPolicy::Limits,
        republish: Some(Republish {
            source: format!("{}.*", names.status),
            destination: names.status.clone(),
            headers_only: false,
        }),
        ..base(settings, present)
    }
}

fn dead(settings: &StreamSettings, present: Config) -> Config {
    let names = &settings.names;
    Config {
        name: names.dead_stream.clone(),
        description: Some("messages that could not become calls, with the reason".to_owned()),
        subjects: vec![names.dead.clone()],
        retention: RetentionPolicy::Limits,
        max_age: DEAD_RETENTION,
        duplicate_window: DUPLICATE_WINDOW,
        ..base(settings, present)
    }
}

/// As the client library makes a bucket with one value per key.
fn key_value(settings: &StreamSettings, present: Config) -> Config {
    let bucket = &settings.names.bucket;
    Config {
        name: StreamKind::Bucket.name(&settings.names),
        description: Some("what the replicas of the operator share".to_owned()),
        subjects: vec![format!("$KV.{bucket}.>")],
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        allow_rollup: true,
        deny_delete: true,
        ..base(settings, present)
    }
}

fn base(settings: &StreamSettings, present: Config) -> Config {
    Config {
        storage: StorageType::File,
        num_replicas: settings.replicas,
        allow_direct: true,
        allow_message_ttl: true,
        max_messages: -1,
        max_bytes: -1,
        ..present
    }
}
