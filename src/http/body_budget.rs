//! The memory that the bodies of all requests may use together. Without a common limit every connection could buffer a
//! body of the maximum size, and together they would exceed what the process may use.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What every body may use without a share of the budget. Nearly all requests are smaller, so they never wait for
/// somebody else's large body.
pub(super) const FREE_BYTES: usize = 16 * 1024;

/// A number of bytes that all bodies share. Clones share it too.
#[derive(Debug, Clone)]
pub struct BodyBudget {
    left: Arc<Semaphore>,
    total: usize,
}

/// A part of the budget, returned when it is dropped.
#[derive(Debug)]
pub(super) struct Share(#[allow(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// A body with its share, which is returned when the last clone of the bytes is dropped.
struct Counted {
    bytes: Bytes,
    _share: Share,
}

impl BodyBudget {
    /// A budget of that many bytes, beside the first 16 KiB of each body.
    pub fn of_bytes(total: usize) -> Self {
        Self { left: Arc::new(Semaphore::new(total)), total }
    }

    /// Waits until so many bytes are free; a request for more than the whole budget waits for all of it.
    pub(super) async fn share(&self, bytes: usize) -> Share {
        let bytes = u32::try_from(bytes.min(self.total)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.left).acquire_many_owned(bytes).await;
        Share(permit.expect("the semaphore is never closed"))
    }
}

impl Share {
    /// Ties the share to the bytes that it was taken for.
    pub(super) fn held_by(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Counted { bytes, _share: self })
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_share_comes_back_with_the_last_clone_of_its_bytes() {
        let budget = BodyBudget::of_bytes(100);
        let bytes = budget.share(70).await.held_by(Bytes::from_static(b"hello"));
        let clone = bytes.clone();
        drop(bytes);
        assert_eq!((budget.left.available_permits(), &clone[..]), (30, &b"hello"[..]));
        drop(clone);
        assert_eq!(budget.left.available_permits(), 100);
    }

    #[tokio::test]
    async fn more_than_the_whole_budget_waits_for_all_of_it_only() {
        let budget = BodyBudget::of_bytes(100);
        let share = budget.share(1000).await;
        assert_eq!(budget.left.available_permits(), 0);
        drop(share);
    }
}
