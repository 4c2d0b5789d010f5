//! Jobs and pods as the watches have shown them last, joined: pure, so that every order of two independent watches can be tested.
//! Either watch may be ahead of the other; so what one of them shows of a Job that the other does not know waits for it.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::Event;

use super::JOB_UID_LABEL;
use super::trimmed::{JobForm, PodForm, Trimmed};
use crate::job::{ObservedJob, has_run};
use crate::runner::Observation;

/// What the watches have shown. Jobs are known by their UID: one that is made again under its name has other pods.
#[derive(Debug, Default)]
pub(super) struct Cache {
    jobs: HashMap<String, JobForm>,
    /// By the UID of their Job, then by their own.
    pods: HashMap<String, HashMap<String, PodForm>>,
    listed_jobs: Option<Vec<Job>>,
    listed_pods: Option<Vec<Pod>>,
    /// The Jobs that only their pods had shown when the list of Jobs was asked for. A Job is older than its pods: if the list does
    /// not have it either, it is gone or settled.
    known_by_pods_only: HashSet<String>,
    has_jobs: bool,
    has_pods: bool,
}

impl Cache {
    /// Whether both lists have been read.
    pub(super) fn is_complete(&self) -> bool {
        self.has_jobs && self.has_pods
    }

    /// The pods of a Job.
    pub(super) fn pods_of(&self, job: &Job) -> Vec<Pod> {
        let pods = job.metadata.uid.as_ref().and_then(|job| self.pods.get(job));
        pods.into_iter().flat_map(HashMap::values).map(|pod| pod.clone().into()).collect()
    }

    /// Applies an event of the Jobs' watch. Of a list, nothing counts before it is complete.
    pub(super) fn apply_job(&mut self, event: Event<Trimmed<Job>>) -> Option<Observation> {
        match event {
            Event::Init => {
                self.listed_jobs = Some(Vec::new());
                self.known_by_pods_only =
                    self.pods.keys().filter(|job| !self.jobs.contains_key(*job)).cloned().collect();
            }
            Event::InitApply(Trimmed(job)) => self.listed_jobs.get_or_insert_default().push(job),
            Event::InitDone => {
                let listed = self.listed_jobs.take().unwrap_or_default();
                let listed = listed.into_iter().filter_map(|job| Some((job.metadata.uid.clone()?, job.into())));
                let known = std::mem::replace(&mut self.jobs, listed.collect());
                self.forget_pods_of_unlisted(known.into_keys());
                self.has_jobs = true;
                return self.all();
            }
            Event::Apply(Trimmed(job)) => {
                let uid = job.metadata.uid.clone()?;
                self.jobs.insert(uid.clone(), job.into());
                return self.changed(&uid);
            }
            Event::Delete(Trimmed(job)) => return self.removed(&job),
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
                let is_wanted = has_run(&pod) && self.may_be_reported(&pod);
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

    /// Whether a pod's Job is known, or may only not have been shown yet. Of most settled Jobs there are no pods any more.
    fn may_be_reported(&self, pod: &Pod) -> bool {
        job_of(pod).is_some_and(|job| self.jobs.contains_key(job) || self.pods.contains_key(job))
    }

    fn forget_pods_of_unlisted(&mut self, known: impl Iterator<Item = String>) {
        for job in std::mem::take(&mut self.known_by_pods_only).into_iter().chain(known) {
            if !self.jobs.contains_key(&job) {
                self.pods.remove(&job);
            }
        }
    }

    fn observed(&self, job: &Job) -> Option<ObservedJob> {
        ObservedJob::of(job, &self.pods_of(job))
    }

    fn changed(&self, job: &str) -> Option<Observation> {
        let job = self.jobs.get(job).filter(|_| self.is_complete())?.clone().into();
        self.observed(&job).map(Observation::Changed)
    }

    /// It is gone, or settled: then it is not selected any more.
    fn removed(&mut self, job: &Job) -> Option<Observation> {
        let observed = self.observed(job);
        if let Some(uid) = &job.metadata.uid {
            self.jobs.remove(uid);
            self.pods.remove(uid);
        }
        observed.map(Observation::Removed)
    }

    /// Everything, once both lists are there.
    fn all(&self) -> Option<Observation> {
        let jobs = self.jobs.values().map(|job| Job::from(job.clone()));
        self.is_complete().then(|| Observation::All(jobs.filter_map(|job| self.observed(&job)).collect()))
    }
}

fn job_of(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(JOB_UID_LABEL).map(String::as_str)
}

#[cfg(test)]
mod tests;
