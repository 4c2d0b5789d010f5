//! A pause: nothing is claimed while it lasts, while a replica is restarted and a call is cancelled. And what can be read of it
//! and of the calls from outside, by HTTP.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use sipstuff_operator::policy::DEFAULT_TRUNK;

use super::plan::Fault;
use super::world::{Replica, World};
use crate::support::cli;

/// How long to wait for an answer: a replica may be frozen.
const ANSWER: Duration = Duration::from_secs(2);
/// Before the next try.
const AGAIN: Duration = Duration::from_millis(250);
/// How long to wait until all obey the pause; one that is frozen takes longer, and then only what it does to others is checked.
const OBEYED: Duration = Duration::from_secs(15);
/// So long it lasts at least once all obey.
const SHORTEST: Duration = Duration::from_secs(6);
/// How long to wait until all have learnt that it has ended.
const ENDED: Duration = Duration::from_secs(90);
/// A claim that was on its way when its replica learnt of the pause may be recorded this much later.
const ON_ITS_WAY: SignedDuration = SignedDuration::from_secs(2);

/// Pauses, restarts a replica, cancels a call, and resumes.
pub async fn pause_and_restart(world: &World, mut fault: Fault) {
    // What is lost with the bucket must not be a `resume` that not all have read.
    let _alone = world.bucket.lock().await;
    command(world, &["pause", "--reason", "chaos"]).await;
    let is_obeyed = all_show(world, true, OBEYED).await;
    let since = Timestamp::now() + ON_ITS_WAY;
    tokio::join!(
        restart(&world.replicas[fault.replica], fault.dice.percent(50), fault.lasts / 4),
        cancel_one(world, fault.lasts),
        tokio::time::sleep(fault.lasts.max(SHORTEST)),
    );
    if is_obeyed {
        world.pauses.lock().expect("no panic while it is held").push((since, Timestamp::now()));
    }
    command(world, &["resume"]).await;
    all_show(world, false, ENDED).await;
}

/// Lets nothing be begun on the first trunk for a while.
pub async fn hold_trunk(world: &World, fault: &Fault) {
    let _alone = world.bucket.lock().await;
    command(world, &["trunks", "open", DEFAULT_TRUNK, "--why", "chaos"]).await;
    tokio::time::sleep(fault.lasts.max(SHORTEST)).await;
    command(world, &["trunks", "close", DEFAULT_TRUNK]).await;
}

async fn restart(replica: &Replica, kill: bool, down: Duration) {
    if kill {
        replica.kill(down).await;
    } else {
        replica.terminate(down).await;
    }
}

/// Runs a command until it succeeds: nats-server may be killed meanwhile.
async fn command(world: &World, arguments: &[&str]) {
    let url = world.nats.url();
    while cli::run(arguments, &[("NATS_URL", &url)]).await.code != Some(0) {
        tokio::time::sleep(AGAIN).await;
    }
}

/// Waits until every operator says so in `/health`; false when one does not in time.
async fn all_show(world: &World, paused: bool, patience: Duration) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < patience {
        if shows(world, paused).await {
            return true;
        }
        tokio::time::sleep(AGAIN).await;
    }
    false
}

async fn shows(world: &World, paused: bool) -> bool {
    let guest = world.guest.lock().await.base();
    for base in [world.replicas[0].base(), world.replicas[1].base(), guest] {
        let health = get(&format!("{base}/health")).await;
        if health.is_none_or(|health| health["queue"]["paused"] != paused) {
            return false;
        }
    }
    true
}

/// Cancels a call that runs, or one that waits, of those that a replica lists.
async fn cancel_one(world: &World, patience: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < patience {
        for (replica, status) in world.replicas.iter().zip(["running", "queued"]) {
            let base = replica.base();
            let Some(jobs) = get(&format!("{base}/jobs?limit=1&status={status}")).await else { continue };
            let Some(name) = jobs[0]["name"].as_str() else { continue };
            // Without an answer, it may be cancelled all the same.
            world.cancelled.lock().expect("no panic while it is held").insert(name.to_owned());
            let answer = client().delete(format!("{base}/jobs/{name}")).send().await;
            if answer.is_ok_and(|answer| answer.status() == 202) {
                println!("{:7.1}s {name}, which was {status}, is cancelled", world.begin.elapsed().as_secs_f32());
                return;
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn get(url: &str) -> Option<Value> {
    client().get(url).send().await.ok()?.json().await.ok()
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(ANSWER).build().expect("a plain client")
}
