//! The HTTP API (warp): it reads a request, asks the [`Api`](crate::api::Api), and writes the response. It knows
//! nothing of NATS or Kubernetes.
//!
//! `server` (sockets, limits) → `routes` (which method on which path) → `handlers` (one step per line) → `body`,
//! `same_origin`, `query` (what a request must be) → the API → `dto`, `problem` (what an answer looks like).
//!
//! Probes and metrics are also served on a listener of their own, so that they answer however busy the API is.

mod body;
mod body_budget;
mod dto;
mod handlers;
mod metrics;
mod problem;
mod query;
mod routes;
mod same_origin;
mod server;

use std::time::Duration;

pub use self::body_budget::BodyBudget;
pub use self::dto::{Accepted, Job, JobWithOutlook, Ready};
pub use self::server::{serve, serve_admin};

/// The limits of the HTTP side. The defaults are the operator's.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// Largest request body, in bytes; a larger one is answered 413. Default 512 KiB.
    pub max_body_bytes: usize,
    /// How long the whole body may take to arrive; then 408. Default 10 s.
    pub body_timeout: Duration,
    /// Memory that all bodies together may use. Default 32 MiB, beside the first 16 KiB of each.
    pub body_budget: BodyBudget,
    /// How long the head of a request may take to arrive, and how long a connection may idle between requests; then it is
    /// closed. Default 10 s.
    pub header_timeout: Duration,
    /// Connections served at a time; further ones wait in the listener's backlog. Default 1024.
    pub max_connections: usize,
    /// How long requests in flight may continue after a shutdown was requested. Default 5 s.
    pub drain_timeout: Duration,
    /// What `GET /openapi.json` answers.
    pub openapi: serde_json::Value,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            max_body_bytes: 512 * 1024,
            body_timeout: Duration::from_secs(10),
            body_budget: BodyBudget::of_bytes(32 * 1024 * 1024),
            header_timeout: Duration::from_secs(10),
            max_connections: 1024,
            drain_timeout: Duration::from_secs(5),
            openapi: serde_json::Value::Null,
        }
    }
}
