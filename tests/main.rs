//! All integration tests, in one binary: one link, and one control plane for all of them.
//!
//! | module | what it tests |
//! |---|---|
//! | `behaviour` | what the operator does for those who use it, one file per behaviour |
//! | `runners` | how a call is run: by Kubernetes, as a local process, and from which manifest |
//! | `faults` | crashes, outages, and all of them at random (`chaos`) |
//! | `model` | every order of the diallers' steps, on a real status log |
//! | `deployment` | the manifests in `deploy/` |
//! | `memory` | how much memory the operator takes |
//! | `guarantees` | that the tests named in `docs/guarantees.md` exist |
//! | `support` | the servers, the fixture and the helpers that all of them use |

#![allow(dead_code, unused_imports, unreachable_pub, missing_docs, clippy::unwrap_used)]

mod support;

mod architecture;
mod behaviour;
mod deployment;
mod faults;
mod guarantees;
mod memory;
mod model;
mod runners;
