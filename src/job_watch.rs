//! What the runner has × what the log says → what to append. [`difference`] decides and is pure; [`Sightings`] keeps what the
//! runner reported last, so that whoever holds a call can follow its Job.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

use crate::{
    call::{Change, Ended, Outcome, Status, StatusEvent, Verdict},
    job::{Ending, ObservedJob, Phase},
    runner::{Observation, Runner},
};

/// What is known of an attempt's Job.
#[derive(Debug, Clone, PartialEq)]
pub enum Facts {
    /// It is there, its pod does not run yet.
    Waiting,
    /// Its pod runs.
    Running {
        /// Since when.
        started_at: Timestamp,
    },
    /// It ended by itself.
    Ended(Ending),
    /// It was removed before it ended.
    Gone,
}

/// The changes that bring the log up to what is known of the Job; nothing when it is. `redial` says whether a failed attempt with
/// that outcome is followed by another.
pub fn difference(last: &StatusEvent, facts: &Facts, redial: impl Fn(Outcome) -> bool) -> Vec<Change> {
    if last.is_final {
        return Vec::new();
    }
    match (last.status, facts) {
        (Status::Pending, Facts::Running { started_at }) => vec![Change::Running { started_at: *started_at }],
        (Status::Pending, Facts::Ended(ending)) => {
            let began = ending.started_at.or(ending.succeeded.then_some(ending.completed_at));
            let running = began.map(|started_at| Change::Running { started_at });
            running.into_iter().chain([ended(ending, redial)]).collect()
        }
        (Status::Running, Facts::Ended(ending)) => vec![ended(ending, redial)],
        (Status::Pending | Status::Running, Facts::Gone) => vec![Change::Cancelled { reason: "deleted".to_owned() }],
        (Status::Cancelling, Facts::Gone) => vec![Change::Cancelled { reason: "cancelled".to_owned() }],
        (Status::Cancelling, Facts::Ended(ending)) => vec![end_of_a_cancelled(last, ending)],
        _ => Vec::new(),
    }
}

/// An attempt that ended before it could be stopped keeps its own end; one that was stopped is cancelled, and so is one whose
/// pod went with its Job before anybody read how it had ended.
fn end_of_a_cancelled(last: &StatusEvent, ending: &Ending) -> Change {
    let had_failed = ending.exit_code.is_some() && latest_end(ending.completed_at) < last.time;
    if ending.succeeded || had_failed {
        ended(ending, |_| false)
    } else {
        Change::Cancelled { reason: "cancelled".to_owned() }
    }
}

/// Kubernetes cuts times to whole seconds: what ended at such a time ended at any moment of that second.
fn latest_end(completed_at: Timestamp) -> Timestamp {
    match completed_at.subsec_nanosecond() {
        0 => completed_at + SignedDuration::from_millis(999),
        _ => completed_at,
    }
}

fn ended(ending: &Ending, redial: impl Fn(Outcome) -> bool) -> Change {
    let Verdict { outcome, sip_code } = Verdict::read(ending.succeeded, ending.exit_code, ending.message.as_deref());
    Change::Ended(Ended {
        outcome,
        sip_code,
        exit_code: ending.exit_code,
        completed_at: ending.completed_at,
        reason: ending.reason.clone(),
        message: ending.message.clone(),
        redial: outcome != Outcome::Answered && redial(outcome),
    })
}

/// What the runner said last of a Job.
#[derive(Debug, Clone, PartialEq)]
pub enum Sighting {
    /// Nothing yet.
    Unknown,
    /// It is there.
    Present(ObservedJob),
    /// It was not in a full list: to be confirmed, since it may be younger than the list.
    Missing,
    /// It was removed; this is the last that was known of it.
    Removed(ObservedJob),
}

/// What the runner reported last of every Job that is not settled, and who follows it.
#[derive(Clone, Default)]
pub struct Sightings {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    present: HashMap<String, ObservedJob>,
    followers: HashMap<String, watch::Sender<Sighting>>,
}

/// Follows one Job; as long as it lives, the Job is held here.
pub struct Follower {
    job: String,
    sightings: Sightings,
    receiver: watch::Receiver<Sighting>,
    first: Sighting,
}

impl Sightings {
    /// Follows a Job from what is known of it now.
    pub fn follow(&self, job: &str) -> Follower {
        let mut inner = self.lock();
        let known = inner.present.get(job).cloned().map_or(Sighting::Unknown, Sighting::Present);
        let sender = inner.followers.entry(job.to_owned()).or_insert_with(|| watch::channel(Sighting::Unknown).0);
        sender.send_replace(known.clone());
        let receiver = sender.subscribe();
        Follower { job: job.to_owned(), sightings: self.clone(), receiver, first: known }
    }

    /// Wakes whoever follows a Job, for instance since its call is to be cancelled; false when nobody does.
    pub fn wake(&self, job: &str) -> bool {
        let inner = self.lock();
        inner.followers.get(job).is_some_and(|sender| {
            sender.send_modify(|_| ());
            true
        })
    }

    /// Takes in what the runner reports; after a full list, answers the unsettled Jobs that nobody here follows.
    pub fn apply(&self, observation: Observation) -> Option<Vec<ObservedJob>> {
        let mut inner = self.lock();
        match observation {
            Observation::All(jobs) => Some(inner.replace(jobs)),
            Observation::Changed(job) => {
                inner.see(job);
                None
            }
            Observation::Removed(job) => {
                inner.present.remove(&job.name);
                inner.publish(&job.name.clone(), Sighting::Removed(job));
                None
            }
        }
    }

    /// How many unsettled Jobs the runner has.
    pub fn count(&self) -> usize {
        self.lock().present.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn see(&mut self, job: ObservedJob) {
        if job.settled {
            self.present.remove(&job.name);
        } else {
            self.present.insert(job.name.clone(), job.clone());
        }
        self.publish(&job.name.clone(), Sighting::Present(job));
    }

    fn replace(&mut self, jobs: Vec<ObservedJob>) -> Vec<ObservedJob> {
        self.present.clear();
        for job in jobs {
            self.see(job);
        }
        let missing: Vec<String> =
            self.followers.keys().filter(|job| !self.present.contains_key(*job)).cloned().collect();
        for job in missing {
            self.publish(&job, Sighting::Missing);
        }
        self.present.values().filter(|job| !self.followers.contains_key(&job.name)).cloned().collect()
    }

    fn publish(&self, job: &str, sighting: Sighting) {
        if let Some(sender) = self.followers.get(job) {
            sender.send_if_modified(|known| {
                let is_news = *known != sighting;
                *known = sighting;
                is_news
            });
        }
    }
}

impl Follower {
    /// What was known when the following began; everything later comes from [`Self::next`].
    pub fn first(&self) -> &Sighting {
        &self.first
    }

    /// Waits until there is something new, or somebody wakes, then tells the latest sighting.
    pub async fn next(&mut self) -> Sighting {
        if self.receiver.changed().await.is_err() {
            futures::future::pending::<()>().await;
        }
        self.receiver.borrow_and_update().clone()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut inner = self.sightings.lock();
        let is_last = inner.followers.get(&self.job).is_some_and(|sender| sender.receiver_count() <= 1);
        if is_last {
            inner.followers.remove(&self.job);
        }
    }
}

/// Asks the runner what is known of a Job right now.
///
/// # Errors
/// [`crate::runner::RunnerError`] when it does not answer.
pub async fn facts(runner: &dyn Runner, job: &str) -> Result<Facts, crate::runner::RunnerError> {
    match runner.find(job).await? {
        Some(observed) => facts_of(runner, &observed).await,
        None => Ok(Facts::Gone),
    }
}

/// What a sighting says, with the details of the end fetched where it is one.
///
/// # Errors
/// [`crate::runner::RunnerError`] when the runner does not answer.
pub async fn facts_of(runner: &dyn Runner, observed: &ObservedJob) -> Result<Facts, crate::runner::RunnerError> {
    Ok(match &observed.phase {
        Phase::Waiting => Facts::Waiting,
        Phase::Running { started_at } => Facts::Running { started_at: *started_at },
        Phase::Finished { .. } => Facts::Ended(runner.ending(&observed.name).await?),
    })
}

/// Applies what the runner reports; never returns. `listed` gets, after every full list, the unsettled Jobs that nobody here holds.
pub async fn watch_runner(runner: Arc<dyn Runner>, sightings: Sightings, listed: impl Fn(Vec<ObservedJob>)) {
    let mut observations = runner.observe();
    while let Some(observation) = observations.next().await {
        if let Some(unfollowed) = sightings.apply(observation) {
            listed(unfollowed);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::call::{CallId, Fingerprint};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn call(changes: Vec<Change>) -> StatusEvent {
        let id = CallId::parse("a").expect("an id");
        let mut event = StatusEvent::sample(id, Fingerprint::of(b"request"), at(100), 3);
        for change in changes {
            event = event.next(change, at(100)).expect("a legal step");
        }
        event
    }

    fn pending() -> Change {
        Change::Pending { attempt: 1, cluster: "c".into(), namespace: "n".into(), queue_sequence: 1 }
    }

    fn running() -> Change {
        Change::Running { started_at: at(100) }
    }

    fn ending(code: Option<i32>, started: bool, completed: i64) -> Facts {
        Facts::Ended(Ending {
            succeeded: code == Some(0),
            exit_code: code,
            message: Some("12:00 | INFO | x - Call state: DISCONNECTED (last code: 486)".to_owned()),
            reason: None,
            started_at: started.then(|| at(100)),
            completed_at: at(completed),
        })
    }

    fn steps(last: &StatusEvent, facts: &Facts) -> Vec<Status> {
        let changes = difference(last, facts, |outcome| outcome == Outcome::Busy);
        let mut event = last.clone();
        for change in &changes {
            event = event.next(change.clone(), at(200)).expect("only legal steps are decided on");
        }
        changes.iter().map(Change::status).collect()
    }

    #[test]
    fn the_log_is_brought_up_to_what_is_known_by_legal_steps_only() {
        use Status::*;
        let claimed = call(vec![pending()]);
        let runs = call(vec![pending(), running()]);
        let stopping = call(vec![pending(), Change::Cancelling]);
        let over = call(vec![Change::Cancelled { reason: "x".into() }]);
        let run = Facts::Running { started_at: at(100) };
        let table: [(&str, &StatusEvent, Facts, &[Status]); 16] = [
            ("nothing new", &claimed, Facts::Waiting, &[]),
            ("it runs", &claimed, run.clone(), &[Running]),
            ("it runs still", &runs, run.clone(), &[]),
            ("a lagging view", &runs, Facts::Waiting, &[]),
            ("it ended while nobody looked", &claimed, ending(Some(0), true, 150), &[Running, Succeeded]),
            ("success without its pod", &claimed, ending(Some(0), false, 150), &[Running, Succeeded]),
            ("it failed while nobody looked", &claimed, ending(Some(1), true, 150), &[Running, Failed]),
            ("it never ran", &claimed, ending(None, false, 150), &[Failed]),
            ("it ended", &runs, ending(Some(1), true, 150), &[Failed]),
            ("deleted by hand before it ran", &claimed, Facts::Gone, &[Cancelled]),
            ("deleted by hand", &runs, Facts::Gone, &[Cancelled]),
            ("stopped", &stopping, Facts::Gone, &[Cancelled]),
            ("stopped by a signal", &stopping, ending(Some(143), true, 150), &[Cancelled]),
            ("ended before the cancel", &stopping, ending(Some(1), true, 50), &[Failed]),
            ("ended before the cancel, nobody knows how", &stopping, ending(None, true, 50), &[Cancelled]),
            ("over", &over, ending(Some(0), true, 150), &[]),
        ];
        for (what, last, facts, expected) in table {
            assert_eq!(steps(last, &facts), expected, "{what}");
        }
    }

    fn facts() -> impl Strategy<Value = Facts> {
        prop_oneof![
            Just(Facts::Waiting),
            Just(Facts::Running { started_at: at(100) }),
            (prop::option::of(0..3_i32), any::<bool>(), 50_i64..150)
                .prop_map(|(code, started, end)| ending(code, started, end)),
            Just(Facts::Gone),
        ]
    }

    /// An active call, or one that was just found to have failed with a redial to come, or has ended.
    fn last() -> impl Strategy<Value = StatusEvent> {
        let changes = prop::collection::vec(prop_oneof![Just(running()), Just(Change::Cancelling)], 0..3);
        (changes, prop::option::of((facts(), any::<bool>()))).prop_map(|(changes, then)| {
            let mut event = call(vec![pending()]);
            let mut take = |change: Change| event = event.next(change, at(100)).unwrap_or(event.clone());
            changes.into_iter().for_each(&mut take);
            if let Some((facts, redial)) = then {
                let changes = difference(&event, &facts, |_| redial);
                for change in changes {
                    event = event.next(change, at(100)).expect("a legal step");
                }
            }
            event
        })
    }

    proptest! {
        #[test]
        fn whatever_is_known_the_steps_are_legal_and_there_is_no_second_difference(
            last in last(),
            facts in facts(),
            redial in any::<bool>(),
        ) {
            let mut event = last.clone();
            for change in difference(&last, &facts, |_| redial) {
                event = event.next(change, at(200)).expect("a legal step");
            }
            prop_assert_eq!(difference(&event, &facts, |_| redial), Vec::new(), "the log is up to what is known");
            let is_over = matches!(facts, Facts::Ended(_) | Facts::Gone);
            prop_assert!(!is_over || !event.status.is_active(), "an attempt that is over is not active");
            prop_assert!(is_over || event.is_final == last.is_final, "nothing ends a call whose Job lives");
        }
    }

    #[test]
    fn an_end_in_the_second_of_the_cancel_is_the_cancels() {
        let cancelled_at = at(100) + SignedDuration::from_millis(500);
        let stopping = call(vec![pending(), running()]).next(Change::Cancelling, cancelled_at).expect("a legal step");
        assert_eq!(steps(&stopping, &ending(Some(143), true, 100)), [Status::Cancelled]);
        assert_eq!(steps(&stopping, &ending(Some(1), true, 99)), [Status::Failed]);
    }

    #[test]
    fn a_failed_attempt_is_final_unless_its_outcome_is_redialled() {
        let last = call(vec![pending(), running()]);
        let end = |redial: bool| {
            let change = difference(&last, &ending(Some(1), true, 150), |_| redial).pop().expect("it ended");
            last.next(change, at(200)).expect("a legal step")
        };
        assert!(end(false).is_final && !end(true).is_final);
        assert_eq!(end(true).sip_code, Some(486));
    }

    fn job(name: &str, settled: bool) -> ObservedJob {
        let id = CallId::parse("a").expect("an id");
        ObservedJob {
            name: name.into(),
            id,
            attempt: 1,
            fingerprint: Fingerprint::of(b"x"),
            phase: Phase::Waiting,
            settled,
        }
    }

    #[tokio::test]
    async fn a_full_list_tells_followers_what_is_missing_and_others_what_nobody_follows() {
        let sightings = Sightings::default();
        let mut mine = sightings.follow("mine");
        assert_eq!(mine.first(), &Sighting::Unknown);
        let unfollowed = sightings.apply(Observation::All(vec![job("other", false), job("old", true)]));
        assert_eq!(unfollowed, Some(vec![job("other", false)]));
        assert_eq!(mine.next().await, Sighting::Missing);
        sightings.apply(Observation::Changed(job("mine", false)));
        assert_eq!(mine.next().await, Sighting::Present(job("mine", false)));
        sightings.apply(Observation::Removed(job("mine", false)));
        assert_eq!(mine.next().await, Sighting::Removed(job("mine", false)));
        drop(mine);
        assert!(!sightings.wake("mine"), "nobody follows any more");
    }
}
