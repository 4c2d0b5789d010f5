//! The query of `GET /jobs`, its `Link` to the next page, and the call that a path names.

use std::borrow::Cow;
use std::collections::BTreeSet;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::problem::{Kind, Problem};
use crate::api::PageQuery;
use crate::call::validate::names;
use crate::call::{FieldError, Status};

/// Default number of calls on a page.
const DEFAULT_LIMIT: usize = 100;
/// Maximum number of calls on a page.
const MAX_LIMIT: usize = 1000;

/// Reads the query of `GET /jobs`: `limit` (1 to 1000, default 100), `cursor`, `status`, `batch`, each at most once.
///
/// # Errors
/// 422 with everything that is wrong with it, 400 when it is not UTF-8.
pub(super) fn page(raw: &str) -> Result<PageQuery, Problem> {
    let mut query = PageQuery { limit: DEFAULT_LIMIT, ..PageQuery::default() };
    read(raw, |name, value| {
        match name {
            "limit" => query.limit = limit(value)?,
            "cursor" => query.cursor = Some(value.to_owned()),
            "status" => query.status = Some(value.parse::<Status>()?),
            "batch" => query.batch = Some(batch_name(value)?),
            _ => return Err("is not a parameter of this path; pass limit, cursor, status or batch".to_owned()),
        }
        Ok(())
    })?;
    Ok(query)
}

/// Reads the query of `DELETE /jobs`: `batch`, and nothing else, so that a mistyped filter never cancels more than was meant.
///
/// # Errors
/// As for [`page`], and 422 when no batch is named.
pub(super) fn batch(raw: &str) -> Result<String, Problem> {
    let mut batch = None;
    read(raw, |name, value| match name {
        "batch" => {
            batch = Some(batch_name(value)?);
            Ok(())
        }
        _ => Err("is not a parameter of this path; pass `batch` alone: all its calls are cancelled".to_owned()),
    })?;
    batch.ok_or_else(|| Problem::invalid_field("batch", "missing; name the batch whose calls are to be cancelled"))
}

/// The batch that is the rest of a path.
///
/// # Errors
/// 400 when it is not UTF-8, 422 when no request can name it.
pub(super) fn batch_in_path(tail: &str) -> Result<String, Problem> {
    let name = decoded(tail.strip_suffix('/').unwrap_or(tail))?;
    batch_name(&name).map_err(|message| Problem::invalid_field("batch", message))
}

/// The trunk in a path.
///
/// # Errors
/// 400 when it is not UTF-8, 422 when no trunk can have that name.
pub(super) fn trunk_in_path(text: &str) -> Result<String, Problem> {
    let name = decoded(text)?;
    let message = || format!("`{name}` is not the name of a trunk; pass {}", names::DNS_LABEL_IS);
    if names::is_dns_label(&name) { Ok(name.into_owned()) } else { Err(Problem::invalid_field("trunk", message())) }
}

/// Passes each decoded parameter to `set`, and collects its errors.
fn read(raw: &str, mut set: impl FnMut(&str, &str) -> Result<(), String>) -> Result<(), Problem> {
    let (mut seen, mut errors) = (BTreeSet::new(), Vec::new());
    for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (form_decoded(name)?, form_decoded(value)?);
        let outcome =
            if seen.contains(&name) { Err("given twice; give it once".to_owned()) } else { set(&name, &value) };
        if let Err(message) = outcome {
            errors.push(FieldError { field: name.clone(), message });
        }
        seen.insert(name);
    }
    if errors.is_empty() { Ok(()) } else { Err(Problem::invalid(errors)) }
}

fn limit(value: &str) -> Result<usize, String> {
    let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
    let limit = value.parse().ok().filter(|limit| is_number && (1..=MAX_LIMIT).contains(limit));
    limit.ok_or_else(|| format!("`{value}` is not a valid page size; pass a number from 1 to {MAX_LIMIT}"))
}

/// A batch that a request may name: no call can be in any other.
fn batch_name(value: &str) -> Result<String, String> {
    let is_name = !value.is_empty() && names::is_label_value(value);
    let refuse = || format!("`{value}` is not a valid batch; pass {}", names::LABEL_VALUE_IS);
    if is_name { Ok(value.to_owned()) } else { Err(refuse()) }
}

/// As forms encode: percent and `+` for a space (WHATWG URL).
fn form_decoded(text: &str) -> Result<String, Problem> {
    decoded(&text.replace('+', " ")).map(Cow::into_owned)
}

fn decoded(text: &str) -> Result<Cow<'_, str>, Problem> {
    percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| Problem::new(Kind::BadRequest, "the percent-encoded text in the path or query is not UTF-8"))
}

/// The name or id in the rest of a path. An id may contain anything, percent-encoded; a `/` may also be sent as it is,
/// since some proxies decode `%2F`.
///
/// # Errors
/// 400 when it is not UTF-8.
pub(super) fn name_or_id(tail: &str) -> Result<Cow<'_, str>, Problem> {
    decoded(tail)
}

/// The `Link` header (RFC 8288) to the page after this one: the same query, another cursor. A relative reference, since
/// only the client knows the host and prefix under which it reaches us.
pub(super) fn next_link(query: &PageQuery, cursor: &str) -> String {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let mut link = format!("</jobs?limit={}&cursor={}", query.limit, encoded(cursor));
    if let Some(status) = query.status {
        link.push_str(&format!("&status={status}"));
    }
    if let Some(batch) = &query.batch {
        link.push_str(&format!("&batch={}", encoded(batch)));
    }
    link + ">; rel=\"next\""
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn no_query_means_the_first_hundred_of_all() {
        let query = page("").unwrap();
        assert_eq!((query.limit, query.status, query.batch, query.cursor), (100, None, None, None));
    }

    #[test]
    fn every_parameter_is_read_and_decoded() {
        let query = page("limit=1000&status=failed&batch=a%2Eb&cursor=x%3D+&").unwrap();
        assert_eq!((query.limit, query.status), (1000, Some(Status::Failed)));
        assert_eq!((query.batch.unwrap(), query.cursor.unwrap()), ("a.b".to_owned(), "x= ".to_owned()));
    }

    #[test]
    fn everything_wrong_is_named_at_once_with_what_is_accepted() {
        let problem = page("limit=0&status=done&page=2&batch=a&batch=b").unwrap_err();
        assert_eq!(problem.kind(), Kind::InvalidRequest);
        let fields: Vec<_> = problem.errors().iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["limit", "status", "page", "batch"]);
        let messages: Vec<_> = problem.errors().iter().map(|error| error.message.as_str()).collect();
        assert!(
            messages[0].contains("`0` is not a valid page size; pass a number from 1 to 1000")
                && messages[1].contains("succeeded"),
            "{messages:?}"
        );
        assert!(
            messages[2].contains("limit, cursor, status or batch") && messages[3].contains("twice"),
            "{messages:?}"
        );
    }

    #[test]
    fn a_limit_is_a_whole_number_from_1_to_1000() {
        for bad in ["", "0", "1001", "-1", "1.5", "ten", "%2B1", "+1", "99999999999999999999999"] {
            assert!(page(&format!("limit={bad}")).is_err(), "{bad}");
        }
        assert_eq!(page("limit=1").unwrap().limit, 1);
    }

    #[test]
    fn a_batch_is_one_that_a_request_can_name() {
        for bad in ["", "a%20b", "-a", "a%00", "a%2Fb"] {
            let problem = page(&format!("batch={bad}")).unwrap_err();
            assert_eq!(problem.errors()[0].field, "batch", "{bad}");
            assert!(batch(&format!("batch={bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cancel_takes_a_batch_and_nothing_else() {
        assert_eq!(batch("batch=2026-11_a.B").unwrap(), "2026-11_a.B");
        assert_eq!(trunk_in_path("berlin-2").unwrap(), "berlin-2");
        assert_eq!(trunk_in_path("berlin.2").unwrap_err().errors()[0].field, "trunk");
        for bad in ["", "batch", "batch=a&limit=100", "batch=a&status=queued", "batch=a&cursor=", "batch=a&batch=a"] {
            assert_eq!(batch(bad).unwrap_err().kind(), Kind::InvalidRequest, "{bad}");
        }
    }

    #[test]
    fn the_link_leads_to_a_query_that_reads_back_as_the_same_with_the_new_cursor() {
        let first = page("limit=7&status=queued&batch=k_r").unwrap();
        let link = next_link(&first, "a=b&c>");
        let query = link.strip_prefix("</jobs?").unwrap().strip_suffix(">; rel=\"next\"").unwrap();
        let second = page(query).unwrap();
        assert_eq!(second.cursor.as_deref(), Some("a=b&c>"));
        assert_eq!((second.limit, second.status, second.batch), (first.limit, first.status, first.batch));
    }

    #[test]
    fn a_path_is_decoded_once_and_must_be_utf_8() {
        assert_eq!(name_or_id("sipcall-a-bcdefghijk").unwrap(), "sipcall-a-bcdefghijk");
        assert_eq!(name_or_id("order%2F4%202%C3%A4+%252F").unwrap(), "order/4 2ä+%2F");
        assert_eq!(name_or_id("a/b").unwrap(), "a/b");
        assert_eq!(name_or_id("%FF").unwrap_err().kind(), Kind::BadRequest);
        assert_eq!(page("batch=%FF").unwrap_err().kind(), Kind::BadRequest);
    }
}
