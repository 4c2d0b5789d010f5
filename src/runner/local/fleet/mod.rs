//! Every attempt in the state directory, in memory: what the operator knows, reports and has asked for. The folders are
//! authoritative; `watch` keeps the memory in step with them.

mod adopt;
mod watch;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::sync::{Notify, broadcast};

use self::adopt::about_of;
pub(super) use self::watch::watch;
use super::folder::{About, Folder, Handover};
use super::plan::plan;
use super::secrets::{Secrets, SecretsError};
use super::state_dir::StateDir;
use super::{LocalSettings, failure};
use crate::job::{JobOrder, Observed, ObservedJob};
use crate::runner::{MAX_LOG_BYTES, Observation, RunnerError, StartError};

/// Changes that a slow observer may lag behind before it gets the full list again.
const CHANGES: usize = 4096;

/// Everything that the operator knows about its attempts.
#[derive(Debug)]
pub(super) struct Fleet {
    dir: StateDir,
    caller: Option<Vec<String>>,
    settings: LocalSettings,
    known: Mutex<Known>,
    changes: broadcast::Sender<Observation>,
    wake: Arc<Notify>,
    removing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    jobs: HashMap<String, Entry>,
    /// Attempts that have not ended: only these are polled.
    live: HashSet<String>,
    /// Settled attempts, and when their folders are removed; the earliest first.
    expiring: VecDeque<(SystemTime, String)>,
}

#[derive(Debug)]
struct Entry {
    observed: ObservedJob,
    /// Only for a supervisor that this process has started, which has to be reaped. The others are known by their lock.
    supervisor: Option<Child>,
    stop: Option<Stop>,
}

/// A stop that was requested.
#[derive(Debug, Default)]
struct Stop {
    /// When SIGINT was sent; `None` while there is no process to send it to.
    asked: Option<Instant>,
}

impl Fleet {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Every change under this lock is complete, even if the thread panics after it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, observation: Observation) {
        // It is not an error if nobody listens.
        let _ = self.changes.send(observation);
    }

    pub(super) fn check(&self) -> Result<String, RunnerError> {
        self.dir.probe().map_err(|error| failure(format!("cannot write to the state directory: {error}")))?;
        self.secrets().map_err(failure)?;
        let live = self.known().live.len();
        Ok(format!("local runner {}, {live} processes", env!("CARGO_PKG_VERSION")))
    }

    fn secrets(&self) -> Result<Secrets, SecretsError> {
        let name = &self.settings.sip_secret_name;
        self.settings.secrets_file.as_deref().map_or_else(|| Ok(Secrets::default()), |path| Secrets::read(path, name))
    }

    /// The list is read under the lock that every change is published under, so that none is missed in between.
    pub(super) fn observe(&self) -> (Observation, broadcast::Receiver<Observation>) {
        let known = self.known();
        let changes = self.changes.subscribe();
        (Observation::All(known.jobs.values().map(|entry| entry.observed.clone()).collect()), changes)
    }

    pub(super) fn find(&self, job: &str) -> Option<ObservedJob> {
        self.known().jobs.get(job).map(|entry| entry.observed.clone())
    }

    pub(super) fn start(&self, order: &JobOrder) -> Result<(), StartError> {
        let (job, about) = about_of(&order.job)?;
        if let Some(observed) = self.find(job) {
            let is_same = observed.fingerprint == about.fingerprint;
            return if is_same { Ok(()) } else { Err(StartError::Conflict(job.to_owned())) };
        }
        let secrets = self.secrets().map_err(later)?;
        let handover = plan(order, self.caller.as_deref(), &secrets)?;
        // A folder that exists and is not known could not be read when this operator opened the directory.
        let (folder, lock) =
            self.dir.claim(job, &about).map_err(later)?.ok_or_else(|| StartError::Conflict(job.to_owned()))?;
        match self.launch(&folder, lock, &handover) {
            Ok(supervisor) => self.register(job, about, supervisor),
            Err(error) => {
                self.dir.discard(job).map_err(later)?;
                return Err(later(format!("cannot start a process for {job}: {error}")));
            }
        }
        Ok(())
    }

    /// Starts the supervisor; an error means that it does not run and has started nothing.
    fn launch(&self, folder: &Folder, lock: std::fs::File, handover: &Handover) -> io::Result<Child> {
        let mut supervisor = Command::new(&self.settings.self_exe)
            .arg("run-attempt")
            .arg(folder.path())
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(lock)
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let handed = supervisor.stdin.take().map(|mut pipe| pipe.write_all(&serde_json::to_vec(handover)?));
        if let Some(Err(error)) = handed {
            // It never got the complete handover, and starts nothing without it.
            supervisor.kill()?;
            supervisor.wait()?;
            return Err(error);
        }
        Ok(supervisor)
    }

    fn register(&self, job: &str, about: About, supervisor: Child) {
        let observed = observed(job, about, waiting(), false);
        let mut known = self.known();
        known.live.insert(job.to_owned());
        self.publish(Observation::Changed(observed.clone()));
        known.jobs.insert(job.to_owned(), Entry { observed, supervisor: Some(supervisor), stop: None });
        self.wake.notify_one();
    }

    pub(super) fn log(&self, job: &str) -> Result<String, RunnerError> {
        self.dir.folder(job).end_of_log(MAX_LOG_BYTES.into()).map_err(failure)
    }

    pub(super) fn release(&self, job: &str) -> Result<(), RunnerError> {
        match self.find(job) {
            None => return Ok(()),
            Some(observed) if observed.settled => return Ok(()),
            Some(observed) if !observed.has_ended() => return Err(failure(format!("{job} is not finished"))),
            Some(_) => {}
        }
        self.dir.folder(job).mark_settled().map_err(failure)?;
        let mut known = self.known();
        let Some(entry) = known.jobs.get_mut(job) else { return Ok(()) };
        entry.observed.settled = true;
        self.publish(Observation::Changed(entry.observed.clone()));
        known.expiring.push_back((SystemTime::now() + self.settings.ttl, job.to_owned()));
        Ok(())
    }

    pub(super) fn stop(&self, job: &str) -> Result<(), RunnerError> {
        if self.find(job).is_none() {
            return Ok(());
        }
        self.dir.folder(job).mark_stop().map_err(failure)?;
        // It may have ended by itself meanwhile; then that end counts.
        self.poll_job(job);
        let finished = match self.known().jobs.get_mut(job) {
            None => return Ok(()),
            Some(entry) if entry.observed.has_ended() => true,
            Some(entry) => {
                entry.stop.get_or_insert_default();
                false
            }
        };
        if finished {
            return self.remove(job).map_err(failure);
        }
        self.advance_stop(job).map_err(failure)?;
        self.wake.notify_one();
        Ok(())
    }

    /// Removes the folder of an attempt that has ended or was stopped.
    fn remove(&self, job: &str) -> io::Result<()> {
        // One removal at a time: the second of two could hit a Job of the same name that was started in between.
        let _one = self.removing.lock().unwrap_or_else(PoisonError::into_inner);
        let may_go = |entry: &Entry| entry.observed.has_ended() || entry.stop.is_some();
        if !self.known().jobs.get(job).is_some_and(may_go) {
            return Ok(());
        }
        self.dir.discard(job)?;
        let mut known = self.known();
        known.live.remove(job);
        let Some(entry) = known.jobs.remove(job) else { return Ok(()) };
        self.publish(Observation::Removed(entry.observed));
        Ok(())
    }
}

fn observed(job: &str, about: About, state: Observed, settled: bool) -> ObservedJob {
    let About { id, attempt, fingerprint } = about;
    ObservedJob { name: job.to_owned(), id, attempt, fingerprint, state, settled }
}

fn waiting() -> Observed {
    Observed::waiting()
}

fn later(error: impl std::fmt::Display) -> StartError {
    StartError::Later(failure(error))
}
