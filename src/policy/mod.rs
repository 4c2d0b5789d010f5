//! What may be dialled where and when: rules about calls that need more than the call itself, such as the trunks that there are and
//! how they have fared. Pure: no I/O, no clock, no runtime.

#![warn(missing_docs)]

pub mod alert;
pub mod breaker;
pub mod routes;

pub use self::alert::Alert;
pub use self::breaker::{Breaker, Changed, Held};
pub use self::routes::{DEFAULT_TRUNK, Trunk, TrunkGroup, Trunks, Unroutable, Wanted};
