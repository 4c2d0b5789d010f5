//! The operator's own binary as a process: started with nothing but what a test gives it, killed with its handle.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::control_plane::Namespace;
use super::http::http_client;
use super::nats::NatsServer;
use super::process::{Process, Scratch};

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_sipstuff-operator");
/// What the operator logs when it listens, before its address.
const LISTENING: &str = "listening on http://";
/// The same for probes and metrics.
const ADMIN: &str = "probes and metrics on http://";
/// How long it may take to listen, and to be ready.
const START: Duration = Duration::from_secs(30);

/// Where its calls run.
#[derive(Debug, Clone)]
pub enum Runner {
    /// On this machine.
    Local {
        /// `STATE_DIR`, which outlives a restart.
        state_dir: PathBuf,
        /// `LOCAL_CALLER`: what stands in for `python3 -m sipstuff.cli`.
        caller: String,
    },
    /// In a cluster.
    Kubernetes {
        /// `KUBECONFIG`.
        kubeconfig: PathBuf,
        /// `JOB_NAMESPACE`.
        namespace: String,
    },
}

/// How an operator is started. Nothing of the test's own environment reaches it.
#[derive(Debug, Clone)]
pub struct OperatorOptions {
    /// `NATS_URL`.
    pub nats_url: String,
    /// Where its calls run.
    pub runner: Runner,
    /// More variables; they win over those that the options make.
    pub env: Vec<(String, String)>,
    /// `FAILPOINTS`: where the process is to crash or stall.
    pub failpoints: Option<String>,
}

impl OperatorOptions {
    /// Calls simulated on this machine.
    pub fn local(nats: &NatsServer, state_dir: &Path) -> Self {
        // It is split into words as a shell does.
        let caller = format!("'{BINARY}' simulate-call");
        Self::new(nats, Runner::Local { state_dir: state_dir.to_owned(), caller })
    }

    /// Jobs in a namespace of a test's control plane.
    pub fn kubernetes(nats: &NatsServer, namespace: &Namespace) -> Self {
        let (kubeconfig, namespace) = (namespace.kubeconfig.clone(), namespace.name.clone());
        Self::new(nats, Runner::Kubernetes { kubeconfig, namespace })
    }

    fn new(nats: &NatsServer, runner: Runner) -> Self {
        // A trunk begins with a few calls at once until the first has worked, which most tests are not about.
        Self { nats_url: nats.url(), runner, env: Vec::new(), failpoints: None }.env("BREAKER_FAILURES", 0)
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    /// Sets `FAILPOINTS`, such as `dialler::before_ack=1*off->exit(9)`.
    ///
    /// # Panics
    /// When the binary is built without them.
    #[must_use]
    pub fn failpoints(mut self, failpoints: &str) -> Self {
        if cfg!(not(feature = "failpoints")) {
            panic!("run `make test`, or `cargo test --features failpoints`");
        }
        self.failpoints = Some(failpoints.to_owned());
        self
    }

    /// Uses another address of NATS, such as that of a proxy.
    #[must_use]
    pub fn nats_url(mut self, url: String) -> Self {
        self.nats_url = url;
        self
    }

    fn command(&self, home: &Path) -> Command {
        let mut command = Command::new(BINARY);
        command
            .env_clear()
            .current_dir(home)
            .env("HOME", home)
            .env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOST", "127.0.0.1").env("PORT", "0").env("ADMIN_PORT", "0").env("NATS_URL", &self.nats_url);
        command.env("RUST_LOG", "info,sipstuff_operator=debug,sipstuff_operator::http=info").env("RUST_BACKTRACE", "1");
        match &self.runner {
            Runner::Local { state_dir, caller } => {
                command.env("RUNNER", "local").env("STATE_DIR", state_dir).env("LOCAL_CALLER", caller)
            }
            Runner::Kubernetes { kubeconfig, namespace } => {
                command.env("RUNNER", "kubernetes").env("KUBECONFIG", kubeconfig).env("JOB_NAMESPACE", namespace)
            }
        };
        command.envs(self.failpoints.iter().map(|failpoints| ("FAILPOINTS", failpoints)));
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// A running operator. When it is dropped because a test panics, the end of its log is shown.
#[derive(Debug)]
pub struct Operator {
    process: Process,
    base: String,
    options: OperatorOptions,
    _home: Scratch,
}

impl Operator {
    /// Starts an operator and returns once `/readyz` says 200.
    ///
    /// # Panics
    /// When it does not get ready.
    pub async fn start(options: OperatorOptions) -> Self {
        let mut operator = Self::start_unready(options).await;
        operator.ready().await;
        operator
    }

    /// Starts several with the same options, side by side.
    ///
    /// # Panics
    /// When one does not get ready.
    pub async fn start_replicas(options: &OperatorOptions, count: usize) -> Vec<Self> {
        futures::future::join_all((0..count).map(|_| Self::start(options.clone()))).await
    }

    /// Starts an operator and returns once it listens.
    ///
    /// # Panics
    /// When it ends or says nothing in time.
    pub async fn start_unready(options: OperatorOptions) -> Self {
        let home = Scratch::new("operator");
        let process = Process::spawn("sipstuff-operator", options.command(home.path()), &home.join("log"));
        let mut operator = Self { process, base: String::new(), options, _home: home };
        operator.base = operator.listening().await;
        operator
    }

    /// Starts an operator that is expected to end by itself, and returns how it did and what it said.
    ///
    /// # Panics
    /// When it does not end within 30 seconds.
    pub async fn run_to_end(options: OperatorOptions) -> (ExitStatus, String) {
        let home = Scratch::new("operator");
        let mut process = Process::spawn("sipstuff-operator", options.command(home.path()), &home.join("log"));
        let status = process.wait(START).await;
        (status, process.log())
    }

    /// The same operator anew: a new process with the same options, after this one is dead.
    ///
    /// # Panics
    /// When it does not get ready.
    pub async fn restart(mut self) -> Self {
        self.kill9();
        Self::start(self.options.clone()).await
    }

    /// `http://127.0.0.1:PORT`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The same of the listener for probes and metrics.
    ///
    /// # Panics
    /// When it has not said where that is.
    pub fn admin(&self) -> String {
        address_after(&self.log(), ADMIN).expect("it logs both addresses before it is ready")
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// Kills it with SIGKILL; its local calls carry on.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Sends a signal, such as SIGCONT.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Stops it with SIGSTOP, until it gets SIGCONT.
    pub fn freeze(&mut self) {
        self.process.freeze();
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn terminate(&mut self, timeout: Duration) -> ExitStatus {
        self.process.signal(Signal::SIGTERM);
        self.process.wait(timeout).await
    }

    /// Waits until it has ended by itself, such as by a failpoint.
    ///
    /// # Panics
    /// When it does not in time.
    pub async fn wait(&mut self, timeout: Duration) -> ExitStatus {
        self.process.wait(timeout).await
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Resident memory in KiB (Linux).
    ///
    /// # Panics
    /// When it does not run.
    pub fn rss_kb(&self) -> u64 {
        self.status_kb("VmRSS:")
    }

    /// The part of [`Self::rss_kb`] that is the process's own data, without the pages of its program file (Linux).
    ///
    /// # Panics
    /// When it does not run.
    pub fn data_kb(&self) -> u64 {
        self.status_kb("RssAnon:")
    }

    fn status_kb(&self, field: &str) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a running process on Linux");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a process that has not ended");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// How many files and sockets it has open (Linux).
    ///
    /// # Panics
    /// When it does not run.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("a running process on Linux").count()
    }

    /// Waits until `/readyz` says 200.
    ///
    /// # Panics
    /// When it does not within 30 seconds.
    pub async fn ready(&mut self) {
        let (client, url, begin) = (http_client(), format!("{}/readyz", self.base), Instant::now());
        loop {
            let answer = client.get(&url).send().await;
            if answer.as_ref().is_ok_and(|answer| answer.status() == 200) {
                return;
            }
            self.must_go_on(begin, &format!("is not ready: {answer:?}"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn listening(&mut self) -> String {
        let begin = Instant::now();
        loop {
            let log = self.log();
            if let Some(address) = address_after(&log, LISTENING) {
                return address;
            }
            self.must_go_on(begin, &format!("does not say `{LISTENING}…`"));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn must_go_on(&mut self, begin: Instant, problem: &str) {
        // The log follows: it is shown when a handle is dropped in a panic.
        if let Some(status) = self.process.ended() {
            panic!("the operator has ended ({status}) and {problem}");
        }
        assert!(begin.elapsed() < START, "after {START:?} the operator {problem}");
    }
}

/// The address that a log names after these words.
fn address_after(log: &str, words: &str) -> Option<String> {
    let (_, rest) = log.split_once(words)?;
    let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'))?;
    Some(format!("http://{}", &rest[..end]))
}
