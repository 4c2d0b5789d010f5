//! The client's side of NATS: the connection, what can go wrong with it, the streams, reading and deleting
//! stored messages, and publishing with an acknowledgement.
//! Apart from [`crate::queue`] and [`crate::status_log`], which say what the messages mean.

pub mod connect;
pub mod delete;
pub mod error;
pub mod get;
pub mod leader;
pub mod monitoring;
pub mod publish;
pub mod streams;

use jiff::Timestamp;

pub use self::connect::NatsSettings;
pub use self::error::{NatsError, NatsErrorKind};
pub use self::monitoring::MonitoringUrl;
pub use self::streams::{Names, StreamSettings};

/// Nanoseconds since the epoch as a timestamp; NATS sends none outside of its range.
pub(crate) fn timestamp(nanoseconds: i128) -> Timestamp {
    Timestamp::from_nanosecond(nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH)
}
