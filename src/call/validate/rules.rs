//! One field's value against its rule: what it means, or everything that is wrong with it.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::super::{CallId, Outcome};
use super::fields::{
    MAX_AHEAD, MAX_METADATA_ENTRIES, MAX_METADATA_KEY, MAX_METADATA_VALUE, MAX_PASSWORD, MAX_TEXT, Rule, redialled,
};
use super::names;

/// Longest quotation of a value in a message, in characters.
const MAX_SHOWN: usize = 60;

/// The value as the wire model decodes it (`60.0` for a whole number becomes `60`). `now` is only looked at for a moment.
///
/// # Errors
/// Its problems, at least one, each with what is accepted.
pub fn check(rule: Rule, value: &Value, now: Timestamp) -> Result<Value, Vec<String>> {
    let judged = match rule {
        Rule::Id => check_id(rule, value),
        Rule::Speech => string(rule, value).and_then(|text| bounded(text, MAX_TEXT, is_speech)),
        Rule::Line(_, most) => string(rule, value).and_then(|text| line(text, most)),
        Rule::Password => password(rule, value),
        Rule::Integer(least, most) => integer(rule, value, least, most),
        Rule::Number(least, most) => number(rule, value, least, most),
        Rule::Flag => flag(rule, value),
        Rule::OneOf(words) => matching(rule, value, |text| words.contains(&text)),
        Rule::LabelValue => matching(rule, value, |text| !text.is_empty() && names::is_label_value(text)),
        Rule::SecretName => matching(rule, value, names::is_subdomain),
        Rule::TrunkName => matching(rule, value, names::is_dns_label),
        Rule::Moment => moment(rule, value, now),
        Rule::NodeSelector => return entries(rule, value, selector_problem),
        Rule::Metadata => return metadata(rule, value),
        Rule::Outcomes => return outcomes(rule, value),
    };
    judged.map_err(|problem| vec![problem])
}

fn check_id(rule: Rule, value: &Value) -> Result<Value, String> {
    let text = string(rule, value)?;
    CallId::parse(text).map(|id| json!(id)).map_err(|problem| problem.to_string())
}

fn password(rule: Rule, value: &Value) -> Result<Value, String> {
    match value {
        Value::String(text) => line(text, MAX_PASSWORD),
        other => Err(format!("{}; pass {}", kind(other), rule.accepted())),
    }
}

fn line(text: &str, most: usize) -> Result<Value, String> {
    bounded(text, most, |_| false)
}

/// A text that is not empty, not too long, and has no control characters but those that are allowed.
fn bounded(text: &str, most: usize, is_allowed: impl Fn(char) -> bool) -> Result<Value, String> {
    if text.is_empty() {
        return Err("is empty; give a value, or leave the field out".to_owned());
    }
    problem_of(text, most, is_allowed).map_or_else(|| Ok(json!(text)), Err)
}

fn is_speech(character: char) -> bool {
    matches!(character, '\n' | '\t')
}

fn problem_of(text: &str, most: usize, is_allowed: impl Fn(char) -> bool) -> Option<String> {
    let length = text.chars().count();
    if length > most {
        return Some(format!("has {length} characters; pass at most {most}"));
    }
    let control = text.chars().find(|character| character.is_control() && !is_allowed(*character))?;
    let hint = if control == '\r' && is_allowed('\n') { " (a line break is \\n alone)" } else { "" };
    Some(format!("has the control character U+{:04X}{hint}; pass a text without it", u32::from(control)))
}

fn string(rule: Rule, value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| match value {
        Value::Number(number) => format!("{number} is a number; write \"{number}\" (with quotes) if you mean the text"),
        other => refused(rule, other),
    })
}

fn matching(rule: Rule, value: &Value, is_good: impl Fn(&str) -> bool) -> Result<Value, String> {
    let text = string(rule, value)?;
    if is_good(text) { Ok(value.clone()) } else { Err(refused(rule, value)) }
}

fn integer(rule: Rule, value: &Value, least: u64, most: u64) -> Result<Value, String> {
    whole(value)
        .filter(|number| (least..=most).contains(number))
        .map(Value::from)
        .ok_or_else(|| not_number(rule, value))
}

/// A whole number, which JSON may also write `60.0`.
fn whole(value: &Value) -> Option<u64> {
    let float = || value.as_f64().filter(|float| float.fract() == 0.0 && (0.0..=1e9).contains(float));
    value.as_u64().or_else(|| float().map(|float| float as u64))
}

fn number(rule: Rule, value: &Value, least: f64, most: f64) -> Result<Value, String> {
    let number = value.as_f64().filter(|number| (least..=most).contains(number));
    // `+ 0.0` makes 0 of -0, which would show as `-0.0` on the command line.
    number.map(|number| json!(number + 0.0)).ok_or_else(|| not_number(rule, value))
}

fn not_number(rule: Rule, value: &Value) -> String {
    match value.as_str().map(str::trim) {
        Some(text) if matches!(serde_json::from_str(text), Ok(Value::Number(_))) => {
            format!("{} is a string; write {} (without quotes), {}", shown(value), shorten(text), rule.accepted())
        }
        _ => refused(rule, value),
    }
}

fn flag(rule: Rule, value: &Value) -> Result<Value, String> {
    let meant = match value {
        Value::Bool(_) => return Ok(value.clone()),
        Value::String(text) => text.to_ascii_lowercase(),
        other => other.to_string(),
    };
    Err(match meant.as_str() {
        "true" | "yes" | "on" | "y" | "t" | "1" => format!("{}; write true (without quotes)", named(value)),
        "false" | "no" | "off" | "n" | "f" | "0" => format!("{}; write false (without quotes)", named(value)),
        _ => refused(rule, value),
    })
}

fn moment(rule: Rule, value: &Value, now: Timestamp) -> Result<Value, String> {
    let text = string(rule, value)?;
    let moment = text.parse::<Timestamp>().ok().filter(|_| has_rfc3339_shape(text));
    let moment = moment.ok_or_else(|| refused(rule, value))?;
    if moment.duration_since(now) > MAX_AHEAD {
        let days = MAX_AHEAD.as_hours() / 24;
        return Err(format!("{} is too far ahead; pass a moment within {days} days from now", shown(value)));
    }
    Ok(json!(moment))
}

/// `jiff` reads more than RFC 3339 (a space for the `T`, no seconds, a zone in brackets), which other readers would not.
fn has_rfc3339_shape(text: &str) -> bool {
    let shape = text.to_ascii_uppercase().replace(|character: char| character.is_ascii_digit(), "0");
    let Some(rest) = shape.strip_prefix("0000-00-00T00:00:00") else { return false };
    let fraction = rest.strip_prefix('.').unwrap_or(rest);
    let offset = fraction.trim_start_matches('0');
    let digits = fraction.len() - offset.len();
    let fraction_is_good = if rest.starts_with('.') { (1..=9).contains(&digits) } else { digits == 0 };
    fraction_is_good && (offset == "Z" || matches!(offset, "+00:00" | "-00:00") && offset_hours(text) < "24")
}

/// `02` of `…+02:00`.
fn offset_hours(text: &str) -> &str {
    text.get(text.len() - 5..text.len() - 3).unwrap_or_default()
}

fn outcomes(rule: Rule, value: &Value) -> Result<Value, Vec<String>> {
    let items = value.as_array().ok_or_else(|| vec![refused(rule, value)])?;
    let problems: Vec<_> = items.iter().filter_map(outcome_problem).collect();
    if problems.is_empty() { Ok(value.clone()) } else { Err(problems) }
}

fn outcome_problem(item: &Value) -> Option<String> {
    let accepted = redialled();
    let is_outcome = |text: &&str| Outcome::ALL.into_iter().any(|outcome| outcome.as_str() == *text);
    match item.as_str() {
        Some(text) if accepted.contains(&text) => None,
        Some(text) if is_outcome(&text) => {
            Some(format!("\"{text}\" is never redialled; pass any of {}", accepted.join(", ")))
        }
        _ => Some(format!("{}; pass any of {}", named(item), accepted.join(", "))),
    }
}

fn metadata(rule: Rule, value: &Value) -> Result<Value, Vec<String>> {
    match value.as_object().map_or(0, Map::len) {
        0..=MAX_METADATA_ENTRIES => entries(rule, value, metadata_problem),
        more => Err(vec![format!("has {more} entries; pass {}", rule.accepted())]),
    }
}

fn entries(rule: Rule, value: &Value, problem: impl Fn(&str, &str) -> Option<String>) -> Result<Value, Vec<String>> {
    let entries = value.as_object().ok_or_else(|| vec![refused(rule, value)])?;
    let judge = |(key, value): (&String, &Value)| {
        let problem = match value.as_str() {
            Some(text) => problem(key, text),
            None => Some(format!("the value is {}; pass a string", article(value))),
        };
        problem.map(|problem| format!("key {}: {problem}", shown(&json!(key))))
    };
    let problems: Vec<_> = entries.iter().filter_map(judge).collect();
    if problems.is_empty() { Ok(value.clone()) } else { Err(problems) }
}

fn selector_problem(key: &str, value: &str) -> Option<String> {
    if !names::is_label_key(key) {
        return Some(format!("the key is not valid; pass {}", names::LABEL_KEY_IS));
    }
    (!names::is_label_value(value)).then(|| {
        format!("the value {} is not valid; pass an empty one, or {}", shown(&json!(value)), names::LABEL_VALUE_IS)
    })
}

fn metadata_problem(key: &str, value: &str) -> Option<String> {
    if key.is_empty() {
        return Some(format!("the key is empty; pass 1 to {MAX_METADATA_KEY} characters"));
    }
    let of_key = problem_of(key, MAX_METADATA_KEY, |_| false).map(|problem| format!("the key {problem}"));
    of_key.or_else(|| problem_of(value, MAX_METADATA_VALUE, |_| false).map(|problem| format!("the value {problem}")))
}

fn refused(rule: Rule, value: &Value) -> String {
    format!("{}; pass {}", named(value), rule.accepted())
}

/// A value in a message. What is inside a list or an object is not quoted: a password may have slipped in there.
fn named(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) | Value::Null => kind(value).to_owned(),
        _ => format!("{} is not valid", shown(value)),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "is null",
        Value::Bool(_) => "is a boolean",
        Value::Number(_) => "is a number",
        Value::String(_) => "is a string",
        Value::Array(_) => "is a list",
        Value::Object(_) => "is an object",
    }
}

/// The kind of a value, as in "the value is a list".
pub(super) fn article(value: &Value) -> &'static str {
    kind(value).trim_start_matches("is ")
}

/// A value as JSON, shortened.
pub(super) fn shown(value: &Value) -> String {
    shorten(&value.to_string())
}

/// A text, shortened.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
