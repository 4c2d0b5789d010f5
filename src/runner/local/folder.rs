//! The folder of one attempt, through which the operator and its supervisor communicate, whichever of them dies first.
//!
//! | file | written by | when |
//! |---|---|---|
//! | `job.json` | operator | before the folder gets its name; whoever gives it the name has the claim |
//! | `lock` | operator | locked before the folder gets its name, and inherited by the supervisor as its standard output: when it is free, there is no supervisor any more |
//! | `launch` | supervisor | on disk before the caller is started: without it, and without a supervisor, nobody was called |
//! | `alive` | supervisor | locked, and passed to the caller as its standard input: while it is held, the caller lives |
//! | `started` | supervisor | once the caller runs |
//! | `log` | caller | its standard output and error |
//! | `exit.json` | supervisor, or the operator once both are gone | the end |
//! | `stop`, `settled` | operator | when the Job is to be stopped; when its outcome is recorded |

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::call::{CallId, Fingerprint};
use crate::job::{Ending, Ran};

/// Longest message from a log, in bytes and in lines: the kubelet's limits for `FallbackToLogsOnError`.
const MESSAGE_BYTES: u64 = 2048;
const MESSAGE_LINES: usize = 80;

/// Whose attempt it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct About {
    pub(crate) id: CallId,
    pub(crate) attempt: u32,
    pub(crate) fingerprint: Fingerprint,
}

/// Written once the caller runs.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Started {
    pub(crate) at: Timestamp,
    /// The caller's process group, which is its process id.
    pub(crate) group: i32,
}

/// How the attempt ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// 128 plus the signal number when a signal ended it, as in Kubernetes.
    pub(crate) exit_code: Option<i32>,
    /// Whether the caller ran; unknown in a file that an older version wrote.
    #[serde(default)]
    pub(crate) ran: Ran,
    pub(crate) reason: Option<String>,
    pub(crate) message: Option<String>,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) completed_at: Timestamp,
}

impl Exit {
    pub(crate) fn succeeded(&self) -> bool {
        self.exit_code == Some(0)
    }
}

impl From<Exit> for Ending {
    fn from(exit: Exit) -> Self {
        Self {
            succeeded: exit.succeeded(),
            ran: exit.ran,
            has_gate: false,
            exit_code: exit.exit_code,
            message: exit.message,
            reason: exit.reason,
            started_at: exit.started_at,
            completed_at: exit.completed_at,
        }
    }
}

/// What the operator hands to the supervisor over a pipe: it holds passwords in plain text, so it is neither written to
/// disk nor logged.
#[derive(Serialize, Deserialize)]
pub(crate) struct Handover {
    pub(crate) program: String,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// `activeDeadlineSeconds`.
    pub(crate) deadline_seconds: Option<u64>,
}

/// The folder of one attempt.
#[derive(Debug, Clone)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn about(&self) -> io::Result<Option<About>> {
        read_json(&self.file("job.json"))
    }

    pub(crate) fn write_about(&self, about: &About) -> io::Result<()> {
        fs::write(self.file("job.json"), serde_json::to_vec(about)?)
    }

    /// Acquires the lock that shows that a supervisor lives.
    pub(crate) fn acquire_lock(&self) -> io::Result<File> {
        let file = open_lock(&self.file("lock"))?;
        file.try_lock().map_err(io::Error::from)?;
        Ok(file)
    }

    pub(crate) fn supervisor_is_gone(&self) -> io::Result<bool> {
        is_free(&self.file("lock"))
    }

    /// A locked file for the caller's standard input. The caller reads nothing from it, as in a pod.
    pub(crate) fn acquire_alive(&self) -> io::Result<File> {
        let file = open_lock(&self.file("alive"))?;
        file.lock()?;
        Ok(file)
    }

    fn caller_is_gone(&self) -> io::Result<bool> {
        is_free(&self.file("alive"))
    }

    /// Makes durable the claim, and that the caller is about to be started: after a power failure, the attempt must not
    /// look as if it had never begun.
    pub(crate) fn mark_launch(&self) -> io::Result<()> {
        File::open(self.file("job.json"))?.sync_all()?;
        File::create(self.file("launch"))?.sync_all()?;
        sync_folder(&self.0)?;
        self.0.parent().map_or(Ok(()), sync_folder)
    }

    pub(crate) fn was_launched(&self) -> io::Result<bool> {
        self.file("launch").try_exists()
    }

    pub(crate) fn started(&self) -> io::Result<Option<Started>> {
        read_json(&self.file("started"))
    }

    pub(crate) fn write_started(&self, started: &Started) -> io::Result<()> {
        self.replace("started", &serde_json::to_vec(started)?, false)
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.file("log")
    }

    pub(crate) fn exit(&self) -> io::Result<Option<Exit>> {
        read_json(&self.file("exit.json"))
    }

    pub(crate) fn write_exit(&self, exit: &Exit) -> io::Result<()> {
        self.replace("exit.json", &serde_json::to_vec(exit)?, true)
    }

    pub(crate) fn mark_stop(&self) -> io::Result<()> {
        File::create(self.file("stop")).map(drop)
    }

    pub(crate) fn is_stopped(&self) -> io::Result<bool> {
        self.file("stop").try_exists()
    }

    pub(crate) fn mark_settled(&self) -> io::Result<()> {
        File::create(self.file("settled")).map(drop)
    }

    /// When the outcome was recorded.
    pub(crate) fn settled(&self) -> io::Result<Option<std::time::SystemTime>> {
        found(fs::metadata(self.file("settled")).and_then(|meta| meta.modified()))
    }

    /// Sends a signal to the caller and its children; false when it does not run. The lock is checked first, so that a
    /// process that has got the same id meanwhile is not hit.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<bool> {
        let Some(group) = self.started()?.and_then(|started| Pid::from_raw(started.group)) else { return Ok(false) };
        if self.caller_is_gone()? {
            return Ok(false);
        }
        match kill_process_group(group, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends an attempt that has lost its supervisor; `None` while the caller still lives. A caller without a supervisor
    /// is killed: nobody could enforce its deadline or learn its exit code.
    pub(crate) fn end_orphan(&self) -> io::Result<Option<Exit>> {
        if let Some(exit) = self.exit()? {
            return Ok(Some(exit));
        }
        let started = self.started()?;
        let lives = if started.is_some() { self.signal(Signal::KILL)? } else { !self.caller_is_gone()? };
        if lives {
            return Ok(None);
        }
        let exit = Exit {
            exit_code: None,
            ran: if started.is_some() { Ran::Unknown } else { Ran::No },
            reason: Some("the process was lost".to_owned()),
            message: self.message(),
            started_at: started.map(|started| started.at),
            completed_at: Timestamp::now(),
        };
        self.write_exit(&exit)?;
        Ok(Some(exit))
    }

    /// The end of the log, cut as for `FallbackToLogsOnError`; `None` when the log is empty.
    pub(crate) fn message(&self) -> Option<String> {
        let text = self.end_of_log(MESSAGE_BYTES).ok()?;
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let message = lines[lines.len().saturating_sub(MESSAGE_LINES)..].concat();
        (!message.is_empty()).then_some(message)
    }

    /// The last so many bytes of the log.
    pub(crate) fn end_of_log(&self, bytes: u64) -> io::Result<String> {
        let mut log = File::open(self.log())?;
        let size = log.metadata()?.len();
        log.seek(SeekFrom::Start(size.saturating_sub(bytes)))?;
        let mut tail = Vec::new();
        log.take(bytes).read_to_end(&mut tail)?;
        // The cut may have split a character.
        let whole = tail.iter().position(|byte| byte & 0xC0 != 0x80).unwrap_or(tail.len());
        Ok(String::from_utf8_lossy(&tail[if size > bytes { whole } else { 0 }..]).into_owned())
    }

    /// Writes a file so that a reader sees all of it or none.
    fn replace(&self, name: &str, content: &[u8], durable: bool) -> io::Result<()> {
        let draft = self.file(&format!(".{name}"));
        let mut file = File::create(&draft)?;
        file.write_all(content)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&draft, self.file(name))?;
        if durable { sync_folder(&self.0) } else { Ok(()) }
    }
}

pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Opens a file for locking; nothing is ever read from or written to it.
pub(crate) fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn is_free(path: &Path) -> io::Result<bool> {
    let Some(file) = found(File::open(path))? else { return Ok(true) };
    // A shared lock, so that two that check do not mistake each other for the holder.
    match file.try_lock_shared() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let Some(content) = found(fs::read(path))? else { return Ok(None) };
    serde_json::from_slice(&content).map(Some).map_err(io::Error::from)
}

fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
