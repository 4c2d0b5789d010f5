//! The supervisor of one attempt of the local runner (hidden subcommand `run-attempt FOLDER`): a process of its own, so
//! that the call outlives the operator and its exit code is kept whether or not one is running. Small on purpose: no
//! runtime, one thread beside the main one.
//!
//! It inherits the folder's lock as standard output, reads what to run from standard input, and leaves `exit.json`.

use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::job::Ran;
use crate::runner::local::STOP_GRACE;
use crate::runner::local::folder::{Exit, Folder, Handover, Started};

/// How many times to try to write `exit.json`, once a second: a full disk may be cleared meanwhile.
const EXIT_TRIES: u32 = 600;

/// Runs the attempt whose folder this is, from its start to its end. The exit code says only whether `exit.json` could
/// be written; how the caller ended is in `exit.json`.
pub fn run(folder: PathBuf) -> ExitCode {
    match supervise(&Folder::at(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("run-attempt: {error}");
            ExitCode::FAILURE
        }
    }
}

fn supervise(folder: &Folder) -> io::Result<()> {
    // Nobody may be called before the handover is complete and the claim is on disk.
    let handover = read_handover()?;
    folder.mark_launch()?;
    if folder.is_stopped()? {
        return write_exit(folder, &never_ran("stopped before it started".to_owned()));
    }
    let exit = match start(folder, &handover) {
        Ok((child, started_at)) => attend(folder, child, started_at, &handover)?,
        // Kubernetes calls it `StartError`: no container ran, so there is no exit code.
        Err(error) => never_ran(format!("StartError: cannot run `{}`: {error}", handover.program)),
    };
    write_exit(folder, &exit)
}

/// An operator that dies half-way leaves an incomplete JSON object.
fn read_handover() -> io::Result<Handover> {
    let mut text = Vec::new();
    io::stdin().lock().read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn start(folder: &Folder, handover: &Handover) -> io::Result<(Child, Timestamp)> {
    let log = std::fs::File::create(folder.log())?;
    let child = Command::new(&handover.program)
        .args(&handover.args)
        .env_clear()
        .envs(handover.env.iter().map(|(name, value)| (name, value)))
        .stdin(folder.acquire_alive()?)
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()?;
    Ok((child, Timestamp::now()))
}

fn never_ran(reason: String) -> Exit {
    Exit {
        exit_code: None,
        ran: Ran::No,
        reason: Some(reason),
        message: None,
        started_at: None,
        completed_at: Timestamp::now(),
    }
}

fn attend(folder: &Folder, mut child: Child, started_at: Timestamp, handover: &Handover) -> io::Result<Exit> {
    let group = Pid::from_child(&child);
    // Without this file the operator believes that the caller has not started; the call itself continues.
    let _ = folder.write_started(&Started { at: started_at, group: group.as_raw_nonzero().get() });
    let late = outlast(group, &on_end(group), handover.deadline_seconds);
    let completed_at = Timestamp::now();
    // As in a container, all processes end with the first. It is not reaped yet, so the group is still the caller's.
    let _ = kill_process_group(group, Signal::KILL);
    let status = child.wait()?;
    let late = late.then_some(handover.deadline_seconds).flatten();
    Ok(exit_of(folder, status, started_at, completed_at, late))
}

fn exit_of(
    folder: &Folder,
    status: ExitStatus,
    started_at: Timestamp,
    completed_at: Timestamp,
    late: Option<u64>,
) -> Exit {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Exit {
        exit_code: code.filter(|_| late.is_none()),
        ran: Ran::Yes,
        reason: late.map(|seconds| format!("DeadlineExceeded: it ran longer than {seconds} s")),
        message: if status.success() && late.is_none() { None } else { folder.message() },
        started_at: Some(started_at),
        completed_at,
    }
}

/// Reports when the process has ended, without reaping it, so that its id cannot be reused meanwhile.
fn on_end(process: Pid) -> Receiver<()> {
    let (sender, ended) = mpsc::channel();
    thread::spawn(move || {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(process), options) {}
        let _ = sender.send(());
    });
    ended
}

/// Waits for the end, and forces it after the deadline; true when it had to.
fn outlast(group: Pid, ended: &Receiver<()>, deadline_seconds: Option<u64>) -> bool {
    let is_late = |after: Duration| ended.recv_timeout(after) == Err(mpsc::RecvTimeoutError::Timeout);
    let Some(seconds) = deadline_seconds else {
        let _ = ended.recv();
        return false;
    };
    if !is_late(Duration::from_secs(seconds)) {
        return false;
    }
    let _ = kill_process_group(group, Signal::INT);
    if is_late(STOP_GRACE) {
        let _ = kill_process_group(group, Signal::KILL);
        let _ = ended.recv();
    }
    true
}

fn write_exit(folder: &Folder, exit: &Exit) -> io::Result<()> {
    for _ in 1..EXIT_TRIES {
        match folder.write_exit(exit) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => thread::sleep(Duration::from_secs(1)),
            done => return done,
        }
    }
    folder.write_exit(exit)
}
