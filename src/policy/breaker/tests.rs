//! What a breaker does step by step, and what holds whatever happens in whatever order.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::call::CallId;

const N: u32 = 5;
/// How long an attempt of these tests may take.
const LONGEST: i64 = 300;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn ended(job: &str, outcome: Outcome) -> Ending<'_> {
    Ending { outcome: Some(outcome), ..Ending::none(job) }
}

fn proven() -> Breaker {
    let mut breaker = Breaker::default();
    assert_eq!(breaker.record(&ended("first", Outcome::Busy), at(0), N), None);
    breaker
}

/// One that opened at this second.
fn opened(second: i64) -> Breaker {
    let mut breaker = proven();
    for fault in 1..N {
        assert_eq!(breaker.record(&ended(&format!("bad-{fault}"), Outcome::Auth), at(second), N), None);
    }
    assert_eq!(breaker.record(&ended("last", Outcome::Auth), at(second), N), Some(Changed::Opened));
    breaker
}

fn probe(breaker: &mut Breaker, job: &str, now: i64) -> Result<Option<Changed>, Held> {
    breaker.admit(job, at(now + LONGEST), at(now), N)
}

#[test]
fn a_number_that_is_refused_again_and_again_says_no_more_of_the_trunk_than_once() {
    let mut breaker = proven();
    let name = CallId::parse("barred").unwrap().name();
    let job = |attempt| name.job(attempt);
    for attempt in 1..=3 * N {
        assert_eq!(breaker.record(&ended(&job(attempt), Outcome::Auth), at(1), N), None);
    }
    assert_eq!(breaker.faults().len(), 1);
    assert_eq!(breaker.health_for(&job(99), N), TrunkHealth::Works, "no other call has failed on it");
    assert_eq!(breaker.health_for("another", N), TrunkHealth::InDoubt);
    breaker.record(&ended("another", Outcome::Congestion), at(1), N);
    assert_eq!(breaker.health_for(&job(99), N), TrunkHealth::InDoubt);
    breaker.open(None, "by hand".to_owned(), at(2));
    assert_eq!(breaker.health_for(&job(99), N), TrunkHealth::Stopped);
    assert_eq!(Breaker::default().health_for("first", N), TrunkHealth::InDoubt, "nothing is known of it");
}

#[test]
fn a_row_of_faults_opens_it_and_a_persons_outcome_breaks_the_row() {
    let mut breaker = proven();
    for row in 0..3 {
        for fault in 1..N {
            let job = format!("{row}-{fault}");
            assert_eq!(breaker.record(&ended(&job, Outcome::Congestion), at(1), N), None);
            assert_eq!(breaker.record(&ended(&job, Outcome::Congestion), at(1), N), None, "told twice");
        }
        assert_eq!(breaker.record(&ended("network", Outcome::Network), at(1), N), None);
        assert_eq!(breaker.record(&ended("no-answer", Outcome::NoAnswer), at(1), N), None);
        assert_eq!(breaker.room(at(1), N), None);
    }
    assert_eq!(opened(9).state(), BreakerState::Open);
    assert_eq!(opened(9).until(), Some(at(69)));
}

#[test]
fn faults_are_those_of_the_trunk_the_cluster_and_the_caller() {
    for outcome in Outcome::ALL {
        let expected = matches!(outcome, Outcome::Auth | Outcome::Congestion | Outcome::NotStarted | Outcome::Error);
        let mut breaker = proven();
        breaker.record(&ended("a", outcome), at(1), N);
        assert_eq!(breaker.faults().len() == 1, expected, "{outcome}");
    }
}

#[test]
fn while_it_is_open_nothing_passes_and_after_the_cool_down_one_call() {
    let mut breaker = opened(0);
    let held = probe(&mut breaker, "a", 59).unwrap_err();
    assert_eq!(held.until, Some(at(60)));
    assert_eq!(held.why, "the trunk's breaker is open: 5 faults in a row; the last fault: auth of last");
    assert_eq!(probe(&mut breaker, "a", 60), Ok(Some(Changed::Probing)));
    assert_eq!(probe(&mut breaker, "a", 61), Ok(None), "its message is delivered again");
    assert!(probe(&mut breaker, "b", 61).is_err());
    assert_eq!(breaker.record(&ended("old", Outcome::Answered), at(62), N), None, "it was begun before");
    assert!(probe(&mut breaker, "b", 63).is_err());
    assert_eq!(breaker.record(&ended("a", Outcome::Declined), at(64), N), Some(Changed::Closed));
    assert_eq!(breaker.room(at(64), N), None);
}

#[test]
fn a_cool_down_doubles_to_half_an_hour_and_begins_anew_after_a_success() {
    let (mut breaker, mut now, mut cool_downs) = (opened(0), 0, Vec::new());
    for number in 0..7 {
        let until = breaker.until().unwrap().as_second();
        cool_downs.push(until - now);
        let job = format!("probe-{number}");
        probe(&mut breaker, &job, until).unwrap();
        now = until + 1;
        assert_eq!(breaker.record(&ended(&job, Outcome::Auth), at(now), N), Some(Changed::Opened));
    }
    assert_eq!(cool_downs, [60, 120, 240, 480, 960, 1800, 1800]);
    let until = breaker.until().unwrap().as_second();
    probe(&mut breaker, "good", until).unwrap();
    breaker.record(&ended("good", Outcome::Answered), at(until), N);
    for fault in 0..N {
        breaker.record(&ended(&format!("{fault}"), Outcome::Error), at(until), N);
    }
    assert_eq!(breaker.until(), Some(at(until + 60)));
}

#[test]
fn a_probe_that_says_nothing_gives_way_to_the_next_and_one_that_the_network_failed_waits_as_long_again() {
    let mut breaker = opened(0);
    probe(&mut breaker, "cancelled", 60).unwrap();
    assert_eq!(breaker.record(&Ending::none("cancelled"), at(61), N), None);
    assert_eq!(probe(&mut breaker, "lost", 61), Ok(None));
    assert!(probe(&mut breaker, "next", 61 + LONGEST - 1).is_err());
    assert_eq!(probe(&mut breaker, "next", 61 + LONGEST), Ok(None));
    assert_eq!(breaker.record(&ended("next", Outcome::Network), at(400), N), Some(Changed::Opened));
    assert_eq!(breaker.until(), Some(at(460)));
}

#[test]
fn in_doubt_no_more_calls_are_begun_than_could_open_it() {
    let mut fresh = Breaker::default();
    for job in 0..N {
        assert_eq!(probe(&mut fresh, &format!("{job}"), 0), Ok(None));
    }
    let held = probe(&mut fresh, "more", 0).unwrap_err();
    assert_eq!((held.until, held.why.as_str()), (None, "the trunk's first calls are to end first"));
    fresh.record(&ended("0", Outcome::Network), at(1), N);
    assert_eq!(fresh.room(at(1), N), Some(1));
    fresh.record(&ended("1", Outcome::Busy), at(1), N);
    assert_eq!(fresh.room(at(1), N), None);
    fresh.record(&ended("2", Outcome::Auth), at(1), N);
    assert_eq!(fresh.room(at(1), N), Some(4));
}

#[test]
fn by_hand_it_opens_until_it_is_closed_by_hand() {
    let mut breaker = proven();
    assert_eq!(breaker.open(Some("anna".to_owned()), "the provider moves".to_owned(), at(5)), Changed::Opened);
    let held = probe(&mut breaker, "a", 1_000_000).unwrap_err();
    assert_eq!((held.until, held.why.as_str()), (None, "the trunk's breaker was opened by hand: the provider moves"));
    assert_eq!((breaker.by(), breaker.since()), (Some("anna"), Some(at(5))));
    assert_eq!(breaker.record(&ended("old", Outcome::Busy), at(6), N), None);
    assert_eq!(breaker.close(None, "moved".to_owned(), at(7)), Some(Changed::Closed));
    assert_eq!(breaker.close(None, "moved".to_owned(), at(8)), None);
    assert_eq!(breaker.room(at(8), N), Some(N), "in doubt until it is proven");
}

#[test]
fn a_breaker_that_is_switched_off_opens_by_hand_only() {
    let mut breaker = Breaker::default();
    for job in 0..50 {
        assert_eq!(breaker.admit(&format!("{job}"), at(LONGEST), at(0), 0), Ok(None));
        assert_eq!(breaker.record(&ended(&format!("{job}"), Outcome::Auth), at(0), 0), None);
    }
    assert_eq!(breaker.faults().len(), KEPT_FAULTS);
    assert_eq!(breaker.room(at(0), N), Some(1), "switched on again, it asks one call at a time");
    breaker.open(None, "x".to_owned(), at(1));
    assert!(breaker.admit("a", at(LONGEST), at(1), 0).is_err());
}

#[test]
fn faults_are_kept_in_words_of_bounded_length() {
    let mut breaker = proven();
    let reason = "ü".repeat(1000);
    let ending =
        Ending { job: "job", outcome: Some(Outcome::Auth), sip_code: Some(403), reason: Some(reason.as_str()) };
    breaker.record(&ending, at(1), N);
    let words = breaker.faults()[0].to_string();
    assert!(words.starts_with("auth of job, SIP code 403, üü"), "{words}");
    assert_eq!(words.chars().filter(|character| *character == 'ü').count(), MAX_REASON);
}

#[test]
fn only_the_end_of_an_attempt_is_told() {
    use crate::call::{CallId, Change, Ended, Fingerprint};
    let queued = StatusEvent::sample(CallId::parse("a").unwrap(), Fingerprint::of(b""), at(0), 3);
    let claim = Change::Pending {
        attempt: 1,
        cluster: "c".into(),
        namespace: "n".into(),
        trunk: "t".into(),
        ends_by: at(LONGEST),
    };
    let pending = queued.next(claim, at(1)).unwrap();
    assert_eq!((Ending::of(&queued), Ending::of(&pending)), (None, None));
    let cancelled = pending.next(Change::Cancelled { reason: "r".into() }, at(2)).unwrap();
    assert_eq!(Ending::of(&cancelled).unwrap().outcome, None);
    let busy = Ended {
        outcome: Outcome::Busy,
        sip_code: Some(486),
        exit_code: Some(1),
        completed_at: at(2),
        reason: None,
        message: None,
        evidence: None,
        redial: true,
    };
    let failed = pending.next(Change::Ended(busy), at(2)).unwrap();
    assert_eq!(Ending::of(&failed).unwrap().outcome, Some(Outcome::Busy));
    let scheduled = failed.next(Change::Scheduled { due_at: at(9) }, at(3)).unwrap();
    let cancelled = scheduled.next(Change::Cancelled { reason: "r".into() }, at(4)).unwrap();
    assert_eq!((Ending::of(&scheduled), Ending::of(&cancelled)), (None, None));
}

/// What may happen to a breaker.
#[derive(Debug, Clone)]
enum Step {
    Begin,
    /// The call that was begun so many before the last one ends so.
    End(usize, Option<Outcome>),
    Wait(i64),
    Open,
    Close,
}

/// Mostly faults, or the breaker would hardly ever open.
fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![6 => Just(Outcome::Auth), 1 => prop::sample::select(Outcome::ALL.to_vec())]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => Just(Step::Begin),
        8 => (0..6_usize, prop::option::weighted(0.9, outcome())).prop_map(|(which, outcome)| Step::End(which, outcome)),
        4 => (0..400_i64).prop_map(Step::Wait),
        1 => prop_oneof![Just(Step::Open), Just(Step::Close)],
    ];
    prop::collection::vec(step, 1..120)
}

/// A trunk with its breaker, and the calls in progress on it.
struct World {
    breaker: Breaker,
    now: i64,
    begun: usize,
    /// Job, and whether it was begun while the breaker was half open, with the moment that it is over.
    calls: Vec<(String, bool, i64)>,
}

impl World {
    fn new(breaker: Breaker) -> Self {
        Self { breaker, now: 0, begun: 0, calls: Vec::new() }
    }

    fn begin(&mut self) -> Result<Option<Changed>, Held> {
        self.begun += 1;
        let job = format!("job-{}", self.begun);
        let changed = probe(&mut self.breaker, &job, self.now)?;
        self.calls.push((job, self.breaker.state() == BreakerState::HalfOpen, self.now + LONGEST));
        Ok(changed)
    }

    fn end(&mut self, which: usize, outcome: Option<Outcome>) -> Option<Changed> {
        let at_last = self.calls.len().checked_sub(which + 1)?;
        let (job, ..) = self.calls.remove(at_last);
        self.breaker.record(&Ending { outcome, ..Ending::none(&job) }, at(self.now), N)
    }

    /// Calls that were begun as probes and may be in progress: every attempt has ended when it is over at the latest.
    fn probes(&self) -> usize {
        self.calls.iter().filter(|(_, is_probe, ends_by)| *is_probe && *ends_by > self.now).count()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whatever_happens_it_keeps_its_word(steps in steps()) {
        let mut world = World::new(Breaker::default());
        for step in steps {
            let before = world.breaker.clone();
            match step {
                Step::Begin => {
                    let passed = world.begin();
                    prop_assert_eq!(passed.is_err(), before.room(at(world.now), N) == Some(0));
                }
                Step::End(which, outcome) => {
                    let changed = world.end(which, outcome);
                    let is_good = outcome.is_some_and(|outcome| outcome.class() == OutcomeClass::Person);
                    prop_assert!(!(is_good && changed == Some(Changed::Opened)), "a person's outcome opened it");
                    if changed == Some(Changed::Opened) {
                        let cool_down = world.breaker.until().unwrap().as_second() - world.now;
                        prop_assert!((60..=1800).contains(&cool_down), "{} s", cool_down);
                    }
                }
                Step::Wait(seconds) => world.now += seconds,
                Step::Open => {
                    world.breaker.open(None, "x".to_owned(), at(world.now));
                    world.calls.iter_mut().for_each(|call| call.1 = false);
                }
                Step::Close => _ = world.breaker.close(None, "x".to_owned(), at(world.now)),
            }
            let breaker = &world.breaker;
            if breaker.state() == BreakerState::HalfOpen {
                prop_assert!(world.probes() <= 1, "{} probes", world.probes());
            } else {
                world.calls.iter_mut().for_each(|call| call.1 = false);
            }
            let json = serde_json::to_vec(breaker).unwrap();
            prop_assert_eq!(&serde_json::from_slice::<Breaker>(&json).unwrap(), breaker);
            prop_assert!(breaker.faults().len() <= N as usize && breaker.trials.len() <= N as usize);
        }
    }

    /// However many channels the trunk has, and in whatever order its calls end.
    #[test]
    fn with_a_wrong_password_no_more_calls_are_dialled_than_open_it_and_probe(
        choices in prop::collection::vec((any::<bool>(), 0..50_usize, 0..30_i64), 1..400),
    ) {
        let mut world = World::new(Breaker::default());
        let (mut dialled, mut probes) = (0, 0);
        for (begins, which, seconds) in choices {
            world.now += seconds;
            if begins {
                let passed = world.begin();
                dialled += usize::from(passed.is_ok());
                probes += usize::from(passed == Ok(Some(Changed::Probing)));
            } else {
                let which = which % world.calls.len().max(1);
                world.end(which, Some(Outcome::Auth));
            }
            // No attempt outlives its time.
            let now = world.now;
            while let Some(late) = world.calls.iter().rev().position(|call| call.2 <= now + 30) {
                world.end(late, Some(Outcome::Auth));
            }
        }
        prop_assert!(dialled <= N as usize + probes, "{} dialled, {} of them probes", dialled, probes);
    }

    /// A password that is changed while the trunk is in use: what was begun before the first fault is lost, and no more.
    #[test]
    fn a_trunk_that_fails_in_use_costs_what_was_under_way_and_less_than_a_row(
        under_way in 0..30_usize,
        choices in prop::collection::vec((any::<bool>(), 0..50_usize), 1..200),
    ) {
        let mut world = World::new(proven());
        for _ in 0..under_way {
            world.begin().unwrap();
        }
        let mut dialled = 0;
        for (begins, which) in choices {
            if begins && !world.breaker.faults().is_empty() {
                dialled += usize::from(world.begin().is_ok());
            } else {
                let which = which % world.calls.len().max(1);
                world.end(which, Some(Outcome::Auth));
            }
        }
        prop_assert!(dialled < N as usize, "{} dialled", dialled);
    }
}
