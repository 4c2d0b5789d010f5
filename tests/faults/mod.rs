//! What fails: the operator itself, and everything that it depends on.

mod chaos;
mod crash;
mod flood;
mod lost;
mod outages;
mod power_loss;
mod replicas;
mod streams;
mod trunks;
