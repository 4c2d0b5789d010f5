//! Processes and folders that never outlive the test process, not even when that is killed with SIGKILL.
//!
//! Every process is the leader of its own group, and its number stands as a file below one folder per test process. One
//! small shell, the janitor, holds the reading end of a pipe whose writing end only the test process has: when that ends,
//! however it ends, the janitor reads the end of file, kills the groups and removes the folder.

use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

const JANITOR: &str = r#"
trap '' INT TERM HUP
while read -r _; do :; done
for group in "$1"/pids/*; do kill -s KILL -- "-${group##*/}"; done
tries=0
until rm -rf -- "$1" || [ $tries -ge 50 ]; do tries=$((tries + 1)); sleep 0.1; done
"#;

/// How much of a log is shown when a test fails.
const SHOWN_LINES: usize = 60;

/// The folder of this test process; `pids/` in it is the janitor's.
fn root() -> &'static Path {
    static ROOT: OnceLock<(PathBuf, Child)> = OnceLock::new();
    let (root, _janitor) = ROOT.get_or_init(|| {
        let root = tempfile::Builder::new().prefix("sipstuff-test-").tempdir().expect("a temporary folder").keep();
        std::fs::create_dir(root.join("pids")).expect("a folder in a folder just made");
        let janitor = Command::new("sh")
            .args(["-c", JANITOR, "janitor"])
            .arg(&root)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C is for the test process; the janitor has work to do after it.
            .process_group(0)
            .spawn()
            .expect("`sh` starts");
        (root, janitor)
    });
    root
}

/// A folder that is removed with its handle.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes an empty folder; `what` is the beginning of its name.
    pub fn new(what: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let path = root().join(format!("{what}-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&path).expect("a folder of a new name");
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path of something in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is still written there, the janitor removes at the end.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Records a process group that the janitor is to kill; forgets it on drop.
#[derive(Debug)]
pub struct Guarded(PathBuf);

impl Guarded {
    /// Records the group led by `pid`.
    pub fn new(pid: u32) -> Self {
        let file = root().join("pids").join(pid.to_string());
        File::create(&file).expect("a file in the janitor's folder");
        Self(file)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A process with a log, killed with its whole group on drop. When that happens because a test panics, the end of the log is
/// shown.
#[derive(Debug)]
pub struct Process {
    what: String,
    child: Child,
    log: PathBuf,
    _guarded: Guarded,
}

impl Process {
    /// Starts a process. Both its outputs are appended to the file `log`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(what: &str, mut command: Command, log: &Path) -> Self {
        let out = File::options().create(true).append(true).open(log).expect("a log can be written");
        command.stdin(Stdio::null()).stdout(out.try_clone().expect("a second handle")).stderr(out).process_group(0);
        // The janitor must be there before the first process is.
        root();
        let child = command.spawn().unwrap_or_else(|error| panic!("{what} does not start: {error} ({command:?})"));
        Self { what: what.to_owned(), _guarded: Guarded::new(child.id()), child, log: log.to_owned() }
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is our child")
    }

    /// Kills it, and only it, the way a crash does; returns once it is dead.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal to it alone.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            let _ = nix::sys::signal::kill(group(self.pid()), signal);
        }
    }

    /// Stops it with SIGSTOP; returns once all its threads have stopped, which on a busy machine takes a moment.
    ///
    /// # Panics
    /// When they have not within five seconds.
    pub fn freeze(&mut self) {
        self.signal(Signal::SIGSTOP);
        let begin = Instant::now();
        while !is_frozen(self.pid()) {
            assert!(begin.elapsed() < Duration::from_secs(5), "{} does not stop", self.what);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// When it has not in time.
    pub async fn wait(&mut self, timeout: Duration) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(begin.elapsed() < timeout, "{} (process {}) did not end in {timeout:?}", self.what, self.pid());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// All that it has written, and what earlier processes with the same log have.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The end of its log, to be shown.
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
        format!("--- {}: the last {} of {} lines\n{}\n---", self.what, shown.len(), lines.len(), shown.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let _ = killpg(group(self.pid()), Signal::SIGKILL);
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
    }
}

fn group(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("process numbers fit"))
}

/// Sends a signal to a whole group; one that is gone is success.
pub fn signal_group(pid: u32, signal: Signal) {
    let _ = killpg(group(pid), signal);
}

/// The exit code as a container runtime gives it: 128 and the signal's number for a process that was killed.
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Whether a process of that number is alive.
pub fn alive(pid: u32) -> bool {
    // A zombie answers to signal 0 but is dead to everyone.
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit(')').next().is_none_or(|rest| !rest.trim_start().starts_with('Z')),
        Err(_) if Path::new("/proc/self").exists() => false,
        Err(_) => nix::sys::signal::kill(group(pid), None).is_ok(),
    }
}

/// Whether every thread of a process has stopped, or has ended; true where there is no `/proc` to look into.
fn is_frozen(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    let mut stats = threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
    stats.all(|stat| {
        let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
        matches!(state, Some('T' | 't' | 'Z' | 'X'))
    })
}

/// A port that nobody listens on, below the range that outgoing connections take theirs from: so a server that is stopped finds
/// it free when it starts again.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test processes that run side by side begin at different places.
    let start = std::process::id().wrapping_mul(97);
    loop {
        let offset = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        let port = 12_000 + u16::try_from(offset).expect("below 20000");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The folder of a server's binaries: what the variable says, or else what `tools/fetch` says.
///
/// # Panics
/// When neither has it; the message says what to do.
pub fn tool(variable: &str, name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) {
        return path.into();
    }
    let fetch = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/fetch");
    match fetched(&fetch, name) {
        Ok(folder) if name == "nats-server" => folder.join("nats-server"),
        Ok(folder) => folder,
        Err(error) => panic!(
            "{variable} is not set, and {} {name}: {error}. Run the tests with `make test`, or `make tools` first",
            fetch.display()
        ),
    }
}

fn fetched(fetch: &Path, name: &str) -> Result<PathBuf, io::Error> {
    // Its progress goes to the terminal: the first build takes minutes.
    let output = Command::new(fetch).arg(name).stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || folder.is_empty() {
        return Err(io::Error::other(output.status.to_string()));
    }
    Ok(folder.into())
}
