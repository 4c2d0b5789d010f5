//! Golden files: `golden/<case>.json` is a request and a configuration, `golden/<case>.yaml` the manifest that `dumpjob`
//! prints for them. `UPDATE_GOLDEN=1 cargo test golden` writes the manifests anew; what changed is then for a person to read.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};
use sipstuff_operator::call::CallId;
use sipstuff_operator::call::validate::fields::FIELDS;
use sipstuff_operator::call::validate::{self};
use sipstuff_operator::commands::manifest::{JobFlags, to_json, to_yaml};
use sipstuff_operator::job::manifest::parse_template;
use sipstuff_operator::job::{JobDefaults, JobOrder};
use sipstuff_operator::policy::{DEFAULT_TRUNK, Trunk, Trunks};

use crate::support::job_defaults;

/// One `.json` file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    request: Map<String, Value>,
    /// By the names of the environment; `JOB_TEMPLATE_FILE` holds the template itself.
    #[serde(default)]
    configuration: Configuration,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "SCREAMING_SNAKE_CASE")]
struct Configuration {
    job_namespace: String,
    job_image: String,
    sip_secret_name: String,
    job_ttl_seconds: i32,
    job_backoff_limit: i32,
    job_host_network: bool,
    piper_data_dir: Option<String>,
    whisper_data_dir: Option<String>,
    recording_dir: Option<String>,
    run_as_user: Option<i64>,
    run_as_group: Option<i64>,
    fs_group: Option<i64>,
    node_selector: BTreeMap<String, String>,
    job_start_seconds: u32,
    job_deadline_margin_seconds: u32,
    job_hang_up_command: Option<Vec<String>>,
    job_pod_gate: bool,
    job_template_file: Option<Value>,
}

impl Default for Configuration {
    /// The documented defaults.
    fn default() -> Self {
        Self {
            job_namespace: "sipstuff".to_owned(),
            job_image: "xomoxcc/somestuff:latest".to_owned(),
            sip_secret_name: "sip-credentials".to_owned(),
            job_ttl_seconds: 3600,
            job_backoff_limit: 0,
            job_host_network: true,
            piper_data_dir: None,
            whisper_data_dir: None,
            recording_dir: None,
            run_as_user: None,
            run_as_group: None,
            fs_group: None,
            node_selector: BTreeMap::new(),
            job_start_seconds: 600,
            job_deadline_margin_seconds: 600,
            job_hang_up_command: job_defaults().hang_up,
            job_pod_gate: true,
            job_template_file: None,
        }
    }
}

impl From<Configuration> for JobDefaults {
    fn from(configuration: Configuration) -> Self {
        Self {
            namespace: configuration.job_namespace,
            image: configuration.job_image,
            sip_secret_name: configuration.sip_secret_name,
            ttl_seconds: configuration.job_ttl_seconds,
            backoff_limit: configuration.job_backoff_limit,
            host_network: configuration.job_host_network,
            piper_data_dir: configuration.piper_data_dir,
            whisper_data_dir: configuration.whisper_data_dir,
            recording_dir: configuration.recording_dir,
            run_as_user: configuration.run_as_user,
            run_as_group: configuration.run_as_group,
            fs_group: configuration.fs_group,
            node_selector: configuration.node_selector,
            start_seconds: configuration.job_start_seconds,
            hang_up: configuration.job_hang_up_command,
            deadline_margin: configuration.job_deadline_margin_seconds,
            pod_gate: configuration.job_pod_gate,
            template: configuration.job_template_file.map(|template| parse_template(&template.to_string()).unwrap()),
        }
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The files with an extension, by the name of their case.
pub(crate) fn files(extension: &str) -> BTreeMap<String, PathBuf> {
    let paths = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|other| other == extension))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path))
        .collect()
}

fn cases() -> BTreeMap<String, Value> {
    let read = |path: PathBuf| serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    files("json").into_iter().map(|(name, path)| (name, read(path))).collect()
}

/// What `dumpjob` makes of a case, whose name is the call's id unless the request has one.
fn order(name: &str, case: &Value) -> JobOrder {
    let case: Case = serde_json::from_value(case.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut parsed = validate::parse(Value::Object(case.request).to_string().as_bytes(), jiff::Timestamp::now())
        .unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
    parsed.id.get_or_insert(CallId::parse(name).unwrap());
    let defaults: JobDefaults = case.configuration.into();
    // The trunk that the request names, with the configured account.
    let name = parsed.spec.trunk.clone().unwrap_or_else(|| DEFAULT_TRUNK.to_owned());
    let secret = defaults.sip_secret_name.clone();
    let trunk = Trunk { name, secret, max_active: 1, calls_per_second: None, node_selector: None };
    JobFlags::default().order(parsed, &Trunks::single(trunk), &defaults).unwrap()
}

#[test]
fn every_request_makes_the_manifest_that_it_made_before() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    for (name, case) in cases() {
        let path = folder().join(format!("{name}.yaml"));
        let manifest = to_yaml(&order(&name, &case)).unwrap();
        if update {
            fs::write(&path, &manifest).unwrap();
        }
        let golden = fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}; UPDATE_GOLDEN=1 writes it", path.display()));
        assert_eq!(manifest, golden, "{name}: UPDATE_GOLDEN=1 writes the new manifest, if it is right");
    }
    // Compared here, not in a test of its own, which would run beside an update.
    assert!(files("yaml").keys().eq(files("json").keys()), "a manifest without a request");
}

#[test]
fn yaml_and_json_of_a_case_are_the_same_objects() {
    for (name, case) in cases() {
        let order = order(&name, &case);
        let yaml: Vec<Value> = serde_saphyr::from_multiple(&to_yaml(&order).unwrap()).unwrap();
        let json: Value = serde_json::from_str(&to_json(&order).unwrap()).unwrap();
        let items = if json["kind"] == "List" { json["items"].as_array().unwrap().clone() } else { vec![json] };
        assert_eq!(yaml, items, "{name}");
    }
}

#[test]
fn no_manifest_shows_a_password() {
    for (name, case) in cases() {
        let manifest = to_yaml(&order(&name, &case)).unwrap();
        for field in ["sip_password", "turn_password"] {
            if let Some(password) = case["request"].get(field).and_then(Value::as_str) {
                assert!(!manifest.contains(password), "{name}: {field}");
            }
        }
    }
}

#[test]
fn every_field_and_every_setting_has_a_case() {
    let cases = cases();
    let of = |part: &str| -> BTreeSet<String> {
        let objects = cases.values().filter_map(|case| case.get(part)?.as_object());
        objects.flat_map(|fields| fields.keys().cloned()).collect()
    };
    let fields: BTreeSet<_> = FIELDS.iter().map(|(field, _)| (*field).to_owned()).collect();
    assert_eq!(of("request"), fields);
    // A key that is none of the settings would not be read by `Configuration`.
    assert_eq!(of("configuration").len(), 18, "{:?}", of("configuration"));
}
