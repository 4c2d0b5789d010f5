//! Limits: a body may be 512 KiB by default, whether its length is declared or not.

use super::{post_body, problem, shared_operator};
use crate::support::http::Reply;

const SIZES: [usize; 2] = [512 * 1024 + 1, 3_000_000];

fn names_the_limit(reply: &Reply) {
    let refused = problem(reply, 413);
    assert!(refused["detail"].as_str().is_some_and(|detail| detail.contains("524288")), "{refused}");
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_with_the_limit() {
    let base = shared_operator().await;
    for size in SIZES {
        names_the_limit(&post_body(base, "application/json", vec![b' '; size]).await);
    }
}

#[tokio::test]
async fn a_body_over_the_limit_whose_length_is_not_declared_is_413_with_the_limit() {
    let base = shared_operator().await;
    for size in SIZES {
        let pieces = futures::stream::iter([Ok::<_, std::io::Error>(vec![b' '; size])]);
        names_the_limit(&post_body(base, "application/json", reqwest::Body::wrap_stream(pieces)).await);
    }
}
