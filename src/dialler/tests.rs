//! Whatever a request and its headers say, it is admitted and its call ends within few steps, and none waits in its place for long.

use std::collections::VecDeque;

use async_nats::HeaderMap;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::decide::{Asked, Step, decide};
use super::redial;
use crate::admission::decide as admission;
use crate::call::{Call, Change, Outcome, StatusEvent};
use crate::job::advance::{Moments, lost};
use crate::policy::DEFAULT_TRUNK;
use crate::queue::Delivery;
use crate::queue::decode::{HEADER_PRIORITY, decode};
use crate::queue::inbox::{HEADER_ATTEMPT, HEADER_CALL_ID, HEADER_DUE, HEADER_QUEUED_AT};

const NOW: i64 = 1_893_456_000;
/// A year has as many seconds; moments further away are not accepted.
const YEAR: i64 = 366 * 86_400;
/// Steps of one delivery: each is one record at most.
const STEPS: usize = 12;
/// Deliveries of one call: five hand-backs and ten attempts, each by a timer.
const DELIVERIES: usize = 64;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

fn moment() -> impl Strategy<Value = String> {
    (NOW - YEAR..NOW + YEAR).prop_map(|second| at(second).to_string())
}

fn header() -> impl Strategy<Value = (&'static str, String)> {
    let number = prop_oneof![(0_u64..20).prop_map(|n| n.to_string()), any::<u64>().prop_map(|n| n.to_string())];
    prop_oneof![
        (Just(HEADER_ATTEMPT), prop_oneof![4 => number, 1 => "[ -~]{0,9}"]),
        (Just(HEADER_QUEUED_AT), prop_oneof![moment(), "[ -~]{0,9}"]),
        (Just(HEADER_DUE), prop_oneof![moment(), "[ -~]{0,9}"]),
        (Just(HEADER_CALL_ID), "[ab]?"),
        (Just(HEADER_PRIORITY), prop_oneof![Just("urgent".to_owned()), "[a-z]?"]),
        (Just("Nats-Msg-Id"), "[ab]?"),
    ]
}

fn request() -> impl Strategy<Value = Value> {
    let moments = (prop::option::of(moment()), prop::option::of(moment()));
    (moments, 1_u32..=10, 1_u32..=86_400).prop_map(|((not_before, not_after), max_attempts, retry_delay)| {
        json!({
            "dest": "1", "text": "a", "max_attempts": max_attempts, "retry_delay": retry_delay,
            "not_before": not_before, "not_after": not_after,
        })
    })
}

fn delivery(body: &Value, headers: &[(&'static str, String)]) -> Delivery {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, value.as_str());
    }
    Delivery {
        payload: body.to_string().into(),
        headers: map,
        subject: "sip.calls".to_owned(),
        sequence: 7,
        deliveries: 1,
        published: at(NOW),
        reply: "reply".into(),
    }
}

/// A log and a clock, and what becomes of a message in them.
struct World {
    last: Option<StatusEvent>,
    now: Timestamp,
}

/// What is done with a message of the window.
enum Settled {
    Ack,
    Again,
    Timer(u32, Timestamp),
}

/// What is done with a request.
enum Admitted {
    Dial(u32),
    Timer(u32, Timestamp),
    Done,
}

impl World {
    fn record(&mut self, call: &Call, change: Change) {
        let next = match &self.last {
            Some(last) => last.next(change, self.now),
            None => StatusEvent::first(call, "n", self.now, change, self.now),
        };
        self.last = Some(next.expect("a legal step"));
    }

    fn fail(&mut self, call: &Call) {
        let last = self.last.clone().expect("it was claimed");
        self.now += SignedDuration::from_secs(60);
        self.record(call, lost(&last, Outcome::Busy, Moments::unlimited(self.now), "busy"));
    }

    /// Admits a request: the attempt that is in the window then, or the timer that is set.
    fn admit(&mut self, call: &Call, fired: Option<(Timestamp, u32)>) -> Admitted {
        let asked = admission::Asked {
            fingerprint: call.fingerprint.clone(),
            fired,
            not_before: call.spec.not_before,
            not_after: call.spec.not_after,
        };
        for _ in 0..STEPS {
            match admission::decide(self.last.as_ref(), &asked, self.now) {
                admission::Step::Record(change) => self.record(call, change),
                admission::Step::Queue(attempt) | admission::Step::Dial(attempt) => return Admitted::Dial(attempt),
                admission::Step::Schedule { attempt, due } => return Admitted::Timer(attempt, due),
                admission::Step::Done | admission::Step::Conflict => return Admitted::Done,
            }
        }
        panic!("the request is never admitted: {:?}", self.last);
    }

    /// Works on one delivery as the dialler does, with a callee who is always busy.
    fn settle(&mut self, delivery: &Delivery, call: &Call) -> Settled {
        let asked = Asked {
            attempt: delivery.attempt(),
            trunk: DEFAULT_TRUNK.to_owned(),
            deliveries: delivery.deliveries,
            fingerprint: call.fingerprint.clone(),
            not_after: call.spec.not_after,
        };
        for _ in 0..STEPS {
            match decide(self.last.as_ref(), &asked, "here", self.now) {
                Step::RecordQueued => self.record(call, Change::Queued),
                Step::Schedule { attempt, due } => return Settled::Timer(attempt, due),
                Step::Expire => self.record(call, Change::Expired),
                Step::Claim(attempt) => {
                    let (cluster, namespace, trunk) = ("here".to_owned(), "n".to_owned(), "default".to_owned());
                    let ends_by = self.now;
                    self.record(call, Change::Pending { attempt, cluster, namespace, trunk, ends_by });
                }
                // Its callee is busy; sometimes the process ends before that.
                Step::Start if delivery.deliveries == 1 && delivery.sequence.is_multiple_of(2) => {
                    return Settled::Again;
                }
                Step::Start | Step::Watch | Step::Stop => self.fail(call),
                Step::Redial => {
                    let last = self.last.clone().expect("it has failed");
                    self.record(call, redial::after_failure(&call.spec, &last, false, self.now));
                }
                Step::HandBack => return Settled::Again,
                Step::Elsewhere => panic!("there is one cluster"),
                Step::Done | Step::Conflict | Step::Implausible => return Settled::Ack,
            }
        }
        panic!("the message is never settled: {:?}", self.last);
    }
}

/// What is on its way: a request, a message of the window, or a timer.
enum Message {
    Request(Option<(Timestamp, u32)>),
    Window(Delivery),
}

/// All requests of a call and what becomes of them in turn, so that each meets the call in any state; timers fire when nothing else is
/// left to do, since they may be a year away.
fn settle_all(requests: &[Delivery]) {
    let mut world = World { last: None, now: at(NOW) };
    let calls = requests.iter().filter_map(|request| Some((request, decode(request, at(NOW)).ok()?.call)));
    let calls: Vec<_> = calls.filter(|(_, call)| call.id.as_str() != "b").collect();
    let mut queue: VecDeque<_> = (0..calls.len()).map(|call| (call, Message::Request(None))).collect();
    let mut timers: Vec<(Timestamp, u32, usize)> = Vec::new();
    for sequence in 1..=(DELIVERIES * requests.len()) as u64 {
        let Some((which, message)) = queue.pop_front() else {
            timers.sort_unstable();
            let Some((due, attempt, which)) = (!timers.is_empty()).then(|| timers.remove(0)) else { return };
            world.now = world.now.max(due);
            queue.push_back((which, Message::Request(Some((due, attempt)))));
            continue;
        };
        let (request, call) = &calls[which];
        match message {
            Message::Request(fired) => match world.admit(call, fired) {
                Admitted::Dial(attempt) => {
                    let mut dialled = delivery_again(request, sequence, 1);
                    dialled.headers.insert(HEADER_ATTEMPT, attempt.to_string().as_str());
                    queue.push_back((which, Message::Window(dialled)));
                }
                Admitted::Timer(attempt, due) => set(&mut timers, (due, attempt, which)),
                Admitted::Done => {}
            },
            Message::Window(delivery) => match world.settle(&delivery, call) {
                Settled::Ack => {}
                Settled::Again => {
                    let again = delivery_again(&delivery, delivery.sequence, delivery.deliveries + 1);
                    queue.push_back((which, Message::Window(again)));
                }
                Settled::Timer(attempt, due) => set(&mut timers, (due, attempt, which)),
            },
        }
    }
    assert!(queue.is_empty() && timers.is_empty(), "{} messages are never settled: {:?}", queue.len(), world.last);
}

/// There is one timer for an attempt.
fn set(timers: &mut Vec<(Timestamp, u32, usize)>, timer: (Timestamp, u32, usize)) {
    timers.retain(|(_, attempt, _)| *attempt != timer.1);
    timers.push(timer);
}

fn delivery_again(delivery: &Delivery, sequence: u64, deliveries: u64) -> Delivery {
    Delivery {
        payload: delivery.payload.clone(),
        headers: delivery.headers.clone(),
        subject: delivery.subject.clone(),
        sequence,
        deliveries,
        published: delivery.published,
        reply: delivery.reply.clone(),
    }
}

proptest! {
    #[test]
    fn whatever_a_request_and_its_headers_say_its_call_ends_within_few_steps(
        body in request(),
        headers in prop::collection::vec(prop::collection::vec(header(), 0..5), 1..4),
    ) {
        let requests: Vec<Delivery> = headers.iter().map(|headers| delivery(&body, headers)).collect();
        settle_all(&requests);
    }
}
