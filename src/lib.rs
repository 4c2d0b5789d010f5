//! # sipstuff-operator: the map
//!
//! ```text
//!  HTTP POST /call ──► desk ──┐                         sip.schedule.<job> (the server's timers fire into the queue)
//!  any NATS client ───────────┴─► SIP_CALLS (work queue, subject sip.calls)
//!                                    │ queue::intake: pull, hold, in-progress
//!                                    ▼
//!                      dialler: decode → identify → (decide → one step)* → settle
//!                        │ claim, record: log            │ start, stop          ▲ sightings
//!                        ▼                               ▼                      │
//!                      log: SIP_STATUS, sip.status.<name>   runner: kubernetes | local ──► tracker: observed × recorded
//!                        │ last per subject, then live
//!                        ▼
//!                      jobs (view) ──► desk ──► GET /jobs, GET /jobs/{name}
//! ```
//!
//! Dependencies point inward: `commands → http, queue, runner → dialler, tracker, jobs → job → call`. `call` and `job` are
//! pure: no runtime, no client, no clock. `http` knows the desk and nothing of NATS. Only `commands/serve.rs` wires.

pub mod call;
pub mod cli;
pub mod commands;
pub mod config;
pub mod desk;
pub mod dialler;
pub mod http;
pub mod job;
pub mod jobs;
pub mod log;
pub mod queue;
pub mod retry;
pub mod runner;
pub mod schema;
pub mod shutdown;
pub mod telemetry;
pub mod tracker;
