//! A request becomes a Job, and its outcome comes back: on real servers, by HTTP and by NATS.

use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};
use sipstuff_operator::call::{Outcome, Status};

use crate::behaviour::http;
use crate::support::node::Instant;
use crate::support::setup::{PATIENCE, Stage, name_of, request_of};
use crate::support::status::{messages_in, post_call, queue_is_empty, request};
use crate::support::{
    ControlPlane, NodeOptions, Operator, OperatorOptions, StatusListener, TestNode, eventually, get_json,
};

/// Lines of the log that tell of a call at the level that is on by default.
fn told_of(operator: &Operator, id: &str) -> Vec<String> {
    let log = operator.log();
    let lines = log.lines().filter(|line| line.contains(id) && !line.contains(" DEBUG "));
    lines.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_by_http_becomes_one_job_and_its_outcome_comes_back() {
    let stage = Stage::cluster(8.0).await;
    let operator = stage.operator().await;
    let id = "order-7";
    let name = name_of(id);
    let of_this_call = StatusListener::subscribe(&stage.client, &format!("sip.status.{name}")).await;
    let body = json!({
        "id": id, "dest": "sip:100@example.org", "text": "-hello $(HOME)", "timeout": 30, "pre_delay": 0.5, "repeat": 2,
        "verbose": true, "sip_port": 5062, "sip_tls_verify": false, "batch": "b", "metadata": {"order": "7"},
    });

    let reply = post_call(operator.base(), &body).await;
    assert_eq!(reply.status, 202, "{reply:?}");
    let answered = json!({"job_name": name, "id": id, "status": "queued", "namespace": stage.namespace().name});
    for (field, value) in answered.as_object().unwrap() {
        assert_eq!(&reply.json[field], value, "{field}");
    }
    assert_eq!(reply.headers["location"], format!("/jobs/{name}"));
    stage.becomes(id, Status::Running).await;
    assert_eq!((stage.held().await, messages_in(&stage.js, "SIP_CALLS").await), (1, 1), "held while the call runs");
    assert_eq!(get_json(operator.base(), &format!("/jobs/{name}")).await.json["status"], "running");

    let end = stage.events.final_of(id, PATIENCE).await;
    stage.queue_empties().await;
    assert_eq!((end.status, end.outcome, end.exit_code), (Status::Succeeded, Some(Outcome::Answered), Some(0)));
    use Status::*;
    assert_eq!(stage.events.statuses_of(id), [Queued, Pending, Running, Succeeded]);
    // A plain subscription here hears appends before the log takes or refuses them, so two that race are both heard; they have
    // the same revision and so the same `ce-id`.
    let mut heard = of_this_call.events_of(id);
    heard.dedup_by_key(|event| event.revision);
    assert_eq!(heard.iter().map(|event| event.status).collect::<Vec<_>>(), [Queued, Pending, Running, Succeeded]);
    assert_eq!(end.metadata["order"], "7");
    let shown = get_json(operator.base(), &format!("/jobs/{name}")).await.json;
    for (field, value) in serde_json::to_value(&end).unwrap().as_object().unwrap() {
        let seen = shown.get(field).unwrap_or(value);
        // Names and statuses are the same; HTTP calls the Job of the attempt by its own field.
        assert_eq!(seen, value, "{field} in {shown}");
    }
    assert_eq!((&shown["status"], &shown["outcome"]), (&json!("succeeded"), &json!("answered")));

    let jobs = stage.namespace().api::<Job>().list(&Default::default()).await.unwrap().items;
    let [job] = &jobs[..] else { panic!("{} Jobs", jobs.len()) };
    assert_eq!(job.metadata.name.as_ref(), Some(&name));
    let [start] = &stage.node().starts()[..] else { panic!("more than one start") };
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
    assert_eq!(told_of(&operator, id).len(), 4, "a line per status change: {:#?}", told_of(&operator, id));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_status_event_is_a_cloud_event() {
    let stage = Stage::machine(0.2).await;
    let _operator = stage.operator().await;
    stage.publish(&[], request_of("cloud").to_string()).await;
    stage.events.final_of("cloud", PATIENCE).await;
    let heard = stage.events.heard();
    assert_eq!(heard.len(), 3);
    for heard in heard {
        let header = |name: &str| heard.headers.get(name).unwrap_or_else(|| panic!("no {name}")).as_str().to_owned();
        let event = &heard.event;
        assert_eq!((header("ce-specversion"), header("content-type")), ("1.0".into(), "application/json".into()));
        assert_eq!(header("ce-id"), format!("{}/{}", event.name, event.revision));
        assert_eq!(header("ce-type"), format!("sipstuff.call.{}", event.status));
        assert_eq!((header("ce-subject"), header("ce-time")), (event.name.to_string(), event.time.to_string()));
        assert!(header("ce-source").starts_with("/sipstuff-operator/local-"));
        assert_eq!(heard.subject, "sip.status");
        assert_eq!(header("Nats-Subject"), format!("sip.status.{}", event.name));
        for server_side in ["Nats-Sequence", "Nats-Last-Sequence"] {
            header(server_side).parse::<u64>().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_by_nats_is_first_heard_of_when_it_is_dialled_and_a_busy_callee_is_told() {
    let stage = Stage::cluster(0.3).await;
    let operator = stage.operator().await;
    let mut busy = request_of("by-nats");
    busy["dest"] = json!("+4930486");
    stage.publish(&[], busy.to_string()).await;

    let end = stage.events.final_of("by-nats", PATIENCE).await;
    use Status::*;
    assert_eq!(stage.events.statuses_of("by-nats"), [Pending, Running, Failed]);
    assert_eq!((end.outcome, end.sip_code, end.exit_code), (Some(Outcome::Busy), Some(486), Some(1)));
    assert!(end.message.is_some_and(|message| message.contains("Busy Here")));
    let shown = get_json(operator.base(), "/jobs/by-nats").await.json;
    assert_eq!(
        (&shown["status"], &shown["outcome"], &shown["sip_code"]),
        (&json!("failed"), &json!("busy"), &json!(486))
    );
    stage.queue_empties().await;
    stage.publish(&[], r#"{"dest": "1", "text": "nameless"}"#).await;
    eventually("a call without any id is placed", PATIENCE, async || {
        stage.events.finals().len() == 2 && stage.calls_with("nameless") == 1
    })
    .await;
}

/// Everything that the world gets to see of a stage, as one text.
async fn everything(stage: &Stage, operator: &Operator, id: &str) -> String {
    let mut all = operator.log();
    all += &serde_json::to_string(&stage.namespace().api::<Job>().list(&Default::default()).await.unwrap()).unwrap();
    all += &serde_json::to_string(&stage.story(id).await).unwrap();
    for path in ["/jobs".to_owned(), format!("/jobs/{id}"), "/readyz".to_owned()] {
        all += &get_json(operator.base(), &path).await.text;
    }
    for heard in stage.events.heard() {
        all += &format!("{:?}{}", heard.headers, serde_json::to_string(&heard.event).unwrap());
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_reaches_the_caller_and_nobody_else_and_a_dollar_is_spoken() {
    const PASSWORD: &str = "correct-horse-$(HOME)-battery";
    let stage = Stage::cluster(0.3).await;
    let operator = Operator::start(stage.options().env("RUST_LOG", "trace")).await;
    let (id, text) = ("secret", "$(SIP_PASSWORD) $HOME $$");
    let body = json!({"id": id, "dest": "1", "text": text, "sip_password": PASSWORD, "turn_password": PASSWORD});
    let mut told = post_call(operator.base(), &body).await.text;
    stage.events.final_of(id, PATIENCE).await;
    let mut other = body.clone();
    other["text"] = json!("another");
    told += &post_call(operator.base(), &other).await.text;
    other["sip_port"] = json!(0);
    stage.publish(&[], other.to_string()).await;
    stage.queue_empties().await;

    let [start] = &stage.node().starts()[..] else { panic!("one start") };
    assert_eq!((&*start.env["SIP_PASSWORD"], &*start.env["SIP_TURN_PASSWORD"]), (PASSWORD, PASSWORD));
    assert!(start.argv.windows(2).any(|pair| pair == ["--text", text]), "{:?}", start.argv);
    told += &everything(&stage, &operator, id).await;
    assert!(told.contains("SIP_PASSWORD"), "the Job refers to it");
    for secret in [PASSWORD, "correct-horse", &data_encoding::BASE64.encode(PASSWORD.as_bytes())] {
        let shown = told.find(secret).map(|at| &told[at.saturating_sub(300)..at + 100]);
        assert_eq!(shown, None, "{secret}");
    }
    let secrets = stage.namespace().api::<Secret>().list(&Default::default()).await.unwrap().items;
    let [secret] = &secrets[..] else { panic!("{} Secrets", secrets.len()) };
    assert_eq!(secret.metadata.owner_references.as_ref().unwrap()[0].name, name_of(id));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_http_api_keeps_its_promises_in_front_of_a_cluster() {
    let namespace = ControlPlane::shared().await.namespace().await;
    let instant = Some(Instant { exit_code: 0, after: Duration::from_millis(300) });
    let stage = Stage::with_node(namespace, NodeOptions { instant, ..Default::default() }, 0.0).await;
    let operator = stage.operator().await;
    http::every_story(operator.base()).await;
    stage.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_can_be_read_by_machines() {
    let stage = Stage::machine(0.1).await;
    let mut operator = Operator::start_unready(stage.options().env("LOG_FORMAT", "json").env("RUST_LOG", "info")).await;
    operator.ready().await;
    stage.publish(&[], request_of("machine").to_string()).await;
    stage.events.final_of("machine", PATIENCE).await;
    operator.terminate(PATIENCE).await;
    let log = operator.log();
    let (_, lines) = log.split_at(log.find('{').expect("the first line of JSON"));
    let lines: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    let told: Vec<&Value> = lines.iter().filter(|line| line["call_id"] == "machine").collect();
    let statuses: Vec<&Value> = told.iter().map(|line| &line["message"]).collect();
    assert_eq!(statuses, ["pending", "running", "succeeded"]);
    assert!(told.iter().all(|line| line["job"] == json!(name_of("machine")) && line["attempt"] == 1), "{told:?}");
}
