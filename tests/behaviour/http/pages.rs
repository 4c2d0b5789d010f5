//! `GET /jobs`: lists in pages.

use serde_json::json;

use super::{fields_with_errors, new_request, problem, shared_operator};
use crate::support::{PATIENCE, eventually, get_json, post_call, with};

#[tokio::test]
async fn the_pages_of_a_batch_hold_every_call_once_newest_first() {
    let base = shared_operator().await;
    let batch = format!("b{}", uuid::Uuid::now_v7().simple());
    let mut names = Vec::new();
    for _ in 0..5 {
        let reply = post_call(base, &with(new_request(), json!({"batch": batch}))).await;
        names.push(reply.json["job_name"].as_str().expect("a name").to_owned());
    }
    // The list follows the status log, a moment behind.
    let all = format!("/jobs?batch={batch}");
    let listed = async || get_json(base, &all).await.json.as_array().map(Vec::len) == Some(names.len());
    eventually("all calls are listed", PATIENCE, listed).await;

    let (mut listed, mut next) = (Vec::new(), Some(format!("/jobs?batch={batch}&limit=2")));
    while let Some(path) = next {
        let page = get_json(base, &path).await;
        assert_eq!(page.status, 200);
        next = page.headers.contains_key("link").then(|| {
            let link = page.header("link").strip_prefix('<');
            link.and_then(|link| link.strip_suffix(">; rel=\"next\"")).expect("a next link").to_owned()
        });
        let jobs = page.json.as_array().expect("a list");
        assert!((1..=2).contains(&jobs.len()));
        listed.extend(jobs.iter().map(|job| job["name"].as_str().expect("a name").to_owned()));
        assert!(listed.len() <= names.len(), "{listed:?}");
    }
    names.reverse();
    assert_eq!(listed, names);
}

#[tokio::test]
async fn a_batch_without_calls_is_an_empty_list() {
    let base = shared_operator().await;
    assert_eq!(get_json(base, "/jobs?batch=none-such").await.json, json!([]));
}

#[tokio::test]
async fn a_query_is_refused_with_every_parameter_that_is_wrong() {
    let base = shared_operator().await;
    let reply = get_json(base, "/jobs?limit=0&status=done&page=2&cursor=x").await;
    assert_eq!(fields_with_errors(problem(&reply, 422)), ["limit", "page", "status"]);
}

#[tokio::test]
async fn a_cursor_that_is_not_valid_is_refused() {
    let base = shared_operator().await;
    let reply = get_json(base, "/jobs?cursor=x").await;
    assert_eq!(fields_with_errors(problem(&reply, 422)), ["cursor"]);
}
