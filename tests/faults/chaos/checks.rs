//! What must hold at the end, checked from the outside: the status log, the node's own list of starts, the cluster, the queue.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::PullConsumer;
use k8s_openapi::api::batch::v1::Job;
use kube::Api;
use kube::api::ListParams;
use sipstuff_operator::call::{Outcome, Status, StatusEvent};

use super::attempts;
use super::faults::{BUCKET, CONSUMERS, Injected};
use super::histories::{self, Histories};
use super::plan::Planned;
use super::traffic::{Answer, Answers};
use super::world::World;
use crate::support::status::{messages_in, recorded};

/// How many more files than at the beginning a replica may have open: connections to the API server.
pub const MORE_FILES: usize = 24;
/// How much more memory than at the beginning a replica may have, in KiB: what an allocator keeps after hundreds of calls and
/// connections at once,
const MORE_MEMORY: u64 = 64 * 1024;
/// and for each call that it remembers, and whose Job it has seen in a list of all.
const MEMORY_PER_CALL: u64 = 4;
/// How many offending calls are shown for each violation.
const SHOWN: usize = 5;

/// What the checks found.
pub struct Report {
    pub histories: Histories,
    /// The Jobs whose end nobody may have heard of: their node or their cluster vanished.
    pub lost: HashSet<String>,
    /// Each violation, and the calls that it concerns.
    violations: Vec<(String, Vec<String>)>,
    pub notes: Vec<String>,
}

impl Report {
    /// Runs every check.
    pub async fn of(world: &World, answers: &Answers) -> Self {
        let histories = Histories::new(recorded(&world.js(), "sip.status.*").await, world.node().starts());
        let lost = attempts::lost(world, &histories);
        let mut report = Self { histories, lost, violations: Vec::new(), notes: Vec::new() };
        let calls = world.plan.calls();
        report.every_history_follows_the_rules();
        report.every_accepted_call_is_recorded(&calls, answers);
        report.every_call_ends_as_its_callee_answered(world, &calls);
        report.no_attempt_is_started_twice();
        report.every_attempt_ends_in_time();
        report.an_end_is_unknown_only_where_it_was_lost(world);
        report.nobody_gives_an_attempt_up_before_its_time();
        report.an_unknown_end_is_redialled_only_as_asked(&calls);
        report.what_was_started_does_not_count_as_not_started(world);
        report.nothing_is_claimed_in_a_pause(world);
        report.the_limit_holds(world);
        report.dead_letters(world, &calls, answers).await;
        report
    }

    pub fn expect(&mut self, holds: bool, what: &str) {
        if !holds {
            self.violations.push((what.to_owned(), Vec::new()));
        }
    }

    /// Reports a violation unless the list, of names of calls or Jobs, is empty.
    pub fn expect_none(&mut self, what: &str, offenders: Vec<String>) {
        if !offenders.is_empty() {
            self.violations.push((what.to_owned(), offenders));
        }
    }

    pub fn has_violations(&self) -> bool {
        !self.violations.is_empty()
    }

    fn every_history_follows_the_rules(&mut self) {
        for (what, holds) in histories::RULES {
            let offenders =
                self.histories.by_name.iter().filter(|(_, events)| !holds(events)).map(|(name, _)| name.clone());
            let offenders = offenders.collect();
            self.expect_none(what, offenders);
        }
    }

    fn every_accepted_call_is_recorded(&mut self, calls: &[Planned], answers: &Answers) {
        let known: HashSet<&str> = self.histories.by_id.keys().map(String::as_str).collect();
        let missing = calls.iter().filter(|call| answers.of(&call.id) == Answer::Accepted);
        let missing = missing.filter(|call| !known.contains(call.id.as_str())).map(|call| call.id.clone()).collect();
        let refused = calls.iter().filter(|call| answers.of(&call.id) == Answer::Refused);
        let refused = refused.filter(|call| known.contains(call.id.as_str())).map(|call| call.id.clone()).collect();
        let planned: HashSet<&str> = calls.iter().map(|call| call.id.as_str()).collect();
        let unexpected = known.difference(&planned).map(|id| (*id).to_owned()).collect();
        self.expect_none("an accepted call is unknown to the log", missing);
        self.expect_none("a refused call is known to the log", refused);
        self.expect_none("the log knows a call that nobody requested", unexpected);
    }

    fn every_call_ends_as_its_callee_answered(&mut self, world: &World, calls: &[Planned]) {
        let harmed: HashSet<String> = world.harmed().into_iter().map(|harmed| harmed.job).collect();
        let cancelled = world.cancelled.lock().expect("no panic while it is held").clone();
        let mut offenders = Vec::new();
        for call in calls {
            let Some(name) = self.histories.by_id.get(&call.id) else { continue };
            let events = &self.histories.by_name[name];
            let is_harmed = events.iter().any(|event| event.job.as_ref().is_some_and(|job| harmed.contains(job)));
            // An attempt that was lost may end so all the same; whether it may is another check.
            let is_lost = events.last().is_some_and(|end| end.outcome == Some(Outcome::Unknown));
            if !is_harmed && !is_lost && !ends_as_planned(call, events, cancelled.contains(name)) {
                offenders.push(name.clone());
            }
        }
        self.expect_none("a call whose Job was left alone did not end as its callee answered", offenders);
    }

    fn the_limit_holds(&mut self, world: &World) {
        for (trunk, limit) in world.plan.trunks() {
            let (most, at) = histories::most_active(&self.histories.events, trunk);
            self.notes.push(format!("at most {most} calls in progress on trunk {trunk} by the log, limit {limit}"));
            let what = format!("{most} calls were in progress on trunk {trunk} at record {at}, the limit is {limit}");
            self.expect(most <= limit, &what);
        }
        let limit = world.plan.active_calls();
        // A Job that is deleted by hand is gone before its pod is.
        let deleted = world.harmed().iter().filter(|harmed| harmed.how.contains("Job")).count();
        let ran = world.node().most_at_once();
        self.notes.push(format!("at most {ran} containers at once"));
        self.expect(ran <= limit + deleted, &format!("{ran} containers ran at once, the limit is {limit}"));
    }

    async fn dead_letters(&mut self, world: &World, calls: &[Planned], answers: &Answers) {
        let deleted = *world.letters_deleted.lock().expect("no panic while it is held");
        let letters = messages_in(&world.js(), "SIP_DEAD").await + deleted;
        let invalid = calls.iter().filter(|call| !call.is_valid() && answers.of(&call.id) == Answer::Accepted).count();
        self.notes.push(format!("{letters} dead letters for {invalid} invalid requests; {deleted} of them deleted"));
        // A request whose publication was not confirmed was published again.
        let holds = letters as usize >= invalid && letters as usize <= 2 * invalid + 1;
        self.expect(holds, &format!("{letters} dead letters for {invalid} invalid requests"));
    }

    pub fn sizes(&mut self, before: &[(u64, usize); 2], after: &[(u64, usize); 2], calls: usize) {
        let more = MORE_MEMORY + MEMORY_PER_CALL * calls as u64;
        for (number, (before, after)) in before.iter().zip(after).enumerate() {
            let text = format!(
                "replica {}: {} MB, {} files at first; {} MB, {} files at last",
                ["a", "b"][number],
                before.0 / 1024,
                before.1,
                after.0 / 1024,
                after.1
            );
            self.expect(after.0 <= before.0 + more, &format!("{text}: more memory than {} MB more", more / 1024));
            self.expect(after.1 <= before.1 + MORE_FILES, &format!("{text}: more files"));
            self.notes.push(text);
        }
    }

    /// The summary, printed in any case.
    pub fn figures(&self, world: &World, answers: &Answers, injected: &Injected, took: Duration) -> String {
        let injected = injected.lock().expect("no panic while it is held");
        let faults: usize = injected.values().sum();
        let kinds: Vec<String> = injected.iter().map(|(kind, count)| format!("{kind:?} {count}")).collect();
        let ends = self.histories.by_name.values().filter_map(|events| events.last());
        let mut by_end = BTreeMap::new();
        for end in ends.filter(|event| event.is_final) {
            *by_end.entry((end.status.as_str(), end.outcome.map_or("", Outcome::as_str))).or_insert(0) += 1;
        }
        let ends: Vec<String> = by_end.iter().map(|((status, why), count)| format!("{status} {why} {count}")).collect();
        let known = |wanted| world.plan.calls().iter().filter(|call| answers.of(&call.id) == wanted).count();
        let mut text = format!("chaos: seed {}, {took:.0?}\n", world.plan.seed);
        let _ = writeln!(text, "  faults {faults}: {}", kinds.join(", "));
        let _ = writeln!(
            text,
            "  requests {}: accepted {}, refused {}, unknown {}; sent again {}; cancels answered {}",
            world.plan.calls,
            known(Answer::Accepted),
            known(Answer::Refused),
            known(Answer::Unknown),
            answers.repeated.load(Ordering::Relaxed),
            answers.cancels.load(Ordering::Relaxed),
        );
        let _ = writeln!(text, "  calls {}: {}", self.histories.by_name.len(), ends.join(", "));
        let _ =
            writeln!(text, "  starts {}, status records {}", world.node().start_count(), self.histories.events.len());
        for note in &self.notes {
            let _ = writeln!(text, "  {note}");
        }
        text
    }

    /// Every violation, with the histories of some of the calls that it concerns.
    pub fn violations(&self, world: &World) -> String {
        let mut text = String::new();
        for (what, offenders) in &self.violations {
            let _ = writeln!(text, "VIOLATION: {what} ({} times)", offenders.len().max(1));
            for offender in offenders.iter().take(SHOWN) {
                let _ = writeln!(text, "{}", self.histories.describe(offender, &world.harmed()));
            }
        }
        text
    }
}

fn ends_as_planned(call: &Planned, events: &[StatusEvent], cancelled: bool) -> bool {
    let Some(end) = events.last() else { return false };
    let may_be_cancelled = cancelled || call.cancel.is_some();
    match end.status {
        Status::Cancelled => may_be_cancelled,
        Status::Expired => call.not_after.is_some(),
        Status::Rejected => !call.is_valid(),
        Status::Succeeded => call.code == 200,
        Status::Failed if call.code == 200 => false,
        Status::Failed => {
            let is_last = call.code == 603 || end.counted_attempts() == call.max_attempts;
            end.sip_code == Some(call.code) && (is_last || may_be_cancelled)
        }
        _ => false,
    }
}

/// Waits until every Job that is left is settled; returns the names of those that never are.
pub async fn all_released(world: &World) -> Vec<String> {
    let jobs: Api<Job> = world.namespace.api();
    let begin = Instant::now();
    loop {
        let held = jobs.list(&ListParams::default()).await.map(|list| list.items);
        let held = held.map(|jobs| jobs.into_iter().filter(|job| !is_settled(job)).collect::<Vec<_>>());
        if held.as_ref().is_ok_and(Vec::is_empty) || begin.elapsed() > Duration::from_secs(60) {
            return held.into_iter().flatten().filter_map(|job| job.metadata.name).collect();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn is_settled(job: &Job) -> bool {
    job.spec.as_ref().is_some_and(|spec| spec.ttl_seconds_after_finished.is_some())
}

/// Waits until everything is there again that a fault may have deleted; returns what is not.
pub async fn missing(world: &World) -> Vec<String> {
    let begin = Instant::now();
    loop {
        let mut missing = Vec::new();
        for stream in [BUCKET, "SIP_DEAD"] {
            if world.js().get_stream(stream).await.is_err() {
                missing.push(stream.to_owned());
            }
        }
        for (stream, consumer) in CONSUMERS {
            let found: Result<PullConsumer, _> = world.js().get_consumer_from_stream(consumer, stream).await;
            if found.is_err() {
                missing.push(consumer.to_owned());
            }
        }
        if missing.is_empty() || begin.elapsed() > Duration::from_secs(20) {
            return missing;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
