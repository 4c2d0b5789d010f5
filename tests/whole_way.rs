//! A request becomes a Job, and its outcome comes back: on real servers, by HTTP and by NATS.

use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use serde_json::json;
use sipstuff_operator::call::{Outcome, Status};

use crate::support::{
    ControlPlane, Namespace, NatsServer, Operator, OperatorOptions, StatusListener, eventually, get_json,
    node::{Instant, NodeOptions, TestNode},
    post_call, request,
    status::queue_is_empty,
};

/// How long one call may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A queue, a cluster and an operator between them.
pub struct Stage {
    pub nats: NatsServer,
    pub namespace: Namespace,
    pub client: async_nats::Client,
    pub events: StatusListener,
}

impl Stage {
    pub async fn set() -> Self {
        let nats = NatsServer::start().await;
        let namespace = ControlPlane::shared().await.namespace().await;
        let client = nats.client().await;
        let events = StatusListener::subscribe(&client, "sip.status").await;
        Self { nats, namespace, client, events }
    }

    pub fn options(&self) -> OperatorOptions {
        OperatorOptions::kubernetes(&self.nats, &self.namespace)
    }

    pub async fn operator(&self) -> Operator {
        Operator::start(self.options()).await
    }

    pub fn instant_node(&self, exit_code: i32) -> TestNode {
        let instant = Some(Instant { exit_code, after: Duration::from_millis(300) });
        TestNode::start(
            self.namespace.client.clone(),
            &self.namespace.name,
            NodeOptions { instant, ..Default::default() },
        )
    }

    pub async fn queue_empties(&self) {
        let js = async_nats::jetstream::new(self.client.clone());
        eventually("the queue is empty", PATIENCE, async || queue_is_empty(&js, "SIP_CALLS").await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_by_http_becomes_one_job_and_its_outcome_comes_back() {
    let stage = Stage::set().await;
    let _node = stage.instant_node(0);
    let operator = stage.operator().await;

    let reply = post_call(operator.base(), &request("+491234", "hello")).await;
    assert_eq!(reply.status, 202, "{reply:?}");
    let name = reply.json["job_name"].as_str().unwrap().to_owned();
    assert_eq!(reply.headers["location"], format!("/jobs/{name}"));

    let end = stage.events.final_of(&name, PATIENCE).await;
    assert_eq!((end.status, end.outcome), (Status::Succeeded, Some(Outcome::Answered)));
    use Status::*;
    assert_eq!(stage.events.statuses_of(&name), [Queued, Pending, Running, Succeeded]);
    let shown = get_json(operator.base(), &format!("/jobs/{name}")).await;
    assert_eq!(shown.json["status"], "succeeded");
    let jobs = stage.namespace.api::<Job>().list(&Default::default()).await.unwrap().items;
    assert_eq!(jobs.len(), 1);
    stage.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_by_nats_is_first_heard_of_when_it_is_dialled() {
    let stage = Stage::set().await;
    let _node = stage.instant_node(1);
    let operator = stage.operator().await;

    let mut request = request("+491234", "hello");
    request["id"] = json!("by-nats");
    stage.client.publish("sip.calls", request.to_string().into()).await.unwrap();

    let end = stage.events.final_of("by-nats", PATIENCE).await;
    assert_eq!(end.status, Status::Failed);
    use Status::*;
    assert_eq!(stage.events.statuses_of("by-nats"), [Pending, Running, Failed]);
    let shown = get_json(operator.base(), "/jobs/by-nats").await;
    assert_eq!(shown.json["status"], "failed");
    stage.queue_empties().await;
}
