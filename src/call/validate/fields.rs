//! The table of the request's fields and what each accepts: the validator, its messages and the JSON Schema are all read
//! from here, so that they cannot disagree.

use jiff::SignedDuration;
use schemars::Schema;
use serde_json::{Map, Value, json};

use super::super::id::MAX_ID;
use super::super::{OnUnknown, Priority, RedialOn};
use super::names;

/// Longest `text`, in characters: about ten minutes of speech. Every length here is counted in characters, as JSON Schema does,
/// and in bytes stays far below what Linux takes as one program argument (131,072, `MAX_ARG_STRLEN`).
pub const MAX_TEXT: usize = 10_000;
/// Longest destination, user, host, language or model.
const MAX_NAME: usize = 256;
/// Longest path: Linux's `PATH_MAX` without the closing NUL.
const MAX_PATH: usize = 4095;
/// Longest list of servers.
const MAX_LIST: usize = 1024;
/// Longest password, which may be a token.
pub const MAX_PASSWORD: usize = 1024;
/// How far ahead a moment may be: a year. Nobody plans a call further ahead, and in the year 2262 timers overflow.
pub const MAX_AHEAD: SignedDuration = SignedDuration::from_hours(366 * 24);
/// Most entries of `metadata`: it is repeated in every status event.
pub const MAX_METADATA_ENTRIES: usize = 16;
/// Longest key of `metadata`.
pub const MAX_METADATA_KEY: usize = 64;
/// Longest value of `metadata`.
pub const MAX_METADATA_VALUE: usize = 256;

/// What a field accepts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// A call id.
    Id,
    /// What is spoken: a string of several lines. Text to speech reads line breaks and tabs as pauses, so these two control
    /// characters are allowed.
    Speech,
    /// A string of one line that becomes a program argument or an environment entry: what it is, and its longest length.
    Line(&'static str, usize),
    /// A line that is never quoted.
    Password,
    /// A whole number from … to ….
    Integer(u64, u64),
    /// A number from … to ….
    Number(f64, f64),
    /// `true` or `false`.
    Flag,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A Kubernetes label value that is not empty.
    LabelValue,
    /// The name of a Kubernetes Secret.
    SecretName,
    /// The name of a trunk: a token of subjects, and a label.
    TrunkName,
    /// A map from Kubernetes label keys to label values.
    NodeSelector,
    /// A small map of strings.
    Metadata,
    /// An RFC 3339 date and time with offset, at most [`MAX_AHEAD`] from now.
    Moment,
    /// A list of outcomes that may be redialled.
    Outcomes,
}

const WAV: &str = "the path of a WAV file";
const TRANSPORTS: Rule = Rule::OneOf(&["udp", "tcp", "tls"]);

/// Every field of a request. An `f64` range is in seconds.
pub const FIELDS: [(&str, Rule); 46] = [
    ("id", Rule::Id),
    ("dest", Rule::Line("a phone number or SIP URI", MAX_NAME)),
    ("text", Rule::Speech),
    ("wav", Rule::Line(WAV, MAX_PATH)),
    ("timeout", Rule::Integer(1, 600)),
    ("pre_delay", Rule::Number(0.0, 30.0)),
    ("inter_delay", Rule::Number(0.0, 30.0)),
    ("post_delay", Rule::Number(0.0, 30.0)),
    ("wait_for_silence", Rule::Number(0.0, 30.0)),
    ("repeat", Rule::Integer(1, 100)),
    ("tts_model", Rule::Line("the name of a Piper model", MAX_NAME)),
    ("tts_sample_rate", Rule::Integer(0, 48_000)),
    ("tts_data_dir", Rule::Line("the path of a folder", MAX_PATH)),
    ("stt_model", Rule::Line("the name of a Whisper model", MAX_NAME)),
    ("stt_language", Rule::Line("a language, such as \"de\"", MAX_NAME)),
    ("stt_data_dir", Rule::Line("the path of a folder", MAX_PATH)),
    ("record", Rule::Line("the path of the recording", MAX_PATH)),
    ("transcribe", Rule::Flag),
    ("verbose", Rule::Flag),
    ("sip_server", Rule::Line("a host name or address", MAX_NAME)),
    ("sip_port", Rule::Integer(1, 65_535)),
    ("sip_user", Rule::Line("a user name", MAX_NAME)),
    ("sip_password", Rule::Password),
    ("sip_transport", TRANSPORTS),
    ("sip_srtp", Rule::OneOf(&["disabled", "optional", "mandatory"])),
    ("sip_tls_verify", Rule::Flag),
    ("stun_servers", Rule::Line("servers as host:port, separated by commas", MAX_LIST)),
    ("ice_enabled", Rule::Flag),
    ("turn_server", Rule::Line("a server as host:port", MAX_NAME)),
    ("turn_username", Rule::Line("a user name", MAX_NAME)),
    ("turn_password", Rule::Password),
    ("turn_transport", TRANSPORTS),
    ("keepalive_sec", Rule::Integer(0, 600)),
    ("public_address", Rule::Line("a host name or address", MAX_NAME)),
    ("node_selector", Rule::NodeSelector),
    ("batch", Rule::LabelValue),
    ("metadata", Rule::Metadata),
    ("not_before", Rule::Moment),
    ("not_after", Rule::Moment),
    ("max_attempts", Rule::Integer(1, 10)),
    ("retry_delay", Rule::Integer(1, 86_400)),
    ("redial_on", Rule::Outcomes),
    ("on_unknown", Rule::OneOf(&OnUnknown::WORDS)),
    ("priority", Rule::OneOf(&Priority::WORDS)),
    ("trunk", Rule::TrunkName),
    ("sip_secret", Rule::SecretName),
];

impl Rule {
    /// What is accepted, to end an error with.
    pub fn accepted(self) -> String {
        match self {
            Rule::Id => format!("1 to {MAX_ID} characters without control characters"),
            Rule::Speech => format!("1 to {MAX_TEXT} characters, with \\n and \\t as the only control characters"),
            Rule::Line(what, most) => format!("{what}: 1 to {most} characters without control characters"),
            Rule::Password => format!("1 to {MAX_PASSWORD} characters without control characters"),
            Rule::Integer(least, most) => format!("a whole number from {least} to {most}"),
            Rule::Number(least, most) => format!("a number from {least} to {most}"),
            Rule::Flag => "true or false".to_owned(),
            Rule::OneOf(words) => quoted(words),
            Rule::LabelValue => names::LABEL_VALUE_IS.to_owned(),
            Rule::SecretName => names::SUBDOMAIN_IS.to_owned(),
            Rule::TrunkName => names::DNS_LABEL_IS.to_owned(),
            Rule::NodeSelector => "an object of Kubernetes label keys and values".to_owned(),
            Rule::Metadata => format!("an object of at most {MAX_METADATA_ENTRIES} strings"),
            Rule::Moment => "a date and time with offset (RFC 3339), such as \"2027-01-31T09:00:00+01:00\"".to_owned(),
            Rule::Outcomes => format!("a list of any of {}", quoted(&redialled())),
        }
    }

    /// What is accepted, as far as JSON Schema can say it: it knows neither the calendar nor the present moment.
    fn keywords(self) -> Value {
        match self {
            Rule::Id => json!({"minLength": 1, "maxLength": MAX_ID, "pattern": LINE_PATTERN}),
            // An empty `text` or `wav` is absent.
            Rule::Speech => json!({"maxLength": MAX_TEXT, "pattern": SPEECH_PATTERN}),
            Rule::Line(WAV, most) => json!({"maxLength": most, "pattern": LINE_PATTERN}),
            Rule::Line(_, most) => json!({"minLength": 1, "maxLength": most, "pattern": LINE_PATTERN}),
            Rule::Password => {
                json!({"minLength": 1, "maxLength": MAX_PASSWORD, "pattern": LINE_PATTERN, "format": "password", "writeOnly": true})
            }
            Rule::Integer(least, most) => json!({"minimum": least, "maximum": most}),
            Rule::Number(least, most) => json!({"minimum": least, "maximum": most}),
            Rule::Flag => json!({}),
            Rule::OneOf(words) => json!({"enum": words}),
            Rule::LabelValue => json!({"minLength": 1, "maxLength": 63, "pattern": names::LABEL_VALUE_PATTERN}),
            Rule::SecretName => json!({"minLength": 1, "maxLength": 253, "pattern": names::SUBDOMAIN_PATTERN}),
            Rule::TrunkName => json!({"minLength": 1, "maxLength": 63, "pattern": names::DNS_LABEL_PATTERN}),
            Rule::NodeSelector => json!({
                "propertyNames": {"maxLength": 317, "pattern": names::LABEL_KEY_PATTERN},
                "additionalProperties": {"type": "string", "maxLength": 63, "pattern": names::LABEL_VALUE_PATTERN},
            }),
            Rule::Metadata => json!({
                "maxProperties": MAX_METADATA_ENTRIES,
                "propertyNames": {"minLength": 1, "maxLength": MAX_METADATA_KEY, "pattern": LINE_PATTERN},
                "additionalProperties": {"type": "string", "maxLength": MAX_METADATA_VALUE, "pattern": LINE_PATTERN},
            }),
            Rule::Moment => json!({"pattern": MOMENT_PATTERN}),
            Rule::Outcomes => json!({"items": {"type": "string", "enum": redialled()}}),
        }
    }
}

/// Without control characters (Unicode's category Cc).
const LINE_PATTERN: &str = r"^[^\x00-\x1f\x7f-\x9f]*$";
/// The same, but for line breaks and tabs.
const SPEECH_PATTERN: &str = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$";

/// RFC 3339, section 5.6, with the ranges of its `date-time` production.
const MOMENT_PATTERN: &str = concat!(
    r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]",
    r"([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]{1,9})?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
);

/// What `redial_on` may name.
pub fn redialled() -> Vec<&'static str> {
    RedialOn::all().filter(|reason| reason.may_be_named()).map(RedialOn::as_str).collect()
}

/// The rule of a field; `None` for a field that does not exist.
pub fn rule(name: &str) -> Option<Rule> {
    FIELDS.iter().find(|(field, _)| *field == name).map(|(_, rule)| *rule)
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}

/// Writes the table's rules, and those between fields, into the schema that is derived from the wire model.
pub fn state_rules(schema: &mut Schema) {
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for (name, rule) in FIELDS {
        if let Some(property) = properties.get_mut(name).and_then(Value::as_object_mut) {
            state_rule(property, rule);
        }
    }
    if let Some(dest) = properties.get_mut("dest").and_then(Value::as_object_mut) {
        dest.insert("type".to_owned(), json!("string"));
    }
    schema.insert("required".to_owned(), json!(["dest"]));
    schema.insert("oneOf".to_owned(), json!([not_empty("text"), not_empty("wav")]));
    schema.insert("if".to_owned(), json!({"required": ["transcribe"], "properties": {"transcribe": {"const": true}}}));
    schema.insert("then".to_owned(), given("record"));
}

/// That a field is there: `null` is absent.
fn given(name: &str) -> Value {
    json!({"required": [name], "properties": {name: {"not": {"type": "null"}}}})
}

/// That a field is there and says something.
fn not_empty(name: &str) -> Value {
    json!({"required": [name], "properties": {name: {"type": "string", "minLength": 1}}})
}

/// Writes what a rule accepts into the schema of a property.
pub fn state_rule(property: &mut Map<String, Value>, rule: Rule) {
    // The Rust type's own format and bounds (`uint32`, 0 …) say less than the rule, and are no JSON Schema.
    if matches!(rule, Rule::Integer(..) | Rule::Number(..)) {
        property.remove("format");
    }
    let Value::Object(mut keywords) = rule.keywords() else { return };
    if let Some(Value::Array(words)) = keywords.get_mut("enum") {
        words.push(Value::Null);
    }
    property.append(&mut keywords);
}
