//! The states of a call and the legal steps between them. Apart from the record of a step: this is the diagram alone, without
//! what is learned on the way.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a call stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Admitted, or due: waits in the queue.
    Queued,
    /// Waits for a moment: `not_before`, or the next attempt of a redial.
    Scheduled,
    /// Claimed by one cluster: the Job is made or about to be.
    Pending,
    /// The Job's pod (or process) runs.
    Running,
    /// A cancel was asked for while the Job lived; the Job is being stopped.
    Cancelling,
    /// The call was answered. Final.
    Succeeded,
    /// The attempt failed. Final when no redial is to come.
    Failed,
    /// Cancelled before it ended by itself. Final.
    Cancelled,
    /// `not_after` passed before it was dialled. Final.
    Expired,
    /// Could not be dialled at all. Final.
    Rejected,
}

impl Status {
    /// Every status, in the order of a call's life.
    pub const ALL: [Status; 10] = [
        Status::Queued,
        Status::Scheduled,
        Status::Pending,
        Status::Running,
        Status::Cancelling,
        Status::Succeeded,
        Status::Failed,
        Status::Cancelled,
        Status::Expired,
        Status::Rejected,
    ];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Queued => "queued",
            Status::Scheduled => "scheduled",
            Status::Pending => "pending",
            Status::Running => "running",
            Status::Cancelling => "cancelling",
            Status::Succeeded => "succeeded",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
            Status::Expired => "expired",
            Status::Rejected => "rejected",
        }
    }

    /// Whether the step `from → to` is legal; `from` is `None` before the first record. A final record allows no step at
    /// all, see [`StatusEvent::next`](super::StatusEvent::next): `failed` is left only when a redial was to come.
    pub fn may_follow(self, from: Option<Status>) -> bool {
        use Status::*;
        match from {
            None => matches!(self, Queued | Scheduled | Pending | Expired | Rejected),
            Some(Queued) => matches!(self, Scheduled | Pending | Cancelled | Expired | Rejected),
            Some(Scheduled) => matches!(self, Queued | Pending | Cancelled | Expired | Rejected),
            // Its pod is chosen.
            Some(Pending) => matches!(self, Pending | Running | Failed | Cancelling | Cancelled | Expired | Rejected),
            Some(Running) => matches!(self, Succeeded | Failed | Cancelling | Cancelled),
            Some(Cancelling) => matches!(self, Cancelled | Succeeded | Failed),
            Some(Failed) => matches!(self, Scheduled | Cancelled | Expired),
            Some(Succeeded | Cancelled | Expired | Rejected) => false,
        }
    }

    /// Whether a record with this status ends the call whatever else it says.
    pub fn always_final(self) -> bool {
        matches!(self, Status::Succeeded | Status::Cancelled | Status::Expired | Status::Rejected)
    }

    /// Whether a Job exists or is about to: the call counts as active.
    pub fn is_active(self) -> bool {
        matches!(self, Status::Pending | Status::Running | Status::Cancelling)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Status {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or_else(|| {
            format!("`{text}` is not a valid status; pass one of {}", Self::ALL.map(Status::as_str).join(", "))
        })
    }
}

/// A step that the state machine does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a call cannot go from {} to {to}", from.map_or("nothing", Status::as_str))]
pub struct IllegalStep {
    /// The status before, if any.
    pub from: Option<Status>,
    /// The status asked for.
    pub to: Status,
}
