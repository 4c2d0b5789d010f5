//! From a request to a [`CallSpec`]: the only way to one, and it reports every problem at once.
//!
//! `decode` reads the JSON, [`fields`] is the table of what each field accepts, `rules` judges one value; here are the way between
//! them and the rules that concern more than one field.

mod decode;
pub mod fields;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod names;
pub mod rules;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use serde_json::{Map, Value};

use self::decode::{Decoded, decode};
use self::fields::FIELDS;
use super::{CallId, CallRequest, CallSpec};

/// Most errors that are listed: a body of a megabyte could have a hundred thousand of them.
const MAX_ERRORS: usize = 100;
/// Longest unknown field for which a similar one is looked up, in bytes: the comparison takes time by its length.
const MAX_MISSPELT: usize = 40;

/// A valid request: what it asks for and the id that it names, if it names one.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// The body field `id`.
    pub id: Option<CallId>,
    /// What it asks for.
    pub spec: CallSpec,
}

/// One thing that is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FieldError {
    /// The field, as written in JSON; empty for the request as a whole.
    pub field: String,
    /// What is wrong with it and what is accepted. Never holds a password.
    pub message: String,
}

impl FieldError {
    fn new(field: &str, message: impl Into<String>) -> Self {
        Self { field: field.to_owned(), message: message.into() }
    }
}

/// Why a request is not a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not JSON at all, or JSON that is nested too deep or not UTF-8.
    #[error("not JSON: {0}")]
    Malformed(String),
    /// JSON, but not a valid call request; every problem is listed.
    #[error("invalid request: {}", list(errors))]
    Invalid {
        /// The id of the request, when that at least could be read.
        id: Option<CallId>,
        /// What is wrong, at least one.
        errors: Vec<FieldError>,
    },
}

fn list(errors: &[FieldError]) -> String {
    let name = |field: &str| if field.is_empty() { "request".to_owned() } else { field.to_owned() };
    errors.iter().map(|error| format!("{}: {}", name(&error.field), error.message)).collect::<Vec<_>>().join("; ")
}

/// Reads and judges a request. `now` is only used to refuse moments that are too far ahead, so what is accepted once is accepted
/// at every later time.
///
/// # Errors
/// [`Refusal`] with every problem there is.
pub fn parse(body: &[u8], now: Timestamp) -> Result<Parsed, Refusal> {
    let Decoded { fields, repeated } = decode(body)?;
    // Of two ids neither is the call's.
    let id = fields.get("id").filter(|_| repeated.iter().all(|error| error.field != "id"));
    let id = id.and_then(Value::as_str).and_then(|id| CallId::parse(id).ok());
    match judge(&fields, repeated, now) {
        Ok(spec) => Ok(Parsed { id, spec }),
        Err(errors) => Err(Refusal::Invalid { id, errors: cut(errors) }),
    }
}

fn judge(fields: &Map<String, Value>, repeated: Vec<FieldError>, now: Timestamp) -> Result<CallSpec, Vec<FieldError>> {
    let (checked, problems) = check_each(fields, now);
    let mut errors = [repeated, problems].concat();
    errors.extend(check_together(fields, &checked));
    errors.extend(fields.keys().filter_map(|name| unknown(name)));
    if !errors.is_empty() {
        return Err(errors);
    }
    // Not quoted: what serde says of a value could hold a password.
    let undecodable = |_| vec![FieldError::new("", "cannot be decoded, although every field by itself is valid")];
    let request: CallRequest = serde_json::from_value(Value::Object(checked)).map_err(undecodable)?;
    CallSpec::from_checked(request).ok_or_else(|| vec![FieldError::new("", "has no `dest`, or nothing to play")])
}

/// Every known field by itself: the valid ones as the wire model decodes them, and the errors of the others.
fn check_each(fields: &Map<String, Value>, now: Timestamp) -> (Map<String, Value>, Vec<FieldError>) {
    let (mut checked, mut errors) = (Map::new(), Vec::new());
    for (name, rule) in FIELDS {
        match fields.get(name).map(|value| rules::check(rule, value, now)) {
            None => {}
            Some(Ok(value)) => _ = checked.insert(name.to_owned(), value),
            Some(Err(problems)) => errors.extend(problems.into_iter().map(|problem| FieldError::new(name, problem))),
        }
    }
    (checked, errors)
}

/// The rules between fields. A field that is given but wrong is not also reported as missing.
fn check_together(given: &Map<String, Value>, checked: &Map<String, Value>) -> Vec<FieldError> {
    let has = |name: &str| given.contains_key(name);
    let mut errors = Vec::new();
    if !has("dest") {
        errors.push(FieldError::new("dest", "missing; pass a phone number or SIP URI"));
    }
    if has("text") == has("wav") {
        let (field, problem) = if has("text") { ("wav", "given beside `text`") } else { ("text", "missing or empty") };
        errors.push(FieldError::new(field, format!("{problem}; pass exactly one of `text` and `wav`")));
    }
    if checked.get("transcribe") == Some(&Value::Bool(true)) && !has("record") {
        errors.push(FieldError::new("transcribe", "needs a recording; give `record` too, or leave `transcribe` out"));
    }
    if !window_is_open(checked) {
        errors.push(FieldError::new("not_after", "is not later than `not_before`: the call could never be dialled"));
    }
    errors
}

fn window_is_open(checked: &Map<String, Value>) -> bool {
    let moment = |name| checked.get(name).and_then(Value::as_str).and_then(|text| text.parse::<Timestamp>().ok());
    match (moment("not_before"), moment("not_after")) {
        (Some(not_before), Some(not_after)) => not_before < not_after,
        _ => true,
    }
}

fn unknown(name: &str) -> Option<FieldError> {
    if fields::rule(name).is_some() {
        return None;
    }
    let message = match similar(name) {
        Some(meant) => format!("unknown field; did you mean `{meant}`?"),
        None => "unknown field; the schema `call-request.schema.json` lists those that exist".to_owned(),
    };
    Some(FieldError::new(&rules::shorten(name), message))
}

/// The field that was most likely meant: `sipServer` and `sip-server` for `sip_server`, or a slip of the finger or two.
fn similar(name: &str) -> Option<&'static str> {
    if name.len() > MAX_MISSPELT {
        return None;
    }
    let plain = |text: &str| text.to_ascii_lowercase().replace(['_', '-', ' ', '.'], "");
    let name = plain(name);
    let distance = |field: &str| strsim::damerau_levenshtein(&name, &plain(field));
    let (distance, field) = FIELDS.iter().map(|(field, _)| (distance(field), *field)).min()?;
    (distance <= 1 + field.len() / 6).then_some(field)
}

fn cut(mut errors: Vec<FieldError>) -> Vec<FieldError> {
    if let Some(more) = errors.len().checked_sub(MAX_ERRORS).filter(|more| *more > 0) {
        errors.truncate(MAX_ERRORS);
        errors.push(FieldError::new("", format!("and {more} more problems")));
    }
    errors
}
