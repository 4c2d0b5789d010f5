//! OpenAPI 3.1 (<https://spec.openapis.org/oas/v3.1.0>): the HTTP API.

use serde_json::{Map, Value, json};

use super::{info, received, sent};
use crate::api::{BatchState, Cancelled, QueueState, TrunkState};
use crate::call::validate::names;
use crate::call::{CallRequest, Status, cloud_event};
use crate::http::{Accepted, Job, JobWithOutlook};

pub(super) fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": info(
            "sipstuff-operator",
            "Places SIP phone calls: each request becomes one Kubernetes Job. Errors are RFC 9457 problem documents.",
        ),
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "calls", "description": "Place calls and see their outcomes."},
            {"name": "operation", "description": "For probes and for those who run the operator."},
        ],
        "paths": {
            "/call": {"post": submit()},
            "/jobs": {"get": list(), "delete": cancel_all()},
            "/jobs/{name}": {"get": show(), "delete": cancel()},
            "/batches/{batch}": {"get": show_batch(), "delete": cancel_batch()},
            "/trunks": {"get": trunks()},
            "/trunks/{trunk}/jobs": {"delete": cancel_trunk()},
            "/health": {"get": health("health", "Whether the process serves")},
            "/livez": {"get": health("livez", "The same as /health, under the name that Kubernetes uses")},
            "/readyz": {"get": ready()},
            "/metrics": {"get": metrics()},
            "/openapi.json": {"get": openapi()},
        },
        "components": {"schemas": schemas(), "responses": problems()},
    })
}

fn schemas() -> Value {
    json!({
        "CallRequest": received::<CallRequest>("Call request"),
        "Accepted": sent::<Accepted<'static>>("Accepted call"),
        "Job": sent::<Job<'static>>("Call"),
        "Status": sent::<Status>("Status"),
        "CallInFull": sent::<JobWithOutlook<'static>>("Call with what it may expect"),
        "Cancelled": sent::<Cancelled>("Cancelled calls"),
        "BatchState": sent::<BatchState>("State of a batch"),
        "QueueState": sent::<QueueState>("State of the queue"),
        "TrunkState": sent::<TrunkState>("State of a trunk"),
        "Health": {
            "type": "object",
            "required": ["status", "version"],
            "properties": {"status": {"const": "ok"}, "version": {"type": "string", "description": "The operator's version."},
                "queue": {"anyOf": [component("QueueState"), {"type": "null"}], "description": "The state of the queue, at most a few seconds old; null while NATS does not answer. Only in /health."},
                "trunks": {"anyOf": [{"type": "array", "items": component("TrunkState")}, {"type": "null"}], "description": "The trunks, as `GET /trunks` lists them; null while NATS does not answer. Only in /health."},
            },
        },
        "Ready": readiness(),
        "Problem": problem(),
    })
}

fn readiness() -> Value {
    json!({
        "type": "object",
        "required": ["ready", "checks"],
        "properties": {
            "ready": {"type": "boolean", "description": "Whether everything is ready."},
            "checks": {"type": "array", "items": {
                "type": "object",
                "required": ["name", "ready", "detail"],
                "properties": {
                    "name": {"type": "string", "description": "`nats`, `runner` or `index`."},
                    "ready": {"type": "boolean"},
                    "detail": {"type": "string", "description": "More for people."},
                },
            }},
        },
    })
}

fn problem() -> Value {
    json!({
        "type": "object",
        "description": "RFC 9457.",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string", "format": "uri", "description": "`urn:sipstuff:problem:` and a word that never changes."},
            "title": {"type": "string"},
            "status": {"type": "integer", "description": "The HTTP status."},
            "detail": {"type": "string", "description": "What is wrong with this request, and what to do about it."},
            "errors": {"type": "array", "description": "Every field that is wrong.", "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {
                    "field": {"type": "string", "description": "The field; empty for the request as a whole."},
                    "message": {"type": "string", "description": "What is wrong with it and what is accepted."},
                },
            }},
        },
    })
}

/// Every error that the API can answer, by the status that it has.
const PROBLEMS: [(&str, &str); 11] = [
    ("400", "The body is not JSON, or the request cannot be read."),
    ("403", "The request comes from a page of another origin."),
    ("404", "There is no such call."),
    ("408", "The body took too long to arrive."),
    ("409", "The request's `id` belongs to another request, and the first call is untouched; or no trunk can dial it."),
    ("411", "The length of the body must be given."),
    ("413", "The request is too large."),
    ("415", "The body must be JSON."),
    (
        "422",
        "The request is not valid (`errors` names every field), or its `Idempotency-Key` was used for another request.",
    ),
    ("500", "The operator failed."),
    (
        "503",
        "The queue is full, NATS does not answer, or the index of calls is not complete; nothing was accepted or done, and the same request may be sent again.",
    ),
];

fn problems() -> Value {
    let response = |(status, description): (&str, &str)| {
        let mut response = json!({
            "description": description,
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        });
        if status == "503" {
            response["headers"] =
                json!({"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}});
        }
        (format!("Problem{status}"), response)
    };
    Value::Object(PROBLEMS.into_iter().map(response).collect())
}

/// The answers of a route: the good one, and those of the problems above.
fn responses(status: &str, good: Value, problems: &[&str]) -> Value {
    let reference =
        |status: &&str| ((*status).to_owned(), json!({"$ref": format!("#/components/responses/Problem{status}")}));
    let mut responses: Map<_, _> = problems.iter().map(reference).collect();
    responses.insert(status.to_owned(), good);
    Value::Object(responses)
}

fn body(description: &str, schema: &Value) -> Value {
    json!({"description": description, "content": {"application/json": {"schema": schema}}})
}

fn component(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// 1 to 128 printable characters, or a string in quotes (RFC 8941) of as many.
const KEY_PATTERN: &str = r#"^([!#-~]([ -~]{0,126}[!-~])?|"([ !#-\[\]-~]|\\["\\]){1,128}")$"#;

fn submit() -> Value {
    let mut accepted = body(
        "The call is in the queue, durably. The same id and request again answers its present state.",
        &component("Accepted"),
    );
    accepted["headers"] = json!({"Location": {"description": "The path of the call.", "schema": {"type": "string"}}});
    json!({
        "operationId": "submitCall",
        "tags": ["calls"],
        "summary": "Ask for a call",
        "parameters": [{
            "name": "Idempotency-Key",
            "in": "header",
            "description": "The call's id, where the body has no `id`: sent again with the same request, no second call is made. \
                In quotes, as the draft asks (draft-ietf-httpapi-idempotency-key-header), or without.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 258, "pattern": KEY_PATTERN},
        }, {
            "name": "traceparent",
            "in": "header",
            "description": "The trace that the request belongs to (W3C Trace Context): handed on to the call's events and to its \
                caller. An invalid one is ignored.",
            "schema": {"type": "string"},
        }],
        "requestBody": {
            "required": true,
            "content": {
                "application/json": {
                    "schema": component("CallRequest"),
                    "examples": {"smallest": {"value": {"dest": "+4930123456", "text": "Hello"}}},
                },
                cloud_event::STRUCTURED: {"schema": cloud_event()},
            },
        },
        "responses": responses("202", accepted, &["400", "403", "408", "409", "411", "413", "415", "422", "500", "503"]),
    })
}

/// A CloudEvent in structured mode; in binary mode its attributes are headers, `ce-…`.
fn cloud_event() -> Value {
    let text = |pattern: &str, description: &str| json!({"type": "string", "minLength": 1, "pattern": pattern, "description": description});
    let (line, token) = (r"^[^\x00-\x1f\x7f-\x9f]+$", r"^[^\x00-\x20\x7f-\x9f]+$");
    json!({
        "type": "object",
        "description": "A CloudEvent 1.0 whose data is the request. Where that has no `id`, the call's is `<source> <id>`, or a hash of it if it is longer than an id may be.",
        "required": ["specversion", "type", "source", "id", "data"],
        "properties": {
            "specversion": {"const": "1.0"},
            "type": text(line, "What happened."),
            "source": text(token, "Where it happened: a URI reference."),
            "id": text(line, "Which event of the source it is."),
            "datacontenttype": {"type": ["string", "null"], "pattern": "^application/json(;|$)"},
            "data": component("CallRequest"),
        },
    })
}

fn list() -> Value {
    let query = |name: &str, description: &str, schema: Value| json!({"name": name, "in": "query", "description": description, "schema": schema});
    let cursor = json!({"type": "string", "pattern": "^[0-9a-f]{28}$"});
    let mut page = body("A page of calls.", &json!({"type": "array", "items": component("Job")}));
    page["headers"] = json!({"Link": {
        "description": "`rel=\"next\"`: the next page, when there is one (RFC 8288).",
        "schema": {"type": "string"},
    }});
    json!({
        "operationId": "listCalls",
        "tags": ["calls"],
        "summary": "List calls, newest first",
        "parameters": [
            query("limit", "Most calls on a page. It has fewer where their records are long: about 4 MiB of them are on a page.", json!({"type": "integer", "minimum": 1, "maximum": 1000, "default": 100})),
            query("cursor", "Where the page before ended, from its `Link` header.", cursor),
            query("status", "Only calls in this state.", component("Status")),
            query("batch", "Only calls of this batch.", batch()),
        ],
        "responses": responses("200", page, &["400", "422", "500", "503"]),
    })
}

fn batch() -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": 63, "pattern": names::LABEL_VALUE_PATTERN})
}

fn show() -> Value {
    json!({
        "operationId": "showCall",
        "tags": ["calls"],
        "summary": "See how a call is",
        "parameters": [name_or_id()],
        "responses": responses("200", body("The call.", &component("CallInFull")), &["400", "404", "500", "503"]),
    })
}

fn name_or_id() -> Value {
    json!({
        "name": "name",
        "in": "path",
        "required": true,
        "description": "The name of any of the call's Jobs, or the call's id (percent-encoded).",
        "schema": {"type": "string", "minLength": 1},
    })
}

fn cancel() -> Value {
    let good = body(
        "The call's state from now on: `cancelled` when it was waiting, `cancelling` while its Job is being stopped, or as it had ended.",
        &component("Job"),
    );
    json!({
        "operationId": "cancelCall",
        "tags": ["calls"],
        "summary": "Cancel a call; asking again changes nothing",
        "parameters": [name_or_id()],
        "responses": responses("202", good, &["400", "403", "404", "500", "503"]),
    })
}

fn cancel_all() -> Value {
    json!({
        "operationId": "cancelCallsOfBatch",
        "tags": ["calls"],
        "summary": "Cancel every call of a batch that has not ended",
        "parameters": [{
            "name": "batch",
            "in": "query",
            "required": true,
            "description": "The batch. No other parameter is accepted.",
            "schema": batch(),
        }],
        "responses": responses("202", cancelled(), &["400", "403", "422", "500", "503"]),
    })
}

fn cancel_trunk() -> Value {
    let name = json!({"type": "string", "minLength": 1, "maxLength": 63, "pattern": names::DNS_LABEL_PATTERN});
    json!({
        "operationId": "cancelCallsOfTrunk",
        "tags": ["calls"],
        "summary": "Cancel every call that is in progress on a trunk, or waits and would rather be dialled on it than on another",
        "parameters": [{"name": "trunk", "in": "path", "required": true, "description": "The trunk.", "schema": name}],
        "responses": responses("202", cancelled(), &["400", "403", "422", "500", "503"]),
    })
}

fn cancelled() -> Value {
    body("How many, by what became of them.", &component("Cancelled"))
}

fn batch_in_path() -> Value {
    json!({"name": "batch", "in": "path", "required": true, "description": "The batch.", "schema": batch()})
}

fn show_batch() -> Value {
    json!({
        "operationId": "showBatch",
        "tags": ["calls"],
        "summary": "See how a batch is: its calls by state, and about when the last of them is dialled",
        "parameters": [batch_in_path()],
        "responses": responses("200", body("The batch.", &component("BatchState")), &["400", "404", "422", "500", "503"]),
    })
}

fn cancel_batch() -> Value {
    json!({
        "operationId": "cancelBatch",
        "tags": ["calls"],
        "summary": "Cancel every call of a batch that has not ended",
        "parameters": [batch_in_path()],
        "responses": responses("202", cancelled(), &["400", "403", "422", "500", "503"]),
    })
}

fn metrics() -> Value {
    let good = json!({
        "description": "Gauges, as OpenMetrics text.",
        "content": {"application/openmetrics-text": {"schema": {"type": "string"}}},
    });
    json!({"operationId": "metrics", "tags": ["operation"], "summary": "What there is to measure", "responses": responses("200", good, &[])})
}

fn health(id: &str, summary: &str) -> Value {
    let good = body("The process serves.", &component("Health"));
    json!({"operationId": id, "tags": ["operation"], "summary": summary, "responses": responses("200", good, &[])})
}

fn trunks() -> Value {
    let states = json!({"type": "array", "items": component("TrunkState")});
    let good = body("The trunks, in the order of the configuration; at most a few seconds old.", &states);
    let summary = "How the trunks are: channels, calls in progress and waiting, and what stops dialling on them";
    json!({"operationId": "listTrunks", "tags": ["operation"], "summary": summary, "responses": responses("200", good, &["503"])})
}

fn ready() -> Value {
    let mut responses = responses("200", body("Everything is ready.", &component("Ready")), &[]);
    responses["503"] = body("Something is not ready.", &component("Ready"));
    let summary = "Whether calls can be taken: NATS, the runner and the call index, each by name";
    json!({"operationId": "readyz", "tags": ["operation"], "summary": summary, "responses": responses})
}

fn openapi() -> Value {
    let good = body("OpenAPI 3.1.", &json!({"type": "object"}));
    json!({"operationId": "openapi", "tags": ["operation"], "summary": "This document", "responses": responses("200", good, &[])})
}
