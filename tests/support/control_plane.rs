//! A real Kubernetes control plane without nodes: etcd, kube-apiserver and kube-controller-manager on loopback. One for the whole
//! test process, since it takes seconds to come up, and a namespace for each test; or one of its own for a test that
//! takes it down.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace as CoreNamespace, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::sync::{OnceCell, mpsc};

use super::process::{Process, Scratch, free_port, tool};
use super::proxy::Proxy;
use super::wait::POLL;

/// How long a server may take to come up, on a machine that does much else.
const START: Duration = Duration::from_secs(240);
/// The administrator's token: loopback only, and gone with the test.
const TOKEN: &str = "test-admin";
/// Those that Jobs, their pods and their namespaces need; the others would only take time.
const CONTROLLERS: &str = "job-controller,ttl-after-finished-controller,garbage-collector-controller,\
    namespace-controller,serviceaccount-controller,resourcequota-controller";

/// A running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    // In the order in which they are to be killed.
    controller_manager: Mutex<Option<Process>>,
    apiserver: Mutex<Option<Process>>,
    etcd: Process,
    bin: PathBuf,
    port: u16,
    cleaner: mpsc::UnboundedSender<String>,
    folder: Scratch,
}

/// A namespace of a test's own. On drop it is deleted in the background; when that happens because the test panics, the ends of
/// the servers' logs are shown.
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// A kubeconfig file of the administrator, whose context has this namespace.
    pub kubeconfig: PathBuf,
    /// A client of the administrator, whose default namespace is this one.
    pub client: kube::Client,
    bin: PathBuf,
    logs: [PathBuf; 2],
    cleaner: mpsc::UnboundedSender<String>,
    folder: Scratch,
}

impl ControlPlane {
    /// The one that all tests of this process share.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
        SHARED.get_or_init(Self::start_own).await
    }

    /// One for a test that kills parts of it.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_own() -> Self {
        let bin = binaries().to_owned();
        let folder = Scratch::new("control-plane");
        std::fs::write(folder.join("tokens.csv"), format!("{TOKEN},admin,admin,system:masters\n")).expect("a new file");
        let etcd = start_etcd(&bin, &folder);
        let (port, apiserver) = start_apiserver_on_a_free_port(&bin, &folder).await;
        let kubeconfig = folder.join("kubeconfig");
        write_kubeconfig(&kubeconfig, &folder, port, TOKEN, "default");
        let plane = Self {
            controller_manager: Mutex::new(None),
            apiserver: Mutex::new(Some(apiserver)),
            etcd,
            bin,
            port,
            cleaner: start_cleaner(kubeconfig),
            folder,
        };
        plane.apiserver_ready().await;
        plane.restart_controller_manager();
        plane
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://{}", self.addr())
    }

    /// `127.0.0.1:PORT`.
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A fresh namespace, ready for pods.
    ///
    /// # Panics
    /// When the API server refuses it.
    pub async fn namespace(&self) -> Namespace {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = Scratch::new("namespace");
        let kubeconfig = folder.join("kubeconfig");
        write_kubeconfig(&kubeconfig, &self.folder, self.port, TOKEN, &name);
        let client = client(&kubeconfig).await;
        let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).expect("a Namespace");
        Api::<CoreNamespace>::all(client.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap_or_else(|error| panic!("namespace {name} is not made: {error}"));
        // Pods are refused until their service account is there, and the Job controller is slow to try again.
        let accounts = Api::<ServiceAccount>::namespaced(client.clone(), &name);
        // A loop, since a future with an asynchronous closure in it cannot be spawned.
        let begin = Instant::now();
        while !matches!(accounts.get_opt("default").await, Ok(Some(_))) {
            assert!(begin.elapsed() < START, "the default service account of {name} is not made");
            tokio::time::sleep(POLL).await;
        }
        let logs = ["kube-apiserver.log", "kube-controller-manager.log"].map(|log| self.folder.join(log));
        Namespace { name, kubeconfig, client, bin: self.bin.clone(), logs, cleaner: self.cleaner.clone(), folder }
    }

    /// Kills the API server with SIGKILL; etcd keeps what it held.
    pub fn kill_apiserver(&self) {
        kill(&self.apiserver);
    }

    /// Stops the API server and its connections with SIGSTOP: it takes connections and never answers.
    pub fn freeze_apiserver(&self) {
        if let Some(process) = lock(&self.apiserver).as_mut() {
            process.freeze();
        }
    }

    /// Lets a frozen API server go on.
    pub fn thaw_apiserver(&self) {
        signal(&self.apiserver, Signal::SIGCONT);
    }

    /// Starts the API server again on the same port, certificate and store; kills it first if it runs. Returns once it is ready.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn restart_apiserver(&self) {
        self.kill_apiserver();
        let process = launch_apiserver(&self.bin, &self.folder, self.port);
        *lock(&self.apiserver) = Some(process);
        self.apiserver_ready().await;
    }

    /// Kills the controller manager with SIGKILL: from now on no Job gets a pod, and none finishes.
    pub fn kill_controller_manager(&self) {
        kill(&self.controller_manager);
    }

    /// Starts the controller manager again; kills it first if it runs.
    pub fn restart_controller_manager(&self) {
        self.kill_controller_manager();
        let mut command = Command::new(self.bin.join("kube-controller-manager"));
        command.arg("--kubeconfig").arg(self.folder.join("kubeconfig")).args([
            &format!("--controllers={CONTROLLERS}"),
            "--leader-elect=false",
            "--secure-port=0",
            // As shipped (20 and 30) it finishes five Jobs a second.
            "--kube-api-qps=2000",
            "--kube-api-burst=4000",
            "--concurrent-job-syncs=20",
        ]);
        let process =
            Process::spawn("kube-controller-manager", command, &self.folder.join("kube-controller-manager.log"));
        *lock(&self.controller_manager) = Some(process);
    }

    /// Process numbers of all that runs.
    pub fn pids(&self) -> Vec<u32> {
        let rest = [&self.apiserver, &self.controller_manager];
        let rest = rest.into_iter().filter_map(|process| lock(process).as_ref().map(Process::pid));
        rest.chain([self.etcd.pid()]).collect()
    }

    /// Process number of the API server.
    ///
    /// # Panics
    /// When it was killed.
    pub fn apiserver_pid(&self) -> u32 {
        lock(&self.apiserver).as_ref().map(Process::pid).expect("the API server runs")
    }

    async fn apiserver_ready(&self) {
        let client = client(&self.folder.join("kubeconfig")).await;
        let begin = Instant::now();
        loop {
            let request = http::Request::get("/readyz").body(Vec::new()).expect("a request");
            let answer = tokio::time::timeout(Duration::from_secs(5), client.request_text(request)).await;
            if matches!(answer, Ok(Ok(_))) {
                return;
            }
            self.apiserver_must_go_on(begin, &format!("{answer:?}"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn apiserver_must_go_on(&self, begin: Instant, answer: &str) {
        let mut apiserver = lock(&self.apiserver);
        let apiserver = apiserver.as_mut().expect("it was just started");
        if apiserver.ended().is_some() || begin.elapsed() > START {
            panic!("kube-apiserver does not get ready ({answer})\n{}", apiserver.tail());
        }
    }
}

impl Namespace {
    /// Runs `kubectl` as the administrator in this namespace.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn kubectl(&self, args: &[&str], stdin: Option<&str>) -> Output {
        self.kubectl_with(&self.kubeconfig, args, stdin).await
    }

    /// Runs `kubectl` with another kubeconfig, such as that of a service account.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn kubectl_with(&self, kubeconfig: &Path, args: &[&str], stdin: Option<&str>) -> Output {
        let input = self.folder.join("kubectl-stdin");
        std::fs::write(&input, stdin.unwrap_or_default()).expect("a file in our folder");
        let output = tokio::process::Command::new(self.bin.join("kubectl"))
            .args(args)
            .env("KUBECONFIG", kubeconfig)
            .env("KUBECACHEDIR", self.folder.join("kubectl-cache"))
            .stdin(Stdio::from(std::fs::File::open(input).expect("just written")))
            .kill_on_drop(true)
            .output();
        output.await.unwrap_or_else(|error| panic!("kubectl does not start: {error}"))
    }

    /// `kubectl apply` of a manifest, which must succeed.
    ///
    /// # Panics
    /// When it does not, with what `kubectl` says.
    pub async fn apply(&self, manifest: &str) {
        let output = self.kubectl(&["apply", "-f", "-"], Some(manifest)).await;
        assert!(output.status.success(), "kubectl apply: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A kubeconfig whose user is a service account of this namespace, by a token that the API server made for it.
    ///
    /// # Panics
    /// When there is no such account.
    pub async fn service_account_kubeconfig(&self, account: &str) -> PathBuf {
        let wish = TokenRequest {
            spec: Some(TokenRequestSpec { expiration_seconds: Some(3600), ..Default::default() }),
            ..Default::default()
        };
        let made = Api::<ServiceAccount>::namespaced(self.client.clone(), &self.name)
            .create_token_request(account, &PostParams::default(), &wish)
            .await
            .unwrap_or_else(|error| panic!("no token for service account {account}: {error}"));
        let token = made.status.expect("a token request is answered with a token").token;
        self.another_kubeconfig(account, |config| config["users"][0]["user"] = json!({"token": token}))
    }

    /// A kubeconfig whose way to the API server leads through a proxy.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn proxied_kubeconfig(&self, proxy: &Proxy) -> PathBuf {
        let server = proxy.url("https");
        let name = format!("proxy-{}", proxy.addr().port());
        self.another_kubeconfig(&name, |config| config["clusters"][0]["cluster"]["server"] = json!(server))
    }

    fn another_kubeconfig(&self, name: &str, change: impl FnOnce(&mut serde_json::Value)) -> PathBuf {
        let text = std::fs::read(&self.kubeconfig).expect("it is ours");
        let mut config = serde_json::from_slice(&text).expect("we wrote JSON");
        change(&mut config);
        let path = self.folder.join(format!("kubeconfig-{name}"));
        std::fs::write(&path, config.to_string()).expect("a file in our folder");
        path
    }

    /// The API of a kind in this namespace, as the administrator.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.cleaner.send(self.name.clone());
        if std::thread::panicking() {
            for log in &self.logs {
                let text = std::fs::read(log).unwrap_or_default();
                let text = String::from_utf8_lossy(&text);
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("--- {}\n{}", log.display(), lines[lines.len().saturating_sub(20)..].join("\n"));
            }
        }
    }
}

/// Asked for once: without `make test` the answer takes a second or two, since `tools/fetch` verifies the binaries.
fn binaries() -> &'static Path {
    static BINARIES: OnceLock<PathBuf> = OnceLock::new();
    BINARIES.get_or_init(|| tool("KUBERNETES_BIN", "kubernetes"))
}

fn start_etcd(bin: &Path, folder: &Scratch) -> Process {
    let socket = format!("unix://{}", folder.join("etcd.sock").display());
    let mut command = Command::new(bin.join("etcd"));
    command.arg("--data-dir").arg(folder.join("etcd")).args([
        "--name=test",
        &format!("--listen-client-urls={socket}"),
        &format!("--advertise-client-urls={socket}"),
        "--listen-peer-urls=http://127.0.0.1:0",
        // Nobody needs this data after a power cut.
        "--unsafe-no-fsync",
        "--log-level=error",
    ]);
    Process::spawn("etcd", command, &folder.join("etcd.log"))
}

async fn start_apiserver_on_a_free_port(bin: &Path, folder: &Scratch) -> (u16, Process) {
    let begin = Instant::now();
    let (mut port, mut process) = (0, None);
    // It writes its certificate early, and finds out a little later that a port is taken. First comes the certificate, then its
    // key: once that is there, the certificate is whole. Who reads a half of it trusts nobody.
    let has_key = || std::fs::metadata(folder.join("certs/apiserver.key")).is_ok_and(|file| file.len() > 0);
    while !has_key() || process.is_none() {
        let running: &mut Process = process.get_or_insert_with(|| {
            port = free_port();
            launch_apiserver(bin, folder, port)
        });
        if running.ended().is_some() {
            let log = running.tail();
            assert!(log.contains("address already in use"), "kube-apiserver does not start\n{log}");
            process = None;
        }
        assert!(begin.elapsed() < START, "kube-apiserver does not write its certificate");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (port, process.expect("the loop ends with a process"))
}

fn launch_apiserver(bin: &Path, folder: &Scratch, port: u16) -> Process {
    let mut command = Command::new(bin.join("kube-apiserver"));
    let file = |flag: &str, name: &str| format!("{flag}={}", folder.join(name).display());
    command.args([
        format!("--etcd-servers=unix://{}", folder.join("etcd.sock").display()),
        format!("--secure-port={port}"),
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        "--endpoint-reconciler-type=none".to_owned(),
        file("--cert-dir", "certs"),
        // The key that it makes for its own certificate signs tokens as well as any other.
        file("--service-account-key-file", "certs/apiserver.key"),
        file("--service-account-signing-key-file", "certs/apiserver.key"),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        file("--token-auth-file", "tokens.csv"),
        "--authorization-mode=RBAC".to_owned(),
        "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
        "--profiling=false".to_owned(),
        "--v=0".to_owned(),
    ]);
    Process::spawn("kube-apiserver", command, &folder.join("kube-apiserver.log"))
}

fn write_kubeconfig(path: &Path, folder: &Scratch, port: u16, token: &str, namespace: &str) {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {
            "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority": folder.join("certs/apiserver.crt"),
        }}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user", "namespace": namespace}}],
        "current-context": "test",
    });
    std::fs::write(path, config.to_string()).expect("a file in our folder");
}

/// A client from a kubeconfig file. It belongs to the runtime that it is made in, so every test needs its own.
///
/// # Panics
/// When the file is not usable.
pub async fn client(kubeconfig: &Path) -> kube::Client {
    let file = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    kube::Client::try_from(config.expect("a usable kubeconfig")).expect("a client")
}

/// Deletes namespaces on a thread and runtime of its own, because a test's runtime ends with the test.
fn start_cleaner(kubeconfig: PathBuf) -> mpsc::UnboundedSender<String> {
    let (sender, mut names) = mpsc::unbounded_channel::<String>();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    std::thread::spawn(move || {
        runtime.block_on(async move {
            let mut made = None;
            while let Some(name) = names.recv().await {
                if made.is_none() && !kubeconfig.exists() {
                    continue; // The control plane is gone, and the namespace with it.
                }
                if made.is_none() {
                    made = Some(client(&kubeconfig).await);
                }
                let client = made.clone().expect("just made");
                // Its node has gone with the test, so no pod would end by itself.
                let pods = Api::<Pod>::namespaced(client.clone(), &name);
                let _ = pods.delete_collection(&DeleteParams::default().grace_period(0), &ListParams::default()).await;
                let _ = Api::<CoreNamespace>::all(client).delete(&name, &DeleteParams::background()).await;
            }
        });
    });
    sender
}

fn lock(process: &Mutex<Option<Process>>) -> MutexGuard<'_, Option<Process>> {
    process.lock().expect("no panic while the lock is held")
}

fn kill(process: &Mutex<Option<Process>>) {
    if let Some(process) = lock(process).as_mut() {
        process.kill9();
    }
}

fn signal(process: &Mutex<Option<Process>>, signal: Signal) {
    if let Some(process) = lock(process).as_mut() {
        process.signal(signal);
    }
}
