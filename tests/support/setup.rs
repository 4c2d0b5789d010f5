//! The fixture of most tests: a nats-server, a place where calls run (a namespace with a node, or this machine), a listener
//! for status events, and the questions that most tests ask: which calls were placed, what the status log holds, whether the
//! queue is empty.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use serde_json::Value;
use sipstuff_operator::call::{Status, StatusEvent};

use super::cli::{self, Finished};
use super::http::{Reply, post_call};
use super::process::Scratch;
use super::requests::{name_of, request_of};
use super::status::{queue_is_empty, recorded, states};
use super::{
    ControlPlane, Namespace, NatsServer, NodeOptions, Operator, OperatorOptions, StatusListener, TestNode, eventually,
    eventually_some,
};

/// How long a call may take on a busy machine, a redelivery after the ack wait of 30 s included.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A queue, a place where calls run, and a listener for status events.
pub struct Setup {
    pub nats: NatsServer,
    pub client: async_nats::Client,
    pub js: jetstream::Context,
    pub events: StatusListener,
    place: Place,
    seconds: f32,
}

enum Place {
    Kubernetes(Box<(Namespace, TestNode)>),
    Local(Scratch),
}

impl Setup {
    /// Calls run in a namespace of the shared control plane, each for `seconds`.
    pub async fn kubernetes(seconds: f32) -> Self {
        Self::in_namespace(ControlPlane::shared().await.namespace().await, seconds).await
    }

    /// The same in a namespace of another control plane.
    pub async fn in_namespace(namespace: Namespace, seconds: f32) -> Self {
        let env = vec![("SIMULATE_SECONDS".to_owned(), seconds.to_string())];
        Self::with_node(namespace, NodeOptions { env, ..Default::default() }, seconds).await
    }

    /// The same with a node that is set up differently.
    pub async fn with_node(namespace: Namespace, node: NodeOptions, seconds: f32) -> Self {
        let node = TestNode::start(namespace.client.clone(), &namespace.name, node);
        Self::at(Place::Kubernetes(Box::new((namespace, node))), seconds).await
    }

    /// Calls run as processes of this machine, each for `seconds`.
    pub async fn local(seconds: f32) -> Self {
        Self::at(Place::Local(Scratch::new("local")), seconds).await
    }

    /// The same with a nats-server of its own kind.
    pub async fn local_with(nats: NatsServer, seconds: f32) -> Self {
        Self::with(nats, Place::Local(Scratch::new("local")), seconds).await
    }

    async fn at(place: Place, seconds: f32) -> Self {
        Self::with(NatsServer::start().await, place, seconds).await
    }

    async fn with(nats: NatsServer, place: Place, seconds: f32) -> Self {
        let client = nats.client().await;
        let events = StatusListener::subscribe(&client, "sip.status").await;
        let js = jetstream::new(client.clone());
        Self { nats, client, js, events, place, seconds }
    }

    /// An operator for this place.
    pub fn options(&self) -> OperatorOptions {
        match &self.place {
            Place::Kubernetes(cluster) => OperatorOptions::kubernetes(&self.nats, &cluster.0),
            Place::Local(_) => self.options_of_machine("state"),
        }
    }

    /// An operator of another machine on the same queue: a local runner with a state directory of its own.
    ///
    /// # Panics
    /// When calls run in a cluster.
    pub fn options_of_machine(&self, name: &str) -> OperatorOptions {
        let Place::Local(folder) = &self.place else { panic!("calls run in a cluster") };
        OperatorOptions::local(&self.nats, &folder.join(name))
            .env("SIMULATE_SECONDS", self.seconds)
            .env("SIMULATE_LOG", calls_file(folder).display())
    }

    /// An operator for this place, ready.
    pub async fn operator(&self) -> Operator {
        Operator::start(self.options()).await
    }

    /// The namespace of the Jobs.
    ///
    /// # Panics
    /// When calls run on this machine.
    pub fn namespace(&self) -> &Namespace {
        let Place::Kubernetes(cluster) = &self.place else { panic!("calls run on this machine") };
        &cluster.0
    }

    /// The node of the cluster.
    ///
    /// # Panics
    /// When calls run on this machine.
    pub fn node(&self) -> &TestNode {
        let Place::Kubernetes(cluster) = &self.place else { panic!("calls run on this machine") };
        &cluster.1
    }

    /// Runs a command of the program against this queue.
    pub async fn command(&self, args: &[&str]) -> Finished {
        cli::run(args, &[("NATS_URL", &self.nats.url())]).await
    }

    /// Publishes to `sip.calls` with these headers; returns once the stream has the message.
    pub async fn publish(&self, headers: &[(&str, &str)], body: impl Into<bytes::Bytes>) {
        let mut map = async_nats::HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        let ack = self.js.publish_with_headers("sip.calls", map, body.into()).await.expect("a connection");
        ack.await.expect("the queue takes it");
    }

    /// Publishes this many calls, and waits until they run. Returns their ids.
    pub async fn run_calls(&self, prefix: &str, count: usize) -> Vec<String> {
        let ids: Vec<String> = (0..count).map(|n| format!("{prefix}-{n}")).collect();
        for id in &ids {
            self.publish(&[], request_of(id).to_string()).await;
        }
        for id in &ids {
            self.becomes(id, Status::Running).await;
        }
        ids
    }

    /// When calls were placed, in order, of those whose caller has this option with this value.
    fn placed(&self, option: &str, value: &str) -> Vec<Timestamp> {
        match &self.place {
            Place::Kubernetes(cluster) => {
                let has = |argv: &[String]| argv.windows(2).any(|pair| pair == [&format!("--{option}"), value]);
                cluster.1.starts().iter().filter(|start| has(&start.argv)).map(|start| start.at).collect()
            }
            Place::Local(_) => self
                .notes()
                .into_iter()
                .filter(|line| line["event"] == "start" && line[option] == value)
                .map(|line| line["time"].as_str().expect("a time").parse().expect("a timestamp"))
                .collect(),
        }
    }

    /// What the callers on this machine have noted, in `SIMULATE_LOG`.
    ///
    /// # Panics
    /// When calls run in a cluster.
    pub fn notes(&self) -> Vec<Value> {
        let Place::Local(folder) = &self.place else { panic!("calls run in a cluster") };
        let lines = std::fs::read_to_string(calls_file(folder)).unwrap_or_default();
        lines.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }

    /// How many calls were placed that read out this text.
    pub fn calls_with(&self, text: &str) -> usize {
        self.placed("text", text).len()
    }

    /// When calls to a destination were placed, in order.
    pub fn calls_to(&self, dest: &str) -> Vec<Timestamp> {
        self.placed("dest", dest)
    }

    /// How many calls were placed with an account, by its `SIP_USER`.
    pub fn calls_by(&self, user: &str) -> usize {
        self.placed("user", user).len()
    }

    /// The names of all Jobs that exist.
    pub async fn jobs(&self) -> Vec<String> {
        match &self.place {
            Place::Kubernetes(cluster) => {
                let jobs = cluster.0.api::<Job>().list(&Default::default()).await.expect("a list").items;
                jobs.into_iter().filter_map(|job| job.metadata.name).collect()
            }
            Place::Local(folder) => std::fs::read_dir(folder.join("state/jobs"))
                .map(|entries| entries.map(|entry| entry.expect("an entry").file_name()))
                .map(|names| names.map(|name| name.to_string_lossy().into_owned()).collect())
                .unwrap_or_default(),
        }
    }

    /// What the status log holds of a call, in order.
    pub async fn history(&self, id: &str) -> Vec<StatusEvent> {
        recorded(&self.js, &format!("sip.status.{}", name_of(id))).await
    }

    /// The states that a call went through by the status log, in order.
    pub async fn statuses(&self, id: &str) -> Vec<Status> {
        states(&self.history(id).await)
    }

    /// The state of a call by the status log, if it is known there and NATS answers.
    pub async fn state(&self, id: &str) -> Option<StatusEvent> {
        let stream = self.js.get_stream("SIP_STATUS").await.ok()?;
        let last = stream.get_last_raw_message_by_subject(&format!("sip.status.{}", name_of(id))).await.ok()?;
        Some(serde_json::from_slice(&last.payload).expect("a status event"))
    }

    /// Waits until a call is in a state, or has been: on a busy machine it may have ended before it was looked at.
    pub async fn becomes(&self, id: &str, status: Status) -> StatusEvent {
        eventually_some(format!("{id} is {status}"), PATIENCE, async || {
            let last = self.state(id).await?;
            let events = if last.is_final { self.history(id).await } else { vec![last] };
            events.into_iter().find(|event| event.status == status)
        })
        .await
    }

    /// Waits until a call has ended, by the status log: also when NATS was unavailable meanwhile.
    pub async fn end_of(&self, id: &str) -> StatusEvent {
        eventually_some(format!("{id} ends"), PATIENCE, async || self.state(id).await.filter(|event| event.is_final))
            .await
    }

    /// Waits until every message is acknowledged, and no timer is left.
    pub async fn queue_empties(&self) {
        for stream in ["SIP_CALLS", "SIP_QUEUE", "SIP_DIAL", "SIP_SCHEDULE"] {
            eventually(format!("{stream} is empty"), PATIENCE, async || queue_is_empty(&self.js, stream).await).await;
        }
    }

    /// How many messages of the window are in flight.
    pub async fn in_flight(&self) -> usize {
        self.consumer().await.num_ack_pending
    }

    /// How many of the messages in flight were delivered more than once.
    pub async fn redelivered(&self) -> usize {
        self.consumer().await.num_redelivered
    }

    async fn consumer(&self) -> jetstream::consumer::Info {
        let stream = self.js.get_stream("SIP_DIAL").await.expect("the window");
        let mut consumer =
            stream.get_consumer::<jetstream::consumer::pull::Config>("dialler-default").await.expect("the consumer");
        consumer.info().await.expect("its state").clone()
    }

    /// The reasons and payloads of all dead letters, oldest first.
    pub async fn dead_letters(&self) -> Vec<(String, Vec<u8>)> {
        let stream = self.js.get_stream("SIP_DEAD").await.expect("the dead letters");
        let mut letters = Vec::new();
        for sequence in 1..=stream.cached_info().state.last_sequence {
            let letter = stream.get_raw_message(sequence).await.expect("a dead letter");
            let reason = letter.headers.get("Sip-Dead-Reason").expect("a reason").to_string();
            letters.push((reason, letter.payload.to_vec()));
        }
        letters
    }

    /// Asserts that a call was placed exactly once, by one Job, and succeeded.
    pub async fn was_placed_once(&self, id: &str) {
        assert_eq!(self.calls_with(id), 1, "calls of {id}");
        let name = name_of(id);
        let jobs: Vec<String> = self.jobs().await.into_iter().filter(|job| job.starts_with(&name)).collect();
        assert!(jobs.len() <= 1, "{jobs:?}");
        use Status::*;
        let statuses = self.statuses(id).await;
        let expected = [Pending, Running, Succeeded];
        assert_eq!(statuses.strip_prefix(&[Queued]).unwrap_or(&statuses), expected, "{id}");
    }

    /// Waits until these calls have ended and left the queue; asserts that each was placed exactly once, and succeeded.
    pub async fn all_end_once(&self, ids: &[impl AsRef<str>]) {
        for id in ids {
            self.end_of(id.as_ref()).await;
        }
        self.queue_empties().await;
        for id in ids {
            self.was_placed_once(id.as_ref()).await;
        }
    }
}

fn calls_file(folder: &Scratch) -> PathBuf {
    folder.join("calls")
}

/// `POST /call`, which must be answered 202.
///
/// # Panics
/// When it is not.
pub async fn accepted(operator: &Operator, body: &Value) -> Reply {
    let reply = post_call(operator.base(), body).await;
    assert_eq!(reply.status, 202, "{reply:?}");
    reply
}
