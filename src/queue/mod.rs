//! The queue: what its messages mean, which of them are in flight here, and what waits beside it. It knows the subjects and
//! headers; [`crate::nats`] knows how to talk to the server.

pub mod control;
pub mod dead_letters;
pub mod in_flight;
pub mod inbox;
pub mod keeper;
pub mod pull;
pub mod rate_limit;
pub mod scheduled;
pub mod undecodable;

pub use in_flight::InFlight;
pub use inbox::{Delivery, Inbox};
pub use keeper::Keeper;
