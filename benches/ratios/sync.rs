//! What it costs that nats-server syncs before it acknowledges (`sync_interval: always`, as in everything that is shipped): raw
//! publishes and accepted calls per second, beside the same on a server with its default of two minutes, in the same run.
//!
//! It rests on the disk: a sync takes a tenth of a millisecond on some, ten on others. So nothing is expected of it.

use std::time::Duration;

use bytes::Bytes;

use super::api::{Caller, Publisher, accepting};
use super::load::{Samples, Worker, work};
use super::report::Row;
use super::requests;
use super::support::process::Scratch;
use super::support::{NatsOptions, NatsServer, Operator};

const CONCURRENCIES: [usize; 3] = [1, 32, 256];
const TURN: Duration = Duration::from_secs(2);
const WARM_UP: Duration = Duration::from_millis(500);

/// One of the two servers, with an operator that accepts.
struct Side {
    jetstream: async_nats::jetstream::Context,
    operator: Operator,
    _nats: NatsServer,
    _state: Scratch,
}

impl Side {
    async fn with(jetstream: &str) -> Self {
        let options = NatsOptions { jetstream: jetstream.to_owned(), ..Default::default() };
        let (nats, state) = (NatsServer::start_with(options).await, Scratch::new("state"));
        let jetstream = requests::jetstream(&nats).await;
        let operator = accepting(&nats, &jetstream, &state).await;
        Self { jetstream, operator, _nats: nats, _state: state }
    }

    async fn callers(&self, count: usize) -> Vec<Caller> {
        let mut callers = Vec::new();
        for _ in 0..count {
            callers.push(Caller::of(&self.operator).await);
        }
        callers
    }

    fn publishers(&self, count: usize) -> Vec<Publisher> {
        let body = Bytes::from(requests::body());
        (0..count).map(|_| Publisher { jetstream: self.jetstream.clone(), body: body.clone() }).collect()
    }
}

pub(crate) async fn measure(rounds: usize) -> Vec<Row> {
    let (always, default) = (Side::with("sync_interval: always").await, Side::with("").await);
    let mut rows = Vec::new();
    for concurrency in CONCURRENCIES {
        eprintln!("sync: {concurrency} at a time");
        let publishers = (always.publishers(concurrency), default.publishers(concurrency));
        rows.push(compare("publish", "publishes, synced beside not", concurrency, rounds, publishers).await);
        let callers = (always.callers(concurrency).await, default.callers(concurrency).await);
        rows.push(compare("call", "POST /call, synced beside not", concurrency, rounds, callers).await);
    }
    rows
}

async fn compare<W: Worker>(
    key: &str,
    what: &str,
    concurrency: usize,
    rounds: usize,
    (mut synced, mut not): (Vec<W>, Vec<W>),
) -> Row {
    work(&mut synced, WARM_UP).await;
    work(&mut not, WARM_UP).await;
    let (mut with, mut without, mut rates) = (Samples::default(), Samples::default(), Vec::new());
    for _ in 0..rounds {
        let (a, b) = (work(&mut synced, TURN).await, work(&mut not, TURN).await);
        rates.push((a.rate(), b.rate()));
        with.add(a);
        without.add(b);
    }
    let what = format!("{what}, {concurrency} at a time");
    Row::of_rounds(format!("sync.{key}.{concurrency}"), what, "per s", &rates)
        .latencies(with.latency(), Some(without.latency()))
}
