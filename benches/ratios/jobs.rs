//! Queue → Job per second, beside raw `kube` creates of the same Jobs as many at a time as the dialler makes, on the same
//! control plane, taking turns in fresh namespaces.
//!
//! The controllers work beside both sides, since that is what an API server is like; there is no node, so pods stay
//! pending. The clock runs from the moment the first request is published, all of them in one go (raw: from the first
//! create), until the API server has all Jobs. Before the next turn the controllers have come to rest.

use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, PostParams, WatchEvent, WatchParams};
use sipstuff_operator::job::JobDefaults;
use sipstuff_operator::job::manifest::build;

use super::load::Samples;
use super::report::{Expected, Row};
use super::requests;
use super::support::{ControlPlane, Namespace, NatsServer, Operator, OperatorOptions, job_defaults};

/// Jobs in a round.
pub(crate) const COUNT: usize = 1000;
/// As the dialler's `STARTS_IN_FLIGHT`.
const AT_ONCE: usize = 64;
const EXPECTED: Expected = Expected::AtLeast(0.95);
/// How often the API server is asked how many there are: often enough to add little to a round, seldom enough to cost little.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(300);
/// Calls that are placed one at a time on an idle system, and how long it rests before each.
const IDLE_CALLS: usize = 200;
const IDLE_FOR: Duration = Duration::from_millis(100);

pub(crate) async fn measure(rounds: usize, count: usize) -> Vec<Row> {
    let plane = ControlPlane::shared().await;
    // Kept to the end: deleting them would be work beside the next round.
    let mut used = Vec::new();
    let (mut rates, mut latencies) = (Vec::new(), Samples::default());
    for round in 0..=rounds {
        // The first is to warm up.
        let (ours, raw) = (plane.namespace().await, plane.namespace().await);
        let operator = by_operator(&ours, count).await;
        let (creates, samples) = by_creates(&raw, count).await;
        eprintln!("jobs: round {round}: {operator:.0} per s, raw {creates:.0} per s");
        if round > 0 {
            rates.push((operator, creates));
            latencies.add(samples);
        }
        used.extend([ours, raw]);
    }
    let what = format!("queue to Job, {count} calls, {AT_ONCE} at a time");
    let mut row = Row::of_rounds(format!("jobs.{AT_ONCE}"), what, "per s", &rates).expect(EXPECTED);
    if let Some(raw) = &mut row.raw {
        raw.latency = Some(latencies.latency());
    }
    let (ours, raw) = (idle(plane, true).await, idle(plane, false).await);
    let (ours, raw) = (ours.latency(), raw.latency());
    let p99 = Row::of_rounds(
        "jobs.idle".to_owned(),
        "publish to Job on an idle system, p99".to_owned(),
        "ms",
        &[(ours.p99_ms, raw.p99_ms)],
    );
    vec![row, p99.latencies(ours, Some(raw)).expect(Expected::AtMost(25.0))]
}

/// How soon a Job is seen by a watch after its request was published, one at a time; or after its create was sent.
async fn idle(plane: &ControlPlane, by_operator: bool) -> Samples {
    let namespace = plane.namespace().await;
    let nats = NatsServer::start().await;
    let jetstream = requests::jetstream(&nats).await;
    let options = OperatorOptions::kubernetes(&nats, &namespace).env("RUST_LOG", "info").env("MAX_ACTIVE_CALLS", COUNT);
    let _operator = if by_operator { Some(Operator::start(options).await) } else { None };
    let api: Api<Job> = namespace.api();
    let mut seen = Box::pin(api.watch(&WatchParams::default(), "0").await.expect("a watch"));
    let orders = orders(&namespace, IDLE_CALLS);
    let (begin, mut micros) = (Instant::now(), Vec::new());
    for (number, order) in orders.into_iter().enumerate() {
        tokio::time::sleep(IDLE_FOR).await;
        let begun = Instant::now();
        if by_operator {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Msg-Id", format!("idle/{number}").as_str());
            jetstream.publish_with_headers("sip.calls", headers, requests::body().into()).await.expect("a publish");
        } else {
            let post = PostParams { field_manager: Some("bench".to_owned()), ..PostParams::default() };
            api.create(&post, &order).await.expect("a Job is made");
        }
        loop {
            let event = tokio::time::timeout(PATIENCE, seen.next()).await.expect("in time").expect("a watch goes on");
            if matches!(event, Ok(WatchEvent::Added(_))) {
                break;
            }
        }
        micros.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
    Samples { micros, total: begin.elapsed() }
}

async fn by_operator(namespace: &Namespace, count: usize) -> f64 {
    let nats = NatsServer::start().await;
    let jetstream = requests::jetstream(&nats).await;
    let options = OperatorOptions::kubernetes(&nats, namespace).env("RUST_LOG", "info").env("MAX_ACTIVE_CALLS", count);
    let operator = Operator::start(options).await;
    let begin = Instant::now();
    requests::publish(&jetstream, count).await;
    until_there::<Job>(namespace, count).await;
    let took = begin.elapsed();
    at_rest(namespace, count).await;
    drop(operator);
    count as f64 / took.as_secs_f64()
}

async fn by_creates(namespace: &Namespace, count: usize) -> (f64, Samples) {
    let orders = orders(namespace, count);
    let begin = Instant::now();
    let (micros, ()) = tokio::join!(create(namespace, &orders), until_there::<Job>(namespace, count));
    let total = begin.elapsed();
    at_rest(namespace, count).await;
    (count as f64 / total.as_secs_f64(), Samples { micros, total })
}

/// The Jobs that the operator would make.
pub(crate) fn orders(namespace: &Namespace, count: usize) -> Vec<Job> {
    // Without the gate, which nobody here would lift.
    let defaults = JobDefaults { namespace: namespace.name.clone(), pod_gate: false, ..job_defaults() };
    (0..count).map(|number| build(&requests::call(number), 1, &defaults).job).collect()
}

/// Creates Jobs, [`AT_ONCE`] at a time; returns how long each took, in microseconds.
pub(crate) async fn create(namespace: &Namespace, orders: &[Job]) -> Vec<u32> {
    let jobs: Api<Job> = namespace.api();
    let post = PostParams { field_manager: Some("sipstuff-operator".to_owned()), ..PostParams::default() };
    let creates = orders.iter().map(|job| async {
        let begun = Instant::now();
        jobs.create(&post, job).await.expect("a Job is made");
        u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX)
    });
    stream::iter(creates).buffer_unordered(AT_ONCE).collect().await
}

/// Waits until the namespace has so many of a kind.
async fn until_there<K>(namespace: &Namespace, count: usize)
where
    K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug,
    K: serde::de::DeserializeOwned,
{
    let api: Api<K> = namespace.api();
    let begin = Instant::now();
    loop {
        // One of them, and how many more there are.
        let list = api.list_metadata(&ListParams::default().limit(1)).await.expect("a list");
        let more = list.metadata.remaining_item_count.and_then(|more| usize::try_from(more).ok()).unwrap_or(0);
        if list.items.len() + more >= count {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "only {} of {count} are there", list.items.len() + more);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Waits until every Job has its pod and the controllers have written what they had to.
async fn at_rest(namespace: &Namespace, count: usize) {
    until_there::<Pod>(namespace, count).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
}
