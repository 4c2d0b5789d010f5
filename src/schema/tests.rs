//! The schemas hold what the program takes and says, and the documents hold together.
#![allow(clippy::unwrap_used)]

use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::call::validate::fields::FIELDS;
use crate::call::validate::fixtures::{self, Expected, fixtures, with};
use crate::call::validate::{self, Parsed};
use crate::call::{Call, CallId, Change, Ended, Outcome, Refusal};
use crate::config::trunks::parse as parse_trunks;
use crate::policy::breaker::{Breaker, Changed, Ending};

fn parse(body: &[u8]) -> Result<Parsed, Refusal> {
    validate::parse(body, fixtures::now())
}

fn document(name: &str) -> Value {
    all().into_iter().find(|(file, _)| *file == name).unwrap().1
}

fn validator(name: &str) -> jsonschema::Validator {
    jsonschema::options().should_validate_formats(true).build(&document(name)).unwrap()
}

/// What JSON Schema cannot say: how long the part of a label key before the slash may be, days that the calendar does not have,
/// what is too far ahead, and that `not_after` is later than `not_before`.
#[test]
fn the_schema_takes_what_the_validator_takes_and_refuses_what_it_refuses() {
    let schema = validator("call-request.schema.json");
    for (changes, expected) in fixtures() {
        let request = with(&changes);
        let shown: String = changes.to_string().chars().take(100).collect();
        let is_valid = schema.is_valid(&request);
        match expected {
            Expected::Good => assert!(is_valid, "{shown}: {:?}", schema.iter_errors(&request).next()),
            Expected::Bad(..) => assert!(!is_valid, "{shown}: the schema takes it"),
            Expected::BadBeyondSchema(..) => {}
        }
    }
}

#[test]
fn only_an_object_is_a_request() {
    let schema = validator("call-request.schema.json");
    for body in [json!(null), json!(5), json!("a"), json!([]), json!({})] {
        assert!(!schema.is_valid(&body) && parse(body.to_string().as_bytes()).is_err(), "{body}");
    }
}

#[test]
fn the_schema_describes_every_field_of_the_table_and_no_other() {
    let schema = document("call-request.schema.json");
    let properties = schema["properties"].as_object().unwrap();
    let mut names = FIELDS.map(|(name, _)| name);
    names.sort_unstable();
    assert_eq!(properties.keys().collect::<Vec<_>>(), names);
    for (name, property) in properties {
        let description = property["description"].as_str().unwrap();
        assert!(description.ends_with('.') && !description.contains('\n'), "{name}");
    }
    assert_eq!(schema["additionalProperties"], json!(false));
    assert_eq!(schema["properties"]["timeout"]["maximum"], json!(600));
    assert_eq!(schema["properties"]["timeout"]["default"], json!(60));
}

#[test]
fn every_event_of_a_call_is_valid() {
    let schema = validator("status-event.schema.json");
    let now: Timestamp = "2030-01-01T00:00:00.123Z".parse().unwrap();
    let body = json!({"dest": "1", "text": "a", "batch": "b", "metadata": {"order": "7"}}).to_string();
    let call = Call::new(CallId::parse("order-7").unwrap(), parse(body.as_bytes()).unwrap().spec);
    let verdict = crate::call::Verdict::read(false, Some(1), Some("Call state: DISCONNECTED (last code: 486)"));
    let ended = Ended {
        outcome: verdict.outcome,
        sip_code: verdict.sip_code,
        exit_code: Some(1),
        completed_at: now,
        reason: None,
        message: Some("the log".to_owned()),
        evidence: None,
        redial: true,
    };
    let claim = Change::Pending {
        attempt: 1,
        cluster: "c".to_owned(),
        namespace: "n".to_owned(),
        trunk: "default".to_owned(),
        ends_by: jiff::Timestamp::UNIX_EPOCH,
    };
    let mut event = StatusEvent::first(&call, "n", now, Change::Queued, now).unwrap();
    for change in [
        claim,
        Change::Running { started_at: now },
        Change::Ended(ended),
        Change::Scheduled { due_at: now },
        Change::Expired,
    ] {
        event = event.next(change, now).unwrap();
        let event = json!(event);
        assert!(schema.is_valid(&event), "{event}: {:?}", schema.iter_errors(&event).next());
    }
    assert!(!schema.is_valid(&json!({"id": "order-7"})));
}

#[test]
fn every_alert_is_valid_and_has_the_headers_that_are_described() {
    let schema = validator("alert.schema.json");
    let (mut breaker, mut alerts) = (Breaker::default(), Vec::new());
    let second = |second| Timestamp::from_second(second).unwrap();
    let mut tell =
        |changed: Option<Changed>, breaker: &Breaker| alerts.push(Alert::of("berlin", changed.unwrap(), breaker));
    let ending = |job, outcome| Ending {
        job,
        outcome: Some(outcome),
        sip_code: Some(403),
        reason: Some("the registrar said no"),
    };
    tell(breaker.record(&ending("a", Outcome::Auth), second(0), 1), &breaker);
    tell(breaker.admit("b", second(500), second(60), 1).unwrap(), &breaker);
    tell(breaker.record(&ending("b", Outcome::Busy), second(61), 1), &breaker);
    tell(Some(breaker.open(Some("anna".to_owned()), "the provider moves".to_owned(), second(62))), &breaker);
    for alert in alerts {
        let json = json!(alert);
        assert!(schema.is_valid(&json), "{json}: {:?}", schema.iter_errors(&json).next());
        let described = document("asyncapi.json")["components"]["messages"]["alert"]["headers"]["properties"].clone();
        let names: Vec<_> = alert.headers().into_iter().map(|(name, _)| name.to_owned()).collect();
        let mut described: Vec<_> = described.as_object().unwrap().keys().cloned().collect();
        described.sort_by_key(|name| names.iter().position(|other| other == name));
        assert_eq!(described, names);
    }
}

#[test]
fn the_schema_of_trunks_takes_the_example_and_refuses_what_the_program_refuses() {
    let schema = validator("trunks.schema.json");
    let valid = |yaml: &str| schema.is_valid(&serde_saphyr::from_str::<Value>(yaml).unwrap());
    assert!(valid(include_str!("../../deploy/trunks.example.yaml")));
    let trunk = "{name: a, secret: s, max_active: 3}";
    let good = [
        format!("trunks: [{trunk}]"),
        format!("trunks: [{trunk}]\nroutes: [{{prefix: '+49', trunks: [a]}}, {{prefix: '', trunks: [a]}}]"),
        "trunks: [{name: a, secret: s, max_active: 3, calls_per_second: null, node_selector: {a: b}}]".to_owned(),
    ];
    for yaml in good {
        assert!(valid(&yaml) && parse_trunks(&yaml).is_ok(), "{yaml}: {:?}", parse_trunks(&yaml));
    }
    let bad = [
        "trunks: []".to_owned(),
        "routes: []".to_owned(),
        format!("trunks: [{trunk}]\nother: 1"),
        "trunks: [{name: a.b, secret: s, max_active: 3}]".to_owned(),
        "trunks: [{name: a, secret: S, max_active: 3}]".to_owned(),
        "trunks: [{name: a, secret: s, max_active: 0}]".to_owned(),
        "trunks: [{name: a, secret: s, max_active: 100001}]".to_owned(),
        "trunks: [{name: a, secret: s}]".to_owned(),
        "trunks: [{name: a, secret: s, max_active: 3, calls_per_second: 0}]".to_owned(),
        "trunks: [{name: a, secret: s, max_active: 3, node_selector: {a: 'b c'}}]".to_owned(),
        "trunks: [{name: a, secret: s, max_active: 3, password: p}]".to_owned(),
        format!("trunks: [{trunk}]\nroutes: [{{prefix: '49 30', trunks: [a]}}]"),
        format!("trunks: [{trunk}]\nroutes: [{{prefix: '+49', trunks: []}}]"),
        format!("trunks: [{trunk}]\nroutes: [{{prefix: '+49', trunks: [a, a]}}]"),
        format!("trunks: [{trunk}]\nroutes: [{{prefix: '+49', trunks: [A]}}]"),
        format!("trunks: [{trunk}]\nroutes: [{{prefix: '+49'}}]"),
    ];
    for yaml in bad {
        assert!(!valid(&yaml) && parse_trunks(&yaml).is_err(), "{yaml}");
    }
}

#[test]
fn the_schemas_are_json_schema_2020_12_with_an_id_of_their_own() {
    for name in ["alert.schema.json", "call-request.schema.json", "status-event.schema.json", "trunks.schema.json"] {
        let schema = document(name);
        jsonschema::meta::validate(&schema).unwrap();
        assert_eq!(schema["$schema"], json!("https://json-schema.org/draft/2020-12/schema"));
        assert!(schema["$id"].is_string() && schema["title"].is_string());
        assert!(schema.get("$defs").is_none());
    }
}

#[test]
fn schemas_inside_the_api_descriptions_are_valid_too() {
    for name in ["openapi.json", "asyncapi.json"] {
        for (schema, it) in document(name)["components"]["schemas"].as_object().unwrap() {
            assert!(jsonschema::meta::is_valid(it), "{name}: {schema}");
        }
    }
}

/// Every `$ref` in a document.
fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Object(fields) => {
            let own = fields.get("$ref").and_then(Value::as_str).map(str::to_owned);
            own.into_iter().chain(fields.values().flat_map(references)).collect()
        }
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn every_reference_leads_somewhere() {
    for (name, document) in all() {
        for reference in references(&document) {
            assert!(document.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{name}: {reference}");
        }
    }
}

#[test]
fn every_problem_is_answered_by_some_route() {
    let document = document("openapi.json");
    let used = references(&document["paths"]);
    for problem in document["components"]["responses"].as_object().unwrap().keys() {
        assert!(used.iter().any(|reference| reference.ends_with(problem)), "{problem}");
    }
}

#[test]
fn the_documents_are_the_same_every_time_and_sorted() {
    let text =
        |documents: Vec<(&str, Value)>| documents.iter().map(|(_, document)| document.to_string()).collect::<String>();
    assert_eq!(text(all()), text(all()));
    let names: Vec<_> = all().into_iter().map(|(name, _)| name).collect();
    assert!(names.is_sorted());
}
