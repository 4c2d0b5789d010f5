//! The breaker of a trunk, which stops dialling on it before a list is burnt: a wrong password, a full trunk, a cluster without nodes
//! or a missing file would fail one call after the other.
//!
//! ```text
//!  closed ── as many calls in a row have had faults as are allowed ──► open
//!  open ── the cool-down has passed, and a call comes ──► half open: that call probes
//!  half open ── the probe had a person's outcome ──► closed
//!  half open ── the probe failed ──► open, for twice as long if the fault was ours
//!  any ── by hand ──► open, until it is closed by hand; or closed
//! ```
//!
//! Calls end long after others are begun, so counting ends alone would let a trunk with twenty channels fail twenty times. A trunk is
//! therefore **in doubt** from its first fault until a person's outcome, and so is one that had none yet: meanwhile the calls that are
//! begun are counted, and no more are than could open the breaker.
//!
//! One record serves all replicas. Whoever changes it applies the change to a copy, writes that by compare-and-set if it is another,
//! and only then acts: dials what [`Breaker::admit`] let pass, or publishes what [`Breaker::record`] says has changed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::call::{CallName, Outcome, OutcomeClass, Status, StatusEvent, TrunkHealth};

/// The first cool-down, in seconds.
pub const FIRST_COOL_DOWN: u32 = 60;
/// The longest, in seconds.
pub const LONGEST_COOL_DOWN: u32 = 1800;
/// How many faults are kept for people, at least.
const KEPT_FAULTS: usize = 5;
/// Longest reason of a fault that is kept, in characters.
const MAX_REASON: usize = 200;

/// What a breaker lets pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Calls are dialled.
    #[default]
    Closed,
    /// No call is.
    Open,
    /// One call is, to find out.
    HalfOpen,
}

impl fmt::Display for BreakerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half open",
        })
    }
}

/// The breaker of one trunk. The default is that of a trunk on which nothing was dialled yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breaker {
    /// What it lets pass.
    state: BreakerState,
    /// Since when; `None` where it never changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
    /// Open: when a call may probe; `None` where a person has to close it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
    /// The last cool-down in seconds; 0 where there was none since a success.
    #[serde(default)]
    cool_down: u32,
    /// Who changed it by hand; `None` where it changed by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    /// Why it changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Whether a call has had a person's outcome since the trunk is there, or since a person closed the breaker.
    #[serde(default)]
    is_proven: bool,
    /// The last faults, each of another call, the newest last; while closed, those since the last person's outcome.
    #[serde(default)]
    faults: Vec<Fault>,
    /// Jobs that were begun while the trunk was in doubt and have not ended, and when each has at the latest.
    #[serde(default)]
    trials: BTreeMap<String, Timestamp>,
}

/// An attempt that failed and was no person's doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fault {
    /// The attempt's Job.
    pub job: String,
    /// What became of it.
    pub outcome: Outcome,
    /// The last SIP code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sip_code: Option<u16>,
    /// Why, where that is known: at most 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it ended.
    pub time: Timestamp,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending<'a> {
    /// Its Job.
    pub job: &'a str,
    /// What became of it; `None` where it was ended from outside, as by a cancel.
    pub outcome: Option<Outcome>,
    /// The last SIP code.
    pub sip_code: Option<u16>,
    /// Why.
    pub reason: Option<&'a str>,
}

/// What has changed, to be told on `sip.alert`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Changed {
    /// Nothing is dialled on the trunk any more.
    Opened,
    /// One call probes it.
    Probing,
    /// Everything is dialled again.
    Closed,
}

/// Why a call is not dialled on a trunk now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Held {
    /// When it is worth another look, where that is known; otherwise when another call ends or a person closes the breaker.
    pub until: Option<Timestamp>,
    /// In words.
    pub why: String,
}

impl Breaker {
    /// What it lets pass.
    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// Since when; `None` where it never changed.
    pub fn since(&self) -> Option<Timestamp> {
        self.since
    }

    /// While open: when a call may probe; `None` where a person has to close it.
    pub fn until(&self) -> Option<Timestamp> {
        self.until
    }

    /// Who changed it by hand.
    pub fn by(&self) -> Option<&str> {
        self.by.as_deref()
    }

    /// Why it changed.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// The last faults, the newest last; while closed, those since the last person's outcome.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// How the trunk does for others than the call with this Job.
    pub fn health_for(&self, job: &str, failures: u32) -> TrunkHealth {
        let is_of_another = |fault: &Fault| call_of(&fault.job) != call_of(job);
        match self.state {
            BreakerState::Open | BreakerState::HalfOpen => TrunkHealth::Stopped,
            BreakerState::Closed if self.faults.iter().any(is_of_another) => TrunkHealth::InDoubt,
            BreakerState::Closed if self.is_proven || failures == 0 => TrunkHealth::Works,
            BreakerState::Closed => TrunkHealth::InDoubt,
        }
    }

    /// Whether the last thing that was heard of the trunk is that it works: then neither a call nor its end, but for a fault, is news.
    pub fn is_trusted(&self, failures: u32) -> bool {
        self.state == BreakerState::Closed && self.faults.is_empty() && (self.is_proven || failures == 0)
    }

    /// How many more calls may be begun now; `None`: as many as the trunk has channels for. `failures` is how many faults in a row
    /// open it; with 0 it opens by hand only.
    pub fn room(&self, now: Timestamp, failures: u32) -> Option<u32> {
        let most = match self.state {
            BreakerState::Open => u32::from(self.until.is_some_and(|until| until <= now)),
            BreakerState::HalfOpen => 1,
            BreakerState::Closed if !self.is_in_doubt(failures) => return None,
            // At least one, or a breaker whose limit was lowered would never hear of its trunk again.
            BreakerState::Closed => failures.saturating_sub(count(&self.faults)).max(1),
        };
        let trials = self.trials.values().filter(|ends_by| **ends_by > now).count();
        Some(most.saturating_sub(u32::try_from(trials).unwrap_or(u32::MAX)))
    }

    /// Why no call may be begun now; `None` where one may.
    pub fn held(&self, now: Timestamp, failures: u32) -> Option<Held> {
        (self.room(now, failures) == Some(0)).then(|| Held { until: self.until, why: self.why_held() })
    }

    /// Whether a person has opened it: then also what was let pass before is not begun.
    pub fn is_open_by_hand(&self) -> bool {
        self.state == BreakerState::Open && self.until.is_none()
    }

    /// Lets an attempt pass that is over at `ends_by` at the latest, or not. One that was let pass before passes again, so that a message
    /// that is redelivered before its claim does not lose its place.
    ///
    /// # Errors
    /// [`Held`].
    pub fn admit(
        &mut self,
        job: &str,
        ends_by: Timestamp,
        now: Timestamp,
        failures: u32,
    ) -> Result<Option<Changed>, Held> {
        if self.trials.get(job).is_some_and(|ends_by| *ends_by > now) {
            return Ok(None);
        }
        if let Some(held) = self.held(now, failures) {
            return Err(held);
        }
        if self.room(now, failures).is_none() {
            return Ok(None);
        }
        self.trials.retain(|_, ends_by| *ends_by > now);
        self.trials.insert(job.to_owned(), ends_by);
        let begins_to_probe = self.state == BreakerState::Open;
        if begins_to_probe {
            self.turn(BreakerState::HalfOpen, now, format!("{job} probes the trunk"));
        }
        Ok(begins_to_probe.then_some(Changed::Probing))
    }

    /// Learns how an attempt on the trunk ended. Told twice it changes nothing more, so it is told before the message of the attempt is
    /// acknowledged.
    pub fn record(&mut self, ending: &Ending<'_>, now: Timestamp, failures: u32) -> Option<Changed> {
        let was_trial = self.trials.remove(ending.job).is_some();
        let is_fault = ending.is_fault();
        let is_good = ending.outcome.is_some_and(|outcome| outcome.class() == OutcomeClass::Person);
        if is_fault {
            self.note(ending, now, failures);
        }
        match self.state {
            BreakerState::Closed if is_good => {
                self.trust();
                None
            }
            BreakerState::Closed if is_fault && failures > 0 && count(&self.faults) >= failures => {
                let faults = self.faults.len();
                Some(self.open_for(FIRST_COOL_DOWN, now, format!("{faults} faults in a row")))
            }
            BreakerState::HalfOpen if was_trial => self.probed(ending.outcome, now),
            _ => None,
        }
    }

    /// Opens it by hand, until it is closed by hand.
    pub fn open(&mut self, by: Option<String>, reason: String, now: Timestamp) -> Changed {
        self.turn(BreakerState::Open, now, reason);
        self.by = by;
        self.trials.clear();
        Changed::Opened
    }

    /// Closes it by hand. The trunk stays in doubt until a person's outcome, so an error costs no more calls than the first time. `None`
    /// where it was closed.
    pub fn close(&mut self, by: Option<String>, reason: String, now: Timestamp) -> Option<Changed> {
        let has_changed = self.state != BreakerState::Closed;
        self.turn(BreakerState::Closed, now, reason);
        self.by = by;
        self.trust();
        self.is_proven = false;
        has_changed.then_some(Changed::Closed)
    }

    /// What a probe's end says. Without an outcome it says nothing, and the next call probes.
    fn probed(&mut self, outcome: Option<Outcome>, now: Timestamp) -> Option<Changed> {
        let outcome = outcome?;
        let reason = format!("the probe ended {outcome}");
        match outcome {
            good if good.class() == OutcomeClass::Person => {
                self.turn(BreakerState::Closed, now, reason);
                self.trust();
                Some(Changed::Closed)
            }
            bad if is_fault(bad) => Some(self.open_for(self.cool_down.saturating_mul(2), now, reason)),
            _ => Some(self.open_for(self.cool_down, now, reason)),
        }
    }

    fn open_for(&mut self, cool_down: u32, now: Timestamp, reason: String) -> Changed {
        self.turn(BreakerState::Open, now, reason);
        self.cool_down = cool_down.clamp(FIRST_COOL_DOWN, LONGEST_COOL_DOWN);
        let until = now.saturating_add(SignedDuration::from_secs(self.cool_down.into()));
        self.until = Some(until.unwrap_or(Timestamp::MAX));
        self.trials.clear();
        Changed::Opened
    }

    fn turn(&mut self, state: BreakerState, now: Timestamp, reason: String) {
        self.state = state;
        self.since = Some(now);
        self.until = None;
        self.by = None;
        self.reason = Some(reason);
    }

    fn trust(&mut self) {
        self.is_proven = true;
        self.cool_down = 0;
        self.faults.clear();
        self.trials.clear();
    }

    fn note(&mut self, ending: &Ending<'_>, now: Timestamp, failures: u32) {
        let (Some(outcome), false) = (ending.outcome, self.faults.iter().any(|fault| fault.job == ending.job)) else {
            return;
        };
        let reason = ending.reason.map(|reason| reason.chars().take(MAX_REASON).collect());
        // A number that is refused again and again says no more of the trunk than once.
        self.faults.retain(|fault| call_of(&fault.job) != call_of(ending.job));
        self.faults.push(Fault { job: ending.job.to_owned(), outcome, sip_code: ending.sip_code, reason, time: now });
        let kept = KEPT_FAULTS.max(failures as usize);
        self.faults.drain(..self.faults.len().saturating_sub(kept));
    }

    fn is_in_doubt(&self, failures: u32) -> bool {
        failures > 0 && !(self.is_proven && self.faults.is_empty())
    }

    fn why_held(&self) -> String {
        let reason = self.reason.as_deref().unwrap_or("no reason was given");
        match (self.state, self.faults.last()) {
            (BreakerState::Open, Some(last)) if self.until.is_some() => {
                format!("the trunk's breaker is open: {reason}; the last fault: {last}")
            }
            (BreakerState::Open, _) if self.until.is_some() => format!("the trunk's breaker is open: {reason}"),
            (BreakerState::Open, _) => format!("the trunk's breaker was opened by hand: {reason}"),
            (BreakerState::HalfOpen, _) => format!("the trunk's breaker is half open: {reason}"),
            (BreakerState::Closed, Some(last)) => {
                format!(
                    "the trunk is in doubt, and calls that were begun on it are to end first; the last fault: {last}"
                )
            }
            (BreakerState::Closed, None) => "the trunk's first calls are to end first".to_owned(),
        }
    }
}

impl<'a> Ending<'a> {
    /// Whether it failed by our trunk, our cluster or our caller.
    pub fn is_fault(&self) -> bool {
        self.outcome.is_some_and(is_fault)
    }

    /// Of an attempt that was let pass and is not made, or was ended from outside.
    pub fn none(job: &'a str) -> Self {
        Self { job, outcome: None, sip_code: None, reason: None }
    }

    /// Of an event that says that an attempt has ended; `None` for any other.
    pub fn of(event: &'a StatusEvent) -> Option<Self> {
        let outcome = match event.status {
            Status::Succeeded | Status::Failed => Some(event.outcome?),
            // One that waited for its redial keeps the outcome of the attempt before, which was told then.
            Status::Cancelled | Status::Expired | Status::Rejected if event.outcome.is_none() => None,
            _ => return None,
        };
        let reason = event.reason.as_deref();
        Some(Self { job: event.job.as_deref()?, outcome, sip_code: event.sip_code, reason })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.outcome, self.job)?;
        if let Some(code) = self.sip_code {
            write!(f, ", SIP code {code}")?;
        }
        if let Some(reason) = &self.reason {
            write!(f, ", {reason}")?;
        }
        Ok(())
    }
}

/// Whether the attempt failed by our trunk, our cluster or our caller, and not by the network or the other side.
fn is_fault(outcome: Outcome) -> bool {
    matches!(outcome.class(), OutcomeClass::Trunk | OutcomeClass::Cluster | OutcomeClass::Caller)
}

/// The call of an attempt's Job.
fn call_of(job: &str) -> Cow<'_, str> {
    CallName::of_job(job).map_or(Cow::Borrowed(job), |name| Cow::Owned(name.to_string()))
}

fn count(faults: &[Fault]) -> u32 {
    u32::try_from(faults.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
