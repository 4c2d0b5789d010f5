//! Every integration test, in one binary: `support` is what they stand on, each other module tells one story.

#![allow(dead_code, unused_imports, unreachable_pub, missing_docs, clippy::unwrap_used)]

mod support;

mod architecture;
mod bad_input;
mod batches;
mod commands;
mod crash;
mod deployment;
mod golden;
mod guarantees;
mod http;
mod kubernetes_runner;
mod local_runner;
mod memory;
mod model;
mod once;
mod outages;
mod stage;
mod support_works;
mod torture;
mod whole_way;
