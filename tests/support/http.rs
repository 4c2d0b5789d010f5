//! HTTP as a client uses it: a request, and the answer read to its end.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde_json::Value;

/// An HTTP answer, read to its end.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status code.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as text.
    pub text: String,
    /// The body as JSON; null when it is none.
    pub json: Value,
}

/// An HTTP client for one test: connections belong to the runtime that they are made in.
///
/// # Panics
/// Never in practice: nothing in its configuration can fail.
pub fn http_client() -> reqwest::Client {
    // Loopback is not reached through whatever proxy the environment names.
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().expect("a plain client")
}

/// `POST {base}/call`.
///
/// # Panics
/// When there is no answer.
pub async fn post_call(base: &str, body: &Value) -> Reply {
    send(http_client().post(format!("{base}/call")).json(body)).await
}

/// `GET {base}{path}`.
///
/// # Panics
/// When there is no answer.
pub async fn get_json(base: &str, path: &str) -> Reply {
    send(http_client().get(format!("{base}{path}"))).await
}

/// `DELETE {base}{path}`.
///
/// # Panics
/// When there is no answer.
pub async fn delete(base: &str, path: &str) -> Reply {
    send(http_client().delete(format!("{base}{path}"))).await
}

impl Reply {
    /// A header as text.
    ///
    /// # Panics
    /// When there is none.
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).unwrap_or_else(|| panic!("no {name} header: {self:?}"));
        value.to_str().expect("a header is text")
    }
}

/// Sends a request and reads the answer to its end.
///
/// # Panics
/// When there is no answer.
pub async fn send(request: reqwest::RequestBuilder) -> Reply {
    let answer = request.send().await.unwrap_or_else(|error| panic!("no answer: {error:?}"));
    let (status, headers) = (answer.status(), answer.headers().clone());
    let text = answer.text().await.expect("the whole body");
    let json = serde_json::from_str(&text).unwrap_or_default();
    Reply { status, headers, text, json }
}
