//! Cancelling calls: what waits ends at once, what runs is asked to. The log decides every race with the call's own end.

use futures::{StreamExt, stream};

use super::{Api, Error, Parts};
use crate::{
    call::{CallName, Change, Status, StatusEvent},
    call_index::Key,
    clock::now,
    nats::{NatsError, NatsErrorKind},
    status_log::Recorded,
};

/// Calls of a batch that are cancelled at once.
const AT_ONCE: usize = 64;
/// Calls of a batch that are looked up at once.
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
}

impl Api {
    /// Cancels a call, by the name of any of its Jobs or by its id, and tells its state from then on. Idempotent; a call that has
    /// ended stays as it ended. `None` when there is no such call.
    ///
    /// # Errors
    /// [`Error`] when the log cannot be read or written; the cancel may have been recorded all the same.
    pub async fn cancel(&self, name_or_id: &str) -> Result<Option<StatusEvent>, Error> {
        match self.find(name_or_id).await? {
            Some(event) => self.parts()?.cancel(&event.name).await,
            None => Ok(None),
        }
    }

    /// Cancels every call of a batch that is known when this is asked.
    ///
    /// # Errors
    /// [`Error`], as for [`Self::cancel`]; some calls may be cancelled then, and asking again goes on with the others.
    pub async fn cancel_batch(&self, batch: &str) -> Result<BatchCancel, Error> {
        let parts = self.parts()?;
        let (mut sum, mut before) = (BatchCancel::default(), None);
        loop {
            let page = parts.index.page(None, Some(batch), before, PAGE);
            let Some((last, _)) = page.last() else { return Ok(sum) };
            before = Some(*last);
            parts.cancel_all(page, &mut sum).await?;
        }
    }
}

impl Parts {
    async fn cancel_all(&self, page: Vec<(Key, u64)>, sum: &mut BatchCancel) -> Result<(), Error> {
        let cancels = page.into_iter().map(|(_, sequence)| async move {
            match self.log.at(sequence).await? {
                Some(recorded) => self.cancel(&recorded.event.name).await,
                None => Ok(None),
            }
        });
        let mut cancels = stream::iter(cancels.collect::<Vec<_>>()).buffer_unordered(AT_ONCE);
        while let Some(event) = cancels.next().await {
            match event?.map(|event| event.status) {
                Some(Status::Cancelled) => sum.cancelled += 1,
                Some(Status::Cancelling) => sum.cancelling += 1,
                Some(_) => sum.ended += 1,
                None => {}
            }
        }
        Ok(())
    }

    async fn cancel(&self, name: &CallName) -> Result<Option<StatusEvent>, Error> {
        loop {
            let Some(last) = self.log.last(name).await? else { return Ok(None) };
            let Some(change) = last.event.cancel() else { return Ok(Some(last.event)) };
            match self.record(&last, change).await {
                Ok(event) => {
                    self.drop_timer(&last.event).await;
                    return Ok(Some(event));
                }
                Err(error) if error.kind() == NatsErrorKind::Stale => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn record(&self, last: &Recorded, change: Change) -> Result<StatusEvent, NatsError> {
        let event = last.event.next(change, now()).expect("a cancel is legal in every state that is not final");
        Ok(self.log.append(event, last.sequence).await?.event)
    }

    /// A timer that fires for a call that has ended does no harm; without it, it need not.
    async fn drop_timer(&self, event: &StatusEvent) {
        if event.status == Status::Scheduled
            && let Err(error) = self.timers.remove(&event.name, event.attempt + 1).await
        {
            tracing::debug!(error = error.chain(), call_id = %event.id, "the timer of a cancelled call stays, and will do nothing");
        }
    }
}
