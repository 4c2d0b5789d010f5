//! The commands as a person runs them: what they print, how they exit, what they never show.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use serde_json::Value;

use crate::runners::manifests;
use crate::support::operator::BINARY;
use crate::support::process::Scratch;
use crate::support::setup::{Stage, name_of};
use crate::support::status::get_json;
use crate::support::{ControlPlane, Namespace, NatsOptions, NatsServer, Operator, OperatorOptions, eventually};

/// Runs the program with nothing of the test's own environment.
async fn run(args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let home = Scratch::new("home");
    let mut command = tokio::process::Command::new(BINARY);
    command.args(args).env_clear().env("HOME", home.path()).current_dir(home.path());
    command.env("RUST_LOG", "warn").envs(env.iter().copied()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(30), command.output()).await;
    let Output { status, stdout, stderr } = output.expect("it ends by itself").expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

#[tokio::test]
async fn conntest_names_server_version_and_context_and_exits_0_or_1() {
    let nats = NatsServer::start().await;
    let namespace = ControlPlane::shared().await.namespace().await;
    let kubeconfig = namespace.kubeconfig.to_str().unwrap();
    let scratch = Scratch::new("state");
    let (url, state) = (nats.url(), scratch.join("state"));
    let cluster = [("NATS_URL", &*url), ("KUBECONFIG", kubeconfig), ("JOB_NAMESPACE", &*namespace.name)];
    let (code, out, err) = run(&["conntest"], &cluster).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let address = url.strip_prefix("nats://").unwrap();
    for part in ["nats-server 2.", address, "API server v1.", "https://127.0.0.1", "context test", &namespace.name] {
        assert_eq!(out.matches(part).count(), 1, "{part} in {out}");
    }
    let local = [("NATS_URL", &*url), ("RUNNER", "local"), ("STATE_DIR", state.to_str().unwrap())];
    let (code, out, _) = run(&["conntest"], &local).await;
    assert!(code == Some(0) && out.contains("local") && out.matches(local[2].1).count() == 1, "{out}");

    let away = [("NATS_URL", "nats://ann:s3cret@127.0.0.1:1"), cluster[1], cluster[2]];
    let (code, out, err) = run(&["conntest"], &away).await;
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(out.lines().any(|line| line.starts_with("FAILED") && line.contains("127.0.0.1:1")), "{out}");
    assert!(out.lines().any(|line| line.starts_with("ok") && line.contains("kubernetes")), "{out}");
    assert!(!(out + &err).contains("s3cret"));
    let nowhere = [cluster[0], cluster[1], ("JOB_NAMESPACE", "nowhere")];
    let (code, out, err) = run(&["conntest"], &nowhere).await;
    assert!(code == Some(1) && out.contains("nowhere"), "{out}{err}");
}

/// A server with these lines in its configuration, beside those of the fixture.
async fn nats_with(config: &str) -> NatsServer {
    NatsServer::start_with(NatsOptions { config: config.to_owned(), ..Default::default() }).await
}

/// `conntest` with a local runner.
async fn conntest(env: &[(&str, &str)]) -> (Option<i32>, String) {
    let scratch = Scratch::new("state");
    let state = scratch.join("state");
    let local = [("RUNNER", "local"), ("STATE_DIR", state.to_str().unwrap())];
    let (code, out, err) = run(&["conntest"], &[&local[..], env].concat()).await;
    (code, out + &err)
}

const USERS: &str = "authorization { users = [ {user: ann, password: \"s3@cret\"} ] }";

#[tokio::test]
async fn conntest_says_what_a_power_loss_may_lose() {
    let table = [
        ("", Some("every 2m: a power loss may lose")),
        ("sync_interval: 5s", Some("every 5s: a power loss may lose")),
        ("sync_interval: always", None),
    ];
    for (jetstream, warning) in table {
        let options = NatsOptions { jetstream: jetstream.to_owned(), ..Default::default() };
        let nats = NatsServer::start_with(options).await;
        let monitoring = nats.monitoring_url();
        let (code, said) = conntest(&[("NATS_URL", &nats.url()), ("NATS_MONITORING_URL", &monitoring)]).await;
        assert_eq!(code, Some(0), "{said}");
        let warned = said.lines().find_map(|line| line.strip_prefix("warning nats: "));
        assert_eq!(warned.is_some(), warning.is_some(), "{said}");
        assert!(warned.unwrap_or_default().contains(warning.unwrap_or_default()), "{said}");
    }
    let nats = NatsServer::start().await;
    let (code, said) = conntest(&[("NATS_URL", &nats.url())]).await;
    assert!(code == Some(0) && said.contains("is not known: set NATS_MONITORING_URL"), "{said}");
    let (code, said) = conntest(&[("NATS_URL", &nats.url()), ("NATS_MONITORING_URL", "http://127.0.0.1:1")]).await;
    assert!(code == Some(0) && said.contains("NATS_MONITORING_URL http://127.0.0.1:1: "), "{said}");
}

#[tokio::test]
async fn conntest_says_that_credentials_are_refused_and_uses_those_of_the_address() {
    let nats = nats_with(USERS).await;
    let with = |credentials: &str| nats.url().replace("nats://", &format!("nats://{credentials}@"));
    let (code, said) = conntest(&[("NATS_URL", &nats.url())]).await;
    assert!(code == Some(1) && said.contains("asks for credentials, and none are set"), "{said}");
    let (code, said) = conntest(&[("NATS_URL", &with("ann:wr0ng"))]).await;
    assert!(code == Some(1) && said.contains("refuses these credentials: check the user in NATS_URL"), "{said}");
    assert!(!said.contains("wr0ng") && !said.contains("does not answer"), "{said}");
    let (code, said) = conntest(&[("NATS_URL", &with("ann:s3%40cret"))]).await;
    assert!(code == Some(0) && said.contains("ok      nats"), "{said}");
    let set = [("NATS_URL", &*with("ann:wr0ng")), ("NATS_USER", "ann"), ("NATS_PASSWORD", "s3@cret")];
    assert_eq!(conntest(&set).await.0, Some(0), "variables go before the address");
}

#[tokio::test]
async fn conntest_says_that_jetstream_is_off_and_names_each_address_once() {
    let options = NatsOptions { without_jetstream: true, ..Default::default() };
    let nats = NatsServer::start_with(options).await;
    let (code, said) = conntest(&[("NATS_URL", &nats.url())]).await;
    assert!(code == Some(1) && said.contains("JetStream is off on this server: start it with `-js`"), "{said}");
    let (_, away) = conntest(&[("NATS_URL", "nats://127.0.0.1:1")]).await;
    for (said, address) in [(said, nats.url()), (away, "nats://127.0.0.1:1".to_owned())] {
        assert_eq!(said.matches(&*address).count(), 1, "{said}");
    }
}

#[tokio::test]
async fn serve_names_what_is_wrong_with_nats_in_readyz_and_gives_up_refused_credentials_after_a_minute() {
    let nats = nats_with(USERS).await;
    let scratch = Scratch::new("state");
    let options = OperatorOptions::local(&nats, &scratch.join("state"));
    let mut operator = Operator::start_unready(options).await;
    eventually("readyz says why", Duration::from_secs(10), async || {
        get_json(&operator.admin(), "/readyz").await.text.contains("asks for credentials")
    })
    .await;
    let status = operator.wait(Duration::from_secs(90)).await;
    assert_eq!(status.code(), Some(1));
    let log = operator.log();
    assert!(log.contains("has not let us in for 60s") && log.contains("asks for credentials"), "{log}");
}

#[tokio::test]
async fn readyz_says_what_a_power_loss_may_lose() {
    let nats = NatsServer::start().await;
    let scratch = Scratch::new("state");
    let options = OperatorOptions::local(&nats, &scratch.join("state"));
    let operator = Operator::start(options.env("NATS_MONITORING_URL", nats.monitoring_url())).await;
    eventually("readyz says it", Duration::from_secs(10), async || {
        let ready = get_json(operator.base(), "/readyz").await;
        ready.status == 200 && ready.text.contains("connected; nats-server syncs every 2m: a power loss may lose")
    })
    .await;
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
    let (code, out, err) = run(&args[..if json { 4 } else { 3 }], &env).await;
    assert_eq!(code, Some(0), "{}: {err}", path.display());
    out
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

#[tokio::test(flavor = "multi_thread")]
async fn startjob_starts_a_job_that_runs_and_removes_itself() {
    let stage = Stage::cluster(0.3).await;
    let namespace = stage.namespace();
    let env = [
        ("KUBECONFIG", namespace.kubeconfig.to_str().unwrap()),
        ("JOB_NAMESPACE", &*namespace.name),
        ("JOB_TTL_SECONDS", "0"),
    ];
    let args = ["startjob", "--id", "by hand", "--dest", "100", "--text", "hello", "--sip-password", "hunter2"];
    let (code, out, err) = run(&args, &env).await;
    assert_eq!(
        (code, out),
        (Some(0), format!("Job {} started in namespace {}\n", name_of("by hand"), namespace.name)),
        "{err}"
    );
    crate::support::eventually(
        "the call is placed, and the Job removes itself",
        crate::support::setup::PATIENCE,
        async || stage.calls_with("hello") == 1 && stage.jobs().await.is_empty(),
    )
    .await;
    assert_eq!(stage.node().starts()[0].env["SIP_PASSWORD"], "hunter2");
    // None of this needs NATS; without a request nothing rings.
    let (code, _, err) = run(&["startjob"], &env).await;
    assert!(code == Some(1) && err.contains("--dest"), "{code:?} {err}");
    let (code, _, err) = run(&["startjob", "--dest", "1", "--sip-password", "hunter2"], &env).await;
    assert!(code == Some(2) && err.contains("text") && !err.contains("hunter2"), "{code:?} {err}");
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
        let (code, out, err) = run(&["dumpjob"], &[(variable, value)]).await;
        assert_eq!((code, &*out), (Some(2), ""), "{variable}={value}: {err}");
        assert!(err.contains(&format!("{variable}={value}")) && err.contains(accepted), "{variable}={value}: {err}");
    }
    let (code, _, err) = run(&["dumpjob"], &[("JOB_TEMPLATE_FILE", "/nowhere.yaml")]).await;
    assert!(code == Some(2) && err.contains("JOB_TEMPLATE_FILE") && err.contains("/nowhere.yaml"), "{code:?} {err}");
    let (code, _, err) = run(&["dumpjob", "--port", "x"], &[]).await;
    assert!(code == Some(2) && err.contains("--port") && err.contains('x'), "{err}");
    assert_eq!(run(&["no-such-command"], &[]).await.0, Some(2));
}

#[tokio::test]
async fn all_bad_settings_are_named_at_once() {
    let bad = [
        ("MAX_ACTIVE_CALLS", "many"),
        ("PORT", "65536"),
        ("JOB_TEMPLATE_FILE", "/nowhere.yaml"),
        ("LOG_FORMAT", "xml"),
        ("NATS_MONITORING_URL", "http://ann:s3cret@nats:8222"),
    ];
    let (code, _, err) = run(&["dumpjob", "--nats-replicas", "9", "--host=nowhere"], &bad).await;
    assert_eq!(code, Some(2), "{err}");
    for (variable, _) in bad {
        assert_eq!(err.matches(&format!("error: {variable}")).count(), 1, "{variable} in {err}");
    }
    assert!(err.contains("--nats-replicas") && err.contains("--host") && !err.contains("s3cret"), "{err}");
    // A flag goes before its variable, however bad that is.
    let (code, _, err) = run(&["--port", "0", "dumpjob", "--dest", "1", "--text", "x"], &[("PORT", "x")]).await;
    assert_eq!(code, Some(0), "{err}");
}

#[tokio::test]
async fn an_empty_variable_is_as_good_as_none() {
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
    let (code, with_empty, err) = run(&["dumpjob"], &none).await;
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(with_empty, run(&["dumpjob"], &[]).await.1);
}

#[tokio::test]
async fn no_password_of_the_settings_is_ever_printed() {
    const SECRET: &str = "hunter2-hunter2";
    let nats = NatsServer::start().await;
    let scratch = Scratch::new("state");
    let url = format!("nats://ann:{SECRET}@127.0.0.1:{}", nats.port());
    let options = OperatorOptions::local(&nats, &scratch.join("state")).nats_url(url.clone());
    let options = options.env("NATS_USER", "ann").env("NATS_PASSWORD", SECRET).env("NATS_TOKEN", SECRET);
    let mut operator = Operator::start(options.env("RUST_LOG", "trace")).await;
    operator.terminate(Duration::from_secs(10)).await;
    let mut all = operator.log();
    assert!(all.contains("NATS_URL") && all.contains("(set)"), "the banner tells what is set: {all}");
    let env = [("NATS_URL", &*url), ("NATS_PASSWORD", SECRET), ("NATS_TOKEN", SECRET)];
    for args in [&["--help"][..], &["serve", "--help"], &["conntest"], &["settings"], &["dumpjob", "--port", "x"]] {
        let (_, out, err) = run(args, &env).await;
        all += &(out + &err);
    }
    // Wrong in itself, and so part of an error.
    let (_, out, err) =
        run(&["conntest"], &[("NATS_URL", "nats://ann:hunter2-hunter2@no such host:x"), ("RUNNER", "local")]).await;
    all += &(out + &err);
    let at = all.find(SECRET);
    assert_eq!(at.map(|at| &all[at.saturating_sub(200)..at]), None);
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_and_exits_1() {
    let nats = NatsServer::start().await;
    let scratch = Scratch::new("state");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let options = OperatorOptions::local(&nats, &scratch.join("state")).env("PORT", port);
    let (status, log) = Operator::run_to_end(options).await;
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(&format!("127.0.0.1:{port}")) && log.contains("PORT") && log.contains("in use"), "{log}");
}

#[tokio::test]
async fn a_state_directory_that_another_operator_has_is_named_and_exits_1() {
    let nats = NatsServer::start().await;
    let scratch = Scratch::new("state");
    let options = OperatorOptions::local(&nats, &scratch.join("state"));
    let _first = Operator::start(options.clone()).await;
    let (status, log) = Operator::run_to_end(options).await;
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(scratch.join("state").to_str().unwrap()), "{log}");
}

#[tokio::test]
async fn without_a_cluster_the_runner_must_be_named() {
    for command in ["serve", "conntest"] {
        let (code, out, err) = run(&[command], &[("PORT", "0"), ("NATS_URL", "nats://127.0.0.1:1")]).await;
        assert_eq!(code, Some(1), "{out}{err}");
        assert!(err.contains("RUNNER=kubernetes") && err.contains("RUNNER=local"), "{err}");
    }
}
