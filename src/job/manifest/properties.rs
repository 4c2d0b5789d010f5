//! Whatever a request says reaches the caller as it was said: nothing becomes another flag, nothing is expanded.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::tests::{caller, command, job_of};
use crate::call::CallSpec;
use crate::call::spec::{Announcement, SipSettings};
use crate::job::samples::spec;

/// What the kubelet makes of a text in command, args and env values (`k8s.io/kubernetes/third_party/forked/golang/expansion`):
/// `$$` is `$`, `$(NAME)` the variable if there is one, and everything else stays.
fn expand(text: &str, variables: &BTreeMap<&str, &str>) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            expanded
                .push_str(variables.get(name).copied().map_or_else(|| format!("$({name})"), str::to_owned).as_str());
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded + rest
}

/// Reads a command line as argparse does: a word that begins with `-` is a flag, tied to its value by `=` or followed by it.
fn read_flags(words: &[String]) -> Vec<(String, Option<String>)> {
    const SWITCHES: [&str; 2] = ["--transcribe", "--verbose"];
    let mut words = words.iter();
    let mut flags = Vec::new();
    while let Some(word) = words.next() {
        assert!(word.starts_with("--"), "{word} would be a positional argument");
        if let Some((flag, value)) = word.split_once('=') {
            flags.push((flag.to_owned(), Some(value.to_owned())));
        } else if SWITCHES.contains(&word.as_str()) {
            flags.push((word.clone(), None));
        } else {
            let value = words.next().unwrap();
            assert!(!value.starts_with('-'), "{value} would be read as a flag");
            flags.push((word.clone(), Some(value.clone())));
        }
    }
    flags
}

/// Texts that try to be something else: flags, references, sums of money.
fn nasty() -> impl Strategy<Value = String> {
    prop_oneof![
        "[-$(){}=A-Z_ '\"a-z0-9ü📞\n]{1,40}",
        "(-{1,3}[a-z]{1,8}=?)",
        r"(\$\(SIP_PASSWORD\)|\$\$|\$|\(|\)|SIP_PASSWORD|x){1,8}",
    ]
}

proptest! {
    #[test]
    fn every_argument_reaches_the_caller_as_it_was_given(
        dest in nasty(), said in nasty(), is_text: bool, model in nasty(), language in nasty(), record in nasty(),
        transcribe: bool, verbose: bool,
    ) {
        let announcement = if is_text { Announcement::Text(said.clone()) } else { Announcement::Wav(said.clone()) };
        let job = job_of(CallSpec {
            dest: dest.clone(),
            announcement,
            tts_model: Some(model.clone()),
            stt_language: Some(language.clone()),
            record: Some(record.clone()),
            transcribe,
            verbose,
            ..spec()
        });
        let variables = BTreeMap::from([("SIP_PASSWORD", "hunter2"), ("x", "y"), ("", "z")]);
        let words: Vec<_> =
            command(&job)[4..].iter().map(|word| expand(word, &variables)).collect();
        let mut expected = vec![
            ("--dest", Some(dest)),
            (if is_text { "--text" } else { "--wav" }, Some(said)),
            ("--timeout", Some("60".to_owned())),
            ("--piper-model", Some(model)),
            ("--stt-language", Some(language)),
        ];
        if transcribe { expected.push(("--transcribe", None)); }
        if verbose { expected.push(("--verbose", None)); }
        expected.push(("--record", Some(record)));
        let expected: Vec<_> = expected.into_iter().map(|(flag, value)| (flag.to_owned(), value)).collect();
        prop_assert_eq!(read_flags(&words), expected);
        prop_assert!(caller(&job).args.is_none());
    }

    #[test]
    fn every_setting_reaches_the_caller_as_it_was_given(server in nasty(), user in nasty(), address in nasty()) {
        let sip = SipSettings {
            server: Some(server.clone()),
            user: Some(user.clone()),
            turn_server: Some(server.clone()),
            public_address: Some(address.clone()),
            ..SipSettings::default()
        };
        let job = job_of(CallSpec { sip, ..spec() });
        let variables = BTreeMap::from([("SIP_PASSWORD", "hunter2"), ("SIP_SERVER", "other"), ("x", "y"), ("", "z")]);
        let values: BTreeMap<_, _> = caller(&job).env.iter().flatten()
            .filter_map(|variable| Some((variable.name.as_str(), expand(variable.value.as_deref()?, &variables))))
            .collect();
        let expected = BTreeMap::from([
            ("SIP_SERVER", server.clone()),
            ("SIP_USER", user),
            ("SIP_TURN_SERVER", server),
            ("SIP_TURN_ENABLED", "true".to_owned()),
            ("SIP_PUBLIC_ADDRESS", address),
        ]);
        prop_assert_eq!(values, expected);
    }
}
