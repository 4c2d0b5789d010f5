//! How a batch is: what has become of its calls, and about when the last of them is dialled.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::outlook::after;
use super::{Api, Error, Parts};
use crate::call::{Heard, Status};
use crate::clock::now;
use crate::queue::waiting::Kind;

/// How a batch is. Its numbers are of one moment and add up: `total` is the sum of `counts`.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema)]
pub struct BatchState {
    /// Its name.
    pub batch: String,
    /// Calls that are remembered of it.
    pub total: u64,
    /// How many of them are in each state; those that none is in are left out.
    pub counts: BTreeMap<Status, u64>,
    /// How many of those that were answered heard how much; those of which it is not known are in none.
    pub heard: BTreeMap<Heard, u64>,
    /// How many wait to be dialled.
    pub waiting: u64,
    /// About when the last of those that wait now is dialled, by how many were on its trunks in the last minutes; null while it is held,
    /// where none was, and where none waits.
    pub expected_end: Option<Timestamp>,
    /// Why none of its calls is dialled now; null where nothing holds them.
    pub held: Option<String>,
}

impl Api {
    /// How a batch is; `None` when no call of it is known. One that was just published may lie in the inbox, so that is waited for.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Behind`] while the index is not complete.
    pub async fn batch(&self, batch: &str) -> Result<Option<BatchState>, Error> {
        let parts = self.parts()?;
        parts.all_admitted(super::accept::ADMITTED_WITHIN).await?;
        parts.index.catch_up(&parts.log).await?;
        let Some(counts) = parts.index.counts_of_batch(batch) else { return Ok(None) };
        let counts: BTreeMap<Status, u64> = counts.into_iter().map(|(status, count)| (status, count as u64)).collect();
        let heard = parts.index.heard_of_batch(batch);
        let heard = heard.into_iter().map(|(heard, count)| (heard, count as u64)).collect();
        let waiting = counts.get(&Status::Queued).copied().unwrap_or(0);
        let (expected_end, held) = parts.end_of(batch).await?;
        let (batch, total) = (batch.to_owned(), counts.values().sum());
        Ok(Some(BatchState { batch, total, counts, heard, waiting, expected_end, held }))
    }
}

impl Parts {
    /// When the last call of a batch is dialled, or why none is. With batches in turn that is as if all others of its groups went before, or as
    /// many as it has itself of each, whichever is less.
    async fn end_of(&self, batch: &str) -> Result<(Option<Timestamp>, Option<String>), Error> {
        if let Some(why) = self.pause.holds(Some(batch), now()) {
            return Ok((None, Some(why)));
        }
        let (mut end, mut held, mut goes_on) = (None, None, false);
        for group in self.trunks.now().groups() {
            let kind = Kind { trunks: Some(&group), ..Kind::ANY };
            let own = self.waiting.count(Kind { batch: Some(Some(batch)), ..kind }).await?;
            if own == 0 {
                continue;
            }
            match self.trunk_of(&group) {
                Err(why) => held = Some(why),
                Ok(trunk) => {
                    let all = self.waiting.count(kind).await?;
                    let others = self.index.batches_waiting().saturating_sub(1) as u64;
                    let before = all.min(own.saturating_mul(others + 1));
                    goes_on = true;
                    end = end.max(self.index.rate_on(&trunk).and_then(|rate| after(before, rate)));
                }
            }
        }
        Ok((end, held.filter(|_| !goes_on)))
    }
}
