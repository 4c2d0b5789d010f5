//! The machine of nats-server loses its power. Its store is on an ext4 file system on a loop device, whose image is copied at a
//! random moment as it is on the block layer: what was not synced by then is not in the copy. nats-server is killed, and goes on
//! with the copy. The operator and its calls are on another machine, so to speak, and live on.
//!
//! `make test-power` runs these. They need root and loop devices, so `make test` leaves them out. A failure prints the seed:
//! `make test-power ARGS='POWER_SEED=7 POWER_ROUNDS=1'` cuts the power at the same moment again.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::chaos::dice::Dice;
use crate::support::process::Scratch;
use crate::support::status::recorded;
use crate::support::{NatsOptions, NatsServer, Operator, PATIENCE, Setup, eventually, name_of, post_call, request_of};

/// Who publishes at once, and how long each waits between two calls: several hundred calls per second at most.
const CALLERS: usize = 16;
const PAUSE: Duration = Duration::from_millis(20);
/// Large enough for a journal, and copied within milliseconds, since most of it is a hole.
const DISK_BYTES: u64 = 256 * 1024 * 1024;

/// A disk that can lose its power.
struct Disk {
    folder: Scratch,
}

impl Disk {
    fn new() -> Self {
        let disk = Self { folder: Scratch::new("disk") };
        let image = fs::File::create(disk.image()).expect("a file in a folder just made");
        image.set_len(DISK_BYTES).expect("a sparse file");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.image()));
        fs::create_dir(disk.mounted()).expect("a folder in a folder just made");
        disk.mount();
        disk
    }

    fn image(&self) -> PathBuf {
        self.folder.join("image")
    }

    fn mounted(&self) -> PathBuf {
        self.folder.join("mounted")
    }

    /// Without its timer, the journal holds what somebody synced and nothing else.
    fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop,commit=300"]).arg(self.image()).arg(self.mounted()));
    }

    fn sync(&self) {
        run(Command::new("sync").arg("--file-system").arg(self.mounted()));
    }

    /// How much was read from and written to the device.
    fn traffic(&self) -> String {
        let device = run(Command::new("losetup").args(["--noheadings", "--output", "NAME", "-j"]).arg(self.image()));
        let name = device.trim().trim_start_matches("/dev/").to_owned();
        fs::read_to_string(format!("/sys/block/{name}/stat")).expect("figures of a loop device")
    }

    /// Takes the power from a server that has its store here, and gives it back.
    async fn lose_power(&self, nats: &NatsServer) {
        let pid = nats.pid().expect("the server runs");
        nats.signal(Signal::SIGSTOP);
        // A thread stops when it comes out of the kernel, so a sync that has begun is done.
        eventually("every thread is stopped", PATIENCE, async || threads_are_stopped(pid)).await;
        let copy = self.folder.join("copy");
        loop {
            let before = self.traffic();
            run(Command::new("cp").arg("--sparse=always").arg(self.image()).arg(&copy));
            if self.traffic() == before {
                break;
            }
        }
        nats.kill();
        run(Command::new("umount").arg(self.mounted()));
        fs::rename(&copy, self.image()).expect("both are in one folder");
        self.mount();
        nats.restart().await;
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Nothing is left to be done if it is not mounted.
        let _ = Command::new("umount").arg("--lazy").arg(self.mounted()).status();
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said} (this test needs root and loop devices)");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn threads_are_stopped(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the threads of a process");
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    })
}

/// What was accepted before the power was gone.
struct Accepted {
    setup: Setup,
    operator: Operator,
    _disk: Disk,
    /// Calls with a 202.
    ids: Vec<String>,
    /// Of those, the ones whose end was published.
    ended: Vec<String>,
}

impl Accepted {
    /// Places calls until the power goes, and returns when it is back.
    async fn before_power_loss(jetstream: &str, dice: &mut Dice) -> Self {
        let disk = Disk::new();
        let options = NatsOptions {
            jetstream: jetstream.to_owned(),
            store: Some(disk.mounted().join("store")),
            ..Default::default()
        };
        let setup = Setup::local_with(NatsServer::start_with(options).await, 0.2).await;
        let operator = Operator::start(setup.options().env("MAX_ACTIVE_CALLS", 20)).await;
        // Once in a while even the streams are too new to have been synced by anything but the server.
        if jetstream.is_empty() || dice.percent(50) {
            disk.sync();
        }
        let calls = Arc::new(Calls::default());
        let callers = (0..CALLERS).map(|_| tokio::spawn(Arc::clone(&calls).place(operator.base().to_owned())));
        let callers: Vec<_> = callers.collect();
        tokio::time::sleep(Duration::from_millis(dice.between(300, 2_500))).await;
        disk.lose_power(&setup.nats).await;
        calls.stop.store(true, Ordering::Relaxed);
        join_all(callers).await;
        let ids = std::mem::take(&mut *calls.accepted.lock().expect("no panic while the lock is held"));
        let ended = setup.events.finals().into_iter().map(|event| event.id.to_string()).collect();
        Self { setup, operator, _disk: disk, ids, ended }
    }

    /// The accepted calls that are neither in the queue nor in the status log. In this order: a call is recorded before its
    /// message leaves the queue.
    async fn lost(&self) -> Vec<&String> {
        let mut known = waiting(&self.setup).await;
        if self.setup.js.get_stream("SIP_STATUS").await.is_ok() {
            known.extend(recorded(&self.setup.js, "sip.status.*").await.into_iter().map(|event| event.id.to_string()));
        }
        self.ids.iter().filter(|id| !known.contains(*id)).collect()
    }
}

/// The ids of the messages in the queue.
async fn waiting(setup: &Setup) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    let Ok(queue) = setup.js.get_stream("SIP_CALLS").await else { return ids };
    let state = &queue.cached_info().state;
    for sequence in state.first_sequence..=state.last_sequence {
        // One that is not there any more has a record.
        if let Ok(message) = queue.get_raw_message(sequence).await {
            let request: Value = serde_json::from_slice(&message.payload).expect("a request");
            ids.extend(request["id"].as_str().map(str::to_owned));
        }
    }
    ids
}

/// Who calls, until the power is gone.
#[derive(Default)]
struct Calls {
    next: AtomicUsize,
    stop: AtomicBool,
    accepted: Mutex<Vec<String>>,
}

impl Calls {
    async fn place(self: Arc<Self>, base: String) {
        while !self.stop.load(Ordering::Relaxed) {
            let id = format!("call-{}", self.next.fetch_add(1, Ordering::Relaxed));
            if post_call(&base, &request_of(&id)).await.status == 202 {
                self.accepted.lock().expect("no panic while the lock is held").push(id);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and loop devices; run by `make test-power`"]
async fn with_sync_interval_always_a_power_loss_loses_no_accepted_call_and_dials_none_twice() {
    let (first, rounds) = (number("POWER_SEED", 1), number("POWER_ROUNDS", 5));
    for seed in first..first + rounds {
        let cut = Accepted::before_power_loss("sync_interval: always", &mut Dice::new(seed, 0)).await;
        println!("POWER_SEED={seed}: {} accepted, {} of them ended", cut.ids.len(), cut.ended.len());
        assert!(cut.ids.len() > 10, "hardly any call was accepted");
        assert_eq!(cut.lost().await, Vec::<&String>::new(), "POWER_SEED={seed}");
        for id in &cut.ended {
            assert!(cut.setup.state(id).await.is_some_and(|last| last.is_final), "POWER_SEED={seed}: {id} had ended");
        }
        cut.setup.queue_empties().await;
        for id in &cut.ids {
            let history = cut.setup.history(id).await;
            let ends = history.iter().filter(|event| event.is_final).count();
            assert_eq!((ends, cut.setup.calls_with(id)), (1, 1), "POWER_SEED={seed}: {id}: {history:?}");
        }
        drop(cut.operator);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and loop devices; run by `make test-power`"]
async fn with_the_servers_default_a_power_loss_does_lose_accepted_calls() {
    let cut = Accepted::before_power_loss("", &mut Dice::new(number("POWER_SEED", 1), 1)).await;
    let lost = cut.lost().await;
    println!("{} accepted, {} of them lost", cut.ids.len(), lost.len());
    assert!(!lost.is_empty(), "the power loss of these tests loses nothing, so they show nothing");
}
