//! What the faults happen to: two replicas of the operator on one queue and one cluster, each behind proxies of its own, and a
//! third operator with a cluster of its own.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use nix::sys::signal::Signal;
use sipstuff_operator::call::StatusEvent;

use super::guest::Guest;
use super::plan::{Plan, callee};
use crate::support::operator::{Operator, OperatorOptions, Runner};
use crate::support::process::Scratch;
use crate::support::{ControlPlane, Namespace, NatsServer, NodeOptions, Proxy, TestNode, node};

/// `JOB_DEADLINE_MARGIN_SECONDS`: small, so that what vanishes with its end is over within the run, and long enough for a claim whose Job was
/// never made to be told from an end that was lost.
const DEADLINE_MARGIN_SECONDS: u32 = 15;

/// How long a settled Job is kept: longer than anything that is under way may be late.
const JOB_TTL_SECONDS: u32 = 60;

/// How long after its API server has come back the Job controller may still make up for an answer that it never got.
const UPSET: SignedDuration = SignedDuration::from_secs(30);

/// Everything that runs.
pub struct World {
    pub plan: Plan,
    pub begin: Instant,
    pub nats: NatsServer,
    pub plane: ControlPlane,
    pub namespace: Namespace,
    /// The nodes of the replicas' cluster: the last one runs, the others have vanished.
    nodes: Mutex<Vec<Arc<TestNode>>>,
    pub replicas: [Replica; 2],
    /// The third operator.
    pub guest: tokio::sync::Mutex<Guest>,
    pub client: async_nats::Client,
    /// Jobs that were harmed by hand, each with what the log said of its call before.
    pub harmed: Mutex<Vec<Harmed>>,
    /// When clusters have vanished, by their names.
    pub vanished: Mutex<HashMap<String, Timestamp>>,
    /// The calls that were cancelled by a fault.
    pub cancelled: Mutex<HashSet<String>>,
    /// From when until when nothing may have been claimed.
    pub pauses: Mutex<Vec<(Timestamp, Timestamp)>>,
    /// How many dead letters were deleted with their stream.
    pub letters_deleted: Mutex<u64>,
    /// From when until when the API server or the controller manager was down.
    pub control_down: Mutex<Vec<(Timestamp, Timestamp)>>,
    /// Held while the API server or the controller manager is down.
    pub control: tokio::sync::Mutex<()>,
    /// Held while nats-server is down.
    pub queue: tokio::sync::Mutex<()>,
    /// Held while dialling is paused, or the bucket is deleted.
    pub bucket: tokio::sync::Mutex<()>,
    pub logs: PathBuf,
}

/// A Job that was harmed by hand.
#[derive(Debug, Clone)]
pub struct Harmed {
    pub job: String,
    pub how: &'static str,
    /// Whether the log knew that it ran: then it must never be started again.
    pub known_to_run: bool,
}

/// One replica, and the network between it and the others.
pub struct Replica {
    pub name: &'static str,
    pub nats: Proxy,
    pub kubernetes: Proxy,
    options: OperatorOptions,
    operator: tokio::sync::Mutex<Option<Operator>>,
    base: Mutex<String>,
    logs: PathBuf,
}

impl World {
    pub async fn start(plan: Plan) -> Self {
        let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{}", plan.seed));
        let _ = std::fs::remove_dir_all(&logs);
        std::fs::create_dir_all(&logs).expect("a folder below target/");
        std::fs::write(trunks_file(&logs), plan.trunks_file().to_string()).expect("a file below target/");
        let nats = NatsServer::start().await;
        let plane = ControlPlane::start_own().await;
        let namespace = plane.namespace().await;
        let node = TestNode::start(namespace.client.clone(), &namespace.name, node_options(plan));
        let client = nats.client().await;
        let a = Replica::start("a", plan, &nats, &plane, &namespace, &logs).await;
        let b = Replica::start("b", plan, &nats, &plane, &namespace, &logs).await;
        let replicas = [a, b];
        let guest = tokio::sync::Mutex::new(Guest::arrive(1, plan, &nats, &plane, &node, &logs).await);
        let nodes = Mutex::new(vec![Arc::new(node)]);
        let (harmed, vanished, cancelled, pauses, letters_deleted) = Default::default();
        let (control_down, control, queue, bucket) = Default::default();
        Self {
            plan,
            begin: Instant::now(),
            nats,
            plane,
            namespace,
            nodes,
            replicas,
            guest,
            client,
            harmed,
            vanished,
            cancelled,
            pauses,
            letters_deleted,
            control_down,
            control,
            queue,
            bucket,
            logs,
        }
    }

    /// The node that runs.
    pub fn node(&self) -> Arc<TestNode> {
        Arc::clone(self.nodes.lock().expect("no panic while it is held").last().expect("there is always one"))
    }

    /// Another node takes the pods to come.
    pub fn replace_node(&self) {
        let another = self.node().another(self.namespace.client.clone(), &self.namespace.name);
        self.nodes.lock().expect("no panic while it is held").push(Arc::new(another));
    }

    /// The Jobs that nodes had in hand when they vanished.
    pub fn lost_with_nodes(&self) -> HashSet<String> {
        let nodes = self.nodes.lock().expect("no panic while it is held");
        nodes[..nodes.len() - 1].iter().flat_map(|node| node.jobs_in_hand()).collect()
    }

    /// Takes the guest's cluster away, with all that is in it.
    pub fn vanish_guest(&self, guest: &mut Guest) {
        guest.vanish();
        self.vanished.lock().expect("no panic while it is held").insert(guest.cluster.clone(), Timestamp::now());
    }

    /// Another cluster comes in place of the guest that has vanished.
    pub async fn replace_guest(&self, guest: &mut Guest) {
        let number = self.vanished.lock().expect("no panic while it is held").len() + 1;
        *guest = Guest::arrive(number, self.plan, &self.nats, &self.plane, &guest.node, &self.logs).await;
    }

    /// Removes the pods of the nodes that have vanished, as Kubernetes does once somebody has removed the nodes themselves.
    pub async fn remove_lost_pods(&self) {
        let pods: Api<Pod> = self.namespace.api();
        let node = self.node();
        let is_lost = |pod: &Pod| {
            let name = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            name.is_some_and(|name| name != node.name())
        };
        let listed = pods.list(&ListParams::default()).await.expect("the API server is up").items;
        for pod in listed.iter().filter(|pod| is_lost(pod)) {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let _ = pods.delete(name, &DeleteParams::default().grace_period(0)).await;
        }
    }

    pub fn js(&self) -> jetstream::Context {
        jetstream::new(self.client.clone())
    }

    /// What the log says of the call of a Job now.
    pub async fn state_of(&self, call: &str) -> Option<StatusEvent> {
        let stream = self.js().get_stream_no_info("SIP_STATUS").await.ok()?;
        let message = stream.direct_get_last_for_subject(format!("sip.status.{call}")).await.ok()?;
        serde_json::from_slice(&message.payload).ok()
    }

    pub fn harm(&self, job: String, how: &'static str, known_to_run: bool) {
        self.harmed.lock().expect("no panic while it is held").push(Harmed { job, how, known_to_run });
    }

    pub fn harmed(&self) -> Vec<Harmed> {
        self.harmed.lock().expect("no panic while it is held").clone()
    }

    /// Notes that the API server or the controller manager was down from `since` until now.
    pub fn control_was_down(&self, since: Timestamp) {
        self.control_down.lock().expect("no panic while it is held").push((since, Timestamp::now()));
    }

    /// Whether the Job controller may have lost the answer to what it did last before that moment.
    pub fn control_was_upset(&self, at: Timestamp) -> bool {
        let down = self.control_down.lock().expect("no panic while it is held");
        down.iter().any(|(since, until)| *since <= at && at <= *until + UPSET)
    }

    /// Makes everything well again: what is down comes up, what is slow is fast.
    pub fn heal(&self) {
        for replica in &self.replicas {
            for proxy in [&replica.nats, &replica.kubernetes] {
                proxy.refuse(false);
                proxy.stall(false);
                proxy.slow(Duration::ZERO);
            }
        }
    }

    /// Keeps what may explain a failure.
    pub async fn keep_logs(&self) {
        for replica in &self.replicas {
            replica.keep_log(replica.operator.lock().await.as_ref());
        }
        self.guest.lock().await.keep_log();
        let _ = std::fs::write(self.logs.join("nats-server.log"), self.nats.log());
        let _ = std::fs::copy(self.node().starts_file(), self.logs.join("starts.jsonl"));
    }
}

fn node_options(plan: Plan) -> NodeOptions {
    if plan.is_big() {
        let instant = Some(node::Instant { exit_code: 0, after: Duration::from_secs(1) });
        NodeOptions { instant, callee: Some(callee), ..Default::default() }
    } else {
        NodeOptions { env: vec![("SIMULATE_SECONDS".to_owned(), "0.8".to_owned())], ..Default::default() }
    }
}

/// What every operator is set to.
pub fn options(plan: Plan, server: &NatsServer, namespace: &Namespace, logs: &Path) -> OperatorOptions {
    let options = OperatorOptions::kubernetes(server, namespace)
        .env("TRUNKS_FILE", trunks_file(logs).display())
        .env("JOB_START_SECONDS", plan.start_seconds())
        .env("JOB_DEADLINE_MARGIN_SECONDS", DEADLINE_MARGIN_SECONDS)
        .env("JOB_TTL_SECONDS", JOB_TTL_SECONDS);
    // A line for every step of every call would be hundreds of megabytes.
    if plan.is_big() { options.env("RUST_LOG", "info") } else { options }
}

fn trunks_file(logs: &Path) -> PathBuf {
    logs.join("trunks.yaml")
}

/// Appends what an operator has logged to a file.
pub fn append_log(path: &Path, operator: &Operator) {
    use std::io::Write;
    if let Ok(mut file) = std::fs::File::options().create(true).append(true).open(path) {
        let _ = file.write_all(operator.log().as_bytes());
        let _ = writeln!(file, "--- the end of process {}", operator.pid());
    }
}

impl Replica {
    async fn start(
        name: &'static str,
        plan: Plan,
        server: &NatsServer,
        plane: &ControlPlane,
        namespace: &Namespace,
        logs: &Path,
    ) -> Self {
        let nats = Proxy::start(format!("127.0.0.1:{}", server.port())).await;
        let kubernetes = Proxy::start(plane.addr()).await;
        let kubeconfig = namespace.proxied_kubeconfig(&kubernetes);
        let mut options = options(plan, server, namespace, logs).nats_url(nats.url("nats"));
        options.runner = Runner::Kubernetes { kubeconfig, namespace: namespace.name.clone() };
        let operator = Operator::start(options.clone()).await;
        let base = Mutex::new(operator.base().to_owned());
        let operator = tokio::sync::Mutex::new(Some(operator));
        Self { name, nats, kubernetes, options, operator, base, logs: logs.to_owned() }
    }

    /// Where it serves HTTP.
    pub fn base(&self) -> String {
        self.base.lock().expect("no panic while it is held").clone()
    }

    /// Kills it, waits, and starts it again.
    pub async fn kill(&self, down: Duration) {
        let mut operator = self.operator.lock().await;
        operator.as_mut().expect("it always runs").kill9();
        self.come_back(&mut operator, down).await;
    }

    /// Ends it in good order, waits, and starts it again. How long the end took.
    pub async fn terminate(&self, down: Duration) -> Duration {
        let mut operator = self.operator.lock().await;
        let begin = Instant::now();
        operator.as_mut().expect("it always runs").terminate(Duration::from_secs(60)).await;
        let took = begin.elapsed();
        self.come_back(&mut operator, down).await;
        took
    }

    /// Stops it, and lets it go on later.
    pub async fn freeze(&self, time: Duration) {
        let mut operator = self.operator.lock().await;
        let operator = operator.as_mut().expect("it always runs");
        operator.freeze();
        tokio::time::sleep(time).await;
        operator.signal(Signal::SIGCONT);
    }

    /// Resident KiB and open files.
    pub async fn size(&self) -> (u64, usize) {
        let operator = self.operator.lock().await;
        let operator = operator.as_ref().expect("it always runs");
        (operator.rss_kb(), operator.open_files())
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&self) {
        self.operator.lock().await.as_mut().expect("it always runs").ready().await;
    }

    async fn come_back(&self, operator: &mut Option<Operator>, down: Duration) {
        self.keep_log(operator.as_ref());
        *operator = None;
        tokio::time::sleep(down).await;
        let new = Operator::start_unready(self.options.clone()).await;
        new.base().clone_into(&mut self.base.lock().expect("no panic while it is held"));
        *operator = Some(new);
    }

    /// Appends what it has logged to what its predecessors have.
    fn keep_log(&self, operator: Option<&Operator>) {
        if let Some(operator) = operator {
            append_log(&self.logs.join(format!("operator-{}.log", self.name)), operator);
        }
    }
}
