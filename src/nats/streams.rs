//! The three streams and the consumer, created or updated at start. Idempotent: several replicas may do it at once.

use std::time::Duration;

use async_nats::jetstream::{
    Context, ErrorCode,
    consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
    context::{GetStreamError, GetStreamErrorKind},
    kv,
    stream::{Config, DiscardPolicy, Republish, RetentionPolicy, StorageType},
};

use super::NatsError;

/// How long the server waits for an acknowledgement or an in-progress sign before it delivers a message again.
pub const ACK_WAIT: Duration = Duration::from_secs(30);
/// Within this window the server drops a second publish with the same `Nats-Msg-Id`.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// How long dead letters are kept.
const DEAD_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

/// Names of subjects, streams and the consumer.
#[derive(Debug, Clone)]
pub struct Names {
    /// `CALLS_STREAM`: the queue.
    pub calls_stream: String,
    /// `CALLS_SUBJECT`: where requests are published.
    pub calls: String,
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
    /// The durable consumer of the queue.
    pub consumer: String,
    /// The bucket for what the replicas share beside calls.
    pub bucket: String,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            calls_stream: "SIP_CALLS".to_owned(),
            calls: "sip.calls".to_owned(),
            schedule_stream: "SIP_SCHEDULE".to_owned(),
            schedule: "sip.schedule".to_owned(),
            due: "sip.due".to_owned(),
            status_stream: "SIP_STATUS".to_owned(),
            status: "sip.status".to_owned(),
            dead_stream: "SIP_DEAD".to_owned(),
            dead: "sip.dead".to_owned(),
            consumer: "dialler".to_owned(),
            bucket: "SIP_OPERATOR".to_owned(),
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
    /// `MAX_ACTIVE_CALLS`: calls in progress over all replicas.
    pub max_active_calls: i64,
}

/// Makes sure that streams and consumer exist as they should. What is as it should be is left alone: with a million subjects
/// an update takes the server seconds, even one that changes nothing. What these settings do not name, such as a placement or
/// a compression that somebody chose, stays.
///
/// # Errors
/// [`NatsError`] with the server's words.
pub async fn ensure(jetstream: &Context, settings: &StreamSettings) -> Result<PullConsumer, NatsError> {
    let StreamSettings { names, .. } = settings;
    for (name, wish) in [
        (&names.calls_stream, calls as Wish),
        (&names.schedule_stream, schedule),
        (&names.status_stream, status),
        (&names.dead_stream, dead),
    ] {
        stream(jetstream, name, |present| wish(settings, present))
            .await
            .map_err(|error| error.during(format!("create or update the stream {name}")))?;
    }
    consumer(jetstream, settings).await
}

/// What a stream should be, given what it is.
type Wish = fn(&StreamSettings, Config) -> Config;

async fn stream(jetstream: &Context, name: &str, wish: impl Fn(Config) -> Config) -> Result<(), NatsError> {
    let present = match jetstream.get_stream(name).await {
        Ok(stream) => Some(stream.cached_info().config.clone()),
        Err(error) if is_missing(&error) => None,
        Err(error) => return Err(NatsError::of(error)),
    };
    let wished = wish(present.clone().unwrap_or_default());
    if present.as_ref() != Some(&wished) {
        jetstream.create_or_update_stream(wished).await.map_err(NatsError::of)?;
    }
    Ok(())
}

fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// The bucket for what the replicas share beside calls: the pace, and which clusters there are.
///
/// # Errors
/// [`NatsError`] with the server's words.
pub async fn bucket(jetstream: &Context, settings: &StreamSettings) -> Result<kv::Store, NatsError> {
    let present = jetstream.get_key_value(&settings.names.bucket).await;
    if let Ok(present) = present
        && present.stream.cached_info().config.num_replicas == settings.replicas
    {
        return Ok(present);
    }
    let config = kv::Config {
        bucket: settings.names.bucket.clone(),
        description: "what the replicas of the operator share".to_owned(),
        history: 1,
        storage: StorageType::File,
        num_replicas: settings.replicas,
        ..Default::default()
    };
    let store = jetstream.create_or_update_key_value(config).await;
    store.map_err(|error| NatsError::of(error).during(format!("create or update the bucket {}", settings.names.bucket)))
}

async fn consumer(jetstream: &Context, settings: &StreamSettings) -> Result<PullConsumer, NatsError> {
    let names = &settings.names;
    // An update without the moment would end a pause.
    let known = jetstream.get_consumer_from_stream(&names.consumer, &names.calls_stream).await;
    let pause_until = known.ok().and_then(|consumer: PullConsumer| consumer.cached_info().config.pause_until);
    let config = pull::Config {
        durable_name: Some(names.consumer.clone()),
        description: Some("one unacknowledged message is one call in progress".to_owned()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_deliver: -1,
        filter_subject: names.calls.clone(),
        max_ack_pending: settings.max_active_calls,
        max_waiting: 512,
        pause_until,
        ..Default::default()
    };
    jetstream
        .create_consumer_on_stream(config, names.calls_stream.clone())
        .await
        .map_err(|error| NatsError::of(error).during(format!("create or update the consumer {}", names.consumer)))
}

fn calls(settings: &StreamSettings, present: Config) -> Config {
    let names = &settings.names;
    Config {
        name: names.calls_stream.clone(),
        description: Some("call requests; a message stays until its call has ended".to_owned()),
        subjects: vec![names.calls.clone()],
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        max_messages: settings.queue_max_messages,
        max_bytes: settings.queue_max_bytes,
        duplicate_window: DUPLICATE_WINDOW,
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
