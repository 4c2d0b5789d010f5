//! Two watches in every order: what is reported last of a Job depends on what happened in the cluster, not on which of the watches
//! showed it first.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::job::manifest::build;
use crate::job::samples::{call, defaults, spec};
use crate::job::{Observed, Ran};

const RUNNING: &str = r#"{"running": {"startedAt": "2026-06-01T10:00:03Z"}}"#;
const ANSWERED: &str =
    r#"{"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": "2026-06-01T10:01:00Z"}}"#;
const BUSY: &str =
    r#"{"terminated": {"exitCode": 1, "reason": "Error", "message": "SIP 486", "finishedAt": "2026-06-01T10:01:00Z"}}"#;

/// The Job of an attempt, with the UID that it has when it was made for the `made`th time.
fn job(attempt: u32, made: usize) -> Job {
    let mut job = build(&call(spec()), attempt, &defaults()).job;
    job.metadata.uid = Some(format!("job-{attempt}-{made}"));
    job
}

fn with_status(mut job: Job, status: Value) -> Job {
    job.status = serde_json::from_value(status).unwrap();
    job
}

fn complete(job: Job) -> Job {
    with_status(job, json!({"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}))
}

fn failed(job: Job) -> Job {
    with_status(job, json!({"failed": 1, "conditions": [{"type": "Failed", "status": "True"}]}))
}

fn pod(job: &Job, name: &str) -> Pod {
    let labels = json!({"batch.kubernetes.io/job-name": job.metadata.name, "batch.kubernetes.io/controller-uid": job.metadata.uid});
    let metadata = json!({"name": name, "uid": name, "labels": labels, "creationTimestamp": "2026-06-01T10:00:00Z"});
    serde_json::from_value(json!({"metadata": metadata, "status": {"phase": "Pending"}})).unwrap()
}

fn with_state(mut pod: Pod, state: &str) -> Pod {
    let state: Value = serde_json::from_str(state).unwrap();
    let container =
        json!({"name": "sip-caller", "state": state, "image": "i", "imageID": "", "ready": false, "restartCount": 0});
    pod.status.get_or_insert_default().container_statuses = serde_json::from_value(json!([container])).unwrap();
    pod
}

fn drained(mut pod: Pod) -> Pod {
    let conditions = json!([{"type": "DisruptionTarget", "status": "True"}]);
    pod.status.get_or_insert_default().conditions = serde_json::from_value(conditions).unwrap();
    pod
}

fn list<K: Clone>(items: &[K]) -> Vec<Event<Trimmed<K>>> {
    let items = items.iter().cloned().map(|item| Event::InitApply(Trimmed(item)));
    [Event::Init].into_iter().chain(items).chain([Event::InitDone]).collect()
}

fn listed(cache: &mut Cache, jobs: &[Job], pods: &[Pod]) -> Option<Observation> {
    let of_pods = list(pods).into_iter().filter_map(|event| cache.apply_pod(event)).last();
    let of_jobs = list(jobs).into_iter().filter_map(|event| cache.apply_job(event)).last();
    of_jobs.or(of_pods)
}

fn empty() -> Cache {
    let mut cache = Cache::default();
    assert_eq!(listed(&mut cache, &[], &[]), Some(Observation::All(vec![])));
    cache
}

fn apply<K>(item: K) -> Event<Trimmed<K>> {
    Event::Apply(Trimmed(item))
}

fn delete<K>(item: K) -> Event<Trimmed<K>> {
    Event::Delete(Trimmed(item))
}

fn changed(observation: Option<Observation>) -> Observed {
    match observation {
        Some(Observation::Changed(job)) => job.state,
        other => panic!("not a change: {other:?}"),
    }
}

fn exit_code(state: &Observed) -> Option<i32> {
    match state {
        Observed::Ended(ending) => ending.exit_code,
        other => panic!("it has not ended: {other:?}"),
    }
}

fn runs(state: &Observed) -> bool {
    matches!(state, Observed::Running { .. })
}

#[test]
fn nothing_is_reported_before_both_lists_are_complete() {
    let (one, other) = (job(1, 0), job(2, 0));
    let mut cache = Cache::default();
    assert_eq!(cache.apply_job(Event::Init), None);
    assert_eq!(cache.apply_job(Event::InitApply(Trimmed(one.clone()))), None);
    assert_eq!(cache.apply_job(Event::InitDone), None);
    assert_eq!(cache.apply_job(apply(other.clone())), None);
    assert!(!cache.is_complete());
    assert_eq!(cache.apply_pod(Event::Init), None);
    assert_eq!(cache.apply_pod(Event::InitApply(Trimmed(with_state(pod(&one, "p"), RUNNING)))), None);
    let Some(Observation::All(mut jobs)) = cache.apply_pod(Event::InitDone) else { panic!("not a list") };
    jobs.sort_by_key(|job| job.attempt);
    assert!(runs(&jobs[0].state), "{jobs:?}");
    assert_eq!(jobs[1].state, Observed::waiting());
}

#[test]
fn a_pod_that_is_seen_before_its_job_counts_in_the_first_report_of_the_job() {
    let mut cache = empty();
    assert_eq!(cache.apply_pod(apply(with_state(pod(&job(1, 0), "p"), BUSY))), None);
    assert_eq!(exit_code(&changed(cache.apply_job(apply(job(1, 0))))), Some(1));
}

#[test]
fn a_status_of_the_job_that_comes_after_the_end_of_its_pod_takes_nothing_away() {
    let mut cache = empty();
    cache.apply_job(apply(job(1, 0)));
    assert!(runs(&changed(cache.apply_pod(apply(with_state(pod(&job(1, 0), "p"), RUNNING))))));
    let ended = changed(cache.apply_pod(apply(with_state(pod(&job(1, 0), "p"), BUSY))));
    let still_active = with_status(job(1, 0), json!({"active": 1, "ready": 1}));
    assert_eq!(changed(cache.apply_job(apply(still_active))), ended);
    assert_eq!(exit_code(&changed(cache.apply_job(apply(failed(job(1, 0)))))), Some(1));
}

#[test]
fn a_pod_that_ran_counts_after_its_deletion_and_one_that_never_ran_does_not() {
    let mut cache = empty();
    cache.apply_job(apply(job(1, 0)));
    cache.apply_pod(apply(pod(&job(1, 0), "never ran")));
    assert_eq!(changed(cache.apply_pod(delete(pod(&job(1, 0), "never ran")))), Observed::waiting());
    assert_eq!(cache.pods_of(&job(1, 0)), []);
    cache.apply_pod(apply(with_state(pod(&job(1, 0), "ran"), RUNNING)));
    assert_eq!(exit_code(&changed(cache.apply_pod(delete(with_state(pod(&job(1, 0), "ran"), BUSY))))), Some(1));
    assert_eq!(exit_code(&changed(cache.apply_job(apply(failed(job(1, 0)))))), Some(1));
}

#[test]
fn a_pod_that_ran_and_was_deleted_counts_though_its_job_is_seen_only_then() {
    // A drained pod is not in the Job's own count either: without it, nobody would have been called.
    let gone = drained(with_state(pod(&job(1, 0), "drained"), BUSY));
    let mut cache = empty();
    cache.apply_pod(apply(gone.clone()));
    assert_eq!(cache.apply_pod(delete(gone)), None);
    let too_long = json!({"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]});
    let state = changed(cache.apply_job(apply(with_status(job(1, 0), too_long))));
    assert!(matches!(&state, Observed::Ended(ending) if ending.ran == Ran::Yes), "{state:?}");
}

#[test]
fn a_pod_that_ran_and_is_missing_in_a_fresh_list_has_run_all_the_same() {
    let mut cache = empty();
    cache.apply_job(apply(job(1, 0)));
    cache.apply_pod(apply(with_state(pod(&job(1, 0), "ran"), RUNNING)));
    cache.apply_pod(apply(pod(&job(1, 0), "never ran")));
    list::<Pod>(&[]).into_iter().for_each(|event| drop(cache.apply_pod(event)));
    let names: Vec<_> = cache.pods_of(&job(1, 0)).into_iter().filter_map(|pod| pod.metadata.name).collect();
    assert_eq!(names, ["ran"]);
    let state = changed(
        cache.apply_job(apply(with_status(job(1, 0), json!({"conditions": [{"type": "Failed", "status": "True"}]})))),
    );
    assert!(matches!(&state, Observed::Ended(ending) if ending.ran == Ran::Unknown), "{state:?}");
}

#[test]
fn a_call_that_begins_while_the_jobs_are_listed_is_seen_running() {
    let mut cache = empty();
    assert_eq!(cache.apply_job(Event::Init), None);
    // The server has answered the list by now; what follows is newer.
    cache.apply_pod(apply(with_state(pod(&job(1, 0), "p"), RUNNING)));
    assert_eq!(cache.apply_job(Event::InitDone), Some(Observation::All(vec![])));
    assert!(runs(&changed(cache.apply_job(apply(job(1, 0))))));
}

#[test]
fn a_list_of_pods_that_is_newer_than_the_jobs_loses_nothing() {
    let mut cache = empty();
    let of_pods = list(&[with_state(pod(&job(1, 0), "p"), RUNNING)]);
    of_pods.into_iter().for_each(|event| drop(cache.apply_pod(event)));
    assert!(runs(&changed(cache.apply_job(apply(job(1, 0))))));
}

#[test]
fn a_fresh_list_of_jobs_forgets_the_pods_of_those_that_are_settled_or_gone() {
    let mut cache = Cache::default();
    let (lives, settled) = (job(1, 0), job(2, 0));
    let pods = [with_state(pod(&lives, "a"), RUNNING), with_state(pod(&settled, "b"), ANSWERED)];
    let all = listed(&mut cache, std::slice::from_ref(&lives), &pods);
    assert!(matches!(all, Some(Observation::All(jobs)) if jobs.len() == 1));
    assert_eq!((cache.pods_of(&lives).len(), cache.pods_of(&settled).len()), (1, 0));
    // Its pod is still shown: by a last change, and by its deletion.
    cache.apply_pod(apply(with_state(pod(&settled, "b"), ANSWERED)));
    cache.apply_pod(delete(with_state(pod(&settled, "b"), ANSWERED)));
    list(&[lives]).into_iter().for_each(|event| drop(cache.apply_job(event)));
    assert_eq!(cache.pods_of(&settled).len(), 0);
}

#[test]
fn a_job_that_is_deleted_while_its_pod_lives_is_reported_once_and_its_pod_no_more() {
    let mut cache = empty();
    cache.apply_job(apply(job(1, 0)));
    cache.apply_pod(apply(with_state(pod(&job(1, 0), "p"), RUNNING)));
    let removed = cache.apply_job(delete(job(1, 0)));
    assert!(matches!(&removed, Some(Observation::Removed(job)) if runs(&job.state)), "{removed:?}");
    assert_eq!(cache.apply_pod(apply(with_state(pod(&job(1, 0), "p"), BUSY))), None);
    assert_eq!(cache.apply_pod(delete(with_state(pod(&job(1, 0), "p"), BUSY))), None);
}

#[test]
fn a_job_that_ended_and_was_removed_is_reported_with_its_end() {
    let mut cache = empty();
    cache.apply_job(apply(job(1, 0)));
    cache.apply_pod(apply(with_state(pod(&job(1, 0), "p"), ANSWERED)));
    let removed = cache.apply_job(delete(complete(job(1, 0))));
    assert!(matches!(&removed, Some(Observation::Removed(job)) if exit_code(&job.state) == Some(0)), "{removed:?}");
}

#[test]
fn a_job_that_is_made_again_under_its_name_has_its_own_pods_only() {
    let (first, second) = (job(1, 0), job(1, 1));
    let mut cache = empty();
    cache.apply_job(apply(first.clone()));
    cache.apply_pod(apply(with_state(pod(&first, "old"), RUNNING)));
    cache.apply_pod(apply(with_state(pod(&second, "new"), RUNNING)));
    cache.apply_job(delete(first.clone()));
    assert!(runs(&changed(cache.apply_job(apply(second.clone())))), "its pod was seen before the other Job's removal");
    assert_eq!(cache.apply_pod(apply(with_state(pod(&first, "old"), BUSY))), None, "that is the other Job's end");
    assert!(runs(&changed(cache.apply_job(apply(second)))));
}

#[test]
fn of_a_pod_and_the_one_that_replaces_it_the_first_to_run_says_since_when() {
    let later = RUNNING.replace("10:00:03", "10:05:00");
    let pods = [with_state(pod(&job(1, 0), "lost"), RUNNING), with_state(pod(&job(1, 0), "new"), &later)];
    let first = Observed::Running { started_at: "2026-06-01T10:00:03Z".parse().unwrap() };
    for pods in [[0, 1], [1, 0]].map(|order| order.map(|n| pods[n].clone())) {
        let mut cache = empty();
        cache.apply_job(apply(job(1, 0)));
        let reports = pods.map(|pod| cache.apply_pod(apply(pod)));
        assert_eq!(changed(reports.into_iter().last().flatten()), first);
    }
}

/// What happens in a cluster, and what its two watches do.
#[derive(Debug, Clone)]
enum Step {
    MakeJob(u32),
    JobStatus(u32, Value),
    DeleteJob(u32),
    MakePod(u32),
    /// A pod's container runs or ended, and whether it was drained.
    PodState(u32, usize, &'static str, bool),
    DeletePod(u32, usize),
    ShowJob,
    ShowPod,
    ListJobs,
    ListPods,
}

/// A cluster, and what its watches have yet to show.
#[derive(Default)]
struct Cluster {
    jobs: BTreeMap<u32, Job>,
    pods: BTreeMap<String, Pod>,
    made: usize,
    job_events: VecDeque<Event<Trimmed<Job>>>,
    pod_events: VecDeque<Event<Trimmed<Pod>>>,
    cache: Cache,
    /// What was reported last of every Job that is there.
    reported: BTreeMap<String, ObservedJob>,
}

impl Cluster {
    fn new() -> Self {
        let mut cluster = Self::default();
        cluster.step(Step::ListJobs);
        cluster.step(Step::ListPods);
        cluster
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::MakeJob(n) if !self.jobs.contains_key(&n) => {
                self.made += 1;
                self.write_job(n, job(n, self.made));
            }
            Step::JobStatus(n, status) => {
                if let Some(job) = self.jobs.get(&n).cloned() {
                    self.write_job(n, with_status(job, status));
                }
            }
            Step::DeleteJob(n) => self.job_events.extend(self.jobs.remove(&n).map(delete)),
            Step::MakePod(n) => {
                if let Some(job) = self.jobs.get(&n) {
                    self.made += 1;
                    self.write_pod(pod(job, &format!("pod-{}", self.made)));
                }
            }
            Step::PodState(n, which, state, is_drained) => {
                if let Some(pod) = self.pod(n, which) {
                    let pod = with_state(pod, state);
                    self.write_pod(if is_drained { drained(pod) } else { pod });
                }
            }
            Step::DeletePod(n, which) => {
                if let Some(pod) = self.pod(n, which) {
                    self.pods.remove(pod.metadata.name.as_ref().unwrap());
                    self.pod_events.push_back(delete(pod));
                }
            }
            Step::ShowJob => self.show_job(),
            Step::ShowPod => self.show_pod(),
            // A watch shows that its list begins, and only then asks for it.
            Step::ListJobs => {
                self.job_events = list(&self.jobs.values().cloned().collect::<Vec<_>>()).into();
                self.show_job();
            }
            // What a pod did that was deleted while the watch was cut is lost, whatever the cache does.
            Step::ListPods if !self.pod_events.iter().any(|event| matches!(event, Event::Delete(_))) => {
                self.pod_events = list(&self.pods.values().cloned().collect::<Vec<_>>()).into();
                self.show_pod();
            }
            Step::MakeJob(_) | Step::ListPods => {}
        }
    }

    fn pod(&self, job: u32, which: usize) -> Option<Pod> {
        let uid = self.jobs.get(&job)?.metadata.uid.as_ref()?;
        let is_its_own =
            |pod: &&Pod| pod.metadata.labels.as_ref().unwrap()["batch.kubernetes.io/controller-uid"] == *uid;
        self.pods.values().filter(is_its_own).nth(which).cloned()
    }

    fn write_job(&mut self, n: u32, job: Job) {
        self.jobs.insert(n, job.clone());
        self.job_events.push_back(apply(job));
    }

    fn write_pod(&mut self, pod: Pod) {
        self.pods.insert(pod.metadata.name.clone().unwrap(), pod.clone());
        self.pod_events.push_back(apply(pod));
    }

    fn show_job(&mut self) {
        let observation = self.job_events.pop_front().and_then(|event| self.cache.apply_job(event));
        self.note(observation);
    }

    fn show_pod(&mut self) {
        let observation = self.pod_events.pop_front().and_then(|event| self.cache.apply_pod(event));
        self.note(observation);
    }

    fn show_all(&mut self) {
        while !self.job_events.is_empty() || !self.pod_events.is_empty() {
            self.show_job();
            self.show_pod();
        }
    }

    fn note(&mut self, observation: Option<Observation>) {
        match observation {
            None => {}
            Some(Observation::All(jobs)) => {
                self.reported = jobs.into_iter().map(|job| (job.name.clone(), job)).collect();
            }
            Some(Observation::Changed(job)) => drop(self.reported.insert(job.name.clone(), job)),
            Some(Observation::Removed(job)) => drop(self.reported.remove(&job.name)),
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let n = 1..=2_u32;
    let status = prop_oneof![
        Just(json!({"active": 1})),
        Just(json!({"failed": 1, "active": 1})),
        Just(json!({"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]})),
        Just(json!({"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]})),
    ];
    let state = prop_oneof![Just(RUNNING), Just(BUSY), Just(ANSWERED)];
    prop_oneof![
        2 => n.clone().prop_map(Step::MakeJob),
        1 => (n.clone(), status).prop_map(|(n, status)| Step::JobStatus(n, status)),
        1 => n.clone().prop_map(Step::DeleteJob),
        2 => n.clone().prop_map(Step::MakePod),
        4 => (n.clone(), 0..2_usize, state, any::<bool>())
            .prop_map(|(n, which, state, drained)| Step::PodState(n, which, state, drained)),
        1 => (n, 0..2_usize).prop_map(|(n, which)| Step::DeletePod(n, which)),
        6 => Just(Step::ShowJob),
        6 => Just(Step::ShowPod),
        1 => Just(Step::ListJobs),
        1 => Just(Step::ListPods),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_last_report_of_a_job_does_not_depend_on_the_order_in_which_the_watches_show_things(
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let (mut watched, mut at_once) = (Cluster::new(), Cluster::new());
        at_once.show_all();
        for step in steps {
            watched.step(step.clone());
            if !matches!(step, Step::ShowJob | Step::ShowPod | Step::ListJobs | Step::ListPods) {
                at_once.step(step);
                at_once.show_all();
            }
        }
        watched.show_all();
        prop_assert_eq!(watched.reported, at_once.reported);
    }
}
