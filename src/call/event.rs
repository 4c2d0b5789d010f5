//! The record that is appended for each step of a call.
//!
//! A [`StatusEvent`] is both: the wire format of `sip.status` and the record of the status log. It can only be made by
//! [`StatusEvent::first`] and [`StatusEvent::next`], which refuse an illegal step.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Call, CallId, CallName, Change, Evidence, Fingerprint, IllegalStep, Outcome, PodRef, Priority, RedialOn, Status,
    TraceParent,
};

/// One change of a call's state: what `sip.status` carries and the status log keeps. Times are RFC 3339 in UTC.
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
    /// The one pod of the attempt that may dial; absent before it is chosen, and where pods have no gate (a machine, `JOB_POD_GATE=false`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// The trunk that the attempt is dialled on; absent before the first attempt is claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trunk: Option<String>,
    /// The trunks that may dial it, the preferred one first; only while it waits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trunks: Vec<String>,
    /// The state from now on.
    pub status: Status,
    /// 1 for the first event of a call, then one more for each.
    pub revision: u64,
    /// True only for the last event of the call: a failed attempt with a redial to come is not final.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// Attempt number, from 1, those that did not count included; 0 before the first attempt is claimed.
    pub attempt: u32,
    /// The batch that the caller named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<String>,
    /// How urgent it is beside others that wait; absent: `normal`.
    #[serde(default, skip_serializing_if = "Priority::is_default")]
    pub priority: Priority,
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
    /// When the attempt is over at the latest, from when it is claimed on: past it, it has ended `unknown`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_by: Option<Timestamp>,
    /// How many attempts did not count, since the fault was ours: the trunk's (`auth`, `congestion`) or the cluster's (`not_started`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub faults: u32,
    /// When the first of the last attempts that did not count ended; absent after one that counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faults_since: Option<Timestamp>,
    /// When the next attempt, or a call with `not_before`, is due; only in `scheduled`, in the `queued` that follows it, and in
    /// `cancelled` or `expired` when that ended the wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_at: Option<Timestamp>,
    /// About how many calls waited to be dialled when this one joined them, of any priority; of some hundreds that arrive at once, each counts
    /// few of the others. Only in `queued`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u64>,
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
    /// What an answered call was like.
    #[serde(flatten)]
    pub evidence: Evidence,
    /// The caller's own `metadata`, echoed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Hash of the request, passwords left out: the same id with another one is a conflict.
    pub fingerprint: Fingerprint,
    /// How many attempts the call may take.
    pub max_attempts: u32,
    /// What it is dialled again after while attempts are left; absent where there is nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redial_on: Vec<RedialOn>,
    /// The trace that the request belongs to (W3C Trace Context), where it named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<TraceParent>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks for a reference
fn is_zero(number: &u32) -> bool {
    *number == 0
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
            priority: call.spec.priority,
            dest: Some(call.spec.dest.clone()),
            metadata: call.spec.metadata.clone(),
            not_before: call.spec.not_before,
            fingerprint: call.fingerprint.clone(),
            max_attempts: call.spec.max_attempts(),
            redial_on: call.spec.redialled(),
            traceparent: call.traceparent.clone(),
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

    /// The same event as part of a trace; those that follow are part of it too.
    #[must_use]
    pub fn in_trace(self, traceparent: Option<TraceParent>) -> Self {
        Self { traceparent, ..self }
    }

    /// The same event of a call that waits for one of these trunks, the preferred one first.
    #[must_use]
    pub fn for_trunks<'a>(self, trunks: impl IntoIterator<Item = &'a str>) -> Self {
        Self { trunks: trunks.into_iter().map(str::to_owned).collect(), ..self }
    }

    /// The same event of a call that joins so many others which wait.
    #[must_use]
    pub fn behind(self, waiting: u64) -> Self {
        Self { waiting: Some(waiting), ..self }
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

    /// The change that a cancel makes; `None` when there is none to make.
    pub fn cancel(&self) -> Option<Change> {
        match self.status {
            _ if self.is_final => None,
            Status::Cancelling => None,
            Status::Pending | Status::Running => Some(Change::Cancelling),
            _ => Some(Change::Cancelled { reason: "cancelled".to_owned() }),
        }
    }

    /// A queued call for tests of what is decided by an event.
    #[cfg(test)]
    pub(crate) fn sample(id: CallId, fingerprint: Fingerprint, now: Timestamp, max_attempts: u32) -> Self {
        let blank = Self { name: id.name(), id, fingerprint, max_attempts, ..Self::blank(now) };
        blank.apply(None, Change::Queued, now).expect("a call may begin with `queued`")
    }

    fn apply(mut self, from: Option<Status>, change: Change, now: Timestamp) -> Result<Self, IllegalStep> {
        let to = change.status();
        // Pending is followed by itself once in an attempt: when its pod is chosen.
        let is_in_turn = match &change {
            Change::Chosen { .. } => from == Some(Status::Pending) && self.pod.is_none(),
            Change::Pending { .. } => from != Some(Status::Pending),
            _ => true,
        };
        if !is_in_turn || !to.may_follow(from) {
            return Err(IllegalStep { from, to });
        }
        self.status = to;
        self.revision += 1;
        self.time = now;
        self.waiting = None;
        self.trunks.clear();
        self.is_final = to.always_final() || matches!(&change, Change::Ended(ended) if !ended.redial);
        // The record of a cancel must outlive the one before it, which is kept from then on. What was due goes before what is new.
        self.due_at = self.due_at.filter(|_| matches!(to, Status::Queued | Status::Cancelled | Status::Expired));
        self.learn(change, now);
        Ok(self)
    }

    fn learn(&mut self, change: Change, now: Timestamp) {
        match change {
            Change::Queued | Change::Cancelling => {}
            Change::Scheduled { due_at } => self.due_at = Some(due_at),
            Change::Pending { attempt, cluster, namespace, trunk, ends_by } => {
                self.forget_attempt();
                self.attempt = attempt;
                self.job = Some(self.name.job(attempt));
                self.cluster = Some(cluster);
                self.namespace = namespace;
                self.trunk = Some(trunk);
                self.created_at = Some(now);
                self.ends_by = Some(ends_by);
            }
            Change::Chosen { pod } => self.pod = Some(pod),
            Change::Running { started_at } => self.started_at = Some(started_at),
            Change::Ended(ended) => {
                self.count(ended.outcome, now);
                self.outcome = Some(ended.outcome);
                self.sip_code = ended.sip_code;
                self.exit_code = ended.exit_code;
                self.completed_at = Some(ended.completed_at);
                self.reason = ended.reason;
                self.message = ended.message;
                self.evidence = ended.evidence.map(|evidence| *evidence).unwrap_or_default();
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

    fn count(&mut self, outcome: Outcome, now: Timestamp) {
        if outcome.counts() {
            self.faults_since = None;
        } else {
            self.faults += 1;
            self.faults_since.get_or_insert(now);
        }
    }

    /// How many attempts count among `max_attempts`, the present one included.
    pub fn counted_attempts(&self) -> u32 {
        self.attempt.saturating_sub(self.faults)
    }

    /// What was known of the attempt before is not true of the next one.
    fn forget_attempt(&mut self) {
        self.pod = None;
        self.started_at = None;
        self.completed_at = None;
        self.exit_code = None;
        self.outcome = None;
        self.sip_code = None;
        self.reason = None;
        self.message = None;
        self.evidence = Evidence::default();
    }

    fn blank(queued_at: Timestamp) -> Self {
        Self {
            id: CallId::default(),
            name: CallName::default(),
            job: None,
            namespace: String::new(),
            cluster: None,
            pod: None,
            trunk: None,
            trunks: Vec::new(),
            status: Status::Queued,
            revision: 0,
            is_final: false,
            attempt: 0,
            batch: None,
            priority: Priority::default(),
            dest: None,
            time: queued_at,
            queued_at,
            created_at: None,
            started_at: None,
            completed_at: None,
            not_before: None,
            ends_by: None,
            faults: 0,
            faults_since: None,
            due_at: None,
            waiting: None,
            exit_code: None,
            outcome: None,
            sip_code: None,
            reason: None,
            message: None,
            evidence: Evidence::default(),
            metadata: BTreeMap::new(),
            fingerprint: Fingerprint::default(),
            max_attempts: 1,
            redial_on: Vec::new(),
            traceparent: None,
        }
    }
}
