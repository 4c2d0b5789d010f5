//! How far the index has applied the log, and whether that is far enough to answer from it.
//!
//! A list may be some seconds old, as long as the index keeps up. A cancel of a batch may not miss a call: it waits until the index
//! has applied everything that was in the log when the cancel came.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::CallIndex;
use crate::nats::NatsError;
use crate::status_log::{Head, StatusLog};

/// How old a list may be.
const MAX_AGE: Duration = Duration::from_secs(10);
/// How long a request waits for the index.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far the index has applied the log.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Progress {
    /// The stream that it follows, by when that was made.
    pub(super) made_at: Option<Timestamp>,
    /// Everything up to this record is applied.
    pub(super) applied: u64,
    /// When the index was last known to hold everything that the log held at that moment; `None` while it does not follow.
    pub(super) complete_at: Option<Instant>,
}

/// The index has not applied all of the log, so it cannot say which calls there are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Behind {
    /// It reads the log from the start, or goes on after a break.
    #[error("the index of calls is reading the status log ({calls} calls so far)")]
    Reading {
        /// How many calls it knows.
        calls: usize,
    },
    /// It follows the log, but too slowly, or the log's leader does not answer.
    #[error("the index of calls is {seconds} s behind the status log")]
    Late {
        /// For how long it has not been complete.
        seconds: u64,
    },
}

/// Why the index did not catch up.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CatchUpError {
    /// It takes too long.
    #[error(transparent)]
    Behind(#[from] Behind),
    /// The log does not say how far it is.
    #[error(transparent)]
    Nats(#[from] NatsError),
}

impl CallIndex {
    /// Whether a list can be answered: the index was complete a few seconds ago.
    ///
    /// # Errors
    /// [`Behind`] when it was not, saying how it is.
    pub fn check(&self) -> Result<(), Behind> {
        let complete_at = self.progress.borrow().complete_at;
        match complete_at.map(|at| at.elapsed()) {
            None => Err(Behind::Reading { calls: self.count() }),
            Some(age) if age > MAX_AGE => Err(Behind::Late { seconds: age.as_secs() }),
            Some(_) => Ok(()),
        }
    }

    /// Returns once the index has applied everything that the log holds now.
    ///
    /// # Errors
    /// [`CatchUpError`] when that takes more than some seconds.
    pub async fn catch_up(&self, log: &StatusLog) -> Result<(), CatchUpError> {
        let head = log.head().await?;
        if self.reaches(log, head, PATIENCE).await? { Ok(()) } else { Err(self.lag().into()) }
    }

    fn lag(&self) -> Behind {
        let complete_at = self.progress.borrow().complete_at;
        match complete_at {
            None => Behind::Reading { calls: self.count() },
            Some(at) => Behind::Late { seconds: at.elapsed().as_secs().max(1) },
        }
    }

    /// Whether the index reaches, in time, what was the end of the log just now.
    pub(super) async fn reaches(&self, log: &StatusLog, head: Head, within: Duration) -> Result<bool, NatsError> {
        let asked_at = Instant::now();
        let is_same = |progress: &Progress| progress.made_at == Some(head.made_at);
        let is_there = |progress: &Progress| is_same(progress) && progress.applied >= head.sequence;
        let present = *self.progress.borrow();
        if is_same(&present) && !is_there(&present) && log.next_after(present.applied).await?.is_none() {
            // What was recorded last is gone, so no consumer delivers it.
            self.note_applied(head.sequence);
        }
        let mut progress = self.progress.subscribe();
        let reached = tokio::time::timeout(within, progress.wait_for(is_there)).await;
        let reached = reached.is_ok_and(|reached| reached.is_ok());
        if reached {
            self.progress.send_modify(|progress| progress.complete_at = progress.complete_at.max(Some(asked_at)));
        }
        Ok(reached)
    }

    /// Everything up to that record is applied.
    pub(super) fn note_applied(&self, sequence: u64) {
        self.progress.send_modify(|progress| progress.applied = progress.applied.max(sequence));
    }

    /// The index does not follow the log any more, or not yet.
    pub(super) fn note_break(&self) {
        self.progress.send_modify(|progress| progress.complete_at = None);
    }
}
