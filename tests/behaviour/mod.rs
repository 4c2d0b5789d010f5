//! What the operator does for those who use it, one file per behaviour, each against a real nats-server.

mod admission;
mod bad_input;
mod call_index;
mod cancel;
mod cloud_events;
mod clusters;
mod commands;
mod dead_letters;
mod end_to_end;
mod expiry;
mod first_words;
mod full_queue;
mod headers;
mod http;
mod idempotency;
mod logging;
mod outlook;
mod pause;
mod priority;
mod rate_limit;
mod redial;
mod schedule;
mod secrets;
mod status_events;
mod trunks;
mod unreadable_records;
