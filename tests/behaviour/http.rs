//! The HTTP API as a client of the seed, and a careless one, sees it: each story takes the base URL of a running operator.

use std::collections::BTreeSet;

use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};

/// An id that no other story, nor another run of this one, uses.
fn unused(story: &str) -> String {
    format!("{story}/{} ä%", uuid::Uuid::now_v7())
}

fn request(id: &str) -> Value {
    json!({ "id": id, "dest": "+49301234567", "text": "Hello" })
}

async fn post(base: &str, body: &Value) -> Response {
    Client::new().post(format!("{base}/call")).json(body).send().await.expect("an answer")
}

async fn get(url: &str) -> Response {
    reqwest::get(url).await.expect("an answer")
}

async fn value(response: Response) -> Value {
    response.json().await.expect("JSON")
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).unwrap_or_else(|| panic!("no {name} header")).to_str().expect("a header is text")
}

/// Asserts that the answer is a problem document with that status, and returns it.
async fn problem(response: Response, status: u16) -> Value {
    assert_eq!(response.status().as_u16(), status);
    assert_eq!(header(&response, "content-type"), "application/problem+json");
    let problem = value(response).await;
    assert_eq!(problem["status"], status);
    for field in ["type", "title", "detail"] {
        assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{field} in {problem}");
    }
    problem
}

fn encoded(id: &str) -> String {
    percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// A call that is accepted can be found at its `Location`, by its name and by its id, with the seed's fields.
pub async fn an_accepted_call_is_found_by_location_name_and_id(base: &str) {
    let id = unused("found");
    let response = post(base, &request(&id)).await;
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    let location = header(&response, "location").to_owned();
    let accepted = value(response).await;
    let name = accepted["job_name"].as_str().expect("a name");
    assert_eq!(location, format!("/jobs/{name}"));
    assert_eq!((&accepted["id"], &accepted["duplicate"]), (&json!(id), &json!(false)));
    assert!(accepted["namespace"].is_string() && accepted["status"].is_string(), "{accepted}");
    for path in [location.clone(), format!("/jobs/{name}"), format!("/jobs/{}", encoded(&id))] {
        let job = value(get(&format!("{base}{path}")).await).await;
        assert_eq!((&job["name"], &job["id"]), (&json!(name), &json!(id)), "{path}");
        for field in ["namespace", "status", "created_at", "completed_at"] {
            assert!(job.get(field).is_some(), "{field} must be there, null or not: {job}");
        }
    }
}

/// The same id and request again is the same call; with another request it is a conflict, and the first call is untouched.
pub async fn an_id_is_used_for_one_request(base: &str) {
    let id = unused("once");
    let first = value(post(base, &request(&id)).await).await;
    let second = post(base, &request(&id)).await;
    assert_eq!(second.status(), StatusCode::ACCEPTED);
    let second = value(second).await;
    assert_eq!((&second["job_name"], &second["duplicate"]), (&first["job_name"], &json!(true)));
    let mut other = request(&id);
    other["text"] = json!("Something else");
    let conflict = problem(post(base, &other).await, 409).await;
    assert_eq!(conflict["errors"][0]["field"], "id");
    assert!(conflict["detail"].as_str().is_some_and(|detail| detail.contains(&id)), "{conflict}");
}

/// An `Idempotency-Key` is the id of a request that has none, quoted or not; the body's own id goes first.
pub async fn an_idempotency_key_stands_in_for_an_id(base: &str) {
    let key = uuid::Uuid::now_v7().to_string();
    let send = async |key: &str, body: Value| {
        let request = Client::new().post(format!("{base}/call")).header("Idempotency-Key", key).json(&body);
        value(request.send().await.expect("an answer")).await
    };
    let without_id = json!({ "dest": "+49301234567", "text": "Hello" });
    let first = send(&key, without_id.clone()).await;
    assert_eq!((&first["id"], &first["duplicate"]), (&json!(key), &json!(false)));
    let second = send(&format!("\"{key}\""), without_id).await;
    assert_eq!((&second["job_name"], &second["duplicate"]), (&first["job_name"], &json!(true)));
    let id = unused("own");
    assert_eq!(send(&key, request(&id)).await["id"], json!(id));
}

/// Two requests without any id are two calls.
pub async fn without_an_id_every_request_is_a_call_of_its_own(base: &str) {
    let body = json!({ "dest": "+49301234567", "text": "Hello" });
    let (first, second) = (value(post(base, &body).await).await, value(post(base, &body).await).await);
    assert_ne!(first["job_name"], second["job_name"]);
    assert_eq!((&first["duplicate"], &second["duplicate"]), (&json!(false), &json!(false)));
}

/// The pages of a batch, followed by their links, hold every call once, newest first.
pub async fn pages_hold_every_call_of_a_batch_once_newest_first(base: &str) {
    let batch = format!("b{}", uuid::Uuid::now_v7().simple());
    let mut names = Vec::new();
    for number in 0..5 {
        let mut body = request(&unused(&format!("page{number}")));
        body["batch"] = json!(batch);
        names.push(value(post(base, &body).await).await["job_name"].as_str().expect("a name").to_owned());
    }
    let all = format!("{base}/jobs?batch={batch}");
    for _ in 0..100 {
        // The list follows the status log, a moment behind.
        if value(get(&all).await).await.as_array().is_some_and(|jobs| jobs.len() == names.len()) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let (mut listed, mut next) = (Vec::new(), Some(format!("/jobs?batch={batch}&limit=2")));
    while let Some(path) = next {
        let response = get(&format!("{base}{path}")).await;
        assert_eq!(response.status(), StatusCode::OK);
        next = response.headers().get("link").map(|link| {
            let link = link.to_str().expect("a header is text");
            link.strip_prefix('<')
                .and_then(|link| link.strip_suffix(">; rel=\"next\""))
                .expect("a next link")
                .to_owned()
        });
        let jobs = value(response).await;
        let jobs = jobs.as_array().expect("a list");
        assert!((1..=2).contains(&jobs.len()));
        listed.extend(jobs.iter().map(|job| job["name"].as_str().expect("a name").to_owned()));
        assert!(listed.len() <= names.len(), "{listed:?}");
    }
    names.reverse();
    assert_eq!(listed, names);
    assert_eq!(value(get(&format!("{base}/jobs?batch=none-such")).await).await, json!([]));
}

/// A query that cannot be meant is refused with everything that is wrong with it.
pub async fn a_wrong_query_is_refused_whole(base: &str) {
    let wrong = problem(get(&format!("{base}/jobs?limit=0&status=done&page=2&cursor=x")).await, 422).await;
    let fields = |problem: &Value| -> BTreeSet<String> {
        let errors = problem["errors"].as_array().expect("errors");
        errors.iter().map(|error| error["field"].as_str().expect("a field").to_owned()).collect()
    };
    assert_eq!(fields(&wrong), ["limit", "page", "status"].map(str::to_owned).into());
    let cursor = problem(get(&format!("{base}/jobs?cursor=x")).await, 422).await;
    assert_eq!(fields(&cursor), ["cursor"].map(str::to_owned).into());
}

/// A password in a request never comes back: not when it is accepted, nor when anything about it is wrong.
pub async fn a_password_never_comes_back(base: &str) {
    const SECRET: &str = "hunter2-hunter2";
    let id = unused("secret");
    let mut good = request(&id);
    good["sip_password"] = json!(SECRET);
    good["turn_password"] = json!(SECRET);
    let mut bad = good.clone();
    bad["dest"] = json!("");
    let mut wrong_type = good.clone();
    wrong_type["sip_password"] = json!([SECRET]);
    let mut conflict = good.clone();
    conflict["text"] = json!("Something else");
    let mut cut = good.to_string();
    cut.pop();
    let broken = Client::new().post(format!("{base}/call")).body(cut).send().await.expect("an answer");
    let mut texts = vec![broken.text().await.expect("a text")];
    for body in [&good, &bad, &wrong_type, &conflict] {
        texts.push(post(base, body).await.text().await.expect("a text"));
    }
    texts.push(get(&format!("{base}/jobs/{}", encoded(&id))).await.text().await.expect("a text"));
    for text in texts {
        assert!(!text.contains(SECRET), "{text}");
    }
}

/// What is no call is refused with the right status and a problem document.
pub async fn a_body_that_is_no_call_is_a_problem(base: &str) {
    let send = async |media_type: &str, body: Vec<u8>| {
        let request = Client::new().post(format!("{base}/call")).header("content-type", media_type).body(body);
        request.send().await.expect("an answer")
    };
    problem(send("application/json", b"{".to_vec()).await, 400).await;
    problem(send("application/json", b"\xff".to_vec()).await, 400).await;
    problem(send("application/json", Vec::new()).await, 400).await;
    let body = request("x").to_string().into_bytes();
    for media_type in ["text/xml", "text/plain", "application/x-www-form-urlencoded"] {
        problem(send(media_type, body.clone()).await, 415).await;
    }
    let wrong = problem(post(base, &json!({ "text": "x", "repeat": 0, "colour": "red" })).await, 422).await;
    let errors = wrong["errors"].as_array().expect("errors");
    for field in ["dest", "repeat", "colour"] {
        assert!(errors.iter().any(|error| error["field"] == field), "{field} in {wrong}");
    }
}

/// A body over the limit (512 KiB by default) is 413 with the limit, whether its length is declared or not.
pub async fn a_body_over_the_limit_is_413(base: &str) {
    for size in [512 * 1024 + 1, 3_000_000] {
        let piece = vec![b' '; size];
        let pieces = futures::stream::iter([Ok::<_, std::io::Error>(piece.clone())]);
        for body in [reqwest::Body::from(piece), reqwest::Body::wrap_stream(pieces)] {
            let request = Client::new().post(format!("{base}/call")).header("content-type", "application/json");
            let refused = problem(request.body(body).send().await.expect("an answer"), 413).await;
            assert!(refused["detail"].as_str().is_some_and(|detail| detail.contains("524288")), "{refused}");
        }
    }
}

/// A path that is not there is 404, a method that a path does not take 405 with `Allow`, text that is not UTF-8 is 400.
pub async fn a_wrong_path_or_method_is_a_problem(base: &str) {
    for path in ["/nothing", "/call/more", "/jobs/sipcall-none-aaaaaaaaaa", "/jobs/none%2Fsuch", "/jobs/none/such"] {
        problem(get(&format!("{base}{path}")).await, 404).await;
    }
    problem(get(&format!("{base}/jobs/%FF")).await, 400).await;
    let table = [(Method::GET, "/call", "POST"), (Method::POST, "/jobs", "GET"), (Method::DELETE, "/health", "GET")];
    for (method, path, takes) in table {
        let response = Client::new().request(method, format!("{base}{path}")).send().await.expect("an answer");
        assert!(header(&response, "allow").contains(takes));
        problem(response, 405).await;
    }
    let options = Client::new().request(Method::OPTIONS, format!("{base}/call")).send().await.expect("an answer");
    assert_eq!((options.status(), header(&options, "allow")), (StatusCode::NO_CONTENT, "POST, OPTIONS"));
    let head = Client::new().head(format!("{base}/jobs")).send().await.expect("an answer");
    assert_eq!(head.status(), StatusCode::OK);
}

/// Health is the seed's, and readiness names what must be ready.
pub async fn health_is_the_seeds_and_readiness_names_its_checks(base: &str) {
    let health = value(get(&format!("{base}/health")).await).await;
    assert_eq!((&health["status"], &health["version"]), (&json!("ok"), &json!(env!("CARGO_PKG_VERSION"))));
    assert_eq!(get(&format!("{base}/livez")).await.status(), StatusCode::OK);
    let response = get(&format!("{base}/readyz")).await;
    assert_eq!(response.status(), StatusCode::OK);
    let ready = value(response).await;
    assert_eq!(ready["ready"], true);
    let checks = ready["checks"].as_array().expect("checks");
    for name in ["nats", "runner", "view"] {
        assert!(checks.iter().any(|check| check["name"] == name && check["ready"] == true), "{name} in {ready}");
    }
}

/// With NATS away: nothing is accepted and it says when to come back, readiness is 503, and the process is healthy. The
/// caller takes NATS away first.
pub async fn without_nats_nothing_is_accepted_and_health_holds(base: &str) {
    let response = post(base, &request(&unused("away"))).await;
    assert!(header(&response, "retry-after").parse::<u32>().is_ok());
    problem(response, 503).await;
    problem(get(&format!("{base}/jobs")).await, 503).await;
    assert_eq!(get(&format!("{base}/readyz")).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(get(&format!("{base}/health")).await.status(), StatusCode::OK);
}

/// A page of another site cannot place a call through a browser on this machine.
pub async fn a_page_of_another_site_cannot_place_a_call(base: &str) {
    for (name, given) in [("sec-fetch-site", "cross-site"), ("origin", "http://evil.example")] {
        let request = Client::new().post(format!("{base}/call")).header(name, given).json(&request("evil"));
        problem(request.send().await.expect("an answer"), 403).await;
    }
}

/// Every story that needs no more than a running operator.
pub async fn every_story(base: &str) {
    an_accepted_call_is_found_by_location_name_and_id(base).await;
    an_id_is_used_for_one_request(base).await;
    an_idempotency_key_stands_in_for_an_id(base).await;
    without_an_id_every_request_is_a_call_of_its_own(base).await;
    pages_hold_every_call_of_a_batch_once_newest_first(base).await;
    a_wrong_query_is_refused_whole(base).await;
    a_password_never_comes_back(base).await;
    a_body_that_is_no_call_is_a_problem(base).await;
    a_body_over_the_limit_is_413(base).await;
    a_wrong_path_or_method_is_a_problem(base).await;
    health_is_the_seeds_and_readiness_names_its_checks(base).await;
    a_page_of_another_site_cannot_place_a_call(base).await;
}
