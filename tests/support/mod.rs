//! What the tests run on: real servers, started on free ports and stopped when their handle is dropped.
//!
//! | module | what |
//! |---|---|
//! | [`setup`] | the fixture of most tests: a queue, a place where calls run, a listener |
//! | [`nats`] | a nats-server with JetStream, which can be killed and started again |
//! | [`nats_cluster`] | three of them that keep three copies of each stream |
//! | [`control_plane`] | etcd, kube-apiserver and kube-controller-manager; a namespace for each test |
//! | [`node`] | stands in for the kubelet: runs the pods of a namespace as processes |
//! | [`operator`] | the operator's own binary, as a process |
//! | [`cli`] | its other commands |
//! | [`requests`] | call requests |
//! | [`status`] | status events, the status log, what a stream holds |
//! | [`http`] | HTTP as a client uses it |
//! | [`proxy`] | a network that can be cut, stalled and slowed |
//! | [`process`] | processes that die with the test process |
//! | `unconfigured` | what every Job has in common when nothing is configured |
//! | [`wait`] | waiting for a condition, never for a time |
//! | `tests` | tests of all these |

pub mod cli;
pub mod control_plane;
pub mod http;
pub mod nats;
pub mod nats_cluster;
pub mod node;
pub mod operator;
pub mod process;
pub mod proxy;
pub mod requests;
pub mod setup;
pub mod status;
#[cfg(test)]
mod tests;
#[path = "../../src/job/unconfigured.rs"]
mod unconfigured;
pub mod wait;

// `unconfigured` has it from here.
use sipstuff_operator::job::JobDefaults;

pub use self::control_plane::{ControlPlane, Namespace};
pub use self::http::{delete, get_json, post_call};
pub use self::nats::{NatsOptions, NatsServer};
pub use self::nats_cluster::NatsCluster;
pub use self::node::{NodeOptions, TestNode};
pub use self::operator::{Operator, OperatorOptions};
pub use self::proxy::Proxy;
pub use self::requests::{in_seconds, name_of, request, request_of, with};
pub use self::setup::{PATIENCE, Setup, accepted};
pub use self::status::StatusListener;
pub(crate) use self::unconfigured::defaults as job_defaults;
pub use self::wait::{eventually, eventually_some};
