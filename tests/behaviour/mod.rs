//! What the operator does for those who use it, one file per behaviour, each against a real nats-server.

mod bad_input;
mod batches;
mod commands;
mod end_to_end;
mod headers;
pub(crate) mod http;
mod idempotency;
