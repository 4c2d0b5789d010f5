//! What the operator needs of memory on Kubernetes: idle, and with a thousand running calls.

use std::time::{Duration, Instant};

use super::load::{Connection, memory_kb};
use super::report::{Expected, Row};
use super::requests;
use super::support::node::{self, NodeOptions, TestNode};
use super::support::{ControlPlane, NatsServer, Operator, OperatorOptions};

/// Running calls.
pub(crate) const COUNT: usize = 1000;
const IDLE: Expected = Expected::AtMost(20.0);
const BUSY: Expected = Expected::AtMost(60.0);
const PATIENCE: Duration = Duration::from_secs(300);

pub(crate) async fn measure(count: usize) -> Vec<Row> {
    let (plane, nats) = (ControlPlane::shared().await, NatsServer::start().await);
    let namespace = plane.namespace().await;
    let calls_last = Some(node::Instant { exit_code: 0, after: Duration::from_secs(3600) });
    let options = NodeOptions { instant: calls_last, ..NodeOptions::default() };
    let _node = TestNode::start(namespace.client.clone(), &namespace.name, options);
    let options = OperatorOptions::kubernetes(&nats, &namespace).env("RUST_LOG", "info").env("MAX_ACTIVE_CALLS", count);
    let operator = Operator::start(options).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let idle = memory_kb(operator.pid(), "VmRSS:") / 1024.0;
    requests::publish(&requests::jetstream(&nats).await, count).await;
    until_running(&operator, count).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let busy = memory_kb(operator.pid(), "VmRSS:") / 1024.0;
    let peak = memory_kb(operator.pid(), "VmHWM:") / 1024.0;
    vec![
        Row::alone("memory.idle", "resident memory, idle", "MiB", idle).expect(IDLE),
        Row::alone("memory.running", format!("resident memory, {count} running calls"), "MiB", busy).expect(BUSY),
        Row::alone("memory.running_peak", "peak memory on the way there", "MiB", peak),
    ]
}

async fn until_running(operator: &Operator, count: usize) {
    let mut connection = Connection::open(operator.base()).await;
    let begin = Instant::now();
    loop {
        let running = running(&mut connection).await;
        if running >= count {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "only {running} calls of {count} run");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Counts by small pages, so that what is measured does not come from large answers.
async fn running(connection: &mut Connection) -> usize {
    let (mut count, mut target) = (0, "/jobs?status=running&limit=100".to_owned());
    loop {
        let answer = connection.get(&target).await;
        assert_eq!(answer.status, 200, "{target}");
        let jobs: Vec<serde_json::Value> = serde_json::from_slice(answer.body).expect("a page");
        count += jobs.len();
        match answer.head.split_once("link: <").and_then(|(_, rest)| rest.split_once('>')) {
            Some((next, _)) => target = next.to_owned(),
            None => return count,
        }
    }
}
