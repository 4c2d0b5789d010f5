//! Keeps what is known in step with the folders: one task for all attempts, without a thread or a file descriptor for
//! each.

use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use super::Fleet;
use crate::job::Observed;
use crate::runner::Observation;
use crate::runner::local::STOP_GRACE;
use crate::runner::local::folder::Exit;

/// Pause between two polls: while an attempt is starting or stopping, otherwise, and after the end of a child.
const SOON: Duration = Duration::from_millis(50);
const USUAL: Duration = Duration::from_millis(250);
const AFTER_CHILD: Duration = Duration::from_millis(5);

/// What a poll of a folder finds.
enum Seen {
    Nothing,
    Started(Timestamp),
    Ended(Exit),
}

/// Polls until the runner is dropped: when a child of this process has ended, and at intervals for adopted attempts.
pub(in crate::runner::local) async fn watch(fleet: Weak<Fleet>) {
    let Some(wake) = fleet.upgrade().map(|fleet| Arc::clone(&fleet.wake)) else { return };
    // Without the signal, the intervals are enough.
    let mut child_ended = signal(SignalKind::child()).ok();
    let mut pause = SOON;
    loop {
        tokio::select! {
            () = sleep(pause) => {}
            () = wake.notified() => {}
            Some(()) = async { child_ended.as_mut()?.recv().await } => sleep(AFTER_CHILD).await,
        }
        let Some(fleet) = fleet.upgrade() else { return };
        pause = tokio::task::spawn_blocking(move || fleet.poll()).await.unwrap_or(USUAL);
    }
}

impl Fleet {
    /// Polls every live attempt, and removes the folders that are due; returns how long to wait for the next poll.
    pub(super) fn poll(&self) -> Duration {
        let live: Vec<String> = self.known().live.iter().cloned().collect();
        for job in &live {
            self.poll_job(job);
        }
        self.remove_due();
        let known = self.known();
        let is_moving = |job: &String| {
            known
                .jobs
                .get(job)
                .is_some_and(|entry| entry.stop.is_some() || matches!(entry.observed.state, Observed::Waiting { .. }))
        };
        if known.live.iter().any(is_moving) { SOON } else { USUAL }
    }

    pub(super) fn poll_job(&self, job: &str) {
        let result = self.advance_stop(job).and_then(|()| self.inspect_folder(job)).and_then(|seen| match seen {
            Seen::Nothing => Ok(()),
            Seen::Started(at) => {
                self.record_start(job, at);
                Ok(())
            }
            Seen::Ended(exit) => self.record_end(job, &exit),
        });
        if let Err(error) = result {
            tracing::warn!(job, %error, "cannot read the state of an attempt; it is tried again soon");
        }
    }

    fn inspect_folder(&self, job: &str) -> io::Result<Seen> {
        let (reaped, is_waiting) = match self.known().jobs.get_mut(job) {
            None => return Ok(Seen::Nothing),
            Some(entry) => {
                let reaped = entry.supervisor.as_mut().map(std::process::Child::try_wait).transpose()?;
                (reaped.map(|status| status.is_some()), matches!(entry.observed.state, Observed::Waiting { .. }))
            }
        };
        let folder = self.dir.folder(job);
        if reaped.map_or_else(|| folder.supervisor_is_gone(), Ok)? {
            return Ok(folder.end_orphan()?.map_or(Seen::Nothing, Seen::Ended));
        }
        let started = if is_waiting { folder.started()? } else { None };
        Ok(started.map_or(Seen::Nothing, |started| Seen::Started(started.at)))
    }

    fn record_start(&self, job: &str, started_at: Timestamp) {
        let mut known = self.known();
        let Some(entry) = known.jobs.get_mut(job) else { return };
        if matches!(entry.observed.state, Observed::Waiting { .. }) {
            entry.observed.state = Observed::Running { started_at };
            self.publish(Observation::Changed(entry.observed.clone()));
        }
    }

    /// A Job that was stopped is removed as it was last known, unless it succeeded in spite of the stop.
    fn record_end(&self, job: &str, exit: &Exit) -> io::Result<()> {
        let succeeded = exit.succeeded();
        let mut known = self.known();
        let Some(entry) = known.jobs.get_mut(job) else { return Ok(()) };
        let is_stopped = entry.stop.is_some();
        if (succeeded || !is_stopped) && !entry.observed.has_ended() {
            entry.observed.state = Observed::Ended(exit.clone().into());
            entry.supervisor = None;
            self.publish(Observation::Changed(entry.observed.clone()));
        }
        if is_stopped {
            drop(known);
            return self.remove(job);
        }
        known.live.remove(job);
        Ok(())
    }

    /// Continues a stop: SIGINT as soon as there is a process, SIGKILL after the grace period.
    pub(super) fn advance_stop(&self, job: &str) -> io::Result<()> {
        let asked = match self.known().jobs.get(job).and_then(|entry| entry.stop.as_ref()) {
            None => return Ok(()),
            Some(stop) => stop.asked,
        };
        match asked {
            None if self.dir.folder(job).signal(Signal::INT)? => {
                if let Some(stop) = self.known().jobs.get_mut(job).and_then(|entry| entry.stop.as_mut()) {
                    stop.asked = Some(Instant::now());
                }
            }
            Some(since) if since.elapsed() >= STOP_GRACE => drop(self.dir.folder(job).signal(Signal::KILL)?),
            _ => {}
        }
        Ok(())
    }

    /// Removes attempts that were settled longer ago than their time to live; nothing else is ever removed unasked.
    fn remove_due(&self) {
        while let Some(job) = self.next_due() {
            if let Err(error) = self.remove(&job) {
                tracing::warn!(job, %error, "cannot remove the folder of a settled attempt; it is tried again later");
                self.known().expiring.push_back((SystemTime::now() + self.settings.ttl.max(USUAL), job));
                return;
            }
        }
    }

    fn next_due(&self) -> Option<String> {
        let mut known = self.known();
        while known.expiring.front().is_some_and(|(due, _)| *due <= SystemTime::now()) {
            let (_, job) = known.expiring.pop_front()?;
            // A stop may have removed it already.
            if known.jobs.get(&job).is_some_and(|entry| entry.observed.settled) {
                return Some(job);
            }
        }
        None
    }
}
