//! Many calls and their ways: redial, schedule, expiry, cancel, pace, dead letters, a full queue, several clusters.

use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sipstuff_operator::call::{Outcome, Status};

use crate::support::operator::{BINARY, Operator, OperatorOptions};
use crate::support::process::Scratch;
use crate::support::setup::{PATIENCE, Stage};
use crate::support::status::{delete, messages_in, queue_is_empty, recorded};
use crate::support::{NatsServer, StatusListener, eventually, get_json, post_call, request};

/// A queue and a folder for calls that run on this machine.
struct Desk {
    nats: NatsServer,
    client: async_nats::Client,
    events: StatusListener,
    folder: Scratch,
}

impl Desk {
    async fn set() -> Self {
        let nats = NatsServer::start().await;
        let client = nats.client().await;
        let events = StatusListener::subscribe(&client, "sip.status").await;
        Self { nats, client, events, folder: Scratch::new("batches") }
    }

    fn options(&self) -> OperatorOptions {
        let options = OperatorOptions::local(&self.nats, &self.folder.join("state"));
        options.env("SIMULATE_SECONDS", "0.2").env("SIMULATE_LOG", self.starts_file().display())
    }

    fn starts_file(&self) -> PathBuf {
        self.folder.join("starts")
    }

    /// When calls to a destination were started, in order.
    fn starts(&self, dest: &str) -> Vec<Timestamp> {
        let text = std::fs::read_to_string(self.starts_file()).unwrap_or_default();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a whole line"));
        lines
            .filter(|line| line["event"] == "start" && line["dest"] == dest)
            .map(|line| line["time"].as_str().unwrap().parse().unwrap())
            .collect()
    }

    fn js(&self) -> async_nats::jetstream::Context {
        async_nats::jetstream::new(self.client.clone())
    }

    async fn queue_empties(&self) {
        let js = self.js();
        eventually("the queue is empty", PATIENCE, async || queue_is_empty(&js, "SIP_CALLS").await).await;
        eventually("no timer is left", PATIENCE, async || queue_is_empty(&js, "SIP_SCHEDULE").await).await;
    }

    /// Runs a command of the operator against this queue.
    async fn command(&self, arguments: &[&str]) -> Output {
        let mut command = tokio::process::Command::new(BINARY);
        command.args(arguments).env("NATS_URL", self.nats.url());
        command.output().await.expect("the program runs")
    }
}

fn with(mut request: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn in_seconds(seconds: i64) -> String {
    (Timestamp::now() + SignedDuration::from_secs(seconds)).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_callee_is_called_again_and_one_who_declined_is_not() {
    let desk = Desk::set().await;
    let operator = Operator::start(desk.options()).await;
    let again = json!({"id": "busy", "max_attempts": 3, "retry_delay": 1});
    assert_eq!(post_call(operator.base(), &with(request("+49486", "a"), again)).await.status, 202);
    let declined = json!({"id": "declined", "max_attempts": 3, "retry_delay": 1});
    assert_eq!(post_call(operator.base(), &with(request("+49603", "b"), declined)).await.status, 202);

    let end = desk.events.final_of("busy", PATIENCE).await;
    assert_eq!(
        (end.status, end.attempt, end.outcome, end.sip_code),
        (Status::Failed, 3, Some(Outcome::Busy), Some(486))
    );
    use Status::*;
    let attempt = [Pending, Running, Failed, Scheduled];
    let expected = [&[Queued][..], &attempt, &attempt, &attempt[..3]].concat();
    assert_eq!(desk.events.statuses_of("busy"), expected);
    let finals = desk.events.events_of("busy").iter().filter(|event| event.is_final).count();
    assert_eq!(finals, 1, "only the last attempt is the end of the call");
    let starts = desk.starts("+49486");
    assert_eq!(starts.len(), 3);
    assert!(starts[2].duration_since(starts[1]) >= SignedDuration::from_secs(2), "the delay doubles: {starts:?}");

    let end = desk.events.final_of("declined", PATIENCE).await;
    assert_eq!((end.attempt, end.outcome), (1, Some(Outcome::Declined)));
    desk.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_waits_for_its_moment_through_a_restart_of_everything() {
    let desk = Desk::set().await;
    let operator = Operator::start(desk.options()).await;
    let not_before = in_seconds(6);
    let later = json!({"id": "later", "not_before": not_before});
    assert_eq!(post_call(operator.base(), &with(request("+491", "a"), later)).await.status, 202);
    desk.events
        .until("the call is scheduled", PATIENCE, |events| events.iter().any(|e| e.status == Status::Scheduled))
        .await;
    let js = desk.js();
    eventually("its message has left the queue", PATIENCE, async || queue_is_empty(&js, "SIP_CALLS").await).await;

    desk.nats.restart().await;
    let operator = operator.restart().await;
    let shown = async || get_json(operator.base(), "/jobs/later").await.json["status"] == "succeeded";
    eventually("the call succeeds", PATIENCE, shown).await;
    let starts = desk.starts("+491");
    assert_eq!(starts.len(), 1);
    let due: Timestamp = not_before.parse().unwrap();
    assert!(starts[0] >= due, "{} is before {due}", starts[0]);
    desk.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_too_late_expires_in_the_queue_and_between_redials() {
    let desk = Desk::set().await;
    let mut late = with(request("+491", "a"), json!({"id": "late", "not_after": in_seconds(-60)}));
    desk.client.flush().await.unwrap();
    let operator = Operator::start(desk.options()).await;
    assert_eq!(post_call(operator.base(), &late).await.status, 202);
    let end = desk.events.final_of("late", PATIENCE).await;
    assert_eq!((end.status, end.attempt), (Status::Expired, 0));

    let redialled = json!({"id": "redialled", "max_attempts": 5, "retry_delay": 3600, "not_after": in_seconds(600)});
    late = with(request("+49486", "b"), redialled);
    assert_eq!(post_call(operator.base(), &late).await.status, 202);
    let end = desk.events.final_of("redialled", PATIENCE).await;
    assert_eq!((end.status, end.attempt, end.outcome), (Status::Expired, 1, Some(Outcome::Busy)));
    assert_eq!((desk.starts("+491").len(), desk.starts("+49486").len()), (0, 1));
    desk.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_cancelled_without_a_job_and_asking_again_changes_nothing() {
    let desk = Desk::set().await;
    let operator = Operator::start(desk.options().env("MAX_ACTIVE_CALLS", 1).env("SIMULATE_SECONDS", "4")).await;
    let first = json!({"id": "first"});
    post_call(operator.base(), &with(request("+490", "a"), first)).await;
    desk.events
        .until("the first call runs", PATIENCE, |events| events.iter().any(|e| e.status == Status::Running))
        .await;
    for number in 1..=3 {
        let queued = json!({"id": format!("queued-{number}"), "batch": "march"});
        post_call(operator.base(), &with(request("+491", "b"), queued)).await;
    }
    let later = json!({"id": "scheduled", "batch": "march", "not_before": in_seconds(3600)});
    post_call(operator.base(), &with(request("+491", "c"), later)).await;

    let reply = delete(operator.base(), "/jobs/queued-1").await;
    assert_eq!((reply.status.as_u16(), &reply.json["status"]), (202, &json!("cancelled")));
    assert_eq!(delete(operator.base(), "/jobs/queued-1").await.json["status"], "cancelled");
    assert_eq!(delete(operator.base(), "/jobs/nobody").await.status, 404);

    let reply = delete(operator.base(), "/jobs?batch=march").await;
    assert_eq!(reply.json, json!({"cancelled": 4, "cancelling": 0, "ended": 0}));
    assert_eq!(desk.events.final_of("first", PATIENCE).await.status, Status::Succeeded);
    desk.queue_empties().await;
    assert_eq!(desk.starts("+491").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_call_is_stopped_and_a_call_that_has_ended_stays_as_it_ended() {
    let desk = Desk::set().await;
    let operator = Operator::start(desk.options().env("SIMULATE_SECONDS", "60")).await;
    post_call(operator.base(), &with(request("+490", "a"), json!({"id": "long"}))).await;
    desk.events.until("the call runs", PATIENCE, |events| events.iter().any(|e| e.status == Status::Running)).await;
    let reply = delete(operator.base(), "/jobs/long").await;
    assert_eq!((reply.status.as_u16(), &reply.json["status"]), (202, &json!("cancelling")));
    let end = desk.events.final_of("long", Duration::from_secs(20)).await;
    assert_eq!((end.status, end.reason.as_deref()), (Status::Cancelled, Some("cancelled")));
    assert_eq!(delete(operator.base(), "/jobs/long").await.json["status"], "cancelled");
    desk.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_a_running_call_deletes_its_job_and_ends_its_pod() {
    let stage = Stage::cluster(120.0).await;
    let operator = stage.operator().await;
    post_call(operator.base(), &with(request("+490", "a"), json!({"id": "long"}))).await;
    stage.events.until("the call runs", PATIENCE, |events| events.iter().any(|e| e.status == Status::Running)).await;
    assert_eq!(delete(operator.base(), "/jobs/long").await.json["status"], "cancelling");
    let end = stage.events.final_of("long", PATIENCE).await;
    assert_eq!((end.status, end.reason.as_deref()), (Status::Cancelled, Some("cancelled")));
    let jobs = stage.namespace().api::<k8s_openapi::api::batch::v1::Job>();
    eventually("the Job is gone", PATIENCE, async || jobs.list(&Default::default()).await.unwrap().items.is_empty())
        .await;
    assert_eq!(stage.node().start_count(), 1);
    stage.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_evenly_spaced_over_two_replicas() {
    let desk = Desk::set().await;
    let replica = |name: &str| {
        let options = OperatorOptions::local(&desk.nats, &desk.folder.join(name));
        let options = options.env("SIMULATE_SECONDS", "0.2").env("SIMULATE_LOG", desk.starts_file().display());
        options.env("CALLS_PER_SECOND", 4).env("CLUSTER_NAME", name)
    };
    let operators = [Operator::start(replica("a")).await, Operator::start(replica("b")).await];
    for number in 0..16 {
        let id = json!({"id": format!("call-{number}")});
        post_call(operators[number % 2].base(), &with(request("+490", "a"), id)).await;
    }
    desk.events.until("all have ended", PATIENCE, |events| events.iter().filter(|e| e.is_final).count() == 16).await;
    let claimed =
        |event: &sipstuff_operator::call::StatusEvent| (event.status == Status::Pending).then_some(event.time);
    let mut times: Vec<_> = desk.events.heard().iter().filter_map(|heard| claimed(&heard.event)).collect();
    times.sort();
    let span = times[15].duration_since(times[0]).as_secs_f64();
    assert!(span >= 15.0 / 4.0 - 0.3, "16 calls at 4 per second took {span} s");
    for pair in times.windows(3) {
        let two = pair[2].duration_since(pair[0]).as_secs_f64();
        assert!(two > 0.25, "three calls within {two} s are a burst: {times:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_listed_shown_edited_and_sent_back() {
    let desk = Desk::set().await;
    let operator = Operator::start(desk.options()).await;
    let bad = json!({"id": "typo", "dst": "+490", "text": "a", "sip_password": "s3cret"});
    desk.client.publish("sip.calls", bad.to_string().into()).await.unwrap();
    assert_eq!(desk.events.final_of("typo", PATIENCE).await.status, Status::Rejected);
    desk.queue_empties().await;

    let listed = text(&desk.command(&["dead", "list"]).await);
    assert!(listed.contains("typo") && listed.contains("dst"), "{listed}");
    let shown = text(&desk.command(&["dead", "show", "1"]).await);
    assert!(shown.contains("\"dst\"") && !shown.contains("s3cret"), "{shown}");
    let refused = desk.command(&["dead", "replay", "1"]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert_eq!(messages_in(&desk.js(), "SIP_DEAD").await, 1, "what would be refused again stays");

    let good = with(request("+490", "a"), json!({"id": "typo"})).to_string();
    let replayed = desk.command(&["dead", "replay", "1", "--data", &good]).await;
    assert!(replayed.status.success(), "{}", text(&replayed));
    let js = desk.js();
    let ended = async || get_json(operator.base(), "/jobs/typo").await.json["status"] == "succeeded";
    eventually("the edited call succeeds", PATIENCE, ended).await;
    assert_eq!(messages_in(&js, "SIP_DEAD").await, 0);
    assert_eq!(desk.starts("+490").len(), 1);

    desk.client.publish("sip.calls", "not json".into()).await.unwrap();
    eventually("another letter", PATIENCE, async || messages_in(&js, "SIP_DEAD").await == 1).await;
    assert!(text(&desk.command(&["dead", "purge", "--all"]).await).contains("1 thrown away"));
    assert_eq!(messages_in(&js, "SIP_DEAD").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_forgets_nothing() {
    let desk = Desk::set().await;
    let options = desk.options().env("QUEUE_MAX_MESSAGES", 3).env("MAX_ACTIVE_CALLS", 1).env("SIMULATE_SECONDS", "1");
    let operator = Operator::start(options).await;
    let mut accepted = Vec::new();
    let refused = loop {
        let id = format!("call-{}", accepted.len());
        let reply = post_call(operator.base(), &with(request("+490", "a"), json!({"id": id}))).await;
        match reply.status.as_u16() {
            202 => accepted.push(id),
            _ => break reply,
        }
        assert!(accepted.len() < 10, "the queue never fills up");
    };
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.headers.contains_key("retry-after"));
    let unknown = get_json(operator.base(), &format!("/jobs/call-{}", accepted.len())).await;
    assert_eq!(unknown.status, 404, "a refused call leaves nothing behind");
    for id in &accepted {
        assert_eq!(desk.events.final_of(id, PATIENCE).await.status, Status::Succeeded);
    }
    assert_eq!(desk.starts("+490").len(), accepted.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_another_cluster_is_left_alone() {
    let desk = Desk::set().await;
    let mut first = Operator::start(desk.options().env("SIMULATE_SECONDS", "6")).await;
    post_call(first.base(), &with(request("+490", "a"), json!({"id": "theirs"}))).await;
    desk.events.until("the call runs", PATIENCE, |events| events.iter().any(|e| e.status == Status::Running)).await;
    first.terminate(PATIENCE).await;

    let options = OperatorOptions::local(&desk.nats, &desk.folder.join("other"));
    let second = Operator::start(options.env("SIMULATE_LOG", desk.starts_file().display())).await;
    post_call(second.base(), &with(request("+491", "b"), json!({"id": "ours"}))).await;
    assert_eq!(desk.events.final_of("ours", PATIENCE).await.status, Status::Succeeded);
    eventually("the other cluster's call was looked at", PATIENCE, async || second.log().contains("GiveBack")).await;
    drop(second);

    let _first = first.restart().await;
    assert_eq!(desk.events.final_of("theirs", PATIENCE).await.status, Status::Succeeded);
    assert_eq!(desk.starts("+490").len(), 1);
    desk.queue_empties().await;
}
