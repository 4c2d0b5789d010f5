//! What may happen to a call, with what is learned by it. Apart from the record, [`super::StatusEvent`], which alone says what
//! of it is kept: whoever observes or decides tells a change and never writes a record's fields.

use jiff::Timestamp;

use super::{Evidence, Outcome, PodRef, Status};

/// One step of a call, with what is learned by it.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Accepted into the queue.
    Queued,
    /// Waits until the moment given.
    Scheduled {
        /// When the attempt is due.
        due_at: Timestamp,
    },
    /// An attempt is claimed.
    Pending {
        /// Attempt number, from 1.
        attempt: u32,
        /// Who claims it.
        cluster: String,
        /// Where the Job will be.
        namespace: String,
        /// The name of the trunk that it is dialled on.
        trunk: String,
        /// When the attempt is over at the latest, whatever becomes of its cluster.
        ends_by: Timestamp,
    },
    /// One pod of the attempt is chosen: it may run, and no other.
    Chosen {
        /// Which.
        pod: PodRef,
    },
    /// The pod or process runs.
    Running {
        /// Since when.
        started_at: Timestamp,
    },
    /// A cancel was asked for while the Job lived.
    Cancelling,
    /// The attempt ended by itself, well or not.
    Ended(Ended),
    /// The call ended by a cancel or because its Job was deleted.
    Cancelled {
        /// What cancelled it.
        reason: String,
    },
    /// `not_after` passed.
    Expired,
    /// It cannot be dialled.
    Rejected {
        /// What is wrong, for the caller to read.
        reason: String,
    },
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// What became of it; [`Outcome::Answered`] is the only success.
    pub outcome: Outcome,
    /// The last SIP code.
    pub sip_code: Option<u16>,
    /// The caller's exit code.
    pub exit_code: Option<i32>,
    /// When it ended.
    pub completed_at: Timestamp,
    /// Why, where the outcome alone does not say.
    pub reason: Option<String>,
    /// The end of the caller's log.
    pub message: Option<String>,
    /// What an answered call was like, as far as is known.
    pub evidence: Option<Box<Evidence>>,
    /// Whether another attempt follows: then this one counts as failed, also when it was answered.
    pub redial: bool,
}

impl Change {
    /// The status that this change leads to.
    pub fn status(&self) -> Status {
        match self {
            Change::Queued => Status::Queued,
            Change::Scheduled { .. } => Status::Scheduled,
            Change::Pending { .. } | Change::Chosen { .. } => Status::Pending,
            Change::Running { .. } => Status::Running,
            Change::Cancelling => Status::Cancelling,
            Change::Ended(ended) if ended.outcome == Outcome::Answered && !ended.redial => Status::Succeeded,
            Change::Ended(_) => Status::Failed,
            Change::Cancelled { .. } => Status::Cancelled,
            Change::Expired => Status::Expired,
            Change::Rejected { .. } => Status::Rejected,
        }
    }
}
