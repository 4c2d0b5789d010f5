//! Admission: how many requests it records and queues per second, beside the bare steps by the same client library, and how soon a
//! request is heard of behind a backlog. Dialling is paused, so that nothing leaves the queue.
//!
//! On both sides the requests are published meanwhile, on the same machine. The bare steps are a pull, an append by compare-and-set, a
//! publish to the queue, and an acknowledgement, for requests that nobody reads.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::PullConsumer;
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use sipstuff_operator::call::{Change, StatusEvent};
use sipstuff_operator::nats::{Names, streams};
use sipstuff_operator::policy::{DEFAULT_TRUNK, TrunkGroup};
use sipstuff_operator::queue::Waiting;
use sipstuff_operator::queue::control::{self, Paused};
use sipstuff_operator::status_log::StatusLog;

use super::load::{Samples, cpu_seconds};
use super::report::{Expected, Row};
use super::requests;
use super::support::process::Scratch;
use super::support::{NatsServer, Operator, OperatorOptions, delete};

/// Requests in a round.
pub(crate) const COUNT: usize = 50_000;
/// Requests that are admitted at once, as by the operator.
const AT_ONCE: usize = 256;
/// How often requests are published while it is measured how soon they are heard of, per second, and for how long.
const PACE: u32 = 2000;
const PACED_FOR: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(crate) async fn measure(rounds: usize, count: usize) -> Vec<Row> {
    let (mut rates, mut heard, mut cpu) = (Vec::new(), Samples::default(), Vec::new());
    for round in 1..=rounds {
        let (ours, micros, samples) = by_operator(count).await;
        let bare = by_bare_steps(count).await;
        eprintln!("admission: round {round}: {ours:.0} per s, bare steps {bare:.0} per s");
        rates.push((ours, bare));
        cpu.push(micros);
        heard.add(samples);
    }
    let what = format!("requests admitted, {count} published meanwhile");
    let (queued, fresh) = (cancel(count, true).await, cancel(count, false).await);
    vec![
        Row::alone("admission.cancel", format!("cancel of a batch of {count} that wait"), "s", queued),
        Row::alone(
            "admission.cancel_fresh",
            format!("cancel of a batch of {count} that was just published"),
            "s",
            fresh,
        ),
        Row::of_rounds("admission.rate".to_owned(), what, "per s", &rates),
        Row::alone(
            "admission.cpu",
            "the operator's processor time for each",
            "µs",
            super::report::median(cpu.into_iter()),
        ),
        Row::alone(
            "admission.heard",
            format!("publish to `queued`, {PACE} per s behind {count} that wait, p99"),
            "ms",
            heard.latency().p99_ms,
        )
        .latencies(heard.latency(), None)
        .expect(Expected::AtMost(1000.0)),
    ]
}

/// Requests per second, the operator's processor time for each in microseconds, and how soon others are heard of afterwards.
async fn by_operator(count: usize) -> (f64, f64, Samples) {
    let (nats, state) = (NatsServer::start().await, Scratch::new("state"));
    let jetstream = requests::jetstream(&nats).await;
    let settings = requests::stream_settings();
    streams::ensure(&jetstream, &settings, DEFAULT_TRUNK, 1).await.expect("the streams");
    let bucket = streams::bucket(&jetstream, &settings).await.expect("the bucket");
    let paused = Paused { until: None, by: None, reason: None, since: None };
    control::pause(&bucket, &paused).await.expect("a pause");
    let options = OperatorOptions::local(&nats, state.path()).env("RUST_LOG", "info").env("QUEUE_MAX_MESSAGES", -1);
    let operator = Operator::start(options).await;
    let (before, begin) = (cpu_seconds(operator.pid()), Instant::now());
    requests::publish(&jetstream, count).await;
    queue_has(&jetstream, count).await;
    let rate = count as f64 / begin.elapsed().as_secs_f64();
    let micros = (cpu_seconds(operator.pid()) - before) * 1e6 / count as f64;
    (rate, micros, how_soon(&nats, &jetstream).await)
}

async fn by_bare_steps(count: usize) -> f64 {
    let nats = NatsServer::start().await;
    let jetstream = requests::jetstream(&nats).await;
    requests::ensure_streams(&jetstream, 1).await;
    let names = Names::default();
    let log = StatusLog::open(jetstream.clone(), &names, Duration::from_secs(72 * 3600)).await.expect("the log");
    let trunks = TrunkGroup::from_token(DEFAULT_TRUNK);
    let waiting = Waiting::open(jetstream.clone(), &names).await.expect("the queue");
    let consumer = jetstream.get_consumer_from_stream(&names.admission_consumer, &names.calls_stream).await;
    let consumer: PullConsumer = consumer.expect("the consumer");
    let begin = Instant::now();
    let steps = async {
        let messages = consumer.stream().max_messages_per_batch(512).messages().await.expect("messages");
        let steps = messages.take(count).enumerate().map(|(number, message)| {
            let (log, waiting, trunks) = (&log, &waiting, &trunks);
            async move {
                let (message, now) = (message.expect("a message"), Timestamp::now());
                let call = requests::call(number);
                let event = StatusEvent::first(&call, "bench", now, Change::Queued, now).expect("a call may begin so");
                let recorded = log.append(event, 0).await.expect("an append");
                let body: Bytes = message.payload.clone();
                waiting.put(&recorded.event, 1, trunks, HeaderMap::new(), body).await.expect("a place in the queue");
                message.ack().await.expect("an acknowledgement");
            }
        });
        steps.buffer_unordered(AT_ONCE).collect::<()>().await;
    };
    tokio::join!(steps, requests::publish(&jetstream, count));
    count as f64 / begin.elapsed().as_secs_f64()
}

/// How long the cancel of a batch of so many takes, in seconds: of calls that all wait, or that were published a moment ago, so that some
/// lie in the inbox. None of them may be dialled after the answer.
async fn cancel(count: usize, all_wait: bool) -> f64 {
    let (nats, state) = (NatsServer::start().await, Scratch::new("state"));
    let jetstream = requests::jetstream(&nats).await;
    let options = OperatorOptions::local(&nats, state.path())
        .env("RUST_LOG", "info")
        .env("QUEUE_MAX_MESSAGES", -1)
        .env("CALLS_PER_SECOND", 0.01)
        .env("SIMULATE_SECONDS", 1);
    let operator = Operator::start(options).await;
    requests::publish_batch(&jetstream, count, "list").await;
    if all_wait {
        // One is dialled, and the next one lies in the window for its turn.
        queue_has(&jetstream, count - 2).await;
    }
    let begin = Instant::now();
    let answer = delete(operator.base(), "/batches/list").await;
    let took = begin.elapsed().as_secs_f64();
    assert_eq!(answer.status, http::StatusCode::ACCEPTED, "{answer:?}");
    let number = |name: &str| answer.json[name].as_u64().unwrap_or(0) as usize;
    let sum = number("cancelled") + number("cancelling") + number("ended");
    assert_eq!((sum, number("unreadable")), (count, 0), "every call is counted: {answer:?}");
    eprintln!("admission: {count} cancelled in {took:.1} s: {}", answer.json);
    took
}

async fn queue_has(jetstream: &Context, count: usize) {
    let begin = Instant::now();
    loop {
        let stream = jetstream.get_stream("SIP_QUEUE").await.expect("the queue");
        if stream.cached_info().state.messages >= count as u64 {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "not everything is admitted");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// From a publish until its event is on `sip.status`.
async fn how_soon(nats: &NatsServer, jetstream: &Context) -> Samples {
    let client = nats.client().await;
    let mut events = client.subscribe("sip.status").await.expect("a subscription");
    client.flush().await.expect("a server");
    let published: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
    let expected = usize::try_from(PACE).expect("few") * PACED_FOR.as_secs() as usize;
    let noted = published.clone();
    let listening = tokio::spawn(async move {
        let mut micros = Vec::new();
        while micros.len() < expected
            && let Some(message) = events.next().await
        {
            let now = Instant::now();
            let event: StatusEvent = serde_json::from_slice(&message.payload).expect("a status event");
            if let Some(then) = noted.lock().expect("nobody panics").remove(event.id.as_str()) {
                micros.push(u32::try_from(now.duration_since(then).as_micros()).unwrap_or(u32::MAX));
            }
        }
        micros
    });
    let body = Bytes::from(requests::body());
    let (begin, mut ticks) = (Instant::now(), tokio::time::interval(Duration::from_secs(1) / PACE));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    for number in 0..expected {
        ticks.tick().await;
        let id = format!("paced/{number}");
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id.as_str());
        published.lock().expect("nobody panics").insert(id, Instant::now());
        // The acknowledgement is not waited for: what is stored is heard of.
        jetstream.publish_with_headers("sip.calls", headers, body.clone()).await.expect("a publish");
    }
    let micros = tokio::time::timeout(PATIENCE, listening).await.expect("all are heard of").expect("no panic");
    Samples { micros, total: begin.elapsed() }
}
