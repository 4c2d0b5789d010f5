//! Three nats-servers on this machine that keep three copies of each stream: any of them can be stalled or killed while the other two
//! go on.

use std::time::Duration;

use async_nats::jetstream;
use nix::sys::signal::Signal;

use super::nats::{NatsOptions, NatsServer};
use super::process::free_port;
use super::wait::eventually_some;

/// How long an election may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const SIZE: usize = 3;

/// Three servers; their stores go with them.
#[derive(Debug)]
pub struct NatsCluster {
    /// The servers, in the order of their names.
    pub servers: Vec<NatsServer>,
}

impl NatsCluster {
    /// Starts the servers, and returns once they have agreed on a leader.
    ///
    /// # Panics
    /// When they do not.
    pub async fn start() -> Self {
        let ports: Vec<u16> = (0..SIZE).map(|_| free_port()).collect();
        let routes: Vec<String> = ports.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
        let mut servers = Vec::new();
        for (number, port) in ports.iter().enumerate() {
            let config = format!(
                "server_name: {}\ncluster {{ name: test, listen: \"127.0.0.1:{port}\", routes: [{}] }}",
                name(number),
                routes.join(", ")
            );
            servers.push(NatsServer::start_with(NatsOptions { config, ..NatsOptions::default() }).await);
        }
        let cluster = Self { servers };
        let js = cluster.servers[0].jetstream().await;
        let probe = || jetstream::stream::Config { name: "PROBE".to_owned(), num_replicas: SIZE, ..Default::default() };
        eventually_some("the servers keep streams", PATIENCE, async || js.create_stream(probe()).await.ok()).await;
        js.delete_stream("PROBE").await.expect("the stream that was just made");
        cluster
    }

    /// Which server leads a stream, by what this one knows.
    pub async fn leader_of(&self, stream: &str, asked: usize) -> usize {
        let js = self.servers[asked].jetstream().await;
        eventually_some(format!("{stream} has a leader"), PATIENCE, async || {
            let leader = js.get_stream(stream).await.ok()?.cached_info().cluster.as_ref()?.leader.clone()?;
            (0..SIZE).find(|number| name(*number) == leader)
        })
        .await
    }

    /// Stalls a server: it keeps its connections and does nothing.
    pub fn stall(&self, server: usize) {
        self.servers[server].signal(Signal::SIGSTOP);
    }

    /// Lets a stalled server go on where it was.
    pub fn go_on(&self, server: usize) {
        self.servers[server].signal(Signal::SIGCONT);
    }
}

fn name(number: usize) -> String {
    format!("n{number}")
}
