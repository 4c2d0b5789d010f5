//! One key of the bucket that the replicas share, read from the stream's leader: a copy that lags must not undo what was set.

use async_nats::HeaderMap;
use async_nats::jetstream::kv::{Store, UpdateErrorKind};
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use bytes::Bytes;

use crate::nats::NatsError;

/// Header that the client library sets on the marker of a deleted key.
const KV_OPERATION: &str = "KV-Operation";

/// What one read of a key found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// Its value, and the revision to write after.
    Value(Bytes, u64),
    /// It was removed, at that revision.
    Removed(u64),
    /// It was never set in this bucket.
    Nothing,
}

impl Found {
    /// The revision that a write has to follow.
    pub(super) fn revision(&self) -> u64 {
        match self {
            Self::Value(_, revision) | Self::Removed(revision) => *revision,
            Self::Nothing => 0,
        }
    }
}

pub(super) async fn read(store: &Store, key: &str) -> Result<Found, NatsError> {
    let subject = format!("{}{key}", store.prefix);
    match store.stream.get_last_raw_message_by_subject(&subject).await {
        Ok(message) if is_marker(&message.headers) => Ok(Found::Removed(message.sequence)),
        Ok(message) => Ok(Found::Value(message.payload, message.sequence)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(Found::Nothing),
        Err(error) => Err(NatsError::of(error)),
    }
}

/// Writes a key that is still at a revision; false when it is not.
pub(super) async fn write_after(store: &Store, key: &str, value: Bytes, revision: u64) -> Result<bool, NatsError> {
    match store.update(key, value, revision).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
        Err(error) => Err(NatsError::of(error)),
    }
}

fn is_marker(headers: &HeaderMap) -> bool {
    headers.get(KV_OPERATION).is_some_and(|operation| operation.as_str() != "PUT")
}
