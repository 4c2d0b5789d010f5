//! When trunks have changed: calls that wait for a group that no route has any more wait for the trunks that may dial them now.

use jiff::Timestamp;

use super::Feed;
use crate::call::validate;
use crate::clock::now;
use crate::nats::NatsError;
use crate::nats::get::Head;
use crate::policy::{TrunkGroup, Trunks, Wanted};
use crate::queue::waiting::Kind;

/// Messages that are looked at in one go.
const AT_ONCE: usize = 256;

impl Feed {
    /// Looks at every call of every group that the trunks do not know. Those that no trunk can dial stay where they are.
    pub(super) async fn regroup(&self) -> Result<(), NatsError> {
        let trunks = self.trunks.now();
        let known = trunks.groups();
        for group in self.waiting.groups().await?.difference(&known) {
            let (mut first, mut moved) = (1, 0_usize);
            loop {
                let kind = Kind { trunks: Some(group), ..Kind::ANY };
                let heads = self.waiting.oldest_from(first, kind, AT_ONCE).await?;
                let Some(last) = heads.last() else { break };
                first = last.sequence + 1;
                for head in heads {
                    let other = group_of(&trunks, &head, now());
                    if other.as_ref().is_some_and(|other| known.contains(other)) {
                        self.waiting.regroup(head, &other.expect("it was looked at")).await?;
                        moved += 1;
                    }
                }
            }
            tracing::info!(%group, moved, "calls that waited for trunks that are not there any more were looked at");
        }
        Ok(())
    }
}

/// The group that a message waits in by the trunks that there are; `None` for one that cannot be read, which the dialler makes a dead
/// letter.
fn group_of(trunks: &Trunks, head: &Head, now: Timestamp) -> Option<TrunkGroup> {
    // It was valid when it was admitted, whatever moments in it have passed since.
    let spec = validate::parse(&head.payload, now).ok()?.spec;
    Some(trunks.group(&Wanted::of(&spec, None)))
}
