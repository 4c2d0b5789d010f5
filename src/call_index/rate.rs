//! How many calls were begun per second lately: pure.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};

/// What counts as lately.
const LATELY: SignedDuration = SignedDuration::from_mins(5);

/// The calls that were begun lately, by the second: at most as many numbers as it has seconds.
#[derive(Debug, Default)]
pub(super) struct Rate(VecDeque<(i64, u32)>);

impl Rate {
    /// A call was begun then, or about then: records come nearly in the order of their times.
    pub(super) fn note(&mut self, time: Timestamp) {
        let second = time.as_second();
        match self.0.back_mut() {
            Some((last, count)) if second <= *last => *count += 1,
            _ => self.0.push_back((second, 1)),
        }
        let oldest = self.0.back().map_or(second, |(last, _)| last - LATELY.as_secs());
        while self.0.front().is_some_and(|(first, _)| *first < oldest) {
            self.0.pop_front();
        }
    }

    /// Calls per second since the first of those that were begun lately; `None` where none was.
    pub(super) fn per_second(&self, now: Timestamp) -> Option<f64> {
        let oldest = now.as_second() - LATELY.as_secs();
        let lately = || self.0.iter().filter(|(second, _)| *second >= oldest);
        let first = lately().next()?.0;
        let count: u32 = lately().map(|(_, count)| count).sum();
        Some(f64::from(count) / (now.as_second() - first + 1).max(1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    #[test]
    fn it_is_that_of_the_last_minutes_and_forgets_what_was_before() {
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(at(0)), None);
        for second in 0..10 {
            for _ in 0..3 {
                rate.note(at(second));
            }
        }
        assert_eq!(rate.per_second(at(9)), Some(3.0));
        assert_eq!(rate.per_second(at(19)), Some(1.5), "none was begun since");
        assert_eq!(rate.per_second(at(1000)), None);
        rate.note(at(2000));
        rate.note(at(1999));
        assert_eq!((rate.per_second(at(2000)), rate.0.len()), (Some(2.0), 1));
    }
}
