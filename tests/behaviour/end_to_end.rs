//! A request becomes a Job, and its outcome comes back: by HTTP and by NATS, in a cluster.

use k8s_openapi::api::batch::v1::Job;
use serde_json::{Value, json};
use sipstuff_operator::call::{Outcome, Status};

use crate::support::status::messages_in;
use crate::support::{
    Operator, PATIENCE, Setup, StatusListener, accepted, eventually, get_json, name_of, request_of, with,
};

const ID: &str = "order-7";

/// A request with fields that end up in the command, in the environment, and in the events only.
fn order() -> Value {
    json!({
        "id": ID, "dest": "sip:100@example.org", "text": "-hello $(HOME)", "timeout": 30, "pre_delay": 0.5, "repeat": 2,
        "verbose": true, "sip_port": 5062, "sip_tls_verify": false, "batch": "b", "metadata": {"order": "7"},
    })
}

/// An operator by which the order has been placed.
async fn placed(setup: &Setup) -> Operator {
    let operator = setup.operator().await;
    accepted(&operator, &order()).await;
    setup.events.final_of(ID, PATIENCE).await;
    setup.queue_empties().await;
    operator
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_by_http_is_answered_with_the_call_and_where_to_find_it() {
    let setup = Setup::kubernetes(0.3).await;
    let operator = setup.operator().await;
    let name = name_of(ID);
    let reply = accepted(&operator, &order()).await;
    let answered = json!({"job_name": name, "id": ID, "status": "queued", "namespace": setup.namespace().name});
    for (field, value) in answered.as_object().unwrap() {
        assert_eq!(&reply.json[field], value, "{field}");
    }
    assert_eq!(reply.headers["location"], format!("/jobs/{name}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_in_flight_while_its_call_runs() {
    let setup = Setup::kubernetes(8.0).await;
    let operator = setup.operator().await;
    accepted(&operator, &order()).await;
    setup.becomes(ID, Status::Running).await;
    assert_eq!((setup.in_flight().await, messages_in(&setup.js, "SIP_DIAL").await), (1, 1));
    assert_eq!(get_json(operator.base(), &format!("/jobs/{}", name_of(ID))).await.json["status"], "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_state_of_a_call_is_published() {
    let setup = Setup::kubernetes(0.3).await;
    let of_this_call = StatusListener::subscribe(&setup.client, &format!("sip.status.{}", name_of(ID))).await;
    let _operator = placed(&setup).await;
    let end = setup.events.final_of(ID, PATIENCE).await;
    assert_eq!((end.status, end.outcome, end.exit_code), (Status::Succeeded, Some(Outcome::Answered), Some(0)));
    use Status::*;
    assert_eq!(setup.events.statuses_of(ID), [Queued, Pending, Running, Succeeded]);
    // A plain subscription here hears appends before the log takes or refuses them, so two that race are both heard; they have
    // the same revision and so the same `ce-id`.
    let mut heard = of_this_call.events_of(ID);
    heard.dedup_by_key(|event| event.revision);
    // Claimed, and then one pod is chosen.
    let with_pod = heard.iter().map(|event| (event.status, event.pod.is_some())).collect::<Vec<_>>();
    assert_eq!(with_pod, [(Queued, false), (Pending, false), (Pending, true), (Running, true), (Succeeded, true)]);
    assert_eq!(end.metadata["order"], "7");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_job_that_http_shows_is_the_last_event() {
    let setup = Setup::kubernetes(0.3).await;
    let operator = placed(&setup).await;
    let end = setup.events.final_of(ID, PATIENCE).await;
    let shown = get_json(operator.base(), &format!("/jobs/{}", name_of(ID))).await.json;
    for (field, value) in serde_json::to_value(&end).unwrap().as_object().unwrap() {
        let seen = shown.get(field).unwrap_or(value);
        // Names and statuses are the same; HTTP calls the Job of the attempt by its own field.
        assert_eq!(seen, value, "{field} in {shown}");
    }
    assert_eq!((&shown["status"], &shown["outcome"]), (&json!("succeeded"), &json!("answered")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_becomes_one_job_with_the_callers_command_and_environment() {
    let setup = Setup::kubernetes(0.3).await;
    let _operator = placed(&setup).await;
    let jobs = setup.namespace().api::<Job>().list(&Default::default()).await.unwrap().items;
    let [job] = &jobs[..] else { panic!("{} Jobs", jobs.len()) };
    assert_eq!(job.metadata.name, Some(name_of(ID)));
    let [start] = &setup.node().starts()[..] else { panic!("more than one start") };
    let command = [
        "python3",
        "-m",
        "sipstuff.cli",
        "call",
        "--dest",
        "sip:100@example.org",
        "--text=-hello $(HOME)",
        "--timeout",
        "30",
        "--pre-delay",
        "0.5",
        "--repeat",
        "2",
        "--verbose",
    ];
    assert_eq!(start.argv, command);
    let env = |name: &str| start.env.get(name).map(String::as_str);
    assert_eq!((env("SIP_PORT"), env("SIP_TLS_VERIFY_SERVER"), env("SIP_SERVER")), (Some("5062"), Some("false"), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_by_nats_is_heard_of_from_its_admission_on() {
    let setup = Setup::kubernetes(0.3).await;
    let _operator = setup.operator().await;
    setup.publish(&[], request_of("by-nats").to_string()).await;
    setup.events.final_of("by-nats", PATIENCE).await;
    use Status::*;
    assert_eq!(setup.events.statuses_of("by-nats"), [Queued, Pending, Running, Succeeded]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_callee_is_reported_with_the_sip_code() {
    let setup = Setup::kubernetes(0.3).await;
    let operator = setup.operator().await;
    setup.publish(&[], with(request_of("busy"), json!({"dest": "+4930486"})).to_string()).await;

    let end = setup.events.final_of("busy", PATIENCE).await;
    use Status::*;
    assert_eq!(setup.events.statuses_of("busy"), [Queued, Pending, Running, Failed]);
    assert_eq!((end.outcome, end.sip_code, end.exit_code), (Some(Outcome::Busy), Some(486), Some(1)));
    assert!(end.message.is_some_and(|message| message.contains("Busy Here")));
    let shown = get_json(operator.base(), "/jobs/busy").await.json;
    assert_eq!(
        (&shown["status"], &shown["outcome"], &shown["sip_code"]),
        (&json!("failed"), &json!("busy"), &json!(486))
    );
    setup.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_by_nats_without_an_id_is_placed() {
    let setup = Setup::kubernetes(0.3).await;
    let _operator = setup.operator().await;
    setup.publish(&[], r#"{"dest": "1", "text": "nameless"}"#).await;
    eventually("the call has ended", PATIENCE, async || {
        setup.events.finals().len() == 1 && setup.calls_with("nameless") == 1
    })
    .await;
}
