//! What must hold. What is wrong with a single step is noted when it is taken, since a state does not tell how it came about.

use stateright::Property;

use super::Setup;
use super::world::{At, Job, Message, NOW, Place, Record, View, World, at};
use crate::call::{Outcome, Status, StatusEvent};

/// What must not happen, and has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Flaws {
    is_started_twice: bool,
    is_dialled_twice: bool,
    has_illegal_step: bool,
    has_anothers_end: bool,
    is_dialled_after_cancel: bool,
    is_dialled_too_often: bool,
    is_cancelled_unasked: bool,
    is_unknown_though_it_never_ran: bool,
    has_run_unnamed: bool,
}

impl Flaws {
    /// A container begins to run, of an attempt of which one has run before.
    pub(super) fn note_second_pod(&mut self) {
        self.is_dialled_twice = true;
    }

    pub(super) fn note_illegal_step(&mut self) {
        self.has_illegal_step = true;
    }
}

/// What holds even if the log loses its tail. Then an attempt may be started once more for each loss, when its Job is gone; a message
/// that fits to nothing becomes a dead letter; and a call whose message was acknowledged may have lost its end again.
pub(super) fn always() -> Vec<Property<Setup>> {
    vec![
        Property::always("no attempt is started twice", |_, world: &World| !world.flaws.is_started_twice),
        Property::always("every step is legal, and none follows the end", |_, world: &World| {
            !world.flaws.has_illegal_step
        }),
        Property::always("an attempt ends as its own Job did", |_, world: &World| !world.flaws.has_anothers_end),
        Property::always("no more attempts count than were asked for", |_, world: &World| {
            !world.flaws.is_dialled_too_often
        }),
        Property::always("what is to be cancelled is not dialled again", |_, world: &World| {
            !world.flaws.is_dialled_after_cancel
        }),
        Property::always("no slot is held past `ends_by`", Setup::no_slot_is_held_for_too_long),
        Property::eventually("every call ends", |_, world: &World| world.has_had_its_end || world.dead_letters > 0),
    ]
}

/// What holds as long as the log keeps what it was given.
pub(super) fn while_the_log_is_whole() -> Vec<Property<Setup>> {
    vec![
        Property::always("only what somebody cancels or deletes is cancelled", |_, world: &World| {
            !world.flaws.is_cancelled_unasked
        }),
        Property::always("what never ran is not `unknown` while its cluster answers", |_, world: &World| {
            !world.flaws.is_unknown_though_it_never_ran
        }),
    ]
}

/// What holds besides where pods have a gate.
pub(super) fn with_gates() -> Vec<Property<Setup>> {
    vec![
        Property::always("one pod of an attempt dials", |_, world: &World| !world.flaws.is_dialled_twice),
        Property::always("an attempt has not run of which the log names no pod", |_, world: &World| {
            !world.flaws.has_run_unnamed
        }),
    ]
}

impl Setup {
    /// At rest, a message in flight is that of an attempt in its time, or was handed back or delivered a moment ago, or its dialler
    /// waits for a moment to ask again.
    fn no_slot_is_held_for_too_long(&self, world: &World) -> bool {
        let Some(last) = world.log.last().map(|last| &last.event) else { return true };
        let is_over = last.ends_by.is_some_and(|ends_by| ends_by <= at(NOW));
        let is_in_time = |message: &Message| {
            let is_active = last.status.is_active() && last.attempt == message.attempt;
            let works = world.diallers.iter().filter_map(|dialler| dialler.work.as_ref());
            let is_new = works
                .filter(|work| work.message.sequence == message.sequence)
                .any(|work| work.began == NOW || !is_active && work.at == At::Wait(NOW));
            let is_overdue = is_active && is_over;
            is_active && !is_over || is_new || message.place == Place::HandedBack(NOW) && !is_overdue
        };
        let mut in_flight = world.queue.iter().filter(|message| message.deliveries > 0);
        in_flight.all(is_in_time) || !self.urgent(world).is_empty()
    }

    /// Appends a record if `after` is still the sequence of the last: as every record of the model, whoever appends it.
    pub(super) fn append(&self, world: &mut World, record: &Record, after: u64) -> bool {
        if after != world.log.sequence() {
            return false;
        }
        self.check_step(world, &record.event);
        world.has_had_its_end |= record.event.is_final;
        world.log.push(record.clone());
        true
    }

    fn check_step(&self, world: &mut World, event: &StatusEvent) {
        let last = world.log.last().map(|last| last.event.clone());
        let has_lost = world.left.losses < self.budget.losses;
        let is_wrong = match &last {
            Some(last) => !is_legal(last, event),
            None => !event.status.may_follow(None) || event.attempt > 1 && !has_lost,
        };
        let is_cancelling = last.is_some_and(|last| last.status == Status::Cancelling);
        let is_asked = world.left.cancels < self.budget.cancels || world.left.deletions < self.budget.deletions;
        let (has_anothers_end, is_unknown) = (has_anothers_end(world, event), self.is_unknown_by_neglect(world, event));
        let has_run = event.attempt > 0 && world.ran.contains(&event.attempt);
        let flaws = &mut world.flaws;
        flaws.has_illegal_step |= is_wrong;
        flaws.is_dialled_too_often |= event.counted_attempts() > event.max_attempts;
        flaws.is_dialled_after_cancel |= is_cancelling && !event.is_final;
        flaws.is_cancelled_unasked |= event.status == Status::Cancelled && !is_asked;
        flaws.has_anothers_end |= has_anothers_end;
        flaws.is_unknown_though_it_never_ran |= is_unknown;
        flaws.has_run_unnamed |= has_run && event.pod.is_none();
    }

    /// Its Job waits there with the pod that it has made, nobody has removed it, and nobody was slow.
    fn is_unknown_by_neglect(&self, world: &World, event: &StatusEvent) -> bool {
        let waits = |job: &Job| {
            job.attempt == event.attempt
                && matches!(job.view, View::Waiting(_))
                && job.pods == 1
                && !job.is_being_removed
        };
        event.status == Status::Failed
            && event.outcome == Some(Outcome::Unknown)
            && world.left.delays == self.budget.delays
            && !world.is_silent.contains(&true)
            && !world.ran.contains(&event.attempt)
            && world.jobs.iter().any(waits)
    }

    /// A lost tail takes the claim with it, and the Job that it was made for may be gone.
    pub(super) fn check_starts(&self, world: &mut World) {
        let losses = self.budget.losses - world.left.losses;
        world.flaws.is_started_twice |= world.starts.iter().any(|(_, count)| *count > 1 + losses);
    }
}

fn is_legal(last: &StatusEvent, next: &StatusEvent) -> bool {
    !last.is_final
        && next.status.may_follow(Some(last.status))
        && next.revision == last.revision + 1
        && next.attempt == last.attempt + u32::from(next.status == Status::Pending && last.status != Status::Pending)
}

fn has_anothers_end(world: &World, event: &StatusEvent) -> bool {
    let is_heard = matches!(event.status, Status::Succeeded | Status::Failed)
        && matches!(event.outcome, Some(Outcome::Answered | Outcome::Busy));
    let is_its_own =
        |(attempt, end): &(u32, super::world::End)| *attempt == event.attempt && Some(end.outcome()) == event.outcome;
    is_heard && !world.ends.iter().any(is_its_own)
}
