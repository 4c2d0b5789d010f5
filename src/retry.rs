//! How long to wait before the next try, and how loudly to say that one failed. Apart, because it is the only place that
//! uses `backoff`: the crate is no longer maintained (RUSTSEC-2025-0012), so nothing else may come to depend on it.

use std::error::Error;
use std::fmt::Display;
use std::time::Duration;

use backoff::backoff::Backoff;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error_chain::error_chain;

/// About the first wait.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(10);
/// After the first failure every nth one is a warning: at the longest wait, one in about 100 seconds.
const WARN_EVERY: u64 = 10;
/// A failure this long after the one before is the first of a new series.
const SERIES_ENDS_AFTER: Duration = Duration::from_secs(60);

/// Waits that double from 100 ms to 10 s, each with up to 50 % of jitter either way so that replicas do not keep step; never
/// more than 10 s, and without an end.
pub fn policy() -> Delays {
    let policy = ExponentialBackoffBuilder::new()
        .with_initial_interval(FIRST)
        .with_multiplier(2.0)
        .with_randomization_factor(0.5)
        .with_max_interval(LONGEST)
        .with_max_elapsed_time(None)
        .build();
    Delays(policy)
}

/// A series of waits, as [`policy`] makes it.
#[derive(Debug)]
pub struct Delays(ExponentialBackoff);

impl Delays {
    /// The next wait, 50 ms to 10 s.
    pub fn next_delay(&mut self) -> Duration {
        self.0.next_backoff().map_or(LONGEST, |delay| delay.min(LONGEST))
    }

    /// Begins again with the shortest wait.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

/// Waits, but not when `stop` is cancelled.
pub async fn sleep(stop: &CancellationToken, wait: Duration) {
    tokio::select! {
        () = tokio::time::sleep(wait) => {}
        () = stop.cancelled() => {}
    }
}

/// Tries until `op` succeeds; no more, once `stop` is cancelled: then `None`. A try that is under way is not interrupted, and there is
/// one in any case. `what` completes "could not …" in the log: the first failure and every tenth is a warning, the others are
/// debug.
pub async fn until_stopped<T, E, Op, Try>(stop: &CancellationToken, what: &str, mut op: Op) -> Option<T>
where
    E: Error,
    Op: FnMut() -> Try,
    Try: Future<Output = Result<T, E>>,
{
    let mut retry = Retry::new(what);
    loop {
        match op().await {
            Ok(value) => {
                retry.worked();
                return Some(value);
            }
            Err(error) => tokio::select! {
                () = tokio::time::sleep(retry.failed(error_chain(&error))) => {}
                () = stop.cancelled() => return None,
            },
        }
    }
}

/// What [`until_stopped`] keeps between tries, for loops of another shape.
#[derive(Debug)]
pub struct Retry {
    what: String,
    delays: Delays,
    failures: u64,
    failed_at: Option<Instant>,
}

impl Retry {
    /// Nothing has failed yet. `what` completes "could not …".
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), delays: policy(), failures: 0, failed_at: None }
    }

    /// Logs a failure and says how long to wait before the next try.
    pub fn failed(&mut self, error: impl Display) -> Duration {
        if self.failed_at.is_some_and(|at| at.elapsed() > SERIES_ENDS_AFTER) {
            self.forget();
        }
        self.failed_at = Some(Instant::now());
        self.failures += 1;
        let (what, failures) = (&self.what, self.failures);
        if failures == 1 || failures.is_multiple_of(WARN_EVERY) {
            tracing::warn!(failures, "could not {what}, will try again: {error}");
        } else {
            tracing::debug!(failures, "could not {what}, will try again: {error}");
        }
        self.delays.next_delay()
    }

    /// Notes a success: the next failure is again the first.
    pub fn worked(&mut self) {
        if self.failures > 0 {
            tracing::info!(failures = self.failures, "could {} at last", self.what);
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.failures = 0;
        self.failed_at = None;
        self.delays.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_from_a_tenth_of_a_second_to_ten_and_never_end() {
        let mut delays = policy();
        for doubled in 0..40 {
            let middle = FIRST.saturating_mul(1 << doubled.min(20)).min(LONGEST);
            let delay = delays.next_delay();
            assert!(delay >= middle / 2 && delay <= (middle * 3 / 2).min(LONGEST), "wait {doubled} was {delay:?}");
        }
        delays.reset();
        assert!(delays.next_delay() <= FIRST * 3 / 2);
    }

    #[test]
    fn a_success_starts_a_new_series() {
        let mut retry = Retry::new("test");
        for _ in 0..20 {
            retry.failed("no");
        }
        retry.worked();
        assert!(retry.failed("no") <= FIRST * 3 / 2);
        assert_eq!(retry.failures, 1);
    }

    #[tokio::test]
    async fn it_tries_until_the_first_success() {
        let mut tries = 0;
        let stop = CancellationToken::new();
        let answer = until_stopped(&stop, "count to three", || {
            tries += 1;
            std::future::ready(if tries < 3 { Err(std::fmt::Error) } else { Ok(tries) })
        });
        assert_eq!(answer.await, Some(3));
    }

    #[tokio::test]
    async fn it_gives_up_when_it_is_stopped() {
        let stop = CancellationToken::new();
        let never = || std::future::ready(Err::<(), _>(std::fmt::Error));
        let (answer, ()) = tokio::join!(until_stopped(&stop, "do the impossible", never), async { stop.cancel() });
        assert_eq!(answer, None);
    }
}
