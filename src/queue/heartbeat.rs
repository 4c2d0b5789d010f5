//! Which clusters share the queue, and when each was heard of last: so that a call that was claimed by a cluster that is no
//! more is settled some day, and by nobody earlier.

use std::time::Duration;

use async_nats::jetstream::kv::Store;
use jiff::{SignedDuration, Timestamp};

use crate::{
    clock::now,
    nats::{NatsError, timestamp},
    retry::Retry,
};

/// How often a cluster shows that it is there.
const EVERY: Duration = Duration::from_secs(30);

/// Shows and looks up.
#[derive(Clone)]
pub struct Heartbeat {
    store: Store,
    orphan_after: SignedDuration,
}

impl Heartbeat {
    /// Clusters in the bucket; one that was not heard of for `orphan_after` is given up.
    pub fn new(store: Store, orphan_after: Duration) -> Self {
        Self { store, orphan_after: SignedDuration::try_from(orphan_after).unwrap_or(SignedDuration::MAX) }
    }

    /// Shows that a cluster is there; never returns.
    pub async fn run(self, cluster: String) {
        let (key, mut retry) = (key(&cluster), Retry::new("show that this cluster is there"));
        loop {
            let wait = match self.store.put(&key, "".into()).await {
                Ok(_) => EVERY,
                Err(error) => retry.failed(error),
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Whether a cluster is given up: neither it nor the call's record (`recorded`) was heard of for long enough.
    ///
    /// # Errors
    /// [`NatsError`] when it cannot be looked up.
    pub async fn is_given_up(&self, cluster: &str, recorded: Timestamp) -> Result<bool, NatsError> {
        let entry = self.store.entry(key(cluster)).await.map_err(NatsError::of)?;
        let heard = entry.map_or(recorded, |entry| timestamp(entry.created.unix_timestamp_nanos()).max(recorded));
        Ok(now().duration_since(heard) >= self.orphan_after)
    }
}

/// Any name as a key of the bucket.
fn key(cluster: &str) -> String {
    format!("cluster.{}", data_encoding::BASE32_NOPAD.encode(cluster.as_bytes()))
}
