//! Turns among batches: pure, so that they can be tested. Each batch that has calls waiting gets as many places as any other, and the turn
//! goes on where it ended before. So a batch of 100,000 takes no more than every second place from one of 10.
//!
//! It costs one request for each batch that has a turn, at most one for each free place.

/// A batch, and how many of its calls; `None` stands for the calls without one.
pub(super) type Calls = (Option<String>, usize);

/// Shares `room` places among batches that have so many calls waiting, in their order. Also the batch that got the last one.
pub(super) fn share(batches: Vec<Calls>, room: usize) -> (Vec<Calls>, Option<Option<String>>) {
    let mut taken = vec![0; batches.len()];
    let (mut left, mut last) = (room, None);
    loop {
        let before = left;
        for (turn, (taken, (_, waiting))) in taken.iter_mut().zip(&batches).enumerate() {
            if left > 0 && *taken < *waiting {
                *taken += 1;
                left -= 1;
                last = Some(turn);
            }
        }
        if left == before {
            break;
        }
    }
    let last = last.map(|turn| batches[turn].0.clone());
    let turns = batches.into_iter().zip(taken).map(|((batch, _), taken)| (batch, taken));
    (turns.filter(|(_, taken)| *taken > 0).collect(), last)
}

/// The first of each, then the second of each, and so on.
pub(super) fn interleave<T>(each: Vec<Vec<T>>) -> impl Iterator<Item = T> {
    let mut each: Vec<_> = each.into_iter().map(Vec::into_iter).collect();
    let mut round = Vec::new().into_iter();
    std::iter::from_fn(move || {
        if round.len() == 0 {
            round = each.iter_mut().filter_map(Iterator::next).collect::<Vec<T>>().into_iter();
        }
        round.next()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn batch(name: &str, calls: usize) -> Calls {
        (Some(name.to_owned()), calls)
    }

    #[test]
    fn a_large_batch_and_a_small_one_have_every_second_place() {
        let waiting = || vec![batch("large", 100_000), batch("small", 10)];
        let name = |name: &str| Some(Some(name.to_owned()));
        assert_eq!(share(waiting(), 4), (vec![batch("large", 2), batch("small", 2)], name("small")));
        assert_eq!(share(waiting(), 1), (vec![batch("large", 1)], name("large")));
        assert_eq!(share(waiting(), 100), (vec![batch("large", 90), batch("small", 10)], name("large")));
        assert_eq!(share(Vec::new(), 5), (Vec::new(), None));
    }

    #[test]
    fn of_several_each_is_next_in_turn() {
        let turns = |each: Vec<Vec<u32>>| interleave(each).collect::<Vec<_>>();
        assert_eq!(turns(vec![vec![1, 4, 6], vec![], vec![2, 5], vec![3]]), [1, 2, 3, 4, 5, 6]);
        assert_eq!(turns(vec![]), [0; 0]);
    }

    /// The batches that have calls left, the one after `last` first.
    fn in_turn(left: &BTreeMap<Option<String>, usize>, last: Option<&Option<String>>) -> Vec<Calls> {
        let is_over = |batch: &Option<String>| last.is_some_and(|last| batch <= last);
        let present = || left.iter().filter(|(_, calls)| **calls > 0);
        let after = present().filter(|(batch, _)| !is_over(batch));
        after
            .chain(present().filter(|(batch, _)| is_over(batch)))
            .map(|(batch, calls)| (batch.clone(), *calls))
            .collect()
    }

    proptest! {
        #[test]
        fn no_place_is_wasted_and_no_batch_is_more_than_a_turn_behind_another(
            waiting in prop::collection::btree_map(prop::option::of("[a-c]{1,2}"), 1_usize..20, 1..8),
            rooms in prop::collection::vec(1_usize..10, 1..20),
        ) {
            let (mut left, mut last) = (waiting.clone(), None);
            let mut served: BTreeMap<_, usize> = waiting.keys().map(|batch| (batch.clone(), 0)).collect();
            for room in rooms {
                let present = in_turn(&left, last.as_ref());
                let waiting: usize = present.iter().map(|(_, calls)| calls).sum();
                let (turns, end) = share(present, room);
                prop_assert_eq!(turns.iter().map(|(_, calls)| calls).sum::<usize>(), room.min(waiting));
                last = end.or(last);
                for (batch, calls) in turns {
                    *left.get_mut(&batch).expect("a batch that waits") -= calls;
                    *served.get_mut(&batch).expect("a batch that waits") += calls;
                }
                let most = served.values().max().copied().unwrap_or(0);
                for (batch, calls) in &served {
                    prop_assert!(*calls + 1 >= most || left[batch] == 0, "{:?} had {} of {} turns", batch, calls, most);
                }
            }
        }
    }
}
