//! A flag for every field of a request, and `--data`, which they override. The flags are generated from the validator's
//! table of fields, so that a new field has a flag at once; only the validator checks their values.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use serde_json::{Map, Number, Value};

use crate::call::validate::fields::{FIELDS, Rule};
use crate::call::validate::{self, FieldError, Parsed};
use crate::call::{CallRequest, Refusal};
use crate::clock::now;

/// The flags that name a request: one for every field, named like it with dashes, and `--data JSON`, whose fields they
/// override.
#[derive(Debug, Clone, Default)]
pub struct RequestFlags {
    data: Option<String>,
    given: Vec<Given>,
}

/// A field that was given as a flag.
#[derive(Debug, Clone)]
struct Given {
    field: &'static str,
    /// Its value, or the error in how it is written.
    value: Result<Value, String>,
}

/// Why flags and `--data` are not a valid request. Never quotes a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// `--data` by itself is not valid.
    #[error("--data: {0}")]
    Data(Refusal),
    /// With the flags it is not valid; every error is listed under the name of its flag.
    #[error("invalid request: {}", list(.0))]
    Flags(Vec<FieldError>),
}

/// A request that was given on the command line.
#[derive(Debug, Clone)]
pub struct Request {
    pub parsed: Parsed,
    /// The same as JSON, `--data` and flags merged; it contains the passwords that were given.
    pub body: Vec<u8>,
}

impl RequestFlags {
    /// The request; `None` when there is neither a flag nor `--data`.
    ///
    /// # Errors
    /// [`RequestError`]: `--data` must be a whole valid request by itself, and so must be what the flags make of it.
    pub fn read(&self) -> Result<Option<Request>, RequestError> {
        if self.data.is_none() && self.given.is_empty() {
            return Ok(None);
        }
        let (fields, mut errors) = self.merge(self.data()?);
        let body = Value::Object(fields).to_string().into_bytes();
        match validate::parse(&body, now()) {
            Ok(parsed) if errors.is_empty() => return Ok(Some(Request { parsed, body })),
            Ok(_) => {}
            Err(Refusal::Invalid { errors: more, .. }) => errors.extend(more),
            Err(malformed @ Refusal::Malformed(_)) => return Err(RequestError::Data(malformed)),
        }
        Err(RequestError::Flags(errors))
    }

    /// The flags over the fields of `--data`, and the flags whose form is wrong.
    fn merge(&self, mut fields: Map<String, Value>) -> (Map<String, Value>, Vec<FieldError>) {
        let mut errors = Vec::new();
        if self.given.iter().any(|given| matches!(given.field, "text" | "wav")) {
            // Two ways to say the same: a flag for one overrides the other in `--data` too.
            fields.retain(|field, _| field != "text" && field != "wav");
        }
        for Given { field, value } in &self.given {
            match value {
                Ok(value) => _ = fields.insert((*field).to_owned(), value.clone()),
                Err(message) => errors.push(FieldError { field: (*field).to_owned(), message: message.clone() }),
            }
        }
        (fields, errors)
    }

    fn data(&self) -> Result<Map<String, Value>, RequestError> {
        let Some(data) = &self.data else { return Ok(Map::new()) };
        validate::parse(data.as_bytes(), now()).map_err(RequestError::Data)?;
        match serde_json::from_str(data.trim_start_matches('\u{feff}')) {
            Ok(Value::Object(fields)) => Ok(fields),
            _ => Err(RequestError::Data(Refusal::Malformed("not an object".to_owned()))),
        }
    }
}

fn list(errors: &[FieldError]) -> String {
    let name = |field: &str| if field.is_empty() { "the request".to_owned() } else { flag_of(field) };
    errors.iter().map(|error| format!("{}: {}", name(&error.field), error.message)).collect::<Vec<_>>().join("; ")
}

/// `pre_delay` → `--pre-delay`.
fn flag_of(field: &str) -> String {
    format!("--{}", field.replace('_', "-"))
}

impl Args for RequestFlags {
    fn augment_args(command: Command) -> Command {
        let help = Help::of_request();
        let data = Arg::new("data")
            .long("data")
            .short('d')
            .value_name("JSON")
            .help("A whole request; flags override its fields")
            .help_heading(HEADING);
        FIELDS.iter().fold(command.arg(data), |command, (field, rule)| match rule {
            Rule::Flag => command.arg(switch(field, help.on(field))).arg(negation(field)),
            _ => command.arg(option(field, *rule, help.on(field))),
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for RequestFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = FIELDS.iter().filter_map(|(field, rule)| {
            let value = match rule {
                Rule::Flag => switched(matches, field).map(|on| Ok(Value::Bool(on))),
                _ => matches.get_one::<String>(field).map(|text| read_value(*rule, text)),
            };
            Some(Given { field, value: value? })
        });
        Ok(Self { data: matches.get_one("data").cloned(), given: given.collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

const HEADING: &str = "Request";

fn option(field: &'static str, rule: Rule, help: String) -> Arg {
    let value_name = match rule {
        Rule::Integer(..) | Rule::Number(..) => "NUMBER",
        Rule::NodeSelector | Rule::Metadata => "KEY=VALUE,…",
        Rule::Moment => "TIME",
        Rule::Outcomes => "OUTCOME,…",
        _ => "TEXT",
    };
    Arg::new(field)
        .long(field.replace('_', "-"))
        .value_name(value_name)
        .help(help)
        .help_heading(HEADING)
        .allow_negative_numbers(true)
}

fn switch(field: &'static str, help: String) -> Arg {
    Arg::new(field).long(field.replace('_', "-")).action(ArgAction::SetTrue).help(help).help_heading(HEADING)
}

/// `--no-verbose` and the like: absent is not always the same as false, and `--data` may say true.
fn negation(field: &'static str) -> Arg {
    Arg::new(negation_of(field))
        .long(format!("no-{}", field.replace('_', "-")))
        .action(ArgAction::SetTrue)
        .overrides_with(field)
        .help(format!("Sets {field} to false"))
        .help_heading(HEADING)
}

fn negation_of(field: &str) -> String {
    format!("no_{field}")
}

fn switched(matches: &ArgMatches, field: &str) -> Option<bool> {
    match (matches.get_flag(field), matches.get_flag(&negation_of(field))) {
        (true, _) => Some(true),
        (false, true) => Some(false),
        (false, false) => None,
    }
}

/// The value of a flag as JSON. Text in place of a number stays a string, which the validator refuses.
fn read_value(rule: Rule, text: &str) -> Result<Value, String> {
    match rule {
        Rule::Integer(..) | Rule::Number(..) => {
            Ok(number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number))
        }
        Rule::NodeSelector | Rule::Metadata => pairs(text).map(Value::Object),
        Rule::Outcomes => Ok(entries(text).map(|entry| Value::String(entry.to_owned())).collect()),
        _ => Ok(Value::String(text.to_owned())),
    }
}

fn number(text: &str) -> Option<Number> {
    text.parse::<i64>().ok().map(Number::from).or_else(|| Number::from_f64(text.parse().ok()?))
}

/// `key=value,key2=value2`; an empty text is the empty map.
fn pairs(text: &str) -> Result<Map<String, Value>, String> {
    let mut pairs = Map::new();
    for entry in entries(text) {
        let Some((key, value)) = entry.split_once('=') else {
            return Err(format!("`{entry}` has no `=`; write key=value,key2=value2"));
        };
        if pairs.insert(key.to_owned(), Value::String(value.to_owned())).is_some() {
            return Err(format!("`{key}` is given twice; write each key once"));
        }
    }
    Ok(pairs)
}

fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

/// The descriptions of the request's schema, which are its Rust documentation.
struct Help(Value);

impl Help {
    fn of_request() -> Self {
        Self(schemars::schema_for!(CallRequest).to_value())
    }

    fn on(&self, field: &str) -> String {
        let text = self.0.pointer(&format!("/properties/{field}/description")).and_then(Value::as_str);
        text.unwrap_or_default().replace('\n', " ").trim_end_matches('.').to_owned()
    }
}

#[cfg(test)]
mod tests;
