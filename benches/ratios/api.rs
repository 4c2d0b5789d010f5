//! `POST /call` answered per second, beside a raw JetStream publish with ack of the same body at the same concurrency, into
//! a stream of the same kind on the same server.
//!
//! Only accepting is measured: the one slot for calls in progress (`MAX_ACTIVE_CALLS=1`) is held by this program, so the
//! operator dials nothing. It does all else: two durable messages for each call, a line in its log, its job view.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, RetentionPolicy, StorageType};
use async_nats::jetstream::{AckKind, Context};
use bytes::Bytes;
use futures::StreamExt;

use super::load::{Connection, Samples, Worker, memory_kb, work};
use super::report::{Expected, Row};
use super::requests;
use super::support::{NatsServer, Operator, OperatorOptions, process::Scratch};

const CONCURRENCIES: [usize; 3] = [1, 32, 256];
/// How long one side works in a round.
const TURN: Duration = Duration::from_secs(2);
const WARM_UP: Duration = Duration::from_millis(500);
/// A call is two durable messages.
const EXPECTED: Expected = Expected::AtLeast(0.3);

struct Caller {
    connection: Connection,
    request: Bytes,
}

impl Worker for Caller {
    async fn once(&mut self) {
        let answer = self.connection.ask(&self.request).await;
        assert_eq!(answer.status, 202, "{}", String::from_utf8_lossy(answer.body));
    }
}

struct Publisher {
    jetstream: Context,
    body: Bytes,
}

impl Worker for Publisher {
    async fn once(&mut self) {
        let ack = self.jetstream.publish("raw.calls", self.body.clone()).await.expect("a publish");
        ack.await.expect("an acknowledgement");
    }
}

pub(crate) async fn measure(rounds: usize) -> Vec<Row> {
    let (nats, state) = (NatsServer::start().await, Scratch::new("state"));
    let jetstream = requests::jetstream(&nats).await;
    requests::ensure_streams(&jetstream, 1).await;
    raw_stream(&jetstream).await;
    hold_the_slot(&jetstream).await;
    let options = OperatorOptions::local(&nats, state.path())
        .env("RUST_LOG", "info")
        .env("MAX_ACTIVE_CALLS", 1)
        .env("QUEUE_MAX_MESSAGES", -1);
    let operator = Operator::start(options).await;
    let mut rows = Vec::new();
    for concurrency in CONCURRENCIES {
        eprintln!("api: {concurrency} at a time");
        rows.push(compare(&operator, &jetstream, concurrency, rounds).await);
    }
    let peak = memory_kb(operator.pid(), "VmHWM:") / 1024.0;
    let accepted = jetstream.get_stream("SIP_CALLS").await.expect("the queue").cached_info().state.messages;
    rows.push(Row::alone("api.peak_rss", format!("peak memory after {accepted} calls accepted"), "MiB", peak));
    rows
}

async fn compare(operator: &Operator, jetstream: &Context, concurrency: usize, rounds: usize) -> Row {
    let mut callers = Vec::new();
    for _ in 0..concurrency {
        callers.push(Caller { connection: Connection::open(operator.base()).await, request: post() });
    }
    let body = Bytes::from(requests::body());
    let mut publishers: Vec<_> =
        (0..concurrency).map(|_| Publisher { jetstream: jetstream.clone(), body: body.clone() }).collect();
    work(&mut callers, WARM_UP).await;
    work(&mut publishers, WARM_UP).await;
    let (mut ours, mut raw, mut rates) = (Samples::default(), Samples::default(), Vec::new());
    for _ in 0..rounds {
        let (operator, publish) = (work(&mut callers, TURN).await, work(&mut publishers, TURN).await);
        rates.push((operator.rate(), publish.rate()));
        ours.add(operator);
        raw.add(publish);
    }
    let what = format!("POST /call, {concurrency} at a time");
    Row::of_rounds(format!("api.{concurrency}"), what, "per s", &rates)
        .latencies(ours.latency(), Some(raw.latency()))
        .expect(EXPECTED)
}

fn post() -> Bytes {
    let body = requests::body();
    let head = format!(
        "POST /call HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat().into()
}

/// The same kind as the queue's.
async fn raw_stream(jetstream: &Context) {
    let config = Config {
        name: "RAW".to_owned(),
        subjects: vec!["raw.calls".to_owned()],
        retention: RetentionPolicy::WorkQueue,
        storage: StorageType::File,
        ..Default::default()
    };
    jetstream.create_stream(config).await.expect("a stream");
}

/// Takes one message through the dialler's own consumer and never lets it go, so that nobody else gets any.
async fn hold_the_slot(jetstream: &Context) {
    requests::publish(jetstream, 1).await;
    let stream = jetstream.get_stream("SIP_CALLS").await.expect("the queue");
    let consumer = stream.get_consumer("dialler").await.expect("the dialler's consumer");
    let consumer: async_nats::jetstream::consumer::PullConsumer = consumer;
    let mut messages = consumer.fetch().max_messages(1).messages().await.expect("a fetch");
    let message = messages.next().await.expect("a message was published").expect("a message");
    tokio::spawn(async move {
        loop {
            message.ack_with(AckKind::Progress).await.expect("an in-progress sign");
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    });
}
