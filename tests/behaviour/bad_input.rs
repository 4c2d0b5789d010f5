//! Input that cannot be a call, by NATS and by HTTP, by mistake and by malice: it gets a clear answer, or becomes a dead letter
//! with the reason. It never crashes the operator, and the good call behind it still goes through.

use std::time::Duration;

use futures::StreamExt;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use sipstuff_operator::call::{Status, validate};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::http::{Reply, http_client, send};
use crate::support::status::messages_in;
use crate::support::{NatsOptions, NatsServer, Operator, PATIENCE, Setup, eventually, request_of, with};

/// A body that cannot be a call.
struct Bad {
    what: &'static str,
    body: Vec<u8>,
    /// HTTP's answer.
    status: u16,
    /// What the reason must name.
    names: &'static str,
    /// The id that can be read in it.
    id: Option<&'static str>,
}

fn bad(what: &'static str, body: impl Into<Vec<u8>>, status: u16, names: &'static str) -> Bad {
    Bad { what, body: body.into(), status, names, id: None }
}

/// A request with an id in which some fields are wrong.
fn wrong(id: &'static str, fields: Value, names: &'static str) -> Bad {
    Bad { what: id, body: with(request_of(id), fields).to_string().into(), status: 422, names, id: Some(id) }
}

fn everything_bad() -> Vec<Bad> {
    let nested = |open: &str, close: &str| format!("{}{}", open.repeat(50_000), close.repeat(50_000));
    vec![
        bad("empty", "", 400, "JSON"),
        bad("blank", " \r\n\t", 400, "JSON"),
        bad("not JSON", "dest=1&text=hello", 400, "JSON"),
        bad("cut off", r#"{"dest": "1", "te"#, 400, "JSON"),
        bad("two documents", r#"{"dest": "1", "text": "x"} {}"#, 400, "JSON"),
        bad("deeply nested lists", nested("[", "]"), 400, "JSON"),
        bad("deeply nested objects", nested(r#"{"a":"#, "}"), 400, "JSON"),
        bad(
            "deep inside a field",
            format!(r#"{{"dest": "1", "text": "x", "metadata": {}}}"#, nested("[", "]")),
            400,
            "JSON",
        ),
        bad("invalid UTF-8", b"{\"dest\": \"1\", \"text\": \"\xff\xfe\"}", 400, "JSON"),
        bad("half a surrogate", r#"{"dest": "1", "text": "\ud800"}"#, 400, "JSON"),
        bad("a NUL byte in the document", b"{\"dest\": \"1\", \"text\": \"a\0b\"}", 400, "JSON"),
        bad("a number that no float holds", r#"{"dest": "1", "text": "x", "timeout": 1e999}"#, 400, "JSON"),
        bad("not a number", r#"{"dest": "1", "text": "x", "timeout": NaN}"#, 400, "JSON"),
        bad("a list", "[]", 422, "object"),
        bad("a string", r#""+4930""#, 422, "object"),
        bad("null", "null", 422, "object"),
        bad("no fields", "{}", 422, "dest"),
        wrong("wrong-types", json!({"dest": 1, "text": ["x"], "timeout": "60"}), "timeout"),
        wrong("unknown-field", json!({"colour": "red"}), "colour"),
        wrong("text-and-wav", json!({"wav": "/x.wav"}), "wav"),
        wrong("nul", json!({"text": "a\0b"}), "text"),
        wrong("line-break-in-dest", json!({"dest": "1\r\nVia: x"}), "dest"),
        wrong("escape-in-text", json!({"text": "\u{1b}[2J"}), "text"),
        wrong("control-in-metadata", json!({"metadata": {"k": "a\u{85}"}}), "metadata"),
        Bad {
            id: Some("twice"),
            ..bad("a key twice", r#"{"id": "twice", "dest": "1", "dest": "2", "text": "x"}"#, 422, "dest")
        },
        bad(
            "a key of metadata twice",
            r#"{"dest": "1", "text": "x", "metadata": {"k": "a", "k": "b"}}"#,
            422,
            "metadata",
        ),
        wrong("in-2300", json!({"not_before": "2300-01-01T00:00:00Z"}), "not_before"),
        wrong("in-9999", json!({"not_after": "9999-12-31T23:59:59Z"}), "not_after"),
        wrong(
            "closed-window",
            json!({"not_before": "2027-01-02T00:00:00Z", "not_after": "2027-01-01T00:00:00Z"}),
            "not_after",
        ),
        wrong("empty-texts", json!({"text": "", "wav": ""}), "exactly one"),
        wrong("out-of-range", json!({"timeout": 601, "repeat": 0, "pre_delay": -1, "sip_port": 65536}), "sip_port"),
        wrong("huge-number", json!({"timeout": u64::MAX}), "timeout"),
        wrong("fraction", json!({"timeout": 60.5}), "timeout"),
        wrong("empty-dest", json!({"dest": ""}), "dest"),
        wrong("long-text", json!({"text": "x".repeat(10_001)}), "text"),
        wrong("moment", json!({"not_before": "tomorrow"}), "not_before"),
        bad("an id with a line break", r#"{"id": "a\nb", "dest": "1", "text": "x"}"#, 422, "id"),
        bad("an id of 129 characters", json!({"id": "x".repeat(129), "dest": "1", "text": "x"}).to_string(), 422, "id"),
        bad("an id that is a number", r#"{"id": 7, "dest": "1", "text": "x"}"#, 422, "id"),
        bad(
            "many unknown fields",
            Value::Object((0..20_000).map(|n| (format!("f{n}"), json!(n))).collect()).to_string(),
            422,
            "f1",
        ),
    ]
}

async fn post(base: &str, body: Vec<u8>) -> Reply {
    send(http_client().post(format!("{base}/call")).header(CONTENT_TYPE, "application/json").body(body)).await
}

/// Asserts that nothing is stuck: a good call goes through, and the queue is empty after it.
async fn a_good_call_goes_through(setup: &Setup, operator: &mut Operator, id: &str) {
    setup.publish(&[], request_of(id).to_string()).await;
    assert_eq!(setup.end_of(id).await.status, Status::Succeeded);
    setup.queue_empties().await;
    assert!(operator.ended().is_none(), "the operator has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_cannot_be_a_call_becomes_a_dead_letter_with_the_reason() {
    let setup = Setup::local(0.1).await;
    let mut operator = setup.operator().await;
    let all = everything_bad();
    for bad in &all {
        setup.publish(&[], bad.body.clone()).await;
    }
    a_good_call_goes_through(&setup, &mut operator, "good").await;

    let letters = setup.dead_letters().await;
    assert_eq!(letters.len(), all.len());
    for bad in &all {
        let (reason, _) =
            letters.iter().find(|(_, payload)| *payload == bad.body).unwrap_or_else(|| panic!("{}", bad.what));
        assert!(reason.contains(bad.names), "{}: {reason}", bad.what);
        if let Some(id) = bad.id {
            let state = setup.state(id).await.unwrap_or_else(|| panic!("{id} is not known"));
            assert_eq!((state.status, state.is_final), (Status::Rejected, true));
            assert!(state.reason.is_some_and(|reason| reason.contains(bad.names)), "{id}");
        }
    }
    let rejected = setup.events.finals().into_iter().filter(|event| event.status == Status::Rejected).count();
    assert_eq!(rejected, all.iter().filter(|bad| bad.id.is_some()).count());
    assert_eq!(setup.jobs().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_cannot_be_a_call_is_refused_by_http_with_everything_that_is_wrong() {
    let setup = Setup::local(0.1).await;
    let mut operator = setup.operator().await;
    for bad in everything_bad() {
        let reply = post(operator.base(), bad.body).await;
        assert_eq!(reply.status, bad.status, "{}: {reply:?}", bad.what);
        assert_eq!(reply.headers["content-type"], "application/problem+json", "{}", bad.what);
        assert!(reply.text.contains(bad.names), "{}: {reply:?}", bad.what);
    }
    assert_eq!(messages_in(&setup.js, "SIP_STATUS").await, 0, "what is refused leaves nothing behind");
    a_good_call_goes_through(&setup, &mut operator, "good").await;
    assert_eq!(messages_in(&setup.js, "SIP_DEAD").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_a_megabyte_is_refused_by_http_and_leaves_nothing_behind() {
    let setup = Setup::local(0.1).await;
    let mut operator = setup.operator().await;
    let megabyte = json!({"dest": "1", "text": "x".repeat(1_000_000)}).to_string();
    assert_eq!(post(operator.base(), megabyte.into()).await.status, 413);
    assert_eq!(messages_in(&setup.js, "SIP_STATUS").await, 0, "what is refused leaves nothing behind");
    a_good_call_goes_through(&setup, &mut operator, "good").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_as_large_as_the_server_takes_becomes_a_dead_letter() {
    let setup = Setup::local(0.1).await;
    let mut operator = setup.operator().await;
    setup.publish(&[], vec![b'x'; 1024 * 1024]).await;
    let text = "x".repeat(1_000_000);
    setup.publish(&[], json!({"id": "megabyte", "dest": "1", "text": text}).to_string()).await;
    // The server takes 64 KiB of headers.
    let header = "h".repeat(65_000);
    setup.publish(&[("X-Large", &header)], vec![b'x'; 900_000]).await;
    a_good_call_goes_through(&setup, &mut operator, "good").await;
    assert_eq!(messages_in(&setup.js, "SIP_DEAD").await, 3);
    assert_eq!(setup.state("megabyte").await.map(|event| event.status), Some(Status::Rejected));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_id_in_a_header_is_not_valid_becomes_a_dead_letter() {
    let setup = Setup::local(0.1).await;
    let mut operator = setup.operator().await;
    let nameless = json!({"dest": "1", "text": "bad id"}).to_string();
    for id in ["x".repeat(60_000).as_str(), "tab\there", &"ä".repeat(129)] {
        setup.publish(&[("Nats-Msg-Id", id)], nameless.clone()).await;
        setup.publish(&[("Sip-Call-Id", id)], nameless.clone()).await;
    }
    a_good_call_goes_through(&setup, &mut operator, "good").await;
    for (reason, _) in setup.dead_letters().await {
        assert!(reason.contains("Nats-Msg-Id") || reason.contains("Sip-Call-Id"), "{reason}");
    }
    assert_eq!((messages_in(&setup.js, "SIP_DEAD").await, setup.calls_with("bad id")), (6, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_in_the_body_wins_over_one_in_a_header_that_is_not_valid() {
    let setup = Setup::local(0.1).await;
    let mut operator = setup.operator().await;
    setup.publish(&[("Sip-Call-Id", &"x".repeat(60_000))], request_of("own").to_string()).await;
    a_good_call_goes_through(&setup, &mut operator, "good").await;
    assert_eq!(setup.end_of("own").await.status, Status::Succeeded);
}

/// Headers that only the operator itself sets, or that mean nothing, as somebody else may set them.
const FORGED: [(&str, &str); 8] = [
    ("Sip-Attempt", "4294967295"),
    ("Sip-Attempt", "-1"),
    ("Sip-Attempt", "7"),
    ("Sip-Queued-At", "yesterday"),
    ("Sip-Queued-At", "9999-12-31T23:59:59Z"),
    ("Sip-Queued-At", "-009999-01-01T00:00:00Z"),
    ("Nats-TTL", "1h"),
    ("traceparent", "\u{1}\u{2}"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_header_does_not_keep_a_call_from_being_placed_once() {
    let setup = Setup::local(0.1).await;
    let mut operator = setup.operator().await;
    for (n, (name, value)) in FORGED.iter().enumerate() {
        setup.publish(&[(name, value)], request_of(&format!("forged-{n}")).to_string()).await;
    }
    a_good_call_goes_through(&setup, &mut operator, "good").await;
    for (n, header) in FORGED.iter().enumerate() {
        assert_eq!(setup.end_of(&format!("forged-{n}")).await.status, Status::Succeeded, "{header:?}");
        assert_eq!(setup.calls_with(&format!("forged-{n}")), 1);
    }
    assert_eq!(messages_in(&setup.js, "SIP_DEAD").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_block_that_cannot_be_read_does_not_stop_the_queue() {
    let setup = Setup::local(0.1).await;
    let mut operator = setup.operator().await;
    let blocks: [&[u8]; 5] = [
        b"NATS/1.0\r\nX-Bytes: \xff\xfe\r\n\r\n",
        b"NATS/1.0\r\nno colon\r\n\r\n",
        b"NATS/1.0\r\nBad Name: x\r\n\r\n",
        b"NATS/1.0 nonsense\r\n\r\n",
        b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
    ];
    for (n, block) in blocks.iter().enumerate() {
        setup.nats.publish_raw("sip.calls", block, request_of(&format!("raw-{n}")).to_string().as_bytes()).await;
    }
    a_good_call_goes_through(&setup, &mut operator, "good").await;
    let letters = setup.dead_letters().await;
    assert!(letters.iter().all(|(reason, _)| reason.contains("headers: cannot be read")), "{letters:?}");
    // How much of the others can be read is up to the library; each has an end.
    for n in 0..blocks.len() {
        let state = setup.end_of(&format!("raw-{n}")).await;
        assert!(state.status == Status::Rejected || n > 2 && state.status == Status::Succeeded, "{n}: {state:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_read_is_deleted_once_that_works() {
    const USER: &str = "no_auth_user: anyone\nauthorization { users: [{ user: anyone, password: any, PERMISSIONS }] }";
    let permissions = |words: &str| NatsOptions { config: USER.replace("PERMISSIONS", words), ..Default::default() };
    let denied = r#"permissions: { publish: { deny: ["$JS.API.STREAM.MSG.DELETE.SIP_CALLS"] } }"#;
    let nats = NatsServer::start_with(permissions(denied)).await;
    let setup = Setup::local_with(nats, 0.1).await;
    let _operator = setup.operator().await;
    let block = b"NATS/1.0\r\nno colon\r\n\r\n";
    setup.nats.publish_raw("sip.calls", block, request_of("raw").to_string().as_bytes()).await;
    eventually("it is a dead letter", PATIENCE, async || messages_in(&setup.js, "SIP_DEAD").await > 0).await;
    eventually("its delete is refused", PATIENCE, async || setup.nats.log().contains("Publish Violation")).await;

    setup.nats.reload(&permissions(""));
    eventually("it is deleted", PATIENCE, async || messages_in(&setup.js, "SIP_CALLS").await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_random_messages_do_not_stop_the_queue() {
    let setup = Setup::local(0.0).await;
    let mut operator = setup.operator().await;
    // Random bytes, and requests with random damage; the same ones every time.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut body = |n: usize| -> Vec<u8> {
        if n.is_multiple_of(3) {
            return (0..random(200)).map(|_| u8::try_from(random(256)).unwrap()).collect();
        }
        let mut body =
            json!({"dest": "12345", "text": "hello", "timeout": 60, "metadata": {"a": "b"}}).to_string().into_bytes();
        let at = random(body.len());
        body[at] = if n.is_multiple_of(2) {
            b'a' + u8::try_from(random(26)).unwrap()
        } else {
            u8::try_from(random(256)).unwrap()
        };
        if random(5) == 0 {
            body.truncate(random(body.len()));
        }
        body
    };
    let bodies: Vec<Vec<u8>> = (0..300).map(&mut body).collect();

    for body in &bodies {
        let answer = post(operator.base(), body.clone()).await.status.as_u16();
        assert!([202, 400, 422].contains(&answer), "{answer}: {}", String::from_utf8_lossy(body));
        setup.publish(&[], body.clone()).await;
    }
    a_good_call_goes_through(&setup, &mut operator, "good").await;
    // Every message is accounted for: a call that has ended, or a dead letter.
    let now = jiff::Timestamp::now();
    let good = bodies.iter().filter(|body| validate::parse(body, now).is_ok()).count();
    assert_eq!(setup.dead_letters().await.len(), bodies.len() - good);
    assert!(good > 0 && good < bodies.len(), "{good} good ones");
    eventually("every call has ended", PATIENCE, async || {
        setup.events.finals().iter().filter(|event| event.status != Status::Rejected).count() == 2 * good + 1
    })
    .await;
}
