//! What fails: the operator itself, and everything that it depends on.

mod chaos;
mod crash;
mod flood;
mod outages;
mod power_loss;
