//! What happens around the diallers: time, deliveries, crashes, Jobs that go on, whoever cancels, and the reconciler.

use jiff::Timestamp;

use super::Setup;
use super::work::Luck;
use super::world::{At, Budget, Dialler, End, Job, Message, NOW, Place, Pods, Record, Timer, View, Work, World, at};
use crate::admission::decide as admission;
use crate::call::{Status, StatusEvent};
use crate::dialler::decide;
use crate::job::compare::{Comparison, compare, compare_absent};
use crate::job::{ObservedJob, Passed, Ran};

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Action {
    /// Time passes.
    Tick,
    /// The server delivers a message to a dialler.
    Deliver { message: u64, dialler: usize },
    /// A dialler takes its next step.
    Step { dialler: usize, luck: Luck },
    /// A dialler that waits for news of a Job reads the log again.
    Wake { dialler: usize },
    /// A dialler dies and is started again; a request that it has made arrives all the same, or does not.
    Crash { dialler: usize, arrives: bool },
    /// A request that nobody waits for arrives.
    Arrive { request: usize },
    /// The same for one to lift a gate.
    ArriveAtGate { lift: usize },
    /// A Job goes on.
    Run { job: usize, to: View },
    /// A Job that is to be removed is gone.
    Remove { job: usize },
    /// A Job is deleted by hand.
    Delete { job: usize },
    /// A request is admitted, and stays when whoever admits it dies before it is acknowledged.
    Admit { stays: bool },
    /// A timer fires and its request is admitted, and stays as above.
    Fire { timer: usize, stays: bool },
    /// A reconciler compares a Job with the log.
    Reconcile { job: usize },
    /// The reconciler of a cluster compares the log with the Job that should be there and is not.
    ReconcileAbsent { cluster: usize },
    /// Somebody cancels the call.
    Cancel,
    /// The log loses its last records.
    LoseTail { records: usize },
    /// A cluster never answers again; its diallers may be gone with it.
    FallSilent { cluster: usize },
}

impl Setup {
    /// Everything that may happen now.
    pub(super) fn possible(&self, world: &World, actions: &mut Vec<Action>) {
        if world.is_settled() {
            return;
        }
        let urgent = self.urgent(world);
        let Budget { faults, delays, cancels, losses, silences, deletions } = world.left;
        if urgent.is_empty() || delays > 0 {
            actions.push(Action::Tick);
        }
        actions.extend(urgent);
        actions.extend((0..world.wire.len()).map(|request| Action::Arrive { request }));
        actions.extend((0..world.lifts.len()).map(|lift| Action::ArriveAtGate { lift }));
        for (job, state) in world.jobs.iter().enumerate() {
            self.possible_of_job(world, job, state, faults > 0, actions);
            if deletions > 0 && !state.is_being_removed {
                actions.push(Action::Delete { job });
            }
        }
        if faults > 0 {
            self.faults(world, actions);
        }
        if cancels > 0 && world.log.last().is_some() && !world.has_ended() {
            actions.push(Action::Cancel);
        }
        // When nothing is left of a call but its records, nobody is there to notice.
        if losses > 0 && !(world.inbox == 0 && world.queue.is_empty() && world.timers.is_empty()) {
            actions.extend((1..=world.log.len()).map(|records| Action::LoseTail { records }));
        }
        if silences > 0 {
            actions.extend((0..self.clusters.len()).map(|cluster| Action::FallSilent { cluster }));
        }
    }

    /// What is done before long unless something is slow. Whether it is possible says whether the world is at rest.
    pub(super) fn urgent(&self, world: &World) -> Vec<Action> {
        let mut actions = Vec::new();
        for (dialler, state) in world.diallers.iter().enumerate().filter(|(_, state)| !state.is_gone) {
            if state.work.is_none() {
                let ready = world.queue.iter().filter(|message| message.is_ready());
                actions.extend(ready.map(|message| Action::Deliver { message: message.sequence, dialler }));
            }
            if self.is_busy(world, dialler) {
                actions.push(Action::Step { dialler, luck: Luck::Fine });
            }
            if self.wake(world, dialler).is_some() {
                actions.push(Action::Wake { dialler });
            }
        }
        for (job, state) in world.jobs.iter().enumerate() {
            if self.reconcile(world, state).is_some() {
                actions.push(Action::Reconcile { job });
            }
        }
        let absent = (0..self.clusters.len()).filter(|cluster| self.reconcile_absent(world, *cluster).is_some());
        actions.extend(absent.map(|cluster| Action::ReconcileAbsent { cluster }));
        let due = |due| due <= at(NOW);
        let timers = world.timers.iter().enumerate().filter(|(_, timer)| due(timer.due));
        actions.extend(timers.map(|(timer, _)| Action::Fire { timer, stays: false }));
        actions.extend((world.inbox > 0).then_some(Action::Admit { stays: false }));
        actions
    }

    fn possible_of_job(&self, world: &World, job: usize, state: &Job, may_fail: bool, actions: &mut Vec<Action>) {
        if world.is_silent[state.cluster] {
            return;
        }
        let mut run = |to| actions.push(Action::Run { job, to });
        match state.view {
            View::Waiting(pods) => {
                if pods.passed == Passed::Lives {
                    run(View::Running(NOW));
                }
                if may_fail && !state.is_being_removed {
                    run(View::Ended(End::NeverRan, NOW));
                    self.other_pods(pods, state.pods + 1).for_each(|pods| run(View::Waiting(pods)));
                }
            }
            // What fails while it is removed fails by that, and has no end of its own.
            View::Running(_) if state.is_being_removed => run(View::Ended(End::Answered, NOW)),
            View::Running(_) => {
                run(View::Ended(End::Answered, NOW));
                run(View::Ended(End::Busy, NOW));
                if may_fail {
                    run(View::Ended(End::Lost, NOW));
                    // The pod is drained, and another one made; the first may not be shown any more.
                    for passed in [Passed::Over(Ran::Unknown), Passed::Nobody] {
                        let pods = Pods { passed, ..Pods::one(state.pods + 1, true) };
                        run(View::Waiting(if self.has_gates { pods } else { Pods::one(state.pods + 1, false) }));
                    }
                }
            }
            View::Ended(..) | View::Gone => {}
        }
        // The name of a Job that is gone is free. That a request outlasts the Job that it asks for, nobody can rule out
        // (docs/guarantees.md); it takes a process that was suspended for as long.
        let may_go = state.is_being_removed || state.is_settled && self.removes_settled_jobs;
        if may_go && !self.is_asked_for(world, state) {
            actions.push(Action::Remove { job });
        }
    }

    /// What Kubernetes may do to the pods of a Job that waits: make one too many, or one in place of one that is gone or disrupted.
    fn other_pods(&self, pods: Pods, number: u8) -> impl Iterator<Item = Pods> + use<> {
        let with = |passed| Pods { gated: Some(number), passed };
        let others = match pods {
            Pods { passed: Passed::Lives, gated: None } => vec![with(Passed::Lives), with(Passed::Over(Ran::No))],
            Pods { passed: Passed::Nobody, gated: Some(_) } => vec![with(Passed::Nobody)],
            _ => vec![],
        };
        others.into_iter().filter({
            let has_gates = self.has_gates;
            move |_| has_gates
        })
    }

    fn is_asked_for(&self, world: &World, job: &Job) -> bool {
        let asks = |work: &Work| {
            let last = work.last.as_ref().map(|last| &*last.event);
            let is_about_to = work.at == At::Decide && work.read_at == NOW;
            (work.at == At::Requested || is_about_to)
                && last.is_some_and(|last| last.status == Status::Pending && last.attempt == job.attempt)
        };
        let mut works = world.diallers.iter().filter(|dialler| dialler.cluster == job.cluster);
        world.wire.contains(&(job.cluster, job.attempt)) || works.any(|dialler| dialler.work.as_ref().is_some_and(asks))
    }

    fn faults(&self, world: &World, actions: &mut Vec<Action>) {
        for (dialler, state) in world.diallers.iter().enumerate().filter(|(_, state)| !state.is_gone) {
            if state.work.is_none() {
                let delivered = world.queue.iter().filter(|message| message.place == Place::Delivered);
                actions.extend(delivered.map(|message| Action::Deliver { message: message.sequence, dialler }));
            }
            let Some(work) = &state.work else { continue };
            for luck in [Luck::AnswerLost, Luck::NotDone, Luck::OnItsWay] {
                actions.push(Action::Step { dialler, luck });
            }
            actions.push(Action::Crash { dialler, arrives: false });
            if work.at == At::Requested && !world.is_silent[state.cluster] {
                actions.push(Action::Crash { dialler, arrives: true });
            }
        }
        let due = world.timers.iter().enumerate().filter(|(_, timer)| timer.due <= at(NOW));
        actions.extend(due.map(|(timer, _)| Action::Fire { timer, stays: true }));
        actions.extend((world.inbox > 0).then_some(Action::Admit { stays: true }));
    }

    /// The world after an action.
    pub(super) fn after(&self, world: &World, action: Action) -> Option<World> {
        let mut next = match action {
            Action::Step { dialler, luck } => self.work(world, dialler, luck)?,
            Action::Wake { dialler } => self.wake(world, dialler)?,
            Action::Reconcile { job } => self.reconcile(world, &world.jobs[job])?,
            Action::ReconcileAbsent { cluster } => self.reconcile_absent(world, cluster)?,
            _ => world.clone(),
        };
        match action {
            Action::Wake { .. } | Action::Reconcile { .. } | Action::ReconcileAbsent { .. } => {}
            Action::Step { luck, .. } => next.left.faults -= u8::from(luck != Luck::Fine),
            Action::Tick => {
                next.left.delays -= u8::from(!self.urgent(world).is_empty());
                next.age();
            }
            Action::Deliver { message, dialler } => next.deliver(message, dialler),
            Action::Crash { dialler, arrives } => next.crash(dialler, arrives),
            Action::Arrive { request } => {
                let (cluster, attempt) = next.wire.remove(request);
                next.make_job(cluster, attempt, self.has_gates);
            }
            Action::ArriveAtGate { lift } => {
                let (cluster, attempt, pod) = next.lifts.remove(lift);
                next.lift(cluster, attempt, pod);
            }
            Action::Run { job, to } => next.run(job, to),
            Action::Remove { job } => drop(next.jobs.remove(job)),
            Action::Delete { job } => {
                next.left.deletions -= 1;
                next.jobs[job].is_being_removed = true;
            }
            Action::Admit { stays } => {
                next.left.faults -= u8::from(stays);
                next.inbox -= u8::from(!stays);
                self.admit(&mut next, None);
            }
            Action::Fire { timer, stays } => {
                let Timer { attempt, due } = next.timers[timer].clone();
                next.left.faults -= u8::from(stays);
                if !stays {
                    next.timers.remove(timer);
                }
                self.admit(&mut next, Some((due, attempt)));
            }
            Action::Cancel => {
                next.left.cancels -= 1;
                self.cancel(&mut next)?;
            }
            Action::LoseTail { records } => {
                next.left.losses -= 1;
                next.log.lose(records);
            }
            Action::FallSilent { cluster } => self.fall_silent(&mut next, cluster),
        }
        self.check_starts(&mut next);
        next.simplify();
        (next != *world).then_some(next)
    }

    fn cancel(&self, world: &mut World) -> Option<()> {
        let last = world.log.last()?.event.clone();
        let event = last.next(last.cancel()?, at(NOW)).ok()?;
        let sequence = world.log.sequence();
        self.append(world, &Record::new(event), sequence);
        Some(())
    }

    fn fall_silent(&self, world: &mut World, cluster: usize) {
        world.left.silences -= 1;
        world.is_silent[cluster] = true;
        world.wire.retain(|(to, _)| *to != cluster);
        world.lifts.retain(|(to, ..)| *to != cluster);
        if self.diallers_go_with_their_cluster {
            for dialler in 0..world.diallers.len() {
                if world.diallers[dialler].cluster == cluster {
                    world.give_back(dialler);
                    world.diallers[dialler].is_gone = true;
                }
            }
        }
    }

    /// What the reconciler of a dialler that does not follow a Job does about it; `None` when there is nothing to do.
    fn reconcile(&self, world: &World, job: &Job) -> Option<World> {
        let mut reconcilers =
            world.diallers.iter().filter(|dialler| dialler.cluster == job.cluster && !dialler.is_gone);
        if job.is_settled || world.is_silent[job.cluster] || reconcilers.all(|dialler| dialler.follows(job.attempt)) {
            return None;
        }
        let last = world.log.last()?;
        let seen = self.seen(job);
        let moments = self.moments(&last.event, at(NOW));
        let mut next = world.clone();
        match compare(&last.event, &seen, self.clusters[job.cluster], moments) {
            Comparison::Append(change) => {
                let event = last.event.next(change, at(NOW)).ok()?;
                self.append(&mut next, &Record::new(event), world.log.sequence());
            }
            Comparison::Stop | Comparison::LetGo { has_ended: false } if !job.is_being_removed => {
                next.job_mut(job.cluster, job.attempt)?.is_being_removed = true;
            }
            Comparison::LetGo { has_ended: true } => next.job_mut(job.cluster, job.attempt)?.is_settled = true,
            _ => return None,
        }
        Some(next)
    }

    /// What a cluster's reconciler does about an attempt whose Job is not there and that nobody follows; `None` when there is nothing
    /// to do.
    fn reconcile_absent(&self, world: &World, cluster: usize) -> Option<World> {
        let last = world.log.last()?;
        let mut reconcilers = world.diallers.iter().filter(|dialler| dialler.cluster == cluster && !dialler.is_gone);
        let is_there = world.job(cluster, last.event.attempt).is_some();
        if is_there || world.is_silent[cluster] || reconcilers.all(|dialler| dialler.follows(last.event.attempt)) {
            return None;
        }
        let job = self.call.name.job(last.event.attempt);
        let moments = self.moments(&last.event, at(NOW));
        let change = compare_absent(&last.event, &job, self.clusters[cluster], moments)?;
        let mut next = world.clone();
        let event = last.event.next(change, at(NOW)).ok()?;
        self.append(&mut next, &Record::new(event), world.log.sequence());
        Some(next)
    }

    fn seen(&self, job: &Job) -> ObservedJob {
        ObservedJob {
            name: self.call.name.job(job.attempt),
            id: self.call.id.clone(),
            attempt: job.attempt,
            fingerprint: self.call.fingerprint.clone(),
            state: job.view.observed(self.has_gates),
            settled: job.is_settled,
        }
    }
}

impl Dialler {
    fn follows(&self, attempt: u32) -> bool {
        self.work.as_ref().is_some_and(|work| {
            matches!(work.at, At::Follow(..)) && work.last.as_ref().is_some_and(|last| last.event.attempt == attempt)
        })
    }
}

impl Message {
    fn is_ready(&self) -> bool {
        match self.place {
            Place::Ready => true,
            Place::HandedBack(then) => then < NOW,
            Place::Delivered => false,
        }
    }
}

impl World {
    /// Nothing is left to do for the call, nor of it.
    fn is_settled(&self) -> bool {
        let is_idle = self.diallers.iter().all(|dialler| dialler.work.is_none());
        let has_stray = self.jobs.iter().any(|job| {
            let is_watched = self.diallers.iter().any(|dialler| dialler.cluster == job.cluster && !dialler.is_gone);
            !job.is_settled && !job.is_being_removed && is_watched && !self.is_silent[job.cluster]
        });
        self.has_ended()
            && is_idle
            && self.inbox == 0
            && self.queue.is_empty()
            && self.timers.is_empty()
            && self.wire.is_empty()
            && self.lifts.is_empty()
            && !has_stray
    }

    fn deliver(&mut self, message: u64, dialler: usize) {
        let Some(message) = self.queue.iter_mut().find(|other| other.sequence == message) else { return };
        self.left.faults -= u8::from(message.place == Place::Delivered);
        message.place = Place::Delivered;
        // More deliveries than these mean the same.
        message.deliveries = (message.deliveries + 1).min(decide::MAX_DELIVERIES_AHEAD + 1);
        let message = message.clone();
        // That it reads the log later is as if the message had come later.
        let (last, sequence) = (self.log.last().cloned(), self.log.sequence());
        let work = Work { message, began: NOW, last, sequence, read_at: NOW, is_stopped: false, at: At::Decide };
        self.diallers[dialler].work = Some(work);
    }

    fn crash(&mut self, dialler: usize, arrives: bool) {
        self.left.faults -= 1;
        let cluster = self.diallers[dialler].cluster;
        if arrives && let Some(last) = self.diallers[dialler].work.as_ref().and_then(|work| work.last.as_ref()) {
            let attempt = last.event.attempt;
            self.wire.push((cluster, attempt));
        }
        self.give_back(dialler);
    }

    fn give_back(&mut self, dialler: usize) {
        let Some(work) = self.diallers[dialler].work.take() else { return };
        let sequence = work.message.sequence;
        let is_held =
            self.diallers.iter().any(|other| other.work.as_ref().is_some_and(|work| work.message.sequence == sequence));
        if !is_held {
            self.place(sequence, Place::Ready);
        }
    }

    fn run(&mut self, job: usize, to: View) {
        let Job { attempt, view, pods, .. } = &mut self.jobs[job];
        let is_fault = matches!(to, View::Waiting(_) | View::Ended(End::NeverRan | End::Lost, _));
        self.left.faults -= u8::from(is_fault);
        *pods += u8::from(matches!(to, View::Waiting(_)));
        *view = to;
        if matches!(to, View::Running(_)) && self.ran.contains(attempt) {
            self.flaws.note_second_pod();
        }
        if let View::Ended(end @ (End::Answered | End::Busy), _) = to {
            self.ends.push((*attempt, end));
        }
        if matches!(to, View::Running(_)) && !self.ran.contains(attempt) {
            self.ran.push(*attempt);
            self.ran.sort_unstable();
        }
    }

    /// Lets the server fire an attempt; a timer that is there is replaced.
    pub(super) fn set_timer(&mut self, attempt: u32, due: Timestamp) {
        self.timers.retain(|timer| timer.attempt != attempt);
        self.timers.push(Timer { attempt, due });
        self.timers.sort();
    }

    /// Puts an attempt into the window, which refuses a second message of it.
    fn dial(&mut self, attempt: u32) {
        if self.queue.iter().any(|message| message.attempt == attempt) {
            return;
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.queue.push(Message { sequence, attempt, deliveries: 0, place: Place::Ready });
    }
}

impl Setup {
    /// What [`crate::admission`] does with a request. There is one call, so what waits in the queue is in the window at once.
    fn admit(&self, world: &mut World, fired: Option<(Timestamp, u32)>) {
        let fingerprint = self.call.fingerprint.clone();
        let asked = admission::Asked { fingerprint, fired, not_before: None, not_after: None };
        loop {
            let last = world.log.last().map(|last| last.event.clone());
            match admission::decide(last.as_deref(), &asked, at(NOW)) {
                admission::Step::Record(change) => {
                    let event = match &last {
                        Some(last) => last.next(change, at(NOW)),
                        None => StatusEvent::first(&self.call, "n", at(NOW), change, at(NOW)),
                    };
                    let record = Record::new(event.expect("a legal step"));
                    let sequence = world.log.sequence();
                    self.append(world, &record, sequence);
                }
                admission::Step::Queue(attempt) | admission::Step::Dial(attempt) => return world.dial(attempt),
                admission::Step::Schedule { attempt, due } => return world.set_timer(attempt, due),
                admission::Step::Done => return,
                admission::Step::Conflict => unreachable!("there is one request"),
            }
        }
    }
}
