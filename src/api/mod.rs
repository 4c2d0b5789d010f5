//! What the outside may ask for (accept a call, find one, page through them, cancel, readiness), in the core's own terms: HTTP
//! knows this and nothing of NATS.

mod accept;
mod batch;
mod cancel;
mod error;
mod outlook;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

pub use accept::Accepted;
use async_nats::Client;
use async_nats::connection::State;
pub use batch::BatchState;
pub use cancel::{Cancelled, Scope};
pub use error::Error;
use futures::{StreamExt, stream};
pub use outlook::Outlook;
use tokio::sync::Semaphore;

use crate::call::{CallId, CallName, Status, StatusEvent};
use crate::call_index::{CallIndex, Key};
use crate::nats::{NatsError, NatsErrorKind};
pub use crate::policy::breaker::BreakerState;
use crate::queue::control::Pause;
use crate::queue::scheduled::Timers;
use crate::queue::state::Overview;
pub use crate::queue::state::{QueueState, TrunkState};
use crate::queue::{Inbox, TrunkControl, Waiting};
use crate::status_log::StatusLog;

/// Records read from the log at once for one page.
const READS_AT_ONCE: usize = 64;
/// About as many bytes of records are on a page, whatever its limit: what is over after the last one goes on the next page.
const PAGE_BYTES: usize = 4 << 20;
/// Pages in the making at once; more wait. Together with [`PAGE_BYTES`] this bounds the memory that they take.
const PAGES_AT_ONCE: usize = 4;

/// Accepts calls and answers what is asked about them. Made before NATS answers; until [`Api::open`] it says that it is not ready.
#[derive(Clone, Default)]
pub struct Api {
    parts: Arc<OnceLock<Parts>>,
    runner_listed: Arc<AtomicBool>,
    overview: Arc<Mutex<Option<Overview>>>,
    nats_remark: Arc<Mutex<Option<String>>>,
    pages: PageTurns,
}

/// Turns for making a page.
#[derive(Clone)]
struct PageTurns(Arc<Semaphore>);

impl Default for PageTurns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(PAGES_AT_ONCE)))
    }
}

/// What the API works with.
pub struct Parts {
    /// For how NATS is.
    pub client: Client,
    /// The status log.
    pub log: StatusLog,
    /// For requests.
    pub inbox: Inbox,
    /// For calls that wait to be dialled.
    pub waiting: Waiting,
    /// For requests that wait for their moment.
    pub timers: Timers,
    /// Which calls there are.
    pub index: CallIndex,
    /// Which trunks may dial a call.
    pub trunks: TrunkControl,
    /// Which calls are held back.
    pub pause: Pause,
    /// Namespace of the Jobs.
    pub namespace: String,
}

/// Which calls to list.
#[derive(Debug, Clone, Default)]
pub struct PageQuery {
    /// Only these states.
    pub status: Option<Status>,
    /// Only this batch.
    pub batch: Option<String>,
    /// At most that many, 1 to 1000.
    pub limit: usize,
    /// Where the page before ended, as [`Page::next`] gave it.
    pub cursor: Option<String>,
}

/// One page of calls, newest first.
#[derive(Debug, Clone)]
pub struct Page {
    /// The calls.
    pub calls: Vec<StatusEvent>,
    /// Cursor of the next page, when there is one.
    pub next: Option<String>,
}

/// One thing that the operator needs, and whether it has it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Readiness {
    /// `nats`, `runner` or `index`.
    pub name: &'static str,
    /// Whether it is ready.
    pub ready: bool,
    /// More for people; never a secret.
    pub detail: String,
}

impl Api {
    /// Begins to work.
    pub fn open(&self, parts: Parts) {
        if self.parts.set(parts).is_err() {
            tracing::error!("the API is opened once");
        }
    }

    /// Notes that the runner has shown what it has.
    pub fn set_runner_listed(&self) {
        self.runner_listed.store(true, Ordering::Relaxed);
    }

    /// Notes how the queue and the trunks are.
    pub fn set_overview(&self, overview: Option<Overview>) {
        *self.overview.lock().unwrap_or_else(PoisonError::into_inner) = overview;
    }

    /// Notes what there is to say of NATS beside whether it is connected.
    pub fn set_nats_remark(&self, remark: Option<String>) {
        *self.nats_remark.lock().unwrap_or_else(PoisonError::into_inner) = remark;
    }

    /// How the queue was when it was looked at last; `None` while NATS does not say.
    pub fn queue_state(&self) -> Option<QueueState> {
        self.overview.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|overview| overview.queue.clone())
    }

    /// How the trunks were then.
    pub fn trunks(&self) -> Option<Vec<TrunkState>> {
        self.overview.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|overview| overview.trunks.clone())
    }

    /// How many calls are in progress on a trunk, as the index knows.
    pub fn active_on(&self, trunk: &str) -> u64 {
        self.parts.get().map_or(0, |parts| parts.index.active_on(trunk) as u64)
    }

    /// How many calls are in progress; `None` while the index is not complete.
    pub fn in_progress(&self) -> Option<u64> {
        let index = self.parts.get().map(|parts| &parts.index).filter(|index| index.check().is_ok())?;
        let active = Status::ALL.into_iter().filter(|status| status.is_active());
        Some(active.map(|status| index.count_of(status) as u64).sum())
    }

    /// How many of the remembered calls are in a state.
    pub fn count_of(&self, status: Status) -> usize {
        self.parts.get().map_or(0, |parts| parts.index.count_of(status))
    }

    /// The present state of a call, by the name of any of its Jobs or by its id. One that is not known may lie in the inbox, so it is
    /// waited for.
    ///
    /// # Errors
    /// [`Error::Unavailable`] or [`Error::Unreadable`] when the log cannot be read, [`Error::NotAdmitted`] when the inbox holds requests
    /// for too long.
    pub async fn find(&self, name_or_id: &str) -> Result<Option<StatusEvent>, Error> {
        let parts = self.parts()?;
        if let Some(event) = parts.find(name_or_id).await? {
            return Ok(Some(event));
        }
        if CallId::parse(name_or_id).is_err() {
            return Ok(None);
        }
        parts.all_admitted(accept::ADMITTED_WITHIN).await?;
        parts.find(name_or_id).await
    }

    /// Calls, newest first.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Behind`] while the index is not complete.
    pub async fn page(&self, query: &PageQuery) -> Result<Page, Error> {
        let parts = self.parts()?;
        parts.index.check()?;
        let before = match &query.cursor {
            Some(text) => Some(Key::from_cursor(text).ok_or_else(|| Error::BadCursor(text.clone()))?),
            None => None,
        };
        let _turn = self.pages.0.acquire().await.expect("nobody closes it");
        let found = parts.index.page(query.status, query.batch.as_deref(), before, query.limit + 1);
        let (calls, last) = parts.records(&found[..found.len().min(query.limit)]).await?;
        let next = last.filter(|last| found.last().is_some_and(|(end, _)| end != last)).map(Key::to_cursor);
        Ok(Page { calls, next })
    }

    /// Everything that must be ready before the operator is.
    pub fn readiness(&self) -> Vec<Readiness> {
        let parts = self.parts.get();
        let nats = parts.is_some_and(|parts| parts.client.connection_state() == State::Connected);
        let remark = self.nats_remark.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let with_remark =
            |detail: &str| [Some(detail.to_owned()), remark.clone()].into_iter().flatten().collect::<Vec<_>>();
        let runner = self.runner_listed.load(Ordering::Relaxed);
        let index = parts.map(|parts| parts.index.check().map_err(|behind| behind.to_string()));
        let index = index.unwrap_or_else(|| Err("the index of calls waits for NATS".to_owned()));
        let check = |name, ready, yes: &str, no: &str| Readiness {
            name,
            ready,
            detail: if ready { yes } else { no }.to_owned(),
        };
        vec![
            check("nats", nats, &with_remark("connected").join("; "), &with_remark("not connected").join("; ")),
            check("runner", runner, "its Jobs are known", "has not shown its Jobs yet"),
            check("index", index.is_ok(), "follows the status log", index.as_ref().err().map_or("", String::as_str)),
        ]
    }

    /// What is needed to answer, while NATS is there to be asked: otherwise a request would wait for it.
    fn parts(&self) -> Result<&Parts, NatsError> {
        let parts = self.parts.get().ok_or_else(|| NatsError::unavailable("not connected yet"))?;
        match parts.client.connection_state() {
            State::Connected => Ok(parts),
            _ => Err(NatsError::unavailable("the connection is lost")),
        }
    }
}

/// Whether the call had an attempt with that Job name.
fn had_attempt(event: &StatusEvent, job: &str) -> bool {
    (1..=event.attempt).any(|attempt| event.name.job(attempt) == job)
}

impl Parts {
    async fn find(&self, name_or_id: &str) -> Result<Option<StatusEvent>, Error> {
        if let Some(name) = CallName::of_job(name_or_id)
            && let Some(last) = self.log.last(&name).await?
            && (name_or_id == name.as_str() || had_attempt(&last.event, name_or_id))
        {
            return Ok(Some(last.event));
        }
        let Ok(id) = CallId::parse(name_or_id) else { return Ok(None) };
        Ok(self.log.last(&id.name()).await?.map(|last| last.event))
    }

    /// Reads records until there are [`PAGE_BYTES`] of them, and says which was the last one looked at. What has expired meanwhile, or
    /// cannot be decoded, is left out.
    async fn records(&self, found: &[(Key, u64)]) -> Result<(Vec<StatusEvent>, Option<Key>), Error> {
        let reads = found.iter().map(|(key, sequence)| async move { (*key, *sequence, self.log.at(*sequence).await) });
        let mut reads = stream::iter(reads.collect::<Vec<_>>()).buffered(READS_AT_ONCE);
        let (mut events, mut bytes, mut last) = (Vec::new(), 0, None);
        while bytes < PAGE_BYTES
            && let Some((key, sequence, record)) = reads.next().await
        {
            last = Some(key);
            match record {
                Ok(Some(record)) => {
                    bytes += record.bytes;
                    events.push(record.event);
                }
                Ok(None) => self.index.forget(key, sequence),
                Err(error) if error.kind() == NatsErrorKind::Corrupt => {
                    tracing::warn!(error = error.chain(), "a call is left out of a list");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok((events, last))
    }
}
