//! Which pod an attempt runs in. Apart from the record that names it, since whoever runs pods names them, too.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A pod of a Kubernetes cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct PodRef {
    /// Its name, as for `kubectl logs`. Another pod may have it later.
    pub name: String,
    /// Its UID, which no other pod ever has.
    pub uid: String,
}
