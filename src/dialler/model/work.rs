//! The steps of a dialler: what [`crate::dialler::processing`] does, one step of I/O at a time.

use super::Setup;
use super::world::{At, Dialler, NOW, Place, Pods, Record, Todo, View, Work, World, at, pod};
use crate::call::{Change, IllegalStep, Outcome, Status, StatusEvent};
use crate::dialler::decide::{Asked, Step, decide};
use crate::dialler::{limits, redial};
use crate::job::Passed;
use crate::job::advance::{Moments, advance, is_recorded, lost};
use crate::job::gate::{Choice, choice, misses_its_pod};
use crate::policy::DEFAULT_TRUNK;

/// What becomes of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Luck {
    Fine,
    /// It is done, and its answer is lost.
    AnswerLost,
    /// It is not done: the API server does not answer.
    NotDone,
    /// Its request is on its way for longer than it is waited for.
    OnItsWay,
}

/// What the dialler has to do with its step besides.
#[derive(PartialEq)]
enum Then {
    GoOn,
    Acknowledge,
    HandBack,
    /// This step cannot have that luck.
    Impossible,
}

/// A dialler at work, and the world around it.
struct Working<'a> {
    setup: &'a Setup,
    world: &'a mut World,
    cluster: usize,
    work: Work,
    luck: Luck,
}

impl Setup {
    /// Takes the next step of a dialler; `None` when it has none, or not with that luck.
    pub(super) fn work(&self, world: &World, dialler: usize, luck: Luck) -> Option<World> {
        let mut world = world.clone();
        let Dialler { cluster, work, .. } = &mut world.diallers[dialler];
        let (cluster, work) = (*cluster, work.take()?);
        let mut step = Working { setup: self, world: &mut world, cluster, work, luck };
        let then = step.take();
        let work = step.work;
        let message = work.message.sequence;
        match then {
            Then::Impossible => return None,
            Then::GoOn => world.diallers[dialler].work = Some(work),
            Then::Acknowledge => world.queue.retain(|other| other.sequence != message),
            Then::HandBack => world.place(message, Place::HandedBack(NOW)),
        }
        Some(world)
    }

    /// Learns that the log has changed, while it waits for news of the Job.
    pub(super) fn wake(&self, world: &World, dialler: usize) -> Option<World> {
        let work = world.diallers[dialler].work.as_ref()?;
        let is_waiting = matches!(&work.at, At::Follow(_, todo) if todo.is_empty());
        if !is_waiting || (work.sequence == world.log.sequence() && work.last.as_ref() == world.log.last()) {
            return None;
        }
        let mut world = world.clone();
        let (last, sequence, now) = (world.log.last().cloned(), world.log.sequence(), NOW);
        let work = world.diallers[dialler].work.as_mut()?;
        (work.last, work.sequence, work.read_at, work.at) = (last, sequence, now, At::Decide);
        Some(world)
    }
}

impl World {
    pub(super) fn place(&mut self, message: u64, place: Place) {
        if let Some(message) = self.queue.iter_mut().find(|other| other.sequence == message) {
            message.place = place;
        }
    }
}

impl Working<'_> {
    fn take(&mut self) -> Then {
        match self.work.at.clone() {
            At::Wait(since) if since == NOW => Then::Impossible,
            At::Wait(_) | At::Read => self.when_fine(|step| {
                step.read();
                Then::GoOn
            }),
            At::Decide => self.decide(),
            At::Requested => self.hear_of_the_start(),
            At::Find => self.find(),
            At::Follow(view, todo) => self.follow(view, todo),
            At::Lift(pod) => self.lift(pod),
            At::Remove => self.remove(),
            At::LetGo(view) => self.when_fine(|step| step.let_go(view)),
        }
    }

    fn when_fine(&mut self, step: impl FnOnce(&mut Self) -> Then) -> Then {
        if self.luck == Luck::Fine { step(self) } else { Then::Impossible }
    }

    fn go_on(&mut self, at: At) -> Then {
        self.work.at = at;
        Then::GoOn
    }

    fn now(&self) -> jiff::Timestamp {
        at(NOW)
    }

    fn last(&self) -> Option<&StatusEvent> {
        self.work.last.as_ref().map(|last| &*last.event)
    }

    fn attempt(&self) -> u32 {
        self.last().map_or(self.work.message.attempt, |last| last.attempt.max(1))
    }

    fn is_active(&self) -> bool {
        self.last().is_some_and(|last| !last.is_final && last.status.is_active())
    }

    fn moments(&self) -> Moments {
        let of = |last: &StatusEvent| self.setup.moments(last, self.now());
        self.last().map_or_else(|| Moments::unlimited(self.now()), of)
    }

    fn asked(&self) -> Asked {
        self.setup.asked(&self.work)
    }

    /// Whether the API server answers this time; when it does not, why must be known to the caller.
    fn is_answered(&self) -> bool {
        !self.world.is_silent[self.cluster]
    }

    fn read(&mut self) {
        self.work.last = self.world.log.last().cloned();
        self.work.sequence = self.world.log.sequence();
        self.work.read_at = NOW;
        self.work.at = At::Decide;
    }

    fn decide(&mut self) -> Then {
        let asked = self.asked();
        let cluster = self.setup.clusters[self.cluster];
        match decide(self.last(), &asked, cluster, self.now()) {
            Step::RecordQueued => self.record(Change::Queued),
            Step::Expire => self.record(Change::Expired),
            Step::Claim(attempt) => {
                let Setup { call, defaults, .. } = self.setup;
                let change = limits::claim(call, attempt, DEFAULT_TRUNK, cluster, defaults, self.now());
                self.record(change)
            }
            Step::Redial => match self.last() {
                Some(last) => self.record(redial::after_failure(&self.setup.call.spec, last, false, self.now())),
                None => Then::Impossible,
            },
            Step::Schedule { attempt, due } => self.when_fine(|step| step.set_timer(attempt, due)),
            Step::Start => self.when_fine(Self::start),
            Step::Watch => self.when_fine(|step| step.go_on(At::Find)),
            Step::Stop => self.stop(),
            Step::HandBack => self.when_fine(|_| Then::HandBack),
            Step::Elsewhere => self.elsewhere(),
            Step::Done => self.when_fine(|_| Then::Acknowledge),
            Step::Conflict => unreachable!("there is one request"),
            Step::Implausible => self.when_fine(|step| {
                step.world.dead_letters += 1;
                Then::Acknowledge
            }),
        }
    }

    /// Appends a change after what is known, and decides again.
    fn record(&mut self, change: Change) -> Then {
        let luck = self.luck;
        if !matches!(luck, Luck::Fine | Luck::AnswerLost) {
            return Then::Impossible;
        }
        let is_stored = self.append(change);
        if luck == Luck::AnswerLost && !is_stored {
            return Then::Impossible;
        }
        // Refused, the log is read again at once; without an answer, after a while.
        let at = if is_stored && luck == Luck::Fine { At::Decide } else { At::Read };
        self.go_on(at)
    }

    /// Whether it was stored. What was, is known then.
    fn append(&mut self, change: Change) -> bool {
        let Ok(event) = self.next_event(change) else {
            self.world.flaws.note_illegal_step();
            return false;
        };
        let record = Record::new(event);
        let is_stored = self.setup.append(self.world, &record, self.work.sequence);
        if is_stored {
            (self.work.last, self.work.sequence) = (Some(record), self.world.log.sequence());
            self.work.read_at = NOW;
        }
        is_stored
    }

    fn next_event(&self, change: Change) -> Result<StatusEvent, IllegalStep> {
        match self.last() {
            Some(last) => last.next(change, self.now()),
            None => StatusEvent::first(&self.setup.call, "n", self.now(), change, self.now()),
        }
    }

    fn set_timer(&mut self, attempt: u32, due: jiff::Timestamp) -> Then {
        self.world.set_timer(attempt, due);
        Then::Acknowledge
    }

    fn elsewhere(&mut self) -> Then {
        if self.moments().is_over() {
            return self.end_unknown();
        }
        self.when_fine(|_| Then::HandBack)
    }

    /// Reads the log again unless that was a moment ago; true when it has changed.
    fn has_changed_meanwhile(&mut self) -> bool {
        if limits::is_fresh(at(self.work.read_at), self.now()) {
            return false;
        }
        let (decided_on, at) = (self.work.sequence, self.work.at.clone());
        self.read();
        let has_changed = self.work.sequence != decided_on;
        if !has_changed {
            self.work.at = at;
        }
        has_changed
    }

    fn start(&mut self) -> Then {
        if self.has_changed_meanwhile() {
            return Then::GoOn;
        }
        let at = if limits::is_too_late_to_start(&self.asked(), self.moments()) { At::Find } else { At::Requested };
        self.go_on(at)
    }

    fn hear_of_the_start(&mut self) -> Then {
        let (cluster, attempt) = (self.cluster, self.attempt());
        if !self.is_answered() {
            return self.when_fine(|step| step.go_on(At::Wait(NOW)));
        }
        match self.luck {
            Luck::Fine | Luck::AnswerLost => self.world.make_job(cluster, attempt, self.setup.has_gates),
            Luck::OnItsWay => self.world.wire.push((cluster, attempt)),
            Luck::NotDone => {}
        }
        // What the watch has shown by then, or nothing.
        let view = View::Waiting(Pods { gated: None, passed: Passed::Nobody });
        let at = if self.luck == Luck::Fine { At::Follow(view, Vec::new()) } else { At::Read };
        self.go_on(at)
    }

    /// Asks for the Job.
    fn find(&mut self) -> Then {
        if !self.is_answered() {
            return self.fail();
        }
        match self.luck {
            Luck::Fine => {
                let view = self.world.view(self.cluster, self.attempt());
                self.go_on(At::Follow(view, Vec::new()))
            }
            Luck::NotDone => self.fail_once(),
            _ => Then::Impossible,
        }
    }

    fn stop(&mut self) -> Then {
        if !self.is_answered() {
            return self.fail();
        }
        match self.luck {
            Luck::Fine => {
                self.remove_job();
                self.go_on(At::Find)
            }
            Luck::NotDone => self.fail_once(),
            _ => Then::Impossible,
        }
    }

    fn remove_job(&mut self) {
        let (cluster, attempt) = (self.cluster, self.attempt());
        if let Some(job) = self.world.job_mut(cluster, attempt) {
            job.is_being_removed = true;
        }
    }

    /// The API server is silent: in this tick it is not asked again.
    fn fail(&mut self) -> Then {
        if limits::is_given_up(self.moments(), at(self.work.began)) {
            return self.end_unknown();
        }
        self.when_fine(|step| step.go_on(At::Wait(NOW)))
    }

    fn fail_once(&mut self) -> Then {
        if limits::is_given_up(self.moments(), at(self.work.began)) {
            self.luck = Luck::Fine;
            return self.end_unknown();
        }
        self.go_on(At::Read)
    }

    fn end_unknown(&mut self) -> Then {
        let Some(last) = self.last() else { return Then::Impossible };
        let change = lost(last, Outcome::Unknown, self.moments(), "");
        self.record(change)
    }

    fn follow(&mut self, view: View, mut todo: Vec<Todo>) -> Then {
        if todo.is_empty() {
            let Some(last) = self.work.last.clone() else { return Then::Impossible };
            if misses_its_pod(&last.event, &view.observed(self.setup.has_gates))
                && view != self.world.view(self.cluster, self.attempt())
            {
                return self.find();
            }
            let changes = advance(&last.event, &view.observed(self.setup.has_gates), self.moments());
            todo = changes.into_iter().map(Todo).collect();
        }
        if todo.is_empty() { self.wait_for_news(view) } else { self.advance(view, todo) }
    }

    /// Appends the first of the changes. One that somebody else has appended is as good.
    fn advance(&mut self, view: View, mut todo: Vec<Todo>) -> Then {
        if !matches!(self.luck, Luck::Fine | Luck::AnswerLost) {
            return Then::Impossible;
        }
        let Todo(change) = todo.remove(0);
        let (expected, attempt) = (change.status(), self.attempt());
        let is_stored = self.append(change);
        if self.luck == Luck::AnswerLost && !is_stored {
            return Then::Impossible;
        }
        if !is_stored {
            self.read();
        }
        let is_recorded = self.last().is_some_and(|last| is_recorded(last, attempt, expected));
        let at = match (is_recorded, todo.is_empty()) {
            (false, _) => At::Decide,
            (true, false) => At::Follow(view, todo),
            (true, true) if self.is_active() => At::Follow(view, todo),
            (true, true) => At::LetGo(view),
        };
        self.go_on(at)
    }

    fn wait_for_news(&mut self, view: View) -> Then {
        let last = self.last().cloned();
        match (last.and_then(|last| choice(&last, &view.observed(self.setup.has_gates))), view) {
            _ if self.moments().start_is_late() => {}
            (Some(Choice::Choose(_)), View::Waiting(Pods { gated: Some(pod), .. })) => return self.choose(pod),
            // Lifted already, as far as is known here: only news say otherwise.
            (Some(Choice::Lift(_)), View::Waiting(Pods { gated: Some(pod), .. }))
                if self.world.view(self.cluster, self.attempt()) == view =>
            {
                return self.go_on_if_fine(At::Lift(pod));
            }
            _ => {}
        }
        let is_late =
            |last| limits::has_not_started_in_time(last, &view.observed(self.setup.has_gates), self.moments());
        if !self.work.is_stopped && self.last().is_some_and(is_late) {
            return self.look_before_it_is_removed();
        }
        if self.is_to_be_stopped_again() {
            return self.stop_again();
        }
        let news = self.world.view(self.cluster, self.attempt());
        if !self.is_answered() || news == view {
            return Then::Impossible;
        }
        self.when_fine(|step| step.go_on(At::Follow(news, Vec::new())))
    }

    /// Only what changes something: it is asked every few seconds, and once is enough unless a request to make the Job came after.
    fn is_to_be_stopped_again(&self) -> bool {
        let job = self.world.job(self.cluster, self.attempt());
        let is_cancelling = self.last().is_some_and(|last| last.status == Status::Cancelling);
        is_cancelling && self.is_answered() && job.is_some_and(|job| !job.is_being_removed && !job.view.has_ended())
    }

    fn stop_again(&mut self) -> Then {
        match self.luck {
            Luck::Fine => {
                self.remove_job();
                Then::GoOn
            }
            Luck::NotDone => self.fail_once(),
            _ => Then::Impossible,
        }
    }

    fn look_before_it_is_removed(&mut self) -> Then {
        if self.luck == Luck::Fine && self.has_changed_meanwhile() {
            return Then::GoOn;
        }
        if !self.is_answered() {
            return self.fail();
        }
        match (self.luck, self.world.view(self.cluster, self.attempt())) {
            (Luck::Fine, View::Waiting(_)) => self.go_on(At::Remove),
            (Luck::Fine, view) => self.go_on(At::Follow(view, Vec::new())),
            (Luck::NotDone, _) => self.fail_once(),
            _ => Then::Impossible,
        }
    }

    fn choose(&mut self, number: u8) -> Then {
        let then = self.record(Change::Chosen { pod: pod(number) });
        if self.luck == Luck::Fine && self.work.at == At::Decide && self.last().is_some_and(|last| last.pod.is_some()) {
            self.work.at = At::Lift(number);
        }
        then
    }

    fn lift(&mut self, pod: u8) -> Then {
        if !self.is_answered() {
            return self.fail();
        }
        let (cluster, attempt) = (self.cluster, self.attempt());
        match self.luck {
            Luck::Fine | Luck::AnswerLost => self.world.lift(cluster, attempt, pod),
            Luck::OnItsWay => self.world.lifts.push((cluster, attempt, pod)),
            Luck::NotDone => return self.fail_once(),
        }
        let view = self.world.view(cluster, attempt);
        self.go_on(if self.luck == Luck::Fine { At::Follow(view, Vec::new()) } else { At::Read })
    }

    fn go_on_if_fine(&mut self, at: At) -> Then {
        self.when_fine(|step| step.go_on(at))
    }

    /// Removes a Job that does not start.
    fn remove(&mut self) -> Then {
        if !self.is_answered() {
            return self.fail();
        }
        match self.luck {
            Luck::Fine => {
                self.remove_job();
                self.work.is_stopped = true;
                let view = self.world.view(self.cluster, self.attempt());
                self.go_on(At::Follow(view, Vec::new()))
            }
            Luck::NotDone => self.fail_once(),
            _ => Then::Impossible,
        }
    }

    fn let_go(&mut self, view: View) -> Then {
        let (cluster, attempt) = (self.cluster, self.attempt());
        let has_ended = view.leaves_nothing_to_stop();
        if self.is_answered()
            && let Some(job) = self.world.job_mut(cluster, attempt)
        {
            job.is_settled |= has_ended;
            job.is_being_removed |= !has_ended;
        }
        self.go_on(At::Decide)
    }
}

impl Setup {
    pub(super) fn asked(&self, work: &Work) -> Asked {
        Asked {
            attempt: work.message.attempt,
            trunk: DEFAULT_TRUNK.to_owned(),
            deliveries: work.message.deliveries,
            fingerprint: self.call.fingerprint.clone(),
            not_after: None,
        }
    }

    /// Whether a dialler has something to do.
    pub(super) fn is_busy(&self, world: &World, dialler: usize) -> bool {
        let Some(work) = &world.diallers[dialler].work else { return false };
        match &work.at {
            At::Wait(since) => *since < NOW,
            At::Follow(_, todo) if todo.is_empty() => self.work(world, dialler, Luck::Fine).is_some(),
            _ => true,
        }
    }
}
