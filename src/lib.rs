//! # sipstuff-operator: the map
//!
//! ```text
//!  HTTP POST /call ──► api ───┐                          sip.schedule.<job> (the server's timers fire into sip.due)
//!  any NATS client ───────────┴─► SIP_CALLS              ▲ to wait          │ due
//!                                 the inbox ──► admission ◄─────────────────┘
//!                                  judges: queued, scheduled, expired, rejected ─► status_log
//!                                                  ▼
//!                                  SIP_QUEUE (by trunks, priority and batch; no consumer)
//!                                                  ▼ feed: what is next, as much as there is room for
//!                                  SIP_DIAL (by trunk; a message in flight is a call in progress)
//!                                                  ▼ queue::pull, queue::in_flight: prefetch, ack wait
//!                      dialler: (decide → one step)* → settle
//!                        │ claim, record              │ start, stop           ▲ observations
//!                        ▼                            ▼                       │
//!                      status_log: SIP_STATUS       runner: kubernetes | local ──► job_watch, reconcile
//!                        │ last per subject, then live
//!                        ▼
//!                      call_index ──► api ──► GET /jobs, GET /jobs/{name}
//! ```
//!
//! Dependencies point one way. A line names what a module may import; `tests/architecture.rs` holds the code to it.
//!
//! ```dependencies
//! main        → commands
//! commands    → http api admission feed dialler queue status_log call_index nats runner reconcile job_watch job policy call config schema clock retry shutdown telemetry error_chain
//! http        → api call clock error_chain
//! api         → queue status_log call_index nats policy call clock
//! admission   → queue status_log call_index nats policy call clock retry
//! feed        → queue call_index nats policy call clock retry
//! dialler     → queue reconcile status_log nats runner job_watch job policy call clock retry error_chain
//! reconcile   → queue status_log nats runner job_watch job call clock retry
//! job_watch   → runner job call
//! queue       → status_log nats policy call clock retry
//! status_log  → nats call
//! call_index  → status_log nats call clock retry
//! runner      → job call retry error_chain
//! nats        → clock error_chain
//! schema      → http api queue config policy call
//! config      → nats job policy call
//! telemetry   → config
//! clock       → call
//! retry       → error_chain
//! job         → call
//! policy      → call
//! call        →
//! error_chain →
//! shutdown    →
//! ```
//!
//! `call`, `job` and `policy` are the core: no I/O, no runtime, no client, no clock. Only `commands/serve/engine.rs` wires.

pub mod admission;
pub mod api;
pub mod call;
pub mod call_index;
pub mod clock;
pub mod commands;
pub mod config;
pub mod dialler;
pub mod error_chain;
pub mod feed;
pub mod http;
pub mod job;
pub mod job_watch;
pub mod nats;
pub mod policy;
pub mod queue;
pub mod reconcile;
pub mod retry;
pub mod runner;
pub mod schema;
pub mod shutdown;
pub mod status_log;
pub mod telemetry;
