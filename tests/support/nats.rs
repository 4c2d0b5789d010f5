//! A real nats-server with JetStream, which can be killed and started again on the same port and store.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::process::{Process, Scratch, free_port, tool};

/// How the server is set up.
#[derive(Debug, Clone, Default)]
pub struct NatsOptions {
    /// Largest message in bytes; the server's default is 1 MiB.
    pub max_payload: Option<u32>,
    /// More lines for its configuration file.
    pub config: String,
    /// More lines for the `jetstream` block of it.
    pub jetstream: String,
    /// Whether it goes without JetStream.
    pub without_jetstream: bool,
    /// Where its store is; by default in a folder that goes with it.
    pub store: Option<PathBuf>,
}

/// A running server; its store goes with it.
#[derive(Debug)]
pub struct NatsServer {
    process: Mutex<Option<Process>>,
    port: u16,
    folder: Scratch,
}

impl NatsServer {
    /// Starts a server, and returns once it answers.
    ///
    /// # Panics
    /// When it does not.
    pub async fn start() -> Self {
        Self::start_with(NatsOptions::default()).await
    }

    /// The same, set up differently.
    ///
    /// # Panics
    /// When it does not start, with what it says.
    pub async fn start_with(options: NatsOptions) -> Self {
        let folder = Scratch::new("nats");
        for _ in 0..10 {
            let port = free_port();
            write_config(&folder, port, &options);
            match launch(&folder).await {
                Ok(process) => return Self { process: Mutex::new(Some(process)), port, folder },
                Err(log) if log.contains("address already in use") => {}
                Err(log) => panic!("nats-server does not start:\n{log}"),
            }
        }
        panic!("nats-server found ten ports in use one after the other");
    }

    /// `nats://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// `http://127.0.0.1:PORT` of its monitoring port, another one after a restart.
    ///
    /// # Panics
    /// When it does not run.
    pub fn monitoring_url(&self) -> String {
        let pid = self.pid().expect("it runs");
        let file = self.folder.join(format!("nats-server_{pid}.ports"));
        let deadline = Instant::now() + Duration::from_secs(10);
        // The server may be about to write it.
        loop {
            let ports =
                std::fs::read(&file).ok().and_then(|ports| serde_json::from_slice::<serde_json::Value>(&ports).ok());
            match ports.as_ref().and_then(|ports| ports["monitoring"][0].as_str()) {
                Some(address) => return address.to_owned(),
                None => assert!(Instant::now() < deadline, "{} has no address", file.display()),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its port, the same after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A new connection. It reconnects by itself after a restart.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn client(&self) -> async_nats::Client {
        async_nats::ConnectOptions::new()
            .reconnect_delay_callback(|_| Duration::from_millis(50))
            .connect(self.url())
            .await
            .unwrap_or_else(|error| panic!("{} does not take a connection: {error}", self.url()))
    }

    /// JetStream over a new connection.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn jetstream(&self) -> async_nats::jetstream::Context {
        async_nats::jetstream::new(self.client().await)
    }

    /// Kills it with SIGKILL; the store stays.
    pub fn kill(&self) {
        if let Some(process) = self.lock().as_mut() {
            process.kill9();
        }
    }

    /// Sends it a signal, such as SIGSTOP.
    pub fn signal(&self, signal: Signal) {
        if let Some(process) = self.lock().as_mut() {
            process.signal(signal);
        }
    }

    /// Sets it up anew while it runs; what cannot be changed then is as before.
    pub fn reload(&self, options: &NatsOptions) {
        write_config(&self.folder, self.port, options);
        self.signal(Signal::SIGHUP);
    }

    /// Publishes a header block as it is, which no client library would do.
    ///
    /// # Panics
    /// When the server does not take it.
    pub async fn publish_raw(&self, subject: &str, headers: &[u8], body: &[u8]) {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.expect("a connection");
        let mut bytes = b"CONNECT {\"verbose\":false,\"headers\":true}\r\n".to_vec();
        bytes.extend(format!("HPUB {subject} {} {}\r\n", headers.len(), headers.len() + body.len()).bytes());
        bytes.extend([headers, body, b"\r\nPING\r\n"].concat());
        stream.write_all(&bytes).await.expect("the server reads");
        let mut answer = Vec::new();
        while !answer.windows(6).any(|window| window == b"PONG\r\n") {
            let read = stream.read_buf(&mut answer).await.expect("the server answers");
            assert_ne!(read, 0, "{}", String::from_utf8_lossy(&answer));
        }
    }

    /// Stops it in good order; the store stays.
    ///
    /// # Panics
    /// When it does not stop within ten seconds.
    pub async fn stop(&self) {
        let process = self.lock().take();
        if let Some(mut process) = process {
            process.signal(Signal::SIGTERM);
            process.wait(Duration::from_secs(10)).await;
        }
    }

    /// Starts it again on the same port and store; kills it first if it runs. Returns once it answers.
    ///
    /// # Panics
    /// When it does not.
    pub async fn restart(&self) {
        self.kill();
        let begin = Instant::now();
        loop {
            match launch(&self.folder).await {
                Ok(process) => {
                    *self.lock() = Some(process);
                    return;
                }
                Err(log) if begin.elapsed() > Duration::from_secs(5) => panic!("nats-server does not restart:\n{log}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Its process number, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.lock().as_mut().and_then(|process| process.ended().is_none().then(|| process.pid()))
    }

    /// All that it has logged, also before a restart.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().expect("no panic while the lock is held")
    }
}

fn write_config(folder: &Scratch, port: u16, options: &NatsOptions) {
    let max_payload = options.max_payload.map(|bytes| format!("max_payload: {bytes}\n")).unwrap_or_default();
    let store = options.store.clone().unwrap_or_else(|| folder.join("store"));
    let jetstream = format!("jetstream {{\nstore_dir: {store:?}\n{}\n}}", options.jetstream);
    let jetstream = if options.without_jetstream { "" } else { &jetstream };
    let config = format!(
        "listen: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:-1\"\nports_file_dir: {:?}\n{jetstream}\n{max_payload}{}\n",
        folder.path(),
        options.config
    );
    std::fs::write(folder.join("nats.conf"), config).expect("a file in a folder just made");
}

/// The server writes its ports into a file once it takes connections: that is its own word for being ready, and it cannot be
/// another server's.
async fn launch(folder: &Scratch) -> Result<Process, String> {
    let mut command = Command::new(binary());
    command.arg("--config").arg(folder.join("nats.conf"));
    let mut process = Process::spawn("nats-server", command, &folder.join("log"));
    let ports = format!("nats-server_{}.ports", process.pid());
    let begin = Instant::now();
    while !folder.join(&ports).exists() {
        if process.ended().is_some() || begin.elapsed() > Duration::from_secs(30) {
            return Err(process.tail());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(process)
}

fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| tool("NATS_SERVER", "nats-server"))
}
