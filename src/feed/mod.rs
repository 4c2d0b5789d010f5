//! The feed: what is dialled next. For each trunk it gives the window as many calls as there is room for, always those that should be
//! next: by priority, within one what came due before what is new, and the batches in turn (`turns`).
//!
//! Calls wait by the trunks that may dial them, and go to the first of these that is not held. Take the oldest ones, put them into the
//! window, remove them from the queue. Every replica does so. A race, a crash or a copy that lags can only offer the window what it has
//! already or what the log says is over.

mod regroup;
mod turns;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::call::Priority;
use crate::call_index::CallIndex;
use crate::clock::now;
use crate::nats::NatsError;
use crate::nats::get::Head;
use crate::policy::{Trunk, TrunkGroup};
use crate::queue::control::Pause;
use crate::queue::waiting::{Class, Kind, batch_of, job_of, taken_back_from};
use crate::queue::{Keeper, LiveTrunks, TrunkControl, Waiting, Window};
use crate::retry::{self, Retry};

/// How often is looked for calls and for room, if nobody says so: another replica may have ended before it fed the window.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Where the pace is limited, as many calls are in the window ahead of their turn as are begun in this time.
const BEGUN_SOON: Duration = Duration::from_secs(1);
/// Calls that are moved in one go, at most.
const MOST_AT_ONCE: usize = 256;
/// Requests under way at once.
const REQUESTS_AT_ONCE: usize = 64;

/// Says that calls wait, or that there is room.
#[derive(Default)]
pub struct FeedSignal {
    wanted: Notify,
    queued: Mutex<BTreeSet<TrunkGroup>>,
    has_room: AtomicBool,
}

impl FeedSignal {
    /// A call waits for these trunks.
    pub fn queued(&self, trunks: &TrunkGroup) {
        let mut queued = self.queued.lock().unwrap_or_else(PoisonError::into_inner);
        if !queued.contains(trunks) {
            queued.insert(trunks.clone());
        }
        drop(queued);
        self.wanted.notify_one();
    }

    /// A call has left the window.
    pub fn room(&self) {
        self.has_room.store(true, Ordering::Release);
        self.wanted.notify_one();
    }

    fn take(&self) -> BTreeSet<TrunkGroup> {
        std::mem::take(&mut *self.queued.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Feeds the window.
pub struct Feed {
    waiting: Waiting,
    window: Window,
    trunks: TrunkControl,
    pause: Pause,
    index: CallIndex,
    signal: Arc<FeedSignal>,
    /// Groups of trunks that calls may wait for.
    present: BTreeSet<TrunkGroup>,
    /// Trunks whose channels were all taken, until a call leaves the window or it is time to look: what is queued meanwhile need not ask.
    full: HashSet<String>,
    /// Messages that the window has, too, until whoever gave them back is done.
    left: HashSet<u64>,
    /// The batch that had the last turn.
    last: HashMap<(TrunkGroup, Priority, Class), Option<String>>,
}

impl Feed {
    /// `signal` says that something waits, or that there is room.
    pub fn new(
        waiting: Waiting,
        window: Window,
        trunks: TrunkControl,
        pause: Pause,
        index: CallIndex,
        signal: Arc<FeedSignal>,
    ) -> Self {
        Self {
            waiting,
            window,
            trunks,
            pause,
            index,
            signal,
            present: BTreeSet::new(),
            full: HashSet::new(),
            left: HashSet::new(),
            last: HashMap::new(),
        }
    }

    /// Feeds until `stop`. After an error it begins anew, once `keeper` has made what is missing.
    pub async fn run(mut self, keeper: Arc<Keeper>, stop: CancellationToken) {
        let mut retry = Retry::new("feed the window");
        let (signal, mut live) = (self.signal.clone(), self.trunks.live());
        // At the start, too: trunks may have changed while nobody was there.
        live.mark_changed();
        let mut look_at = Instant::now();
        while !stop.is_cancelled() {
            tokio::select! {
                () = signal.wanted.notified() => {}
                () = tokio::time::sleep_until(look_at) => {}
                () = stop.cancelled() => return,
            }
            let is_time_to_look = Instant::now() >= look_at;
            if is_time_to_look {
                look_at = Instant::now() + LOOK_EVERY;
            }
            match self.feed(is_time_to_look, &mut live).await {
                Ok(()) => retry.worked(),
                Err(error) => {
                    keeper.look_soon();
                    retry::sleep(&stop, retry.failed(error.chain())).await;
                }
            }
        }
    }

    async fn feed(&mut self, looks: bool, live: &mut LiveTrunks) -> Result<(), NatsError> {
        if live.has_changed().unwrap_or(false) {
            live.mark_unchanged();
            self.full.clear();
            if let Err(error) = self.regroup().await {
                live.mark_changed();
                return Err(error);
            }
        }
        self.present.extend(self.signal.take());
        if looks || self.signal.has_room.swap(false, Ordering::Acquire) {
            self.full.clear();
        }
        if looks {
            self.look().await?;
        }
        self.fill().await
    }

    /// Looks which trunks calls wait for.
    async fn look(&mut self) -> Result<(), NatsError> {
        let waiting = &self.waiting;
        let groups = self.trunks.now().groups();
        let looks = stream::iter(groups.into_iter().map(|group| async move {
            let heads = waiting.oldest(Kind { trunks: Some(&group), ..Kind::ANY }, 1).await?;
            Ok::<_, NatsError>((!heads.is_empty()).then_some(group))
        }));
        let present: Vec<_> = looks.buffer_unordered(REQUESTS_AT_ONCE).try_collect().await?;
        self.present = present.into_iter().flatten().collect();
        self.left.clear();
        Ok(())
    }

    /// Gives the window what it has room for, trunk by trunk.
    async fn fill(&mut self) -> Result<(), NatsError> {
        if self.pause.is_paused(now()) || self.present.is_empty() {
            return Ok(());
        }
        for trunk in self.trunks.now().iter() {
            self.fill_trunk(trunk).await?;
        }
        Ok(())
    }

    /// What the window was given is in flight or undelivered before it is asked again.
    async fn fill_trunk(&mut self, trunk: &Trunk) -> Result<(), NatsError> {
        loop {
            let groups = self.groups_for(&trunk.name);
            if groups.is_empty() || self.full.contains(&trunk.name) {
                return Ok(());
            }
            let room = self.room(trunk).await?.min(MOST_AT_ONCE);
            if room == 0 {
                return Ok(());
            }
            let next = self.next(&groups, room).await?;
            let is_all = next.len() < room;
            if is_all {
                self.present.retain(|group| !groups.contains(group));
            }
            let offers =
                stream::iter(next.into_iter().map(|head| offer(&self.window, &self.waiting, &trunk.name, head)));
            let left: Vec<_> = offers.buffer_unordered(REQUESTS_AT_ONCE).try_collect().await?;
            self.left.extend(left.into_iter().flatten());
            if is_all {
                return Ok(());
            }
        }
    }

    /// The groups whose calls go to a trunk now.
    fn groups_for(&self, trunk: &str) -> Vec<TrunkGroup> {
        let now = now();
        let goes_there = |group: &&TrunkGroup| group.first_free(|name| self.trunks.held(name, now)) == Ok(trunk);
        self.present.iter().filter(goes_there).cloned().collect()
    }

    /// How many calls can be begun on a trunk at once, or within a moment where their pace is limited: what lay in the window for longer than
    /// that could not be overtaken.
    async fn room(&mut self, trunk: &Trunk) -> Result<usize, NatsError> {
        let occupancy = self.window.occupancy(&trunk.name).await?;
        if occupancy.free() == 0 {
            self.full.insert(trunk.name.clone());
            return Ok(0);
        }
        let soon = trunk.calls_per_second.map(|pace| (pace * BEGUN_SOON.as_secs_f64()).ceil() as u64);
        let in_doubt = self.trunks.breakers.room(&trunk.name, now()).map(u64::from);
        let free = occupancy.free();
        // Until the index knows how many of them are in progress, none of a trunk in doubt is taken for that: what is too many comes back.
        let active = self.index.check().is_ok().then(|| self.index.active_on(&trunk.name) as u64);
        let soon = soon.filter(|_| active.is_some());
        let Some(most) = soon.into_iter().chain(in_doubt).min() else { return Ok(free) };
        let unclaimed = occupancy.messages().saturating_sub(active.unwrap_or(0));
        Ok(free.min(usize::try_from(most.saturating_sub(unclaimed)).unwrap_or(usize::MAX)))
    }

    /// What should be next of some groups, at most so many.
    async fn next(&mut self, groups: &[TrunkGroup], room: usize) -> Result<Vec<Head>, NatsError> {
        let mut next = Vec::new();
        for priority in Priority::ALL {
            for class in Class::ALL {
                let room = room - next.len();
                if room == 0 {
                    return Ok(next);
                }
                let mut of_groups = Vec::new();
                for group in groups {
                    of_groups.push(self.next_of(group, priority, class, room).await?);
                }
                next.extend(turns::interleave(of_groups).take(room));
            }
        }
        Ok(next)
    }

    async fn next_of(
        &mut self,
        trunks: &TrunkGroup,
        priority: Priority,
        class: Class,
        room: usize,
    ) -> Result<Vec<Head>, NatsError> {
        let all = Kind { trunks: Some(trunks), priority: Some(priority), class: Some(class), batch: None };
        let waits = self.waiting.count(all).await?;
        if waits == 0 {
            return Ok(Vec::new());
        }
        let paused = self.pause.batches(now());
        let is_paused = |batch: Option<&str>| batch.is_some_and(|batch| paused.contains(batch));
        let may_be_next =
            |head: &Head| !self.left.contains(&head.sequence) && !is_paused(batch_of(&head.subject).as_deref());
        let place = (trunks.clone(), priority, class);
        let batches = self.index.queued_batches(priority, self.last.get(&place), room + 1, |batch| !is_paused(batch));
        let (waiting, mut next) = (&self.waiting, Vec::new());
        // Where all fit, nobody has to wait for a turn; where there is one line and nothing in it is held, it is the turn of its head.
        if waits > room as u64 && (batches.len() > 1 || !paused.is_empty()) {
            let (turns, last) = turns::share(batches, room);
            let heads = stream::iter(turns.into_iter().map(|(batch, calls)| async move {
                waiting.oldest(Kind { batch: Some(batch.as_deref()), ..all }, calls).await
            }));
            let heads: Vec<Vec<Head>> = heads.buffered(REQUESTS_AT_ONCE).try_collect().await?;
            next.extend(heads.into_iter().flatten().filter(may_be_next));
            self.last.extend(last.map(|last| (place, last)));
        }
        // And what the index does not know (yet).
        if next.len() < room {
            let more = waiting.oldest(all, room + self.left.len()).await?;
            let known: HashSet<u64> = next.iter().map(|head| head.sequence).collect();
            let more = more.into_iter().filter(|head| !known.contains(&head.sequence) && may_be_next(head));
            next.extend(more.take(room - known.len()));
        }
        Ok(next)
    }
}

/// Puts a message that waits into the window, to be dialled on a trunk, and removes it from the queue. One that is in the window already came
/// there by a crash between the two, or is about to be given back; then it stays in the queue, and its sequence is the answer.
///
/// # Errors
/// [`NatsError`]; it may be in both then, and is offered again.
pub async fn offer(window: &Window, waiting: &Waiting, trunk: &str, head: Head) -> Result<Option<u64>, NatsError> {
    let (job, taken_back) = (job_of(&head.subject).to_owned(), taken_back_from(&head));
    let is_new = window.put(trunk, &job, head.headers, head.payload).await?;
    if !is_new && let Some(from) = taken_back {
        // Where the window has nothing by now, whoever gave it back has just done so.
        let present = window.sequence_of(trunk, &job).await?;
        if present.is_none_or(|present| present == from) {
            return Ok(Some(head.sequence));
        }
    }
    fail::fail_point!("feed-offered");
    waiting.remove(head.sequence).await?;
    Ok(None)
}
