//! Calls whose pods end, beside raw creates of the same Jobs whose pods end on such a node too: how many per second, and what
//! they cost the API server. And how soon after a pod's change its event is on `sip.status`.
//!
//! The controllers and the node do the same work on both sides. Ours adds what the operator asks of the API server beyond the
//! creates: two watches, and for every call one patch that lifts the gate of its pod, one read of its log, and one patch at its end. Each side is counted until its Jobs have come to rest, so that nothing of
//! its cost is left to the other.
//!
//! How soon an event comes is measured twice: with as many calls as the machine can do, where every process waits for a
//! processor, and at [`PACE`], where none does.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use kube::api::ListParams;
use sipstuff_operator::call::{Status, StatusEvent};
use sipstuff_operator::job::UNSETTLED;

use super::load::{Latency, Samples, cpu_seconds};
use super::report::{Expected, Row};
use super::support::node::{self, NodeOptions, TestNode};
use super::support::status::round_trip;
use super::support::{ControlPlane, Namespace, NatsServer, Operator, OperatorOptions};
use super::{jobs, requests};

/// Calls in a round.
pub(crate) const COUNT: usize = 5000;
/// How long each of them lasts.
const CALL_LASTS: Duration = Duration::from_secs(2);
/// Calls per second where the machine is not to be busy, and how many.
const PACE: u32 = 10;
const PACED: usize = 500;
/// From the API server's answer to the change of a pod's status until its event is heard.
const PROMPT_MS: Expected = Expected::AtMost(50.0);
/// How often it is looked whether a side has come to rest.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(900);

/// One side's round.
struct Round {
    per_second: f64,
    /// Processor time of a call, in milliseconds.
    server_ms: f64,
    /// Requests of a call.
    requests: f64,
}

pub(crate) async fn measure(rounds: usize, count: usize) -> Vec<Row> {
    let plane = ControlPlane::shared().await;
    let (mut ours, mut raw, mut at_full_speed) = (Vec::new(), Vec::new(), Prompt::default());
    let mut used = Vec::new();
    for round in 1..=rounds {
        let (first, second) = (plane.namespace().await, plane.namespace().await);
        let (operator, prompt) = by_operator(plane, &first, count, 1).await;
        let creates = by_creates(plane, &second, count).await;
        eprintln!("ends: round {round}: {:.0} per s, raw {:.0} per s", operator.per_second, creates.per_second);
        at_full_speed.add(prompt);
        ours.push(operator);
        raw.push(creates);
        used.extend([first, second]);
    }
    let (replicas, paced) = (plane.namespace().await, plane.namespace().await);
    let (two, _) = by_operator(plane, &replicas, (count / 5).max(1), 2).await;
    let paced = at_pace(&paced).await;
    let sides = |of: fn(&Round) -> f64| ours.iter().map(of).zip(raw.iter().map(of)).collect::<Vec<_>>();
    let row = |key: &str, what: String, unit, of| Row::of_rounds(format!("ends.{key}"), what, unit, &sides(of));
    let mut rows = vec![
        row("rate", format!("calls whose pods end, {count} calls"), "per s", |round| round.per_second),
        row("server_cpu", "the API server's processor time for a call".to_owned(), "ms", |round| round.server_ms),
        row("requests", "requests to the API server for a call, by all".to_owned(), "", |round| round.requests),
        Row::alone("ends.requests.2", "the same, two operators", "", two.requests),
    ];
    rows.extend(paced.rows("paced", &format!("at {PACE} calls per s")));
    rows.extend(at_full_speed.rows("busy", "at full speed"));
    rows
}

async fn by_operator(plane: &ControlPlane, namespace: &Namespace, count: usize, replicas: usize) -> (Round, Prompt) {
    let nats = NatsServer::start().await;
    let (jetstream, node, listener) = (requests::jetstream(&nats).await, node(namespace), Listener::start(&nats).await);
    let options = OperatorOptions::kubernetes(&nats, namespace).env("RUST_LOG", "info").env("MAX_ACTIVE_CALLS", count);
    let operators = Operator::start_replicas(&options, replicas).await;
    let before = Cost::read(plane, namespace).await;
    let operator_cpu = || operators.iter().map(|operator| cpu_seconds(operator.pid())).sum::<f64>();
    let (cpu, begin) = (operator_cpu(), Instant::now());
    requests::publish(&jetstream, count).await;
    until("calls have ended", count, async || listener.final_count()).await;
    let took = begin.elapsed();
    at_rest(namespace, Some(UNSETTLED)).await;
    let round = before.round(plane, namespace, count, took).await;
    eprintln!(
        "ends: the operator's own processor time: {:.2} ms for a call",
        (operator_cpu() - cpu) * 1e3 / count as f64
    );
    assert_eq!(node.start_count(), count, "every call is placed once");
    for operator in &operators {
        let log = operator.log();
        for line in log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).take(10) {
            eprintln!("ends: the operator says: {line}");
        }
    }
    (round, Prompt::of(&node, &listener.stop().await))
}

async fn by_creates(plane: &ControlPlane, namespace: &Namespace, count: usize) -> Round {
    let (node, orders) = (node(namespace), jobs::orders(namespace, count));
    let before = Cost::read(plane, namespace).await;
    let begin = Instant::now();
    jobs::create(namespace, &orders).await;
    until("pods have ended", count, async || node.ended_count()).await;
    let took = begin.elapsed();
    at_rest(namespace, None).await;
    before.round(plane, namespace, count, took).await
}

/// So few calls at a time that nothing waits for a processor.
async fn at_pace(namespace: &Namespace) -> Prompt {
    let nats = NatsServer::start().await;
    let (jetstream, node, listener) = (requests::jetstream(&nats).await, node(namespace), Listener::start(&nats).await);
    let options = OperatorOptions::kubernetes(&nats, namespace)
        .env("RUST_LOG", "info")
        .env("CALLS_PER_SECOND", PACE)
        .env("MAX_ACTIVE_CALLS", PACED);
    let _operator = Operator::start(options).await;
    requests::publish(&jetstream, PACED).await;
    until("calls have ended", PACED, async || listener.final_count()).await;
    Prompt::of(&node, &listener.stop().await)
}

fn node(namespace: &Namespace) -> TestNode {
    let instant = Some(node::Instant { exit_code: 0, after: CALL_LASTS });
    TestNode::start(namespace.client.clone(), &namespace.name, NodeOptions { instant, ..NodeOptions::default() })
}

async fn until(what: &str, count: usize, mut current: impl AsyncFnMut() -> usize) {
    let begin = Instant::now();
    loop {
        let current = current().await;
        if current >= count {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "only {current} of {count} {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until every Job has ended by its controller's word, and no Job has that label selector.
async fn at_rest(namespace: &Namespace, unsettled: Option<&str>) {
    let api = namespace.api::<Job>();
    let is_none =
        async |selector: ListParams| api.list_metadata(&selector.limit(1)).await.expect("a list").items.is_empty();
    let begin = Instant::now();
    loop {
        let are_settled = match unsettled {
            Some(selector) => is_none(ListParams::default().labels(selector)).await,
            None => true,
        };
        if are_settled && is_none(ListParams::default().fields("status.successful=0")).await {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "Jobs do not come to rest");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What was asked of the API server so far, and what it has used of the processors.
struct Cost {
    requests: BTreeMap<String, f64>,
    cpu: f64,
}

impl Cost {
    async fn read(plane: &ControlPlane, namespace: &Namespace) -> Self {
        let requests = request_counts(namespace).await;
        // Afterwards, since the answer is long.
        Self { requests, cpu: cpu_seconds(plane.apiserver_pid()) }
    }

    async fn round(self, plane: &ControlPlane, namespace: &Namespace, count: usize, took: Duration) -> Round {
        let server_ms = (cpu_seconds(plane.apiserver_pid()) - self.cpu) * 1e3 / count as f64;
        let now = request_counts(namespace).await;
        let asked = |(what, after): (String, f64)| {
            let before = self.requests.get(&what).copied().unwrap_or_default();
            (after > before).then_some((what, (after - before) / count as f64))
        };
        let each: Vec<(String, f64)> = now.into_iter().filter_map(asked).collect();
        for (what, of_a_call) in &each {
            eprintln!("ends:   {of_a_call:8.4} {what}");
        }
        let requests = each.iter().map(|(_, of_a_call)| of_a_call).sum();
        Round { per_second: count as f64 / took.as_secs_f64(), server_ms, requests }
    }
}

/// Requests by verb and resource, those about Jobs and what belongs to them.
async fn request_counts(namespace: &Namespace) -> BTreeMap<String, f64> {
    let request = http::Request::get("/metrics").body(Vec::new()).expect("a request");
    let text = namespace.client.request_text(request).await.expect("the API server's metrics");
    let mut counts = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{")) {
        let Some((labels, value)) = line.rsplit_once("} ") else { continue };
        let label = |name: &str| labels.split_once(&format!("{name}=\"")).and_then(|(_, rest)| rest.split('"').next());
        let resource = label(",resource").unwrap_or_default();
        if matches!(resource, "jobs" | "pods" | "secrets" | "events") {
            let of =
                label("subresource").filter(|sub| !sub.is_empty()).map(|sub| format!("/{sub}")).unwrap_or_default();
            let key = format!("{} {resource}{of}", label("verb").unwrap_or_default());
            *counts.entry(key).or_default() += value.trim().parse().unwrap_or(0.0);
        }
    }
    counts
}

/// Keeps what is published on `sip.status`, and when it came.
struct Listener {
    client: async_nats::Client,
    heard: tokio::task::JoinHandle<Vec<(Timestamp, Bytes)>>,
    finals: tokio::sync::watch::Receiver<usize>,
}

impl Listener {
    async fn start(nats: &NatsServer) -> Self {
        let client = nats.client().await;
        let mut messages = client.subscribe("sip.status").await.expect("a subscription");
        round_trip(&client).await;
        let (counter, finals) = tokio::sync::watch::channel(0);
        let heard = tokio::spawn(async move {
            let mut heard = Vec::new();
            while let Some(message) = messages.next().await {
                let at = Timestamp::now();
                if message.payload.windows(12).any(|part| part == br#""final":true"#) {
                    counter.send_modify(|count| *count += 1);
                }
                heard.push((at, message.payload));
            }
            heard
        });
        Self { client, heard, finals }
    }

    fn final_count(&self) -> usize {
        *self.finals.borrow()
    }

    async fn stop(self) -> Vec<(Timestamp, StatusEvent)> {
        self.client.drain().await.expect("a connection");
        let heard = self.heard.await.expect("the listener does not panic");
        let event = |(at, payload): (Timestamp, Bytes)| (at, serde_json::from_slice(&payload).expect("a status event"));
        heard.into_iter().map(event).collect()
    }
}

/// How long after a pod's change its event was heard.
#[derive(Default)]
struct Prompt {
    running: Samples,
    ended: Samples,
}

impl Prompt {
    fn of(node: &TestNode, events: &[(Timestamp, StatusEvent)]) -> Self {
        let changed = |phase: &str| -> HashMap<String, Timestamp> {
            node.reports()
                .into_iter()
                .filter(|report| report.phase == phase)
                .map(|report| (report.job, report.at))
                .collect()
        };
        let after = |changed: &HashMap<String, Timestamp>, status: Status| {
            let of_that = events.iter().filter(|(_, event)| event.status == status);
            // It may be heard before the node has its answer.
            let micros = of_that.filter_map(|(heard_at, event)| {
                let changed_at = *changed.get(event.job.as_ref()?)?;
                Some(u32::try_from(heard_at.duration_since(changed_at).as_micros().max(0)).unwrap_or(u32::MAX))
            });
            Samples { micros: micros.collect(), total: Duration::ZERO }
        };
        Self {
            running: after(&changed("Running"), Status::Running),
            ended: after(&changed("Succeeded"), Status::Succeeded),
        }
    }

    fn add(&mut self, other: Self) {
        self.running.add(other.running);
        self.ended.add(other.ended);
    }

    fn rows(&self, key: &str, when: &str) -> [Row; 2] {
        let row = |what: &str, latency: Latency| {
            let says = format!("pod {what} to event, p99, {when}");
            Row::alone(format!("ends.{what}.{key}"), says, "ms", latency.p99_ms)
                .latencies(latency, None)
                .expect(PROMPT_MS)
        };
        [row("runs", self.running.latency()), row("ended", self.ended.latency())]
    }
}
