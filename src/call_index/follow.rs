//! Following the log: the last record of every call, then every new one, however often the connection, the consumer or the stream
//! itself is lost.

use std::convert::Infallible;
use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::Ordered;
use futures::StreamExt;
use jiff::Timestamp;

use super::progress::Progress;
use super::{Brief, CallIndex};
use crate::nats::NatsError;
use crate::retry::Retry;
use crate::status_log::StatusLog;

/// How often is looked whether the index keeps up.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long it may take to apply what the log held at a moment.
const KEEPS_UP_WITHIN: Duration = Duration::from_secs(5);

impl CallIndex {
    /// Follows the log and never returns. `on_change` is called for each record.
    pub async fn follow(self, log: StatusLog, on_change: impl Fn(&Brief)) {
        let mut retry = Retry::new("follow the status log");
        loop {
            let Err(error) = self.follow_once(&log, &on_change).await;
            self.note_break();
            tokio::time::sleep(retry.failed(error.chain())).await;
        }
    }

    async fn follow_once(&self, log: &StatusLog, on_change: &impl Fn(&Brief)) -> Result<Infallible, NatsError> {
        let made_at = log.head().await?.made_at;
        let messages = log.records(self.begin(made_at)).await?;
        tokio::select! {
            end = self.apply_all(messages, on_change) => end,
            end = self.look_after(log, made_at, on_change) => end,
        }
    }

    /// The index begins anew when the stream is another one, and goes on after what is applied otherwise.
    fn begin(&self, made_at: Timestamp) -> DeliverPolicy {
        let known = *self.progress.borrow();
        if known.made_at != Some(made_at) {
            if known.made_at.is_some() {
                tracing::warn!("the status log is a new one; the index of calls begins anew");
            }
            self.write().clear();
            self.progress.send_replace(Progress { made_at: Some(made_at), ..Progress::default() });
        }
        match self.progress.borrow().applied {
            0 => DeliverPolicy::LastPerSubject,
            applied => DeliverPolicy::ByStartSequence { start_sequence: applied + 1 },
        }
    }

    async fn apply_all(&self, mut messages: Ordered, on_change: &impl Fn(&Brief)) -> Result<Infallible, NatsError> {
        while let Some(message) = messages.next().await {
            let message = message.map_err(NatsError::of)?;
            if let Ok(info) = message.info() {
                self.apply_record(info.stream_sequence, &message.payload, on_change);
            }
        }
        Err(NatsError::unavailable("the stream of status events ended"))
    }

    fn apply_record(&self, sequence: u64, payload: &[u8], on_change: &impl Fn(&Brief)) {
        match serde_json::from_slice::<Brief>(payload) {
            Ok(brief) => {
                self.apply(&brief, sequence);
                on_change(&brief);
            }
            Err(error) => tracing::warn!(sequence, %error, "a record of the status log cannot be read; it is skipped"),
        }
        self.note_applied(sequence);
    }

    /// Ends when the index does not get what the log has: the consumer is lost, or the stream is another one.
    async fn look_after(
        &self,
        log: &StatusLog,
        made_at: Timestamp,
        on_change: &impl Fn(&Brief),
    ) -> Result<Infallible, NatsError> {
        loop {
            let applied = self.progress.borrow().applied;
            let head = log.head().await?;
            if head.made_at != made_at {
                return Err(NatsError::unavailable("the stream was made again"));
            }
            if self.reaches(log, head, KEEPS_UP_WITHIN).await? {
                tokio::time::sleep(LOOK_EVERY).await;
            } else if self.progress.borrow().applied == applied {
                self.apply_next(log, on_change).await?;
                return Err(NatsError::unavailable("the consumer delivers nothing"));
            }
        }
    }

    /// Reads the next record from the stream's leader. A record with headers that cannot be parsed ends the connection whenever it is
    /// delivered, so no consumer gets past it.
    async fn apply_next(&self, log: &StatusLog, on_change: &impl Fn(&Brief)) -> Result<(), NatsError> {
        let applied = self.progress.borrow().applied;
        if let Some(next) = log.next_after(applied).await? {
            self.apply_record(next.sequence, &next.payload, on_change);
        }
        Ok(())
    }
}
