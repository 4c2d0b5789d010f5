//! The trunks as every call meets them: which there are now, whether one may be dialled on, and its pace.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::jetstream::kv::Store;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

use super::breakers::Breakers;
use super::rate_limit::RateLimit;
use crate::nats::NatsError;
use crate::policy::{Held, Trunk, Trunks};

/// The trunks that there are, at any moment.
pub type LiveTrunks = watch::Receiver<Arc<Trunks>>;

/// The trunks, their breakers and their paces.
#[derive(Clone)]
pub struct TrunkControl {
    live: LiveTrunks,
    /// The breakers.
    pub breakers: Breakers,
    store: Store,
    rate_limits: Arc<Mutex<HashMap<String, Paced>>>,
}

/// The rate limit of a trunk, and the pace that it was made for.
type Paced = (f64, Arc<RateLimit>);

impl TrunkControl {
    /// `store` has the paces.
    pub fn new(live: LiveTrunks, breakers: Breakers, store: Store) -> Self {
        Self { live, breakers, store, rate_limits: Arc::default() }
    }

    /// The trunks that there are now.
    pub fn now(&self) -> Arc<Trunks> {
        self.live.borrow().clone()
    }

    /// The same, and when they change.
    pub fn live(&self) -> LiveTrunks {
        self.live.clone()
    }

    /// A trunk by its name.
    pub fn get(&self, name: &str) -> Option<Trunk> {
        self.live.borrow().get(name).cloned()
    }

    /// Why no call may be begun on a trunk now; `None` where one may.
    pub fn held(&self, name: &str, now: Timestamp) -> Option<Held> {
        if self.live.borrow().get(name).is_none() {
            return Some(Held { until: None, why: format!("trunk `{name}` is not configured (any more)") });
        }
        self.breakers.held(name, now)
    }

    /// Whether calls on a trunk have to wait for their turn.
    pub fn is_paced(&self, name: &str) -> bool {
        self.live.borrow().get(name).is_some_and(|trunk| trunk.calls_per_second.is_some())
    }

    /// Waits until so long before the next turn to begin a call on a trunk, and says when that is; `None` where its pace is not limited.
    ///
    /// # Errors
    /// [`NatsError`]: no turn could be reserved.
    pub async fn turn(&self, name: &str, lead: SignedDuration) -> Result<Option<Timestamp>, NatsError> {
        match self.rate_limit(name) {
            Some(rate_limit) => rate_limit.turn(lead).await.map(Some),
            None => Ok(None),
        }
    }

    fn rate_limit(&self, name: &str) -> Option<Arc<RateLimit>> {
        let pace = self.get(name)?.calls_per_second?;
        let mut rate_limits = self.rate_limits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, known)) = rate_limits.get(name)
            && *of == pace
        {
            return Some(known.clone());
        }
        let rate_limit = Arc::new(RateLimit::new(self.store.clone(), name, pace));
        rate_limits.insert(name.to_owned(), (pace, rate_limit.clone()));
        Some(rate_limit)
    }
}
