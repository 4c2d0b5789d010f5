//! Reads the parts of a `POST`: media type, body (limited in size and time), `Idempotency-Key` and trace.

use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use http::{HeaderMap, header};
use tokio::time::{Instant, timeout, timeout_at};

use super::HttpSettings;
use super::body_budget::FREE_BYTES;
use super::problem::{Kind, Problem};
use crate::call::cloud_event::{self, Opened};
use crate::call::traceparent::HEADER_TRACEPARENT;
use crate::call::{CallId, TraceParent};

/// How much of an oversized body is read and discarded, and for how long, so that the client can read the answer
/// instead of getting a connection reset while it writes.
const DISCARD_BYTES: usize = 8 * 1024 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(1);

/// The header that names a request whose body has no id (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Accepts any JSON media type, and none at all. Everything else is refused, above all the three types that a form on a
/// web page can send.
///
/// # Errors
/// 415.
pub(super) fn json_type(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || essence == "text/json" || essence.ends_with("+json") {
        return Ok(());
    }
    let detail = format!("`{essence}` is not accepted: send `Content-Type: application/json` (curl: `--json`)");
    Err(Problem::new(Kind::UnsupportedMediaType, detail))
}

/// Takes the request out of the CloudEvent that it may have come in.
///
/// # Errors
/// 422 when it is an event without a request, or without an id.
pub(super) fn open(headers: &HeaderMap, body: &Bytes) -> Result<Opened, Problem> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    Ok(cloud_event::open(text(header::CONTENT_TYPE.as_str()), text, body)?)
}

/// Reads a body. Never holds more than the limit, and beyond the first 16 KiB only what the budget of all bodies has
/// room for.
///
/// # Errors
/// 413 when it is too large, 408 when it takes too long, 503 when there was no room in time, 400 when it ends early.
pub(super) async fn read<S, B>(settings: &HttpSettings, headers: &HeaderMap, body: S) -> Result<Bytes, Problem>
where
    S: Stream<Item = Result<B, warp::Error>>,
    B: Buf,
{
    let mut body = pin!(body);
    let limit = settings.max_body_bytes;
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit as u64) {
        // A client that asks before it sends (`Expect`) gets its answer before it sends.
        if !headers.contains_key(header::EXPECT) {
            discard(body).await;
        }
        return Err(Problem::too_large(limit));
    }
    let share = declared.and_then(|length| usize::try_from(length).ok()).unwrap_or(limit);
    match collect(body.as_mut(), settings, share).await {
        Ok(bytes) => Ok(bytes),
        Err(Broken::TooLarge) => {
            discard(body).await;
            Err(Problem::too_large(limit))
        }
        Err(Broken::NoRoom) => {
            discard(body).await;
            Err(Problem::new(Kind::Busy, "too many large requests are being read; send this one again later"))
        }
        Err(Broken::TooSlow) => {
            let seconds = settings.body_timeout.as_secs_f32();
            Err(Problem::new(Kind::BodyTimeout, format!("the body must arrive within {seconds} s")))
        }
        Err(Broken::Incomplete) => Err(Problem::new(Kind::BadRequest, "the body ended before it was complete")),
    }
}

/// Why a body was not read.
enum Broken {
    TooLarge,
    TooSlow,
    NoRoom,
    Incomplete,
}

/// Assembles a body; `size` is its share of the budget once it exceeds what needs no share.
async fn collect<S, B>(mut body: Pin<&mut S>, settings: &HttpSettings, size: usize) -> Result<Bytes, Broken>
where
    S: Stream<Item = Result<B, warp::Error>>,
    B: Buf,
{
    let deadline = Instant::now() + settings.body_timeout;
    let mut share = None;
    // Nearly every body comes in one piece, which is then not copied.
    let mut whole = Bytes::new();
    let mut more = BytesMut::new();
    while let Some(piece) = timeout_at(deadline, body.next()).await.map_err(|_| Broken::TooSlow)? {
        let mut piece = piece.map_err(|_| Broken::Incomplete)?;
        let length = whole.len() + more.len() + piece.remaining();
        if length > settings.max_body_bytes {
            return Err(Broken::TooLarge);
        }
        if length > FREE_BYTES && share.is_none() {
            // Nothing is read while it waits, so the rest of the body stays with the client.
            let waits = timeout_at(deadline, settings.body_budget.share(size));
            share = Some(waits.await.map_err(|_| Broken::NoRoom)?);
        }
        if whole.is_empty() && more.is_empty() {
            whole = piece.copy_to_bytes(piece.remaining());
        } else {
            more.extend_from_slice(&std::mem::take(&mut whole));
            more.extend_from_slice(&piece.copy_to_bytes(piece.remaining()));
        }
    }
    let whole = if more.is_empty() { whole } else { more.freeze() };
    Ok(match share {
        Some(share) => share.held_by(whole),
        None => whole,
    })
}

async fn discard<S, B>(mut body: Pin<&mut S>)
where
    S: Stream<Item = Result<B, warp::Error>>,
    B: Buf,
{
    let mut left = DISCARD_BYTES;
    let reading = async {
        while let Some(Ok(piece)) = body.next().await {
            match left.checked_sub(piece.remaining()) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // A timeout changes nothing: the answer is the same.
    let _ = timeout(DISCARD_TIME, reading).await;
}

/// The id in the `Idempotency-Key` header. The draft asks for a quoted string (RFC 8941, section 3.3.3); an unquoted
/// value is used as it is, since most clients send it like that.
///
/// # Errors
/// 422 when it is not a valid id, or when there are several.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<CallId>, Problem> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(key) = keys.next() else { return Ok(None) };
    let wrong = |message: String| Problem::invalid_field("Idempotency-Key", message);
    if keys.next().is_some() {
        return Err(wrong("given more than once; send one".to_owned()));
    }
    let ascii = "has characters other than printable ASCII; pass such an id in the body, as `id`";
    let text = key.to_str().map_err(|_| wrong(ascii.to_owned()))?;
    let text = match text.strip_prefix('"') {
        Some(quoted) => unquoted(quoted).ok_or_else(|| wrong("is not a valid quoted string (RFC 8941)".to_owned()))?,
        None => text.to_owned(),
    };
    CallId::parse(text).map(Some).map_err(|error| wrong(error.to_string()))
}

/// The trace that the request belongs to; an invalid or a second one is ignored, as W3C Trace Context asks.
pub(super) fn traceparent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut given = headers.get_all(HEADER_TRACEPARENT).iter();
    let first = TraceParent::parse(given.next()?.to_str().ok()?);
    first.filter(|_| given.next().is_none())
}

/// The rest of a quoted string, in which `\"` and `\\` stand for a quote and a backslash.
fn unquoted(rest: &str) -> Option<String> {
    let (mut text, mut rest) = (String::new(), rest.strip_suffix('"')?.chars());
    while let Some(character) = rest.next() {
        match character {
            '"' => return None,
            '\\' => text.push(rest.next().filter(|escaped| matches!(escaped, '"' | '\\'))?),
            other => text.push(other),
        }
    }
    Some(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures::stream;
    use http::HeaderValue;

    use super::super::BodyBudget;
    use super::*;

    fn headers(given: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn pieces(pieces: &'static [&'static str]) -> impl Stream<Item = Result<&'static [u8], warp::Error>> {
        stream::iter(pieces.iter().map(|piece| Ok(piece.as_bytes())))
    }

    fn small() -> HttpSettings {
        HttpSettings { max_body_bytes: 6, ..HttpSettings::default() }
    }

    #[test]
    fn json_under_any_name_passes_and_what_a_form_can_send_does_not() {
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.x+json", "text/json"] {
            assert!(json_type(&headers(&[("content-type", good)])).is_ok(), "{good}");
        }
        assert!(json_type(&HeaderMap::new()).is_ok());
        for bad in
            ["text/xml", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
        {
            let problem = json_type(&headers(&[("content-type", bad)])).unwrap_err();
            assert_eq!(problem.kind(), Kind::UnsupportedMediaType, "{bad}");
        }
    }

    #[tokio::test]
    async fn a_body_is_put_together_up_to_the_limit_and_not_beyond() {
        let none = HeaderMap::new();
        for (given, expected) in [(&[][..], ""), (&["abcdef"], "abcdef"), (&["ab", "", "cd", "ef"], "abcdef")] {
            assert_eq!(read(&small(), &none, pieces(given)).await.unwrap(), expected);
        }
        for given in [&["abcdefg"][..], &["abc", "def", "g"]] {
            assert_eq!(read(&small(), &none, pieces(given)).await.unwrap_err().kind(), Kind::TooLarge);
        }
    }

    #[tokio::test]
    async fn a_declared_length_over_the_limit_is_refused_unread_when_the_client_asks_first() {
        let asks = headers(&[("content-length", "7"), ("expect", "100-continue")]);
        let unread = stream::poll_fn(|_| -> std::task::Poll<Option<Result<&[u8], warp::Error>>> { panic!("was read") });
        assert_eq!(read(&small(), &asks, unread).await.unwrap_err().kind(), Kind::TooLarge);
    }

    #[tokio::test]
    async fn the_rest_of_a_body_that_is_too_large_is_read_so_that_the_client_gets_to_the_answer() {
        for headers in [HeaderMap::new(), headers(&[("content-length", "12")])] {
            let mut count = 0;
            let counted = pieces(&["abcdef", "abcdef", "abcdef"]).inspect(|_| count += 1);
            assert_eq!(read(&small(), &headers, counted).await.unwrap_err().kind(), Kind::TooLarge);
            assert_eq!(count, 3);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_given_up() {
        let never = stream::pending::<Result<&[u8], warp::Error>>();
        assert_eq!(read(&small(), &HeaderMap::new(), never).await.unwrap_err().kind(), Kind::BodyTimeout);
    }

    #[tokio::test(start_paused = true)]
    async fn an_endless_body_is_neither_kept_nor_read_to_its_end() {
        let endless = stream::repeat_with(|| Ok(&[0_u8; 4096][..]));
        assert_eq!(read(&small(), &HeaderMap::new(), endless).await.unwrap_err().kind(), Kind::TooLarge);
        let stalls = pieces(&["abcdefg"]).chain(stream::pending());
        assert_eq!(read(&small(), &HeaderMap::new(), stalls).await.unwrap_err().kind(), Kind::TooLarge);
    }

    /// A body of 20 kB, more than what is free.
    fn large() -> impl Stream<Item = Result<&'static [u8], warp::Error>> {
        stream::iter([Ok(&[b'x'; 20_000][..])])
    }

    fn room_for_one() -> HttpSettings {
        HttpSettings { body_budget: BodyBudget::of_bytes(30_000), ..HttpSettings::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_body_waits_for_its_share_and_is_503_when_there_is_none_in_time() {
        let (settings, length) = (room_for_one(), headers(&[("content-length", "20000")]));
        let first = read(&settings, &length, large()).await.unwrap();
        let refused = read(&settings, &length, large()).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Busy);
        let second = read(&settings, &length, large());
        let (second, ()) = tokio::join!(second, async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(first);
        });
        assert_eq!(second.unwrap().len(), 20_000);
    }

    #[tokio::test]
    async fn a_small_body_never_waits_and_one_without_a_length_takes_what_the_largest_would() {
        let settings = room_for_one();
        let held = read(&settings, &HeaderMap::new(), large()).await.unwrap();
        assert_eq!(read(&settings, &HeaderMap::new(), pieces(&["abc"])).await.unwrap(), "abc");
        let length = headers(&[("content-length", "20000")]);
        let other = read(&settings, &length, large());
        assert!(futures::FutureExt::now_or_never(other).is_none(), "waits for the first");
        drop(held);
    }

    #[test]
    fn an_invalid_trace_is_ignored_and_so_are_two() {
        const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(traceparent(&headers(&[("traceparent", TRACE)])).unwrap().as_str(), TRACE);
        for given in [&[][..], &[("traceparent", "00-x")], &[("traceparent", TRACE), ("traceparent", TRACE)]] {
            assert_eq!(traceparent(&headers(given)), None, "{given:?}");
        }
    }

    #[test]
    fn an_idempotency_key_is_an_id_with_or_without_quotes() {
        let key = |given: &'static str| idempotency_key(&headers(&[(IDEMPOTENCY_KEY, given)]));
        assert_eq!(idempotency_key(&HeaderMap::new()).unwrap(), None);
        assert_eq!(key("order/42").unwrap().unwrap().as_str(), "order/42");
        assert_eq!(key("\"order/42\"").unwrap().unwrap().as_str(), "order/42");
        assert_eq!(key(r#""a\"b\\c""#).unwrap().unwrap().as_str(), r#"a"b\c"#);
        for bad in ["", "\"\"", "\"", "\"a", "\"a\"b\"", "\"a\\b\"", "\"a\\\"", "a\tb"] {
            assert_eq!(key(bad).unwrap_err().errors()[0].field, "Idempotency-Key", "{bad}");
        }
        let mut german = HeaderMap::new();
        german.insert(IDEMPOTENCY_KEY, HeaderValue::from_bytes("ä".as_bytes()).unwrap());
        assert!(idempotency_key(&german).unwrap_err().errors()[0].message.contains("ASCII"));
        let twice = headers(&[(IDEMPOTENCY_KEY, "a"), (IDEMPOTENCY_KEY, "b")]);
        assert_eq!(idempotency_key(&twice).unwrap_err().kind(), Kind::InvalidRequest);
    }
}
