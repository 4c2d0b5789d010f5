//! Requests that come as CloudEvents, made by the SDK: structured and binary, over NATS and HTTP.

use cloudevents::{Event, EventBuilder, EventBuilderV10};
use serde_json::{Value, json};
use sipstuff_operator::call::Status;

use crate::support::http::{Reply, http_client, send};
use crate::support::{Operator, Setup};

const STRUCTURED: &str = "application/cloudevents+json";

fn event(id: &str, data: Value) -> Event {
    let builder = EventBuilderV10::new().id(id).source("https://shop.example/orders").ty("shop.order.late");
    builder.data("application/json", data).build().expect("a valid event")
}

fn request(text: &str) -> Value {
    json!({"dest": "+4930200", "text": text})
}

/// The id of the call that an event asks for.
fn id(id: &str) -> String {
    format!("https://shop.example/orders {id}")
}

/// Its attributes as headers.
fn binary(event_id: &str) -> [(&'static str, String); 4] {
    use cloudevents::AttributesReader;
    let event = event(event_id, request("ignored"));
    [
        ("ce-specversion", event.specversion().to_string()),
        ("ce-id", event.id().to_owned()),
        ("ce-source", event.source().to_string()),
        ("ce-type", event.ty().to_owned()),
    ]
}

async fn post(operator: &Operator, media_type: &str, headers: &[(&'static str, String)], body: String) -> Reply {
    let mut post = http_client().post(format!("{}/call", operator.base())).header("content-type", media_type);
    for (name, value) in headers {
        post = post.header(*name, value);
    }
    send(post.body(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_a_call_in_both_modes_over_nats_and_http() {
    let setup = Setup::local(0.1).await;
    let operator = setup.operator().await;
    let structured = |id: &str, text: &str| serde_json::to_string(&event(id, request(text))).unwrap();
    setup.publish(&[("content-type", STRUCTURED)], structured("1", "nats structured")).await;
    let headers = binary("2");
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    setup.publish(&headers, request("nats binary").to_string()).await;
    let reply = post(&operator, STRUCTURED, &[], structured("3", "http structured")).await;
    assert_eq!((reply.status.as_u16(), &reply.json["id"]), (202, &json!(id("3"))), "{reply:?}");
    let reply = post(&operator, "application/json", &binary("4"), request("http binary").to_string()).await;
    assert_eq!((reply.status.as_u16(), &reply.json["id"]), (202, &json!(id("4"))), "{reply:?}");

    for (number, text) in
        [("1", "nats structured"), ("2", "nats binary"), ("3", "http structured"), ("4", "http binary")]
    {
        assert_eq!(setup.end_of(&id(number)).await.status, Status::Succeeded, "{text}");
        assert_eq!(setup.calls_with(text), 1, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_delivered_twice_is_one_call() {
    let setup = Setup::local(0.1).await;
    let operator = setup.operator().await;
    let event = serde_json::to_string(&event("1", request("once"))).unwrap();
    setup.publish(&[("content-type", STRUCTURED)], event.clone()).await;
    setup.publish(&[("content-type", STRUCTURED)], event.clone()).await;
    assert_eq!(setup.end_of(&id("1")).await.status, Status::Succeeded);
    assert_eq!(post(&operator, STRUCTURED, &[], event).await.json["duplicate"], true);
    setup.queue_empties().await;
    assert_eq!(setup.calls_with("once"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_a_request_is_refused_with_what_is_missing() {
    let setup = Setup::local(0.1).await;
    let operator = setup.operator().await;
    let reply =
        post(&operator, STRUCTURED, &[], json!({"specversion": "1.0", "source": "/s", "type": "t"}).to_string()).await;
    assert_eq!((reply.status.as_u16(), &reply.json["errors"][0]["field"]), (422, &json!("id")), "{reply:?}");
    let reply =
        post(&operator, STRUCTURED, &[], serde_json::to_string(&event("1", json!({"dest": "1"}))).unwrap()).await;
    assert_eq!((reply.status.as_u16(), &reply.json["errors"][0]["field"]), (422, &json!("text")), "{reply:?}");
    let reply = post(&operator, "application/cloudevents-batch+json", &[], "[]".to_owned()).await;
    assert_eq!(reply.status, 422, "{reply:?}");
}
