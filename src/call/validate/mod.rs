//! From a request to a [`CallSpec`]: the only way to one, and it reports every problem at once.
//!
//! [`fields`] is the table of what each field accepts, `rules` judges one value, here is the way between them and the rules that concern more than one field.

pub mod fields;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod names;
mod rules;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

use super::{CallId, CallRequest, CallSpec};
use fields::FIELDS;

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

/// Reads and judges a request.
///
/// # Errors
/// [`Refusal`] with every problem there is.
pub fn parse(body: &[u8]) -> Result<Parsed, Refusal> {
    let fields = decode(body)?;
    let id = fields.get("id").and_then(Value::as_str).and_then(|id| CallId::parse(id).ok());
    match judge(&fields) {
        Ok(spec) => Ok(Parsed { id, spec }),
        Err(errors) => Err(Refusal::Invalid { id, errors: cut(errors) }),
    }
}

/// The fields that are given: `null` is absent, unless the field is unknown. A byte order mark is skipped, as RFC 8259 (section 8.1) allows.
fn decode(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    // serde_json's syntax errors name the position and what was expected there, never the text itself.
    match serde_json::from_slice(body).map_err(|error| Refusal::Malformed(error.to_string()))? {
        Value::Object(mut given) => {
            given.retain(|name, value| !value.is_null() || fields::rule(name).is_none());
            Ok(given)
        }
        other => {
            let message = format!("is {}; accepted: a JSON object with the fields of a call", rules::article(&other));
            Err(Refusal::Invalid { id: None, errors: vec![FieldError::new("", message)] })
        }
    }
}

fn judge(fields: &Map<String, Value>) -> Result<CallSpec, Vec<FieldError>> {
    let (checked, mut errors) = check_each(fields);
    errors.extend(check_together(fields, &checked));
    errors.extend(fields.keys().filter_map(|name| unknown(name)));
    if !errors.is_empty() {
        return Err(errors);
    }
    // Not quoted: what serde says of a value could hold a password.
    let undecodable = |_| vec![FieldError::new("", "cannot be decoded, although every field by itself is good")];
    let request: CallRequest = serde_json::from_value(Value::Object(checked)).map_err(undecodable)?;
    CallSpec::from_checked(request).ok_or_else(|| vec![FieldError::new("", "has no `dest`, or nothing to play")])
}

/// Every known field by itself: the good ones as the wire model decodes them, and what is wrong with the others.
fn check_each(fields: &Map<String, Value>) -> (Map<String, Value>, Vec<FieldError>) {
    let (mut checked, mut errors) = (Map::new(), Vec::new());
    for (name, rule) in FIELDS {
        match fields.get(name).map(|value| rules::check(rule, value)) {
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
        errors.push(FieldError::new("dest", "missing; required: a phone number or SIP URI"));
    }
    if has("text") == has("wav") {
        let (field, problem) = if has("text") { ("wav", "given beside `text`") } else { ("text", "missing") };
        errors.push(FieldError::new(field, format!("{problem}; required: exactly one of `text` and `wav`")));
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
    let moment = |name| checked.get(name).and_then(Value::as_str).and_then(|text| text.parse::<jiff::Timestamp>().ok());
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
        None => "unknown field; the accepted ones are in the schema `call-request.schema.json`".to_owned(),
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
