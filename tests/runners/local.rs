//! The local runner, with real processes: while it runs, when it is killed, and when its processes are.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::BoxStream;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sipstuff_operator::call::{CallId, Fingerprint};
use sipstuff_operator::job::{Ending, JobOrder, Observed, ObservedJob};
use sipstuff_operator::runner::local::{LocalRunner, LocalSettings, OpenError};
use sipstuff_operator::runner::{Observation, Runner, StartError};

use crate::support::eventually;
use crate::support::operator::BINARY;
use crate::support::process::{Scratch, alive};

/// How long a process may take to start or to end, on a machine that does much else.
const SOON: Duration = Duration::from_secs(20);
const PASSWORD: &str = "correct-horse-$-battery";

fn settings(dir: &Path) -> LocalSettings {
    LocalSettings {
        state_dir: dir.join("state"),
        caller: Some(format!("'{BINARY}' simulate-call")),
        secrets_file: None,
        sip_secret_name: "sip-credentials".to_owned(),
        namespace: "test".to_owned(),
        ttl: Duration::from_secs(3600),
        self_exe: BINARY.into(),
    }
}

async fn open(dir: &Path) -> LocalRunner {
    LocalRunner::open(settings(dir)).await.unwrap()
}

/// The Job of a call whose container is this command; `env` as in a manifest.
fn job(id: &str, command: &[&str], env: Value) -> JobOrder {
    let id = CallId::parse(id).unwrap();
    let job = json!({
        "metadata": {
            "name": id.name().job(1),
            "annotations": {
                "sipstuff-operator/call-id": id,
                "sipstuff-operator/attempt": "1",
                "sipstuff-operator/fingerprint": Fingerprint::of(id.as_str().as_bytes()),
            },
        },
        "spec": {"template": {"spec": {"activeDeadlineSeconds": 60, "containers": [
            {"name": "sip-caller", "command": command, "env": env},
        ]}}},
    });
    JobOrder { job: serde_json::from_value(job).unwrap(), passwords: Default::default() }
}

fn sh(id: &str, script: &str) -> JobOrder {
    job(id, &["/bin/sh", "-c", &script.replace('$', "$$")], json!([]))
}

fn call(id: &str, dest: &str, seconds: &str) -> JobOrder {
    let command = ["python3", "-m", "sipstuff.cli", "call", "--dest", dest, "--text", "hello", "--timeout", "60"];
    job(id, &command, json!([{"name": "SIMULATE_SECONDS", "value": seconds}]))
}

/// What a runner observes, read until a condition holds.
struct Watcher(BoxStream<'static, Observation>);

impl Watcher {
    fn of(runner: &LocalRunner) -> Self {
        Self(runner.observe())
    }

    async fn next(&mut self) -> Observation {
        tokio::time::timeout(SOON, self.0.next()).await.expect("an observation within 20 s").unwrap()
    }

    async fn all(&mut self) -> Vec<ObservedJob> {
        match self.next().await {
            Observation::All(jobs) => jobs,
            other => panic!("{other:?} came before the full list"),
        }
    }

    async fn until(&mut self, job: &str, wanted: impl Fn(&Observed) -> bool) -> ObservedJob {
        loop {
            let seen = match self.next().await {
                Observation::All(jobs) => jobs,
                Observation::Changed(seen) => vec![seen],
                Observation::Removed(_) => vec![],
            };
            if let Some(seen) = seen.into_iter().find(|seen| seen.name == job && wanted(&seen.state)) {
                return seen;
            }
        }
    }

    async fn removed(&mut self, job: &str) -> ObservedJob {
        loop {
            match self.next().await {
                Observation::Removed(seen) if seen.name == job => return seen,
                _ => {}
            }
        }
    }
}

fn runs(state: &Observed) -> bool {
    matches!(state, Observed::Running { .. })
}

fn ended(state: &Observed) -> bool {
    matches!(state, Observed::Ended(_))
}

/// How an attempt ended, if it has.
async fn ending_of(runner: &LocalRunner, job: &str) -> Option<Ending> {
    runner.find(job).await.unwrap()?.ending().cloned()
}

/// Starts an order and waits for its end.
async fn run(runner: &LocalRunner, order: &JobOrder) -> Ending {
    let mut watcher = Watcher::of(runner);
    runner.start(order).await.unwrap();
    watcher.until(order.name(), ended).await;
    ending_of(runner, order.name()).await.unwrap()
}

fn folder(dir: &Path, order: &JobOrder) -> PathBuf {
    dir.join("state/jobs").join(order.name())
}

fn caller_of(folder: &Path) -> u32 {
    let started: Value = serde_json::from_slice(&fs::read(folder.join("started")).unwrap()).unwrap();
    started["group"].as_i64().unwrap().try_into().unwrap()
}

fn parent_of(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A call that runs, its runner, and the number of its process.
struct Running {
    runner: LocalRunner,
    watcher: Watcher,
    caller: u32,
}

impl Running {
    async fn start(dir: &Path, order: &JobOrder) -> Self {
        let runner = open(dir).await;
        let mut watcher = Watcher::of(&runner);
        runner.start(order).await.unwrap();
        watcher.until(order.name(), runs).await;
        Self { runner, watcher, caller: caller_of(&folder(dir, order)) }
    }

    /// The same call after a restart of the runner, which has adopted it.
    async fn adopted(self, dir: &Path) -> Self {
        drop(self.runner);
        let runner = open(dir).await;
        Self { watcher: Watcher::of(&runner), runner, caller: self.caller }
    }
}

#[tokio::test]
async fn a_job_waits_runs_and_ends() {
    let dir = Scratch::new("local-runner");
    let runner = open(dir.path()).await;
    let mut watcher = Watcher::of(&runner);
    assert_eq!(watcher.all().await, []);
    let order = call("one", "100", "0.5");
    runner.start(&order).await.unwrap();
    assert!(
        matches!(watcher.next().await, Observation::Changed(seen) if matches!(seen.state, Observed::Waiting { .. }))
    );
    let running = watcher.until(order.name(), runs).await;
    assert_eq!((running.id.as_str(), running.attempt, running.settled), ("one", 1, false));
    assert!(ending_of(&runner, order.name()).await.is_none(), "it has not ended");
    let finished = watcher.until(order.name(), ended).await;
    assert_eq!(finished.ending().map(|ending| ending.succeeded), Some(true));
    assert_eq!(runner.find(order.name()).await.unwrap(), Some(finished));
    let ending = ending_of(&runner, order.name()).await.unwrap();
    assert_eq!((ending.succeeded, ending.exit_code, ending.message, ending.reason), (true, Some(0), None, None));
    let took = ending.completed_at.duration_since(ending.started_at.unwrap());
    assert!(took >= jiff::SignedDuration::from_millis(500), "{took}");
}

#[tokio::test]
async fn a_failed_call_ends_with_its_sip_code() {
    let dir = Scratch::new("local-runner");
    let ending = run(&open(dir.path()).await, &call("busy", "+49123486", "0.05")).await;
    assert_eq!((ending.succeeded, ending.exit_code), (false, Some(1)));
    let message = ending.message.unwrap();
    assert!(message.contains("Call state: DISCONNECTED (last code: 486)"), "{message}");
    assert!(message.contains("Call not answered: Busy Here"), "{message}");
}

#[tokio::test]
async fn a_message_is_the_last_2048_bytes_or_80_lines() {
    let dir = Scratch::new("local-runner");
    let runner = open(dir.path()).await;
    let lines = run(&runner, &sh("lines", "seq 1 200; exit 3")).await;
    assert_eq!(lines.exit_code, Some(3));
    let wanted: String = (121..=200).map(|line| format!("{line}\n")).collect();
    assert_eq!(lines.message.unwrap(), wanted);
    let long = run(&runner, &sh("long", "for i in $(seq 1 1500); do printf '€'; done >&2; exit 1")).await;
    assert_eq!(long.message.unwrap(), "€".repeat(682), "2048 bytes, without the character that the cut has split");
}

#[tokio::test]
async fn a_signal_is_an_exit_code_as_in_kubernetes() {
    let dir = Scratch::new("local-runner");
    let ending = run(&open(dir.path()).await, &sh("signal", "kill -KILL $$")).await;
    assert_eq!(ending.exit_code, Some(137));
}

#[tokio::test]
async fn a_program_that_does_not_exist_fails_without_an_exit_code() {
    let dir = Scratch::new("local-runner");
    let ending = run(&open(dir.path()).await, &job("absent", &["/no/such/program"], json!([]))).await;
    assert_eq!((ending.succeeded, ending.exit_code, ending.started_at), (false, None, None));
    assert!(ending.reason.unwrap().contains("/no/such/program"));
}

#[tokio::test]
async fn a_second_start_is_success_and_starts_nothing() {
    let dir = Scratch::new("local-runner");
    let runner = open(dir.path()).await;
    let count = dir.path().join("count");
    let order = sh("twice", &format!("echo x >> '{}'; sleep 0.3", count.display()));
    let starts = futures::future::join_all((0..8).map(|_| runner.start(&order))).await;
    assert!(starts.iter().all(Result::is_ok), "{starts:?}");
    run(&runner, &order).await;
    runner.start(&order).await.unwrap();
    drop(runner);
    let runner = open(dir.path()).await;
    runner.start(&order).await.unwrap();
    assert_eq!(fs::read_to_string(count).unwrap(), "x\n");
}

#[tokio::test]
async fn a_job_of_another_request_is_a_conflict() {
    let dir = Scratch::new("local-runner");
    let runner = open(dir.path()).await;
    let mut order = sh("same", "true");
    runner.start(&order).await.unwrap();
    order.job.metadata.annotations.as_mut().unwrap().insert("sipstuff-operator/fingerprint".into(), "other".into());
    assert!(matches!(runner.start(&order).await, Err(StartError::Conflict(name)) if name == order.name()));
}

#[tokio::test]
async fn a_name_that_is_a_path_is_refused() {
    let dir = Scratch::new("local-runner");
    let runner = open(dir.path()).await;
    let mut order = sh("path", "true");
    order.job.metadata.name = Some("../../evil".to_owned());
    assert!(matches!(runner.start(&order).await, Err(StartError::Refused(_))));
}

#[tokio::test]
async fn a_restarted_runner_adopts_what_runs_and_knows_how_the_rest_ended() {
    let dir = Scratch::new("local-runner");
    let (short, long) = (sh("short", "sleep 0.2; echo gone; exit 7"), sh("long", "sleep 1.5; exit 9"));
    let runner = open(dir.path()).await;
    let cluster = runner.info().cluster.clone();
    let mut watcher = Watcher::of(&runner);
    for order in [&short, &long] {
        runner.start(order).await.unwrap();
    }
    watcher.until(long.name(), runs).await;
    drop(runner);
    // The supervisor holds the lock until it has gone, a moment after it has written the end.
    let lock = fs::File::open(folder(dir.path(), &short).join("lock")).unwrap();
    let is_gone = || lock.try_lock_shared().is_ok() && lock.unlock().is_ok();
    let has_ended = async || folder(dir.path(), &short).join("exit.json").exists() && is_gone();
    eventually("the short one ends", SOON, has_ended).await;

    let runner = open(dir.path()).await;
    assert_eq!(runner.info().cluster, cluster, "the identity stays");
    let mut watcher = Watcher::of(&runner);
    let all = watcher.all().await;
    let state = |order: &JobOrder| all.iter().find(|seen| seen.name == order.name()).unwrap().state.clone();
    assert!(ended(&state(&short)));
    assert!(runs(&state(&long)));
    let ending = ending_of(&runner, short.name()).await.unwrap();
    assert_eq!((ending.exit_code, ending.message.as_deref()), (Some(7), Some("gone\n")));
    watcher.until(long.name(), ended).await;
    assert_eq!(ending_of(&runner, long.name()).await.unwrap().exit_code, Some(9));
}

#[tokio::test]
async fn a_lost_supervisor_is_a_failed_job_and_takes_its_caller_along() {
    let dir = Scratch::new("local-runner");
    let order = sh("lost", "echo so far; sleep 300");
    lost_with_its_caller(Running::start(dir.path(), &order).await, &order).await;
}

#[tokio::test]
async fn a_lost_supervisor_of_an_adopted_job_is_a_failed_job_and_takes_its_caller_along() {
    let dir = Scratch::new("local-runner");
    let order = sh("lost", "echo so far; sleep 300");
    let running = Running::start(dir.path(), &order).await.adopted(dir.path()).await;
    lost_with_its_caller(running, &order).await;
}

async fn lost_with_its_caller(running: Running, order: &JobOrder) {
    let Running { runner, mut watcher, caller } = running;
    signal::kill(Pid::from_raw(parent_of(caller).try_into().unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!(watcher.until(order.name(), ended).await.ending().map(|ending| ending.succeeded), Some(false));
    let ending = ending_of(&runner, order.name()).await.unwrap();
    assert_eq!((ending.exit_code, ending.reason.as_deref()), (None, Some("the process was lost")));
    assert_eq!(ending.message.as_deref(), Some("so far\n"));
    assert!(!alive(caller), "nobody could end it any more");
}

#[tokio::test]
async fn a_claim_whose_call_never_began_does_not_count() {
    let dir = Scratch::new("local-runner");
    let order = sh("never", "exit 4");
    let runner = open(dir.path()).await;
    run(&runner, &order).await;
    drop(runner);
    // As a crash between the claim and the supervisor's first step leaves it.
    for file in ["launch", "started", "exit.json", "log", "alive"] {
        fs::remove_file(folder(dir.path(), &order).join(file)).unwrap();
    }
    let runner = open(dir.path()).await;
    assert_eq!(Watcher::of(&runner).all().await, []);
    assert_eq!(run(&runner, &order).await.exit_code, Some(4));
}

#[tokio::test]
async fn a_launch_without_a_process_is_never_run_again() {
    let dir = Scratch::new("local-runner");
    let order = sh("launched", "exit 4");
    let runner = open(dir.path()).await;
    run(&runner, &order).await;
    drop(runner);
    for file in ["started", "exit.json", "log", "alive"] {
        fs::remove_file(folder(dir.path(), &order).join(file)).unwrap();
    }
    let runner = open(dir.path()).await;
    assert_eq!(Watcher::of(&runner).all().await[0].ending().map(|ending| ending.succeeded), Some(false));
    runner.start(&order).await.unwrap();
    let ending = ending_of(&runner, order.name()).await.unwrap();
    assert_eq!((ending.exit_code, ending.reason.as_deref()), (None, Some("the process was lost")));
    assert!(!folder(dir.path(), &order).join("log").exists());
}

#[tokio::test]
async fn a_job_past_its_deadline_is_ended_with_its_children() {
    let dir = Scratch::new("local-runner");
    let runner = open(dir.path()).await;
    let mut order = sh("late", "sleep 300 & echo $! > \"$SIMULATE_TAG\"; wait");
    let child = dir.path().join("child");
    let spec = order.job.spec.as_mut().unwrap();
    spec.template.spec.as_mut().unwrap().active_deadline_seconds = Some(1);
    let env = json!([{"name": "SIMULATE_TAG", "value": child.display().to_string()}]);
    spec.template.spec.as_mut().unwrap().containers[0].env = serde_json::from_value(env).unwrap();
    let ending = run(&runner, &order).await;
    assert_eq!((ending.succeeded, ending.exit_code), (false, None));
    assert!(ending.reason.unwrap().starts_with("DeadlineExceeded"));
    let child = fs::read_to_string(child).unwrap().trim().parse().unwrap();
    eventually("its child ends too", SOON, async || !alive(child)).await;
}

#[tokio::test]
async fn a_stopped_job_hangs_up_and_is_removed_as_it_was() {
    let dir = Scratch::new("local-runner");
    let order = call("stop", "100", "300");
    stopped_and_removed(dir.path(), Running::start(dir.path(), &order).await, &order).await;
}

#[tokio::test]
async fn an_adopted_job_that_is_stopped_hangs_up_and_is_removed_as_it_was() {
    let dir = Scratch::new("local-runner");
    let order = call("stop", "100", "300");
    let running = Running::start(dir.path(), &order).await.adopted(dir.path()).await;
    stopped_and_removed(dir.path(), running, &order).await;
}

async fn stopped_and_removed(dir: &Path, running: Running, order: &JobOrder) {
    let Running { runner, mut watcher, caller } = running;
    runner.stop(order.name()).await.unwrap();
    assert!(runs(&watcher.removed(order.name()).await.state), "it had not ended by itself");
    assert!(!alive(caller));
    assert_eq!(runner.find(order.name()).await.unwrap(), None);
    assert!(!folder(dir, order).exists());
    runner.stop(order.name()).await.unwrap();
    runner.release(order.name()).await.unwrap();
}

#[tokio::test]
async fn a_caller_that_ignores_sigint_is_killed() {
    let dir = Scratch::new("local-runner");
    let runner = open(dir.path()).await;
    let mut watcher = Watcher::of(&runner);
    let order = sh("deaf", "trap '' INT; echo deaf; while :; do sleep 0.1; done");
    runner.start(&order).await.unwrap();
    watcher.until(order.name(), runs).await;
    let log = folder(dir.path(), &order).join("log");
    eventually("it ignores the signal", SOON, async || fs::read_to_string(&log).is_ok_and(|log| log == "deaf\n")).await;
    let since = Instant::now();
    runner.stop(order.name()).await.unwrap();
    watcher.removed(order.name()).await;
    assert!(since.elapsed() >= Duration::from_secs(5), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_job_stopped_before_it_runs_is_removed() {
    let dir = Scratch::new("local-runner");
    let runner = open(dir.path()).await;
    let mut watcher = Watcher::of(&runner);
    let order = sh("early", "sleep 300");
    runner.start(&order).await.unwrap();
    runner.stop(order.name()).await.unwrap();
    watcher.removed(order.name()).await;
}

#[tokio::test]
async fn a_job_that_was_stopped_too_late_is_removed_with_its_end() {
    let dir = Scratch::new("local-runner");
    let runner = open(dir.path()).await;
    let order = sh("too-late", "exit 5");
    run(&runner, &order).await;
    let mut watcher = Watcher::of(&runner);
    runner.stop(order.name()).await.unwrap();
    assert_eq!(watcher.removed(order.name()).await.ending().and_then(|ending| ending.exit_code), Some(5));
}

#[tokio::test]
async fn only_a_settled_job_goes_after_its_time() {
    let dir = Scratch::new("local-runner");
    let settings = LocalSettings { ttl: Duration::from_millis(300), ..settings(dir.path()) };
    let runner = LocalRunner::open(settings.clone()).await.unwrap();
    let (settled, kept, left) = (sh("settled", "true"), sh("kept", "false"), sh("left", "true"));
    for order in [&settled, &kept, &left] {
        run(&runner, order).await;
    }
    let mut watcher = Watcher::of(&runner);
    runner.release(settled.name()).await.unwrap();
    runner.release(settled.name()).await.unwrap();
    assert_eq!(watcher.until(settled.name(), ended).await.ending().map(|ending| ending.succeeded), Some(true));
    assert!(watcher.removed(settled.name()).await.settled);
    assert!(!folder(dir.path(), &settled).exists());
    runner.release(left.name()).await.unwrap();
    drop(runner);

    let runner = LocalRunner::open(settings).await.unwrap();
    let is_gone = async || !folder(dir.path(), &left).exists();
    eventually("a settled one goes after a restart too", SOON, is_gone).await;
    assert_eq!(runner.find(kept.name()).await.unwrap().unwrap().ending().map(|ending| ending.succeeded), Some(false));
    let running = sh("running", "sleep 300");
    runner.start(&running).await.unwrap();
    assert!(runner.release(running.name()).await.is_err(), "it has not ended");
    runner.stop(running.name()).await.unwrap();
    Watcher::of(&runner).removed(running.name()).await;
}

#[tokio::test]
async fn one_state_directory_has_one_operator() {
    let dir = Scratch::new("local-runner");
    let runner = open(dir.path()).await;
    let error = LocalRunner::open(settings(dir.path())).await.unwrap_err();
    assert!(matches!(error, OpenError::InUse(_)), "{error}");
    assert!(error.to_string().contains("in use by another operator"), "{error}");
    assert!(runner.check().await.unwrap().contains("local runner"));
}

#[tokio::test]
async fn secrets_reach_the_caller_and_nothing_else() {
    let dir = Scratch::new("local-runner");
    let secrets = dir.path().join("secrets.env");
    fs::write(&secrets, "SIP_USER=alice\nSIP_TURN_PASSWORD=turn-secret\n[trunk]\nSIP_USER=bob\n").unwrap();
    let runner =
        LocalRunner::open(LocalSettings { secrets_file: Some(secrets), ..settings(dir.path()) }).await.unwrap();
    let from = |name: &str, secret: &str, key: &str| json!({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": true}}});
    let name = CallId::parse("secret").unwrap().name().job(1);
    let env = json!([
        from("SIP_PASSWORD", &name, "SIP_PASSWORD"),
        from("SIP_USER", "sip-credentials", "SIP_USER"),
        from("OTHER", "trunk", "SIP_USER"),
        from("SIP_SERVER", "sip-credentials", "SIP_SERVER"),
        from("SIP_TURN_PASSWORD", "sip-credentials", "SIP_TURN_PASSWORD"),
    ]);
    // Only whether the passwords agree, and what is not secret, may be printed.
    let script = "set -- \"$1\" \"$SIP_PASSWORD\"; [ \"$1\" = \"$2\" ] && printf '%s %s %s %s' same $SIP_USER $OTHER ${SIP_SERVER-absent}; sleep 0.5; exit 1";
    let script = script.replace('$', "$$");
    let mut order = job("secret", &["/bin/sh", "-c", &script, "sh", "$(SIP_PASSWORD)"], env);
    order.passwords.insert("SIP_PASSWORD".to_owned(), PASSWORD.to_owned().into());
    let mut watcher = Watcher::of(&runner);
    runner.start(&order).await.unwrap();
    watcher.until(order.name(), runs).await;
    assert_no_secret(dir.path());
    watcher.until(order.name(), ended).await;
    assert_no_secret(dir.path());
    assert_eq!(ending_of(&runner, order.name()).await.unwrap().message.as_deref(), Some("same alice bob absent"));
}

fn assert_no_secret(dir: &Path) {
    let mut folders = vec![dir.join("state")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            assert!(!text.contains(PASSWORD) && !text.contains("turn-secret"), "{}", path.display());
            files += 1;
        }
    }
    assert!(files > 5, "the state directory was not read");
}

#[tokio::test]
async fn many_at_once_all_end_and_each_ran_once() {
    let dir = Scratch::new("local-runner");
    let runner = open(dir.path()).await;
    let count = dir.path().join("count");
    let orders: Vec<JobOrder> =
        (0..60).map(|n| sh(&format!("many-{n}"), &format!("echo {n} >> '{}'; sleep 0.5", count.display()))).collect();
    let mut watcher = Watcher::of(&runner);
    let starts = futures::future::join_all(orders.iter().map(|order| runner.start(order))).await;
    assert!(starts.iter().all(Result::is_ok));
    let mut open: Vec<&str> = orders.iter().map(JobOrder::name).collect();
    while !open.is_empty() {
        if let Observation::Changed(seen) = watcher.next().await
            && ended(&seen.state)
        {
            assert_eq!(seen.ending().map(|ending| ending.succeeded), Some(true));
            open.retain(|name| *name != seen.name);
        }
    }
    assert_eq!(fs::read_to_string(count).unwrap().lines().count(), orders.len());
}

/// The operator of the next test, as a process that can be killed: starts its orders and goes on until it is killed.
#[tokio::test]
#[ignore = "run by the test below, in a process of its own"]
async fn an_operator_to_be_killed() {
    let dir = PathBuf::from(std::env::var_os("VICTIM_DIR").expect("only the test below runs this"));
    let runner = open(&dir).await;
    for order in victim_orders(&dir) {
        runner.start(&order).await.unwrap();
    }
    std::future::pending::<()>().await;
}

fn victim_orders(dir: &Path) -> Vec<JobOrder> {
    let count = dir.join("count");
    let script = |n| format!("echo {n} >> '{}'; sleep 0.5; exit 5", count.display());
    (0..25).map(|n| sh(&format!("victim-{n}"), &script(n))).collect()
}

#[tokio::test]
async fn a_killed_operator_leaves_calls_that_run_once_and_keep_their_exit_code() {
    for millis in [0, 3, 10, 30, 300, 1500] {
        let dir = Scratch::new("local-runner");
        let mut operator = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "runners::local::an_operator_to_be_killed", "--ignored"])
            .env("VICTIM_DIR", dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        eventually("it claims", SOON, async || {
            fs::read_dir(dir.path().join("state/jobs")).is_ok_and(|mut jobs| jobs.next().is_some())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(millis)).await;
        operator.kill().unwrap();
        operator.wait().unwrap();

        let runner = open(dir.path()).await;
        let orders = victim_orders(dir.path());
        for order in &orders {
            runner.start(order).await.unwrap();
        }
        let mut lost = 0;
        for order in &orders {
            Watcher::of(&runner).until(order.name(), ended).await;
            match ending_of(&runner, order.name()).await.unwrap() {
                Ending { exit_code: Some(5), .. } => {}
                Ending { exit_code: None, reason, .. } if reason.as_deref() == Some("the process was lost") => {
                    lost += 1
                }
                other => panic!("{other:?}"),
            }
        }
        let text = fs::read_to_string(dir.path().join("count")).unwrap();
        let mut ran: Vec<&str> = text.lines().collect();
        ran.sort_unstable();
        let all = ran.len();
        ran.dedup();
        assert_eq!(ran.len(), all, "none ran twice: {text}");
        // At most the one whose handover was cut off in the middle.
        assert!(all + lost == orders.len() && lost <= 1, "{all} ran, {lost} were lost");
    }
}
