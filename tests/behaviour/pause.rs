//! While dialling is paused no new call is claimed, and everything else goes on: calls in progress are taken over, followed,
//! cancelled and settled, and the queue is looked after.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sipstuff_operator::call::Status;

use crate::support::operator::BINARY;
use crate::support::setup::{PATIENCE, Stage, request_of};
use crate::support::status::delete;
use crate::support::{Operator, eventually, get_json, post_call};

/// How soon calls are dialled after a pause: the delay with which they are handed back, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Runs a command of the operator against this queue.
async fn command(stage: &Stage, arguments: &[&str]) -> String {
    let mut command = tokio::process::Command::new(BINARY);
    let output = command.args(arguments).env("NATS_URL", stage.nats.url()).output().await.expect("the program runs");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

async fn queue(operator: &Operator) -> Value {
    get_json(operator.base(), "/health").await.json["queue"].clone()
}

async fn shows_paused(operator: &Operator, paused: bool) {
    eventually(format!("/health says paused: {paused}"), PATIENCE, async || queue(operator).await["paused"] == paused)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_holds_new_calls_back_through_a_restart_and_lets_running_ones_end() {
    let stage = Stage::machine(2.0).await;
    let operator = stage.operator().await;
    post_call(operator.base(), &request_of("running")).await;
    stage.becomes("running", Status::Running).await;
    let before = Timestamp::now();
    command(&stage, &["pause", "--for", "10m", "--reason", "the trunk is down"]).await;
    shows_paused(&operator, true).await;
    post_call(operator.base(), &request_of("held")).await;
    assert_eq!(stage.end_of("running").await.status, Status::Succeeded);

    let operator = operator.restart().await;
    shows_paused(&operator, true).await;
    let state = queue(&operator).await;
    let until: Timestamp = state["paused_until"].as_str().expect("a moment").parse().unwrap();
    let lasts = until.duration_since(before).as_secs();
    assert!((600..630).contains(&lasts), "{state}");
    assert_eq!(state["pause_reason"], "the trunk is down");
    assert!(get_json(operator.base(), "/metrics").await.text.contains("sipstuff_queue_paused 1"));
    eventually("the held call is in the backlog, and not in progress", PATIENCE, async || {
        let state = queue(&operator).await;
        (&state["backlog"], &state["in_progress"]) == (&json!(1), &json!(0))
    })
    .await;
    assert_eq!(stage.statuses("held").await, [Status::Queued]);
    command(&stage, &["resume"]).await;
    assert_eq!(stage.end_of("held").await.status, Status::Succeeded);
    shows_paused(&operator, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_in_progress_are_taken_over_and_cancelled_while_dialling_is_paused() {
    let stage = Stage::machine(0.2).await;
    let options = stage.options().env("MAX_ACTIVE_CALLS", 2);
    let mut killed = Operator::start(options.clone().env("SIMULATE_SECONDS", 45)).await;
    for id in ["goes-on", "cancelled"] {
        stage.publish(&[], request_of(id).to_string()).await;
        stage.becomes(id, Status::Running).await;
    }
    command(&stage, &["pause"]).await;
    let waiting: Vec<String> = (0..50).map(|n| format!("waiting-{n}")).collect();
    for id in &waiting {
        stage.publish(&[], request_of(id).to_string()).await;
    }
    killed.kill9();

    let operator = Operator::start(options).await;
    shows_paused(&operator, true).await;
    assert_eq!(delete(operator.base(), "/jobs/cancelled").await.json["status"], "cancelling");
    assert_eq!(stage.end_of("cancelled").await.status, Status::Cancelled);
    assert_eq!(stage.end_of("goes-on").await.status, Status::Succeeded);
    assert_eq!(stage.calls_with("goes-on"), 1);
    // Their places are taken by calls that wait, again and again, and no call is begun.
    eventually("calls that wait were looked at", PATIENCE, async || {
        let log = operator.log();
        waiting[..2].iter().all(|id| log.lines().filter(|line| line.contains(id) && line.contains("Claim")).count() > 1)
    })
    .await;
    for id in &waiting {
        assert_eq!(stage.calls_with(id), 0, "{id}");
    }
    command(&stage, &["resume"]).await;
    eventually("the first ones are dialled", SOON, async || stage.calls_with("waiting-0") == 1).await;
    for id in &waiting {
        assert_eq!(stage.end_of(id).await.status, Status::Succeeded);
        assert_eq!(stage.calls_with(id), 1, "{id}");
    }
    stage.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_dialling_goes_on_while_dialling_is_paused() {
    let stage = Stage::machine(0.2).await;
    command(&stage, &["pause"]).await;
    let operator = stage.operator().await;
    shows_paused(&operator, true).await;
    stage.publish(&[], r#"{"id": "invalid", "dest": 1}"#).await;
    let in_seconds = |seconds| (Timestamp::now() + SignedDuration::from_secs(seconds)).to_string();
    for (id, field, moment) in [("late", "not_after", in_seconds(2)), ("later", "not_before", in_seconds(3600))] {
        let mut request = request_of(id);
        request[field] = moment.into();
        stage.publish(&[], request.to_string()).await;
    }
    stage.publish(&[], request_of("unwanted").to_string()).await;
    assert_eq!(stage.end_of("invalid").await.status, Status::Rejected);
    assert_eq!(stage.end_of("late").await.status, Status::Expired);
    stage.becomes("later", Status::Scheduled).await;
    post_call(operator.base(), &request_of("unwanted")).await;
    assert_eq!(delete(operator.base(), "/jobs/unwanted").await.json["status"], "cancelled");
    stage.queue_empties().await;
    assert_eq!(stage.jobs().await, [""; 0]);
}

/// Whoever loses the bucket under running operators does not want calls to be dialled by that.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_outlasts_the_bucket_it_is_kept_in() {
    let stage = Stage::machine(0.2).await;
    let operator = stage.operator().await;
    command(&stage, &["pause"]).await;
    shows_paused(&operator, true).await;
    stage.js.delete_key_value("SIP_OPERATOR").await.unwrap();
    let restored = async || match stage.js.get_key_value("SIP_OPERATOR").await {
        Ok(bucket) => bucket.get("pause").await.is_ok_and(|value| value.is_some()),
        Err(_) => false,
    };
    eventually("the key is there again", PATIENCE, restored).await;
    post_call(operator.base(), &request_of("held")).await;
    eventually("it was looked at", PATIENCE, async || operator.log().contains("Claim(1)")).await;
    assert_eq!(stage.statuses("held").await, [Status::Queued]);
    command(&stage, &["resume"]).await;
    assert_eq!(stage.end_of("held").await.status, Status::Succeeded);
    // The end of a pause outlasts it too: what is gone is not restored.
    stage.js.delete_key_value("SIP_OPERATOR").await.unwrap();
    eventually("the bucket is there again", PATIENCE, async || stage.js.get_key_value("SIP_OPERATOR").await.is_ok())
        .await;
    post_call(operator.base(), &request_of("after")).await;
    assert_eq!(stage.end_of("after").await.status, Status::Succeeded);
}

/// Older versions paused the consumer on the server.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_an_older_version_has_set_stays_one() {
    let stage = Stage::machine(0.2).await;
    drop(stage.operator().await);
    let queue = stage.js.get_stream("SIP_CALLS").await.unwrap();
    let until = Timestamp::now() + SignedDuration::from_hours(1);
    let moment = async_nats::datetime::from_nanos(until.as_nanosecond()).unwrap();
    assert!(queue.pause_consumer("dialler", moment).await.unwrap().paused);

    let operator = stage.operator().await;
    shows_paused(&operator, true).await;
    post_call(operator.base(), &request_of("held")).await;
    eventually("it was looked at", PATIENCE, async || operator.log().contains("Claim(1)")).await;
    assert_eq!(stage.statuses("held").await, [Status::Queued]);
    assert_eq!(self::queue(&operator).await["paused_until"], until.to_string());
    command(&stage, &["resume"]).await;
    assert_eq!(stage.end_of("held").await.status, Status::Succeeded);
}
