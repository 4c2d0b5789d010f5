//! The feed: what is dialled next. It gives the window as many calls as it has room for, always those that should be next: by priority,
//! within one what came due before what is new, and of what is new the batches in turn (`turns`).
//!
//! Take the oldest ones, put them into the window, remove them from the queue. Every replica does so. A race, a crash or a copy that
//! lags can only offer the window what it has already or what the log says is over.

mod turns;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::call::{Priority, Status};
use crate::call_index::CallIndex;
use crate::clock::now;
use crate::nats::NatsError;
use crate::nats::get::Head;
use crate::queue::control::Pause;
use crate::queue::waiting::{Class, Kind, job_of};
use crate::queue::{Keeper, Waiting, Window};
use crate::retry::{self, Retry};

/// How often is looked whether there is room, if nobody says so: another replica may have ended before it fed the window.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Where the pace is limited, as many calls are in the window ahead of their turn as are begun in this time.
const BEGUN_SOON: Duration = Duration::from_secs(1);
/// Calls that are moved in one go, at most.
const MOST_AT_ONCE: usize = 256;
/// Requests under way at once.
const REQUESTS_AT_ONCE: usize = 64;

/// Feeds the window.
pub struct Feed {
    waiting: Waiting,
    window: Window,
    pause: Pause,
    index: CallIndex,
    wanted: Arc<Notify>,
    pace: Option<f64>,
    /// The batch that had the last turn, by priority.
    last: HashMap<Priority, Option<String>>,
}

impl Feed {
    /// `wanted` says that something waits, or that there is room. `pace` is how many calls are begun in a second, where that is limited.
    pub fn new(
        waiting: Waiting,
        window: Window,
        pause: Pause,
        index: CallIndex,
        pace: Option<f64>,
        wanted: Arc<Notify>,
    ) -> Self {
        Self { waiting, window, pause, index, wanted, pace, last: HashMap::new() }
    }

    /// Feeds until `stop`. After an error it begins anew, once `keeper` has made what is missing.
    pub async fn run(mut self, keeper: Arc<Keeper>, stop: CancellationToken) {
        let mut retry = Retry::new("feed the window");
        let wanted = self.wanted.clone();
        while !stop.is_cancelled() {
            tokio::select! {
                () = wanted.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => return,
            }
            match self.fill().await {
                Ok(()) => retry.worked(),
                Err(error) => {
                    keeper.look_soon();
                    retry::sleep(&stop, retry.failed(error.chain())).await;
                }
            }
        }
    }

    /// Gives the window what it has room for. What it was given is in flight or undelivered before it is asked again.
    async fn fill(&mut self) -> Result<(), NatsError> {
        loop {
            if self.pause.is_paused(now()) {
                return Ok(());
            }
            let room = self.room().await?.min(MOST_AT_ONCE);
            if room == 0 {
                return Ok(());
            }
            let next = self.next(room).await?;
            if next.is_empty() {
                return Ok(());
            }
            let is_all = next.len() < room;
            let mut moved =
                stream::iter(next.into_iter().map(|head| self.offer(head))).buffer_unordered(REQUESTS_AT_ONCE);
            while let Some(moved) = moved.next().await {
                moved?;
            }
            drop(moved);
            if is_all {
                return Ok(());
            }
        }
    }

    /// How many calls can be begun at once, or within a moment where their pace is limited: what lay in the window for longer than that
    /// could not be overtaken.
    async fn room(&self) -> Result<usize, NatsError> {
        let occupancy = self.window.occupancy().await?;
        let free = occupancy.free();
        let Some(soon) = self.pace.map(|pace| (pace * BEGUN_SOON.as_secs_f64()).ceil() as u64) else { return Ok(free) };
        if self.index.check().is_err() {
            return Ok(free);
        }
        let active = Status::ALL.into_iter().filter(|status| status.is_active());
        let in_progress = active.map(|status| self.index.count_of(status) as u64).sum();
        let unclaimed = (occupancy.in_flight + occupancy.undelivered).saturating_sub(in_progress);
        Ok(free.min(usize::try_from(soon.saturating_sub(unclaimed)).unwrap_or(usize::MAX)))
    }

    async fn offer(&self, head: Head) -> Result<(), NatsError> {
        self.window.put(job_of(&head.subject), head.headers, head.payload).await?;
        fail::fail_point!("feed-offered");
        self.waiting.remove(head.sequence).await
    }

    /// What should be next, at most so many.
    async fn next(&mut self, room: usize) -> Result<Vec<Head>, NatsError> {
        let mut next = Vec::new();
        for priority in Priority::ALL {
            for class in Class::ALL {
                let room = room - next.len();
                if room == 0 {
                    return Ok(next);
                }
                next.extend(self.next_of(priority, class, room).await?);
            }
        }
        Ok(next)
    }

    async fn next_of(&mut self, priority: Priority, class: Class, room: usize) -> Result<Vec<Head>, NatsError> {
        let all = Kind { priority: Some(priority), class: Some(class), batch: None };
        let last = self.last.get(&priority);
        let batches =
            if class == Class::New { self.index.queued_batches(priority, last, room + 1) } else { Vec::new() };
        if batches.len() < 2 {
            return self.waiting.oldest(all, room).await;
        }
        let (turns, last) = turns::share(batches, room);
        self.last.extend(last.map(|last| (priority, last)));
        let waiting = &self.waiting;
        let mut heads = stream::iter(turns.into_iter().map(|(batch, calls)| async move {
            waiting.oldest(Kind { batch: Some(batch.as_deref()), ..all }, calls).await
        }))
        .buffered(REQUESTS_AT_ONCE);
        let mut next = Vec::new();
        while let Some(heads) = heads.next().await {
            next.extend(heads?);
        }
        // What the index does not know (yet).
        if next.len() < room {
            let more = waiting.oldest(all, room).await?;
            let known: HashSet<u64> = next.iter().map(|head| head.sequence).collect();
            let more = more.into_iter().filter(|head| !known.contains(&head.sequence));
            next.extend(more.take(room - known.len()));
        }
        Ok(next)
    }
}
