//! What the flags of a request become, and what is said when they are wrong.

#![allow(clippy::unwrap_used)]

use clap::Parser;

use super::*;
use crate::call::spec::Announcement;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    request: RequestFlags,
}

fn read(args: &[&str]) -> Result<Option<Parsed>, RequestError> {
    let cli = Cli::try_parse_from([&["call"], args].concat()).unwrap();
    Ok(cli.request.read()?.map(|request| request.parsed))
}

#[test]
fn the_flags_are_well_formed() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn every_field_has_a_flag_with_a_help_text() {
    use clap::CommandFactory;
    let command = Cli::command();
    for (field, _) in FIELDS {
        let arg = command.get_arguments().find(|arg| arg.get_id() == field).unwrap();
        assert_eq!(arg.get_long(), Some(field.replace('_', "-").as_str()));
        assert!(!arg.get_help().unwrap().to_string().is_empty(), "{field}");
    }
}

#[test]
fn without_flags_there_is_no_request() {
    assert!(read(&[]).unwrap().is_none());
}

#[test]
fn flags_alone_make_a_request() {
    let parsed = read(&[
        "--id",
        "a",
        "--dest=-1",
        "--text",
        "Hello",
        "--timeout",
        "30",
        "--pre-delay",
        ".5",
        "--ice-enabled",
        "--no-sip-tls-verify",
        "--node-selector",
        "disk=ssd, zone=a",
        "--metadata",
        "k=a=b",
        "--redial-on",
        "busy,no_answer",
    ]);
    let parsed = parsed.unwrap().unwrap();
    assert_eq!(parsed.id.unwrap().as_str(), "a");
    let spec = parsed.spec;
    assert_eq!((spec.dest.as_str(), spec.timeout, spec.pre_delay), ("-1", 30, 0.5));
    assert_eq!((spec.sip.ice_enabled, spec.sip.tls_verify, spec.verbose), (Some(true), Some(false), false));
    assert_eq!(spec.node_selector.unwrap().into_iter().collect::<Vec<_>>().len(), 2);
    assert_eq!(spec.metadata["k"], "a=b");
    assert_eq!(spec.redial_on.unwrap().len(), 2);
}

#[test]
fn flags_override_data() {
    let data = r#"{"dest": "1", "text": "Hello", "repeat": 2, "verbose": true, "node_selector": {"a": "b"}}"#;
    let spec = read(&["--data", data, "--wav", "a.wav", "--repeat", "3", "--no-verbose", "--node-selector", ""]);
    let spec = spec.unwrap().unwrap().spec;
    assert_eq!(spec.announcement, Announcement::Wav("a.wav".to_owned()));
    assert_eq!((spec.dest.as_str(), spec.repeat, spec.verbose), ("1", 3, false));
    assert!(spec.node_selector.unwrap().is_empty());
}

#[test]
fn data_must_be_a_whole_request_by_itself() {
    let error = read(&["--data", r#"{"text": "Hello"}"#, "--dest", "1"]).unwrap_err().to_string();
    assert!(error.starts_with("--data: invalid request: dest: missing"), "{error}");
    let error = read(&["--data", "{", "--dest", "1"]).unwrap_err().to_string();
    assert!(error.starts_with("--data: not JSON"), "{error}");
}

#[test]
fn errors_name_the_flags() {
    let error = read(&["--dest", "1", "--timeout", "long", "--pre-delay", "-1", "--text", ""]).unwrap_err().to_string();
    for flag in ["--timeout: ", "--pre-delay: ", "--text: "] {
        assert!(error.contains(flag), "{error}");
    }
    let error = read(&["--dest", "1", "--text", "a", "--wav", "b"]).unwrap_err().to_string();
    assert!(error.contains("exactly one of"), "{error}");
    let error = read(&["--node-selector", "ssd", "--text", "a"]).unwrap_err().to_string();
    let both = "--node-selector: `ssd` has no `=`; write key=value,key2=value2; --dest: missing";
    assert!(error.starts_with(&format!("invalid request: {both}")), "{error}");
}
