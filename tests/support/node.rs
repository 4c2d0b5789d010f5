//! A node without a kubelet: watches pods, runs each one's container command as a process of this machine, and patches the pod's
//! status, so that Jobs start, fail, finish and are deleted as on a real node.
//!
//! What it does as the kubelet does: binds the pod, so that its deletion is graceful; resolves `secretKeyRef` and waits
//! for a Secret that is missing; expands `$(NAME)` and `$$`; reports Running, then the exit code with the
//! end of the log as termination message; ends a deleted pod by its `preStop` (which
//! stands for SIGINT), by SIGKILL after its grace since process 1 of a container ignores SIGTERM, and then removes it; goes on
//! through an outage of the API server, while the processes run. What it does not: images, volumes, security contexts, probes,
//! restarts; more than one container; init containers, which it reports as completed without running them (their `chown` would
//! need root and has no volume to work on); the pod's log through the API server ([`TestNode::log_of`] has it).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, Secret};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use nix::sys::signal::Signal;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::operator::BINARY;
use super::process::{Guarded, Scratch, exit_code, signal_group};

/// How long to wait before trying again what the API server did not answer, or looking again for a Secret.
const AGAIN: Duration = Duration::from_millis(200);
/// The kubelet's limits for a termination message from the log.
const MESSAGE_BYTES: usize = 2048;
const MESSAGE_LINES: usize = 80;
/// Stands in for the image's Python: the caller's command line becomes that of `simulate-call`.
const PYTHON: &str = r#"#!/bin/sh
if [ "$1 $2" != "-m sipstuff.cli" ]; then echo "the test node has no python3 for: $*" >&2; exit 127; fi
shift 2
exec "$SIPSTUFF_BIN" simulate-call "$@"
"#;

/// How a node behaves.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// Variables that every container has, such as the settings of `simulate-call`.
    pub env: Vec<(String, String)>,
    /// Run nothing, only report: for thousands of pods.
    pub instant: Option<Instant>,
    /// With `instant`: how a container with that command line ends, in place of what is said there.
    pub callee: Option<fn(&[String]) -> Callee>,
}

/// How a container that is only reported ends.
#[derive(Debug, Clone)]
pub struct Callee {
    /// Its exit code.
    pub exit_code: i32,
    /// How long it is reported as running.
    pub after: Duration,
    /// Its termination message.
    pub message: Option<String>,
}

/// A container that is only reported. Its pod is not bound to the node, to save a write, and so is deleted without grace.
#[derive(Debug, Clone, Copy)]
pub struct Instant {
    /// Its exit code.
    pub exit_code: i32,
    /// How long it is reported as running.
    pub after: Duration,
}

/// One start of a container.
#[derive(Debug, Clone, Serialize)]
pub struct Start {
    /// Name of the node.
    pub node: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Name of the pod.
    pub pod: String,
    /// The Job that the pod belongs to; empty for a bare pod.
    pub job: String,
    /// UID of that Job.
    pub job_uid: String,
    /// When.
    pub at: Timestamp,
    /// The command line, expanded.
    pub argv: Vec<String>,
    /// The environment that the pod gives it, resolved and expanded, passwords and all.
    pub env: BTreeMap<String, String>,
}

/// A pod's status as the API server took it.
#[derive(Debug, Clone)]
pub struct Reported {
    /// The Job that the pod belongs to.
    pub job: String,
    /// The pod's phase.
    pub phase: String,
    /// When the API server had answered.
    pub at: Timestamp,
}

/// A running node. Its containers are killed with it; their pods stay as they were last reported, as when a machine is lost.
#[derive(Debug)]
pub struct TestNode {
    node: Arc<Node>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Node {
    name: String,
    options: NodeOptions,
    records: Arc<Records>,
    /// The Jobs of the pods whose end is not reported yet, by the pods' UIDs. When the node vanishes, they stay here.
    in_hand: Mutex<HashMap<String, String>>,
}

/// What is recorded of containers; shared by nodes that are counted as one.
#[derive(Debug)]
struct Records {
    starts: Mutex<Vec<Start>>,
    reports: Mutex<Vec<Reported>>,
    running: Mutex<Running>,
    crashes: watch::Sender<HashSet<String>>,
    folder: Scratch,
}

/// How many containers run, and the most that ever did at once.
#[derive(Debug, Default, Clone, Copy)]
struct Running {
    now: usize,
    most: usize,
}

impl TestNode {
    /// Starts a node for the pods of a namespace; of all, when it is empty.
    pub fn start(client: kube::Client, namespace: &str, options: NodeOptions) -> Self {
        let folder = Scratch::new("node");
        install_python(&folder);
        let (starts, reports, running, crashes) = Default::default();
        let records = Arc::new(Records { starts, reports, running, crashes, folder });
        Self::with_records(client, namespace, options, records)
    }

    /// Starts one more node, such as in place of one that has vanished, or for another namespace. Both are counted as one: each has
    /// the starts and the containers of both.
    pub fn another(&self, client: kube::Client, namespace: &str) -> Self {
        Self::with_records(client, namespace, self.node.options.clone(), Arc::clone(&self.node.records))
    }

    fn with_records(client: kube::Client, namespace: &str, options: NodeOptions, records: Arc<Records>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("node-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let node = Arc::new(Node { name, options, records, in_hand: Mutex::default() });
        let task = tokio::spawn(serve(Arc::clone(&node), client, namespace.to_owned()));
        Self { node, task }
    }

    /// Takes the node away, as when a machine loses its power: its containers die, and nobody reports it.
    pub fn vanish(&self) {
        self.task.abort();
    }

    /// Its name, as its pods have it.
    pub fn name(&self) -> &str {
        &self.node.name
    }

    /// The Jobs whose pods it has in hand: their end is not reported, and when the node vanishes it never will be.
    pub fn jobs_in_hand(&self) -> HashSet<String> {
        self.node.in_hand().values().cloned().collect()
    }

    /// Whether it has this pod in hand.
    pub fn has_in_hand(&self, pod_uid: &str) -> bool {
        self.node.in_hand().contains_key(pod_uid)
    }

    /// Every start of a container, in order.
    pub fn starts(&self) -> Vec<Start> {
        self.node.records.starts.lock().expect("no panic while the lock is held").clone()
    }

    /// The starts of one Job's containers: more than one is a second call.
    pub fn starts_of(&self, job: &str) -> Vec<Start> {
        self.starts().into_iter().filter(|start| start.job == job).collect()
    }

    /// How many containers were started.
    pub fn start_count(&self) -> usize {
        self.node.records.starts.lock().expect("no panic while the lock is held").len()
    }

    /// Every status of a pod that the API server took, in order.
    pub fn reports(&self) -> Vec<Reported> {
        self.node.records.reports.lock().expect("no panic while the lock is held").clone()
    }

    /// How many pods have ended and were reported so.
    pub fn ended_count(&self) -> usize {
        let reports = self.node.records.reports.lock().expect("no panic while the lock is held");
        reports.iter().filter(|report| matches!(report.phase.as_str(), "Succeeded" | "Failed")).count()
    }

    /// How many containers run now.
    pub fn running(&self) -> usize {
        self.node.running().now
    }

    /// The most containers that ran at once.
    pub fn most_at_once(&self) -> usize {
        self.node.running().most
    }

    /// Kills the container of a pod, as the kernel does when memory is short.
    pub fn crash(&self, pod_uid: &str) {
        self.node.records.crashes.send_modify(|crashes| {
            crashes.insert(pod_uid.to_owned());
        });
    }

    /// The starts as a file, one JSON object a line.
    pub fn starts_file(&self) -> PathBuf {
        self.node.records.folder.join("starts.jsonl")
    }

    /// What the containers of a Job have written.
    pub fn log_of(&self, job: &str) -> String {
        let read = |start: Start| std::fs::read_to_string(self.node.log(&start.pod_uid)).unwrap_or_default();
        self.starts_of(job).into_iter().map(read).collect()
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Node {
    fn log(&self, uid: &str) -> PathBuf {
        self.records.folder.join(format!("{uid}.log"))
    }

    fn record(&self, start: Start) {
        let line = serde_json::to_string(&start).expect("strings and a time");
        let mut starts = self.records.starts.lock().expect("no panic while the lock is held");
        starts.push(start);
        let file = self.records.folder.join("starts.jsonl");
        let mut file = std::fs::File::options().create(true).append(true).open(file);
        let _ = file.as_mut().map(|file| writeln!(file, "{line}"));
    }

    fn note_report(&self, job: &str, status: &Value) {
        let phase = status["phase"].as_str().unwrap_or_default().to_owned();
        let report = Reported { job: job.to_owned(), phase, at: Timestamp::now() };
        self.records.reports.lock().expect("no panic while the lock is held").push(report);
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.records.running.lock().expect("no panic while the lock is held")
    }

    fn in_hand(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.in_hand.lock().expect("no panic while the lock is held")
    }

    /// Counts a container that runs until it is dropped.
    fn count(self: &Arc<Self>) -> Counted {
        let mut running = self.running();
        running.now += 1;
        running.most = running.most.max(running.now);
        Counted(Arc::clone(self))
    }
}

/// A container that is counted as running.
struct Counted(Arc<Node>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.running().now -= 1;
    }
}

/// Written by a shell: were it written here, a process started meanwhile by another thread could hold it open for
/// writing, and it would be refused as a program ("text file busy").
fn install_python(folder: &Scratch) {
    let written = std::process::Command::new("sh")
        .args(["-c", r#"mkdir "$1/bin" && printf '%s' "$2" >"$1/bin/python3" && chmod 755 "$1/bin/python3""#, "sh"])
        .arg(folder.path())
        .arg(PYTHON)
        .status();
    assert!(written.expect("`sh` starts").success(), "python3 is not written");
}

/// What a pod's task needs to know of the pod after its first sight.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Wanted {
    /// To run.
    Running,
    /// To end within so many seconds.
    Deleted(u64),
    /// Removed from the API.
    Gone,
}

async fn serve(node: Arc<Node>, client: kube::Client, namespace: String) {
    let api: Api<Pod> =
        if namespace.is_empty() { Api::all(client.clone()) } else { Api::namespaced(client.clone(), &namespace) };
    let mut events = watcher(api, watcher::Config::default()).boxed();
    let mut tasks = JoinSet::new();
    let mut pods: HashMap<String, watch::Sender<Wanted>> = HashMap::new();
    let mut listed: HashSet<String> = HashSet::new();
    loop {
        let event = tokio::select! {
            event = events.next() => event.expect("a watcher never ends"),
            Some(ended) = tasks.join_next() => {
                ended.expect("a pod's task does not panic");
                continue;
            }
        };
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(pod)) => {
                listed.insert(uid(&pod));
                apply(&node, &client, pod, &mut pods, &mut tasks);
            }
            Ok(Event::InitDone) => {
                for (_, pod) in pods.extract_if(|uid, _| !listed.contains(uid)) {
                    pod.send_replace(Wanted::Gone);
                }
            }
            Ok(Event::Apply(pod)) => apply(&node, &client, pod, &mut pods, &mut tasks),
            Ok(Event::Delete(pod)) => {
                if let Some(pod) = pods.remove(&uid(&pod)) {
                    pod.send_replace(Wanted::Gone);
                }
            }
            // The API server is unavailable; the watcher lists again.
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

fn apply(
    node: &Arc<Node>,
    client: &kube::Client,
    pod: Pod,
    pods: &mut HashMap<String, watch::Sender<Wanted>>,
    tasks: &mut JoinSet<()>,
) {
    let deleted = pod.metadata.deletion_timestamp.is_some();
    let grace = pod.metadata.deletion_grace_period_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let wanted = if deleted { Wanted::Deleted(grace.unwrap_or(30)) } else { Wanted::Running };
    if let Some(known) = pods.get(&uid(&pod)) {
        known.send_if_modified(|before| std::mem::replace(before, wanted) != wanted);
        return;
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    let is_gated =
        pod.spec.as_ref().is_some_and(|spec| spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()));
    if is_gated {
        return; // the scheduler leaves it alone until its gates are gone
    }
    if bound || deleted || phase.is_some_and(|phase| phase != "Pending") {
        return; // another node's, or one that has ended
    }
    let (sender, wanted) = watch::channel(wanted);
    pods.insert(uid(&pod), sender);
    let task = PodTask::new(Arc::clone(node), client, &pod, wanted);
    node.in_hand().insert(task.uid.clone(), task.job.clone());
    let node = Arc::clone(node);
    tasks.spawn(async move {
        let uid = task.uid.clone();
        task.live(pod).await;
        node.in_hand().remove(&uid);
    });
}

/// The life of one pod on the node.
struct PodTask {
    node: Arc<Node>,
    pods: Api<Pod>,
    secrets: Api<Secret>,
    name: String,
    uid: String,
    job: String,
    job_uid: String,
    wanted: watch::Receiver<Wanted>,
}

/// A container that could be started.
struct Prepared {
    argv: Vec<String>,
    env: BTreeMap<String, String>,
}

/// How a container ended.
struct Ended {
    exit_code: i32,
    signal: Option<i32>,
    message: Option<String>,
    finished_at: Timestamp,
}

impl PodTask {
    fn new(node: Arc<Node>, client: &kube::Client, pod: &Pod, wanted: watch::Receiver<Wanted>) -> Self {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let label = |name: &str| pod.metadata.labels.as_ref().and_then(|labels| labels.get(name).cloned());
        Self {
            node,
            pods: Api::namespaced(client.clone(), namespace),
            secrets: Api::namespaced(client.clone(), namespace),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: uid(pod),
            job: label("batch.kubernetes.io/job-name").unwrap_or_default(),
            job_uid: label("batch.kubernetes.io/controller-uid").unwrap_or_default(),
            wanted,
        }
    }

    async fn live(self, pod: Pod) {
        let spec = pod.spec.clone().unwrap_or_default();
        let container = spec.containers.first().cloned().unwrap_or_default();
        if let Some(instant) = self.node.options.instant {
            return self.pretend(&pod, &container, instant).await;
        }
        if !self.bind().await {
            return;
        }
        let Some(prepared) = self.prepare(&pod, &container).await else {
            return self.remove().await;
        };
        let started_at = Timestamp::now();
        self.record(started_at, &prepared);
        // Reported while it runs: an outage of the API server does not stop a container.
        let (ended, _) =
            tokio::join!(self.run(&prepared, &container), self.report(running(&pod, &container, started_at)),);
        self.report(finished(&pod, &container, started_at, &ended)).await;
        self.node.in_hand().remove(&self.uid);
        self.deletion().await;
        self.remove().await;
    }

    async fn pretend(&self, pod: &Pod, container: &Container, instant: Instant) {
        let argv: Vec<String> = container.command.iter().chain(&container.args).flatten().cloned().collect();
        let Instant { exit_code, after } = instant;
        let callee = self.node.options.callee.map(|callee| callee(&argv));
        let Callee { exit_code, after, message } = callee.unwrap_or(Callee { exit_code, after, message: None });
        let started_at = Timestamp::now();
        // Reported before it starts: its pod is not bound, so one that is not reported may start on another node.
        if !self.report(running(pod, container, started_at)).await {
            return;
        }
        self.record(started_at, &Prepared { argv: Vec::new(), env: BTreeMap::new() });
        let counted = self.node.count();
        // It runs for so long whatever the API server does meanwhile, unless its pod is removed.
        let (exit_code, message) = tokio::select! {
            () = tokio::time::sleep(after) => (exit_code, message),
            _ = self.deletion() => (137, None),
            () = self.crash() => (137, None),
        };
        drop(counted);
        let ended = Ended { exit_code, signal: None, message, finished_at: Timestamp::now() };
        self.report(finished(pod, container, started_at, &ended)).await;
    }

    /// Says that the pod is this node's. False when the pod is gone or another node's.
    async fn bind(&self) -> bool {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": self.name, "uid": self.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": self.node.name},
        });
        loop {
            let answer: Result<Value, kube::Error> =
                self.pods.create_subresource("binding", &self.name, &PostParams::default(), &binding).await;
            match answer {
                Ok(_) => return true,
                Err(kube::Error::Api(status)) if status.code == 404 => return false,
                // Either another node has it, or the answer to our first try was lost.
                Err(kube::Error::Api(status)) if status.code == 409 => match self.pods.get_opt(&self.name).await {
                    Ok(pod) => return pod.and_then(|pod| pod.spec?.node_name).as_ref() == Some(&self.node.name),
                    Err(_) => tokio::time::sleep(AGAIN).await,
                },
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    /// Resolves the environment and the command line; waits for Secrets as long as the pod is wanted.
    async fn prepare(&self, pod: &Pod, container: &Container) -> Option<Prepared> {
        let mut reported = None;
        loop {
            match self.resolve(container).await {
                Ok(env) => {
                    let words = container.command.iter().chain(&container.args).flatten();
                    let argv = words.map(|word| expand(word, &env)).collect();
                    return Some(Prepared { argv, env });
                }
                Err(reason) if reported.as_ref() != Some(&reason) => {
                    self.report(waiting(pod, container, &reason)).await;
                    reported = Some(reason);
                }
                Err(_) => {}
            }
            tokio::select! {
                () = self.deletion_asked() => return None,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }

    async fn resolve(&self, container: &Container) -> Result<BTreeMap<String, String>, String> {
        if container.env_from.as_ref().is_some_and(|from| !from.is_empty()) {
            return Err("the test node knows no envFrom".to_owned());
        }
        let mut secrets = HashMap::new();
        let mut env = BTreeMap::new();
        for variable in container.env.iter().flatten() {
            if let Some(value) = self.value(variable, &env, &mut secrets).await? {
                env.insert(variable.name.clone(), value);
            }
        }
        Ok(env)
    }

    async fn value(
        &self,
        variable: &EnvVar,
        env: &BTreeMap<String, String>,
        secrets: &mut HashMap<String, Option<Secret>>,
    ) -> Result<Option<String>, String> {
        let Some(from) = &variable.value_from else {
            return Ok(Some(expand(variable.value.as_deref().unwrap_or_default(), env)));
        };
        let Some(key) = &from.secret_key_ref else {
            return Err(format!("the test node knows no such source of {}", variable.name));
        };
        if !secrets.contains_key(&key.name) {
            let secret = self.secrets.get_opt(&key.name).await.map_err(|error| error.to_string())?;
            secrets.insert(key.name.clone(), secret);
        }
        let secret = secrets.get(&key.name).and_then(Option::as_ref);
        let value = secret.and_then(|secret| secret.data.as_ref()?.get(&key.key));
        match value {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if key.optional == Some(true) => Ok(None),
            None if secret.is_none() => Err(format!("secret \"{}\" not found", key.name)),
            None => Err(format!("couldn't find key {} in Secret {}", key.key, key.name)),
        }
    }

    fn record(&self, at: Timestamp, prepared: &Prepared) {
        self.node.record(Start {
            node: self.node.name.clone(),
            pod_uid: self.uid.clone(),
            pod: self.name.clone(),
            job: self.job.clone(),
            job_uid: self.job_uid.clone(),
            at,
            argv: prepared.argv.clone(),
            env: prepared.env.clone(),
        });
    }

    /// Runs the process to its end, or ends it when the pod is deleted.
    async fn run(&self, prepared: &Prepared, container: &Container) -> Ended {
        let mut running = match self.spawn(prepared) {
            Ok(running) => running,
            Err(error) => {
                let message = Some(format!("{:?} does not start: {error}", prepared.argv));
                return Ended { exit_code: 128, signal: None, message, finished_at: Timestamp::now() };
            }
        };
        let _counted = self.node.count();
        let status = tokio::select! {
            status = running.child.wait() => status,
            grace = self.deletion() => running.end(hangs_up(container), grace).await,
            () = self.crash() => running.end(false, Duration::ZERO).await,
        };
        let status = status.expect("it is our child");
        // The signal is lost where a shell stands between, which then exits with 128 + signal itself.
        let (exit_code, signal) = (exit_code(status), status.signal());
        Ended { exit_code, signal, message: self.message(container, status), finished_at: Timestamp::now() }
    }

    fn spawn(&self, prepared: &Prepared) -> std::io::Result<Child> {
        let log = std::fs::File::options().create(true).append(true).open(self.node.log(&self.uid))?;
        let (program, args) = prepared.argv.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
        let bin = self.node.records.folder.join("bin");
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        // A name is looked up in our own PATH and not in the one given, so the shim is named in full.
        let program = if program == "python3" { bin.join(program) } else { program.into() };
        let mut command = tokio::process::Command::new(program);
        command.args(args).env_clear().current_dir(self.node.records.folder.path());
        command.env("PATH", path).env("SIPSTUFF_BIN", BINARY);
        command.env("HOME", self.node.records.folder.path()).env("HOSTNAME", &self.name);
        command.envs(self.node.options.env.iter().map(|(name, value)| (name, value))).envs(&prepared.env);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn()?;
        let pid = child.id().expect("it was not waited for yet");
        Ok(Child { child, pid, _guarded: Guarded::new(pid) })
    }

    /// `FallbackToLogsOnError`; nobody here writes `/dev/termination-log`.
    fn message(&self, container: &Container, status: ExitStatus) -> Option<String> {
        if status.success() || container.termination_message_policy.as_deref() != Some("FallbackToLogsOnError") {
            return None;
        }
        Some(tail(&std::fs::read(self.node.log(&self.uid)).unwrap_or_default()))
    }

    /// Patches the status until the API server takes it; false when the pod is gone.
    async fn report(&self, status: Value) -> bool {
        let patch = Patch::Strategic(json!({"metadata": {"uid": self.uid}, "status": &status}));
        loop {
            match self.pods.patch_status(&self.name, &PatchParams::default(), &patch).await {
                Ok(_) => {
                    self.node.note_report(&self.job, &status);
                    return true;
                }
                Err(kube::Error::Api(status)) if status.code == 404 => return false,
                // Another pod of the same name; ours is gone.
                Err(kube::Error::Api(status)) if status.code == 409 && status.message.contains("UID") => return false,
                Err(kube::Error::Api(status)) if status.code == 422 => panic!("a pod status is refused: {status:?}"),
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    /// Waits until the pod is to end, and says how long it may take.
    async fn deletion(&self) -> Duration {
        let mut wanted = self.wanted.clone();
        match wanted.wait_for(|wanted| *wanted != Wanted::Running).await.map(|wanted| *wanted) {
            Ok(Wanted::Deleted(seconds)) => Duration::from_secs(seconds),
            Ok(_) => Duration::ZERO,
            // The node has vanished, and this task is about to: nothing of it is told any more.
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until the container is to be killed.
    async fn crash(&self) {
        let mut crashes = self.node.records.crashes.subscribe();
        if crashes.wait_for(|crashes| crashes.contains(&self.uid)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    async fn deletion_asked(&self) {
        self.deletion().await;
    }

    /// Tells the API server that nothing of the pod is left here.
    async fn remove(&self) {
        let precondition = kube::api::Preconditions { uid: Some(self.uid.clone()), ..Default::default() };
        let now = DeleteParams::default().grace_period(0).preconditions(precondition);
        while *self.wanted.borrow() != Wanted::Gone {
            match self.pods.delete(&self.name, &now).await {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }
}

/// Whether the container has a command that makes it hang up before it is stopped.
fn hangs_up(container: &Container) -> bool {
    container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.pre_stop.is_some())
}

/// A container's process, killed with its group when its task is.
struct Child {
    child: tokio::process::Child,
    pid: u32,
    _guarded: Guarded,
}

impl Child {
    async fn end(&mut self, hangs_up: bool, grace: Duration) -> std::io::Result<ExitStatus> {
        if hangs_up {
            signal_group(self.pid, Signal::SIGINT);
        }
        if let Ok(status) = tokio::time::timeout(grace, self.child.wait()).await {
            return status;
        }
        signal_group(self.pid, Signal::SIGKILL);
        self.child.wait().await
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Also what it has left behind: nothing outlives a container.
        signal_group(self.pid, Signal::SIGKILL);
    }
}

/// The end of a log as the kubelet cuts it.
fn tail(log: &[u8]) -> String {
    let log = String::from_utf8_lossy(&log[log.len().saturating_sub(MESSAGE_BYTES)..]).into_owned();
    let lines: Vec<&str> = log.split_inclusive('\n').collect();
    lines[lines.len().saturating_sub(MESSAGE_LINES)..].concat()
}

/// Expands `$(NAME)` and `$$` as the kubelet does; an unknown name stays as it is written.
fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        let reference = after.strip_prefix('(').and_then(|inside| inside.split_once(')'));
        if let Some((name, behind)) = reference {
            match env.get(name) {
                Some(value) => expanded.push_str(value),
                None => expanded.push_str(&format!("$({name})")),
            }
            rest = behind;
        } else {
            expanded.push('$');
            rest = after.strip_prefix('$').unwrap_or(after);
        }
    }
    expanded + rest
}

fn running(pod: &Pod, container: &Container, started_at: Timestamp) -> Value {
    let state = json!({"running": {"startedAt": seconds(started_at)}});
    status(pod, container, "Running", true, state, started_at)
}

fn finished(pod: &Pod, container: &Container, started_at: Timestamp, ended: &Ended) -> Value {
    let (phase, reason) = if ended.exit_code == 0 { ("Succeeded", "Completed") } else { ("Failed", "Error") };
    let state = json!({"terminated": {
        "exitCode": ended.exit_code, "signal": ended.signal, "reason": reason, "message": ended.message,
        "startedAt": seconds(started_at), "finishedAt": seconds(ended.finished_at),
    }});
    status(pod, container, phase, false, state, started_at)
}

fn waiting(pod: &Pod, container: &Container, reason: &str) -> Value {
    let state = json!({"waiting": {"reason": "CreateContainerConfigError", "message": reason}});
    status(pod, container, "Pending", false, state, Timestamp::now())
}

fn status(pod: &Pod, container: &Container, phase: &str, ready: bool, state: Value, at: Timestamp) -> Value {
    let of = |container: &Container, ready: bool, state: Value| {
        json!({
            "name": container.name, "image": container.image, "imageID": "", "restartCount": 0,
            "ready": ready, "started": ready, "state": state,
        })
    };
    let done = json!({"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": seconds(at)}});
    let init = pod.spec.iter().filter_map(|spec| spec.init_containers.as_ref()).flatten();
    let init: Vec<Value> = init.map(|container| of(container, true, done.clone())).collect();
    let truth = |holds: bool| if holds { "True" } else { "False" };
    let condition = |name: &str, holds: bool| json!({"type": name, "status": truth(holds), "lastTransitionTime": seconds(Timestamp::now())});
    json!({
        "phase": phase,
        "startTime": seconds(at),
        "conditions": [condition("Initialized", true), condition("ContainersReady", ready), condition("Ready", ready)],
        "initContainerStatuses": init,
        "containerStatuses": [of(container, ready, state)],
    })
}

/// Kubernetes' times have whole seconds.
fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

mod tests {
    use super::*;

    #[test]
    fn the_test_node_expands_as_the_kubelet_does() {
        let env = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())]);
        for (text, expanded) in [
            ("$(A)", "1"),
            ("x$(A)y$(B)", "x1y$(A)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(NO)", "$(NO)"),
            ("$(A", "$(A"),
            ("5 $ and $5 and $$5", "5 $ and $5 and $5"),
            ("$", "$"),
            ("", ""),
        ] {
            assert_eq!(expand(text, &env), expanded, "{text}");
        }
    }

    #[test]
    fn the_test_node_cuts_a_log_as_the_kubelet_does() {
        assert_eq!(tail(b"one\ntwo\n"), "one\ntwo\n");
        assert_eq!(tail("x\n".repeat(100).as_bytes()), "x\n".repeat(80));
        assert_eq!(tail(&[b'x'; 5000]).len(), 2048);
    }
}
