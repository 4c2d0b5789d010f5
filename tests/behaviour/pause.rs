//! While dialling is paused no new call is claimed, and everything else goes on: calls in progress are taken over, followed,
//! cancelled and settled, and the queue is looked after.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull::Config;
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sipstuff_operator::call::{Call, CallId, Change, Status, StatusEvent, validate};
use sipstuff_operator::nats::Names;
use sipstuff_operator::policy::TrunkGroup;
use sipstuff_operator::queue::{Waiting, Window};

use crate::support::status::queue_is_empty;
use crate::support::{Operator, PATIENCE, Setup, accepted, delete, eventually, get_json, in_seconds, request_of, with};

/// How soon calls are dialled after a pause: the delay with which they are handed back, on a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// In which a call would be dialled, were it not held back.
const A_MOMENT: Duration = Duration::from_secs(2);

/// Runs `pause` or `resume`.
async fn command(setup: &Setup, arguments: &[&str]) {
    let finished = setup.command(arguments).await;
    assert_eq!(finished.code, Some(0), "{arguments:?}: {}", finished.text());
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
    let setup = Setup::local(2.0).await;
    let operator = setup.operator().await;
    accepted(&operator, &request_of("running")).await;
    setup.becomes("running", Status::Running).await;
    let before = Timestamp::now();
    command(&setup, &["pause", "--for", "10m", "--reason", "the trunk is down"]).await;
    shows_paused(&operator, true).await;
    accepted(&operator, &request_of("held")).await;
    assert_eq!(setup.end_of("running").await.status, Status::Succeeded);

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
    assert_eq!(setup.statuses("held").await, [Status::Queued]);
    command(&setup, &["resume"]).await;
    assert_eq!(setup.end_of("held").await.status, Status::Succeeded);
    shows_paused(&operator, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_in_progress_are_taken_over_and_cancelled_while_dialling_is_paused() {
    let setup = Setup::local(0.2).await;
    let options = setup.options().env("MAX_ACTIVE_CALLS", 2);
    let mut killed = Operator::start(options.clone().env("SIMULATE_SECONDS", 45)).await;
    for id in ["goes-on", "cancelled"] {
        setup.publish(&[], request_of(id).to_string()).await;
        setup.becomes(id, Status::Running).await;
    }
    command(&setup, &["pause"]).await;
    let waiting: Vec<String> = (0..50).map(|n| format!("waiting-{n}")).collect();
    for id in &waiting {
        setup.publish(&[], request_of(id).to_string()).await;
    }
    killed.kill9();

    let operator = Operator::start(options).await;
    shows_paused(&operator, true).await;
    assert_eq!(delete(operator.base(), "/jobs/cancelled").await.json["status"], "cancelling");
    assert_eq!(setup.end_of("cancelled").await.status, Status::Cancelled);
    assert_eq!(setup.end_of("goes-on").await.status, Status::Succeeded);
    assert_eq!(setup.calls_with("goes-on"), 1);
    // Their places are free, and no call is begun.
    tokio::time::sleep(A_MOMENT).await;
    for id in &waiting {
        assert_eq!(setup.calls_with(id), 0, "{id}");
    }
    command(&setup, &["resume"]).await;
    eventually("the first ones are dialled", SOON, async || setup.calls_with("waiting-0") == 1).await;
    for id in &waiting {
        assert_eq!(setup.end_of(id).await.status, Status::Succeeded);
        assert_eq!(setup.calls_with(id), 1, "{id}");
    }
    setup.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_dialling_goes_on_while_dialling_is_paused() {
    let setup = Setup::local(0.2).await;
    command(&setup, &["pause"]).await;
    let operator = setup.operator().await;
    shows_paused(&operator, true).await;
    setup.publish(&[], r#"{"id": "invalid", "dest": 1}"#).await;
    for (id, field, moment) in [("late", "not_after", in_seconds(2)), ("later", "not_before", in_seconds(3600))] {
        setup.publish(&[], with(request_of(id), json!({field: moment})).to_string()).await;
    }
    setup.publish(&[], request_of("unwanted").to_string()).await;
    assert_eq!(setup.end_of("invalid").await.status, Status::Rejected);
    assert_eq!(setup.end_of("late").await.status, Status::Expired);
    setup.becomes("later", Status::Scheduled).await;
    accepted(&operator, &request_of("unwanted")).await;
    assert_eq!(delete(operator.base(), "/jobs/unwanted").await.json["status"], "cancelled");
    for stream in ["SIP_CALLS", "SIP_QUEUE", "SIP_DIAL"] {
        eventually(format!("{stream} is empty"), PATIENCE, async || queue_is_empty(&setup.js, stream).await).await;
    }
    assert_eq!(setup.jobs().await, [""; 0]);
}

/// Whoever loses the bucket under running operators does not want calls to be dialled by that.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_outlasts_the_bucket_it_is_kept_in() {
    let setup = Setup::local(0.2).await;
    let operator = setup.operator().await;
    command(&setup, &["pause"]).await;
    shows_paused(&operator, true).await;
    setup.js.delete_key_value("SIP_OPERATOR").await.unwrap();
    let restored = async || match setup.js.get_key_value("SIP_OPERATOR").await {
        Ok(bucket) => bucket.get("pause.all").await.is_ok_and(|value| value.is_some()),
        Err(_) => false,
    };
    eventually("the key is there again", PATIENCE, restored).await;
    accepted(&operator, &request_of("held")).await;
    setup.becomes("held", Status::Queued).await;
    tokio::time::sleep(A_MOMENT).await;
    assert_eq!(setup.statuses("held").await, [Status::Queued]);
    command(&setup, &["resume"]).await;
    assert_eq!(setup.end_of("held").await.status, Status::Succeeded);
    // The end of a pause outlasts it too: what is gone is not restored.
    setup.js.delete_key_value("SIP_OPERATOR").await.unwrap();
    eventually("the bucket is there again", PATIENCE, async || setup.js.get_key_value("SIP_OPERATOR").await.is_ok())
        .await;
    accepted(&operator, &request_of("after")).await;
    assert_eq!(setup.end_of("after").await.status, Status::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_batch_waits_and_keeps_no_other_from_being_dialled() {
    let setup = Setup::local(0.2).await;
    let operator = Operator::start(setup.options().env("MAX_ACTIVE_CALLS", 2)).await;
    command(&setup, &["pause", "--batch", "list", "--reason", "a wrong text"]).await;
    eventually("/health says so", PATIENCE, async || queue(&operator).await["paused_batches"] == json!(["list"])).await;
    let held: Vec<String> = (0..10).map(|number| format!("held-{number}")).collect();
    for id in &held {
        setup.publish(&[], with(request_of(id), json!({"batch": "list"})).to_string()).await;
        setup.becomes(id, Status::Queued).await;
    }
    for number in 0..10 {
        let (alone, other) = (format!("alone-{number}"), format!("other-{number}"));
        setup.publish(&[], request_of(&alone).to_string()).await;
        setup.publish(&[], with(request_of(&other), json!({"batch": "other"})).to_string()).await;
        for id in [alone, other] {
            assert_eq!(setup.end_of(&id).await.status, Status::Succeeded);
        }
    }
    for id in &held {
        assert_eq!(setup.statuses(id).await, [Status::Queued], "{id}");
    }
    command(&setup, &["resume", "--batch", "list"]).await;
    for id in &held {
        assert_eq!(setup.end_of(id).await.status, Status::Succeeded);
        assert_eq!(setup.calls_with(id), 1, "{id}");
    }
    setup.queue_empties().await;
}

/// Calls that lie in the window for their turn when dialling is paused go back to the queue, once and not lost, whoever dies at it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_back_by_a_replica_that_dies_at_it_is_dialled_once() {
    let setup = Setup::local(0.2).await;
    // Ten lie in the window for their turn.
    let options = setup.options().env("CALLS_PER_SECOND", 10).env("MAX_ACTIVE_CALLS", 20);
    let mut dying = Operator::start(options.clone().failpoints("given-back=3*off->pause")).await;
    let ids: Vec<String> = (0..40).map(|number| format!("call-{number}")).collect();
    for id in &ids {
        setup.publish(&[], request_of(id).to_string()).await;
    }
    setup.becomes("call-3", Status::Running).await;
    command(&setup, &["pause"]).await;
    let went_back = async || dying.log().matches("the call waits in the queue again").count() > 3;
    eventually("some are in the queue, and in the window still", PATIENCE, went_back).await;
    dying.kill9();

    let operator = Operator::start(options).await;
    shows_paused(&operator, true).await;
    eventually("nothing is in flight", PATIENCE, async || setup.in_flight().await == 0).await;
    command(&setup, &["resume"]).await;
    for id in &ids {
        assert_eq!(setup.end_of(id).await.status, Status::Succeeded);
        assert_eq!(setup.calls_with(id), 1, "{id}");
    }
    setup.queue_empties().await;
}

/// The feed has offered a call that came due, and not removed it from the queue yet, when it is to go back there: if that counted as done,
/// it would be in neither a moment later.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_feed_is_about_to_remove_does_not_count_as_given_back() {
    let setup = Setup::local(0.1).await;
    drop(setup.operator().await);
    let names = Names::default();
    let (window, waiting) =
        (Window::new(setup.js.clone(), &names), Waiting::open(setup.js.clone(), &names).await.unwrap());
    let call = {
        let request = request_of("due").to_string();
        Call::new(CallId::parse("due").unwrap(), validate::parse(request.as_bytes(), Timestamp::now()).unwrap().spec)
    };
    let now = Timestamp::now();
    let scheduled = StatusEvent::first(&call, "n", now, Change::Scheduled { due_at: now }, now).unwrap();
    let queued = scheduled.next(Change::Queued, now).unwrap();
    let (trunks, body) = (TrunkGroup::from_token("default"), Bytes::from_static(b"{}"));
    waiting.put(&queued, 1, &trunks, HeaderMap::new(), body.clone()).await.unwrap();
    let offered = waiting.find(&queued).await.unwrap().unwrap();
    let job = call.name.job(1);
    assert!(window.put("default", &job, HeaderMap::new(), body.clone()).await.unwrap());
    let message = window.sequence_of("default", &job).await.unwrap().unwrap();
    let take_back =
        async || waiting.take_back(&call, 1, &trunks, message, HeaderMap::new(), body.clone()).await.unwrap();
    assert!(!take_back().await, "it is about to be removed");
    waiting.remove(offered.sequence).await.unwrap();
    assert!(take_back().await, "now it is there by that");
    assert!(take_back().await, "and asked again, it still is");
}

/// Older versions paused the consumer on the server.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_an_older_version_has_set_stays_one() {
    let setup = Setup::local(0.2).await;
    drop(setup.operator().await);
    let queue = setup.js.get_stream("SIP_CALLS").await.unwrap();
    queue.delete_consumer("admission").await.unwrap();
    let former = Config { durable_name: Some("dialler".to_owned()), ..Config::default() };
    queue.create_consumer(former).await.unwrap();
    let until = Timestamp::now() + SignedDuration::from_hours(1);
    let moment = async_nats::datetime::from_nanos(until.as_nanosecond()).unwrap();
    assert!(queue.pause_consumer("dialler", moment).await.unwrap().paused);

    let operator = setup.operator().await;
    shows_paused(&operator, true).await;
    accepted(&operator, &request_of("held")).await;
    setup.becomes("held", Status::Queued).await;
    tokio::time::sleep(A_MOMENT).await;
    assert_eq!(setup.statuses("held").await, [Status::Queued]);
    assert_eq!(self::queue(&operator).await["paused_until"], until.to_string());
    command(&setup, &["resume"]).await;
    assert_eq!(setup.end_of("held").await.status, Status::Succeeded);
}
