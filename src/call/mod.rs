//! The core: what a call is, who it is, and what may happen to it. Pure: no I/O, no clock, no runtime, so that
//! every rule here can be tested as a table or a property.

#![warn(missing_docs)]

mod caller_log;
mod canonical;
pub mod change;
pub mod cloud_event;
pub mod event;
pub mod evidence;
pub mod id;
pub mod outcome;
pub mod pod;
pub mod priority;
#[cfg(test)]
mod properties;
pub mod redial_on;
pub mod request;
pub mod spec;
pub mod status;
pub mod traceparent;
pub mod validate;

pub use self::change::{Change, Ended};
pub use self::event::StatusEvent;
pub use self::evidence::{Evidence, Heard, Party};
pub use self::id::{CallId, CallName, Fingerprint};
pub use self::outcome::{Outcome, OutcomeClass, TrunkHealth, Verdict};
pub use self::pod::PodRef;
pub use self::priority::Priority;
pub use self::redial_on::RedialOn;
pub use self::request::CallRequest;
pub use self::spec::{CallSpec, OnUnknown};
pub use self::status::{IllegalStep, Status};
pub use self::traceparent::TraceParent;
pub use self::validate::{FieldError, Refusal};

/// A call that may be dialled: it exists only if the request was valid and its identity is known.
#[derive(Debug, Clone)]
pub struct Call {
    /// Who the call is, the same for every delivery and every replica.
    pub id: CallId,
    /// The name of the call: the name of its first attempt's Job.
    pub name: CallName,
    /// What the request asks for.
    pub spec: CallSpec,
    /// Hash of what is asked for, passwords left out.
    pub fingerprint: Fingerprint,
    /// The trace that the request belongs to.
    pub traceparent: Option<TraceParent>,
}

impl Call {
    /// Joins a valid request and an identity.
    pub fn new(id: CallId, spec: CallSpec) -> Self {
        Self { name: id.name(), fingerprint: spec.fingerprint(), id, spec, traceparent: None }
    }

    /// The same call as part of a trace.
    #[must_use]
    pub fn in_trace(self, traceparent: Option<TraceParent>) -> Self {
        Self { traceparent, ..self }
    }
}
