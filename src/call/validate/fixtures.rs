//! Requests with what should become of them: for the validator's tests and for those that hold the JSON Schema against it.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::fields::MAX_TEXT;

/// What should become of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Expected {
    /// Valid.
    Good,
    /// Refused: the field and a part of the message.
    Bad(&'static str, &'static str),
    /// Refused by the validator, but JSON Schema has no way to say so.
    BadBeyondSchema(&'static str, &'static str),
}

/// When the fixtures are judged.
pub(crate) fn now() -> Timestamp {
    "2029-12-31T00:00:00Z".parse().expect("a moment")
}

/// A valid request with these fields changed.
pub(crate) fn with(changes: &Value) -> Value {
    let mut request = json!({"dest": "+4930123456", "text": "Hello"});
    for (name, value) in changes.as_object().expect("changes are an object") {
        request[name] = value.clone();
    }
    request
}

/// Changes to a valid request that has `dest` and `text`.
pub(crate) fn fixtures() -> Vec<(Value, Expected)> {
    [identity(), announcement(), numbers(), texts(), sip(), kubernetes(), times(), redials()].concat()
}

use Expected::{Bad, BadBeyondSchema, Good};

fn identity() -> Vec<(Value, Expected)> {
    vec![
        (json!({}), Good),
        (json!({"id": "order-7 (ü)"}), Good),
        (json!({"id": null}), Good),
        (json!({"id": ""}), Bad("id", "empty")),
        (json!({"id": 7}), Bad("id", "write \"7\"")),
        (json!({"id": "a\nb"}), Bad("id", "control character")),
        (json!({"id": "a".repeat(128)}), Good),
        (json!({"id": "ü".repeat(128)}), Good),
        (json!({"id": "ü".repeat(129)}), Bad("id", "129 characters")),
        (json!({"metadata": {}}), Good),
        (json!({"metadata": {"order": "7", "empty": ""}}), Good),
        (json!({"metadata": {"": "7"}}), Bad("metadata", "key \"\": the key is empty")),
        (json!({"metadata": {"order": 7}}), Bad("metadata", "key \"order\": the value is a number")),
        (json!({"metadata": {"k".repeat(65): "7"}}), Bad("metadata", "65 characters")),
        (json!({"metadata": {"ü".repeat(64): "ü".repeat(256)}}), Good),
        (json!({"metadata": {"k": "ü".repeat(257)}}), Bad("metadata", "257 characters")),
        (json!({"metadata": {"k": "a\n"}}), Bad("metadata", "key \"k\": the value has the control character U+000A")),
        (json!({"metadata": {"k\r": "a"}}), Bad("metadata", "the key has the control character U+000D")),
        (json!({"metadata": many(16)}), Good),
        (json!({"metadata": many(17)}), Bad("metadata", "17 entries")),
        (json!({"metadata": "a=b"}), Bad("metadata", "an object of at most 16 strings")),
    ]
}

fn many(entries: u32) -> Value {
    (0..entries).map(|entry| (entry.to_string(), json!("x"))).collect::<serde_json::Map<_, _>>().into()
}

fn announcement() -> Vec<(Value, Expected)> {
    vec![
        (json!({"text": null, "wav": "/a.wav"}), Good),
        (json!({"wav": null}), Good),
        (json!({"text": "", "wav": "/a.wav"}), Good),
        (json!({"wav": ""}), Good),
        (json!({"text": ""}), Bad("text", "exactly one of `text` and `wav`")),
        (json!({"text": "", "wav": ""}), Bad("text", "exactly one of `text` and `wav`")),
        (json!({"text": "", "wav": 5}), Bad("wav", "write \"5\"")),
        (json!({"wav": "/a.wav"}), Bad("wav", "exactly one of `text` and `wav`")),
        (json!({"text": null}), Bad("text", "exactly one of `text` and `wav`")),
        (json!({"dest": null}), Bad("dest", "missing")),
        (json!({"dest": ""}), Bad("dest", "empty")),
        (json!({"dest": 49301234}), Bad("dest", "write \"49301234\"")),
        (json!({"dest": ["sip:a@b"]}), Bad("dest", "is a list")),
        (json!({"record": "/r.wav", "transcribe": true}), Good),
        (json!({"transcribe": false}), Good),
        (json!({"transcribe": true}), Bad("transcribe", "`record`")),
        (json!({"transcribe": true, "record": null}), Bad("transcribe", "`record`")),
        (json!({"transcribe": "yes"}), Bad("transcribe", "write true")),
        (json!({"verbose": 0}), Bad("verbose", "write false")),
        (json!({"verbose": "maybe"}), Bad("verbose", "true or false")),
    ]
}

fn numbers() -> Vec<(Value, Expected)> {
    vec![
        (json!({"timeout": 1, "repeat": 100, "pre_delay": 0, "inter_delay": 30, "post_delay": 0.1}), Good),
        (json!({"timeout": 60.0}), Good),
        (json!({"timeout": 0}), Bad("timeout", "from 1 to 600")),
        (json!({"timeout": -0.0}), Bad("timeout", "from 1 to 600")),
        (json!({"timeout": 601}), Bad("timeout", "601 is not valid; pass a whole number from 1 to 600")),
        (json!({"timeout": 60.5}), Bad("timeout", "a whole number")),
        (json!({"timeout": "60"}), Bad("timeout", "write 60 (without quotes)")),
        (json!({"timeout": "soon"}), Bad("timeout", "\"soon\" is not valid")),
        (json!({"timeout": true}), Bad("timeout", "true is not valid")),
        (json!({"timeout": u64::MAX}), Bad("timeout", "from 1 to 600")),
        (json!({"timeout": 1e300}), Bad("timeout", "from 1 to 600")),
        (json!({"repeat": -1}), Bad("repeat", "-1 is not valid")),
        (json!({"pre_delay": 30.01}), Bad("pre_delay", "from 0 to 30")),
        (json!({"pre_delay": -0.1}), Bad("pre_delay", "from 0 to 30")),
        (json!({"wait_for_silence": 0}), Good),
        (json!({"wait_for_silence": "2.5"}), Bad("wait_for_silence", "write 2.5")),
        (json!({"tts_sample_rate": 0}), Good),
        (json!({"tts_sample_rate": 48001}), Bad("tts_sample_rate", "from 0 to 48000")),
        (json!({"sip_port": 65535, "keepalive_sec": 0}), Good),
        (json!({"sip_port": 65536}), Bad("sip_port", "from 1 to 65535")),
        (json!({"keepalive_sec": 601}), Bad("keepalive_sec", "from 0 to 600")),
    ]
}

fn texts() -> Vec<(Value, Expected)> {
    vec![
        (json!({"tts_model": "de_DE-thorsten", "stt_language": "de", "tts_data_dir": " "}), Good),
        (json!({"dest": "sip:anna@example.com;transport=tls", "sip_user": "Müller, Ännä 😀"}), Good),
        (json!({"dest": "1".repeat(256), "wav": "", "record": "r".repeat(4095)}), Good),
        (json!({"dest": "1".repeat(257)}), Bad("dest", "257 characters")),
        (json!({"record": "r".repeat(4096)}), Bad("record", "4096 characters")),
        (json!({"dest": "1\r\nVia: x"}), Bad("dest", "U+000D")),
        (json!({"sip_user": "a\u{85}"}), Bad("sip_user", "U+0085")),
        (json!({"stt_model": "a\nb"}), Bad("stt_model", "U+000A")),
        (json!({"wav": "/a\t.wav", "text": ""}), Bad("wav", "U+0009")),
        (json!({"text": "One.\nTwo.\tThree. €"}), Good),
        (json!({"text": "One.\r\nTwo."}), Bad("text", "a line break is \\n alone")),
        (json!({"text": "\u{1b}[2J"}), Bad("text", "U+001B")),
        (json!({"tts_model": ""}), Bad("tts_model", "leave the field out")),
        (json!({"text": "a\u{0}b"}), Bad("text", "U+0000")),
        (json!({"text": "ü".repeat(MAX_TEXT)}), Good),
        (json!({"text": "a".repeat(MAX_TEXT + 1)}), Bad("text", "10001 characters")),
        (json!({"txet": "a"}), Bad("txet", "did you mean `text`?")),
        (json!({"sipServer": "a"}), Bad("sipServer", "did you mean `sip_server`?")),
        (json!({"max-attempts": 2}), Bad("max-attempts", "did you mean `max_attempts`?")),
        (json!({"not_befor": null}), Bad("not_befor", "did you mean `not_before`?")),
        (json!({"destination": "1"}), Bad("destination", "unknown field")),
    ]
}

fn sip() -> Vec<(Value, Expected)> {
    vec![
        (json!({"sip_transport": "tls", "sip_srtp": "mandatory", "sip_tls_verify": false, "ice_enabled": true}), Good),
        (json!({"sip_transport": "UDP"}), Bad("sip_transport", "\"udp\", \"tcp\", \"tls\"")),
        (json!({"sip_transport": null}), Good),
        (json!({"turn_transport": ""}), Bad("turn_transport", "\"udp\", \"tcp\", \"tls\"")),
        (json!({"sip_srtp": 1}), Bad("sip_srtp", "write \"1\"")),
        (json!({"sip_password": "s", "turn_password": "t"}), Good),
        (json!({"sip_password": ""}), Bad("sip_password", "empty")),
        (json!({"sip_password": 1234}), Bad("sip_password", "is a number; pass 1 to 1024 characters")),
        (json!({"turn_password": "a\u{0}"}), Bad("turn_password", "U+0000")),
        (json!({"trunk": "trunk-2"}), Good),
        (json!({"trunk": null}), Good),
        (json!({"trunk": ""}), Bad("trunk", "a DNS label")),
        (json!({"trunk": "a.b"}), Bad("trunk", "a DNS label")),
        (json!({"trunk": "Trunk"}), Bad("trunk", "a DNS label")),
        (json!({"trunk": "a".repeat(64)}), Bad("trunk", "a DNS label")),
        (json!({"trunk": 2}), Bad("trunk", "write \"2\"")),
        (json!({"sip_secret": "trunk-2.example"}), Good),
        (json!({"sip_secret": "Trunk"}), Bad("sip_secret", "a DNS subdomain")),
        (json!({"sip_secret": "a".repeat(254)}), Bad("sip_secret", "a DNS subdomain")),
    ]
}

fn kubernetes() -> Vec<(Value, Expected)> {
    let long_prefix = format!("{}/b", "a".repeat(254));
    vec![
        (json!({"batch": "2030-01_a.B"}), Good),
        (json!({"batch": ""}), Bad("batch", "a Kubernetes label value")),
        (json!({"batch": "a b"}), Bad("batch", "a Kubernetes label value")),
        (json!({"batch": "-a"}), Bad("batch", "a Kubernetes label value")),
        (json!({"batch": "a".repeat(64)}), Bad("batch", "a Kubernetes label value")),
        (json!({"node_selector": {}}), Good),
        (json!({"node_selector": {"kubernetes.io/hostname": "node-1", "gpu": ""}}), Good),
        (json!({"node_selector": {"a/b/c": "d"}}), Bad("node_selector", "a Kubernetes label key")),
        (json!({"node_selector": {"": "d"}}), Bad("node_selector", "a Kubernetes label key")),
        (json!({"node_selector": {"a": "b c"}}), Bad("node_selector", "key \"a\": the value \"b c\" is not valid")),
        (json!({"node_selector": {"a": null}}), Bad("node_selector", "key \"a\": the value is null")),
        (json!({"node_selector": {long_prefix: "d"}}), BadBeyondSchema("node_selector", "a Kubernetes label key")),
        (json!({"node_selector": ["a=b"]}), Bad("node_selector", "is a list")),
    ]
}

fn times() -> Vec<(Value, Expected)> {
    vec![
        (json!({"not_before": "2030-01-01T00:00:00Z", "not_after": "2030-01-01T01:00:01.5+01:00"}), Good),
        (json!({"not_after": "2030-01-01t00:00:00-00:30"}), Good),
        (json!({"not_before": "2030-01-01T00:00:00"}), Bad("not_before", "RFC 3339")),
        (json!({"not_before": "2030-01-01 00:00:00Z"}), Bad("not_before", "RFC 3339")),
        (json!({"not_before": "2030-01-01T00:00Z"}), Bad("not_before", "RFC 3339")),
        (json!({"not_before": "2030-01-01T00:00:00.Z"}), Bad("not_before", "RFC 3339")),
        (json!({"not_before": "2030-01-01T00:00:00Z[UTC]"}), Bad("not_before", "RFC 3339")),
        (json!({"not_before": "2030-01-01T00:00:00+24:00"}), Bad("not_before", "RFC 3339")),
        (json!({"not_before": "2030-13-01T00:00:00Z"}), Bad("not_before", "RFC 3339")),
        (json!({"not_before": "2030-02-30T00:00:00Z"}), BadBeyondSchema("not_before", "RFC 3339")),
        (json!({"not_before": "2030-01-01T00:00:00.1234567891Z"}), Bad("not_before", "RFC 3339")),
        (json!({"not_before": "2030-01-01T00:00:000Z"}), Bad("not_before", "RFC 3339")),
        (json!({"not_before": "2030-01-01T24:00:00Z"}), Bad("not_before", "RFC 3339")),
        (json!({"not_before": "2016-12-31T23:59:60.123456789Z", "not_after": "2030-01-01T23:59:59-23:59"}), Good),
        (json!({"not_before": 1893456000}), Bad("not_before", "is a number")),
        (
            json!({"not_before": "2031-01-01T00:00:00Z", "not_after": "2031-01-01T01:00:00+01:00"}),
            BadBeyondSchema("not_after", "not later"),
        ),
        (json!({"not_before": "2031-01-01T00:00:00.000000001Z"}), BadBeyondSchema("not_before", "within 366 days")),
        (json!({"not_after": "2300-01-01T00:00:00Z"}), BadBeyondSchema("not_after", "within 366 days")),
        (json!({"not_before": "9999-12-30T00:00:00Z"}), BadBeyondSchema("not_before", "within 366 days")),
        (json!({"not_before": "0000-01-01T00:00:00+23:59", "not_after": "0001-01-01T00:00:00Z"}), Good),
        (
            json!({"not_before": "2030-01-01T01:00:00+01:00", "not_after": "2030-01-01T00:00:00Z"}),
            BadBeyondSchema("not_after", "not later than `not_before`"),
        ),
    ]
}

fn redials() -> Vec<(Value, Expected)> {
    vec![
        (json!({"max_attempts": 10, "retry_delay": 86400, "redial_on": ["busy", "no_answer", "busy"]}), Good),
        (json!({"redial_on": ["heard:none", "heard:part", "busy"]}), Good),
        (json!({"redial_on": ["heard:full"]}), Bad("redial_on", "\"heard:full\" is not valid; pass any of busy")),
        (json!({"redial_on": []}), Good),
        (json!({"redial_on": ["declined"]}), Bad("redial_on", "\"declined\" is never redialled; pass any of busy")),
        (json!({"redial_on": ["bussy"]}), Bad("redial_on", "\"bussy\" is not valid")),
        (json!({"redial_on": [["busy"]]}), Bad("redial_on", "is a list")),
        (json!({"redial_on": "busy"}), Bad("redial_on", "a list of any of")),
        (json!({"on_unknown": "hold"}), Good),
        (json!({"on_unknown": "redial"}), Good),
        (json!({"priority": "urgent"}), Good),
        (json!({"priority": "high"}), Bad("priority", "\"urgent\", \"normal\", \"bulk\"")),
        (json!({"on_unknown": "Redial"}), Bad("on_unknown", "\"hold\", \"redial\"")),
        (json!({"max_attempts": 11}), Bad("max_attempts", "from 1 to 10")),
        (json!({"retry_delay": 0}), Bad("retry_delay", "from 1 to 86400")),
    ]
}
