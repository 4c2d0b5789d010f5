//! `POST /call` answered per second, beside the least that any such door does: a warp handler that publishes the body with ack and answers
//! 202. And beside a raw JetStream publish of the same body without HTTP, into a stream of the same kind on the same server.
//!
//! Only accepting is measured: the one slot for calls in progress (`MAX_ACTIVE_CALLS=1`) is held by this program, so the
//! operator dials nothing. It does all else: it admits each call meanwhile, which is two more messages, a line in its log and its index. The
//! time in which it catches up counts. Once more it is measured with admission held back, which is the door alone.
//!
//! Beside the rates stands what a call costs in processor time, which a busy machine changes less than it changes rates.

use std::process::Stdio;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, RetentionPolicy, StorageType};
use async_nats::jetstream::{AckKind, Context};
use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;
use sipstuff_operator::nats::Names;
use sipstuff_operator::policy::DEFAULT_TRUNK;
use sipstuff_operator::queue::Window;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use warp::Filter;

use super::load::{Connection, Samples, Worker, cpu_seconds, memory_kb, work};
use super::report::{Expected, Row, median};
use super::requests;
use super::support::process::Scratch;
use super::support::{NatsServer, Operator, OperatorOptions};

const CONCURRENCIES: [usize; 3] = [1, 32, 256];
/// How long one side works in a round.
const TURN: Duration = Duration::from_secs(2);
const WARM_UP: Duration = Duration::from_millis(500);
/// Of the bare handler, while admission keeps up; and where all that is accepted is admitted afterwards.
const EXPECTED: Expected = Expected::AtLeast(0.6);
const EXPECTED_IN_BURST: Expected = Expected::AtLeast(0.8);

/// Places one call after the other.
pub(crate) struct Caller {
    connection: Connection,
    request: Bytes,
}

impl Caller {
    pub(crate) async fn of(operator: &Operator) -> Self {
        Self::at(operator.base()).await
    }

    async fn at(base: &str) -> Self {
        Self { connection: Connection::open(base).await, request: post() }
    }

    /// Several, on connections of their own; a server closes those that nobody has used for a while.
    async fn several(base: &str, count: usize) -> Vec<Self> {
        let mut callers = Vec::new();
        for _ in 0..count {
            callers.push(Self::at(base).await);
        }
        callers
    }
}

impl Worker for Caller {
    async fn once(&mut self) {
        let answer = self.connection.ask(&self.request).await;
        assert_eq!(answer.status, 202, "{}", String::from_utf8_lossy(answer.body));
    }
}

/// The first argument of this program that makes it the bare handler; the second is the address of nats-server.
pub(crate) const BARE_HANDLER: &str = "bare-handler";

/// Serves the bare handler, and says on standard output where.
pub(crate) async fn serve_bare_handler(nats_url: &str) {
    let client = async_nats::connect(nats_url).await.expect("a connection");
    let jetstream = async_nats::jetstream::new(client);
    let publish = move |body: Bytes| {
        let jetstream = jetstream.clone();
        async move {
            let ack = jetstream.publish("raw.calls", body).await.expect("a publish");
            ack.await.expect("an acknowledgement");
            warp::reply::with_status("{}", http::StatusCode::ACCEPTED)
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port of loopback");
    println!("http://{}", listener.local_addr().expect("a bound listener has an address"));
    let routes = warp::post().and(warp::path!("call")).and(warp::body::bytes()).then(publish);
    warp::serve(routes).incoming(listener).run().await;
}

/// The bare handler in a process of its own, as the operator is, and what it listens on.
struct Bare {
    base: String,
    _process: Child,
}

impl Bare {
    async fn start(nats: &NatsServer) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        let command = command.args([BARE_HANDLER, &nats.url()]).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().expect("this program runs once more");
        let mut output = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        let base = output.next_line().await.expect("a line").expect("the handler listens");
        Self { base, _process: process }
    }
}

/// Whether admission keeps up, or has to do it all after the burst.
async fn admit(jetstream: &Context, admits: bool) {
    let until = if admits { "1970-01-02T00:00:00Z" } else { "2100-01-01T00:00:00Z" };
    let request = serde_json::json!({ "pause_until": until });
    let answer = jetstream.request("CONSUMER.PAUSE.SIP_CALLS.admission", &request).await.expect("an answer");
    let Response::Ok(Paused { paused }) = answer else { panic!("{answer:?}") };
    assert_eq!(paused, !admits);
}

#[derive(Debug, Deserialize)]
struct Paused {
    paused: bool,
}

/// Publishes one message after the other into the raw stream.
pub(crate) struct Publisher {
    pub(crate) jetstream: Context,
    pub(crate) body: Bytes,
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
    let operator = accepting(&nats, &jetstream, &state).await;
    let mut rows = Vec::new();
    for concurrency in CONCURRENCIES {
        eprintln!("api: {concurrency} at a time");
        rows.extend(compare(&operator, &nats, &jetstream, concurrency, rounds).await);
    }
    let peak = memory_kb(operator.pid(), "VmHWM:") / 1024.0;
    let accepted = jetstream.get_stream("SIP_QUEUE").await.expect("the queue").cached_info().state.messages;
    rows.push(Row::alone("api.peak_rss", format!("peak memory after {accepted} calls accepted"), "MiB", peak));
    rows
}

/// An operator that accepts and dials nothing, and a raw stream beside its queue.
pub(crate) async fn accepting(nats: &NatsServer, jetstream: &Context, state: &Scratch) -> Operator {
    requests::ensure_streams(jetstream, 1).await;
    raw_stream(jetstream).await;
    hold_the_slot(jetstream).await;
    let options = OperatorOptions::local(nats, state.path())
        .env("RUST_LOG", "info")
        .env("MAX_ACTIVE_CALLS", 1)
        .env("QUEUE_MAX_MESSAGES", -1);
    Operator::start(options).await
}

async fn compare(
    operator: &Operator,
    nats: &NatsServer,
    jetstream: &Context,
    concurrency: usize,
    rounds: usize,
) -> [Row; 5] {
    let server = nats.pid().expect("the server runs");
    let bare = Bare::start(nats).await;
    let callers = async || Caller::several(operator.base(), concurrency).await;
    let bare_callers = async || Caller::several(&bare.base, concurrency).await;
    let body = Bytes::from(requests::body());
    let mut publishers: Vec<_> =
        (0..concurrency).map(|_| Publisher { jetstream: jetstream.clone(), body: body.clone() }).collect();
    work(&mut callers().await, WARM_UP).await;
    work(&mut bare_callers().await, WARM_UP).await;
    work(&mut publishers, WARM_UP).await;
    let stored = async || jetstream.get_stream("RAW").await.expect("a stream").cached_info().state.messages;
    let before = stored().await;
    let (mut ours, mut in_burst) = (Samples::default(), Samples::default());
    let (mut of_bare, mut raw) = (Samples::default(), Samples::default());
    let (mut rates, mut raw_rates, mut burst_rates) = (Vec::new(), Vec::new(), Vec::new());
    let (mut operator_cpu, mut server_cpu) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let before = (cpu_seconds(operator.pid()), cpu_seconds(server));
        let mut calls = work(&mut callers().await, TURN).await;
        calls.total += requests::until_admitted(jetstream).await;
        let between = (cpu_seconds(operator.pid()), cpu_seconds(server));
        let publishes = work(&mut publishers, TURN).await;
        let after = cpu_seconds(server);
        admit(jetstream, false).await;
        let burst = work(&mut callers().await, TURN).await;
        let bare_calls = work(&mut bare_callers().await, TURN).await;
        admit(jetstream, true).await;
        requests::until_admitted(jetstream).await;
        let micros = |seconds: f64, samples: &Samples| seconds * 1e6 / samples.micros.len() as f64;
        operator_cpu.push(micros(between.0 - before.0, &calls));
        server_cpu.push((micros(between.1 - before.1, &calls), micros(after - between.1, &publishes)));
        rates.push((calls.rate(), bare_calls.rate()));
        burst_rates.push((burst.rate(), bare_calls.rate()));
        in_burst.add(burst);
        raw_rates.push((calls.rate(), publishes.rate()));
        ours.add(calls);
        of_bare.add(bare_calls);
        raw.add(publishes);
    }
    assert_eq!(
        stored().await - before,
        (raw.micros.len() + of_bare.micros.len()) as u64,
        "what was acknowledged is stored"
    );
    let row = |key: &str| format!("api.{concurrency}{key}");
    let what = |what: &str| format!("{what}, {concurrency} at a time");
    [
        Row::of_rounds(row(""), what("POST /call beside a bare warp handler"), "per s", &rates)
            .latencies(ours.latency(), Some(of_bare.latency()))
            .expect(EXPECTED),
        Row::of_rounds(row(".burst"), what("the same where admission comes afterwards"), "per s", &burst_rates)
            .latencies(in_burst.latency(), Some(of_bare.latency()))
            .expect(EXPECTED_IN_BURST),
        Row::of_rounds(row(".raw"), what("POST /call beside a raw publish"), "per s", &raw_rates)
            .latencies(ours.latency(), Some(raw.latency())),
        Row::alone(row(".operator_cpu"), what("the operator's processor time for a call"), "µs", median(operator_cpu)),
        Row::of_rounds(row(".server_cpu"), what("nats-server's for a call"), "µs", &server_cpu),
    ]
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
    let window = Window::new(jetstream.clone(), &Names::default());
    window.put(DEFAULT_TRUNK, "held", HeaderMap::new(), Bytes::new()).await.expect("a publish");
    let stream = jetstream.get_stream("SIP_DIAL").await.expect("the window");
    let consumer = stream.get_consumer("dialler-default").await.expect("the dialler's consumer");
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
