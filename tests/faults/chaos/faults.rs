//! Makes the planned faults happen, each at its moment, in a task of its own; two about the same thing wait for each other.
//!
//! Of what the operator keeps in JetStream only that is deleted whose loss loses no call: the bucket, the consumers, the dead letters.
//! With `SIP_CALLS`, `SIP_QUEUE`, `SIP_DIAL`, `SIP_SCHEDULE` or `SIP_STATUS` accepted requests are lost by definition; what goes on all the same is in
//! `tests/faults/streams.rs`. What a power loss takes from nats-server is in `tests/faults/power_loss.rs`.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::DeleteStatus;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use sipstuff_operator::call::Status;
use tokio::task::JoinSet;

use super::pause::{hold_trunk, pause_and_restart};
use super::plan::{Fault, Kind};
use super::world::World;
use crate::support::TestNode;

/// The label by which a pod names its Job.
const JOB_NAME: &str = "batch.kubernetes.io/job-name";
/// How long to wait until something runs that can vanish in the middle of it.
const BUSY: Duration = Duration::from_secs(5);
/// The stream behind the bucket.
pub const BUCKET: &str = "KV_SIP_OPERATOR";
/// The consumers, each with its stream.
pub const CONSUMERS: [(&str, &str); 4] = [
    ("SIP_CALLS", "admission"),
    ("SIP_SCHEDULE", "due"),
    ("SIP_DIAL", "dialler-default"),
    ("SIP_DIAL", "dialler-second"),
];
/// What is slow, is so much slower per piece.
const SLOW: Duration = Duration::from_millis(60);

/// How many of each kind there were.
pub type Injected = Arc<Mutex<BTreeMap<Kind, usize>>>;

/// Injects every fault of the plan and returns when all are over.
pub async fn inject(world: Arc<World>, injected: Injected) {
    let mut tasks = JoinSet::new();
    for fault in world.plan.faults() {
        tokio::time::sleep(fault.at.saturating_sub(world.begin.elapsed())).await;
        *injected.lock().expect("no panic while it is held").entry(fault.kind).or_default() += 1;
        let world = Arc::clone(&world);
        tasks.spawn(happen(world, fault));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("a fault can be injected");
    }
}

async fn happen(world: Arc<World>, fault: Fault) {
    let world = &*world;
    note(world, &format!("{:?} replica {} for {:?}", fault.kind, world.replicas[fault.replica].name, fault.lasts));
    let replica = &world.replicas[fault.replica];
    let time = fault.lasts;
    match fault.kind {
        Kind::KillReplica => replica.kill(time).await,
        Kind::TerminateReplica => {
            let took = replica.terminate(time).await;
            note(world, &format!("replica {} ended in order after {took:?}", replica.name));
        }
        Kind::FreezeReplica | Kind::FreezeReplicaLong => replica.freeze(time).await,
        Kind::KillNats => {
            let _alone = world.queue.lock().await;
            world.nats.kill();
            tokio::time::sleep(time).await;
            world.nats.restart().await;
        }
        Kind::KillApiServer => {
            let _alone = world.control.lock().await;
            let since = Timestamp::now();
            world.plane.kill_apiserver();
            tokio::time::sleep(time / 4).await;
            world.plane.restart_apiserver().await;
            world.control_was_down(since);
        }
        Kind::KillControllerManager => {
            let _alone = world.control.lock().await;
            let since = Timestamp::now();
            world.plane.kill_controller_manager();
            tokio::time::sleep(time / 2).await;
            world.plane.restart_controller_manager();
            world.control_was_down(since);
        }
        Kind::CutNats => replica.nats.cut(),
        Kind::CutKubernetes => replica.kubernetes.cut(),
        Kind::RefuseNats => refuse(&replica.nats, time).await,
        Kind::RefuseKubernetes => refuse(&replica.kubernetes, time).await,
        Kind::StallNats | Kind::StallNatsLong => stall(&replica.nats, time).await,
        Kind::StallKubernetes => stall(&replica.kubernetes, time * 3).await,
        Kind::SlowNats => slow(&replica.nats, time).await,
        Kind::SlowKubernetes => slow(&replica.kubernetes, time).await,
        Kind::DeleteJobs | Kind::DeletePods | Kind::FailPods => harm(world, fault).await,
        Kind::VanishNode => vanish_node(world, time).await,
        Kind::VanishCluster => vanish_cluster(world, time).await,
        Kind::DeleteBucket => delete_bucket(world).await,
        Kind::DeleteConsumers => delete_consumers(world, fault).await,
        Kind::DeleteDeadLetters => delete_dead_letters(world).await,
        Kind::PauseAndRestart => pause_and_restart(world, fault).await,
        Kind::HoldTrunk => hold_trunk(world, &fault).await,
    }
}

/// The node vanishes in the middle of its calls; for a while there is none.
async fn vanish_node(world: &World, time: Duration) {
    let node = world.node();
    is_busy(&node).await;
    node.vanish();
    note(world, &format!("the node vanished with {} pods in hand", node.jobs_in_hand().len()));
    tokio::time::sleep(time / 2).await;
    world.replace_node();
}

/// The third operator vanishes with its cluster, in the middle of its calls.
async fn vanish_cluster(world: &World, time: Duration) {
    let mut guest = world.guest.lock().await;
    is_busy(&guest.node).await;
    world.vanish_guest(&mut guest);
    note(world, &format!("{} vanished with {} pods in hand", guest.cluster, guest.node.jobs_in_hand().len()));
    tokio::time::sleep(time).await;
    let _alone = world.control.lock().await;
    world.replace_guest(&mut guest).await;
}

/// Waits until a node has some pods in hand, but not for long: it may be that nothing is dialled now.
async fn is_busy(node: &TestNode) {
    let begin = Instant::now();
    while node.jobs_in_hand().len() < 3 && begin.elapsed() < BUSY {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn delete_bucket(world: &World) {
    let _unpaused = world.bucket.lock().await;
    let _alone = world.queue.lock().await;
    let deleted = world.js().delete_stream(BUCKET).await;
    note(
        world,
        &format!(
            "the bucket was deleted: {:?}",
            deleted.map(|deleted| deleted.success).map_err(|error| error.to_string())
        ),
    );
}

async fn delete_consumers(world: &World, mut fault: Fault) {
    let _alone = world.queue.lock().await;
    let count = if fault.dice.percent(50) { 1 } else { CONSUMERS.len() };
    for (stream, consumer) in &CONSUMERS[..count] {
        let deleted = world.js().delete_consumer_from_stream(consumer, *stream).await;
        note(world, &format!("the consumer {consumer} was deleted: {}", outcome(deleted)));
    }
}

/// What the server says of a deletion, where it says anything.
fn outcome<E: Display>(deleted: Result<DeleteStatus, E>) -> String {
    deleted.map_or_else(|error| error.to_string(), |deleted| deleted.success.to_string())
}

/// The letters are counted before, and so accounted for.
async fn delete_dead_letters(world: &World) {
    let _alone = world.queue.lock().await;
    let Ok(stream) = world.js().get_stream("SIP_DEAD").await else { return };
    let letters = stream.cached_info().state.messages;
    let deleted = world.js().delete_stream("SIP_DEAD").await;
    if deleted.is_ok() {
        *world.letters_deleted.lock().expect("no panic while it is held") += letters;
    }
    note(
        world,
        &format!(
            "{letters} dead letters were deleted: {:?}",
            deleted.map(|deleted| deleted.success).map_err(|error| error.to_string())
        ),
    );
}

fn note(world: &World, what: &str) {
    println!("{:7.1}s {what}", world.begin.elapsed().as_secs_f32());
}

async fn refuse(proxy: &crate::support::Proxy, time: Duration) {
    proxy.refuse(true);
    proxy.cut();
    tokio::time::sleep(time).await;
    proxy.refuse(false);
}

async fn stall(proxy: &crate::support::Proxy, time: Duration) {
    proxy.stall(true);
    tokio::time::sleep(time).await;
    proxy.stall(false);
}

async fn slow(proxy: &crate::support::Proxy, time: Duration) {
    proxy.slow(SLOW);
    tokio::time::sleep(time).await;
    proxy.slow(Duration::ZERO);
}

/// Harms some of the pods that run, or their Jobs, as somebody with `kubectl` would.
async fn harm(world: &World, mut fault: Fault) {
    let _alone = world.control.lock().await;
    let pods: Api<Pod> = world.namespace.api();
    // Those of a node that has vanished only seem to run.
    let running = |pod: &Pod| {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        phase == Some("Running") && world.node().has_in_hand(uid)
    };
    for _ in 0..50 {
        let Ok(list) = pods.list(&ListParams::default()).await else { continue };
        let mut victims: Vec<Pod> = list.items.into_iter().filter(running).collect();
        if victims.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        for _ in 0..fault.count.min(victims.len()) {
            let choice = fault.dice.between(0, victims.len() as u64 - 1) as usize;
            harm_one(world, fault.kind, victims.swap_remove(choice)).await;
        }
        return;
    }
    note(world, "nothing ran that could be harmed");
}

async fn harm_one(world: &World, kind: Kind, pod: Pod) {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let job = pod.metadata.labels.as_ref().and_then(|labels| labels.get(JOB_NAME)).cloned().unwrap_or_default();
    let call = sipstuff_operator::call::CallName::of_job(&job).map(|call| call.to_string()).unwrap_or_default();
    let state = world.state_of(&call).await;
    let known_to_run = state.is_some_and(|event| {
        event.job.as_deref() == Some(&job) && matches!(event.status, Status::Running | Status::Cancelling)
    });
    let pods: Api<Pod> = world.namespace.api();
    let (how, done) = match kind {
        Kind::DeleteJobs => {
            let jobs: Api<Job> = world.namespace.api();
            ("its Job was deleted", jobs.delete(&job, &DeleteParams::background()).await.map(drop))
        }
        Kind::DeletePods => ("its pod was deleted", pods.delete(&name, &DeleteParams::default()).await.map(drop)),
        _ => {
            world.node().crash(pod.metadata.uid.as_deref().unwrap_or_default());
            ("its pod was killed", Ok(()))
        }
    };
    note(world, &format!("{job}: {how}: {:?}", done.map_err(|error| error.to_string())));
    world.harm(job, how, known_to_run);
}
