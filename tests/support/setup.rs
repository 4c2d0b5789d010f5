//! Where a story of the whole way plays: a queue, a place where calls run, somebody who listens, and the questions that
//! every story asks in the end: how many Jobs, how many calls, what does the log say, is the queue empty.

use std::time::Duration;

use async_nats::jetstream;
use k8s_openapi::api::batch::v1::Job;
use serde_json::{Value, json};
use sipstuff_operator::call::{CallId, Status, StatusEvent};

use crate::support::process::Scratch;
use crate::support::status::{queue_is_empty, recorded};
use crate::support::{
    ControlPlane, Namespace, NatsServer, NodeOptions, Operator, OperatorOptions, StatusListener, TestNode, eventually,
    eventually_some,
};

/// How long a call may take on a busy machine, a redelivery after the ack wait of 30 s included.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A queue, a place where calls run, and who listens.
pub struct Stage {
    pub nats: NatsServer,
    pub client: async_nats::Client,
    pub js: jetstream::Context,
    pub events: StatusListener,
    place: Place,
    seconds: f32,
}

enum Place {
    Cluster(Box<(Namespace, TestNode)>),
    Machine(Scratch),
}

impl Stage {
    /// A cluster whose node runs callers that take `seconds`.
    pub async fn cluster(seconds: f32) -> Self {
        Self::in_namespace(ControlPlane::shared().await.namespace().await, seconds).await
    }

    /// The same in a namespace of another control plane.
    pub async fn in_namespace(namespace: Namespace, seconds: f32) -> Self {
        let env = vec![("SIMULATE_SECONDS".to_owned(), seconds.to_string())];
        Self::with_node(namespace, NodeOptions { env, ..Default::default() }, seconds).await
    }

    /// The same with a node of its own kind.
    pub async fn with_node(namespace: Namespace, node: NodeOptions, seconds: f32) -> Self {
        let node = TestNode::start(namespace.client.clone(), &namespace.name, node);
        Self::at(Place::Cluster(Box::new((namespace, node))), seconds).await
    }

    /// A machine that runs callers as processes, each for `seconds`.
    pub async fn machine(seconds: f32) -> Self {
        Self::at(Place::Machine(Scratch::new("machine")), seconds).await
    }

    /// The same with a nats-server of its own kind.
    pub async fn machine_with(nats: NatsServer, seconds: f32) -> Self {
        Self::with(nats, Place::Machine(Scratch::new("machine")), seconds).await
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
            Place::Cluster(cluster) => OperatorOptions::kubernetes(&self.nats, &cluster.0),
            Place::Machine(folder) => OperatorOptions::local(&self.nats, &folder.join("state"))
                .env("SIMULATE_SECONDS", self.seconds)
                .env("SIMULATE_LOG", folder.join("calls").display()),
        }
    }

    pub async fn operator(&self) -> Operator {
        Operator::start(self.options()).await
    }

    /// The namespace of the Jobs.
    ///
    /// # Panics
    /// On a machine, which has none.
    pub fn namespace(&self) -> &Namespace {
        let Place::Cluster(cluster) = &self.place else { panic!("a machine has no namespace") };
        &cluster.0
    }

    /// The node of the cluster.
    ///
    /// # Panics
    /// On a machine, which has none.
    pub fn node(&self) -> &TestNode {
        let Place::Cluster(cluster) = &self.place else { panic!("a machine has no node") };
        &cluster.1
    }

    /// Publishes to a subject with these headers; returns once the stream has the message.
    pub async fn publish(&self, headers: &[(&str, &str)], body: impl Into<bytes::Bytes>) {
        let mut map = async_nats::HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        let ack = self.js.publish_with_headers("sip.calls", map, body.into()).await.expect("a connection");
        ack.await.expect("the queue takes it");
    }

    /// How often a caller was started that reads this text out.
    pub fn calls_with(&self, text: &str) -> usize {
        match &self.place {
            Place::Cluster(cluster) => {
                let says = |argv: &[String]| argv.windows(2).any(|pair| pair == ["--text", text]);
                cluster.1.starts().iter().filter(|start| says(&start.argv)).count()
            }
            Place::Machine(folder) => {
                let lines = std::fs::read_to_string(folder.join("calls")).unwrap_or_default();
                let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
                lines.filter(|line| line["event"] == "start" && line["text"] == text).count()
            }
        }
    }

    /// The names of all Jobs that are there.
    pub async fn jobs(&self) -> Vec<String> {
        match &self.place {
            Place::Cluster(cluster) => {
                let jobs = cluster.0.api::<Job>().list(&Default::default()).await.expect("a list").items;
                jobs.into_iter().filter_map(|job| job.metadata.name).collect()
            }
            Place::Machine(folder) => std::fs::read_dir(folder.join("state/jobs"))
                .map(|entries| entries.map(|entry| entry.expect("an entry").file_name()))
                .map(|names| names.map(|name| name.to_string_lossy().into_owned()).collect())
                .unwrap_or_default(),
        }
    }

    /// What the status log holds of a call, in order.
    pub async fn story(&self, id: &str) -> Vec<StatusEvent> {
        recorded(&self.js, &format!("sip.status.{}", name_of(id))).await
    }

    /// The states that a call went through by the status log, in order.
    pub async fn statuses(&self, id: &str) -> Vec<Status> {
        self.story(id).await.into_iter().map(|event| event.status).collect()
    }

    /// The state of a call by the status log, if it is known there and NATS answers.
    pub async fn state(&self, id: &str) -> Option<StatusEvent> {
        let stream = self.js.get_stream("SIP_STATUS").await.ok()?;
        let last = stream.get_last_raw_message_by_subject(&format!("sip.status.{}", name_of(id))).await.ok()?;
        Some(serde_json::from_slice(&last.payload).expect("a status event"))
    }

    /// Waits until a call is in a state, or has been: on a busy machine it may have ended before anybody looked.
    pub async fn becomes(&self, id: &str, status: Status) -> StatusEvent {
        eventually_some(format!("{id} is {status}"), PATIENCE, async || {
            let last = self.state(id).await?;
            let was = if last.is_final { self.story(id).await } else { vec![last] };
            was.into_iter().find(|event| event.status == status)
        })
        .await
    }

    /// Waits until a call has ended, by the status log: also when NATS was away meanwhile.
    pub async fn end_of(&self, id: &str) -> StatusEvent {
        eventually_some(format!("{id} ends"), PATIENCE, async || self.state(id).await.filter(|event| event.is_final))
            .await
    }

    /// Waits until every message is acknowledged.
    pub async fn queue_empties(&self) {
        eventually("the queue is empty", PATIENCE, async || queue_is_empty(&self.js, "SIP_CALLS").await).await;
    }

    /// How many messages the dialler holds.
    pub async fn held(&self) -> usize {
        let stream = self.js.get_stream("SIP_CALLS").await.expect("the queue");
        let mut consumer =
            stream.get_consumer::<jetstream::consumer::pull::Config>("dialler").await.expect("the consumer");
        consumer.info().await.expect("its state").num_ack_pending
    }

    /// Asserts that a call was placed exactly once, by one Job, ended well and has left the queue.
    pub async fn was_placed_once(&self, id: &str) {
        assert_eq!(self.calls_with(id), 1, "calls of {id}");
        let name = name_of(id);
        let jobs: Vec<String> = self.jobs().await.into_iter().filter(|job| job.starts_with(&name)).collect();
        assert!(jobs.len() <= 1, "{jobs:?}");
        use Status::*;
        let story = self.statuses(id).await;
        let expected = [Pending, Running, Succeeded];
        assert_eq!(story.strip_prefix(&[Queued]).unwrap_or(&story), expected, "{id}");
    }
}

/// The name of the call with that id.
pub fn name_of(id: &str) -> String {
    CallId::parse(id).expect("an id").name().to_string()
}

/// A request whose text is its id, so that [`Stage::calls_with`] finds it.
pub fn request_of(id: &str) -> Value {
    json!({"id": id, "dest": "+4930200", "text": id})
}
