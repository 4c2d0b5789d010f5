//! Load, and what it shows. The HTTP client is as light as one can be, since it shares the machine with what it measures.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Somebody who does one thing after the other.
pub(crate) trait Worker: Send + 'static {
    /// Does it once.
    fn once(&mut self) -> impl Future<Output = ()> + Send;
}

/// How long things took, in microseconds, and how long all of them together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples {
    pub(crate) micros: Vec<u32>,
    pub(crate) total: Duration,
}

/// Median and 99th percentile.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

impl Samples {
    pub(crate) fn rate(&self) -> f64 {
        self.micros.len() as f64 / self.total.as_secs_f64()
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.micros.extend(other.micros);
        self.total += other.total;
    }

    pub(crate) fn latency(&self) -> Latency {
        let mut sorted = self.micros.clone();
        sorted.sort_unstable();
        let at = |percent: usize| sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)));
        let milliseconds = |percent| at(percent).map_or(f64::NAN, |micros| f64::from(*micros) / 1000.0);
        Latency { p50_ms: milliseconds(50), p99_ms: milliseconds(99) }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} / {:.2}", self.p50_ms, self.p99_ms)
    }
}

/// Lets all of them work for that long, side by side.
pub(crate) async fn work<W: Worker>(workers: &mut Vec<W>, time: Duration) -> Samples {
    let begin = Instant::now();
    let tasks: Vec<_> = workers
        .drain(..)
        .map(|mut worker| {
            tokio::spawn(async move {
                let mut micros = Vec::new();
                while begin.elapsed() < time {
                    let begun = Instant::now();
                    worker.once().await;
                    micros.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
                }
                (worker, micros)
            })
        })
        .collect();
    let mut samples = Samples::default();
    for task in tasks {
        let (worker, micros) = task.await.expect("a worker does its work");
        workers.push(worker);
        samples.micros.extend(micros);
    }
    samples.total = begin.elapsed();
    samples
}

/// A connection to the operator that is kept.
pub(crate) struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
}

/// What was answered.
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) head: &'a str,
    pub(crate) body: &'a [u8],
}

impl Connection {
    /// To `http://HOST:PORT`.
    pub(crate) async fn open(base: &str) -> Self {
        let address = base.strip_prefix("http://").expect("an HTTP address");
        let stream = TcpStream::connect(address).await.expect("the operator listens");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        Self { stream, answer: Vec::with_capacity(4096) }
    }

    pub(crate) async fn get(&mut self, target: &str) -> Answer<'_> {
        let request = format!("GET {target} HTTP/1.1\r\nhost: bench\r\n\r\n");
        self.ask(request.as_bytes()).await
    }

    /// Sends a whole request and reads a whole answer, which must have a `content-length`, as the operator's have.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> Answer<'_> {
        self.stream.write_all(request).await.expect("the operator takes the request");
        self.answer.clear();
        let (body, end) = loop {
            let read = self.stream.read_buf(&mut self.answer).await.expect("the operator answers");
            assert!(read > 0, "the operator closed the connection");
            match measures(&self.answer) {
                Some((body, end)) if self.answer.len() >= end => break (body, end),
                _ => {}
            }
        };
        let head = std::str::from_utf8(&self.answer[..body]).expect("a head is ASCII");
        let status = head.get(9..12).and_then(|code| code.parse().ok()).expect("a status line");
        Answer { status, head, body: &self.answer[body..end] }
    }
}

/// Where the body begins and ends.
fn measures(answer: &[u8]) -> Option<(usize, usize)> {
    let body = answer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&answer[..body]).ok()?;
    let (_, rest) = head.split_once("content-length: ")?;
    let length: usize = rest.split("\r\n").next()?.parse().ok()?;
    Some((body, body + length))
}

/// A figure of a process, such as `VmHWM`, in KiB (Linux).
pub(crate) fn memory_kb(pid: u32, what: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process on Linux");
    let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("a process that has not ended");
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse().expect("a number")
}

/// What a process has used of the processors, in seconds (Linux, which counts in hundredths).
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process on Linux");
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    // Fields 14 and 15 of the line; the first two end with the bracket.
    fields.skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("a number")).sum::<f64>() / 100.0
}
