//! How urgent a call is beside others that wait.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What waits with a higher priority is dialled first, whenever it came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Before all others.
    Urgent,
    /// As most calls.
    #[default]
    Normal,
    /// When nothing else waits.
    Bulk,
}

impl Priority {
    /// All, the highest first.
    pub const ALL: [Self; 3] = [Self::Urgent, Self::Normal, Self::Bulk];
    /// All, as a request writes them.
    pub const WORDS: [&'static str; 3] = ["urgent", "normal", "bulk"];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        Self::WORDS[self as usize]
    }

    /// By its name on the wire.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|priority| priority.as_str() == text)
    }

    /// Whether it is the default, which is left out on the wire.
    #[allow(clippy::trivially_copy_pass_by_ref)] // serde asks for a reference
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_on_the_wire_leads_back_and_the_order_is_that_of_dialling() {
        for priority in Priority::ALL {
            assert_eq!(Priority::parse(priority.as_str()), Some(priority));
            assert_eq!(serde_json::to_value(priority).expect("a word"), priority.as_str());
        }
        assert!(Priority::ALL.is_sorted());
        assert_eq!(Priority::parse("Urgent"), None);
    }
}
