//! Parsers for single settings, one function each so that a test can call it. Every error says what is accepted.

use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::{HangUp, MonitoringUrls, Selector, trunks};
use crate::call::validate::names::{is_dns_label, is_label_key, is_label_value, is_subdomain};
use crate::job::manifest::parse_template;

/// A record must outlive the longest call: 600 s × 100, and its delays.
const SHORTEST_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// A whole number in a range.
pub(super) fn whole<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Display + Clone + Send + Sync + 'static,
{
    move |text| {
        let number = text.trim().parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("accepted: a whole number from {} to {}", range.start(), range.end()))
    }
}

pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "accepted: an IP address, such as 127.0.0.1, 0.0.0.0 or ::".to_owned())
}

pub(super) fn not_empty(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("accepted: a text that is not empty".to_owned()) } else { Ok(text.to_owned()) }
}

pub(super) fn truth(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("accepted: true, 1, yes, on, false, 0, no, off".to_owned()),
    }
}

pub(super) fn retention(text: &str) -> Result<Duration, String> {
    at_least(text, SHORTEST_RETENTION)
}

pub(super) fn fault_patience(text: &str) -> Result<Duration, String> {
    at_least(text, Duration::ZERO)
}

/// A duration in a setting or flag: seconds, or a span such as `7d12h`, where a day has 24 hours.
///
/// # Errors
/// What is accepted, when the text is not a duration or is shorter than `least`.
pub fn at_least(text: &str, least: Duration) -> Result<Duration, String> {
    let seconds = || {
        let span: jiff::Span = text.parse().ok()?;
        span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).ok().map(|duration| duration.as_secs())
    };
    let duration = text.parse::<i64>().ok().or_else(seconds).and_then(|seconds| u64::try_from(seconds).ok());
    duration.map(Duration::from_secs).filter(|duration| *duration >= least).ok_or_else(|| {
        format!("accepted: seconds, or a duration such as 90s, 10m, 72h or 7d12h; at least {} s", least.as_secs())
    })
}

pub(super) fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| *rate == 0.0 || (0.001..=10_000.0).contains(rate));
    rate.ok_or_else(|| "accepted: 0 for no limit, or 0.001 to 10000".to_owned())
}

pub(super) fn namespace_name(text: &str) -> Result<String, String> {
    let accepted = "accepted: a DNS label: at most 63 lower-case letters, digits and dashes, no dash at an end";
    if is_dns_label(text) { Ok(text.to_owned()) } else { Err(accepted.to_owned()) }
}

pub(super) fn secret_name(text: &str) -> Result<String, String> {
    let accepted = "accepted: a DNS subdomain: at most 253 lower-case letters, digits, dashes and dots";
    if is_subdomain(text) { Ok(text.to_owned()) } else { Err(accepted.to_owned()) }
}

pub(super) fn command(text: &str) -> Result<HangUp, String> {
    if text.trim() == "none" {
        return Ok(HangUp(None));
    }
    let words = shlex::split(text).filter(|words| !words.is_empty());
    words.map(|words| HangUp(Some(words))).ok_or_else(|| "accepted: a command with balanced quotes, or none".to_owned())
}

pub(super) fn selector(text: &str) -> Result<Selector, String> {
    let pair = |entry: &str| {
        let (key, value) =
            entry.split_once('=').ok_or_else(|| format!("`{entry}` has no `=`; accepted: key=value,key2=value2"))?;
        match (is_label_key(key.trim()), is_label_value(value.trim())) {
            (true, true) => Ok((key.trim().to_owned(), value.trim().to_owned())),
            (false, _) => Err(format!("`{key}` is not a valid label key in Kubernetes")),
            (_, false) => Err(format!("`{value}` is not a valid label value in Kubernetes")),
        }
    };
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries.map(pair).collect::<Result<_, String>>().map(Selector)
}

pub(super) fn monitoring_urls(text: &str) -> Result<MonitoringUrls, String> {
    text.split(',').map(str::parse).collect::<Result<_, _>>().map(MonitoringUrls)
}

/// Reads the file only to check it, so that it is reported together with all other invalid settings.
pub(super) fn template_file(text: &str) -> Result<PathBuf, String> {
    let template = std::fs::read_to_string(text).map_err(|error| error.to_string())?;
    parse_template(&template).map(|_| PathBuf::from(text))
}

/// Reads the file only to check it, as that of the template.
pub(super) fn trunks_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let trunks = trunks::read(&path)?;
    trunks::parse(&trunks).map(|_| path).map_err(|error| error.to_string())
}

pub(super) fn log_filter(text: &str) -> Result<String, String> {
    match text.parse::<tracing_subscriber::EnvFilter>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{error}; accepted: off, error, warn, info, debug, trace, or target=level pairs")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_python_service_for_true_are_accepted_and_their_opposites() {
        for word in ["true", "1", "yes", "YES", "on"] {
            assert_eq!(truth(word), Ok(true), "{word}");
        }
        for word in ["false", "0", "no", "off"] {
            assert_eq!(truth(word), Ok(false), "{word}");
        }
        assert!(truth("maybe").is_err());
    }

    #[test]
    fn a_retention_is_a_duration_of_at_least_a_day() {
        assert_eq!(retention("72h"), Ok(Duration::from_secs(72 * 3600)));
        assert_eq!(retention("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(retention("86400"), Ok(Duration::from_secs(86_400)));
        for text in ["", "1h", "-72h", "soon", "-1"] {
            assert!(retention(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_selector_entry_without_an_equals_sign_is_named() {
        assert_eq!(selector("a=b, c=").map(|selector| selector.0.len()), Ok(2));
        assert!(selector("a=b,oops").is_err_and(|error| error.contains("oops")));
    }
}
