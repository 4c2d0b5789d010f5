//! The commands as a person runs them: what they print, and how they exit.

use std::path::Path;

use serde_json::Value;

use crate::runners::manifests;
use crate::support::cli::{Finished, run};
use crate::support::operator::Runner;
use crate::support::process::Scratch;
use crate::support::{ControlPlane, Namespace, NatsServer, Operator, PATIENCE, Setup, eventually, name_of};

/// A nats-server and a namespace, and the variables that point to them.
struct Servers {
    nats: NatsServer,
    namespace: Namespace,
}

impl Servers {
    async fn start() -> Self {
        Self { nats: NatsServer::start().await, namespace: ControlPlane::shared().await.namespace().await }
    }

    /// `conntest` with these variables on top.
    async fn conntest(&self, env: &[(&str, &str)]) -> Finished {
        let url = self.nats.url();
        let mut all = vec![("NATS_URL", &*url)];
        all.extend(in_namespace(&self.namespace));
        all.extend(env);
        run(&["conntest"], &all).await
    }
}

#[tokio::test]
async fn conntest_names_server_version_and_context_and_exits_0() {
    let servers = Servers::start().await;
    let done = servers.conntest(&[]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    let url = servers.nats.url();
    let address = url.strip_prefix("nats://").unwrap();
    let namespace = &servers.namespace.name;
    for part in ["nats-server 2.", address, "API server v1.", "https://127.0.0.1", "context test", namespace] {
        assert_eq!(done.stdout.matches(part).count(), 1, "{part} in {}", done.stdout);
    }
}

#[tokio::test]
async fn conntest_names_the_local_runner_and_exits_0() {
    let nats = NatsServer::start().await;
    let scratch = Scratch::new("state");
    let (url, state) = (nats.url(), scratch.join("state"));
    let local = [("NATS_URL", &*url), ("RUNNER", "local"), ("STATE_DIR", state.to_str().unwrap())];
    let done = run(&["conntest"], &local).await;
    assert!(done.code == Some(0) && done.stdout.contains("local"), "{done:?}");
}

#[tokio::test]
async fn conntest_says_which_server_does_not_answer_without_the_password_and_exits_1() {
    let servers = Servers::start().await;
    let done = servers.conntest(&[("NATS_URL", "nats://ann:s3cret@127.0.0.1:1")]).await;
    assert_eq!(done.code, Some(1), "{done:?}");
    let mut lines = done.stdout.lines();
    assert!(lines.any(|line| line.starts_with("FAILED") && line.contains("127.0.0.1:1")), "{done:?}");
    let mut lines = done.stdout.lines();
    assert!(lines.any(|line| line.starts_with("ok") && line.contains("kubernetes")), "{done:?}");
    assert!(!done.text().contains("s3cret"));
}

#[tokio::test]
async fn conntest_names_a_namespace_that_does_not_exist_and_exits_1() {
    let done = Servers::start().await.conntest(&[("JOB_NAMESPACE", "nowhere")]).await;
    assert!(done.code == Some(1) && done.stdout.contains("nowhere"), "{done:?}");
}

/// `dumpjob` of a golden case, run with its configuration as a person would have it in the environment.
async fn dump(path: &Path, namespace: &str, folder: &Scratch, json: bool) -> String {
    let case: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut env: Vec<(String, String)> = Vec::new();
    for (variable, value) in case["configuration"].as_object().into_iter().flatten() {
        let value = match value {
            Value::String(text) => text.clone(),
            Value::Object(pairs) if variable == "NODE_SELECTOR" => {
                let pairs = pairs.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap()));
                pairs.collect::<Vec<_>>().join(",")
            }
            Value::Object(_) => {
                let template = folder.join(format!("{}.template", path.file_stem().unwrap().display()));
                std::fs::write(&template, value.to_string()).unwrap();
                template.to_str().unwrap().to_owned()
            }
            other => other.to_string(),
        };
        env.push((variable.clone(), value));
    }
    env.push(("JOB_NAMESPACE".to_owned(), namespace.to_owned()));
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (&**name, &**value)).collect();
    let request = case["request"].to_string();
    let args = ["dumpjob", "--data", &request, "--json"];
    let done = run(&args[..if json { 4 } else { 3 }], &env).await;
    assert_eq!(done.code, Some(0), "{}: {done:?}", path.display());
    done.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dumpjob_prints_is_taken_by_a_cluster_for_every_golden_request() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let folder = Scratch::new("templates");
    let cases = manifests::files("json");
    assert!(cases.len() > 25, "{}", cases.len());
    // All in one go each way: kubectl takes a second to start on a busy machine.
    for json in [false, true] {
        let mut manifests = Vec::new();
        for path in cases.values() {
            manifests.push(dump(path, &namespace.name, &folder, json).await);
        }
        let manifests = manifests.join("\n---\n");
        let apply = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
        let answer = namespace.kubectl(&apply, Some(&manifests)).await;
        assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
        let taken = String::from_utf8_lossy(&answer.stdout);
        assert_eq!(taken.lines().filter(|line| line.starts_with("job.batch/")).count(), cases.len(), "{taken}");
    }
}

/// The variables that point to a namespace.
fn in_namespace(namespace: &Namespace) -> [(&'static str, &str); 2] {
    [("KUBECONFIG", namespace.kubeconfig.to_str().unwrap()), ("JOB_NAMESPACE", &*namespace.name)]
}

#[tokio::test(flavor = "multi_thread")]
async fn startjob_starts_a_job_without_nats_that_runs_and_removes_itself() {
    let setup = Setup::kubernetes(0.3).await;
    let namespace = setup.namespace();
    let [kubeconfig, name] = in_namespace(namespace);
    let env = [kubeconfig, name, ("JOB_TTL_SECONDS", "0")];
    let args = ["startjob", "--id", "by hand", "--dest", "100", "--text", "hello", "--sip-password", "hunter2"];
    let done = run(&args, &env).await;
    let started = format!("Job {} started in namespace {}\n", name_of("by hand"), namespace.name);
    assert_eq!((done.code, &done.stdout), (Some(0), &started), "{}", done.stderr);
    eventually("the call is placed, and the Job removes itself", PATIENCE, async || {
        setup.calls_with("hello") == 1 && setup.jobs().await.is_empty()
    })
    .await;
    assert_eq!(setup.node().starts()[0].env["SIP_PASSWORD"], "hunter2");
}

#[tokio::test]
async fn startjob_without_a_request_says_how_to_give_one() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let done = run(&["startjob"], &in_namespace(&namespace)).await;
    assert!(done.code == Some(1) && done.stderr.contains("--dest"), "{done:?}");
}

#[tokio::test]
async fn startjob_with_half_a_request_names_what_is_missing_and_no_password() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let args = ["startjob", "--dest", "1", "--sip-password", "hunter2"];
    let done = run(&args, &in_namespace(&namespace)).await;
    assert!(done.code == Some(2) && done.stderr.contains("text") && !done.stderr.contains("hunter2"), "{done:?}");
}

#[tokio::test]
async fn a_bad_setting_names_variable_value_and_what_is_accepted_and_exits_2() {
    let table = [
        ("MAX_ACTIVE_CALLS", "many", "1 to 100000"),
        ("MAX_ACTIVE_CALLS", "0", "1 to 100000"),
        ("STATUS_RETENTION", "1h", "at least 86400 s"),
        ("NATS_REPLICAS", "6", "5"),
        ("RUNNER", "docker-swarm", "kubernetes"),
        ("CLUSTER_NAME", " ", "accepted"),
        ("JOB_NAMESPACE", "Not_A_Name", "accepted"),
        ("JOB_IMAGE", " ", "accepted"),
        ("SIP_SECRET_NAME", "Not A Name", "accepted"),
        ("JOB_TTL_SECONDS", "-1", "0"),
        ("JOB_TTL_SECONDS", "1.5", ""),
        ("JOB_BACKOFF_LIMIT", "x", ""),
        ("JOB_HOST_NETWORK", "maybe", "true, 1, yes"),
        ("RUN_AS_USER", "root", ""),
        ("NODE_SELECTOR", "a=b,oops", "oops"),
        ("HOST", "localhost:80", ""),
        ("PORT", "65536", "65535"),
        ("RUST_LOG", "info,=", ""),
        ("LOG_FORMAT", "xml", "json"),
    ];
    for (variable, value, accepted) in table {
        let done = run(&["dumpjob"], &[(variable, value)]).await;
        assert_eq!((done.code, &*done.stdout), (Some(2), ""), "{variable}={value}: {done:?}");
        let names_both = done.stderr.contains(&format!("{variable}={value}")) && done.stderr.contains(accepted);
        assert!(names_both, "{variable}={value}: {done:?}");
    }
}

#[tokio::test]
async fn a_template_that_cannot_be_read_is_named_with_its_variable_and_exits_2() {
    let done = run(&["dumpjob"], &[("JOB_TEMPLATE_FILE", "/nowhere.yaml")]).await;
    assert_eq!(done.code, Some(2), "{done:?}");
    assert!(done.stderr.contains("JOB_TEMPLATE_FILE") && done.stderr.contains("/nowhere.yaml"), "{done:?}");
}

#[tokio::test]
async fn a_bad_flag_is_named_with_its_value_and_exits_2() {
    let done = run(&["dumpjob", "--port", "x"], &[]).await;
    assert!(done.code == Some(2) && done.stderr.contains("--port") && done.stderr.contains('x'), "{done:?}");
}

#[tokio::test]
async fn an_unknown_command_exits_2() {
    assert_eq!(run(&["no-such-command"], &[]).await.code, Some(2));
}

#[tokio::test]
async fn an_empty_variable_counts_as_unset() {
    let names = [
        "MAX_ACTIVE_CALLS",
        "RUN_AS_USER",
        "NODE_SELECTOR",
        "JOB_IMAGE",
        "JOB_NAMESPACE",
        "PIPER_DATA_DIR",
        "RUST_LOG",
    ];
    let none: Vec<(&str, &str)> = names.iter().map(|name| (*name, "")).collect();
    let done = run(&["dumpjob"], &none).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(done.stdout, run(&["dumpjob"], &[]).await.stdout);
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_and_exits_1() {
    let setup = Setup::local(0.0).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let (status, log) = Operator::run_to_end(setup.options().env("PORT", port)).await;
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(&format!("127.0.0.1:{port}")) && log.contains("PORT") && log.contains("in use"), "{log}");
}

#[tokio::test]
async fn a_state_directory_that_another_operator_has_is_named_and_exits_1() {
    let setup = Setup::local(0.0).await;
    let _first = setup.operator().await;
    let (status, log) = Operator::run_to_end(setup.options()).await;
    assert_eq!(status.code(), Some(1), "{log}");
    let Runner::Local { state_dir, .. } = setup.options().runner else { panic!("a local runner") };
    assert!(log.contains(state_dir.to_str().unwrap()), "{log}");
}

#[tokio::test]
async fn without_a_cluster_the_runner_must_be_named() {
    for command in ["serve", "conntest"] {
        let done = run(&[command], &[("PORT", "0"), ("NATS_URL", "nats://127.0.0.1:1")]).await;
        assert_eq!(done.code, Some(1), "{done:?}");
        assert!(done.stderr.contains("RUNNER=kubernetes") && done.stderr.contains("RUNNER=local"), "{done:?}");
    }
}
