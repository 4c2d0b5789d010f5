//! Cancelling calls: what waits ends at once, what runs is asked to. The log decides every race with the call's own end.

use std::pin::pin;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};

use super::{Api, Error, Parts};
use crate::call::{CallName, Change, Status, StatusEvent};
use crate::call_index::{self, Brief, Key};
use crate::clock::now;
use crate::nats::{NatsError, NatsErrorKind};
use crate::status_log::Recorded;

/// Calls that are cancelled at once.
const AT_ONCE: usize = 256;
/// Calls that are taken from the index at once.
const PAGE: usize = 5000;
/// How long is waited until what was published before is admitted: as long as a client may be expected to wait for an answer.
const ADMITTED_WITHIN: Duration = Duration::from_secs(10);

/// Which calls are to be cancelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Those of a batch.
    Batch(String),
    /// Those that are in progress on a trunk, or wait and would rather be dialled on it than on another.
    Trunk(String),
}

/// What became of the calls that were to be cancelled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Cancelled {
    /// Ended `cancelled`, now or before.
    pub cancelled: usize,
    /// In progress: their Jobs are being stopped.
    pub cancelling: usize,
    /// Had ended otherwise.
    pub ended: usize,
    /// Not cancelled, since their records cannot be read. Such a call is not dialled either: its message becomes a dead letter.
    pub unreadable: usize,
}

impl Cancelled {
    fn count(&mut self, cancelled: Result<Option<StatusEvent>, NatsError>) -> Result<(), NatsError> {
        match cancelled {
            Ok(Some(event)) if event.status == Status::Cancelled => self.cancelled += 1,
            Ok(Some(event)) if event.status == Status::Cancelling => self.cancelling += 1,
            Ok(Some(_)) => self.ended += 1,
            Ok(None) => {}
            Err(error) if error.kind() == NatsErrorKind::Corrupt => {
                tracing::warn!(error = error.chain(), "a call cannot be cancelled");
                self.unreadable += 1;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl Api {
    /// Cancels a call, by the name of any of its Jobs or by its id, and returns its state from then on. Idempotent; a call that has
    /// ended stays as it ended. `None` when there is no such call.
    ///
    /// # Errors
    /// [`Error`] when the log cannot be read or written; the cancel may have been recorded all the same.
    pub async fn cancel(&self, name_or_id: &str) -> Result<Option<StatusEvent>, Error> {
        match self.find(name_or_id).await? {
            Some(event) => Ok(self.parts()?.cancel_one(&event.name).await?),
            None => Ok(None),
        }
    }

    /// Cancels every call of a batch, or of a trunk, that was published before this is asked.
    ///
    /// # Errors
    /// [`Error`], as for [`Self::cancel`]; some calls may be cancelled then, and asking again goes on with the others.
    /// [`Error::Behind`] when the index does not know every call of the log in time; nothing was cancelled then.
    pub async fn cancel_all(&self, scope: &Scope) -> Result<Cancelled, Error> {
        let parts = self.parts()?;
        parts.all_admitted(ADMITTED_WITHIN).await?;
        // What is in the queue by now has its record, so it is cancelled below.
        let queued = parts.waiting.last_sequence().await?;
        parts.index.catch_up(&parts.log).await?;
        let mut sum = Cancelled::default();
        if parts.index.has_dropped_active_calls() {
            parts.cancel_recorded(scope, &mut sum).await?;
        } else {
            parts.cancel_indexed(scope, &mut sum).await?;
        }
        match scope {
            Scope::Batch(batch) => parts.waiting.withdraw_batch(batch, queued).await?,
            Scope::Trunk(trunk) => {
                let groups = parts.trunks.now().groups();
                for group in groups.iter().filter(|group| group.names().next() == Some(trunk)) {
                    parts.waiting.withdraw_group(group, queued).await?;
                }
            }
        }
        Ok(sum)
    }
}

impl Parts {
    async fn cancel_one(&self, name: &CallName) -> Result<Option<StatusEvent>, NatsError> {
        let Some(event) = self.cancel(name, None).await? else { return Ok(None) };
        if event.status == Status::Cancelled {
            note_failure(&event, self.waiting.withdraw(&event).await);
            note_failure(&event, self.timers.remove_expiry(&event.name).await);
        }
        Ok(Some(event))
    }

    async fn cancel_indexed(&self, scope: &Scope, sum: &mut Cancelled) -> Result<(), NatsError> {
        let mut before = None;
        loop {
            let page = match scope {
                Scope::Batch(batch) => self.index.page(None, Some(batch), before, PAGE),
                Scope::Trunk(trunk) => self.index.page_of_trunk(trunk, before, PAGE),
            };
            let Some((last, _)) = page.last() else { return Ok(()) };
            before = Some(*last);
            let cancels = page.into_iter().map(|(key, sequence)| self.cancel_at(key, sequence));
            count_all(stream::iter(cancels), sum).await?;
        }
    }

    /// Reads the log instead of the index, which is too small to hold every call that can be cancelled.
    async fn cancel_recorded(&self, scope: &Scope, sum: &mut Cancelled) -> Result<(), NatsError> {
        let is_meant = |brief: &Brief| match scope {
            Scope::Batch(batch) => brief.batch.as_ref() == Some(batch),
            Scope::Trunk(trunk) => brief.is_for(trunk),
        };
        let names = call_index::active_calls(&self.log, is_meant).await?;
        let cancels = names.map(|name| async { self.cancel(&name?, None).await });
        count_all(cancels, sum).await
    }

    /// Cancels the call that has that record. The record says whose it is; what the call's state is, the stream's leader says.
    async fn cancel_at(&self, key: Key, sequence: u64) -> Result<Option<StatusEvent>, NatsError> {
        match self.log.at(sequence).await? {
            Some(record) => {
                let known = Recorded { event: record.event, sequence };
                self.cancel(&known.event.name.clone(), Some(known)).await
            }
            None => {
                self.index.forget(key, sequence);
                Ok(None)
            }
        }
    }

    /// `known` is a record of the call, perhaps not its last one: it cannot lead to a state that the log does not allow, since the append
    /// names the record that it follows. It also stands in where the leader knows nothing of the call.
    async fn cancel(&self, name: &CallName, known: Option<Recorded>) -> Result<Option<StatusEvent>, NatsError> {
        let mut next = known.clone();
        loop {
            let read = match next.take() {
                Some(known) => Some(known),
                None => self.log.last(name).await?,
            };
            let Some(last) = read.or_else(|| known.clone()) else { return Ok(None) };
            let Some(change) = last.event.cancel() else { return Ok(Some(last.event)) };
            match self.record(&last, change).await {
                Ok(event) => {
                    if last.event.status == Status::Scheduled {
                        note_failure(&event, self.timers.remove(&event.name, event.attempt + 1).await);
                    }
                    return Ok(Some(event));
                }
                Err(error) if error.kind() == NatsErrorKind::Stale => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn record(&self, last: &Recorded, change: Change) -> Result<StatusEvent, NatsError> {
        let event = last.event.next(change, now()).expect("a cancel is legal in every state that is not final");
        Ok(self.log.append(event, last.sequence).await?.event)
    }
}

/// What is left of the wait of a call that has ended does no harm; without it, nobody has to look at it.
fn note_failure(event: &StatusEvent, withdrawn: Result<(), NatsError>) {
    if let Err(error) = withdrawn {
        tracing::debug!(error = error.chain(), call_id = %event.id, "the message of a cancelled call stays, and will do nothing");
    }
}

async fn count_all(
    cancels: impl Stream<Item = impl Future<Output = Result<Option<StatusEvent>, NatsError>>>,
    sum: &mut Cancelled,
) -> Result<(), NatsError> {
    let mut cancels = pin!(cancels.buffer_unordered(AT_ONCE));
    while let Some(cancelled) = cancels.next().await {
        sum.count(cancelled)?;
    }
    Ok(())
}
