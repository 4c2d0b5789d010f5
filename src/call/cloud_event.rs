//! Call requests that come as CloudEvents 1.0, so that any broker which speaks them can feed the operator: the data is the request, and
//! source and id say which call it is.
//!
//! The call's id is `<source> <id>`, or a hash of that where it is longer than an id may be.
//!
//! In structured mode the whole event is the body, with the media type `application/cloudevents+json` (JSON event format, HTTP and NATS
//! protocol bindings). In binary mode the body is the data, and the attributes are headers, `ce-…`.

use bytes::Bytes;
use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{CallId, FieldError, Fingerprint, Refusal};

/// The media type of an event in structured mode.
pub const STRUCTURED: &str = "application/cloudevents+json";
/// That of several events in one message, which is refused.
const BATCHED: &str = "application/cloudevents-batch+json";
/// The media type of the data.
const JSON: &str = "application/json";
/// The only version of the specification.
const VERSION: &str = "1.0";

/// A request that was taken out of its envelope, if it came in one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The request.
    pub request: Bytes,
    /// Which call it is, by source and id of the event; none where it is not an event.
    pub id: Option<CallId>,
}

/// Takes a request out of its envelope. `media_type` is that of the body, `header` finds a header by its name in lower case.
///
/// # Errors
/// [`Refusal`] when it is an event that has no request, or does not say which one it is.
pub fn open<'a>(
    media_type: Option<&str>,
    header: impl Fn(&str) -> Option<&'a str>,
    body: &Bytes,
) -> Result<Opened, Refusal> {
    let media_type = media_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if media_type == BATCHED {
        return Err(refusal("", "is a batch of events; send them one by one"));
    }
    if media_type == STRUCTURED {
        return structured(body);
    }
    if header("ce-specversion").is_none() {
        return Ok(Opened { request: body.clone(), id: None });
    }
    let attribute = |name: &str| header(&format!("ce-{name}")).map(str::to_owned);
    let id = identity("ce-", attribute)?;
    Ok(Opened { request: body.clone(), id: Some(id) })
}

/// An event in structured mode. Other attributes are of no concern. The data is kept as it is written, since a key that is given twice
/// is an error of the request.
#[derive(Deserialize)]
struct Event<'a> {
    specversion: Option<String>,
    id: Option<String>,
    source: Option<String>,
    r#type: Option<String>,
    datacontenttype: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    data_base64: Option<String>,
}

fn structured(body: &Bytes) -> Result<Opened, Refusal> {
    let event: Event<'_> = serde_json::from_slice(body).map_err(|error| Refusal::Malformed(error.to_string()))?;
    let Event { specversion, id, source, r#type, datacontenttype, data, data_base64 } = event;
    if datacontenttype.is_some_and(|given| given != JSON && !given.starts_with("application/json;")) {
        return Err(refusal("datacontenttype", "is not supported; pass `application/json`"));
    }
    let id = identity("", |name| match name {
        "specversion" => specversion.clone(),
        "source" => source.clone(),
        "type" => r#type.clone(),
        _ => id.clone(),
    })?;
    let request = match (data, data_base64) {
        (Some(data), None) => Bytes::copy_from_slice(data.get().as_bytes()),
        (None, Some(text)) => {
            let decoded = BASE64.decode(text.as_bytes());
            decoded.map_err(|_| refusal("data_base64", "is not Base64 (RFC 4648, with padding)"))?.into()
        }
        _ => return Err(refusal("data", "must be the call request; pass either `data` or `data_base64`")),
    };
    Ok(Opened { request, id: Some(id) })
}

/// The call that an event asks for: source and id are unique together, and a source, which is a URI reference, has no space. `prefix` is
/// that of the attributes' names.
fn identity(prefix: &str, attribute: impl Fn(&str) -> Option<String>) -> Result<CallId, Refusal> {
    let field = |name: &str| format!("{prefix}{name}");
    let version = attribute("specversion");
    if version.as_deref() != Some(VERSION) {
        return Err(refusal(&field("specversion"), &format!("is not supported; pass `{VERSION}`")));
    }
    let given = |name: &str| match attribute(name) {
        Some(text) if !text.is_empty() && !text.contains(char::is_control) => Ok(text),
        _ => Err(refusal(&field(name), "is missing or empty, or has control characters")),
    };
    let (source, id, _) = (given("source")?, given("id")?, given("type")?);
    if source.contains(' ') {
        return Err(refusal(&field("source"), "is not a URI reference: it has a space"));
    }
    let id = format!("{source} {id}");
    // What is too long for an id is named by its hash.
    let id = CallId::parse(&id).or_else(|_| CallId::parse(format!("ce-{}", Fingerprint::of(id.as_bytes()).as_str())));
    id.map_err(|error| refusal(&field("id"), &error.to_string()))
}

fn refusal(field: &str, message: &str) -> Refusal {
    Refusal::Invalid { id: None, errors: vec![FieldError { field: field.to_owned(), message: message.to_owned() }] }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const REQUEST: &str = r#"{"dest":"1","text":"a"}"#;

    fn event(changes: Value) -> Bytes {
        let mut event = json!({
            "specversion": "1.0", "type": "shop.order.paid", "source": "/shop", "id": "42",
            "datacontenttype": "application/json", "data": serde_json::from_str::<Value>(REQUEST).unwrap(),
        });
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => _ = event.as_object_mut().unwrap().remove(name),
                value => event[name] = value.clone(),
            }
        }
        event.to_string().into()
    }

    fn structured(changes: Value) -> Result<Opened, Refusal> {
        open(Some("application/cloudevents+json; charset=utf-8"), |_| None, &event(changes))
    }

    fn binary<'a>(headers: &'a [(&'a str, &'a str)]) -> Result<Opened, Refusal> {
        let find = |name: &str| headers.iter().find(|(header, _)| *header == name).map(|(_, value)| *value);
        open(Some("application/json"), find, &REQUEST.into())
    }

    #[test]
    fn what_is_not_an_event_stays_as_it_is() {
        let opened = open(Some("application/json"), |_| None, &REQUEST.into()).unwrap();
        assert_eq!(opened, Opened { request: REQUEST.into(), id: None });
    }

    #[test]
    fn the_data_is_the_request_and_source_and_id_say_which_one() {
        let expected = Opened { request: REQUEST.into(), id: Some(CallId::parse("/shop 42").unwrap()) };
        let base64 = json!({"data": null, "data_base64": BASE64.encode(REQUEST.as_bytes())});
        for opened in [structured(json!({})), structured(base64)] {
            assert_eq!(opened.unwrap(), expected);
        }
        let headers = [("ce-specversion", "1.0"), ("ce-type", "t"), ("ce-source", "/shop"), ("ce-id", "42")];
        assert_eq!(binary(&headers).unwrap(), expected);
    }

    #[test]
    fn a_long_source_and_id_are_named_by_a_hash() {
        let id = |id: String| structured(json!({"id": id})).unwrap().id.unwrap().to_string();
        let (one, other) = (id("x".repeat(200)), id("x".repeat(201)));
        assert!(one.starts_with("ce-") && one.len() < 64 && one != other, "{one}, {other}");
        assert_eq!(one, id("x".repeat(200)));
    }

    #[test]
    fn a_key_that_is_given_twice_in_the_data_is_still_there() {
        let body =
            r#"{"specversion":"1.0","type":"t","source":"/shop","id":"42","data":{"dest":"1","dest":"2","text":"a"}}"#;
        let opened = open(Some(STRUCTURED), |_| None, &body.into()).unwrap();
        assert_eq!(opened.request, r#"{"dest":"1","dest":"2","text":"a"}"#);
    }

    #[test]
    fn an_event_without_what_it_needs_is_refused_by_name() {
        let table = [
            (json!({"specversion": "0.3"}), "specversion"),
            (json!({"datacontenttype": "text/xml"}), "datacontenttype"),
            (json!({"source": ""}), "source"),
            (json!({"id": null}), "id"),
            (json!({"type": null}), "type"),
            (json!({"source": "/my shop"}), "source"),
            (json!({"id": "a\nb"}), "id"),
            (json!({"data": null}), "data"),
            (json!({"data": null, "data_base64": "?"}), "data_base64"),
        ];
        for (changes, field) in table {
            let Err(Refusal::Invalid { errors, .. }) = structured(changes.clone()) else { panic!("{changes}") };
            assert_eq!(errors[0].field, field, "{changes}");
        }
        let Err(Refusal::Invalid { errors, .. }) = binary(&[("ce-specversion", "1.0")]) else {
            panic!("it is refused")
        };
        assert_eq!(errors[0].field, "ce-source");
        let batch = open(Some("application/cloudevents-batch+json"), |_| None, &"[]".into());
        assert!(batch.unwrap_err().to_string().contains("one by one"));
    }
}
