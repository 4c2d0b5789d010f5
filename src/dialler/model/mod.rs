//! A model of one call, looked at in every order of events that there is within some bounds.
//!
//! The diallers decide by the functions that decide in earnest ([`super::decide`], [`super::limits`], [`super::redial`],
//! [`crate::job::advance`], [`crate::job::compare`], [`StatusEvent::next`](crate::call::StatusEvent::next)), and [`work`] takes their
//! steps in the order of [`super::processing`], one request to the log or to the cluster at a time. Between any two steps
//! everything else may happen ([`surroundings`]): time passes, a dialler dies, an answer is lost, a message is delivered twice,
//! a request arrives late, a Job goes on, somebody cancels, the cluster falls silent, the log loses its tail.
//!
//! Time passes in ticks ([`world::NOW`]), and only when nobody has anything left to do: a step takes milliseconds and a tick more than a
//! minute. A budget of delays lets it pass all the same, for a process that is suspended or a network that is slow.
//!
//! A Job makes a second pod whenever it likes, as Kubernetes may, and also one in place of a pod that was let through and disrupted.

mod graph;
mod properties;
mod surroundings;
mod work;
mod world;

use std::time::{Duration, Instant};

use graph::Graph;
use jiff::Timestamp;
use stateright::{Checker, Model, Property};
use surroundings::Action;
use world::{Budget, Dialler, TICK, World};

use crate::call::{Call, CallId, OnUnknown, StatusEvent, validate};
use crate::job::advance::{Moments, Patience};
use crate::job::{JobDefaults, samples};

/// Seconds of a tick, of which an attempt has one to start, and one more until it is over.
const TICK_SECONDS: u32 = TICK as u32;

/// What is looked at: a call, who dials it, and how much goes wrong at most.
#[derive(Clone)]
struct Setup {
    call: Call,
    defaults: JobDefaults,
    patience: Duration,
    /// Whether pods have a gate (`JOB_POD_GATE`).
    has_gates: bool,
    clusters: Vec<&'static str>,
    /// The diallers, each by its cluster.
    diallers: Vec<usize>,
    diallers_go_with_their_cluster: bool,
    /// Whether a Job may reach its TTL before all is over.
    removes_settled_jobs: bool,
    /// How often the request is published.
    copies: u8,
    budget: Budget,
    graph: Graph,
}

impl Setup {
    /// Two diallers in one cluster, and a call that is dialled again after all that allows it.
    fn new(max_attempts: u32, budget: Budget) -> Self {
        let request = br#"{"dest": "1", "text": "a", "timeout": 10, "retry_delay": 90}"#;
        let mut spec = validate::parse(request, world::at(world::NOW)).expect("a valid request").spec;
        (spec.max_attempts, spec.on_unknown) = (Some(max_attempts), OnUnknown::Redial);
        let defaults = JobDefaults {
            start_seconds: TICK_SECONDS,
            // With the grace of 15 s a tick, as the time to start is.
            deadline_margin: TICK_SECONDS - 15 - spec.longest_conversation(),
            ..samples::defaults()
        };
        Self {
            call: Call::new(CallId::parse("a").expect("an id"), spec),
            defaults,
            patience: Duration::ZERO,
            has_gates: true,
            clusters: vec!["north"],
            diallers: vec![0, 0],
            diallers_go_with_their_cluster: false,
            removes_settled_jobs: false,
            copies: 1,
            budget,
            graph: Graph::default(),
        }
    }

    fn moments(&self, last: &StatusEvent, now: Timestamp) -> Moments {
        Moments::of(last, Patience { start_seconds: self.defaults.start_seconds, faults: self.patience }, now)
    }

    /// Looks at every state, and says how many there are.
    fn check(self) {
        let (begun, graph) = (Instant::now(), self.graph.clone());
        let checker = self.checker().threads(2).spawn_bfs().join();
        let (states, steps, deep) = (checker.unique_state_count(), checker.state_count(), checker.max_depth());
        println!("{states} states, {steps} steps, up to {deep} one after another, in {:.1?}", begun.elapsed());
        for (property, path) in checker.discoveries() {
            println!("does not hold: {property}");
            for (world, action) in path.into_vec() {
                println!("{:?}: {action:?}", world.log.last());
            }
        }
        let broken: Vec<_> = checker.discoveries().into_keys().collect();
        assert!(broken.is_empty(), "{broken:?}; the steps to each are above");
        assert_eq!(graph.states_behind_circles(), 0, "a call may go round in a circle");
    }
}

impl Model for Setup {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let dialler = |cluster: &usize| Dialler { cluster: *cluster, is_gone: false, work: None };
        vec![World {
            log: world::Log::default(),
            inbox: self.copies,
            queue: Vec::new(),
            next_sequence: 1,
            timers: Vec::new(),
            diallers: self.diallers.iter().map(dialler).collect(),
            jobs: Vec::new(),
            wire: Vec::new(),
            lifts: Vec::new(),
            starts: Vec::new(),
            ends: Vec::new(),
            ran: Vec::new(),
            is_silent: [false; 2],
            left: self.budget,
            flaws: properties::Flaws::default(),
            dead_letters: 0,
            has_had_its_end: false,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        self.possible(world, actions);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let next = self.after(world, action)?;
        self.graph.note(world, &next);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = properties::always();
        if self.budget.losses == 0 {
            properties.extend(properties::while_the_log_is_whole());
        }
        if self.budget.losses == 0 && self.has_gates {
            properties.extend(properties::with_gates());
        }
        properties
    }
}

/// `MODEL_FAULTS` more go wrong than by default.
fn faults(number: u8) -> u8 {
    let more = std::env::var("MODEL_FAULTS").ok().and_then(|text| text.parse::<u8>().ok());
    number + more.unwrap_or(0)
}

#[test]
fn a_call_with_redials_and_a_fault_at_any_moment() {
    Setup::new(2, Budget { faults: faults(1), ..Budget::default() }).check();
}

#[test]
fn a_call_that_is_cancelled_at_any_moment_with_a_fault_at_any_other() {
    Setup::new(1, Budget { faults: faults(1), cancels: 1, ..Budget::default() }).check();
}

#[test]
fn a_call_of_one_dialler_that_is_cancelled_at_any_moment_with_two_faults_at_any_others() {
    let setup = Setup::new(1, Budget { faults: faults(2), cancels: 1, ..Budget::default() });
    Setup { diallers: vec![0], ..setup }.check();
}

#[test]
fn a_redialled_call_that_is_cancelled_at_any_moment() {
    Setup::new(2, Budget { faults: faults(0), cancels: 1, ..Budget::default() }).check();
}

#[test]
fn a_call_with_a_slow_dialler_and_a_fault_at_any_moment() {
    let budget = Budget { faults: faults(1), delays: 1, ..Budget::default() };
    Setup { removes_settled_jobs: true, ..Setup::new(1, budget) }.check();
}

#[test]
fn a_call_whose_job_is_deleted_by_hand_at_any_moment() {
    Setup::new(2, Budget { deletions: 1, ..Budget::default() }).check();
}

#[test]
fn a_call_whose_cluster_falls_silent_at_any_moment() {
    Setup::new(2, Budget { faults: faults(0), cancels: 1, silences: 1, ..Budget::default() }).check();
}

#[test]
fn a_call_with_two_clusters_one_of_which_is_gone_at_any_moment() {
    let setup = Setup::new(2, Budget { faults: faults(0), cancels: 1, silences: 1, ..Budget::default() });
    let (clusters, diallers) = (vec!["north", "south"], vec![0, 1]);
    Setup { clusters, diallers, diallers_go_with_their_cluster: true, ..setup }.check();
}

#[test]
fn a_call_whose_pods_have_no_gate() {
    Setup { has_gates: false, ..Setup::new(2, Budget { faults: faults(1), ..Budget::default() }) }.check();
}

#[test]
fn a_call_that_is_published_twice() {
    Setup { copies: 2, ..Setup::new(2, Budget { faults: faults(0), cancels: 1, ..Budget::default() }) }.check();
}

#[test]
fn a_call_whose_attempts_do_not_count_when_they_never_ran() {
    let patience = Duration::from_secs(TICK_SECONDS.into());
    Setup { patience, ..Setup::new(1, Budget { faults: faults(1), ..Budget::default() }) }.check();
}

#[test]
fn a_call_whose_log_loses_its_tail_at_any_moment() {
    let budget = Budget { faults: faults(0), losses: 1, ..Budget::default() };
    Setup { removes_settled_jobs: true, ..Setup::new(2, budget) }.check();
}
