//! Where calls run: the Kubernetes runner, the local runner, and the manifests that both are given.

pub(crate) mod kubernetes;
mod local;
pub(crate) mod manifests;
mod simulated_caller;
