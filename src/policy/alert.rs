//! What is told on `sip.alert`: what a person should know of at once, and no single call says.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::breaker::{Breaker, Changed, Fault};

/// That the breaker of a trunk has changed. Times are RFC 3339 in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Alert {
    /// The trunk.
    pub trunk: String,
    /// What has changed: `opened`, nothing is dialled on the trunk; `probing`, one call is, to find out whether it works; `closed`,
    /// everything is dialled again.
    pub change: Changed,
    /// When.
    pub time: Timestamp,
    /// Why.
    pub reason: String,
    /// Who did it by hand; absent: it changed by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When the next call may probe the trunk; only in `opened`, and absent there where a person has to close the breaker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The last faults, the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
}

impl Alert {
    /// Of a breaker that has changed just now.
    pub fn of(trunk: &str, changed: Changed, breaker: &Breaker) -> Self {
        Self {
            trunk: trunk.to_owned(),
            change: changed,
            time: breaker.since().unwrap_or_default(),
            reason: breaker.reason().unwrap_or_default().to_owned(),
            by: breaker.by().map(str::to_owned),
            until: breaker.until(),
            faults: breaker.faults().to_vec(),
        }
    }

    /// The headers of the message: the attributes of a CloudEvent 1.0 in binary mode. The id is the same for every publish of one change.
    pub fn headers(&self) -> [(&'static str, String); 7] {
        let change = match self.change {
            Changed::Opened => "opened",
            Changed::Probing => "probing",
            Changed::Closed => "closed",
        };
        [
            ("ce-specversion", "1.0".to_owned()),
            ("ce-id", format!("{}/{}", self.trunk, self.time)),
            ("ce-source", "/sipstuff-operator".to_owned()),
            ("ce-type", format!("sipstuff.trunk.{change}")),
            ("ce-subject", self.trunk.clone()),
            ("ce-time", self.time.to_string()),
            ("content-type", "application/json".to_owned()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_says_what_has_changed_and_why_as_a_cloud_event() {
        let mut breaker = Breaker::default();
        let changed = breaker.open(Some("anna".to_owned()), "the provider moves".to_owned(), Timestamp::UNIX_EPOCH);
        let alert = Alert::of("berlin", changed, &breaker);
        let json = r#"{"trunk":"berlin","change":"opened","time":"1970-01-01T00:00:00Z","reason":"the provider moves","by":"anna"}"#;
        assert_eq!(serde_json::to_string(&alert).expect("strings and moments"), json);
        let headers = alert.headers();
        let header = |name| headers.iter().find(|(header, _)| *header == name).map(|(_, value)| value.as_str());
        assert_eq!(header("ce-id"), Some("berlin/1970-01-01T00:00:00Z"));
        assert_eq!(header("ce-type"), Some("sipstuff.trunk.opened"));
        assert_eq!(header("ce-subject"), Some("berlin"));
    }
}
