//! The two servers, on ports that were free, in folders that go with them. However this process ends, by a panic or by SIGKILL
//! too, they do not outlive it: the tests' own [`process`] sees to that.

#[allow(dead_code, unreachable_pub)]
#[path = "../../tests/support/process.rs"]
mod process;

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use self::process::{Process, Scratch, signal_group};

/// Calls in progress at once: few enough that some have to wait their turn.
pub(crate) const MAX_ACTIVE_CALLS: usize = 10;
/// How long a server may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the operator logs once it listens, before the port.
const LISTENING: &str = "listening on ";
/// How much of its log is shown when something fails.
const TAIL_LINES: usize = 20;

/// Both servers, ready. The fields are dropped in this order: first the operator, which needs the other.
pub(crate) struct Stage {
    operator: Operator,
    _nats: Process,
    _nats_folder: Scratch,
    /// For HTTP requests.
    pub(crate) http: reqwest::Client,
    /// `http://127.0.0.1:PORT`.
    pub(crate) base: String,
    /// `nats://127.0.0.1:PORT`.
    pub(crate) nats_url: String,
    /// Where the NATS server logs.
    pub(crate) nats_log: PathBuf,
}

impl Stage {
    /// Starts both, and returns once the operator is ready to dial.
    pub(crate) async fn set() -> Result<Self> {
        let nats_folder = Scratch::new("nats");
        let nats_log = nats_folder.join("log");
        let (nats, nats_url, monitoring) = start_nats(&nats_folder).await?;
        let mut operator = Operator::start(&nats_url, &monitoring)?;
        let base = operator.listening().await?;
        // This machine is not reached through whatever proxy the environment names.
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
        let stage = Self { operator, _nats: nats, _nats_folder: nats_folder, http, base, nats_url, nats_log };
        stage.ready().await?;
        Ok(stage)
    }

    async fn ready(&self) -> Result<()> {
        let begin = Instant::now();
        loop {
            let answer = self.http.get(format!("{}/readyz", self.base)).send().await?;
            if answer.status().is_success() {
                return Ok(());
            }
            if begin.elapsed() > PATIENCE {
                let log = self.operator_log_tail();
                bail!("the operator is not ready after {PATIENCE:?}: {}\n{log}", answer.text().await?);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the operator as a service manager would, and checks that it ends in order.
    pub(crate) async fn strike(mut self) -> Result<()> {
        self.operator.process.signal(Signal::SIGTERM);
        let status = self.operator.process.wait(PATIENCE).await;
        if !status.success() {
            bail!("on SIGTERM the operator did not end in order ({status})\n{}", self.operator_log_tail());
        }
        Ok(())
    }

    /// Where the operator logs.
    pub(crate) fn operator_log(&self) -> &Path {
        &self.operator.log
    }

    /// Where each call has its log.
    pub(crate) fn call_logs(&self) -> PathBuf {
        self.operator.state_dir.join("jobs")
    }

    /// The last lines of the operator's log.
    pub(crate) fn operator_log_tail(&self) -> String {
        tail(&self.operator.process.log())
    }
}

/// The server, its address and that of its monitoring port.
async fn start_nats(folder: &Scratch) -> Result<(Process, String, String)> {
    let mut command = Command::new(tool("NATS_SERVER")?);
    command.arg("--config").arg(write_config(folder)?);
    let mut process = Process::spawn("nats-server", command, &folder.join("log"));
    let ports = folder.join(format!("nats-server_{}.ports", process.pid()));
    let begin = Instant::now();
    loop {
        let text = fs::read(&ports).unwrap_or_default();
        if let (Some(url), Some(monitoring)) = (first_url(&text, "nats"), first_url(&text, "monitoring")) {
            return Ok((process, url, monitoring));
        }
        if process.ended().is_some() || begin.elapsed() > PATIENCE {
            bail!("the NATS server does not start; its log:\n{}", tail(&process.log()));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Ports of the server's own choice, which it writes into a file once it takes connections; and every message synced to the
/// disk before it is acknowledged, which has no flag of its own.
fn write_config(folder: &Scratch) -> Result<PathBuf> {
    let (path, store) = (folder.join("nats.conf"), folder.join("store"));
    let config = format!(
        "listen: \"127.0.0.1:-1\"\nhttp: \"127.0.0.1:-1\"\nports_file_dir: {:?}\n\
         jetstream {{ store_dir: {store:?}, sync_interval: always }}\n",
        folder.path()
    );
    fs::write(&path, config)?;
    Ok(path)
}

fn first_url(ports: &[u8], of: &str) -> Option<String> {
    let ports: Value = serde_json::from_slice(ports).ok()?;
    ports[of][0].as_str().map(str::to_owned)
}

/// The operator, running calls as processes of this machine.
struct Operator {
    process: Process,
    log: PathBuf,
    state_dir: PathBuf,
    _folder: Scratch,
}

impl Operator {
    fn start(nats_url: &str, monitoring: &str) -> Result<Self> {
        let binary = tool("SIPSTUFF_OPERATOR")?;
        let folder = Scratch::new("operator");
        let (log, state_dir) = (folder.join("log"), folder.join("state"));
        let mut command = Command::new(&binary);
        // None of the reader's own settings, and no colours in a file.
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("NO_COLOR", "1");
        command
            .env("NATS_URL", nats_url)
            .env("NATS_MONITORING_URL", monitoring)
            .env("PORT", "0")
            .env("ADMIN_PORT", "0")
            .env("MAX_ACTIVE_CALLS", MAX_ACTIVE_CALLS.to_string())
            // A callee that is always refused or congested is tried once more, and not for an hour.
            .env("FAULT_PATIENCE", "1s");
        command.env("RUNNER", "local").env("STATE_DIR", &state_dir);
        command.env("LOCAL_CALLER", format!("'{}' simulate-call", binary.to_string_lossy()));
        Ok(Self { process: Process::spawn("operator", command, &log), log, state_dir, _folder: folder })
    }

    /// Its address, which it logs.
    async fn listening(&mut self) -> Result<String> {
        let begin = Instant::now();
        while self.process.ended().is_none() && begin.elapsed() < PATIENCE {
            let log = self.process.log();
            let line = log.lines().find_map(|line| line.split_once(LISTENING));
            if let Some((_, address)) = line {
                return Ok(address.trim().to_owned());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bail!("the operator does not start to listen; its log:\n{}", tail(&self.process.log()))
    }
}

impl Drop for Operator {
    /// Calls in progress outlive the operator, which is the point of the local runner; here they are to end.
    fn drop(&mut self) {
        self.process.kill9();
        let begin = Instant::now();
        while end_calls(&self.state_dir.join("jobs")) && begin.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Ends the calls whose folders are here; true when one still lives.
fn end_calls(jobs: &Path) -> bool {
    let Ok(folders) = fs::read_dir(jobs) else { return false };
    let alive = folders.flatten().map(|entry| entry.path()).filter(|folder| is_locked(&folder.join("lock")));
    // All of them, not only up to the first.
    alive.inspect(|folder| end_call(folder)).count() > 0
}

fn end_call(folder: &Path) {
    // For one that is about to begin, and for one that has begun.
    let _ = File::create(folder.join("stop"));
    let started = fs::read(folder.join("started")).ok();
    let started: Option<Value> = started.and_then(|text| serde_json::from_slice(&text).ok());
    let group = started.and_then(|started| u32::try_from(started["group"].as_u64()?).ok());
    if let Some(group) = group.filter(|_| is_locked(&folder.join("alive"))) {
        signal_group(group, Signal::SIGKILL);
    }
}

/// Held by a process that lives.
fn is_locked(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)))
}

/// A program that `make` has built and names in a variable.
fn tool(variable: &str) -> Result<PathBuf> {
    let path: OsString =
        std::env::var_os(variable).with_context(|| format!("{variable} is not set; start me by `make demo`"))?;
    fs::canonicalize(&path).with_context(|| format!("{variable}={}", path.to_string_lossy()))
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
