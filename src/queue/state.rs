//! How the queue and the trunks are, as a whole: what health, metrics and the list of trunks say.

use std::collections::{BTreeSet, HashMap};

use async_nats::jetstream::Context;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::control::Pause;
use super::keeper::Dialled;
use super::waiting::Kind;
use super::{TrunkControl, Waiting, Window};
use crate::clock::now;
use crate::nats::{Names, NatsError};
use crate::policy::breaker::{BreakerState, Fault};
use crate::policy::{Breaker, Trunk};

/// How the queue is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct QueueState {
    /// Calls that wait to be dialled; those that wait for their `not_before` or a redial are not counted.
    pub backlog: u64,
    /// Calls in progress over all replicas: `pending`, `running` or `cancelling`.
    pub in_progress: u64,
    /// Most calls in progress at once, over all replicas.
    pub max_in_progress: i64,
    /// Whether new calls are held back.
    pub paused: bool,
    /// When dialling goes on by itself; null when it is not paused, or until somebody resumes it.
    pub paused_until: Option<Timestamp>,
    /// Why it is paused, where that was said.
    pub pause_reason: Option<String>,
    /// The batches whose new calls are held back.
    pub paused_batches: BTreeSet<String>,
}

/// How a trunk is.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct TrunkState {
    /// Its name.
    pub name: String,
    /// Its channels: most calls in progress at once.
    pub max_active: u64,
    /// Most calls that are begun per second; null: no limit.
    pub calls_per_second: Option<f64>,
    /// Whether it is not configured any more: its calls in progress end, and nothing is begun on it.
    pub removed: bool,
    /// Calls in progress on it, over all replicas.
    pub in_progress: u64,
    /// Calls that wait and would rather be dialled on it than on another; those in the inbox and in timers are not counted.
    pub waiting: u64,
    /// What stops dialling on it when it fails.
    pub breaker: BreakerView,
}

/// How the breaker of a trunk is.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct BreakerView {
    /// `closed`: calls are dialled; `open`: none is; `half_open`: one is, to find out whether the trunk works.
    pub state: BreakerState,
    /// Since when; null where it never changed.
    pub since: Option<Timestamp>,
    /// While open: when the next call may probe the trunk; null where a person has to close it.
    pub until: Option<Timestamp>,
    /// Why it changed.
    pub reason: Option<String>,
    /// Who changed it by hand; null where it changed by itself.
    pub by: Option<String>,
    /// The last faults, the newest last; while closed, those since a call on the trunk had a person's outcome.
    pub faults: Vec<Fault>,
}

impl From<&Breaker> for BreakerView {
    fn from(breaker: &Breaker) -> Self {
        Self {
            state: breaker.state(),
            since: breaker.since(),
            until: breaker.until(),
            reason: breaker.reason().map(str::to_owned),
            by: breaker.by().map(str::to_owned),
            faults: breaker.faults().to_vec(),
        }
    }
}

/// The queue and every trunk, as they were at one moment.
#[derive(Debug, Clone)]
pub struct Overview {
    /// The queue.
    pub queue: QueueState,
    /// The trunks, in the order of the configuration.
    pub trunks: Vec<TrunkState>,
}

/// Looks how the queue and the trunks are.
#[derive(Clone)]
pub struct Look {
    /// For the streams.
    pub jetstream: Context,
    /// How they are called.
    pub names: Names,
    /// What waits.
    pub waiting: Waiting,
    /// What is dialled.
    pub window: Window,
    /// The trunks.
    pub trunks: TrunkControl,
    /// Whether dialling is paused.
    pub pause: Pause,
}

impl Look {
    /// Looks. `dialled` are the trunks that there are consumers for, `active_on` says how many calls are in progress on one, `in_progress`
    /// on all.
    ///
    /// # Errors
    /// [`NatsError`]; also when the streams were never made.
    pub async fn look(
        &self,
        dialled: &Dialled,
        in_progress: u64,
        active_on: impl Fn(&str) -> u64,
    ) -> Result<Overview, NatsError> {
        let (trunks, waiting) = (self.trunks.now(), self.waiting_for().await?);
        let (mut states, mut window, mut channels) = (Vec::new(), 0, 0);
        let former = dialled.keys().filter(|name| trunks.get(name).is_none());
        for name in trunks.iter().map(|trunk| &trunk.name).chain(former) {
            let occupancy = self.window.occupancy(name).await?;
            let trunk = trunks.get(name);
            if trunk.is_none() && occupancy.messages() == 0 {
                continue;
            }
            window += occupancy.messages();
            channels += trunk.map_or(0, |_| occupancy.channels);
            let waiting = waiting.get(name).copied().unwrap_or(0);
            states.push(self.trunk(name, trunk, occupancy.channels, active_on(name), waiting));
        }
        let messages = async |stream: &str| {
            let stream = self.jetstream.get_stream(stream).await.map_err(NatsError::of)?;
            Ok::<_, NatsError>(stream.cached_info().state.messages)
        };
        let Names { calls_stream, queue_stream, .. } = &self.names;
        let (inbox, queued) = tokio::try_join!(messages(calls_stream), messages(queue_stream))?;
        let paused = self.pause.paused(now());
        let queue = QueueState {
            // What is in the window and not in progress waits as well: for its turn, or for the end of a pause.
            backlog: inbox + queued + window.saturating_sub(in_progress),
            in_progress,
            max_in_progress: i64::try_from(channels).unwrap_or(i64::MAX),
            paused: paused.is_some(),
            paused_until: paused.as_ref().and_then(|paused| paused.until),
            pause_reason: paused.and_then(|paused| paused.reason),
            paused_batches: self.pause.batches(now()),
        };
        Ok(Overview { queue, trunks: states })
    }

    /// How many calls wait for each trunk before any other.
    async fn waiting_for(&self) -> Result<HashMap<String, u64>, NatsError> {
        let mut waiting = HashMap::new();
        for group in self.trunks.now().groups() {
            let count = self.waiting.count(Kind { trunks: Some(&group), ..Kind::ANY }).await?;
            if let (Some(first), true) = (group.names().next(), count > 0) {
                *waiting.entry(first.to_owned()).or_default() += count;
            }
        }
        Ok(waiting)
    }

    fn trunk(&self, name: &str, trunk: Option<&Trunk>, channels: u64, in_progress: u64, waiting: u64) -> TrunkState {
        TrunkState {
            name: name.to_owned(),
            max_active: channels,
            calls_per_second: trunk.and_then(|trunk| trunk.calls_per_second),
            removed: trunk.is_none(),
            in_progress,
            waiting,
            breaker: BreakerView::from(&self.trunks.breakers.get(name).unwrap_or_default()),
        }
    }
}
