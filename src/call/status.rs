//! The states of a call, the legal steps between them and the record that is appended for each step.
//!
//! A [`StatusEvent`] is both: the wire format of `sip.status` and the record of the status log. It can only be made by
//! [`StatusEvent::first`] and [`StatusEvent::next`], which refuse an illegal step.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Call, CallId, CallName, Fingerprint, Outcome};

/// Where a call stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Accepted durably, waits in the queue.
    Queued,
    /// Waits for a moment: `not_before`, or the next attempt of a redial.
    Scheduled,
    /// Claimed by one cluster: the Job is made or about to be.
    Pending,
    /// The Job's pod (or process) runs.
    Running,
    /// A cancel was asked for while the Job lived; the Job is being stopped.
    Cancelling,
    /// The call was answered and played. Final.
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
    /// all, see [`StatusEvent::next`]: `failed` is left only when a redial was to come.
    pub fn may_follow(self, from: Option<Status>) -> bool {
        use Status::*;
        match from {
            None => matches!(self, Queued | Scheduled | Pending | Expired | Rejected),
            Some(Queued) => matches!(self, Scheduled | Pending | Cancelled | Expired | Rejected),
            Some(Scheduled) => matches!(self, Pending | Cancelled | Expired | Rejected),
            Some(Pending) => matches!(self, Running | Failed | Cancelling | Cancelled | Expired | Rejected),
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
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| format!("`{text}` is no status; accepted: {}", Self::ALL.map(Status::as_str).join(", ")))
    }
}

/// One change of a call's state: what `sip.status` carries and the status log holds. Times are RFC 3339 in UTC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StatusEvent {
    /// The call's id, as given by the caller or made when it was accepted.
    pub id: CallId,
    /// The call's name: the name of its first attempt's Job, and the last token of its status subject.
    pub name: CallName,
    /// The Job of the attempt that this event is about; absent before the first attempt is claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Kubernetes namespace of the Job (for the local runner: the configured name).
    pub namespace: String,
    /// The cluster (or machine) that claimed the attempt; absent before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The state from now on.
    pub status: Status,
    /// 1 for the first event of a call, then one more for each.
    pub revision: u64,
    /// True only for the last event of the call: a failed attempt with a redial to come is not final.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// Attempt number, from 1; 0 before the first attempt is claimed.
    pub attempt: u32,
    /// The batch that the caller named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<String>,
    /// The destination that is dialled; absent for a request that could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dest: Option<String>,
    /// When this change was recorded.
    pub time: Timestamp,
    /// When the request entered the queue.
    pub queued_at: Timestamp,
    /// When the attempt was claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// When the attempt's pod or process began to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When the attempt ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// The request's `not_before`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// When the next attempt, or a call with `not_before`, is due; only in `scheduled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_at: Option<Timestamp>,
    /// The caller's exit code, 0 to 255, where the attempt ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// What became of the attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// The last SIP code that the caller saw (RFC 3261, 100 to 699).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sip_code: Option<u16>,
    /// Why, in a word or a sentence, where the state alone does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The container's termination message: the end of the caller's log, at most 4096 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The caller's own `metadata`, echoed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Hash of the request, passwords left out: the same id with another one is a conflict.
    pub fingerprint: Fingerprint,
    /// Sequence in the queue's stream of the message that claimed the attempt: tells a redelivery from a double publish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_sequence: Option<u64>,
    /// How many attempts the call may take.
    pub max_attempts: u32,
}

/// One step of a call's life, with what is learned by it.
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
        /// The message that claims it.
        queue_sequence: u64,
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
    /// Whether another attempt follows; only a failed attempt may be redialled.
    pub redial: bool,
}

impl Change {
    /// The status that this change leads to.
    pub fn status(&self) -> Status {
        match self {
            Change::Queued => Status::Queued,
            Change::Scheduled { .. } => Status::Scheduled,
            Change::Pending { .. } => Status::Pending,
            Change::Running { .. } => Status::Running,
            Change::Cancelling => Status::Cancelling,
            Change::Ended(ended) if ended.outcome == Outcome::Answered => Status::Succeeded,
            Change::Ended(_) => Status::Failed,
            Change::Cancelled { .. } => Status::Cancelled,
            Change::Expired => Status::Expired,
            Change::Rejected { .. } => Status::Rejected,
        }
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

impl StatusEvent {
    /// The first event of a call.
    ///
    /// # Errors
    /// [`IllegalStep`] when a call cannot begin with this change.
    pub fn first(
        call: &Call,
        namespace: &str,
        queued_at: Timestamp,
        change: Change,
        now: Timestamp,
    ) -> Result<Self, IllegalStep> {
        let blank = Self {
            id: call.id.clone(),
            name: call.name.clone(),
            namespace: namespace.to_owned(),
            batch: call.spec.batch.clone(),
            dest: Some(call.spec.dest.clone()),
            metadata: call.spec.metadata.clone(),
            not_before: call.spec.not_before,
            fingerprint: call.fingerprint.clone(),
            max_attempts: call.spec.max_attempts(),
            ..Self::blank(queued_at)
        };
        blank.apply(None, change, now)
    }

    /// The only event of a call whose request could not be read but whose id could.
    pub fn rejected(
        id: CallId,
        fingerprint: Fingerprint,
        namespace: &str,
        queued_at: Timestamp,
        reason: String,
        now: Timestamp,
    ) -> Self {
        let blank =
            Self { name: id.name(), id, fingerprint, namespace: namespace.to_owned(), ..Self::blank(queued_at) };
        blank.apply(None, Change::Rejected { reason }, now).expect("a call may begin with `rejected`")
    }

    /// The event that follows this one.
    ///
    /// # Errors
    /// [`IllegalStep`] when this event is final, or the step is not in the diagram.
    pub fn next(&self, change: Change, now: Timestamp) -> Result<Self, IllegalStep> {
        if self.is_final {
            return Err(IllegalStep { from: Some(self.status), to: change.status() });
        }
        self.clone().apply(Some(self.status), change, now)
    }

    /// A queued call for tests of what is decided by an event.
    #[cfg(test)]
    pub(crate) fn sample(id: CallId, fingerprint: Fingerprint, now: Timestamp, max_attempts: u32) -> Self {
        let blank = Self { name: id.name(), id, fingerprint, max_attempts, ..Self::blank(now) };
        blank.apply(None, Change::Queued, now).expect("a call may begin with `queued`")
    }

    fn apply(mut self, from: Option<Status>, change: Change, now: Timestamp) -> Result<Self, IllegalStep> {
        let to = change.status();
        if !to.may_follow(from) {
            return Err(IllegalStep { from, to });
        }
        self.status = to;
        self.revision += 1;
        self.time = now;
        self.is_final = to.always_final() || matches!(&change, Change::Ended(ended) if !ended.redial);
        self.due_at = None;
        self.learn(change, now);
        Ok(self)
    }

    fn learn(&mut self, change: Change, now: Timestamp) {
        match change {
            Change::Queued | Change::Cancelling => {}
            Change::Scheduled { due_at } => self.due_at = Some(due_at),
            Change::Pending { attempt, cluster, namespace, queue_sequence } => {
                self.forget_attempt();
                self.attempt = attempt;
                self.job = Some(self.name.job(attempt));
                self.cluster = Some(cluster);
                self.namespace = namespace;
                self.queue_sequence = Some(queue_sequence);
                self.created_at = Some(now);
            }
            Change::Running { started_at } => self.started_at = Some(started_at),
            Change::Ended(ended) => {
                self.outcome = Some(ended.outcome);
                self.sip_code = ended.sip_code;
                self.exit_code = ended.exit_code;
                self.completed_at = Some(ended.completed_at);
                self.reason = ended.reason;
                self.message = ended.message;
            }
            Change::Cancelled { reason } | Change::Rejected { reason } => {
                self.reason = Some(reason);
                self.completed_at = Some(now);
            }
            Change::Expired => {
                self.reason = Some("not_after passed before the call was dialled".to_owned());
                self.completed_at = Some(now);
            }
        }
    }

    /// What was known of the attempt before is not true of the next one.
    fn forget_attempt(&mut self) {
        self.started_at = None;
        self.completed_at = None;
        self.exit_code = None;
        self.outcome = None;
        self.sip_code = None;
        self.reason = None;
        self.message = None;
    }

    fn blank(queued_at: Timestamp) -> Self {
        Self {
            id: CallId::default(),
            name: CallName::default(),
            job: None,
            namespace: String::new(),
            cluster: None,
            status: Status::Queued,
            revision: 0,
            is_final: false,
            attempt: 0,
            batch: None,
            dest: None,
            time: queued_at,
            queued_at,
            created_at: None,
            started_at: None,
            completed_at: None,
            not_before: None,
            due_at: None,
            exit_code: None,
            outcome: None,
            sip_code: None,
            reason: None,
            message: None,
            metadata: BTreeMap::new(),
            fingerprint: Fingerprint::default(),
            queue_sequence: None,
            max_attempts: 1,
        }
    }
}
