//! The pace of a trunk: evenly spaced turns over all replicas, by the generic cell rate algorithm with no burst.
//!
//! The moment of the next free turn is one value in a bucket for each trunk; whoever wants a turn moves it on by compare-and-set. A replica
//! has at most a few milliseconds' worth of turns in hand, so a restart or a pause leaves no gap and is followed by no burst.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::jetstream::kv::{Store, UpdateErrorKind};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Mutex;

use crate::clock::now;
use crate::nats::NatsError;

/// Before the name of a trunk: the key of its next free turn, nanoseconds since the epoch.
const KEY: &str = "pace.next.";
/// Turns reserved in one step span about this long.
const STEP: Duration = Duration::from_millis(20);

/// Hands out turns.
pub struct RateLimit {
    store: Store,
    key: String,
    interval: i64,
    step: i64,
    in_hand: Mutex<VecDeque<i64>>,
}

impl RateLimit {
    /// Turns on a trunk at `per_second` (above 0) over everybody who uses the same bucket. Clocks are expected to agree within a second; a
    /// difference makes the spacing uneven by as much.
    pub fn new(store: Store, trunk: &str, per_second: f64) -> Self {
        let interval = (1e9 / per_second).clamp(1.0, 1e15) as i64;
        let step = (STEP.as_nanos() as i64 / interval).max(1);
        Self { store, key: format!("{KEY}{trunk}"), interval, step, in_hand: Mutex::default() }
    }

    /// Waits until `lead` before a turn, first come, first served, and says when that is. Dropping the future gives its place up, and at most
    /// one turn.
    ///
    /// # Errors
    /// [`NatsError`]: no turn could be reserved.
    pub async fn turn(&self, lead: SignedDuration) -> Result<Timestamp, NatsError> {
        let mut in_hand = self.in_hand.lock().await;
        let turn = loop {
            match in_hand.pop_front() {
                Some(turn) if turn + self.interval.max(STEP.as_nanos() as i64) >= nanoseconds() => break turn,
                Some(_) => {}
                None => *in_hand = self.reserve().await?,
            }
        };
        let turn = Timestamp::from_nanosecond(turn.into()).unwrap_or(Timestamp::MAX);
        let wait = turn.duration_since(now()) - lead;
        tokio::time::sleep(wait.try_into().unwrap_or_default()).await;
        Ok(turn)
    }

    async fn reserve(&self) -> Result<VecDeque<i64>, NatsError> {
        loop {
            let entry = self.store.entry(&self.key).await.map_err(NatsError::of)?;
            let revision = entry.as_ref().map_or(0, |entry| entry.revision);
            let next = entry.and_then(|entry| std::str::from_utf8(&entry.value).ok()?.parse::<i64>().ok());
            let turns = turns(next, nanoseconds(), self.interval, self.step);
            let value = Bytes::from((turns[turns.len() - 1] + self.interval).to_string());
            match self.store.update(&self.key, value, revision).await {
                Ok(_) => return Ok(turns),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {}
                Err(error) => return Err(NatsError::of(error)),
            }
        }
    }
}

/// `step` turns from the next free one on, none of them in the past.
fn turns(next: Option<i64>, now: i64, interval: i64, step: i64) -> VecDeque<i64> {
    let first = next.unwrap_or(now).max(now);
    (0..step).map(|number| first + number * interval).collect()
}

fn nanoseconds() -> i64 {
    i64::try_from(now().as_nanosecond()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn turns_are_spaced_by_the_interval_whoever_reserves_and_whenever(
            interval in 1_i64..1_000_000_000,
            step in 1_i64..50,
            pauses in proptest::collection::vec(0_i64..2_000_000_000, 1..50),
        ) {
            let (mut now, mut next, mut all) = (0, None, Vec::new());
            for pause in pauses {
                now += pause;
                let turns = turns(next, now, interval, step);
                prop_assert!(turns[0] >= now, "a turn in the past would be a burst");
                next = Some(turns[turns.len() - 1] + interval);
                all.extend(turns);
            }
            prop_assert!(all.windows(2).all(|pair| pair[1] - pair[0] >= interval));
        }
    }
}
