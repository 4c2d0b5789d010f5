//! Which requests are accepted, and the errors for those that are not.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::fixtures::{Expected, fixtures, now, with};
use super::{parse as parse_at, *};
use crate::call::spec::Announcement;
use crate::call::{Outcome, canonical};

fn parse(body: &[u8]) -> Result<Parsed, Refusal> {
    parse_at(body, now())
}

fn spec(changes: &Value) -> CallSpec {
    parse(with(changes).to_string().as_bytes()).unwrap_or_else(|refusal| panic!("{changes}: {refusal}")).spec
}

fn errors(body: &Value) -> Vec<FieldError> {
    match parse(body.to_string().as_bytes()) {
        Err(Refusal::Invalid { errors, .. }) => errors,
        other => panic!("{body}: {other:?}"),
    }
}

/// Every field, with a value that is not its default.
fn everything() -> Value {
    let text = r#"{
        "id": "order-7", "dest": "+4930123456", "text": "Hello", "timeout": 30, "pre_delay": 1.0, "inter_delay": 0.5,
        "post_delay": 2.25, "wait_for_silence": 0.0, "repeat": 3, "tts_model": "a", "tts_sample_rate": 22050,
        "tts_data_dir": "b", "stt_model": "c", "stt_language": "de", "stt_data_dir": "d", "record": "/r.wav",
        "transcribe": true, "verbose": true, "sip_server": "e", "sip_port": 5061, "sip_user": "f", "sip_password": "g",
        "sip_transport": "tls", "sip_srtp": "optional", "sip_tls_verify": false, "stun_servers": "h", "ice_enabled": true,
        "turn_server": "i", "turn_username": "j", "turn_password": "k", "turn_transport": "tcp", "keepalive_sec": 0,
        "public_address": "l", "node_selector": {"a.b/c": "", "d": "e"}, "batch": "b-1", "metadata": {"order": "7"},
        "not_before": "2030-01-01T00:00:00Z", "not_after": "2030-01-01T01:00:00.5Z", "max_attempts": 10,
        "retry_delay": 86400, "redial_on": ["busy"], "on_unknown": "redial", "priority": "urgent", "trunk": "m-1",
        "sip_secret": "trunk.a"
    }"#;
    serde_json::from_str(text).unwrap()
}

#[test]
fn the_smallest_request_gets_the_defaults_of_the_contract() {
    let spec = spec(&json!({}));
    assert_eq!(spec.dest, "+4930123456");
    assert_eq!(spec.announcement, Announcement::Text("Hello".to_owned()));
    assert_eq!((spec.timeout, spec.repeat, spec.max_attempts()), (60, 1, 1));
    assert_eq!((spec.pre_delay, spec.inter_delay, spec.post_delay, spec.wait_for_silence), (0.0, 0.0, 0.0, None));
    assert!(!spec.transcribe && !spec.verbose && spec.node_selector.is_none() && spec.metadata.is_empty());
}

fn canonical_form(spec: &CallSpec) -> Value {
    serde_json::from_slice(&canonical::form(spec)).unwrap()
}

#[test]
fn every_field_arrives_where_it_belongs() {
    let parsed = parse(everything().to_string().as_bytes()).unwrap();
    assert_eq!(parsed.id.unwrap().as_str(), "order-7");
    let (mut arrived, mut sent) = (canonical_form(&parsed.spec), everything());
    let sent = sent.as_object_mut().unwrap();
    let sip = arrived.as_object_mut().unwrap().remove("sip").unwrap();
    for (name, value) in sip.as_object().unwrap() {
        let field = if sent.contains_key(name) { name.clone() } else { format!("sip_{name}") };
        assert_eq!(sent.remove(&field).as_ref(), Some(value), "{field}");
    }
    assert_eq!(
        parsed.spec.sip.password.unwrap().expose_secret(),
        sent.remove("sip_password").unwrap().as_str().unwrap()
    );
    assert_eq!(
        parsed.spec.sip.turn_password.unwrap().expose_secret(),
        sent.remove("turn_password").unwrap().as_str().unwrap()
    );
    sent.remove("id");
    let text = sent.remove("text").unwrap();
    sent.insert("announcement".to_owned(), json!({"text": text}));
    assert_eq!(&arrived, &json!(sent));
}

#[test]
fn the_sample_has_every_field() {
    let names: Vec<_> = FIELDS.map(|(name, _)| name).into_iter().filter(|name| *name != "wav").collect();
    assert!(names.iter().all(|name| everything().get(name).is_some()));
    assert_eq!(names.len(), everything().as_object().unwrap().len());
}

#[test]
fn every_fixture_ends_as_it_says() {
    for (changes, expected) in fixtures() {
        let body = with(&changes);
        let shown: String = changes.to_string().chars().take(100).collect();
        match (expected, parse(body.to_string().as_bytes())) {
            (Expected::Good, Ok(_)) => {}
            (
                Expected::Bad(field, part) | Expected::BadBeyondSchema(field, part),
                Err(Refusal::Invalid { errors, .. }),
            ) => {
                assert_eq!(errors.len(), 1, "{shown}: {errors:?}");
                assert_eq!(errors[0].field, field, "{shown}: {errors:?}");
                assert!(errors[0].message.contains(part), "{shown}: {errors:?}");
            }
            (_, other) => panic!("{shown}: {expected:?}, but {other:?}"),
        }
    }
}

#[test]
fn all_problems_are_listed_at_once() {
    let body = json!({"timeout": 0, "repeat": "3", "wav": "a\n", "text": 5, "transcribe": true, "sip_pasword": "s", "redial_on": ["auth", 1]});
    let fields: Vec<_> = errors(&body).into_iter().map(|error| error.field).collect();
    assert_eq!(
        fields,
        ["text", "wav", "timeout", "repeat", "redial_on", "redial_on", "dest", "wav", "transcribe", "sip_pasword"]
    );
}

#[test]
fn a_field_that_is_given_but_wrong_is_not_also_missing() {
    let body = json!({"dest": 5, "text": "\u{1}", "record": 5, "transcribe": true});
    let fields: Vec<_> = errors(&body).into_iter().map(|error| error.field).collect();
    assert_eq!(fields, ["dest", "text", "record"]);
}

#[test]
fn a_long_list_of_errors_is_cut() {
    let body: serde_json::Map<String, Value> = (0..5000).map(|field| (format!("x{field}"), json!(1))).collect();
    let errors = errors(&Value::Object(body));
    assert_eq!(errors.len(), MAX_ERRORS + 1);
    assert_eq!(errors[MAX_ERRORS].message, "and 4902 more problems");
}

#[test]
fn a_value_is_quoted_up_to_60_characters() {
    let long = "ä".repeat(500);
    let [error] = &errors(&with(&json!({"sip_transport": long})))[..] else { panic!("one error") };
    assert!(error.message.starts_with(&format!("\"{}… is not valid", "ä".repeat(59))), "{}", error.message);
    let [error] = &errors(&with(&json!({long.clone(): 1})))[..] else { panic!("one error") };
    assert_eq!(error.field, format!("{}…", "ä".repeat(60)));
}

#[test]
fn a_body_that_is_not_an_object_is_one_error_of_the_whole_request() {
    for body in ["null", "5", "\"hunter2\"", "[]", "true"] {
        let Err(Refusal::Invalid { id: None, errors }) = parse(body.as_bytes()) else { panic!("{body}") };
        assert_eq!((errors.len(), errors[0].field.as_str()), (1, ""));
        assert!(!errors[0].message.contains("hunter2"));
    }
}

/// What is wrong with a body that is written out, since a map cannot hold a key twice.
fn problems(body: &str) -> Vec<(String, String)> {
    match parse(body.as_bytes()) {
        Err(Refusal::Invalid { errors, .. }) => errors.into_iter().map(|error| (error.field, error.message)).collect(),
        other => panic!("{body}: {other:?}"),
    }
}

#[test]
fn a_key_that_is_given_twice_is_named() {
    let again = "is given more than once; give each field once".to_owned();
    let table = [
        (r#"{"dest": "1", "dest": "2", "text": "a"}"#, "dest", again.clone()),
        (r#"{"dest": "1", "text": "a", "text": "a"}"#, "text", again.clone()),
        (r#"{"dest": null, "dest": "1", "text": "a"}"#, "dest", again.clone()),
        (
            r#"{"dest": "1", "text": "a", "sip_password": "hunter2", "sip_password": "x"}"#,
            "sip_password",
            again.clone(),
        ),
        (r#"{"dest": "1", "text": "a", "d\u0065st": "2"}"#, "dest", again),
        (
            r#"{"dest": "1", "text": "a", "metadata": {"k": "1", "l": "", "k": "2"}}"#,
            "metadata",
            "key \"k\": is given more than once; give each key once".to_owned(),
        ),
        (
            r#"{"dest": "1", "text": "a", "node_selector": {"a/b": "1", "a/b": "1"}}"#,
            "node_selector",
            "key \"a/b\": is given more than once; give each key once".to_owned(),
        ),
    ];
    for (body, field, message) in table {
        assert_eq!(problems(body), [(field.to_owned(), message)], "{body}");
    }
    let deep = problems(r#"{"dest": "1", "text": "a", "redial_on": [{"x": 1, "x": 2}]}"#);
    assert!(deep.iter().any(|(field, message)| field == "redial_on" && message.contains("more than once")), "{deep:?}");
}

#[test]
fn of_two_ids_neither_is_the_calls() {
    for body in
        [r#"{"id": "a", "id": "b", "dest": "1", "text": "x"}"#, r#"{"id": "a", "id": "a", "dest": "1", "text": "x"}"#]
    {
        assert!(matches!(parse(body.as_bytes()), Err(Refusal::Invalid { id: None, .. })), "{body}");
    }
}

#[test]
fn a_syntax_error_names_its_place_and_quotes_nothing() {
    let deep = format!("{{\"metadata\": {}", "[".repeat(200));
    let table: [&[u8]; 10] = [
        b"",
        b"{",
        b"{\"sip_password\": hunter2}",
        b"{\"sip_password\": \"hunter2\" \"x\"}",
        b"{\"sip_password\": \"hunter2\n\"}",
        b"{\"sip_password\": \"hunter2\\x\"}",
        b"{\"sip_password\": \"hunter2\xff\"}",
        b"{\"timeout\": NaN}",
        b"{\"timeout\": 1e400}",
        deep.as_bytes(),
    ];
    for body in table {
        let Err(Refusal::Malformed(message)) = parse(body) else { panic!("{}", String::from_utf8_lossy(body)) };
        assert!(message.contains(" at line "), "{message}");
        assert!(!message.contains("hunter"), "{message}");
    }
}

#[test]
fn a_byte_order_mark_is_skipped() {
    assert!(parse(b"\xef\xbb\xbf{\"dest\": \"1\", \"text\": \"a\"}").is_ok());
}

#[test]
fn the_id_of_a_refused_request_is_reported_when_it_is_valid() {
    let id = |body: Value| match parse(body.to_string().as_bytes()) {
        Err(Refusal::Invalid { id, .. }) => id.map(|id| id.to_string()),
        other => panic!("{other:?}"),
    };
    assert_eq!(id(json!({"id": "a"})), Some("a".to_owned()));
    assert_eq!(id(json!({"id": ""})), None);
    assert_eq!(id(json!({"id": 5})), None);
    assert_eq!(id(json!({})), None);
}

#[test]
fn a_misspelt_password_field_does_not_show_its_value() {
    for body in [
        json!({"sip_pasword": "hunter2"}),
        json!({"dest": {"sip_password": "hunter2"}}),
        json!({"metadata": {"a": ["hunter2"]}}),
        json!({"sip_password": ["hunter2"]}),
    ] {
        let text = parse(body.to_string().as_bytes()).unwrap_err().to_string();
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn the_wire_model_hides_passwords_when_it_is_debugged() {
    let request: CallRequest =
        serde_json::from_value(json!({"sip_password": "hunter2", "turn_password": "hunter2"})).unwrap();
    assert!(!format!("{request:?}").contains("hunter2"));
    assert_eq!(serde_json::to_value(&request).unwrap(), json!({"sip_password": "hunter2", "turn_password": "hunter2"}));
    let spec = spec(&json!({"sip_password": "hunter2", "turn_password": "hunter2"}));
    assert!(!format!("{spec:?} {}", canonical_form(&spec)).contains("hunter2"));
}

#[test]
fn the_delay_doubles_up_to_a_day() {
    let spec = spec(&json!({"retry_delay": 1000}));
    let delays = [0, 1, 2, 3, 8, 10, 33, u32::MAX].map(|attempt| spec.retry_delay_seconds(attempt));
    assert_eq!(delays, [1000, 1000, 2000, 4000, 86_400, 86_400, 86_400, 86_400]);
    assert_eq!(self::spec(&json!({})).retry_delay_seconds(2), 600);
}

#[test]
fn only_what_the_request_names_is_redialled_and_by_default_all_that_may() {
    let redialled =
        |changes| Outcome::ALL.into_iter().filter(|outcome| spec(&changes).redials(*outcome)).collect::<Vec<_>>();
    use Outcome::*;
    assert_eq!(redialled(json!({})), [Busy, NoAnswer, Congestion, Network]);
    assert_eq!(redialled(json!({"redial_on": ["network", "busy"]})), [Busy, Network]);
    assert_eq!(redialled(json!({"redial_on": []})), []);
}

#[test]
fn the_longest_conversation_counts_every_round_and_pause() {
    assert_eq!(spec(&json!({})).longest_conversation(), 60);
    let changes = json!({"timeout": 20, "repeat": 3, "pre_delay": 1, "inter_delay": 2.5, "post_delay": 3, "wait_for_silence": 0.1});
    assert_eq!(spec(&changes).longest_conversation(), 70);
    let most = json!({"timeout": 600, "repeat": 100, "pre_delay": 30, "inter_delay": 30, "post_delay": 30, "wait_for_silence": 30});
    assert_eq!(spec(&most).longest_conversation(), 63_060);
}

#[test]
fn the_fingerprint_is_the_one_that_running_systems_have_recorded() {
    assert_eq!(spec(&json!({})).fingerprint().as_str(), "roq6yz52p5hyt5jrth4cbgebcj");
    let mut older = everything();
    for newer in ["on_unknown", "priority", "trunk"] {
        older.as_object_mut().unwrap().remove(newer);
    }
    let all = parse(older.to_string().as_bytes()).unwrap().spec;
    assert_eq!(all.fingerprint().as_str(), "npp4xlnuxhm4jqmfts5eag6yk6");
}

#[test]
fn the_fingerprint_does_not_see_defaults_order_id_or_passwords() {
    let plain = spec(&json!({})).fingerprint();
    for same in [
        json!({"id": "a"}),
        json!({"timeout": 60, "repeat": 1.0, "pre_delay": 0, "inter_delay": 0.0, "post_delay": -0.0}),
        json!({"verbose": false, "transcribe": false, "metadata": {}, "wav": null}),
        json!({"max_attempts": 1, "retry_delay": 300}),
        json!({"on_unknown": "hold", "priority": "normal", "trunk": null}),
        json!({"redial_on": ["network", "busy", "congestion", "no_answer", "busy"]}),
        json!({"sip_password": "a", "turn_password": "b"}),
    ] {
        assert_eq!(spec(&same).fingerprint(), plain, "{same}");
    }
    let ends = |text: &str| spec(&json!({"not_after": text})).fingerprint();
    assert_eq!(ends("2030-01-01T00:00:00Z"), ends("2030-01-01t02:00:00.000+02:00"));
}

#[test]
fn the_fingerprint_sees_every_other_field() {
    let all = everything();
    let print = |body: &Value| parse(body.to_string().as_bytes()).unwrap().spec.fingerprint();
    for (name, _) in
        FIELDS.into_iter().filter(|(name, _)| !["id", "sip_password", "turn_password", "wav"].contains(name))
    {
        let mut other = all.clone();
        other[name] = match name {
            "dest" | "text" => json!("other"),
            "record" => json!("/other.wav"),
            _ => Value::Null,
        };
        assert_ne!(print(&other), print(&all), "{name}");
    }
    let (mut text, mut wav) = (all.clone(), all);
    text["text"] = json!("/a.wav");
    (wav["text"], wav["wav"]) = (Value::Null, json!("/a.wav"));
    assert_ne!(print(&text), print(&wav), "the same words, but spoken or played");
}

#[test]
fn no_selector_and_an_empty_one_are_different_requests() {
    assert_ne!(spec(&json!({"node_selector": {}})).fingerprint(), spec(&json!({})).fingerprint());
    assert_ne!(spec(&json!({"redial_on": []})).fingerprint(), spec(&json!({})).fingerprint());
    assert_ne!(spec(&json!({"wait_for_silence": 0})).fingerprint(), spec(&json!({})).fingerprint());
}

/// Any JSON, not too deep.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        "[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9:.]{5,12}(Z|[+][0-9:]{5})".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".{0,8}", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A request whose known fields hold anything.
fn any_request() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(FIELDS.map(|(name, _)| name).to_vec());
    prop::collection::btree_map(name, any_json(), 0..8).prop_map(|fields| with(&json!(fields)))
}

/// Any moment of the years that RFC 3339 can write, most of them near now.
fn any_moment() -> impl Strategy<Value = Timestamp> {
    let second = prop_oneof![
        -62_135_596_800..253_402_200_000_i64,
        (-400_i64..400, -2_i64..2).prop_map(|(days, off)| now().as_second() + days * 86_400 + off),
    ];
    (second, 0..1_000_000_000_i32).prop_map(|(second, nanos)| Timestamp::new(second, nanos).unwrap())
}

proptest! {
    /// Timers and `Nats-TTL` are signed 64-bit nanoseconds, 292 years: a year ahead, the longest wait before a redial and the
    /// longest conversation stay far below, with room for any retention.
    #[test]
    fn no_accepted_request_can_overflow_a_timer(moments in prop::collection::vec(any_moment(), 2), later in 0..1_000_i64) {
        let (first, last) = (moments[0].min(moments[1]), moments[0].max(moments[1]));
        let body = with(&json!({"not_before": first, "not_after": last, "max_attempts": 10, "retry_delay": 86_400}));
        let accepted = parse(body.to_string().as_bytes());
        prop_assert_eq!(accepted.is_ok(), first < last && last.duration_since(now()) <= fields::MAX_AHEAD);
        if let Ok(Parsed { spec, .. }) = accepted {
            for moment in [spec.not_before.unwrap(), spec.not_after.unwrap()] {
                let redials = u64::from(spec.retry_delay_seconds(10)) * u64::from(spec.max_attempts());
                let longest = i128::from(redials) * 1_000_000_000 + moment.as_nanosecond() - now().as_nanosecond();
                prop_assert!(longest < i128::from(i64::MAX) / 100, "{} ns", longest);
            }
            // Time only moves on, so what is accepted stays accepted at every delivery.
            let then = now() + jiff::SignedDuration::from_hours(later);
            prop_assert!(parse_at(body.to_string().as_bytes(), then).is_ok());
        }
    }

    #[test]
    fn any_bytes_are_judged_without_a_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&body);
    }

    #[test]
    fn any_json_in_any_field_is_judged_without_a_panic(body in any_request()) {
        if let Err(refusal) = parse(body.to_string().as_bytes()) {
            let undecodable = refusal.to_string().contains("although every field by itself is valid");
            prop_assert!(!undecodable, "the table lets through what the wire model does not take: {}", body);
        }
    }

    #[test]
    fn no_error_holds_a_password_that_was_given(body in any_request(), password in "[a-z0-9]{12}[\u{0}\"\\\\]{0,2}", unknown in "sip_[a-z]{1,9}") {
        let mut body = body;
        for field in ["sip_password", "turn_password", unknown.as_str(), "timeout"] {
            body[field] = if field == "timeout" { json!(0) } else { json!(password) };
        }
        let refusal = parse(body.to_string().as_bytes()).unwrap_err();
        let shown = format!("{refusal} {refusal:?}");
        prop_assert!(!shown.contains(&password[..12]));
    }

    #[test]
    fn a_valid_request_survives_the_wire_model(timeout in 1..=600_u32, delay in 0.0..=30.0_f64, text in "[^\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]{1,40}", attempts in 1..=10_u32) {
        let body = with(&json!({"text": text, "timeout": timeout, "pre_delay": delay, "max_attempts": attempts}));
        let request: CallRequest = serde_json::from_value(body.clone()).unwrap();
        let wire = serde_json::to_value(&request).unwrap();
        prop_assert_eq!(&wire, &body);
        let spec = parse(wire.to_string().as_bytes()).unwrap().spec;
        prop_assert_eq!((spec.timeout, spec.pre_delay, spec.max_attempts()), (timeout, delay, attempts));
        prop_assert_eq!(spec.announcement, Announcement::Text(text));
    }

    #[test]
    fn the_order_of_the_fields_does_not_change_the_fingerprint(order in Just(everything().as_object().unwrap().clone().into_iter().collect::<Vec<_>>()).prop_shuffle()) {
        let fields: Vec<_> = order.iter().map(|(name, value)| format!("{}:{value}", json!(name))).collect();
        let shuffled = parse(format!("{{{}}}", fields.join(",")).as_bytes()).unwrap();
        let sorted = parse(everything().to_string().as_bytes()).unwrap();
        prop_assert_eq!(shuffled.spec.fingerprint(), sorted.spec.fingerprint());
    }
}
