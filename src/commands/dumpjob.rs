//! `dumpjob`: prints the Job that a request would create, as a manifest for `kubectl apply -f -`.

use std::io::Write;

use super::manifest::{JobFlags, operator_only, to_json, to_yaml};
use crate::call::validate::{self, Parsed};
use crate::job::JobDefaults;
use crate::policy::Trunks;

/// The request that is used when none is given, so that the configuration can be seen in its Job.
const SAMPLE: &[u8] = br#"{"id": "sample", "dest": "+4912345", "text": "Hello world"}"#;

/// Prints the Job that a request would create; without a request, a sample
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Dumpjob {
    /// JSON instead of YAML
    #[arg(long, visible_alias = "json-output")]
    pub json: bool,

    #[command(flatten)]
    pub job: JobFlags,
}

/// Writes the manifest to `out`, and remarks about it to `notes`.
///
/// # Errors
/// [`super::request_flags::RequestError`] when the request is invalid, no trunk may dial it; otherwise `out` cannot be written.
pub fn run(
    command: &Dumpjob,
    defaults: &JobDefaults,
    trunks: &Trunks,
    out: &mut impl Write,
    notes: &mut impl Write,
) -> anyhow::Result<()> {
    let parsed = match command.job.request.read()? {
        Some(request) => request.parsed,
        None => sample()?,
    };
    let operator_only = operator_only(&parsed.spec);
    let order = command.job.order(parsed, trunks, defaults)?;
    if !operator_only.is_empty() {
        writeln!(notes, "# Not in this manifest, since only the operator uses it: {}.", operator_only.join(", "))?;
    }
    if !order.passwords.is_empty() {
        writeln!(notes, "# The Secret in this manifest contains a password, and is not removed with the Job.")?;
    }
    out.write_all(if command.json { to_json(&order)? } else { to_yaml(&order)? }.as_bytes())?;
    Ok(())
}

fn sample() -> anyhow::Result<Parsed> {
    Ok(validate::parse(SAMPLE, crate::clock::now())?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser;
    use k8s_openapi::api::batch::v1::Job;
    use k8s_openapi::api::core::v1::Secret;

    use super::*;
    use crate::commands::manifest::only_trunk;
    use crate::job::samples::defaults;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        dumpjob: Dumpjob,
    }

    fn dump(args: &[&str]) -> (String, String) {
        let cli = Cli::try_parse_from([&["dumpjob"], args].concat()).unwrap();
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        run(&cli.dumpjob, &defaults(), &only_trunk(&defaults()), &mut out, &mut notes).unwrap();
        (String::from_utf8(out).unwrap(), String::from_utf8(notes).unwrap())
    }

    #[test]
    fn without_a_request_it_prints_a_sample_with_the_given_image() {
        let (manifest, notes) = dump(&["my/image:1"]);
        let job: Job = serde_saphyr::from_str(&manifest).unwrap();
        let spec = job.spec.unwrap();
        assert_eq!(spec.template.spec.unwrap().containers[0].image.as_deref(), Some("my/image:1"));
        assert_eq!(spec.ttl_seconds_after_finished, Some(3600));
        assert_eq!(notes, "");
        assert_eq!(dump(&["my/image:1"]).0, manifest, "the sample is always the same");
    }

    #[test]
    fn the_same_id_prints_the_same_manifest_and_no_id_a_fresh_one() {
        let same = ["--id", "a", "--dest", "1", "--text", "x"];
        assert_eq!(dump(&same), dump(&same));
        assert_ne!(dump(&same[2..]), dump(&same[2..]));
    }

    #[test]
    fn yaml_and_json_say_the_same() {
        let args =
            ["--json", "--id", "a", "--dest", "0o17", "--text", "yes\nno: - # \"x\" 'y' \u{1F4DE}", "--batch", "1e3"];
        for json_flag in ["--json", "--json-output"] {
            let json: serde_json::Value = serde_json::from_str(&dump(&[&[json_flag], &args[1..]].concat()).0).unwrap();
            let yaml: serde_json::Value = serde_saphyr::from_str(&dump(&args[1..]).0).unwrap();
            assert_eq!(json, yaml);
        }
    }

    #[test]
    fn a_password_is_printed_in_a_secret_before_the_job() {
        let args = ["--id", "a", "--dest", "1", "--text", "x", "--sip-password", "pa$$word"];
        let (yaml, notes) = dump(&args);
        assert!(notes.contains("contains a password") && !yaml.contains("pa$$word"));
        let (first, second) = yaml.split_once("---\n").unwrap();
        let secret: Secret = serde_saphyr::from_str(first).unwrap();
        assert_eq!(secret.data.unwrap()["SIP_PASSWORD"].0, b"pa$$word");
        let job: Job = serde_saphyr::from_str(second).unwrap();
        assert_eq!(job.metadata.name, secret.metadata.name);

        let json: serde_json::Value = serde_json::from_str(&dump(&[&["--json"], &args[..]].concat()).0).unwrap();
        assert_eq!(json["kind"], "List");
        assert_eq!(json["items"][0]["kind"], "Secret");
        assert_eq!(json["items"][1]["kind"], "Job");
    }

    #[test]
    fn it_names_the_fields_that_only_the_operator_uses() {
        let (_, notes) = dump(&["--dest", "1", "--text", "x", "--max-attempts", "3", "--metadata", "a=b"]);
        assert!(notes.contains("max_attempts, metadata"), "{notes}");
    }
}
