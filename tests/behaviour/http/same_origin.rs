//! Same origin: a page of another site cannot place a call through a browser on this machine.

use super::{new_request, problem, shared_operator};
use crate::support::http::{http_client, send};

#[tokio::test]
async fn a_call_from_a_page_of_another_site_is_403() {
    let base = shared_operator().await;
    for (name, given) in [("sec-fetch-site", "cross-site"), ("origin", "http://evil.example")] {
        let post = http_client().post(format!("{base}/call")).header(name, given).json(&new_request());
        problem(&send(post).await, 403);
    }
}
