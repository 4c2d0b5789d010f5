//! Turns a request on the command line into a Job, and into a manifest for `kubectl apply -f -`: what `dumpjob` and
//! `startjob` share.

use std::borrow::Cow;

use anyhow::Context;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Secret;
use serde::Serialize;
use serde_json::json;

use super::request_flags::RequestFlags;
use crate::call::validate::Parsed;
use crate::call::{Call, CallSpec, OnUnknown, Priority};
use crate::job::manifest::{build_unattended, secret};
use crate::job::{JobDefaults, JobOrder};
use crate::policy::{Trunks, Unroutable, Wanted};

/// What the Job of one call is made of: its request and its image. Directories and user ids come from the settings.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct JobFlags {
    /// Container image of the Job, instead of JOB_IMAGE
    #[arg(value_name = "IMAGE")]
    pub image: Option<String>,
    /// The request.
    #[command(flatten)]
    pub request: RequestFlags,
}

impl JobFlags {
    /// The Job of a request, with the account of the first trunk that may dial it. Kubernetes removes it by itself after its end, since no
    /// operator settles it.
    ///
    /// # Errors
    /// No trunk may dial it.
    pub fn order(&self, parsed: Parsed, trunks: &Trunks, defaults: &JobDefaults) -> Result<JobOrder, Unroutable> {
        let trunk = trunks.candidates(&Wanted::of(&parsed.spec, None))?[0];
        let defaults = defaults.on(&trunk.secret, trunk.node_selector.as_ref());
        let call = Call::new(parsed.id.unwrap_or_else(crate::clock::fresh_id), parsed.spec);
        Ok(build_unattended(&call, 1, &self.with_image(&defaults)))
    }

    fn with_image<'a>(&self, defaults: &'a JobDefaults) -> Cow<'a, JobDefaults> {
        match &self.image {
            Some(image) => Cow::Owned(JobDefaults { image: image.clone(), ..defaults.clone() }),
            None => Cow::Borrowed(defaults),
        }
    }
}

/// The one trunk that there is without a file of them.
#[cfg(test)]
pub(super) fn only_trunk(defaults: &JobDefaults) -> Trunks {
    let (name, secret) = (crate::policy::DEFAULT_TRUNK.to_owned(), defaults.sip_secret_name.clone());
    Trunks::single(crate::policy::Trunk { name, secret, max_active: 1, calls_per_second: None, node_selector: None })
}

/// The given fields that only the operator uses: a Job by itself starts at once, is tried once and reports to nobody.
pub fn operator_only(spec: &CallSpec) -> Vec<&'static str> {
    [
        ("not_before", spec.not_before.is_some()),
        ("not_after", spec.not_after.is_some()),
        ("max_attempts", spec.max_attempts.is_some()),
        ("retry_delay", spec.retry_delay.is_some()),
        ("redial_on", spec.redial_on.is_some()),
        ("on_unknown", spec.on_unknown != OnUnknown::default()),
        ("priority", spec.priority != Priority::default()),
        ("metadata", !spec.metadata.is_empty()),
    ]
    .into_iter()
    .filter_map(|(field, given)| given.then_some(field))
    .collect()
}

/// The Job as YAML; with passwords two documents, the first of them the Secret that the Job reads.
///
/// # Errors
/// None are known: Kubernetes objects can be written as YAML.
pub fn to_yaml(order: &JobOrder) -> anyhow::Result<String> {
    let documents = match secret(order) {
        Some(secret) => vec![document(&secret)?, document(&order.job)?],
        None => vec![document(&order.job)?],
    };
    Ok(documents.join("---\n"))
}

fn document(object: &impl Serialize) -> anyhow::Result<String> {
    // One line per string: in a folded block, a reader would have to guess which line breaks belong to the text.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(object, options).context("the manifest cannot be written as YAML")
}

/// The Job as JSON; with passwords a `List` of the Secret and the Job.
///
/// # Errors
/// None are known: Kubernetes objects can be written as JSON.
pub fn to_json(order: &JobOrder) -> anyhow::Result<String> {
    let text = match secret(order) {
        Some(secret) => serde_json::to_string_pretty(&list(&secret, &order.job)),
        None => serde_json::to_string_pretty(&order.job),
    };
    Ok(text.context("the manifest cannot be written as JSON")? + "\n")
}

fn list(secret: &Secret, job: &Job) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "List", "items": [secret, job]})
}
