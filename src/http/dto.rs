//! The bodies of responses: first the fields of the Python service (sipstuff-k8s-operator) under its names, then ours.

use std::collections::BTreeMap;

use http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use warp::reply::Response;

use crate::api::{self, Outlook, Readiness};
use crate::call::{Evidence, Outcome, PodRef, Priority, RedialOn, Status, StatusEvent, TraceParent};

/// The answer to `POST /call`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Accepted<'a> {
    /// The call's name, which is the name of its first attempt's Job; `GET /jobs/{job_name}` shows its state.
    pub job_name: &'a str,
    /// Kubernetes namespace of the Job.
    pub namespace: &'a str,
    /// The call's present state: `queued` or `scheduled` unless it is a duplicate.
    pub status: Status,
    /// The call's id.
    pub id: &'a str,
    /// True when the same id and request had been accepted before: no second call is made.
    pub duplicate: bool,
}

impl<'a> From<&'a api::Accepted> for Accepted<'a> {
    fn from(accepted: &'a api::Accepted) -> Self {
        let event = &accepted.event;
        Self {
            job_name: event.name.as_str(),
            namespace: &event.namespace,
            status: event.status,
            id: event.id.as_str(),
            duplicate: !accepted.fresh,
        }
    }
}

/// A call as `GET /jobs` shows it: the five fields of the Python service, then the rest of its last [`StatusEvent`]. Times are RFC 3339.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Job<'a> {
    /// The call's name, which is the name of its first attempt's Job.
    pub name: &'a str,
    /// Kubernetes namespace of the Job.
    pub namespace: &'a str,
    /// The call's present state.
    pub status: Status,
    /// When the Job of the current attempt was made; null before.
    pub created_at: Option<Timestamp>,
    /// When the call ended; null before, also between a failed attempt and its redial.
    pub completed_at: Option<Timestamp>,
    /// The call's id.
    pub id: &'a str,
    /// The current attempt's Job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<&'a str>,
    /// The cluster (or machine) that claimed the attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<&'a str>,
    /// The one pod of the attempt that may dial, once it was chosen; absent where pods have no gate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<&'a PodRef>,
    /// The trunk that the attempt is dialled on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trunk: Option<&'a str>,
    /// The trunks that may dial it, the preferred one first; only while it waits.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub trunks: &'a [String],
    /// How many changes of state there were.
    pub revision: u64,
    /// Whether the call has ended: nothing changes any more.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// Attempt number, from 1; 0 before the first is claimed.
    pub attempt: u32,
    /// How many attempts the call may take.
    pub max_attempts: u32,
    /// What it is dialled again after while attempts are left.
    #[serde(skip_serializing_if = "<[RedialOn]>::is_empty")]
    pub redial_on: &'a [RedialOn],
    /// The batch that the caller named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<&'a str>,
    /// How urgent it is beside others that wait; absent: `normal`.
    #[serde(skip_serializing_if = "Priority::is_default")]
    pub priority: Priority,
    /// The destination that is dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dest: Option<&'a str>,
    /// When the last change was recorded.
    pub time: Timestamp,
    /// When the request entered the queue.
    pub queued_at: Timestamp,
    /// Not dialled before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// When the attempt's pod or process began to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When the attempt is over at the latest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends_by: Option<Timestamp>,
    /// How many attempts did not count, since the fault was ours: the trunk's or the cluster's.
    #[serde(skip_serializing_if = "is_zero")]
    pub faults: u32,
    /// When the next attempt, or a call with `not_before`, is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due_at: Option<Timestamp>,
    /// About how many calls waited to be dialled when this one joined them, of any priority; only while it is `queued`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u64>,
    /// The caller's exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// What became of the attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// The last SIP code that the caller saw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sip_code: Option<u16>,
    /// Why, where the state alone does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    /// The end of the caller's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<&'a str>,
    /// What an answered call was like.
    #[serde(flatten)]
    pub evidence: &'a Evidence,
    /// The caller's own `metadata`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: &'a BTreeMap<String, String>,
    /// Hash of the request, passwords left out.
    pub fingerprint: &'a str,
    /// The trace that the request belongs to (W3C Trace Context).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<&'a str>,
}

/// A call as `GET /jobs/{name}` shows it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct JobWithOutlook<'a> {
    /// The call.
    #[serde(flatten)]
    pub job: Job<'a>,
    /// What it may expect; only while it is `queued`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlook: Option<Outlook>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks for a reference
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl<'a> From<&'a StatusEvent> for Job<'a> {
    fn from(event: &'a StatusEvent) -> Self {
        // Every field by name, so that one added to the event does not compile until it is shown.
        let StatusEvent {
            id,
            name,
            job,
            namespace,
            cluster,
            pod,
            trunk,
            trunks,
            status,
            revision,
            is_final,
            attempt,
            batch,
            priority,
            dest,
            time,
            queued_at,
            not_before,
            created_at,
            started_at,
            completed_at,
            ends_by,
            faults,
            faults_since: _,
            due_at,
            waiting,
            exit_code,
            outcome,
            sip_code,
            reason,
            message,
            evidence,
            metadata,
            fingerprint,
            max_attempts,
            redial_on,
            traceparent,
        } = event;
        Self {
            name: name.as_str(),
            namespace,
            status: *status,
            created_at: *created_at,
            // A client that waits for `completed_at` must not take a failed attempt for the end of the call.
            completed_at: completed_at.filter(|_| *is_final),
            id: id.as_str(),
            job: job.as_deref(),
            cluster: cluster.as_deref(),
            pod: pod.as_ref(),
            trunk: trunk.as_deref(),
            trunks,
            revision: *revision,
            is_final: *is_final,
            attempt: *attempt,
            max_attempts: *max_attempts,
            redial_on,
            batch: batch.as_deref(),
            priority: *priority,
            dest: dest.as_deref(),
            time: *time,
            queued_at: *queued_at,
            not_before: *not_before,
            started_at: *started_at,
            ends_by: *ends_by,
            faults: *faults,
            due_at: *due_at,
            waiting: *waiting,
            exit_code: *exit_code,
            outcome: *outcome,
            sip_code: *sip_code,
            reason: reason.as_deref(),
            message: message.as_deref(),
            evidence,
            metadata,
            fingerprint: fingerprint.as_str(),
            traceparent: traceparent.as_ref().map(TraceParent::as_str),
        }
    }
}

/// The answer to `GET /readyz`.
#[derive(Debug, Serialize)]
pub struct Ready {
    pub ready: bool,
    pub checks: Vec<Readiness>,
}

impl Ready {
    /// Ready when every check is.
    pub(super) fn of(checks: Vec<Readiness>) -> Self {
        Self { ready: checks.iter().all(|check| check.ready), checks }
    }
}

/// A JSON response that no proxy may cache, since it is out of date a moment later.
pub(super) fn json<T: Serialize + ?Sized>(status: StatusCode, body: &T) -> Response {
    let bytes = serde_json::to_vec(body).expect("strings, numbers and times always serialize");
    raw_json(status, bytes)
}

/// Like [`json`], for a body that is already serialized.
pub(super) fn raw_json(status: StatusCode, bytes: impl Into<bytes::Bytes>) -> Response {
    let mut response = Response::new(bytes.into().into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn event(extra: Value) -> StatusEvent {
        let mut event = json!({
            "id": "order/42", "name": "sipcall-order-42-abcdefghij", "namespace": "sipstuff", "status": "queued",
            "revision": 1, "final": false, "attempt": 0, "time": "2026-07-01T10:00:00Z",
            "queued_at": "2026-07-01T10:00:00Z", "fingerprint": "f", "max_attempts": 2,
        });
        event.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        serde_json::from_value(event).unwrap()
    }

    fn ended(is_final: bool) -> StatusEvent {
        event(json!({
            "status": "failed", "revision": 4, "final": is_final, "attempt": 1, "job": "sipcall-order-42-abcdefghij",
            "cluster": "c", "trunk": "t", "trunks": ["t", "u"], "batch": "b", "dest": "+49", "created_at": "2026-07-01T10:00:01Z",
            "started_at": "2026-07-01T10:00:02Z", "completed_at": "2026-07-01T10:00:03Z", "exit_code": 1,
            "outcome": "busy", "sip_code": 486, "reason": "r", "message": "m", "metadata": {"k": "v"},
            "priority": "bulk", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "not_before": "2026-07-01T10:00:00Z", "due_at": "2026-07-01T10:05:00Z", "waiting": 3,
        }))
    }

    #[test]
    fn the_five_fields_of_the_python_service_come_first_even_as_null() {
        let text = serde_json::to_string(&Job::from(&event(json!({})))).unwrap();
        let expected = r#"{"name":"sipcall-order-42-abcdefghij","namespace":"sipstuff","status":"queued","created_at":null,"completed_at":null,"#;
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn a_job_shows_every_field_of_the_event_once() {
        let event = ended(true);
        let shown: Value = serde_json::to_value(Job::from(&event)).unwrap();
        assert_eq!(shown, serde_json::to_value(&event).unwrap());
        let text = serde_json::to_string(&Job::from(&event)).unwrap();
        assert_eq!(text.matches("\"name\"").count(), 1);
    }

    #[test]
    fn a_call_with_a_redial_to_come_has_not_completed() {
        let (failed, last) = (ended(false), ended(true));
        assert_eq!(Job::from(&failed).completed_at, None);
        assert!(Job::from(&last).completed_at.is_some());
    }

    #[test]
    fn an_acceptance_begins_with_the_three_fields_of_the_python_service() {
        let accepted = api::Accepted { event: event(json!({})), fresh: false };
        let text = serde_json::to_string(&Accepted::from(&accepted)).unwrap();
        assert_eq!(
            text,
            r#"{"job_name":"sipcall-order-42-abcdefghij","namespace":"sipstuff","status":"queued","id":"order/42","duplicate":true}"#
        );
    }

    #[test]
    fn one_check_that_is_not_ready_makes_all_not_ready() {
        let check = |name, ready| Readiness { name, ready, detail: String::new() };
        assert!(Ready::of(vec![check("nats", true), check("index", true)]).ready);
        let ready = Ready::of(vec![check("nats", true), check("index", false)]);
        let body = serde_json::to_value(&ready).unwrap();
        assert_eq!(body["ready"], false);
        assert_eq!(body["checks"][1], json!({"name": "index", "ready": false, "detail": ""}));
    }
}
