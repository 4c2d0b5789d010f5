//! What a call may be dialled again after: what became of an attempt, or how little was heard of one that was answered.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{Heard, Outcome};

/// A reason to dial again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub enum RedialOn {
    /// An attempt ended so.
    Outcome(Outcome),
    /// It was answered, and only so much was heard.
    Heard(Heard),
}

impl RedialOn {
    /// Every reason that there may be for a call. Whoever heard all is not dialled again.
    pub fn all() -> impl Iterator<Item = Self> {
        let heard = [Heard::None, Heard::Part].map(Self::Heard);
        Outcome::ALL.map(Self::Outcome).into_iter().chain(heard)
    }

    /// Whether a request may name it.
    pub fn may_be_named(self) -> bool {
        match self {
            Self::Outcome(outcome) => outcome.may_redial(),
            Self::Heard(heard) => heard != Heard::Full,
        }
    }

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outcome(outcome) => outcome.as_str(),
            Self::Heard(Heard::Full) => "heard:full",
            Self::Heard(Heard::Part) => "heard:part",
            Self::Heard(Heard::None) => "heard:none",
        }
    }
}

impl From<Outcome> for RedialOn {
    fn from(outcome: Outcome) -> Self {
        Self::Outcome(outcome)
    }
}

impl From<Heard> for RedialOn {
    fn from(heard: Heard) -> Self {
        Self::Heard(heard)
    }
}

impl From<RedialOn> for &'static str {
    fn from(reason: RedialOn) -> Self {
        reason.as_str()
    }
}

impl TryFrom<String> for RedialOn {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::all().find(|reason| reason.as_str() == text).ok_or_else(|| {
            let accepted: Vec<_> = Self::all().map(Self::as_str).collect();
            format!("`{text}` is not a valid redial reason; pass one of {}", accepted.join(", "))
        })
    }
}

impl JsonSchema for RedialOn {
    fn schema_name() -> Cow<'static, str> {
        "RedialOn".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<_> = Self::all().map(Self::as_str).collect();
        json_schema!({
            "type": "string",
            "description": "What became of an attempt, or how little was heard of one that was answered.",
            "enum": names,
        })
    }
}
