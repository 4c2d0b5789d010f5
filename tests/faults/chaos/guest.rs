//! A cluster that comes and goes: a namespace, a node and an operator of its own, on the queue of the others.

use std::path::{Path, PathBuf};

use super::plan::Plan;
use super::world::{append_log, options};
use crate::support::{ControlPlane, Namespace, NatsServer, Operator, TestNode};

/// A cluster that will vanish.
pub struct Guest {
    /// `CLUSTER_NAME`.
    pub cluster: String,
    /// Its node, counted as one with the others.
    pub node: TestNode,
    operator: Operator,
    logs: PathBuf,
    _namespace: Namespace,
}

impl Guest {
    /// Comes, `number` from 1. `counted` is a node that counts containers.
    pub async fn arrive(
        number: usize,
        plan: Plan,
        nats: &NatsServer,
        plane: &ControlPlane,
        counted: &TestNode,
        logs: &Path,
    ) -> Self {
        let cluster = format!("guest-{number}");
        let namespace = plane.namespace().await;
        let node = counted.another(namespace.client.clone(), &namespace.name);
        let options = options(plan, nats, &namespace, logs).env("CLUSTER_NAME", &cluster);
        let operator = Operator::start_unready(options).await;
        Self { cluster, node, operator, logs: logs.to_owned(), _namespace: namespace }
    }

    /// Takes everything of it away at once. Its Jobs stay as they are: nobody will ever say how they ended.
    pub fn vanish(&mut self) {
        self.node.vanish();
        self.operator.kill9();
        self.keep_log();
    }

    /// Where its operator serves HTTP.
    pub fn base(&self) -> String {
        self.operator.base().to_owned()
    }

    /// Appends what its operator has logged to what the guests before it have.
    pub fn keep_log(&self) {
        append_log(&self.logs.join("operator-guest.log"), &self.operator);
    }
}
