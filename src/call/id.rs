//! Who a call is: its id, the names made from it, and the hash of what it asks for. Pure functions, so that every
//! replica, after every crash, names the same call the same way.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Longest id, in characters.
pub const MAX_ID: usize = 128;
/// Longest readable part of a name, in characters.
const MAX_SLUG: usize = 32;
/// Characters of the hash in a name: 50 bits, so that among a million calls two share a name with probability 0.0004.
const HASH_CHARS: usize = 10;

/// The id of a call: 1 to 128 characters without control characters, chosen by the caller or made when it is accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
pub struct CallId(String);

/// Why a text is not a [`CallId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an id has 1 to {MAX_ID} characters and no control characters{0}")]
pub struct BadId(String);

impl CallId {
    /// Takes an id as it is given.
    ///
    /// # Errors
    /// [`BadId`] when it is empty, longer than 128 characters, or has a control character.
    pub fn parse(text: impl Into<String>) -> Result<Self, BadId> {
        let text = text.into();
        match text.chars().count() {
            0 => return Err(BadId("; this one is empty".to_owned())),
            1..=MAX_ID => {}
            more => return Err(BadId(format!("; this one has {more} characters"))),
        }
        if text.chars().any(char::is_control) {
            return Err(BadId("; this one has a control character".to_owned()));
        }
        Ok(Self(text))
    }

    /// An id for a caller that gave none.
    pub fn from_uuid(uuid: uuid::Uuid) -> Self {
        Self(uuid.to_string())
    }

    /// The id of a message whose publisher gave none: stable across redelivery.
    pub fn of_message(stream_sequence: u64, timestamp: jiff::Timestamp) -> Self {
        Self(format!("{stream_sequence}@{timestamp}"))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the call: `sipcall-<slug>-<hash>`, a DNS label (RFC 1123) of at most 51 characters. The hash is over the
    /// length and the id, so that no two ids run into each other.
    pub fn name(&self) -> CallName {
        let slug = slug(&self.0);
        let mut hash = Sha256::new();
        hash.update((self.0.len() as u64).to_be_bytes());
        hash.update(self.0.as_bytes());
        let mut hash = base32(&hash.finalize());
        hash.truncate(HASH_CHARS);
        CallName(if slug.is_empty() { format!("sipcall-{hash}") } else { format!("sipcall-{slug}-{hash}") })
    }
}

impl TryFrom<String> for CallId {
    type Error = BadId;

    fn try_from(text: String) -> Result<Self, BadId> {
        Self::parse(text)
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a call: its first attempt's Job name and the last token of its status subject.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct CallName(String);

impl CallName {
    /// The Job name of an attempt, at most 54 characters: the call's name, from the second attempt on with `-<n>`.
    pub fn job(&self, attempt: u32) -> String {
        if attempt <= 1 { self.0.clone() } else { format!("{}-{attempt}", self.0) }
    }

    /// The name of the call that a Job name belongs to; `None` for a text that no call could have as a Job name. An attempt has
    /// fewer digits than a hash has characters, or the two could not be told apart.
    pub fn of_job(job: &str) -> Option<Self> {
        if is_call_name(job) {
            return Some(Self(job.to_owned()));
        }
        let (name, attempt) = job.rsplit_once('-')?;
        let number = attempt.parse::<u32>().ok().filter(|_| attempt.len() < HASH_CHARS)?;
        (number > 1 && number.to_string() == attempt && is_call_name(name)).then(|| Self(name.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CallName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Hash of what a call asks for, passwords left out: 26 base32 characters (130 bits of SHA-256).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// Of a canonical form; equal forms have equal fingerprints.
    pub fn of(canonical: &[u8]) -> Self {
        let mut text = base32(&Sha256::digest(canonical));
        text.truncate(26);
        Self(text)
    }

    /// As read back from a Job's annotation.
    pub fn from_annotation(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The fingerprint as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Lower-case letters, digits and single dashes; at most [`MAX_SLUG`] of them, none of the dashes at an end.
fn slug(text: &str) -> String {
    let mut slug = String::new();
    for character in text.chars().map(|character| character.to_ascii_lowercase()) {
        if slug.len() == MAX_SLUG {
            break;
        }
        match character {
            'a'..='z' | '0'..='9' => slug.push(character),
            _ if slug.is_empty() || slug.ends_with('-') => {}
            _ => slug.push('-'),
        }
    }
    slug.trim_end_matches('-').to_owned()
}

/// `sipcall-<slug>-<hash>`, or without the slug.
fn is_call_name(text: &str) -> bool {
    let is_hash =
        |text: &str| text.len() == HASH_CHARS && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'));
    text.strip_prefix("sipcall-").is_some_and(|rest| match rest.rsplit_once('-') {
        Some((readable, hash)) => !readable.is_empty() && slug(readable) == readable && is_hash(hash),
        None => is_hash(rest),
    })
}

fn base32(bytes: &[u8]) -> String {
    data_encoding::BASE32_NOPAD.encode(bytes).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn id(text: &str) -> CallId {
        CallId::parse(text).unwrap()
    }

    #[test]
    fn names_stay_as_they_are_since_running_systems_have_recorded_them() {
        let table = [
            ("order-7", "sipcall-order-7-tm2w5t7qh2"),
            ("Order 7 / Müller", "sipcall-order-7-m-ller-66tcgsmq2m"),
            ("…", "sipcall-ydfyo6v5ha"),
            ("019234ab-0000-7000-8000-0123456789ab", "sipcall-019234ab-0000-7000-8000-01234567-27lfifpveo"),
            ("17@2030-01-01T00:00:00Z", "sipcall-17-2030-01-01t00-00-00z-iiepfjg2c4"),
        ];
        for (text, name) in table {
            assert_eq!(id(text).name().as_str(), name, "{text}");
        }
    }

    #[test]
    fn ids_have_1_to_128_characters_and_none_that_controls() {
        for good in ["a", " ", "ü", &"ü".repeat(128)] {
            assert!(CallId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a\n", "\u{0}", "\u{85}", &"a".repeat(129), &"ü".repeat(129)] {
            assert!(CallId::parse(bad).is_err(), "{bad}");
            assert!(serde_json::from_value::<CallId>(serde_json::json!(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_message_without_an_id_gets_the_same_one_at_every_delivery() {
        let published = "2030-01-01T00:00:00.123Z".parse().unwrap();
        assert_eq!(CallId::of_message(17, published).as_str(), "17@2030-01-01T00:00:00.123Z");
    }

    #[test]
    fn fresh_ids_differ_and_sort_by_time() {
        let ids: Vec<_> = std::iter::repeat_with(|| CallId::from_uuid(uuid::Uuid::now_v7())).take(100).collect();
        assert!(ids.is_sorted_by(|earlier, later| earlier < later));
    }

    #[test]
    fn job_names_of_others_belong_to_no_call() {
        let longest = format!("sipcall-{}-abcdefghij-10", "a".repeat(33));
        for job in [
            "",
            "sipcall-",
            "sipcall-abc",
            "sipcall-abcdefghi1",
            "sipcall-Abcdefghij",
            "other-abcdefghij",
            "sipcall-abcdefghij-0",
            "sipcall-abcdefghij-1",
            "sipcall-abcdefghij-02",
            "sipcall-abcdefghij-+2",
            "sipcall-abcdefghij-99999999999",
            "sipcall--abcdefghij",
            "sipcall-a--abcdefghij",
            "sipcall-ü-abcdefghij",
            "sipcall-a.b-abcdefghij",
            longest.as_str(),
        ] {
            assert_eq!(CallName::of_job(job), None, "{job}");
        }
    }

    /// A slug may end in what looks like a hash, and a hash may look like an attempt.
    #[test]
    fn a_slug_that_looks_like_a_hash_does_not_confuse() {
        for text in ["abcdefghij", "abcdefghij-2", "2222222222", "a-2222222222-3"] {
            let name = id(text).name();
            for attempt in 1..=10 {
                assert_eq!(CallName::of_job(&name.job(attempt)), Some(name.clone()), "{}", name.job(attempt));
            }
        }
    }

    fn any_id() -> impl Strategy<Value = CallId> {
        let text = prop_oneof!["[a-z2-7-]{1,40}", "[2-7]{10}", "\\PC{1,32}", "[A-Za-z0-9._/ @-]{1,128}"];
        text.prop_filter_map("is an id", |text| CallId::parse(text).ok())
    }

    proptest! {
        #[test]
        fn names_are_dns_labels_of_at_most_63_characters(id in any_id(), attempt in 1..=10_u32) {
            let job = id.name().job(attempt);
            let is_inner = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
            prop_assert!(job.len() <= 63 && job.bytes().all(is_inner) && !job.ends_with('-'), "{}", job);
            prop_assert!(job.starts_with("sipcall-") && id.name().as_str().len() <= 51, "{}", job);
        }

        #[test]
        fn every_job_leads_back_to_its_call(id in any_id(), attempt in prop_oneof![1..=10_u32, 1..1_000_000_000_u32]) {
            prop_assert_eq!(CallName::of_job(&id.name().job(attempt)), Some(id.name()));
        }

        #[test]
        fn different_ids_have_different_names(one in any_id(), other in any_id()) {
            prop_assert_eq!(one == other, one.name() == other.name());
        }

        #[test]
        fn ids_that_share_a_slug_have_different_names(text in "[a-z]{1,20}") {
            let names = [text.clone(), format!("{text}-"), format!("{text}."), text.to_uppercase()].map(|text| id(&text).name());
            let distinct: std::collections::BTreeSet<_> = names.iter().collect();
            prop_assert_eq!(distinct.len(), names.len());
        }

        #[test]
        fn any_text_is_a_job_name_or_not_without_a_panic(text in "(sipcall-)?[a-zü2-70-]{0,70}") {
            if let Some(name) = CallName::of_job(&text) {
                prop_assert!(text.starts_with(name.as_str()));
            }
        }

        #[test]
        fn fingerprints_read_back_as_they_are(canonical in prop::collection::vec(any::<u8>(), 0..50)) {
            let fingerprint = Fingerprint::of(&canonical);
            prop_assert_eq!(fingerprint.as_str().len(), 26);
            prop_assert_eq!(Fingerprint::from_annotation(fingerprint.as_str()), fingerprint);
        }
    }
}
