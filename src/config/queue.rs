//! The limits of the queue and the status log: the flags, and the [`StreamSettings`] made from them. Some are enforced
//! by the streams, the others elsewhere.

use std::time::Duration;

use clap::Args;

use super::values::{fault_patience, rate, retention, whole};
use crate::nats::{Names, StreamSettings};

/// The queue and the status log.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Queue")]
pub struct QueueArgs {
    /// Maximum number of calls in progress at once, across all replicas (1 to 100000)
    #[arg(long, env = "MAX_ACTIVE_CALLS", default_value_t = 100, global = true, value_parser = whole(1_u32..=100_000))]
    pub max_active_calls: u32,
    /// Maximum number of calls started per second, across all replicas, evenly spaced; fractions allowed. 0: no limit
    #[arg(long, env = "CALLS_PER_SECOND", default_value = "0", global = true, value_parser = rate)]
    pub calls_per_second: f64,
    /// How long a call is tried again after faults of the cluster (no node, no image, a quota) or of a trunk that dials for
    /// others; 0s: not at all
    #[arg(long, env = "FAULT_PATIENCE", default_value = "1h", global = true, value_parser = fault_patience)]
    pub fault_patience: Duration,
    /// How long a call's records are kept after its last change, or after the time that it waits for; at least 24h
    #[arg(long, env = "STATUS_RETENTION", default_value = "72h", global = true, value_parser = retention)]
    pub status_retention: Duration,
    /// Copies of each stream in a NATS cluster (1 to 5)
    #[arg(long, env = "NATS_REPLICAS", default_value_t = 1, global = true, value_parser = whole(1_u8..=5))]
    pub nats_replicas: u8,
    /// Maximum number of messages in the queue, which refuses more. -1: no limit
    #[arg(long, env = "QUEUE_MAX_MESSAGES", default_value_t = 1_000_000, global = true, allow_negative_numbers = true, value_parser = whole(-1_i64..=i64::MAX))]
    pub queue_max_messages: i64,
    /// Maximum size of the queue in bytes; it refuses more. -1: no limit
    #[arg(long, env = "QUEUE_MAX_BYTES", default_value_t = -1, global = true, allow_negative_numbers = true, value_parser = whole(-1_i64..=i64::MAX))]
    pub queue_max_bytes: i64,
    /// Maximum number of calls that GET /jobs lists; each takes about 250 bytes in every replica. Older calls that have
    /// ended are left out first, and are still found by name or id
    #[arg(long, env = "INDEX_MAX_CALLS", default_value_t = 1_000_000, global = true, value_parser = whole(1_usize..=100_000_000))]
    pub index_max_calls: usize,
}

impl QueueArgs {
    /// The form that the streams are set up with.
    pub fn settings(&self) -> StreamSettings {
        let Self {
            max_active_calls: _,
            calls_per_second: _,
            fault_patience: _,
            status_retention: _,
            nats_replicas,
            queue_max_messages,
            queue_max_bytes,
            index_max_calls: _,
        } = *self;
        StreamSettings {
            names: Names::default(),
            replicas: usize::from(nats_replicas),
            queue_max_messages,
            queue_max_bytes,
        }
    }
}
