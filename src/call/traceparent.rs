//! The trace that a request belongs to (W3C Trace Context, <https://www.w3.org/TR/trace-context/#traceparent-header>), handed on
//! from the request to the call's events and to its caller. It says nothing about the call, so it is not in the fingerprint.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The header of HTTP requests and NATS messages that names the trace.
pub const HEADER_TRACEPARENT: &str = "traceparent";
/// Length of version 00.
const LENGTH: usize = 55;

/// A valid `traceparent`, of version 00.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct TraceParent(String);

impl TraceParent {
    /// Reads a header. `None` for one that is not valid, which the specification asks to ignore. Of a later version that part is
    /// taken that version 00 has, as it also asks.
    pub fn parse(text: &str) -> Option<Self> {
        let (known, rest) = text.split_at_checked(LENGTH)?;
        let fields: Vec<&str> = known.split('-').collect();
        let [version, trace_id, parent_id, flags] = fields[..] else { return None };
        let is_known_version = version != "ff" && if version == "00" { rest.is_empty() } else { is_end(rest) };
        let is_valid =
            is_known_version && is_hex(version, 2) && is_id(trace_id, 32) && is_id(parent_id, 16) && is_hex(flags, 2);
        is_valid.then(|| Self(format!("00-{trace_id}-{parent_id}-{flags}")))
    }

    /// As a header or variable has it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Later versions may append fields.
fn is_end(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('-')
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_id(text: &str, length: usize) -> bool {
    is_hex(text, length) && text.bytes().any(|byte| byte != b'0')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_valid_one_is_taken_as_it_is() {
        assert_eq!(TraceParent::parse(GOOD).map(|parsed| parsed.to_string()).as_deref(), Some(GOOD));
    }

    #[test]
    fn of_a_later_version_the_known_part_is_taken() {
        for later in [GOOD.replacen("00", "01", 1), GOOD.replacen("00", "cc", 1) + "-what-the-future-adds"] {
            assert_eq!(TraceParent::parse(&later).map(|parsed| parsed.to_string()).as_deref(), Some(GOOD), "{later}");
        }
    }

    #[test]
    fn an_invalid_one_is_ignored() {
        let table = [
            String::new(),
            "00".to_owned(),
            GOOD.to_uppercase(),
            format!("{GOOD}-00"),
            format!("{GOOD} "),
            GOOD.replacen("00", "ff", 1),
            GOOD.replacen("00", "0g", 1),
            GOOD.replacen("00", "01", 1) + "x",
            format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)),
            format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", "0".repeat(16)),
            GOOD.replace('-', "_"),
            GOOD.replacen('a', "ä", 1),
        ];
        for bad in table {
            assert_eq!(TraceParent::parse(&bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_judged_and_what_is_taken_is_valid(text in "[0-9a-f-]{0,60}|\\PC{0,60}") {
            if let Some(parsed) = TraceParent::parse(&text) {
                prop_assert_eq!(TraceParent::parse(parsed.as_str()), Some(parsed.clone()));
            }
        }
    }
}
