//! Clients that take all they can get: whatever they do, probes are answered and memory stays bounded.

use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{Operator, PATIENCE, Setup, eventually, get_json, post_call, request_of};

/// More than the API serves at a time.
const CLIENTS: usize = 1_100;
/// What each says that it will send, and what it does send: nearly as much as a body may have.
const DECLARED: usize = 500_000;
const SENT: usize = 450_000;
/// The 32 MiB that all bodies share, and 64 KiB for each of 1,024 connections (what is free of a body, the piece that waits for
/// its share, the read buffer, the rest of a request); a quarter on top for the allocator.
const GROWTH_KB: u64 = (32 + 64) * 1024 * 5 / 4;

/// Sends most of a body, as far as the server takes it, and keeps the connection.
async fn unfinished_body(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("the backlog has room");
    let head = format!("POST /call HTTP/1.1\r\nhost: x\r\ncontent-length: {DECLARED}\r\n\r\n");
    let body = [head.as_bytes(), &vec![b' '; SENT]].concat();
    // A server that takes no more, or has answered already, is what is tested here.
    let _ = tokio::time::timeout(Duration::from_secs(5), stream.write_all(&body)).await;
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_bodies_on_every_connection_neither_stop_probes_nor_fill_the_memory() {
    let setup = Setup::local(0.2).await;
    let operator = setup.operator().await;
    let before = operator.rss_kb();
    let address = operator.base().strip_prefix("http://").expect("an address").to_owned();
    let flood = tokio::spawn(async move { join_all((0..CLIENTS).map(|_| unfinished_body(&address))).await });
    let (mut slowest, mut largest) = (Duration::ZERO, before);
    while !flood.is_finished() {
        let begin = Instant::now();
        assert_eq!(get_json(&operator.admin(), "/readyz").await.status, 200);
        slowest = slowest.max(begin.elapsed());
        largest = largest.max(operator.rss_kb());
    }
    let clients = flood.await.expect("no client panics");
    println!("slowest probe {slowest:?}, memory {before} KiB before, {largest} KiB at the most");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(largest < before + GROWTH_KB, "{before} KiB before, {largest} KiB with {CLIENTS} unfinished bodies");
    drop(clients);
    eventually("calls are accepted again", PATIENCE, async || {
        post_call(operator.base(), &request_of("after-the-flood")).await.status == 202
    })
    .await;
}
