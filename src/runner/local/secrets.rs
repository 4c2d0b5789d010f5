//! The env file that is used in place of the cluster's Secrets.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use secrecy::{ExposeSecret, SecretString};

/// The contents of the env file: Secret → key → value.
#[derive(Default)]
pub(super) struct Secrets(HashMap<String, HashMap<String, SecretString>>);

/// Why the env file cannot be used. Names lines by their number, and never shows what is in them.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// It cannot be read.
    #[error("cannot read the secrets file {0}: {1}")]
    Unreadable(String, String),
    /// A line is not valid.
    #[error(
        "line {1} of the secrets file {0} is not valid; accepted: KEY=VALUE, [secret-name], # comment, or an empty line"
    )]
    BadLine(String, usize),
}

impl Secrets {
    /// Reads the file. The lines before the first `[name]` belong to the Secret `default_name`, the lines after it to the one named.
    pub(super) fn read(path: &Path, default_name: &str) -> Result<Self, SecretsError> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| SecretsError::Unreadable(shown.clone(), error.to_string()))?;
        Self::parse(&text, default_name).map_err(|line| SecretsError::BadLine(shown, line))
    }

    fn parse(text: &str, default_name: &str) -> Result<Self, usize> {
        let mut secrets = HashMap::<String, HashMap<String, SecretString>>::new();
        let mut name = default_name.to_owned();
        for (index, line) in text.lines().enumerate() {
            match Line::parse(line).ok_or(index + 1)? {
                Line::Nothing => {}
                Line::Name(other) => name = other.to_owned(),
                Line::Entry(key, value) => {
                    secrets.entry(name.clone()).or_default().insert(key.to_owned(), value.to_owned().into());
                }
            }
        }
        Ok(Self(secrets))
    }

    pub(super) fn get(&self, name: &str, key: &str) -> Option<String> {
        Some(self.0.get(name)?.get(key)?.expose_secret().to_owned())
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

enum Line<'a> {
    Nothing,
    Name(&'a str),
    Entry(&'a str, &'a str),
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return Some(Self::Nothing);
        }
        if let Some(name) = line.strip_prefix('[') {
            return name.strip_suffix(']').map(|name| Self::Name(name.trim()));
        }
        let (key, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
        let key = key.trim();
        let is_name = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        is_name.then(|| Self::Entry(key, unquoted(value.trim())))
    }
}

/// Env files often quote values: a pair of quotes around a value is removed, and nothing between them is unescaped.
fn unquoted(value: &str) -> &str {
    ['"', '\''].into_iter().find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote)).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_kind_of_line_is_read() {
        let text = "# trunk\n\nSIP_USER=alice\nexport SIP_SERVER = sip.example \nSIP_PASSWORD='a=b $x#'\n[other]\nSIP_USER=\"bob\"\n";
        let secrets = Secrets::parse(text, "sip-credentials").unwrap();
        let get = |name: &str, key: &str| secrets.get(name, key);
        assert_eq!(get("sip-credentials", "SIP_USER").as_deref(), Some("alice"));
        assert_eq!(get("sip-credentials", "SIP_SERVER").as_deref(), Some("sip.example"));
        assert_eq!(get("sip-credentials", "SIP_PASSWORD").as_deref(), Some("a=b $x#"));
        assert_eq!(get("other", "SIP_USER").as_deref(), Some("bob"));
        assert_eq!(get("other", "SIP_PASSWORD"), None, "one Secret's keys are not another one's");
        assert_eq!(get("third", "SIP_USER"), None);
    }

    #[test]
    fn a_bad_line_is_named_by_its_number_only() {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), "A=1\nhunter2\n").unwrap();
        let error = Secrets::read(path.path(), "s").unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("hunter2"), "{error}");
    }
}
