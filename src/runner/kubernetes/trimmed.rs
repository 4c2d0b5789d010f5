//! A Job as the API server tells of it, without what nobody looks at. A watch sends six kilobytes three times for every Job,
//! and five of them are the pod template and the managed fields, which would be read into trees and dropped.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use serde::Deserialize;

/// The part of a Job that [`ObservedJob::of`](crate::job::ObservedJob::of) reads; the rest is absent.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "Shown")]
pub(super) struct TrimmedJob(pub(super) Job);

#[derive(Deserialize)]
struct Shown {
    metadata: Metadata,
    spec: Option<Spec>,
    status: Option<JobStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    ttl_seconds_after_finished: Option<i32>,
}

impl From<Shown> for TrimmedJob {
    fn from(shown: Shown) -> Self {
        let Metadata { name, namespace, uid, resource_version, creation_timestamp, deletion_timestamp, annotations } =
            shown.metadata;
        let metadata = ObjectMeta {
            name,
            namespace,
            uid,
            resource_version,
            creation_timestamp,
            deletion_timestamp,
            annotations,
            ..Default::default()
        };
        let spec = shown
            .spec
            .map(|spec| JobSpec { ttl_seconds_after_finished: spec.ttl_seconds_after_finished, ..Default::default() });
        Self(Job { metadata, spec, status: shown.status })
    }
}

/// The same resource as [`Job`].
impl Resource for TrimmedJob {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        Job::kind(&())
    }

    fn group(_: &()) -> Cow<'_, str> {
        Job::group(&())
    }

    fn version(_: &()) -> Cow<'_, str> {
        Job::version(&())
    }

    fn plural(_: &()) -> Cow<'_, str> {
        Job::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.0.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0.metadata
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::job::ObservedJob;
    use crate::job::manifest::build;
    use crate::job::samples::{call, defaults, spec};

    #[test]
    fn what_is_read_of_a_trimmed_job_is_what_is_read_of_the_whole() {
        let statuses = [
            json!(null),
            json!({"active": 1, "ready": 1, "startTime": "2026-06-01T10:00:00Z"}),
            json!({"failed": 1, "conditions": [{"type": "Failed", "status": "True", "lastTransitionTime": "2026-06-01T10:00:00Z"}]}),
        ];
        let deleted_at = Some(Time("2026-06-01T09:00:00Z".parse::<Timestamp>().expect("RFC 3339")));
        for status in statuses {
            for (ttl, deletion_timestamp) in [(None, None), (Some(60), None), (None, deleted_at.clone())] {
                let mut job = build(&call(spec()), 2, &defaults()).job;
                job.status = serde_json::from_value(status.clone()).expect("a status");
                job.spec.get_or_insert_default().ttl_seconds_after_finished = ttl;
                job.metadata.deletion_timestamp = deletion_timestamp;
                let text = serde_json::to_string(&job).expect("a Job is JSON");
                let trimmed: TrimmedJob = serde_json::from_str(&text).expect("it is read");
                let seen = ObservedJob::of(&job);
                assert!(seen.is_some());
                assert_eq!(ObservedJob::of(&trimmed.0), seen, "{status}");
            }
        }
    }
}
