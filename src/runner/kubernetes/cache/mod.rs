//! Jobs and pods as the watches have shown them last, joined: pure, so that every order of two independent watches can be tested.

use std::collections::HashMap;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::Event;

use super::JOB_NAME_LABEL;
use super::trimmed::{JobForm, PodForm, Trimmed};
use crate::job::{ObservedJob, has_run};
use crate::runner::Observation;

/// What the watches have shown.
#[derive(Debug, Default)]
pub(super) struct Cache {
    jobs: HashMap<String, JobForm>,
    /// By the name of their Job, then by their UID.
    pods: HashMap<String, HashMap<String, PodForm>>,
    listed_jobs: Option<Vec<Job>>,
    listed_pods: Option<Vec<Pod>>,
    has_jobs: bool,
    has_pods: bool,
}

impl Cache {
    /// Whether both lists have been read.
    pub(super) fn is_complete(&self) -> bool {
        self.has_jobs && self.has_pods
    }

    /// The pods of a Job.
    pub(super) fn pods_of(&self, job: &str) -> Vec<Pod> {
        self.pods.get(job).into_iter().flat_map(HashMap::values).map(|pod| pod.clone().into()).collect()
    }

    /// Applies an event of the Jobs' watch. Of a list, nothing counts before it is complete.
    pub(super) fn apply_job(&mut self, event: Event<Trimmed<Job>>) -> Option<Observation> {
        match event {
            Event::Init => self.listed_jobs = Some(Vec::new()),
            Event::InitApply(Trimmed(job)) => self.listed_jobs.get_or_insert_default().push(job),
            Event::InitDone => {
                let listed = self.listed_jobs.take().unwrap_or_default();
                self.jobs =
                    listed.into_iter().filter_map(|job| Some((job.metadata.name.clone()?, job.into()))).collect();
                self.has_jobs = true;
                return self.all();
            }
            Event::Apply(Trimmed(job)) => {
                let name = job.metadata.name.clone()?;
                self.jobs.insert(name.clone(), job.into());
                return self.changed(&name);
            }
            Event::Delete(Trimmed(job)) => return self.removed(job),
        }
        None
    }

    /// Applies an event of the pods' watch.
    pub(super) fn apply_pod(&mut self, event: Event<Trimmed<Pod>>) -> Option<Observation> {
        match event {
            Event::Init => self.listed_pods = Some(Vec::new()),
            Event::InitApply(Trimmed(pod)) => self.listed_pods.get_or_insert_default().push(pod),
            Event::InitDone => {
                let lost = std::mem::take(&mut self.pods);
                for pod in self.listed_pods.take().unwrap_or_default() {
                    self.insert(pod);
                }
                // A pod that ran and is not listed any more has run all the same.
                for pod in lost.into_values().flat_map(HashMap::into_values).map(Pod::from).filter(has_run) {
                    self.insert_unless_known(pod);
                }
                self.has_pods = true;
                return self.all();
            }
            Event::Apply(Trimmed(pod)) => {
                let job = self.insert(pod)?;
                return self.changed(&job);
            }
            Event::Delete(Trimmed(pod)) => {
                // One that ran is remembered as long as its Job: it ran, whoever removed it.
                let is_wanted = has_run(&pod) && job_of(&pod).is_some_and(|job| self.jobs.contains_key(job));
                let job = if is_wanted { self.insert(pod)? } else { self.drop_pod(&pod)? };
                return self.changed(&job);
            }
        }
        None
    }

    fn insert(&mut self, pod: Pod) -> Option<String> {
        let (job, uid) = (job_of(&pod)?.to_owned(), pod.metadata.uid.clone()?);
        self.pods.entry(job.clone()).or_default().insert(uid, pod.into());
        Some(job)
    }

    fn insert_unless_known(&mut self, pod: Pod) {
        if let (Some(job), Some(uid)) = (job_of(&pod), &pod.metadata.uid) {
            self.pods.entry(job.to_owned()).or_default().entry(uid.clone()).or_insert_with(|| pod.into());
        }
    }

    fn drop_pod(&mut self, pod: &Pod) -> Option<String> {
        let (job, uid) = (job_of(pod)?, pod.metadata.uid.as_ref()?);
        let pods = self.pods.get_mut(job)?;
        pods.remove(uid);
        if pods.is_empty() {
            self.pods.remove(job);
        }
        Some(job.to_owned())
    }

    fn observed(&self, job: &Job) -> Option<ObservedJob> {
        let pods = job.metadata.name.as_ref().map(|name| self.pods_of(name)).unwrap_or_default();
        ObservedJob::of(job, &pods)
    }

    fn changed(&self, job: &str) -> Option<Observation> {
        let job = self.jobs.get(job).filter(|_| self.is_complete())?.clone().into();
        self.observed(&job).map(Observation::Changed)
    }

    /// It is gone, or settled: then it is not selected any more.
    fn removed(&mut self, job: Job) -> Option<Observation> {
        let observed = self.observed(&job);
        let name = job.metadata.name?;
        self.jobs.remove(&name);
        self.pods.remove(&name);
        observed.map(Observation::Removed)
    }

    /// Everything, once both lists are there. Pods that have ended and whose Job is not listed are of settled ones.
    fn all(&mut self) -> Option<Observation> {
        if !self.is_complete() {
            return None;
        }
        let jobs = &self.jobs;
        let has_run = |pod: &PodForm| has_run(&pod.clone().into());
        self.pods.retain(|job, pods| jobs.contains_key(job) || !pods.values().all(has_run));
        let jobs = self.jobs.values().map(|job| Job::from(job.clone()));
        Some(Observation::All(jobs.filter_map(|job| self.observed(&job)).collect()))
    }
}

fn job_of(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(JOB_NAME_LABEL).map(String::as_str)
}
