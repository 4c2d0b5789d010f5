//! Every header that `schemas/asyncapi.json` names is one that the operator sends or understands, and a trace goes with a call
//! from its request to its events and its caller.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Value, json};
use sipstuff_operator::call::{Priority, Status, StatusEvent};

use crate::support::http::{http_client, send};
use crate::support::process::Scratch;
use crate::support::status::Heard;
use crate::support::{Operator, PATIENCE, Setup, eventually, eventually_some};

/// The headers that the document names for a message.
fn documented(message: &str) -> BTreeSet<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/asyncapi.json");
    let document: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let headers = &document["components"]["messages"][message]["headers"]["properties"];
    headers.as_object().unwrap().keys().cloned().collect()
}

fn trace(number: u8) -> String {
    format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b71692033{number:02x}-01")
}

/// A request of that id. The caller of [`Traced`] finds everybody busy whose text is `busy`.
fn request(id: &str, more: Value) -> String {
    let mut request = json!({"id": id, "dest": "+4930200", "text": "Hello"});
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request.to_string()
}

/// An operator whose caller writes down the trace that it is told.
struct Traced {
    setup: Setup,
    operator: Operator,
    traces: PathBuf,
    _folder: Scratch,
}

impl Traced {
    async fn start() -> Self {
        let (setup, folder) = (Setup::local(0.0).await, Scratch::new("traces"));
        let (caller, traces) = (folder.join("caller.sh"), folder.join("traces"));
        let script = format!(
            "echo \"${{TRACEPARENT-none}}\" >>{}\n\
             case $* in *busy*) echo '2026-11-25 | INFO | a - Call state: DISCONNECTED (last code: 486)' >&2; exit 1 ;; esac\n",
            traces.display()
        );
        std::fs::write(&caller, script).unwrap();
        let options = setup.options().env("LOCAL_CALLER", format!("sh {}", caller.display()));
        let operator = Operator::start(options).await;
        Self { setup, operator, traces, _folder: folder }
    }

    /// What the callers were told, in order.
    fn told(&self) -> Vec<String> {
        std::fs::read_to_string(&self.traces).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// What was published of a call, once its end was.
    async fn heard(&self, id: &str) -> Vec<Heard> {
        self.setup.events.final_of(id, PATIENCE).await;
        self.setup.events.heard().into_iter().filter(|heard| heard.event.id.as_str() == id).collect()
    }

    /// Asserts that every event of a call has this trace, in the record and as a header, and so has every attempt's caller.
    async fn is_traced(&self, id: &str, expected: Option<&str>) -> StatusEvent {
        let heard = self.heard(id).await;
        for Heard { event, headers, .. } in &heard {
            let header = headers.get("traceparent").map(|value| value.as_str());
            let field = event.traceparent.as_ref().map(|traceparent| traceparent.as_str());
            assert_eq!((header, field), (expected, expected), "{id} {}", event.status);
        }
        let last = heard.last().unwrap().event.clone();
        if let Some(expected) = expected {
            let told = self.told().iter().filter(|told| *told == expected).count();
            assert_eq!(told, last.attempt as usize, "{id}: {:?}", self.told());
        }
        last
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_from_the_request_to_every_event_and_to_the_caller() {
    let traced = Traced::start().await;
    let post = http_client().post(format!("{}/call", traced.operator.base())).header("traceparent", trace(1));
    let reply = send(post.header("content-type", "application/json").body(request("by-http", json!({})))).await;
    assert_eq!(reply.status, 202, "{reply:?}");
    traced.setup.publish(&[("traceparent", &trace(2))], request("by-nats", json!({}))).await;
    let soon = (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(2)).to_string();
    traced.setup.publish(&[("traceparent", &trace(3))], request("later", json!({"not_before": soon}))).await;
    let busy = json!({"text": "busy", "max_attempts": 2, "retry_delay": 1});
    traced.setup.publish(&[("traceparent", &trace(4))], request("busy", busy)).await;

    assert_eq!(traced.is_traced("by-http", Some(&trace(1))).await.status, Status::Succeeded);
    assert_eq!(traced.is_traced("by-nats", Some(&trace(2))).await.status, Status::Succeeded);
    assert_eq!(traced.is_traced("later", Some(&trace(3))).await.status, Status::Succeeded);
    assert_eq!(traced.is_traced("busy", Some(&trace(4))).await.attempt, 2);
    let shown = send(http_client().get(format!("{}/jobs/by-nats", traced.operator.base()))).await;
    assert_eq!(shown.json["traceparent"], json!(trace(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_rejected_keeps_its_trace() {
    let traced = Traced::start().await;
    traced.setup.publish(&[("traceparent", &trace(1))], request("bad", json!({"timeout": 0}))).await;
    let [rejected] = &traced.heard("bad").await[..] else { panic!("one event") };
    assert_eq!((rejected.event.status, rejected.event.attempt), (Status::Rejected, 0));
    assert_eq!(rejected.headers.get("traceparent").map(|value| value.as_str()), Some(trace(1).as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_trace_is_ignored() {
    let traced = Traced::start().await;
    let zero = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
    traced.setup.publish(&[("traceparent", zero)], request("by-nats", json!({}))).await;
    let post = http_client().post(format!("{}/call", traced.operator.base())).header("traceparent", "mine");
    let reply = send(post.header("content-type", "application/json").body(request("by-http", json!({})))).await;
    assert_eq!(reply.status, 202, "{reply:?}");
    for id in ["by-nats", "by-http"] {
        assert_eq!(traced.is_traced(id, None).await.status, Status::Succeeded);
    }
    assert_eq!(traced.told(), ["none", "none"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_header_of_a_request_is_understood() {
    let Traced { setup, operator: _operator, .. } = &Traced::start().await;
    let nameless = json!({"dest": "+4930200", "text": "Hello"}).to_string();
    for header in documented("callRequest") {
        match header.as_str() {
            "Nats-Msg-Id" => {
                setup.publish(&[(&header, "by-msg-id")], nameless.clone()).await;
                assert_eq!(setup.end_of("by-msg-id").await.status, Status::Succeeded);
            }
            "Sip-Call-Id" => {
                setup.publish(&[(&header, "by-call-id"), ("Nats-Msg-Id", "not-this")], nameless.clone()).await;
                assert_eq!(setup.end_of("by-call-id").await.status, Status::Succeeded);
                assert!(setup.state("not-this").await.is_none());
            }
            "Sip-Attempt" => {
                // The operator's own message of the second attempt has it, on its way through the server's timer.
                let busy = json!({"text": "busy", "max_attempts": 2, "retry_delay": 2});
                setup.publish(&[], request("attempts", busy)).await;
                let timer = eventually_some("the timer of the redial", PATIENCE, async || {
                    let stream = setup.js.get_stream("SIP_SCHEDULE").await.ok()?;
                    let job = setup.state("attempts").await?.name.job(2);
                    stream.get_last_raw_message_by_subject(&format!("sip.schedule.{job}")).await.ok()
                })
                .await;
                assert_eq!(timer.headers.get(header.as_str()).map(|value| value.as_str()), Some("2"));
                assert_eq!(setup.end_of("attempts").await.attempt, 2);
            }
            "Sip-Queued-At" => {
                let before = "2026-11-01T10:00:00.123Z";
                setup.publish(&[(&header, before)], request("waited", json!({}))).await;
                assert_eq!(setup.end_of("waited").await.queued_at.to_string(), before);
            }
            "Sip-Priority" => {
                setup.publish(&[(&header, "bulk")], request("by-priority", json!({}))).await;
                assert_eq!(setup.end_of("by-priority").await.priority, Priority::Bulk);
            }
            "ce-id" => {
                let event = [("ce-specversion", "1.0"), ("ce-type", "t"), ("ce-source", "/shop"), ("ce-id", "42")];
                setup.publish(&event, nameless.clone()).await;
                assert_eq!(setup.end_of("/shop 42").await.status, Status::Succeeded);
            }
            // Together with the one above.
            "ce-specversion" | "ce-type" | "ce-source" => {}
            "traceparent" => {
                setup.publish(&[(&header, &trace(9))], request("traced", json!({}))).await;
                let traceparent = setup.end_of("traced").await.traceparent;
                assert_eq!(traceparent.map(|traceparent| traceparent.to_string()), Some(trace(9)));
            }
            other => panic!("nothing here tests the header {other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_header_of_an_event_and_of_a_dead_letter_is_sent() {
    let traced = Traced::start().await;
    traced.setup.publish(&[("traceparent", &trace(1))], request("event", json!({}))).await;
    // As large as the server takes, so that it is cut.
    traced.setup.publish(&[], vec![b'x'; 1024 * 1024]).await;

    for Heard { event, headers, .. } in traced.heard("event").await {
        for name in documented("statusEvent") {
            assert!(headers.get(name.as_str()).is_some(), "{} has no {name}", event.status);
        }
    }
    eventually("the dead letter is put aside", PATIENCE, async || traced.setup.in_flight().await == 0).await;
    let dead = traced.setup.js.get_stream("SIP_DEAD").await.unwrap();
    let letter = dead.get_last_raw_message_by_subject("sip.dead").await.unwrap();
    for name in documented("deadLetter") {
        assert!(letter.headers.get(name.as_str()).is_some(), "a dead letter has no {name}");
    }
}
