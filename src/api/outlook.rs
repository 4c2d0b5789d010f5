//! What a call that waits may expect: how many are before it, and about when its turn comes, or why it is held.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{Api, Error, Parts};
use crate::call::{Priority, Status, StatusEvent};
use crate::clock::now;
use crate::policy::TrunkGroup;
use crate::queue::waiting::{Class, Kind};

/// What a call that waits in the queue may expect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Outlook {
    /// About how many calls are dialled before it; more where urgent ones come.
    pub ahead: u64,
    /// About when it is dialled, by how many were on its trunk in the last minutes; null while it is held, and where none was.
    pub expected_at: Option<Timestamp>,
    /// Why it is not dialled now whatever is before it; null where nothing holds it.
    pub held: Option<String>,
}

impl Api {
    /// What a queued call may expect; `None` for any other.
    ///
    /// # Errors
    /// [`Error`] when NATS does not answer.
    pub async fn outlook(&self, event: &StatusEvent) -> Result<Option<Outlook>, Error> {
        if event.status != Status::Queued {
            return Ok(None);
        }
        self.parts()?.outlook(event).await.map(Some)
    }
}

impl Parts {
    async fn outlook(&self, event: &StatusEvent) -> Result<Outlook, Error> {
        let own = self.waiting.find(event).await?;
        let place = own.as_ref().and_then(|own| self.waiting.place_of(&own.subject));
        // What is not in the queue any more is next.
        let (Some(own), Some((group, class))) = (own, place) else { return Ok(Outlook::default()) };
        let held = self.pause.holds(event.batch.as_deref(), now());
        let (trunk, held) = match (held, self.trunk_of(&group)) {
            (Some(why), trunk) => (trunk.ok(), Some(why)),
            (None, Ok(trunk)) => (Some(trunk), None),
            (None, Err(why)) => (None, Some(why)),
        };
        let own_line = self.in_own_line(event, &group, class, own.sequence).await?;
        let mut ahead = own_line;
        for other in self.groups_beside(&group, trunk.as_deref()) {
            let of = |priority, class| Kind {
                trunks: Some(&other),
                priority: Some(priority),
                class: Some(class),
                batch: None,
            };
            for (priority, before) in lines_before(event.priority, class) {
                ahead += self.waiting.count(of(priority, before)).await?;
            }
            if other != group {
                // They take turns, too.
                ahead += self.waiting.count(of(event.priority, class)).await?.min(own_line + 1);
            }
        }
        let is_held = held.is_some();
        let rate = trunk.filter(|_| !is_held).and_then(|trunk| self.index.rate_on(&trunk));
        Ok(Outlook { ahead, expected_at: rate.and_then(|rate| after(ahead + 1, rate)), held })
    }

    /// The groups whose calls go to the same trunk now, its own included.
    fn groups_beside(&self, group: &TrunkGroup, trunk: Option<&str>) -> Vec<TrunkGroup> {
        let mut groups = self.trunks.now().groups();
        groups.insert(group.clone());
        let goes_there = |other: &TrunkGroup| trunk.is_some() && self.trunk_of(other).ok().as_deref() == trunk;
        groups.into_iter().filter(|other| other == group || goes_there(other)).collect()
    }

    /// How many of its own priority and class, with the batches in turn.
    async fn in_own_line(
        &self,
        event: &StatusEvent,
        group: &TrunkGroup,
        class: Class,
        sequence: u64,
    ) -> Result<u64, Error> {
        let line = Kind { trunks: Some(group), priority: Some(event.priority), class: Some(class), batch: None };
        let own = Kind { batch: Some(event.batch.as_deref()), ..line };
        let from = self.waiting.oldest_from(sequence, own, 1).await?.first().map_or(1, |head| head.after + 1);
        let before = self.waiting.count(own).await?.saturating_sub(from);
        let all = self.waiting.count(line).await?;
        let others =
            self.index.queued_batches(event.priority, None, usize::MAX, |batch| batch != event.batch.as_deref());
        let in_turn: u64 = others.into_iter().map(|(_, calls)| (calls as u64).min(before + 1)).sum();
        Ok((before + in_turn).min(all.saturating_sub(1)))
    }

    /// The trunk that a group's calls go to now, or why they go to none.
    pub(super) fn trunk_of(&self, group: &TrunkGroup) -> Result<String, String> {
        let now = now();
        group.first_free(|name| self.trunks.held(name, now)).map(str::to_owned).map_err(|held| held.why)
    }
}

/// What goes before a priority and class.
fn lines_before(priority: Priority, class: Class) -> impl Iterator<Item = (Priority, Class)> {
    let lines = Priority::ALL.into_iter().flat_map(|priority| Class::ALL.map(|class| (priority, class)));
    lines.take_while(move |line| *line != (priority, class))
}

/// When so many calls have been begun at that rate.
pub(super) fn after(calls: u64, per_second: f64) -> Option<Timestamp> {
    let wait = SignedDuration::try_from_secs_f64(calls as f64 / per_second).ok()?;
    now().checked_add(wait).ok()
}
