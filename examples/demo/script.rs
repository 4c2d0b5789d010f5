//! The calls of the demo, and what should become of each. The last three digits of a destination tell the simulated callee what
//! to do: see `simulate-call --help`.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sipstuff_operator::call::{Outcome, Status};

/// How a request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// `POST /call`.
    Http,
    /// A message on `sip.calls`.
    Nats,
    /// One after the other, with the same id: it is one call.
    Both,
}

/// A call and its expected end.
pub(crate) struct Planned {
    /// Its id.
    pub(crate) id: String,
    /// How it is sent.
    pub(crate) way: Way,
    /// The request.
    pub(crate) request: Value,
    /// Its last status, and the outcome where it was dialled.
    pub(crate) end: (Status, Option<Outcome>),
}

impl Planned {
    /// Whether it is one of those that are shown as they are sent: the first ones of each way.
    pub(crate) fn is_sample(&self) -> bool {
        ["http-01", "nats-01"].contains(&self.id.as_str())
    }
}

/// A number that does as the code says; 200 is an answer.
const KINDS: [(u16, Status, Outcome); 8] = [
    (200, Status::Succeeded, Outcome::Answered),
    (486, Status::Failed, Outcome::Busy),
    (487, Status::Failed, Outcome::NoAnswer),
    (404, Status::Failed, Outcome::InvalidNumber),
    (603, Status::Failed, Outcome::Declined),
    (503, Status::Failed, Outcome::Congestion),
    (403, Status::Failed, Outcome::Auth),
    (608, Status::Failed, Outcome::Blocked),
];

const BY_HTTP: [u16; 15] = [200, 200, 486, 200, 487, 200, 404, 200, 200, 486, 200, 603, 200, 200, 487];
const BY_NATS: [u16; 13] = [200, 503, 403, 486, 200, 200, 404, 200, 200, 608, 487, 200, 200];

/// All calls, in the order in which they are sent. The slow ones come first, so that nobody has to wait for them.
pub(crate) fn calls() -> Vec<Planned> {
    let plain = |way, name: &str, codes: &[u16]| -> Vec<Planned> {
        let numbered = codes.iter().zip(1..);
        numbered.map(|(code, number)| call(format!("{name}-{number:02}"), way, number, *code)).collect()
    };
    let mut by_http = plain(Way::Http, "http", &BY_HTTP).into_iter();
    let mut by_nats = plain(Way::Nats, "nats", &BY_NATS).into_iter();
    let mut calls = vec![redialled(), for_later(), sent_twice(), too_late()];
    while calls.len() < 4 + BY_HTTP.len() + BY_NATS.len() {
        calls.extend(by_http.next());
        calls.extend(by_nats.next());
    }
    calls
}

/// No call at all: `text` and `wav` at once, no `dest`, and a field that does not exist.
pub(crate) fn invalid_by_http() -> Value {
    json!({"text": "Good morning", "wav": "/data/hello.wav", "tiemout": 30})
}

/// No call either: nothing to say. Its id is readable, so the world hears that it is rejected.
pub(crate) fn invalid_by_nats() -> Planned {
    let request = json!({"id": "nats-invalid", "dest": "+493012399200"});
    Planned { id: "nats-invalid".into(), way: Way::Nats, request, end: (Status::Rejected, None) }
}

fn call(id: String, way: Way, number: usize, code: u16) -> Planned {
    let kind = KINDS.into_iter().find(|(known, ..)| *known == code);
    let (_, status, outcome) = kind.expect("only codes of the table are used");
    let area = if way == Way::Http { "301" } else { "302" };
    let request =
        json!({"id": id, "dest": format!("+49{area}{number:02}{code}"), "text": "Your appointment is tomorrow."});
    Planned { id, way, request, end: (status, Some(outcome)) }
}

/// Busy, and busy again a second later.
fn redialled() -> Planned {
    with(call("redial".into(), Way::Http, 97, 486), json!({"max_attempts": 2, "retry_delay": 1}))
}

/// Not before two seconds from now.
fn for_later() -> Planned {
    let later = Timestamp::now() + SignedDuration::from_secs(2);
    with(call("later".into(), Way::Nats, 98, 200), json!({"not_before": later}))
}

fn sent_twice() -> Planned {
    call("sent-twice".into(), Way::Both, 96, 200)
}

/// It was to be dialled until a moment ago.
fn too_late() -> Planned {
    let earlier = Timestamp::now() - SignedDuration::from_secs(1);
    let planned = with(call("too-late".into(), Way::Http, 95, 200), json!({"not_after": earlier}));
    Planned { end: (Status::Expired, None), ..planned }
}

fn with(mut planned: Planned, more: Value) -> Planned {
    if let (Value::Object(request), Value::Object(more)) = (&mut planned.request, more) {
        request.extend(more);
    }
    planned
}
