//! Whatever the backlog, a request is known, listed, refused or cancelled as soon as it arrives.

use async_nats::jetstream::consumer::pull::Config;
use futures::future::join_all;
use serde_json::json;
use sipstuff_operator::call::{CallId, Fingerprint, Outcome, Status};

use crate::support::status::{messages_in, queue_is_empty};
use crate::support::{
    Operator, PATIENCE, Setup, accepted, delete, eventually, get_json, in_seconds, post_call, request, request_of, with,
};

/// Calls that wait ahead.
const BACKLOG: usize = 300;

/// An operator that is busy with one call, and a backlog behind it.
async fn busy(setup: &Setup) -> Operator {
    let operator = Operator::start(setup.options().env("MAX_ACTIVE_CALLS", 1).env("SIMULATE_SECONDS", 60)).await;
    setup.run_calls("first", 1).await;
    let requests = (0..BACKLOG).map(|n| with(request_of(&format!("waiting-{n}")), json!({"batch": "backlog"})));
    join_all(requests.map(|request| setup.publish(&[], request.to_string()))).await;
    operator
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_behind_a_backlog_is_known_or_refused_at_once() {
    let setup = Setup::local(60.0).await;
    let operator = busy(&setup).await;
    let waiting = async || get_json(operator.base(), "/batches/backlog").await.json["waiting"].clone();
    eventually("the backlog is known", PATIENCE, async || waiting().await == BACKLOG).await;
    setup.publish(&[], request_of("good").to_string()).await;
    setup.publish(&[], r#"{"id": "bad", "dest": 1}"#).await;
    setup.publish(&[], with(request_of("later"), json!({"not_before": in_seconds(3600)})).to_string()).await;
    setup.publish(&[], with(request_of("late"), json!({"not_after": in_seconds(2)})).to_string()).await;
    setup.becomes("good", Status::Queued).await;
    assert_eq!(setup.end_of("bad").await.status, Status::Rejected);
    setup.becomes("later", Status::Scheduled).await;
    let expired = setup.end_of("late").await;
    assert_eq!(expired.status, Status::Expired);
    let end = expired.time.as_second() - expired.queued_at.as_second();
    assert!((1..=5).contains(&end), "it expired {end} s after it was queued, not 2");
    eventually("the inbox is empty", PATIENCE, async || queue_is_empty(&setup.js, "SIP_CALLS").await).await;
    eventually("what has expired does not wait", PATIENCE, async || {
        messages_in(&setup.js, "SIP_QUEUE").await == BACKLOG as u64 + 1
    })
    .await;
    let good = get_json(operator.base(), "/jobs/good").await.json;
    assert_eq!(good["status"], "queued");
    let waiting = good["waiting"].as_u64().unwrap();
    assert!((BACKLOG as u64 / 2..=BACKLOG as u64).contains(&waiting), "it says that {waiting} wait");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_found_as_soon_as_it_was_accepted() {
    let setup = Setup::local(0.1).await;
    let operator = setup.operator().await;
    let calls = (0..200).map(|n| {
        let operator = &operator;
        async move {
            let body = if n % 2 == 0 { request("+491", "a") } else { request_of(&format!("call-{n}")) };
            let reply = post_call(operator.base(), &body).await;
            assert_eq!(reply.status, 202, "{reply:?}");
            let location = reply.headers["location"].to_str().unwrap();
            let found = get_json(operator.base(), location).await;
            assert_eq!(found.status, 200, "{found:?}");
        }
    });
    join_all(calls).await;
    assert_eq!(get_json(operator.base(), "/jobs/nobody").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_was_just_published_is_cancelled_whole_and_never_dialled() {
    let setup = Setup::local(0.1).await;
    let operator = busy(&setup).await;
    let requests = (0..500).map(|n| with(request_of(&format!("wrong-{n}")), json!({"batch": "wrong"})));
    join_all(requests.map(|request| setup.publish(&[], request.to_string()))).await;
    let reply = delete(operator.base(), "/jobs?batch=wrong").await;
    assert_eq!((reply.status.as_u16(), &reply.json["cancelled"]), (202, &json!(500)), "{reply:?}");
    eventually("its messages are gone", PATIENCE, async || {
        messages_in(&setup.js, "SIP_CALLS").await + messages_in(&setup.js, "SIP_QUEUE").await == BACKLOG as u64
    })
    .await;
    // What comes after the cancel is another announcement.
    setup.publish(&[], with(request_of("right"), json!({"batch": "wrong", "priority": "urgent"})).to_string()).await;
    assert_eq!(delete(operator.base(), "/jobs/first-0").await.json["status"], "cancelling");
    setup.becomes("right", Status::Running).await;
    assert!((0..500).all(|n| setup.calls_with(&format!("wrong-{n}")) == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_request_with_the_same_id_is_told_from_the_first_even_before_that_was_admitted() {
    let setup = Setup::local(0.1).await;
    let operator = setup.operator().await;
    let (same, other) =
        (with(request("+491", "a"), json!({"id": "twice"})), with(request("+492", "b"), json!({"id": "twice"})));
    let replies = join_all([&same, &same, &other].map(|body| post_call(operator.base(), body))).await;
    let statuses: Vec<u16> = replies.iter().map(|reply| reply.status.as_u16()).collect();
    assert!(statuses == [202, 202, 409] || statuses == [409, 409, 202], "{statuses:?}");
    let end = setup.end_of("twice").await;
    assert_eq!(end.status, Status::Succeeded);
    assert_eq!(setup.calls_to("+491").len() + setup.calls_to("+492").len(), 1);
}

/// The server drops a second message with a `Nats-Msg-Id`, whatever call the first one was for.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_accepted_though_another_one_came_under_its_id_as_a_message_id() {
    let setup = Setup::local(0.1).await;
    let operator = setup.operator().await;
    setup.publish(&[("Nats-Msg-Id", "taken")], request_of("another").to_string()).await;
    accepted(&operator, &request_of("taken")).await;
    setup.all_end_once(&["another", "taken"]).await;
}

/// A queue that was lost is filled again by whoever sends its requests again.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_message_was_lost_is_carried_on_when_it_is_sent_again() {
    let setup = Setup::local(0.1).await;
    assert_eq!(setup.command(&["pause"]).await.code, Some(0));
    let operator = setup.operator().await;
    accepted(&operator, &request_of("lost")).await;
    setup.becomes("lost", Status::Queued).await;
    eventually("it waits", PATIENCE, async || messages_in(&setup.js, "SIP_QUEUE").await == 1).await;
    setup.js.get_stream("SIP_QUEUE").await.unwrap().purge().await.unwrap();
    assert_eq!(setup.command(&["resume"]).await.code, Some(0));
    assert_eq!(accepted(&operator, &request_of("lost")).await.json["duplicate"], true);
    setup.all_end_once(&["lost"]).await;
}

/// Version 0.1 dialled from the inbox: its consumer is there, and one of its calls is in progress.
#[tokio::test(flavor = "multi_thread")]
async fn the_queue_of_version_0_1_is_taken_over_with_a_call_in_progress() {
    let setup = Setup::local(8.0).await;
    let mut former = setup.operator().await;
    setup.run_calls("runs", 1).await;
    former.kill9();
    // As that version leaves it: the message of the call is in its inbox, in flight.
    let window = setup.js.get_stream("SIP_DIAL").await.unwrap();
    let message = window.get_raw_message(window.cached_info().state.last_sequence).await.unwrap();
    setup.js.delete_stream("SIP_DIAL").await.unwrap();
    let inbox = setup.js.get_stream("SIP_CALLS").await.unwrap();
    inbox.delete_consumer("admission").await.unwrap();
    let consumer = Config { durable_name: Some("dialler".to_owned()), ..Config::default() };
    let consumer = inbox.create_consumer(consumer).await.unwrap();
    setup.publish(&[], message.payload).await;
    setup.publish(&[], request_of("waits").to_string()).await;
    use futures::StreamExt;
    let held = consumer.fetch().max_messages(1).messages().await.unwrap().next().await.unwrap().unwrap();

    let _operator = setup.operator().await;
    setup.all_end_once(&["runs-0", "waits"]).await;
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_names_no_outcome_of_its_own_cannot_say_that_it_is_due() {
    let setup = Setup::local(0.1).await;
    let operator = setup.operator().await;
    let later = with(request_of("later"), json!({"not_before": in_seconds(3600)}));
    let due = later["not_before"].as_str().unwrap().to_owned();
    setup.publish(&[("Sip-Due", &due), ("Sip-Attempt", "7"), ("Sip-Expiry", &due)], later.to_string()).await;
    setup.becomes("later", Status::Scheduled).await;
    setup.publish(&[("Sip-Due", &due), ("Sip-Attempt", "7")], later.to_string()).await;
    eventually("the inbox is empty", PATIENCE, async || queue_is_empty(&setup.js, "SIP_CALLS").await).await;
    assert_eq!(setup.statuses("later").await, [Status::Scheduled]);
    accepted(&operator, &request_of("now")).await;
    assert_eq!(setup.end_of("now").await.outcome, Some(Outcome::Answered));
    assert_eq!(setup.calls_with("later"), 0);
    let (id, print) = (CallId::parse("later").unwrap(), Fingerprint::default());
    assert!(setup.state("later").await.is_some_and(|state| state.id == id && state.fingerprint != print));
}
