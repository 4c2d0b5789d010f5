//! `simulate-call`, which stands in for the caller in tests, the demo and the local runner.

use std::fs;

use serde_json::{Value, json};

use crate::support::operator::BINARY;
use crate::support::process::Scratch;

const PASSWORD: &str = "correct-horse-$-battery";

fn simulate(args: &[&str], env: &[(&str, &str)]) -> std::process::Command {
    let mut command = std::process::Command::new(BINARY);
    command.arg("simulate-call").args(args).env("SIP_PASSWORD", PASSWORD).envs(env.iter().copied());
    command.stderr(std::process::Stdio::piped());
    command
}

#[test]
fn a_simulated_call_leaves_a_line_for_its_start_and_its_end_and_no_password() {
    let dir = Scratch::new("local-runner");
    let log = dir.path().join("calls");
    let env = [("SIMULATE_SECONDS", "0.05"), ("SIMULATE_LOG", log.to_str().unwrap()), ("SIMULATE_TAG", "t1")];
    let args = ["call", "--dest", "+49603", "--text=-10 $(SIP_PASSWORD)", "--timeout", "60", "--verbose"];
    let output = simulate(&args, &env).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("Call state: DISCONNECTED (last code: 603)"), "{said}");
    assert!(said.ends_with("Call was not answered or failed\n"), "{said}");
    let log = fs::read_to_string(log).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["start", "end"]);
    assert_eq!((&lines[0]["dest"], &lines[0]["tag"]), (&json!("+49603"), &json!("t1")));
    assert!(!said.contains(PASSWORD) && !log.contains(PASSWORD));
}

#[test]
fn a_simulated_call_refuses_what_the_caller_refuses() {
    for args in [&["call", "--dest", "1", "--text", "x", "--nope"][..], &["call", "--dest", "1"], &[]] {
        assert_eq!(simulate(args, &[]).output().unwrap().status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn a_simulated_call_crashes_with_the_given_exit_code() {
    let crash =
        simulate(&["call", "--dest", "1", "--text", "x"], &[("SIMULATE_CRASH", "9"), ("SIMULATE_SECONDS", "0")]);
    let output = { crash }.output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(9), 0));
}
