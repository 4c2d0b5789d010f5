//! Waiting for a condition: looks at once, then every 50 ms, and says in one sentence what it waited for in vain.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
pub const POLL: Duration = Duration::from_millis(50);

/// Waits until the condition holds.
///
/// # Panics
/// When it does not in time.
#[track_caller]
pub fn eventually(
    what: impl Display,
    timeout: Duration,
    mut condition: impl AsyncFnMut() -> bool,
) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let begin = Instant::now();
        while !condition().await {
            assert!(begin.elapsed() < timeout, "waited {timeout:?} in vain: {what} (at {caller})");
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Waits until there is a value, and returns it.
///
/// # Panics
/// When there is none in time.
#[track_caller]
pub fn eventually_some<T>(
    what: impl Display,
    timeout: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let begin = Instant::now();
        loop {
            if let Some(value) = look().await {
                return value;
            }
            assert!(begin.elapsed() < timeout, "waited {timeout:?} in vain: {what} (at {caller})");
            tokio::time::sleep(POLL).await;
        }
    }
}
