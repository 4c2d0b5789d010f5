//! AsyncAPI 3.0 (<https://www.asyncapi.com/docs/reference/specification/v3.0.0>): the subjects, as the operator sees them,
//! under their default names.

use serde_json::{Value, json};

use super::{info, received, sent};
use crate::call::traceparent::HEADER_TRACEPARENT;
use crate::call::{CallRequest, StatusEvent};
use crate::policy::Alert;
use crate::queue::dead_letters as dead;
use crate::queue::decode::HEADER_PRIORITY;
use crate::queue::inbox::{HEADER_ATTEMPT, HEADER_CALL_ID, HEADER_QUEUED_AT};

pub(super) fn document() -> Value {
    let mut info = info(
        "sipstuff-operator: subjects",
        "Call requests come in on a JetStream work queue, every change of a call's state goes out. Needs nats-server 2.12 or newer.",
    );
    // AsyncAPI knows no SPDX identifier.
    info["license"] = json!({"name": env!("CARGO_PKG_LICENSE")});
    json!({
        "asyncapi": "3.0.0",
        "info": info,
        "defaultContentType": "application/json",
        "servers": {"nats": {"host": "127.0.0.1:4222", "protocol": "nats", "description": "The default of `NATS_URL`."}},
        "channels": channels(),
        "operations": operations(),
        "components": {
            "schemas": {
                "callRequest": received::<CallRequest>("Call request"),
                "statusEvent": sent::<StatusEvent>("Status event"),
                "alert": sent::<Alert>("Alert"),
            },
            "messages": {
                "callRequest": call_request(),
                "statusEvent": status_event(),
                "deadLetter": dead_letter(),
                "alert": alert(),
            },
        },
    })
}

fn channels() -> Value {
    json!({
        "calls": channel("sip.calls", "callRequest", "The queue: stream SIP_CALLS, a work queue that refuses messages when it is full. A publish is accepted once JetStream has acknowledged it."),
        "status": channel("sip.status", "statusEvent", "Every change of every call, republished by the server from stream SIP_STATUS; its `Nats-Sequence` and `Nats-Last-Sequence` headers show a gap."),
        "statusOfCall": status_of_call(),
        "dead": channel("sip.dead", "deadLetter", "Messages that cannot become calls: stream SIP_DEAD."),
        "alert": channel("sip.alert", "alert", "What a person should know of at once: that dialling on a trunk has stopped, that one call probes it, and that it goes on. Not kept in a stream."),
    })
}

fn status_of_call() -> Value {
    let mut channel = channel(
        "sip.status.{name}",
        "statusEvent",
        "The history of one call: its last message is the call's state. Stream SIP_STATUS; to miss nothing, make a durable consumer on it.",
    );
    channel["parameters"] = json!({"name": {"description": "The call's name, which is its first attempt's Job name."}});
    channel
}

fn channel(address: &str, message: &str, description: &str) -> Value {
    json!({
        "address": address,
        "description": description,
        "messages": {message: {"$ref": format!("#/components/messages/{message}")}},
    })
}

fn operations() -> Value {
    json!({
        "receiveCallRequest": operation("receive", "calls", "callRequest", "Places the call that a message asks for."),
        "publishStatus": operation("send", "status", "statusEvent", "Publishes every change of a call's state."),
        "recordChange": operation("send", "statusOfCall", "statusEvent", "Records a change of a call's state, by compare-and-set."),
        "storeDeadLetter": operation("send", "dead", "deadLetter", "Keeps a message that cannot become a call."),
        "publishAlert": operation("send", "alert", "alert", "Publishes that the breaker of a trunk has changed."),
    })
}

fn operation(action: &str, channel: &str, message: &str, summary: &str) -> Value {
    json!({
        "action": action,
        "channel": {"$ref": format!("#/channels/{channel}")},
        "messages": [{"$ref": format!("#/channels/{channel}/messages/{message}")}],
        "summary": summary,
    })
}

fn call_request() -> Value {
    json!({
        "title": "Call request",
        "summary": "Asks for one phone call.",
        "headers": headers(&[
            ("Nats-Msg-Id", "The call's id, where the body has no `id`. The server drops a second message with it within the duplicate window."),
            (HEADER_CALL_ID, "The call's id, where the body has no `id`; goes before `Nats-Msg-Id`, and is kept by the server's scheduler. Set by the operator."),
            (HEADER_PRIORITY, "The call's priority, `urgent`, `normal` or `bulk`, where the body does not name one."),
            (HEADER_ATTEMPT, "Which attempt the message asks for, from 1. Set by the operator on its way through timers and queue; ignored on `sip.calls`."),
            (HEADER_QUEUED_AT, "When the request first entered the inbox, RFC 3339. Set by the operator."),
            ("ce-specversion", "`1.0`: the message is a CloudEvent in binary mode. (In structured mode its `content-type` is `application/cloudevents+json`, and the request is its data.)"),
            ("ce-type", "What happened; required of a CloudEvent."),
            ("ce-source", "With `ce-id`, the call's id where the body has no `id`; required of a CloudEvent."),
            ("ce-id", "With `ce-source`, the call's id where the body has no `id`; required of a CloudEvent."),
            (HEADER_TRACEPARENT, "The trace that the request belongs to (W3C Trace Context): handed on to the status events, and to the caller as `TRACEPARENT`. An invalid one is ignored."),
        ]),
        "payload": {"$ref": "#/components/schemas/callRequest"},
        "examples": [{"name": "smallest", "payload": {"dest": "+4930123456", "text": "Hello"}}],
    })
}

fn status_event() -> Value {
    json!({
        "title": "Status event",
        "summary": "A change of a call's state, with its whole record: a CloudEvent 1.0 in binary mode.",
        "headers": headers(&[
            ("ce-specversion", "`1.0`"),
            ("ce-id", "The call's name, `/`, and the revision: unique per event."),
            ("ce-source", "`/sipstuff-operator`, and `/` and the cluster once one has claimed the call."),
            ("ce-type", "`sipstuff.call.` and the status."),
            ("ce-subject", "The call's name."),
            ("ce-time", "When the change was recorded, RFC 3339."),
            ("content-type", "`application/json`"),
            (HEADER_TRACEPARENT, "The trace that the request belongs to (W3C Trace Context), where it named one."),
        ]),
        "payload": {"$ref": "#/components/schemas/statusEvent"},
    })
}

fn dead_letter() -> Value {
    json!({
        "title": "Dead letter",
        "summary": "A message that cannot become a call: its own payload and headers, and why.",
        "contentType": "application/octet-stream",
        "headers": headers(&[
            (dead::HEADER_REASON, "Why it cannot become a call."),
            (dead::HEADER_SUBJECT, "The subject that it came from."),
            (dead::HEADER_SEQUENCE, "Its sequence in the stream that it came from."),
            (dead::HEADER_TIME, "When it was put aside, RFC 3339."),
            (dead::HEADER_TRUNCATED, "The size of the original in bytes, where there was no room for all of it."),
        ]),
        "payload": {"description": "The original, whatever it is."},
    })
}

fn alert() -> Value {
    json!({
        "title": "Alert",
        "summary": "The breaker of a trunk has changed: a CloudEvent 1.0 in binary mode.",
        "headers": headers(&[
            ("ce-specversion", "`1.0`"),
            ("ce-id", "The trunk's name, `/`, and when it changed: unique per change."),
            ("ce-source", "`/sipstuff-operator`"),
            ("ce-type", "`sipstuff.trunk.` and what has changed: `opened`, `probing` or `closed`."),
            ("ce-subject", "The trunk's name."),
            ("ce-time", "When it changed, RFC 3339."),
            ("content-type", "`application/json`"),
        ]),
        "payload": {"$ref": "#/components/schemas/alert"},
    })
}

/// Headers of a message: all of them text, none of them required.
fn headers(described: &[(&str, &str)]) -> Value {
    let property = |(name, description): &(&str, &str)| {
        ((*name).to_owned(), json!({"type": "string", "description": description}))
    };
    json!({"type": "object", "properties": described.iter().map(property).collect::<serde_json::Map<_, _>>()})
}
