//! Cancelling calls: what waits ends at once, what runs is asked to. The log decides every race with the call's own end.

use std::pin::pin;

use futures::{Stream, StreamExt, stream};

use super::{Api, Error, Parts};
use crate::call::{CallName, Change, Status, StatusEvent};
use crate::call_index::{self, Key};
use crate::clock::now;
use crate::nats::{NatsError, NatsErrorKind};
use crate::status_log::Recorded;

/// Calls of a batch that are cancelled at once.
const AT_ONCE: usize = 64;
/// Calls of a batch that are taken from the index at once.
const PAGE: usize = 1000;

/// What became of a batch's calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct BatchCancel {
    /// Ended `cancelled`, now or before.
    pub cancelled: usize,
    /// In progress: their Jobs are being stopped.
    pub cancelling: usize,
    /// Had ended otherwise.
    pub ended: usize,
    /// Not cancelled, since their records cannot be read. Such a call is not dialled either: its message becomes a dead letter.
    pub unreadable: usize,
}

impl BatchCancel {
    fn count(&mut self, cancelled: Result<Option<StatusEvent>, NatsError>) -> Result<(), NatsError> {
        match cancelled {
            Ok(Some(event)) if event.status == Status::Cancelled => self.cancelled += 1,
            Ok(Some(event)) if event.status == Status::Cancelling => self.cancelling += 1,
            Ok(Some(_)) => self.ended += 1,
            Ok(None) => {}
            Err(error) if error.kind() == NatsErrorKind::Corrupt => {
                tracing::warn!(error = error.chain(), "a call of a batch cannot be cancelled");
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

    /// Cancels every call of a batch that was published before this is asked.
    ///
    /// # Errors
    /// [`Error`], as for [`Self::cancel`]; some calls may be cancelled then, and asking again goes on with the others.
    /// [`Error::Behind`] when the index does not know every call of the log in time; nothing was cancelled then.
    pub async fn cancel_batch(&self, batch: &str) -> Result<BatchCancel, Error> {
        let parts = self.parts()?;
        parts.all_admitted().await?;
        // What is in the queue by now has its record, so it is cancelled below.
        let queued = parts.waiting.last_sequence().await?;
        parts.index.catch_up(&parts.log).await?;
        let mut sum = BatchCancel::default();
        if parts.index.has_dropped_active_calls() {
            parts.cancel_recorded(batch, &mut sum).await?;
        } else {
            parts.cancel_indexed(batch, &mut sum).await?;
        }
        parts.waiting.withdraw_batch(batch, queued).await?;
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

    async fn cancel_indexed(&self, batch: &str, sum: &mut BatchCancel) -> Result<(), NatsError> {
        let mut before = None;
        loop {
            let page = self.index.page(None, Some(batch), before, PAGE);
            let Some((last, _)) = page.last() else { return Ok(()) };
            before = Some(*last);
            let cancels = page.into_iter().map(|(key, sequence)| self.cancel_at(key, sequence));
            count_all(stream::iter(cancels), sum).await?;
        }
    }

    /// Reads the log instead of the index, which is too small to hold every call that can be cancelled.
    async fn cancel_recorded(&self, batch: &str, sum: &mut BatchCancel) -> Result<(), NatsError> {
        let names = call_index::active_calls_of(&self.log, batch).await?;
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

    /// `known` stands in where the leader knows nothing of the call: it cannot have a state that the log does not allow, since the
    /// append names the record that it follows.
    async fn cancel(&self, name: &CallName, mut known: Option<Recorded>) -> Result<Option<StatusEvent>, NatsError> {
        loop {
            let Some(last) = self.log.last(name).await?.or_else(|| known.take()) else { return Ok(None) };
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
    sum: &mut BatchCancel,
) -> Result<(), NatsError> {
    let mut cancels = pin!(cancels.buffer_unordered(AT_ONCE));
    while let Some(cancelled) = cancels.next().await {
        sum.count(cancelled)?;
    }
    Ok(())
}
