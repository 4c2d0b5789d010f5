//! What the stories stand on: real servers, started on free ports and gone when their handle is.
//!
//! | module | what |
//! |---|---|
//! | [`nats`] | a nats-server with JetStream, which can be killed and started again |
//! | [`control_plane`] | etcd, kube-apiserver and kube-controller-manager; a namespace for each test |
//! | [`node`] | stands in for the kubelet: runs the pods of a namespace as processes |
//! | [`operator`] | the operator's own binary, as a process |
//! | [`status`] | what the world hears: status events; and HTTP |
//! | [`proxy`] | a network that can be cut, stalled and slowed |
//! | [`process`] | what they all share: processes that die with the test process |
//! | `unconfigured` | what every Job has in common when nothing is configured |
//! | [`wait`] | waiting for a condition, never for a time |

pub mod control_plane;
pub mod nats;
pub mod node;
pub mod operator;
pub mod process;
pub mod proxy;
pub mod setup;
pub mod status;
#[cfg(test)]
mod tests;
#[path = "../../src/job/unconfigured.rs"]
mod unconfigured;
pub mod wait;

// `unconfigured` has it from here.
use sipstuff_operator::job::JobDefaults;

pub use control_plane::{ControlPlane, Namespace};
pub use nats::{NatsOptions, NatsServer};
pub use node::{NodeOptions, TestNode};
pub use operator::{Operator, OperatorOptions};
pub use proxy::Proxy;
pub use status::{StatusListener, get_json, post_call, request};
pub(crate) use unconfigured::defaults as job_defaults;
pub use wait::{eventually, eventually_some};
