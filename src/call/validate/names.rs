//! Names as Kubernetes has them (<https://kubernetes.io/docs/concepts/overview/working-with-objects/names/> and
//! `labels/#syntax-and-character-set` beside it): checked here because the API server would refuse the Job only once the
//! call is due.

/// What a label value is, for messages.
pub const LABEL_VALUE_IS: &str =
    "a Kubernetes label value: 1 to 63 letters, digits, '-', '_' and '.', a letter or digit at both ends";
/// What a label key is, for messages.
pub const LABEL_KEY_IS: &str = "a Kubernetes label key: 1 to 63 letters, digits, '-', '_' and '.', a letter or digit at both \
     ends, optionally after a DNS subdomain and '/'";
/// What a DNS subdomain is, for messages.
pub const SUBDOMAIN_IS: &str = "a DNS subdomain of 1 to 253 characters: lower-case letters, digits, '-' and '.', a letter or digit at both ends of each part";
/// What a DNS label is, for messages.
pub const DNS_LABEL_IS: &str =
    "a DNS label: 1 to 63 lower-case letters, digits and '-', a letter or digit at both ends";

/// A label value that may be empty, as a regular expression; the length is stated apart.
pub const LABEL_VALUE_PATTERN: &str = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";
/// A label key, as a regular expression; the length of the part before `/` is not in it.
pub const LABEL_KEY_PATTERN: &str = concat!(
    "^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?",
    "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
);
/// A DNS subdomain, as a regular expression; the length is stated apart.
pub const SUBDOMAIN_PATTERN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// A DNS label, as a regular expression; the length is stated apart.
pub const DNS_LABEL_PATTERN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";

/// Whether a text is a label value; the empty one is.
pub fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_label_name(text)
}

/// Whether a text is a label key: a name, optionally after a DNS subdomain and `/`.
pub fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_label_name(name),
        None => is_label_name(text),
    }
}

/// Whether a text is a DNS subdomain (RFC 1123 as Kubernetes reads it), the form of most resource names.
pub fn is_subdomain(text: &str) -> bool {
    let is_part = |part: &str| {
        part.bytes().all(|byte| byte == b'-' || byte.is_ascii_lowercase() || byte.is_ascii_digit()) && ends_well(part)
    };
    text.len() <= 253 && text.split('.').all(is_part)
}

/// Whether a text is a DNS label (RFC 1123 as Kubernetes reads it), which is also one token of a NATS subject.
pub fn is_dns_label(text: &str) -> bool {
    text.len() <= 63 && !text.contains('.') && is_subdomain(text)
}

fn is_label_name(text: &str) -> bool {
    text.len() <= 63
        && text.bytes().all(|byte| matches!(byte, b'-' | b'_' | b'.') || byte.is_ascii_alphanumeric())
        && ends_well(text)
}

/// Not empty, and neither end is punctuation.
fn ends_well(text: &str) -> bool {
    let is_alphanumeric = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    is_alphanumeric(text.as_bytes().first()) && is_alphanumeric(text.as_bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_those_of_kubernetes() {
        let longest = "a".repeat(63);
        for good in ["", "a", "A-1_b.c", "0", longest.as_str()] {
            assert!(is_label_value(good), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in ["-a", "a-", ".", "a b", "ä", "a/b", "a\n", too_long.as_str()] {
            assert!(!is_label_value(bad), "{bad}");
        }
    }

    #[test]
    fn label_keys_may_have_a_domain_before_the_slash() {
        let longest = format!("{}/{}", "a".repeat(253), "b".repeat(63));
        for good in ["disk", "kubernetes.io/hostname", "a-b.c/D_e", longest.as_str()] {
            assert!(is_label_key(good), "{good}");
        }
        let long_prefix = format!("{}/b", "a".repeat(254));
        for bad in ["", "/a", "a/", "a/b/c", "Kubernetes.io/a", "a..b/c", "-a/b", "a b", long_prefix.as_str()] {
            assert!(!is_label_key(bad), "{bad}");
        }
    }

    #[test]
    fn secret_names_are_dns_subdomains() {
        let longest = "a".repeat(253);
        for good in ["a", "sip-credentials", "trunk.example", "0", longest.as_str()] {
            assert!(is_subdomain(good), "{good}");
        }
        let too_long = "a".repeat(254);
        for bad in ["", "A", "a_b", "a.", ".a", "a..b", "-a", "a-.b", "a/b", too_long.as_str()] {
            assert!(!is_subdomain(bad), "{bad}");
        }
    }

    #[test]
    fn dns_labels_are_subdomains_of_one_part() {
        let longest = "a".repeat(63);
        for good in ["a", "trunk-2", "0", longest.as_str()] {
            assert!(is_dns_label(good), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in ["", "A", "a_b", "a.b", "-a", "a-", "*", ">", "a b", too_long.as_str()] {
            assert!(!is_dns_label(bad), "{bad}");
        }
    }
}
