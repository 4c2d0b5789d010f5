//! What a NATS client can see: status events as they are published, the status log, how much a stream holds.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::{self, consumer};
use futures::StreamExt;
use sipstuff_operator::call::{Status, StatusEvent};
use tokio::sync::watch;

/// A status event as it was heard.
#[derive(Debug, Clone)]
pub struct Heard {
    /// The subject it came on.
    pub subject: String,
    /// CloudEvents attributes, `traceparent`, and the server's own.
    pub headers: async_nats::HeaderMap,
    /// The event.
    pub event: StatusEvent,
}

/// The states that events lead through. That a pod is chosen changes no state.
pub fn states(events: &[StatusEvent]) -> Vec<Status> {
    let choice = |event: &&StatusEvent| event.status == Status::Pending && event.pod.is_some();
    events.iter().filter(|event| !choice(event)).map(|event| event.status).collect()
}

/// Collects what is published on a status subject, from the moment it is made. A plain subscription, so what is published
/// while its own connection is down is not heard: [`recorded`] has everything.
#[derive(Debug)]
pub struct StatusListener {
    heard: Arc<Mutex<Vec<Heard>>>,
    count: watch::Receiver<usize>,
    task: tokio::task::JoinHandle<()>,
}

impl StatusListener {
    /// Subscribes to `sip.status` (every call) or `sip.status.<name>`; returns once the server knows.
    ///
    /// # Panics
    /// When the server does not take the subscription.
    pub async fn subscribe(client: &async_nats::Client, subject: &str) -> Self {
        let mut messages = client.subscribe(subject.to_owned()).await.expect("a subscription");
        round_trip(client).await;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (counter, count) = watch::channel(0);
        let into = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                // Some tests publish records that nobody can read.
                let Ok(event) = serde_json::from_slice(&message.payload) else { continue };
                let headers = message.headers.unwrap_or_default();
                let mut heard = into.lock().expect("no panic while the lock is held");
                heard.push(Heard { subject: message.subject.to_string(), headers, event });
                counter.send_replace(heard.len());
            }
        });
        Self { heard, count, task }
    }

    /// Everything heard, in order.
    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().expect("no panic while the lock is held").clone()
    }

    /// The events of a call, by its name or id, in order.
    pub fn events_of(&self, name_or_id: &str) -> Vec<StatusEvent> {
        self.events(|event| event.name.as_str() == name_or_id || event.id.as_str() == name_or_id)
    }

    /// The states that a call went through, by its name or id.
    pub fn statuses_of(&self, name_or_id: &str) -> Vec<Status> {
        states(&self.events_of(name_or_id))
    }

    /// The last events of the calls that have ended.
    pub fn finals(&self) -> Vec<StatusEvent> {
        self.events(|event| event.is_final)
    }

    /// Waits until what was heard fulfils the condition.
    ///
    /// # Panics
    /// When it does not in time; shows what was heard.
    pub async fn until(&self, what: &str, timeout: Duration, condition: impl Fn(&[StatusEvent]) -> bool) {
        let mut count = self.count.clone();
        let fulfilled = async {
            while !condition(&self.events(|_| true)) {
                count.changed().await.expect("the listening task does not end");
            }
        };
        if tokio::time::timeout(timeout, fulfilled).await.is_err() {
            panic!("waited {timeout:?} in vain: {what}. Heard:\n{}", self.summary());
        }
    }

    /// Waits until a call has ended, and returns its last event.
    ///
    /// # Panics
    /// When it has not within `timeout`; shows what was heard.
    pub async fn final_of(&self, name_or_id: &str, timeout: Duration) -> StatusEvent {
        self.until(&format!("the end of {name_or_id}"), timeout, |events| {
            events.iter().any(|event| event.is_final && is(event, name_or_id))
        })
        .await;
        self.events(|event| event.is_final && is(event, name_or_id)).remove(0)
    }

    fn events(&self, wanted: impl Fn(&StatusEvent) -> bool) -> Vec<StatusEvent> {
        let heard = self.heard.lock().expect("no panic while the lock is held");
        heard.iter().map(|heard| &heard.event).filter(|event| wanted(event)).cloned().collect()
    }

    fn summary(&self) -> String {
        let line = |heard: Heard| {
            let event = heard.event;
            let why = event.reason.unwrap_or_default();
            format!("  {} {} #{} attempt {} {why}", event.id, event.status, event.revision, event.attempt)
        };
        self.heard().into_iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for StatusListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Returns once the server has dealt with all that was sent before over this connection, which `flush` does not promise.
///
/// # Panics
/// When there is no answer.
pub async fn round_trip(client: &async_nats::Client) {
    let refused = client.request("nobody.answers.here", "".into()).await.expect_err("nobody answers");
    assert_eq!(refused.kind(), async_nats::RequestErrorKind::NoResponders, "the server does not answer");
}

fn is(event: &StatusEvent, name_or_id: &str) -> bool {
    event.name.as_str() == name_or_id || event.id.as_str() == name_or_id
}

/// What the status log holds of a call (`sip.status.<name>`) or of all (`sip.status.*`), in order.
///
/// # Panics
/// When the stream is not there or holds something else.
pub async fn recorded(js: &jetstream::Context, subject: &str) -> Vec<StatusEvent> {
    let stream = js.get_stream("SIP_STATUS").await.expect("the stream SIP_STATUS");
    let config = consumer::pull::Config {
        filter_subject: subject.to_owned(),
        ack_policy: consumer::AckPolicy::None,
        ..Default::default()
    };
    let mut consumer = stream.create_consumer(config).await.expect("a consumer");
    let total = usize::try_from(consumer.info().await.expect("its state").num_pending).expect("a length");
    let mut events = Vec::with_capacity(total);
    while events.len() < total {
        let mut batch = consumer.fetch().max_messages(1000).messages().await.expect("messages");
        while let Some(message) = batch.next().await {
            let message = message.expect("a message");
            events.push(serde_json::from_slice(&message.payload).expect("a status event"));
        }
    }
    events
}

/// How many messages a stream holds.
///
/// # Panics
/// When the stream is not there.
pub async fn messages_in(js: &jetstream::Context, stream: &str) -> u64 {
    let stream = js.get_stream(stream).await.unwrap_or_else(|error| panic!("stream {stream}: {error}"));
    stream.cached_info().state.messages
}

/// Whether a stream is there and holds nothing.
pub async fn queue_is_empty(js: &jetstream::Context, stream: &str) -> bool {
    js.get_stream(stream).await.is_ok_and(|stream| stream.cached_info().state.messages == 0)
}
