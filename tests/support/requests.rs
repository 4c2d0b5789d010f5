//! Call requests for tests.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sipstuff_operator::call::CallId;

/// A small valid request.
pub fn request(dest: &str, text: &str) -> Value {
    json!({"dest": dest, "text": text})
}

/// A request whose text is its id, by which `Setup::calls_with` finds its calls.
pub fn request_of(id: &str) -> Value {
    with(request("+4930200", id), json!({"id": id}))
}

/// The request with these fields added or replaced.
///
/// # Panics
/// When `fields` is not an object.
#[must_use]
pub fn with(mut request: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().expect("an object") {
        request[name] = value.clone();
    }
    request
}

/// The moment so many seconds from now (before now, when negative), as a request has it.
pub fn in_seconds(seconds: i64) -> String {
    (Timestamp::now() + SignedDuration::from_secs(seconds)).to_string()
}

/// The name of the call with that id.
///
/// # Panics
/// When the id is not valid.
pub fn name_of(id: &str) -> String {
    CallId::parse(id).expect("an id").name().to_string()
}
