//! Reading the log itself for what the index has no room for: slower the more calls there are, but complete.

use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::Ordered;
use futures::{Stream, StreamExt, TryStreamExt, stream};

use super::Brief;
use crate::call::CallName;
use crate::nats::NatsError;
use crate::status_log::StatusLog;

/// How long the server may take for the next record: the first one takes the longer the more calls there are.
const PATIENCE: Duration = Duration::from_secs(30);

/// The names of all calls that have not ended and are wanted, by what the log holds now.
///
/// # Errors
/// [`NatsError`] when the log cannot be read, each item too: the calls behind it are not told then.
pub async fn active_calls<'a>(
    log: &'a StatusLog,
    is_wanted: impl Fn(&Brief) -> bool + 'a,
) -> Result<impl Stream<Item = Result<CallName, NatsError>> + 'a, NatsError> {
    let head = log.head().await?.sequence;
    let messages = log.records(DeliverPolicy::LastPerSubject).await?;
    let scan = Scan { log, messages, head, read: 0, pending: 0 };
    let briefs = stream::try_unfold(scan, |mut scan| async { Ok(scan.next().await?.map(|brief| (brief, scan))) });
    Ok(briefs.try_filter_map(move |brief| {
        let name = brief.filter(|brief| !brief.is_final && is_wanted(brief)).map(|brief| brief.name);
        std::future::ready(Ok(name))
    }))
}

/// The records up to the head that the log had at the beginning.
struct Scan<'a> {
    log: &'a StatusLog,
    messages: Ordered,
    head: u64,
    read: u64,
    pending: u64,
}

impl Scan<'_> {
    /// The next record, `Some(None)` for one that cannot be decoded; `None` at the end.
    async fn next(&mut self) -> Result<Option<Option<Brief>>, NatsError> {
        if self.is_at_end().await? {
            return Ok(None);
        }
        let next = tokio::time::timeout(PATIENCE, self.messages.next()).await.ok().flatten();
        let message = next.ok_or_else(|| NatsError::unavailable("the status log is not delivered to its end"))?;
        let message = message.map_err(NatsError::of)?;
        if let Ok(info) = message.info() {
            (self.read, self.pending) = (info.stream_sequence, info.pending);
        }
        Ok(Some(serde_json::from_slice(&message.payload).ok()))
    }

    /// Nothing pending is the end only where the leader has no more either: the consumer may sit on a replica that lags.
    async fn is_at_end(&mut self) -> Result<bool, NatsError> {
        if self.read >= self.head || self.pending > 0 {
            return Ok(self.read >= self.head);
        }
        let next = self.log.next_after(self.read).await?;
        Ok(next.is_none_or(|next| next.sequence > self.head))
    }
}
