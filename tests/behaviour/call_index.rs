//! The index behind `GET /jobs`: when it can be answered from, and how much it holds.

use futures::future::join_all;
use serde_json::{Value, json};
use sipstuff_operator::call::Status;

use crate::support::http::Reply;
use crate::support::status::messages_in;
use crate::support::{
    Operator, PATIENCE, Setup, accepted, delete, eventually, get_json, name_of, post_call, request_of, with,
};

/// A record as the operator writes it, of a call that was queued so many seconds after the first.
fn record(id: &str, status: Status, second: usize) -> Value {
    let queued_at = format!("2026-11-24T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60);
    json!({
        "id": id, "name": name_of(id), "namespace": "calls", "status": status, "revision": 1,
        "final": status.always_final(), "attempt": 0, "time": jiff::Timestamp::now(), "queued_at": queued_at,
        "fingerprint": "0".repeat(64), "max_attempts": 1,
    })
}

async fn publish(setup: &Setup, records: impl IntoIterator<Item = Value>) {
    let acks = records.into_iter().map(|record| async move {
        let subject = format!("sip.status.{}", record["name"].as_str().unwrap());
        setup.js.publish(subject, record.to_string().into()).await.unwrap().await.unwrap();
    });
    join_all(acks).await;
}

fn ids(reply: &Reply) -> Vec<&str> {
    let jobs = reply.json.as_array().unwrap_or_else(|| panic!("no list: {reply:?}"));
    jobs.iter().map(|job| job["id"].as_str().unwrap()).collect()
}

/// All pages from a path on.
async fn pages(operator: &Operator, path: &str) -> Vec<Reply> {
    let (mut pages, mut next) = (Vec::new(), Some(path.to_owned()));
    while let Some(path) = next {
        let page = get_json(operator.base(), &path).await;
        assert_eq!(page.status, 200, "{page:?}");
        let link = page.headers.get("link").map(|link| link.to_str().unwrap().to_owned());
        next = link.map(|link| link.split(['<', '>']).nth(1).unwrap().to_owned());
        pages.push(page);
    }
    pages
}

/// An operator has made the streams, and is gone.
async fn streams_only() -> Setup {
    let setup = Setup::local(0.1).await;
    drop(setup.operator().await);
    setup
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_its_bound_the_index_lists_the_newest_calls_and_those_that_have_not_ended() {
    let setup = streams_only().await;
    let finals = (0..300).map(|n| record(&format!("final-{n}"), Status::Succeeded, 100 + n));
    let queued = (0..20).map(|n| record(&format!("queued-{n}"), Status::Queued, n));
    publish(&setup, finals.chain(queued)).await;
    let operator = Operator::start(setup.options().env("INDEX_MAX_CALLS", 100)).await;

    let list = get_json(operator.base(), "/jobs?limit=1000").await;
    let expected: Vec<String> =
        (220..300).rev().map(|n| format!("final-{n}")).chain((0..20).rev().map(|n| format!("queued-{n}"))).collect();
    assert_eq!(ids(&list), expected);
    let old = get_json(operator.base(), "/jobs/final-0").await;
    assert_eq!((old.status.as_u16(), &old.json["status"]), (200, &json!("succeeded")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_with_more_calls_than_the_index_holds_is_cancelled_whole() {
    let setup = Setup::local(0.1).await;
    let operator = Operator::start(setup.options().env("INDEX_MAX_CALLS", 10)).await;
    assert_eq!(setup.command(&["pause", "--for", "1h"]).await.code, Some(0));
    for number in 0..30 {
        let batch = json!({"batch": if number < 25 { "march" } else { "april" }});
        accepted(&operator, &with(request_of(&format!("call-{number}")), batch)).await;
    }
    let reply = delete(operator.base(), "/jobs?batch=march").await;
    assert_eq!(reply.json, json!({"cancelled": 25, "cancelling": 0, "ended": 0, "unreadable": 0}));
    for number in 0..30 {
        let expected = if number < 25 { Status::Cancelled } else { Status::Queued };
        assert_eq!(setup.state(&format!("call-{number}")).await.unwrap().status, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_long_records_ends_early_and_the_next_goes_on_where_it_stopped() {
    let setup = streams_only().await;
    let metadata: Value = (0..16).map(|n| (format!("key-{n}"), json!("v".repeat(256)))).collect();
    let long = json!({"message": "m".repeat(4096), "metadata": metadata});
    publish(&setup, (0..1000).map(|n| with(record(&format!("call-{n}"), Status::Succeeded, n), long.clone()))).await;
    let operator = setup.operator().await;

    let pages = pages(&operator, "/jobs?limit=1000").await;
    let listed: Vec<&str> = pages.iter().flat_map(ids).collect();
    let expected: Vec<String> = (0..1000).rev().map(|n| format!("call-{n}")).collect();
    assert_eq!(listed, expected);
    assert!(pages.len() > 1);
    for page in pages {
        assert!(page.text.len() < 4_500_000, "{} bytes", page.text.len());
    }
}

/// The last record of the stream cannot be waited for: no consumer delivers it.
#[tokio::test(flavor = "multi_thread")]
async fn the_index_is_complete_though_the_last_record_is_gone() {
    let setup = streams_only().await;
    publish(&setup, [record("kept", Status::Succeeded, 1), record("gone", Status::Succeeded, 2)]).await;
    let stream = setup.js.get_stream("SIP_STATUS").await.unwrap();
    stream.purge().filter(format!("sip.status.{}", name_of("gone"))).await.unwrap();
    let operator = setup.operator().await;
    assert_eq!(ids(&get_json(operator.base(), "/jobs").await), ["kept"]);
    assert_eq!(delete(operator.base(), "/jobs?batch=none").await.status, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_goes_on_when_its_consumer_is_deleted() {
    let setup = Setup::local(0.1).await;
    let operator = setup.operator().await;
    accepted(&operator, &request_of("before")).await;
    setup.end_of("before").await;
    let stream = setup.js.get_stream("SIP_STATUS").await.unwrap();
    let names: Vec<String> = futures::TryStreamExt::try_collect(stream.consumer_names()).await.unwrap();
    assert_eq!(names.len(), 1, "the index's own: {names:?}");
    stream.delete_consumer(&names[0]).await.unwrap();
    accepted(&operator, &request_of("after")).await;
    let listed = async || ids(&get_json(operator.base(), "/jobs").await).contains(&"after");
    eventually("the later call is listed", PATIENCE, listed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_status_log_is_lost_lists_are_refused_and_then_begin_anew() {
    let setup = Setup::local(0.1).await;
    let operator = setup.operator().await;
    accepted(&operator, &request_of("before")).await;
    setup.end_of("before").await;
    let config = setup.js.get_stream("SIP_STATUS").await.unwrap().cached_info().config.clone();
    setup.js.delete_stream("SIP_STATUS").await.unwrap();

    let refused = async || get_json(operator.base(), "/jobs").await.json["type"] == "urn:sipstuff:problem:index-behind";
    eventually("lists are refused", PATIENCE, refused).await;
    let reply = get_json(operator.base(), "/jobs").await;
    assert_eq!((reply.status.as_u16(), reply.header("retry-after")), (503, "5"));
    let ready = get_json(operator.base(), "/readyz").await;
    let checks = ready.json["checks"].as_array().unwrap();
    let index = checks.iter().find(|check| check["name"] == "index").unwrap();
    assert_eq!((ready.status.as_u16(), &index["ready"]), (503, &json!(false)));
    assert!(index["detail"].as_str().unwrap().contains("status log"), "{index}");
    assert_eq!(delete(operator.base(), "/jobs?batch=march").await.status, 503);

    setup.js.create_stream(config).await.unwrap();
    let listed = async || get_json(operator.base(), "/jobs").await.json == json!([]);
    eventually("the list is that of the new log", PATIENCE, listed).await;
    let again = async || post_call(operator.base(), &request_of("after")).await.status == 202;
    eventually("a call is accepted", PATIENCE, again).await;
    let listed = async || ids(&get_json(operator.base(), "/jobs").await) == ["after"];
    eventually("it is listed", PATIENCE, listed).await;
    assert_eq!(messages_in(&setup.js, "SIP_DEAD").await, 0);
}
