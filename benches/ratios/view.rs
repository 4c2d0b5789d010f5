//! The job view with many calls: how long an operator takes from its start until the view has caught up, beside the raw
//! ordered consumer that reads the same; what a call costs in memory; and how long pages of `GET /jobs` take.
//!
//! Every call has its whole story in the log, as the operator writes it: four records, or fewer for those still on their way.

use std::time::{Duration, Instant};

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use sipstuff_operator::call::{Change, Ended, Outcome, StatusEvent};
use sipstuff_operator::status_log::StatusLog;

use super::load::{Connection, Samples, memory_kb};
use super::report::{Expected, Row};
use super::requests;
use super::support::process::Scratch;
use super::support::{NatsServer, Operator, OperatorOptions};

/// Calls in the log.
pub(crate) const COUNT: usize = 100_000;
/// Stories that are written at once.
const PIPELINE: usize = 1024;
const REBUILD: Expected = Expected::AtMost(1.5);
/// 400 MB for a million.
const BYTES_PER_CALL: Expected = Expected::AtMost(400.0);
const PAGE_P99_MS: Expected = Expected::AtMost(10.0);
const PAGES: usize = 300;

pub(crate) async fn measure(rounds: usize, count: usize) -> Vec<Row> {
    let (nats, state) = (NatsServer::start().await, Scratch::new("state"));
    let jetstream = requests::jetstream(&nats).await;
    requests::ensure_streams(&jetstream, 1).await;
    let options = OperatorOptions::local(&nats, state.path()).env("RUST_LOG", "info").env("MAX_ACTIVE_CALLS", 1);
    let idle = idle(&options).await;
    write(&jetstream, count).await;
    let (mut times, mut peak, mut resident) = (Vec::new(), 0.0_f64, 0.0_f64);
    for round in 1..=rounds {
        let (ours, operator) = by_operator(&options).await;
        peak = peak.max(memory_kb(operator.pid(), "VmHWM:"));
        resident = resident.max(memory_kb(operator.pid(), "VmRSS:"));
        drop(operator);
        let raw = by_consumer(&jetstream, count).await;
        eprintln!("view: round {round}: {ours:.2} s, raw {raw:.2} s");
        times.push((ours, raw));
    }
    let mut rows = vec![
        Row::of_rounds("view.rebuild".to_owned(), format!("rebuild with {count} calls"), "s", &times).expect(REBUILD),
        Row::alone("view.peak_rss", format!("peak memory with {count} calls"), "MiB", peak / 1024.0),
        Row::alone(
            "view.bytes_per_call",
            "resident memory for each",
            "bytes",
            (resident - idle) * 1024.0 / count as f64,
        ),
        Row::alone("view.peak_bytes_per_call", "at the peak", "bytes", (peak - idle) * 1024.0 / count as f64)
            .expect(BYTES_PER_CALL),
    ];
    rows.extend(pages(&options, count).await);
    rows
}

/// What an operator needs without any call, in KiB.
async fn idle(options: &OperatorOptions) -> f64 {
    let operator = Operator::start(options.clone()).await;
    memory_kb(operator.pid(), "VmHWM:")
}

/// Seconds from the start of the process until `/readyz` says that the view has caught up.
async fn by_operator(options: &OperatorOptions) -> (f64, Operator) {
    let begin = Instant::now();
    let operator = Operator::start_unready(options.clone()).await;
    let mut connection = Connection::open(operator.base()).await;
    loop {
        let answer = connection.get("/readyz").await;
        if answer.status == 200 {
            return (begin.elapsed().as_secs_f64(), operator);
        }
        assert!(begin.elapsed() < Duration::from_secs(300), "{}", String::from_utf8_lossy(answer.body));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Seconds until an ordered consumer, last per subject, has everything.
async fn by_consumer(jetstream: &Context, count: usize) -> f64 {
    let begin = Instant::now();
    let config = OrderedConfig {
        deliver_policy: DeliverPolicy::LastPerSubject,
        filter_subject: "sip.status.*".to_owned(),
        ..Default::default()
    };
    let consumer = jetstream.create_consumer_on_stream(config, "SIP_STATUS").await.expect("an ordered consumer");
    let mut messages = consumer.messages().await.expect("its messages");
    let mut read = 0;
    while let Some(message) = messages.next().await {
        let message = message.expect("a message");
        read += 1;
        if message.info().expect("a message of a consumer").pending == 0 {
            break;
        }
    }
    assert_eq!(read, count, "a record of every call");
    begin.elapsed().as_secs_f64()
}

/// Pages as people and programs ask for them, one after the other.
async fn pages(options: &OperatorOptions, count: usize) -> Vec<Row> {
    let (_, operator) = by_operator(options).await;
    let mut connection = Connection::open(operator.base()).await;
    let deep = deep_cursor(&mut connection, count).await;
    let targets = [
        ("view.page", "100 newest", "/jobs?limit=100".to_owned()),
        ("view.page_status", "100 newest that failed", "/jobs?limit=100&status=failed".to_owned()),
        ("view.page_batch", "100 newest of a batch", "/jobs?limit=100&batch=bench".to_owned()),
        ("view.page_rare", "all running ones of a batch", "/jobs?limit=100&batch=bench&status=running".to_owned()),
        ("view.page_deep", "100 far behind", format!("/jobs?limit=100&cursor={deep}")),
    ];
    let mut rows = Vec::new();
    for (key, what, target) in targets {
        let samples = ask(&mut connection, &target).await;
        let latency = samples.latency();
        let row = Row::alone(key, format!("page: {what}, p99"), "ms", latency.p99_ms);
        rows.push(row.latencies(latency, None).expect(PAGE_P99_MS));
    }
    rows
}

async fn ask(connection: &mut Connection, target: &str) -> Samples {
    let begin = Instant::now();
    let mut micros = Vec::with_capacity(PAGES);
    for _ in 0..PAGES {
        let begun = Instant::now();
        let answer = connection.get(target).await;
        assert_eq!(answer.status, 200, "{target}");
        micros.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
    Samples { micros, total: begin.elapsed() }
}

/// Goes so far by pages of a thousand that half of the calls, or fifty pages, lie behind.
async fn deep_cursor(connection: &mut Connection, count: usize) -> String {
    let mut target = "/jobs?limit=1000".to_owned();
    for _ in 0..(count / 2000).clamp(1, 50) {
        let answer = connection.get(&target).await;
        let link = answer.head.split_once("link: <").and_then(|(_, rest)| rest.split_once('>'));
        target = link.expect("there is a next page").0.to_owned();
    }
    target.split_once("cursor=").expect("a cursor in the link").1.split('&').next().unwrap_or_default().to_owned()
}

/// Writes the stories of so many calls, as many of one status as of another to a factor.
async fn write(jetstream: &Context, count: usize) {
    let retention = Duration::from_secs(72 * 3600);
    let log = StatusLog::open(jetstream.clone(), &requests::stream_settings().names, retention).await;
    let log = log.expect("the status log");
    let begin = Instant::now();
    let first = Timestamp::now() - SignedDuration::from_millis(i64::try_from(count).expect("a small number"));
    let stories = (0..count).map(|number| {
        let moment = first + SignedDuration::from_millis(i64::try_from(number).expect("a small number"));
        let log = log.clone();
        async move {
            let mut after = 0;
            for event in story(number, moment) {
                after = log.append(event, after).await.expect("an append").sequence;
            }
        }
    });
    stream::iter(stories).buffer_unordered(PIPELINE).collect::<()>().await;
    eprintln!("view: {count} calls written in {:.0} s", begin.elapsed().as_secs_f64());
}

/// What becomes of the n-th call: of a thousand 899 succeed, 100 fail and one is running.
fn story(number: usize, moment: Timestamp) -> Vec<StatusEvent> {
    let running = [
        Change::Pending {
            attempt: 1,
            cluster: "bench".into(),
            namespace: "bench".into(),
            trunk: "default".into(),
            ends_by: Timestamp::UNIX_EPOCH,
        },
        Change::Running { started_at: moment },
    ];
    let mut events = vec![
        StatusEvent::first(&requests::call(number), "bench", moment, Change::Queued, moment).expect("a call begins"),
    ];
    let end = (number % 1000 != 999).then(|| Change::Ended(end(!number.is_multiple_of(10), moment)));
    for change in running.into_iter().chain(end) {
        let next = events.last().map(|last| last.next(change, moment).expect("a legal step"));
        events.extend(next);
    }
    events
}

fn end(succeeded: bool, moment: Timestamp) -> Ended {
    let (outcome, code) = if succeeded { (Outcome::Answered, 200) } else { (Outcome::Busy, 486) };
    let message = format!(
        "12:00:01 | INFO     | sipstuff.sip - Call state: CALLING\n12:00:09 | INFO     | sipstuff.sip - Call state: \
         DISCONNECTED (last code: {code})\n12:00:09 | INFO     | sipstuff.cli - the call has ended\n"
    );
    Ended {
        outcome,
        sip_code: Some(code),
        exit_code: Some(i32::from(!succeeded)),
        completed_at: moment,
        reason: None,
        message: Some(message),
        evidence: None,
        redial: false,
    }
}
