//! Refuses requests from pages of other sites. The API has no authentication and listens on loopback, which every page
//! in a browser on this machine can reach: a form on any site could place calls. Browsers say where a request comes
//! from; other clients do not.

use http::{HeaderMap, Uri, header};

use super::problem::{Kind, Problem};

/// Accepts a request that comes from no browser, from a page of our own origin, or directly from the user. Goes by
/// `Sec-Fetch-Site` where the browser sends it (Fetch Metadata, W3C), else compares `Origin` with `Host`.
///
/// # Errors
/// 403 for a request from a page of another origin.
pub(super) fn check(headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let ours = match (text("sec-fetch-site"), text(header::ORIGIN.as_str())) {
        (Some(site), _) => matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => origin.parse::<Uri>().is_ok_and(|origin| {
            origin.authority().is_some_and(|origin| text(header::HOST.as_str()) == Some(origin.as_str()))
        }),
        (None, None) => true,
    };
    if ours { Ok(()) } else { Err(Problem::new(Kind::CrossOrigin, "the request comes from a page of another origin")) }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn only_pages_of_other_origins_are_kept_out() {
        let table: [(&[(&'static str, &'static str)], bool); 8] = [
            (&[], true),
            (&[("host", "localhost:8080")], true),
            (&[("sec-fetch-site", "same-origin"), ("origin", "http://localhost:8080")], true),
            (&[("sec-fetch-site", "none")], true),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "same-site")], false),
            (&[("host", "localhost:8080"), ("origin", "http://localhost:8080")], true),
            (&[("host", "localhost:8080"), ("origin", "null")], false),
        ];
        for (given, passes) in table {
            let headers = given
                .iter()
                .map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)));
            assert_eq!(check(&headers.collect()).is_ok(), passes, "{given:?}");
        }
    }
}
