//! Every path through the model has an end. `stateright` follows a path only to a state that it has seen before, so a call that goes
//! round in a circle would not fail its `eventually`; where there is no circle, that says what it seems to.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use super::world::World;

/// The steps from state to state, by their hashes.
#[derive(Clone, Default)]
pub(super) struct Graph(Arc<Mutex<Vec<(u64, u64)>>>);

impl Graph {
    pub(super) fn note(&self, from: &World, to: &World) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((hash(from), hash(to)));
    }

    /// How many states lie on a circle, or behind one: takes away what nothing leads to, until nothing more can be.
    pub(super) fn states_behind_circles(&self) -> usize {
        let steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut leads_to, mut arrivals) = (HashMap::<u64, Vec<u64>>::new(), HashMap::<u64, usize>::new());
        for (from, to) in steps.iter() {
            leads_to.entry(*from).or_default().push(*to);
            arrivals.entry(*from).or_default();
            *arrivals.entry(*to).or_default() += 1;
        }
        let mut free: Vec<u64> = arrivals.iter().filter(|(_, count)| **count == 0).map(|(state, _)| *state).collect();
        while let Some(state) = free.pop() {
            arrivals.remove(&state);
            for next in leads_to.remove(&state).unwrap_or_default() {
                let count = arrivals.get_mut(&next).expect("it was counted");
                *count -= 1;
                if *count == 0 {
                    free.push(next);
                }
            }
        }
        arrivals.len()
    }
}

/// A hash, the same in every run. The standard hasher would take a quarter of the time here.
pub(super) fn hash(value: &impl Hash) -> u64 {
    let mut hasher = Mix::default();
    value.hash(&mut hasher);
    hasher.finish()
}

#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(number.into());
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
        self.0 = ((product >> 64) as u64 ^ product as u64).rotate_left(23).wrapping_add(1);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
