//! A model of the world around the status log: real diallers of two clusters on one real log and one real queue, driven one
//! step at a time in any order, with everything that may go wrong between two steps.
//!
//! A dialler whose `closing` is cancelled takes exactly one step of a message and hands it back: it reads the log, decides,
//! does that one thing, and remembers nothing. So every interleaving of steps, and every crash between two of them, is an
//! order of deliveries. A step is cut open where it matters most, at the request to make a Job: that can be stalled for as
//! long as the Job lives, while others go on with the same call, and can arrive even after its sender has died. What this does
//! not cover, since no dialler lives for two steps, is following a Job over its sightings; other tests do.
//!
//! The clusters are simulated: what counts is how often a Job is made. Timers are fired by hand, up to a second early as a
//! clock may, instead of waiting for them. After every action, whatever it was:
//!
//! * no Job was ever made twice, in any cluster;
//! * every call that has not ended is carried on by a message or a timer;
//! * what the log held before it still holds, and every call's events are a legal history with at most one end.
//!
//! Admission and the feed are real as well: a request is admitted by two at once, or admitted and delivered again; a message is put into
//! the window and stays in the queue.
//!
//! At the end all is delivered until nothing is left: then every call has exactly one end, which is the one that its Jobs had,
//! the queue is empty, and no Job is left behind.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::kv::Store;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::{self};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::json;
use sipstuff_operator::admission::Admission;
use sipstuff_operator::api::{self, Api};
use sipstuff_operator::call::{Call, CallId, Fingerprint, PodRef, Status, StatusEvent, validate};
use sipstuff_operator::call_index::CallIndex;
use sipstuff_operator::dialler::{Dialler, Starts};
use sipstuff_operator::feed::offer;
use sipstuff_operator::job::advance::Patience;
use sipstuff_operator::job::{ANNOTATION_FINGERPRINT, Ending, JobDefaults, JobOrder, Observed, ObservedJob, Ran};
use sipstuff_operator::job_watch::JobStore;
use sipstuff_operator::nats::{Names, StreamSettings, streams};
use sipstuff_operator::policy::{DEFAULT_TRUNK, Trunk, Trunks};
use sipstuff_operator::queue::control::{self, Pause, Paused};
use sipstuff_operator::queue::dead_letters::DeadLetters;
use sipstuff_operator::queue::in_flight::InFlight;
use sipstuff_operator::queue::inbox::{HEADER_ATTEMPT, HEADER_CALL_ID, HEADER_DUE, Inbox};
use sipstuff_operator::queue::scheduled::Timers;
use sipstuff_operator::queue::waiting::{Kind, Waiting, job_of};
use sipstuff_operator::queue::window::Window;
use sipstuff_operator::queue::{Breakers, Delivery, TrunkControl};
use sipstuff_operator::reconcile::{Judge, Reconciler};
use sipstuff_operator::runner::{Observation, Runner, RunnerError, RunnerInfo, StartError};
use sipstuff_operator::status_log::StatusLog;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::support::status::{messages_in, recorded};
use crate::support::{NatsServer, job_defaults};

/// Attempts that every call may take.
const MAX_ATTEMPTS: u32 = 2;
/// Different calls in one run: few, so that they meet.
const CALLS: usize = 3;
/// The clusters of the diallers: two in one, one in another.
const DIALLERS: [&str; 3] = ["north", "north", "south"];
/// Rounds after which everything must have come to its end.
const LAST_ROUND: usize = 200;
const KEEP: Duration = Duration::from_secs(72 * 3600);

/// How a Job ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Answered,
    Busy,
    Declined,
}

/// One thing that happens. Numbers choose among what there is, so that an action has a meaning in every world.
#[derive(Debug, Clone)]
enum Action {
    /// A request is published: as HTTP does, or as any client does; perhaps another one under the same id.
    Publish { call: usize, accepted: bool, another: bool },
    /// A request, or what came due, is admitted, by two at once or by one; not acknowledged, it is delivered again.
    Admit { by_two: bool, acknowledged: bool },
    /// What is next goes from the queue into the window, and stays in the queue when whoever does so dies or is slow in between.
    Feed { stays: bool },
    /// Whoever was slow with that goes on.
    Remove,
    /// Dialling is paused, or goes on: what is delivered meanwhile is given back.
    Pause { on: bool },
    /// A dialler is delivered a message and takes one step.
    Step { dialler: usize },
    /// Two diallers are delivered the same message, and each takes one step at the same time.
    Race { one: usize, other: usize },
    /// A dialler takes a step, and if that is to make a Job, its request is stalled.
    Stall { dialler: usize },
    /// The stalled requests of a dialler go on.
    GoOn { dialler: usize },
    /// A dialler dies; what it had stalled still arrives, or does not.
    Crash { dialler: usize, arrives: bool },
    /// A Job goes on: from waiting to running to its end; one that is being removed goes.
    Run { job: usize, end: End },
    /// A dialler is shown all Jobs of its cluster, and brings the log up to those that nobody follows.
    Show { dialler: usize },
    /// A call is cancelled.
    Cancel { call: usize },
    /// A Job is deleted by hand.
    Delete { job: usize },
    /// Timers that are due within the tolerance of clocks fire.
    Fire,
}

fn action() -> impl Strategy<Value = Action> {
    let dialler = || 0..DIALLERS.len();
    let end = prop_oneof![Just(End::Answered), Just(End::Busy), Just(End::Busy), Just(End::Declined)];
    prop_oneof![
        4 => (0..CALLS, any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(call, accepted, another)| Action::Publish { call, accepted, another }),
        8 => (prop::bool::weighted(0.2), prop::bool::weighted(0.8))
            .prop_map(|(by_two, acknowledged)| Action::Admit { by_two, acknowledged }),
        6 => prop::bool::weighted(0.2).prop_map(|stays| Action::Feed { stays }),
        2 => Just(Action::Remove),
        3 => prop::bool::weighted(0.4).prop_map(|on| Action::Pause { on }),
        16 => dialler().prop_map(|dialler| Action::Step { dialler }),
        5 => (dialler(), dialler()).prop_map(|(one, other)| Action::Race { one, other }),
        4 => dialler().prop_map(|dialler| Action::Stall { dialler }),
        3 => dialler().prop_map(|dialler| Action::GoOn { dialler }),
        2 => (dialler(), any::<bool>()).prop_map(|(dialler, arrives)| Action::Crash { dialler, arrives }),
        10 => (0..8_usize, end).prop_map(|(job, end)| Action::Run { job, end }),
        3 => dialler().prop_map(|dialler| Action::Show { dialler }),
        1 => (0..CALLS).prop_map(|call| Action::Cancel { call }),
        1 => (0..8_usize).prop_map(|job| Action::Delete { job }),
        3 => Just(Action::Fire),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("MODEL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(24),
        failure_persistence: None,
        max_shrink_iters: 300,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_order_of_steps_loses_a_call_or_makes_a_job_twice(actions in prop::collection::vec(action(), 10..90)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::begin().await;
            for action in actions {
                world.act(action).await;
                world.check().await;
            }
            world.end().await;
        });
    }
}

/// The Jobs of one cluster.
#[derive(Default)]
struct Cluster {
    jobs: Mutex<BTreeMap<String, FakeJob>>,
    made: Mutex<HashMap<String, usize>>,
    /// Whether a Job that ended was a success, also when it has been removed since.
    ended: Mutex<HashMap<String, bool>>,
}

#[derive(Clone)]
struct FakeJob {
    seen: ObservedJob,
    is_being_removed: bool,
}

impl Cluster {
    fn jobs(&self) -> MutexGuard<'_, BTreeMap<String, FakeJob>> {
        self.jobs.lock().unwrap()
    }

    /// What an API server does with a request to make a Job.
    fn make(&self, order: &JobOrder) -> Result<(), StartError> {
        let metadata = &order.job.metadata;
        let fingerprint = Fingerprint::from_annotation(&metadata.annotations.as_ref().unwrap()[ANNOTATION_FINGERPRINT]);
        let mut jobs = self.jobs();
        if let Some(job) = jobs.get(order.name()) {
            let is_same = job.seen.fingerprint == fingerprint;
            return if is_same { Ok(()) } else { Err(StartError::Conflict(order.name().to_owned())) };
        }
        let seen = ObservedJob { fingerprint, ..ObservedJob::of(&order.job, []).expect("one of ours") };
        jobs.insert(order.name().to_owned(), FakeJob { seen, is_being_removed: false });
        *self.made.lock().unwrap().entry(order.name().to_owned()).or_default() += 1;
        Ok(())
    }

    fn go_on(&self, name: &str, end: End) {
        let mut jobs = self.jobs();
        let Some(job) = jobs.get_mut(name) else { return };
        match job.seen.state {
            Observed::Ended(_) | Observed::Waiting { .. } if job.is_being_removed => _ = jobs.remove(name),
            Observed::Waiting { .. } => job.seen.state = Observed::Running { started_at: Timestamp::now() },
            Observed::Running { started_at } if job.is_being_removed => job.finish(started_at, 143, "hung up"),
            Observed::Running { started_at } => match end {
                End::Answered => job.finish(started_at, 0, "Call state: DISCONNECTED (last code: 200)"),
                End::Busy => job.finish(started_at, 1, "Call state: DISCONNECTED (last code: 486)"),
                End::Declined => job.finish(started_at, 1, "Call state: DISCONNECTED (last code: 603)"),
            },
            Observed::Ended(_) | Observed::Gone => {}
        }
        if let Some(ending) = jobs.get(name).and_then(|job| job.seen.ending()) {
            self.ended.lock().unwrap().insert(name.to_owned(), ending.succeeded);
        }
    }
}

impl FakeJob {
    fn finish(&mut self, started_at: Timestamp, exit_code: i32, message: &str) {
        self.seen.state = Observed::Ended(Ending {
            succeeded: exit_code == 0,
            ran: Ran::Yes,
            has_gate: false,
            exit_code: Some(exit_code),
            message: Some(message.to_owned()),
            reason: None,
            started_at: Some(started_at),
            completed_at: Timestamp::now(),
        });
    }
}

/// A dialler's way to its cluster, which can be stalled.
struct Line {
    info: RunnerInfo,
    cluster: Arc<Cluster>,
    is_stalled: AtomicBool,
    waiting: Mutex<Vec<JobOrder>>,
    stalled: AtomicUsize,
    go_on: tokio::sync::Notify,
    is_dead: AtomicBool,
}

impl Line {
    fn new(cluster: &str, jobs: Arc<Cluster>) -> Self {
        let info = RunnerInfo {
            kind: "model",
            cluster: cluster.to_owned(),
            namespace: "calls".to_owned(),
            has_gates: false,
            address: String::new(),
        };
        Self {
            info,
            cluster: jobs,
            is_stalled: AtomicBool::new(false),
            waiting: Mutex::default(),
            stalled: AtomicUsize::new(0),
            go_on: tokio::sync::Notify::new(),
            is_dead: AtomicBool::new(false),
        }
    }

    /// The names of the Jobs that stalled requests ask for.
    fn asked_for(&self) -> Vec<String> {
        self.waiting.lock().unwrap().iter().map(|order| order.name().to_owned()).collect()
    }
}

#[async_trait]
impl Runner for Line {
    fn info(&self) -> &RunnerInfo {
        &self.info
    }

    async fn check(&self) -> Result<String, RunnerError> {
        Ok(String::new())
    }

    async fn start(&self, order: &JobOrder) -> Result<(), StartError> {
        if self.is_stalled.load(Ordering::SeqCst) {
            self.waiting.lock().unwrap().push(order.clone());
            self.stalled.fetch_add(1, Ordering::SeqCst);
            self.go_on.notified().await;
            self.stalled.fetch_sub(1, Ordering::SeqCst);
            if self.is_dead.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
        }
        self.cluster.make(order)
    }

    async fn find(&self, job: &str) -> Result<Option<ObservedJob>, RunnerError> {
        Ok(self.cluster.jobs().get(job).map(|job| job.seen.clone()))
    }

    async fn lift_gate(&self, _: &PodRef) -> Result<(), RunnerError> {
        Ok(())
    }

    async fn log(&self, _: &str, _: Option<&PodRef>) -> Result<String, RunnerError> {
        Ok(String::new())
    }

    async fn release(&self, job: &str) -> Result<(), RunnerError> {
        if let Some(job) = self.cluster.jobs().get_mut(job) {
            job.seen.settled = true;
        }
        Ok(())
    }

    async fn stop(&self, job: &str) -> Result<(), RunnerError> {
        if let Some(job) = self.cluster.jobs().get_mut(job) {
            job.is_being_removed = true;
        }
        Ok(())
    }

    fn observe(&self) -> BoxStream<'static, Observation> {
        stream::pending().boxed()
    }
}

struct World {
    nats: NatsServer,
    client: async_nats::Client,
    js: jetstream::Context,
    consumer: PullConsumer,
    names: Names,
    log: StatusLog,
    inbox: Inbox,
    waiting: Waiting,
    window: Window,
    admission: Admission,
    timers: Timers,
    trunks: TrunkControl,
    bucket: Store,
    pause: Pause,
    /// What somebody slow has put into the window and not removed from the queue yet.
    offered: Vec<u64>,
    api: Api,
    clusters: BTreeMap<&'static str, Arc<Cluster>>,
    diallers: Vec<(Arc<Dialler>, Arc<Line>)>,
    rooms: Arc<tokio::sync::Semaphore>,
    published: BTreeSet<usize>,
    others: usize,
    cancelled: BTreeSet<usize>,
    seen: Vec<StatusEvent>,
}

fn id(call: usize) -> CallId {
    CallId::parse(format!("call-{call}")).unwrap()
}

fn body(call: usize, another: bool) -> Bytes {
    let text = if another { "another" } else { "hello" };
    let request = json!({"dest": format!("+49{call}"), "text": text, "max_attempts": MAX_ATTEMPTS, "retry_delay": 1});
    request.to_string().into()
}

fn fingerprint(call: usize, another: bool) -> Fingerprint {
    Call::new(id(call), validate::parse(&body(call, another), Timestamp::UNIX_EPOCH).unwrap().spec).fingerprint
}

/// Events in a form that is easy to read.
fn describe<'a>(events: impl Iterator<Item = &'a StatusEvent>) -> String {
    let line = |event: &StatusEvent| {
        let StatusEvent { id, revision, status, attempt, cluster, reason, .. } = event;
        format!("\n  {id} #{revision} {status}, attempt {attempt} {cluster:?} {reason:?}")
    };
    events.map(line).collect()
}

fn the_only_trunk() -> Trunk {
    let (name, secret) = (DEFAULT_TRUNK.to_owned(), "sip-credentials".to_owned());
    Trunk { name, secret, max_active: 1000, calls_per_second: None, node_selector: None }
}

impl World {
    async fn begin() -> Self {
        let nats = NatsServer::start().await;
        let client = nats.client().await;
        let js = jetstream::new(client.clone());
        let names = Names::default();
        let settings =
            StreamSettings { names: names.clone(), replicas: 1, queue_max_messages: -1, queue_max_bytes: -1 };
        let consumer = streams::ensure(&js, &settings, DEFAULT_TRUNK, 1000).await.unwrap();
        let live = watch::channel(Arc::new(Trunks::single(the_only_trunk()))).1;
        let bucket = streams::bucket(&js, &settings).await.unwrap();
        let breakers = Breakers::new(bucket.clone(), js.clone(), &names.alerts, 0);
        let trunks = TrunkControl::new(live.clone(), breakers, bucket.clone());
        let pause = Pause::default();
        pause.read(&bucket).await.unwrap();
        trunks.breakers.read(DEFAULT_TRUNK).await.unwrap();
        let log = StatusLog::open(js.clone(), &names, KEEP).await.unwrap();
        let (inbox, timers) = (Inbox::new(js.clone(), &names), Timers::new(js.clone(), &names));
        let (waiting, window) = (Waiting::open(js.clone(), &names).await.unwrap(), Window::new(js.clone(), &names));
        let admission = Admission {
            log: log.clone(),
            waiting: waiting.clone(),
            window: window.clone(),
            timers: timers.clone(),
            dead: DeadLetters::new(js.clone(), &names),
            due: names.due.clone(),
            index: CallIndex::default(),
            namespace: "calls".to_owned(),
            trunks: live.clone(),
            on_queued: Box::new(|_| {}),
        };
        let api = Api::default();
        api.open(api::Parts {
            client: client.clone(),
            log: log.clone(),
            inbox: inbox.clone(),
            waiting: waiting.clone(),
            timers: timers.clone(),
            index: CallIndex::default(),
            trunks: trunks.clone(),
            pause: pause.clone(),
            namespace: "calls".to_owned(),
        });
        let clusters = BTreeMap::from(["north", "south"].map(|name| (name, Arc::new(Cluster::default()))));
        let mut world = Self {
            nats,
            client,
            js,
            consumer,
            names,
            log,
            inbox,
            waiting,
            window,
            admission,
            timers,
            trunks,
            bucket,
            pause,
            offered: Vec::new(),
            api,
            clusters,
            diallers: Vec::new(),
            rooms: Arc::new(tokio::sync::Semaphore::new(1000)),
            published: BTreeSet::new(),
            others: 0,
            cancelled: BTreeSet::new(),
            seen: Vec::new(),
        };
        world.diallers = (0..DIALLERS.len()).map(|number| world.dialler(number)).collect();
        world
    }

    /// A dialler that has just been started, and is about to end.
    fn dialler(&self, number: usize) -> (Arc<Dialler>, Arc<Line>) {
        let cluster = DIALLERS[number];
        let line = Arc::new(Line::new(cluster, self.clusters[cluster].clone()));
        let closing = CancellationToken::new();
        closing.cancel();
        let (store, tasks) = (JobStore::default(), TaskTracker::new());
        let patience = Patience { start_seconds: job_defaults().start_seconds, faults: KEEP };
        let judge = Judge { patience, breakers: self.trunks.breakers.clone() };
        let reconciler = Reconciler::new(
            self.log.clone(),
            line.clone(),
            store.clone(),
            judge.clone(),
            cluster.to_owned(),
            CancellationToken::new(),
            tasks.clone(),
        );
        let dialler = Dialler {
            log: self.log.clone(),
            runner: line.clone(),
            store,
            reconciler,
            in_flight: InFlight::new(self.client.clone()),
            timers: self.timers.clone(),
            dead: DeadLetters::new(self.js.clone(), &self.names),
            defaults: JobDefaults { namespace: "calls".to_owned(), ..job_defaults() },
            cluster: cluster.to_owned(),
            pause: self.pause.clone(),
            trunks: self.trunks.clone(),
            window: self.window.clone(),
            waiting: self.waiting.clone(),
            on_settled: Box::new(|| {}),
            judge,
            closing,
            tasks,
            starts: Starts::default(),
        };
        (Arc::new(dialler), line)
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Publish { call, accepted, another } => self.publish(call, accepted, another).await,
            Action::Admit { by_two, acknowledged } => self.admit(by_two, acknowledged).await,
            Action::Feed { stays } => self.feed(stays).await,
            Action::Remove => self.remove_offered().await,
            Action::Pause { on } => self.pause(on).await,
            Action::Step { dialler } => self.deliver(&[dialler]).await,
            Action::Race { one, other } => self.deliver(&[one, other]).await,
            Action::Stall { dialler } => {
                self.diallers[dialler].1.is_stalled.store(true, Ordering::SeqCst);
                self.deliver(&[dialler]).await;
                self.diallers[dialler].1.is_stalled.store(false, Ordering::SeqCst);
            }
            Action::GoOn { dialler } => self.go_on(dialler).await,
            Action::Crash { dialler, arrives } => self.crash(dialler, arrives),
            Action::Run { job, end } => self.run(job, end),
            Action::Show { dialler } => self.show(dialler).await,
            Action::Cancel { call } => {
                // One that is not admitted would be waited for.
                if self.last(call).is_some() && self.api.cancel(id(call).as_str()).await.unwrap().is_some() {
                    self.cancelled.insert(call);
                }
            }
            Action::Delete { job } => self.delete(job).await,
            Action::Fire => self.fire().await,
        }
    }

    async fn publish(&mut self, call: usize, accepted: bool, another: bool) {
        let (id, body) = (id(call), body(call, another));
        let is_stored = if accepted {
            let spec = validate::parse(&body, Timestamp::UNIX_EPOCH).unwrap().spec;
            // The server drops a second one.
            self.inbox.publish_once(&Call::new(id, spec), body).await.unwrap()
        } else {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert(HEADER_CALL_ID, id.as_str());
            self.js.publish_with_headers(self.names.calls.clone(), headers, body).await.unwrap().await.unwrap();
            true
        };
        self.published.insert(call);
        self.others += usize::from(another && is_stored);
    }

    /// The server delivers the next request, of those that came due or of those that arrived.
    async fn admit(&self, by_two: bool, acknowledged: bool) {
        let Names { calls_stream, admission_consumer, schedule_stream, due_consumer, .. } = &self.names;
        for (stream, consumer) in [(schedule_stream, due_consumer), (calls_stream, admission_consumer)] {
            let consumer: PullConsumer = self.js.get_consumer_from_stream(consumer, stream).await.unwrap();
            if consumer.cached_info().num_pending + consumer.cached_info().num_ack_pending as u64 == 0 {
                continue;
            }
            let batch = consumer.batch().max_messages(1).expires(Duration::from_millis(500));
            let Some(message) = batch.messages().await.unwrap().next().await else { continue };
            let message = message.unwrap();
            let delivery = Delivery::of(message.clone()).unwrap();
            if by_two {
                let (one, other) = tokio::join!(self.admission.process(&delivery), self.admission.process(&delivery));
                one.and(other).unwrap();
            } else {
                self.admission.process(&delivery).await.unwrap();
            }
            let ack = if acknowledged { jetstream::AckKind::Ack } else { jetstream::AckKind::Nak(None) };
            message.double_ack_with(ack).await.unwrap();
            return;
        }
    }

    /// What is in the queue goes into the window.
    async fn feed(&mut self, stays: bool) {
        for head in self.waiting.oldest(Kind::ANY, 1).await.unwrap() {
            if !stays {
                offer(&self.window, &self.waiting, DEFAULT_TRUNK, head).await.unwrap();
                continue;
            }
            let (sequence, job) = (head.sequence, job_of(&head.subject).to_owned());
            if self.window.put(DEFAULT_TRUNK, &job, head.headers, head.payload).await.unwrap() {
                self.offered.push(sequence);
            }
        }
    }

    async fn remove_offered(&mut self) {
        for sequence in std::mem::take(&mut self.offered) {
            self.waiting.remove(sequence).await.unwrap();
        }
    }

    async fn pause(&self, on: bool) {
        let paused = Paused { until: None, by: None, reason: None, since: None };
        if on {
            control::pause(&self.bucket, &paused).await.unwrap();
        } else {
            control::resume(&self.bucket).await.unwrap();
        }
        self.pause.read(&self.bucket).await.unwrap();
    }

    /// The server delivers the next message, to all of these at once. What they do not settle is delivered again, at once.
    async fn deliver(&self, diallers: &[usize]) {
        if messages_in(&self.js, "SIP_DIAL").await == 0 {
            return;
        }
        // None of them is held, so one comes; the time is for the server to see to what was handed back just now.
        let batch = self.consumer.batch().max_messages(1).expires(Duration::from_millis(500));
        let Some(message) = batch.messages().await.unwrap().next().await else { return };
        let message = message.unwrap();
        for dialler in diallers {
            // A message that a stalled request holds only has its delivery replaced, as in one process.
            let room = self.rooms.clone().acquire_owned().await.unwrap();
            self.diallers[*dialler].0.accept(Delivery::of(message.clone()).unwrap(), room);
        }
        for dialler in diallers {
            self.rest(*dialler).await;
        }
        let again = jetstream::AckKind::Nak(None).into();
        self.client.publish(message.reply.clone().unwrap(), again).await.unwrap();
    }

    /// Waits until a dialler has nothing more to do but what is stalled.
    async fn rest(&self, dialler: usize) {
        let (dialler, line) = &self.diallers[dialler];
        let begin = Instant::now();
        while dialler.tasks.len() > line.stalled.load(Ordering::SeqCst) {
            assert!(begin.elapsed() < Duration::from_secs(20), "a step does not end");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn go_on(&self, dialler: usize) {
        let line = &self.diallers[dialler].1;
        line.waiting.lock().unwrap().clear();
        line.go_on.notify_waiters();
        // Whoever was stalled counts itself out before it goes on.
        while line.stalled.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
        self.rest(dialler).await;
    }

    fn crash(&mut self, dialler: usize, arrives: bool) {
        let line = &self.diallers[dialler].1;
        line.is_dead.store(true, Ordering::SeqCst);
        for order in line.waiting.lock().unwrap().drain(..).filter(|_| arrives) {
            // Nobody hears the answer.
            _ = line.cluster.make(&order);
        }
        self.diallers[dialler] = self.dialler(dialler);
    }

    fn some_job(&self, number: usize) -> Option<(Arc<Cluster>, FakeJob)> {
        let jobs = self.clusters.values().flat_map(|cluster| {
            let jobs: Vec<FakeJob> = cluster.jobs().values().cloned().collect();
            jobs.into_iter().map(|job| (cluster.clone(), job))
        });
        let jobs: Vec<_> = jobs.collect();
        (!jobs.is_empty()).then(|| jobs[number % jobs.len()].clone())
    }

    /// A Job that is being removed stays until no request for it is on its way: one that outlasts it makes it anew, which nobody
    /// can prevent (`docs/guarantees.md`).
    fn run(&self, job: usize, end: End) {
        let Some((cluster, job)) = self.some_job(job) else { return };
        if !(job.is_being_removed && self.is_asked_for(&job.seen.name)) {
            cluster.go_on(&job.seen.name, end);
        }
    }

    fn is_asked_for(&self, job: &str) -> bool {
        self.diallers.iter().any(|(_, line)| line.asked_for().iter().any(|name| name == job))
    }

    async fn show(&self, dialler: usize) {
        let (dialler_, line) = &self.diallers[dialler];
        let jobs = line.cluster.jobs().values().map(|job| job.seen.clone()).collect();
        dialler_.store.apply(Observation::All(jobs));
        dialler_.reconciler.reconcile(dialler_.store.unfollowed()).await;
        self.rest(dialler).await;
    }

    /// By hand, but not while it is being started: that a Job was there, and has been deleted, nobody can know whose request to
    /// make it comes after (`docs/guarantees.md` says so, too).
    async fn delete(&self, job: usize) {
        let Some((cluster, job)) = self.some_job(job) else { return };
        let last = self.log.last(&job.seen.id.name()).await.unwrap().unwrap().event;
        let is_starting =
            last.status == Status::Pending && last.attempt == job.seen.attempt || self.is_asked_for(&job.seen.name);
        if let (false, Some(job)) = (is_starting, cluster.jobs().get_mut(&job.seen.name)) {
            job.is_being_removed = true;
        }
    }

    /// What waits for its moment comes due, as the server does it.
    async fn fire(&self) {
        let stream = self.js.get_stream(&self.names.schedule_stream).await.unwrap();
        for timer in self.messages(&self.names.schedule_stream, &format!("{}.>", self.names.schedule)).await {
            let due: Timestamp = timer.headers.get(HEADER_DUE).unwrap().as_str().parse().unwrap();
            let early = due.duration_since(Timestamp::now()) - SignedDuration::from_millis(900);
            if let Ok(wait) = Duration::try_from(early) {
                tokio::time::sleep(wait).await;
            }
            let headers = timer.headers.iter().filter(|(name, _)| !AsRef::<str>::as_ref(*name).starts_with("Nats-"));
            let mut kept = async_nats::HeaderMap::new();
            headers.for_each(|(name, values)| kept.insert(name.clone(), values[0].clone()));
            let publish = self.js.publish_with_headers(self.names.due.clone(), kept, timer.payload.clone());
            publish.await.unwrap().await.unwrap();
            // Fired meanwhile, it is there twice.
            _ = stream.delete_message(timer.sequence).await;
        }
    }

    async fn messages(&self, stream: &str, subject: &str) -> Vec<StreamMessage> {
        let stream = self.js.get_stream_no_info(stream).await.unwrap();
        let (mut messages, mut from) = (Vec::new(), 1);
        while let Ok(message) = stream.direct_get_next_for_subject(subject, Some(from)).await {
            from = message.sequence + 1;
            messages.push(message);
        }
        messages
    }

    async fn check(&mut self) {
        self.no_job_was_made_twice();
        self.histories_are_legal().await;
        self.every_call_is_carried_on().await;
    }

    /// Which attempts were started, whoever did it.
    fn no_job_was_made_twice(&self) {
        let mut sum: HashMap<String, usize> = HashMap::new();
        for cluster in self.clusters.values() {
            cluster.made.lock().unwrap().iter().for_each(|(job, made)| *sum.entry(job.clone()).or_default() += made);
        }
        assert!(sum.values().all(|made| *made == 1), "made twice: {sum:?}");
    }

    async fn histories_are_legal(&mut self) {
        let events = recorded(&self.js, &format!("{}.*", self.names.status)).await;
        assert!(events.starts_with(&self.seen), "a record was changed or has gone");
        for call in 0..CALLS {
            let history: Vec<_> = events.iter().filter(|event| event.id == id(call)).collect();
            for (index, event) in history.iter().enumerate() {
                let before = index.checked_sub(1).map(|before| history[before]);
                assert_eq!(event.revision, index as u64 + 1, "{}", describe(history.iter().copied()));
                assert!(
                    event.status.may_follow(before.map(|before| before.status)),
                    "{}",
                    describe(history.iter().copied())
                );
                assert!(
                    before.is_none_or(|before| !before.is_final),
                    "something follows the end: {}",
                    describe(history.iter().copied())
                );
                let attempts = before.map_or(0, |before| before.attempt) + u32::from(event.status == Status::Pending);
                assert_eq!(event.attempt, attempts, "{}", describe(history.iter().copied()));
                assert!(event.attempt <= MAX_ATTEMPTS, "{}", describe(history.iter().copied()));
            }
        }
        self.seen = events;
    }

    fn last(&self, call: usize) -> Option<&StatusEvent> {
        self.seen.iter().rev().find(|event| event.id == id(call))
    }

    /// A call that has not ended is in the hands of a message that will go on with it, or of a timer.
    async fn every_call_is_carried_on(&self) {
        let Names { calls_stream, queue_stream, dial_stream, schedule_stream, .. } = &self.names;
        let inbox = self.messages(calls_stream, ">").await;
        let waiting = self.messages(queue_stream, ">").await;
        let window = self.messages(dial_stream, ">").await;
        let timers = self.messages(schedule_stream, ">").await;
        let is_of = |message: &&StreamMessage, call: usize| {
            message.headers.get(HEADER_CALL_ID).is_some_and(|text| text.as_str() == id(call).as_str())
        };
        let attempts = |messages: &[StreamMessage], call: usize| -> Vec<u32> {
            let attempt = |message: &StreamMessage| {
                message.headers.get(HEADER_ATTEMPT).map_or(1, |text| text.as_str().parse().unwrap())
            };
            messages.iter().filter(|message| is_of(message, call)).map(attempt).collect()
        };
        for call in &self.published {
            let arrives = inbox.iter().any(|message| is_of(&message, *call));
            let (waiting, window) = (attempts(&waiting, *call), attempts(&window, *call));
            let timers = attempts(&timers, *call);
            let is_carried = match self.last(*call) {
                None => arrives,
                Some(last) if last.is_final => true,
                Some(last) if last.status == Status::Scheduled => {
                    arrives
                        || timers.contains(&(last.attempt + 1))
                        || window.iter().any(|attempt| *attempt <= last.attempt)
                }
                Some(last) if last.status == Status::Queued => {
                    let next = last.attempt + 1;
                    arrives || timers.contains(&next) || waiting.contains(&next) || window.contains(&next)
                }
                Some(last) => window.contains(&last.attempt),
            };
            assert!(is_carried, "call {call} is lost: {}", describe(self.seen.iter()));
        }
    }

    /// Everybody works until nothing is left to do.
    async fn end(&mut self) {
        self.pause(false).await;
        self.remove_offered().await;
        for dialler in 0..DIALLERS.len() {
            self.go_on(dialler).await;
        }
        for round in 0.. {
            assert!(round < LAST_ROUND, "this never ends: {}", describe(self.seen.iter()));
            for dialler in 0..DIALLERS.len() {
                self.show(dialler).await;
                self.admit(false, true).await;
                self.feed(false).await;
                self.deliver(&[dialler]).await;
            }
            let ends = [End::Busy, End::Answered, End::Declined];
            (0..8).for_each(|job| self.run(job, ends[(round + job) % ends.len()]));
            self.fire().await;
            self.check().await;
            let mut left = 0;
            for stream in ["SIP_CALLS", "SIP_QUEUE", "SIP_DIAL", "SIP_SCHEDULE"] {
                left += messages_in(&self.js, stream).await;
            }
            if left == 0 {
                break;
            }
        }
        self.every_call_has_ended_as_its_jobs_did();
        self.only_other_requests_are_dead_letters().await;
        self.no_job_is_left().await;
    }

    fn every_call_has_ended_as_its_jobs_did(&self) {
        for call in &self.published {
            let finals: Vec<_> = self.seen.iter().filter(|event| event.id == id(*call) && event.is_final).collect();
            assert_eq!(finals.len(), 1, "call {call} has {} ends", finals.len());
            let succeeded = finals[0].job.as_ref().and_then(|job| {
                self.clusters.values().find_map(|cluster| cluster.ended.lock().unwrap().get(job).copied())
            });
            match finals[0].status {
                Status::Succeeded => assert_eq!(succeeded, Some(true), "{}", describe(finals.iter().copied())),
                Status::Failed => {
                    assert!(succeeded == Some(false), "{}", describe(finals.iter().copied()));
                }
                Status::Cancelled => {
                    let is_deleted = finals[0].reason.as_deref() == Some("deleted");
                    assert!(is_deleted || self.cancelled.contains(call), "{}", describe(finals.iter().copied()));
                }
                other => panic!("a call ended {other}: {}", describe(finals.iter().copied())),
            }
        }
    }

    /// The first request of an id is the call; every message that asks for another one under that id is put aside.
    async fn only_other_requests_are_dead_letters(&self) {
        let letters = messages_in(&self.js, "SIP_DEAD").await;
        let was_the_first = |call: &usize| self.last(*call).unwrap().fingerprint == fingerprint(*call, true);
        if !self.published.iter().any(was_the_first) {
            assert_eq!(letters, self.others as u64, "letters of other requests");
        }
    }

    /// Whoever is shown the Jobs lets those go whose calls are over, and stops those that live all the same.
    async fn no_job_is_left(&self) {
        for _ in 0..4 {
            for dialler in 0..DIALLERS.len() {
                self.show(dialler).await;
            }
            (0..8).for_each(|job| self.run(job, End::Declined));
        }
        for cluster in self.clusters.values() {
            let left: Vec<_> =
                cluster.jobs().values().filter(|job| !job.seen.settled).map(|job| job.seen.clone()).collect();
            assert!(left.is_empty(), "left behind: {left:#?}");
        }
    }
}
