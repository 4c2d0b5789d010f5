//! The operator's own log: a line for every change of a call's state, as text or JSON.

use serde_json::{Value, json};

use crate::support::{Operator, PATIENCE, Setup, accepted, name_of, request_of};

/// The lines about a call at the level that is on by default.
fn lines_about(operator: &Operator, id: &str) -> Vec<String> {
    let log = operator.log();
    let lines = log.lines().filter(|line| line.contains(id) && !line.contains(" DEBUG "));
    lines.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_of_state_is_one_line_of_the_log() {
    let setup = Setup::kubernetes(0.3).await;
    let operator = setup.operator().await;
    accepted(&operator, &request_of("logged")).await;
    setup.events.final_of("logged", PATIENCE).await;
    setup.queue_empties().await;
    let lines = lines_about(&operator, "logged");
    // Queued, claimed, its pod chosen, running, ended.
    assert_eq!(lines.len(), 5, "{lines:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_can_be_written_as_json() {
    let setup = Setup::local(0.1).await;
    let mut operator = Operator::start_unready(setup.options().env("LOG_FORMAT", "json").env("RUST_LOG", "info")).await;
    operator.ready().await;
    setup.publish(&[], request_of("json").to_string()).await;
    setup.events.final_of("json", PATIENCE).await;
    operator.terminate(PATIENCE).await;
    let log = operator.log();
    let (_, lines) = log.split_at(log.find('{').expect("the first line of JSON"));
    let lines: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    let about: Vec<&Value> = lines.iter().filter(|line| line["call_id"] == "json").collect();
    let statuses: Vec<&Value> = about.iter().map(|line| &line["message"]).collect();
    assert_eq!(statuses, ["queued", "pending", "running", "succeeded"]);
    assert!(about.iter().all(|line| line["job"] == json!(name_of("json"))), "{about:?}");
    assert!(about[1..].iter().all(|line| line["attempt"] == 1), "{about:?}");
}
