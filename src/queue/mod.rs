//! What is on its way from a request to a call: the inbox, what waits, the window of what is dialled, timers and dead letters. Here are
//! their subjects and headers; [`crate::nats`] knows how to talk to the server.

mod breakers;
mod bucket;
pub mod control;
pub mod dead_letters;
pub mod decode;
pub mod in_flight;
pub mod inbox;
pub mod keeper;
pub mod pull;
pub mod rate_limit;
pub mod scheduled;
pub mod state;
pub mod trunk_control;
pub mod undecodable;
pub mod waiting;
pub mod window;

pub use breakers::Breakers;
pub use in_flight::InFlight;
pub use inbox::{Delivery, Inbox};
pub use keeper::Keeper;
pub use trunk_control::{LiveTrunks, TrunkControl};
pub use waiting::Waiting;
pub use window::Window;
