//! The one clock: what is compared comes from here, so that the core can do without one.

use jiff::Timestamp;

use crate::call::CallId;

/// The present moment.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// A fresh id for a call whose caller gave none: UUID version 7, so that ids sort by time.
pub fn fresh_id() -> CallId {
    CallId::from_uuid(uuid::Uuid::now_v7())
}
