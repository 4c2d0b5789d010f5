//! What happens around the diallers: time, deliveries, crashes, Jobs that go on, whoever cancels, and the reconciler.

use super::Setup;
use super::work::Luck;
use super::world::{At, Budget, Dialler, End, Job, Message, NOW, Place, Record, View, Work, World, at};
use crate::call::Status;
use crate::dialler::decide;
use crate::job::ObservedJob;
use crate::job::compare::{Comparison, compare, compare_absent};

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
    /// A Job goes on.
    Run { job: usize, to: View },
    /// A Job that is to be removed is gone.
    Remove { job: usize },
    /// A Job is deleted by hand.
    Delete { job: usize },
    /// A timer fires, and stays when whoever moves its message dies in between.
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
        if losses > 0 && !(world.queue.is_empty() && world.timers.is_empty()) {
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
        actions
    }

    fn possible_of_job(&self, world: &World, job: usize, state: &Job, may_fail: bool, actions: &mut Vec<Action>) {
        if world.is_silent[state.cluster] {
            return;
        }
        let mut run = |to| actions.push(Action::Run { job, to });
        match state.view {
            View::Waiting => {
                run(View::Running(NOW));
                if may_fail && !state.is_being_removed {
                    run(View::Ended(End::NeverRan, NOW));
                }
            }
            // What fails while it is removed fails by that, and has no end of its own.
            View::Running(_) if state.is_being_removed => run(View::Ended(End::Answered, NOW)),
            View::Running(_) => {
                run(View::Ended(End::Answered, NOW));
                run(View::Ended(End::Busy, NOW));
                if may_fail {
                    run(View::Ended(End::Lost, NOW));
                    run(View::Waiting);
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
                next.make_job(cluster, attempt);
            }
            Action::Run { job, to } => next.run(job, to),
            Action::Remove { job } => drop(next.jobs.remove(job)),
            Action::Delete { job } => {
                next.left.deletions -= 1;
                next.jobs[job].is_being_removed = true;
            }
            Action::Fire { timer, stays } => next.fire(timer, stays),
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
            state: job.view.observed(),
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
            && self.queue.is_empty()
            && self.timers.is_empty()
            && self.wire.is_empty()
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
        let Job { attempt, view, .. } = &mut self.jobs[job];
        let is_fault = matches!(to, View::Waiting | View::Ended(End::NeverRan | End::Lost, _));
        self.left.faults -= u8::from(is_fault);
        *view = to;
        if let View::Ended(end @ (End::Answered | End::Busy), _) = to {
            self.ends.push((*attempt, end));
        }
        if to != View::Ended(End::NeverRan, NOW) && !self.ran.contains(attempt) {
            self.ran.push(*attempt);
            self.ran.sort_unstable();
        }
    }

    fn fire(&mut self, timer: usize, stays: bool) {
        let fired = self.timers[timer].clone();
        self.left.faults -= u8::from(stays);
        if !stays {
            self.timers.remove(timer);
        }
        let (attempt, fired_at) = (fired.attempt, Some(fired.due));
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.queue.push(Message { sequence, attempt, fired_at, deliveries: 0, place: Place::Ready });
    }
}
