//! Chaos: many calls, two replicas and a third operator with a cluster of its own, and faults in everything around them. All
//! guarantees must hold all the same.
//!
//! `make chaos` runs a big one; `make test` the same, only smaller. A failure prints the seed:
//! `make chaos ARGS='CHAOS_SEED=7 CHAOS_CALLS=150 CHAOS_FAULTS=18'` plays the same calls and the same faults at the same
//! moments; what they meet differs, since the machine's timing does.

mod attempts;
mod checks;
pub(super) mod dice;
mod faults;
mod guest;
mod histories;
mod pause;
mod plan;
mod traffic;
mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::PullConsumer;
use checks::Report;
use futures::future::join_all;
use plan::Plan;
use tokio::task::JoinHandle;
use traffic::Answers;
use world::World;

/// How often the progress is printed.
const PROGRESS: Duration = Duration::from_secs(10);
/// Without any change for this long, it is stuck: three times the ack wait after which a lost replica's calls are redelivered.
const STUCK: Duration = Duration::from_secs(100);

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_every_accepted_call_has_one_end_and_no_attempt_is_started_twice() {
    let plan = Plan::from_environment();
    println!("chaos: {plan:?}, at most {} calls at once", plan.active_calls());
    let world = Arc::new(World::start(plan).await);
    let before = sizes(&world).await;
    let answers = Arc::new(Answers::default());
    let injected = faults::Injected::default();
    let progress = tokio::spawn(print_progress(Arc::clone(&world), Arc::clone(&answers)));

    let traffic = tokio::spawn(traffic::run(Arc::clone(&world), Arc::clone(&answers)));
    let faults = tokio::spawn(faults::inject(Arc::clone(&world), Arc::clone(&injected)));
    let (traffic, faults) = tokio::join!(traffic, faults);
    traffic.expect("every request is answered");
    faults.expect("every fault can be injected");
    world.heal();
    let drained = drained(&world).await;
    let missing = checks::missing(&world).await;
    world.remove_lost_pods().await;
    let released = checks::all_released(&world).await;
    let took = world.begin.elapsed();
    progress.abort();

    let mut report = Report::of(&world, &answers).await;
    report.expect(drained, "the queue and the schedules do not become empty");
    report.expect_none("what was deleted is not made again", missing);
    report.expect_none("Jobs are neither settled nor removed", released);
    let after = settled_sizes(&world, &before).await;
    report.sizes(&before, &after, plan.calls);
    println!("{}", report.figures(&world, &answers, &injected, took));
    world.keep_logs().await;
    if report.has_violations() {
        println!("{}", report.violations(&world));
        panic!("CHAOS_SEED={} failed; its logs are in {}", plan.seed, world.logs.display());
    }
    if !plan.is_big() {
        let _ = std::fs::remove_dir_all(&world.logs);
    }
}

/// Waits until nothing waits and nothing is in progress; false when nothing changes any more before that.
async fn drained(world: &World) -> bool {
    let (mut seen, mut since, mut empty) = (None, Instant::now(), 0);
    while empty < 3 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let streams = ["SIP_SCHEDULE", "SIP_CALLS", "SIP_QUEUE", "SIP_DIAL", "SIP_STATUS"];
        let now = join_all(streams.map(|stream| held(world, stream))).await;
        empty = if now[..4].iter().all(|held| *held == Some(0)) { empty + 1 } else { 0 };
        if seen.as_ref() != Some(&now) {
            (seen, since) = (Some(now), Instant::now());
        }
        if since.elapsed() > STUCK {
            return false;
        }
    }
    true
}

/// How many messages a stream holds, as far as the server says.
async fn held(world: &World, stream: &str) -> Option<u64> {
    world.js().get_stream(stream).await.ok().map(|stream| stream.cached_info().state.messages)
}

/// Resident KiB and open files of each replica.
type Sizes = [(u64, usize); 2];

async fn sizes(world: &World) -> Sizes {
    [world.replicas[0].size().await, world.replicas[1].size().await]
}

/// Waits until connections and tasks that are no longer used have ended.
async fn settled_sizes(world: &World, before: &Sizes) -> Sizes {
    let begin = Instant::now();
    loop {
        let now = sizes(world).await;
        let back = now.iter().zip(before).all(|(now, before)| now.1 <= before.1 + checks::MORE_FILES);
        if back || begin.elapsed() > Duration::from_secs(30) {
            return now;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Prints the progress until it is aborted.
async fn print_progress(world: Arc<World>, answers: Arc<Answers>) {
    loop {
        tokio::time::sleep(PROGRESS).await;
        let Some((waiting, active)) = queue(&world).await else { continue };
        println!(
            "{:7.1}s {} of {} submitted, {} started, {waiting} wait, {active} in progress, {} run, {} sent again",
            world.begin.elapsed().as_secs_f32(),
            answers.count(),
            world.plan.calls,
            world.node().start_count(),
            world.node().running(),
            answers.repeated.load(Ordering::Relaxed),
        );
    }
}

async fn queue(world: &World) -> Option<(u64, usize)> {
    let mut waiting = held(world, "SIP_QUEUE").await? + held(world, "SIP_CALLS").await?;
    let mut active = 0;
    for (trunk, _) in world.plan.trunks() {
        let name = format!("dialler-{trunk}");
        let consumer: PullConsumer = world.js().get_consumer_from_stream(name, "SIP_DIAL").await.ok()?;
        let info = consumer.cached_info();
        waiting += info.num_pending;
        active += info.num_ack_pending;
    }
    Some((waiting, active))
}
