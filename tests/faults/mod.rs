//! What fails: the operator itself, and everything that it depends on.

mod chaos;
mod crash;
mod outages;
mod replicas;
mod streams;
