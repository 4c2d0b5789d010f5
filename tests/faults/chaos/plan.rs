//! The plan of a run, all from its seed: the calls, how each is submitted and what its callee answers, and the faults.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sipstuff_operator::policy::DEFAULT_TRUNK;

use super::dice::Dice;
use crate::support::node::Callee;

/// Seed, and how much of it.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The same seed is the same calls and the same faults at the same moments.
    pub seed: u64,
    /// How many calls.
    pub calls: usize,
    /// How many faults.
    pub faults: usize,
}

/// Seconds that a conversation may last; every one of them is shorter.
const LONGEST_CALL: u32 = 3;
/// The trunk that some calls name, and that takes the others while the first one is held.
const SECOND_TRUNK: &str = "second";
/// The seed of `make test`, so that every change meets the same plan; `make chaos` takes a new one.
const SEED: u64 = 627_442;

impl Plan {
    /// `CHAOS_SEED`, `CHAOS_CALLS`, `CHAOS_FAULTS`; without them a small one, always of the same seed.
    pub fn from_environment() -> Self {
        let number = |name: &str| {
            let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
            Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is `{text}`; accepted: a whole number")))
        };
        let size = |name: &str, small: u64| usize::try_from(number(name).unwrap_or(small)).expect("it fits");
        Self {
            seed: number("CHAOS_SEED").unwrap_or(SEED),
            calls: size("CHAOS_CALLS", 150),
            faults: size("CHAOS_FAULTS", FIRST.len() as u64),
        }
    }

    /// So many that no machine could run a process for each.
    pub fn is_big(&self) -> bool {
        self.calls > 1000
    }

    /// `MAX_ACTIVE_CALLS`.
    pub fn active_calls(&self) -> usize {
        (self.calls / 30).clamp(20, 120)
    }

    /// The trunks and their channels: calls go to the first, unless it is held or they name the second.
    pub fn trunks(&self) -> [(&'static str, usize); 2] {
        let second = self.active_calls() / 3;
        [(DEFAULT_TRUNK, self.active_calls() - second), (SECOND_TRUNK, second)]
    }

    /// `TRUNKS_FILE`.
    pub fn trunks_file(&self) -> Value {
        let pace = (self.calls_per_second() > 0).then(|| self.calls_per_second());
        let trunks = self.trunks().map(|(name, channels)| {
            json!({"name": name, "secret": "sip-credentials", "max_active": channels, "calls_per_second": pace})
        });
        json!({"trunks": trunks})
    }

    /// The pace of each trunk, of every second seed: so that the bucket matters, and that it does not.
    pub fn calls_per_second(&self) -> usize {
        if self.seed.is_multiple_of(2) { self.active_calls() } else { 0 }
    }

    /// `JOB_START_SECONDS`.
    pub fn start_seconds(&self) -> u32 {
        if self.is_big() { 30 } else { 15 }
    }

    /// Every call, in the order in which it is submitted.
    pub fn calls(&self) -> Vec<Planned> {
        (0..self.calls).map(|number| Planned::new(self.seed, number)).collect()
    }

    /// When each call is submitted: in bursts, over most of the time that the faults take.
    pub fn submissions(&self) -> Vec<Duration> {
        let mut dice = Dice::new(self.seed, 1);
        let span = self.faults_take().as_millis() as u64 * 4 / 5;
        let bursts = (self.calls / 40).max(3);
        let mut bursts: Vec<u64> = (0..bursts).map(|_| dice.between(0, span)).collect();
        bursts.push(0);
        let pick = |dice: &mut Dice| bursts[dice.between(0, bursts.len() as u64 - 1) as usize];
        let mut moments: Vec<u64> = (0..self.calls).map(|_| pick(&mut dice) + dice.between(0, 500)).collect();
        moments.sort_unstable();
        moments.into_iter().map(Duration::from_millis).collect()
    }

    /// How long the faults take from the first to the last.
    pub fn faults_take(&self) -> Duration {
        self.faults().last().map_or(Duration::from_secs(5), |fault| fault.at)
    }

    /// The faults, in order.
    pub fn faults(&self) -> Vec<Fault> {
        let mut dice = Dice::new(self.seed, 2);
        let mut at = Duration::from_secs(2);
        let mut faults = Vec::new();
        for number in 0..self.faults {
            // The second half leaves replica 1 alive, so that its memory use means something.
            let may_die = if number < self.faults / 2 { 2 } else { 1 };
            faults.push(Fault::new(&mut dice, number, at, may_die));
            at +=
                Duration::from_millis(if self.is_big() { dice.between(2500, 7500) } else { dice.between(1000, 4000) });
        }
        faults
    }
}

/// How a call is submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `POST /call`, again until it is accepted.
    Http,
    /// `POST /call`, once: what comes of it comes of it.
    HttpOnce,
    /// Published on `sip.calls`, its id in the body.
    Nats,
    /// The same, its id in the header `Nats-Msg-Id`.
    NatsHeader,
    /// Both ways, with the same id.
    Both,
    /// Published by NATS, and not a valid call.
    Invalid,
    /// Posted, and not a valid call.
    InvalidHttp,
}

/// A call to come.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Its id.
    pub id: String,
    /// How it is submitted.
    pub way: Way,
    /// What the callee says: 200, or a SIP code of a failure.
    pub code: u16,
    /// How often it may be dialled.
    pub max_attempts: u32,
    /// Seconds before the second attempt.
    pub retry_delay: u32,
    /// Seconds ahead that it must wait.
    pub not_before: Option<u64>,
    /// Seconds ahead that it is of use.
    pub not_after: Option<u64>,
    /// When it is cancelled, after it was submitted.
    pub cancel: Option<Duration>,
    /// The number dialled.
    pub dest: String,
    /// Whether it is dialled again when nobody knows how an attempt ended.
    pub redials_unknown: bool,
    /// Whether it names the second trunk.
    pub names_second: bool,
}

impl Planned {
    fn new(seed: u64, number: usize) -> Self {
        let mut dice = Dice::new(seed, 1000 + number as u64);
        let ways = [
            (38, Way::Http),
            (6, Way::HttpOnce),
            (25, Way::Nats),
            (15, Way::NatsHeader),
            (12, Way::Both),
            (2, Way::Invalid),
            (2, Way::InvalidHttp),
        ];
        let way = dice.weighted(&ways);
        let (code, max_attempts) = dice.weighted(&[(70, (200, 3)), (14, (486, 3)), (9, (480, 2)), (7, (603, 3))]);
        Self {
            id: format!("chaos/{number}"),
            way,
            code,
            max_attempts,
            retry_delay: dice.between(1, 3) as u32,
            not_before: dice.percent(8).then(|| dice.between(2, 9)),
            not_after: dice.percent(5).then(|| dice.between(1, 20)),
            cancel: dice.percent(8).then(|| Duration::from_millis(dice.between(0, 6000))),
            dest: format!("+49{number:07}{code}"),
            redials_unknown: dice.percent(40),
            names_second: dice.percent(20),
        }
    }

    /// Whether the request is valid.
    pub fn is_valid(&self) -> bool {
        !matches!(self.way, Way::Invalid | Way::InvalidHttp)
    }

    /// The request, with its times counted from now.
    pub fn body(&self) -> Value {
        let ahead = |seconds: u64| (Timestamp::now() + SignedDuration::from_secs(seconds as i64)).to_string();
        let mut body = json!({
            "dest": self.dest, "text": "a", "timeout": LONGEST_CALL,
            "max_attempts": self.max_attempts, "retry_delay": self.retry_delay,
            "on_unknown": if self.redials_unknown { "redial" } else { "hold" },
            "not_before": self.not_before.map(ahead),
            "not_after": self.not_after.map(|seconds| ahead(seconds + self.not_before.unwrap_or(0))),
        });
        if self.names_second {
            body["trunk"] = json!(SECOND_TRUNK);
        }
        if self.way != Way::NatsHeader {
            body["id"] = json!(self.id);
        }
        if !self.is_valid() {
            body["dest"] = json!(null);
        }
        body
    }
}

/// What a callee does by its number, as `simulate-call` has it: for the node that only reports.
pub fn callee(argv: &[String]) -> Callee {
    let digits = argv.iter().filter(|word| word.contains("+49")).flat_map(|word| word.split('=').next_back());
    let number = digits.last().unwrap_or_default().to_owned();
    let code: u16 = number[number.len().saturating_sub(3)..].parse().unwrap_or(500);
    let spread = number.bytes().fold(7_u64, |sum, byte| (sum * 31 + u64::from(byte)) % 2500);
    let message = (code != 200).then(|| format!("Call state: DISCONNCTD (last code: {code} Simulated)\n"));
    Callee { exit_code: i32::from(code != 200), after: Duration::from_millis(500 + spread), message }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A replica: SIGKILL, and a new one.
    KillReplica,
    /// A replica: SIGTERM, and a new one.
    TerminateReplica,
    /// A replica: SIGSTOP, later SIGCONT.
    FreezeReplica,
    /// A replica: the same, for longer than the queue waits for it.
    FreezeReplicaLong,
    /// nats-server: SIGKILL, and a new one on the same store.
    KillNats,
    /// The API server: SIGKILL, and a new one.
    KillApiServer,
    /// The controller manager: SIGKILL, and a new one.
    KillControllerManager,
    /// A replica's connections to NATS break.
    CutNats,
    /// A replica's connections to NATS break, and there are no new ones for a while.
    RefuseNats,
    /// Nothing passes between a replica and NATS for a while.
    StallNats,
    /// The same, for longer than the queue waits.
    StallNatsLong,
    /// What passes between a replica and NATS is late for a while.
    SlowNats,
    /// A replica's connections to the API server break.
    CutKubernetes,
    /// A replica's connections to the API server break, and there are no new ones for a while.
    RefuseKubernetes,
    /// Nothing passes between a replica and the API server for a while.
    StallKubernetes,
    /// What passes between a replica and the API server is late for a while.
    SlowKubernetes,
    /// Jobs that run are deleted by hand.
    DeleteJobs,
    /// Pods that run are deleted by hand.
    DeletePods,
    /// Pods that run are killed, as when memory is short.
    FailPods,
    /// The node loses its power: its containers die, and nobody reports it. Another one takes the pods to come.
    VanishNode,
    /// The third operator, its callers and its node are gone for good, and another cluster comes in their place.
    VanishCluster,
    /// The bucket is deleted.
    DeleteBucket,
    /// The queue's consumer is deleted, and maybe that of the timers that fired.
    DeleteConsumers,
    /// The stream of the dead letters is deleted, and those that are in it.
    DeleteDeadLetters,
    /// Dialling is paused; meanwhile a replica is restarted and a call is cancelled; then dialling goes on.
    PauseAndRestart,
    /// The breaker of the first trunk is opened by hand, and later closed.
    HoldTrunk,
}

impl Kind {
    /// Whether a replica's process ends by it.
    fn ends_a_replica(self) -> bool {
        matches!(self, Self::KillReplica | Self::TerminateReplica | Self::PauseAndRestart)
    }
}

/// One fault to come.
#[derive(Debug, Clone)]
pub struct Fault {
    /// When, from the beginning.
    pub at: Duration,
    /// What.
    pub kind: Kind,
    /// Which replica, 0 or 1, where it is about one.
    pub replica: usize,
    /// How long, where it lasts.
    pub lasts: Duration,
    /// How many, where it is about several.
    pub count: usize,
    /// Of further choices.
    pub dice: Dice,
}

/// The first faults, in this order, so that a small run has the worst of them; first those whose calls have to be waited for.
const FIRST: [Kind; 19] = [
    Kind::VanishCluster,
    Kind::KillReplica,
    Kind::KillNats,
    Kind::VanishNode,
    Kind::DeleteJobs,
    Kind::StallKubernetes,
    Kind::DeleteConsumers,
    Kind::KillApiServer,
    Kind::FailPods,
    Kind::PauseAndRestart,
    Kind::HoldTrunk,
    Kind::StallNats,
    Kind::DeleteBucket,
    Kind::TerminateReplica,
    Kind::KillControllerManager,
    Kind::DeleteDeadLetters,
    Kind::FreezeReplica,
    Kind::CutNats,
    Kind::CutKubernetes,
];

const LATER: [(u64, Kind); 26] = [
    (12, Kind::KillReplica),
    (6, Kind::TerminateReplica),
    (8, Kind::FreezeReplica),
    (2, Kind::FreezeReplicaLong),
    (9, Kind::KillNats),
    (3, Kind::KillApiServer),
    (3, Kind::KillControllerManager),
    (7, Kind::CutNats),
    (5, Kind::RefuseNats),
    (6, Kind::StallNats),
    (2, Kind::StallNatsLong),
    (5, Kind::SlowNats),
    (7, Kind::CutKubernetes),
    (5, Kind::RefuseKubernetes),
    (6, Kind::StallKubernetes),
    (5, Kind::SlowKubernetes),
    (6, Kind::DeleteJobs),
    (4, Kind::DeletePods),
    (4, Kind::FailPods),
    (4, Kind::VanishNode),
    (3, Kind::VanishCluster),
    (3, Kind::DeleteBucket),
    (5, Kind::DeleteConsumers),
    (2, Kind::DeleteDeadLetters),
    (4, Kind::PauseAndRestart),
    (5, Kind::HoldTrunk),
];

impl Fault {
    fn new(dice: &mut Dice, number: usize, at: Duration, may_die: u64) -> Self {
        let kind = FIRST.get(number).copied().unwrap_or_else(|| dice.weighted(&LATER));
        let replica = dice.between(0, if kind.ends_a_replica() { may_die - 1 } else { 1 }) as usize;
        let lasts = match kind {
            Kind::KillReplica | Kind::KillNats | Kind::TerminateReplica => dice.between(0, 1500),
            Kind::FreezeReplicaLong | Kind::StallNatsLong => dice.between(32_000, 40_000),
            _ => dice.between(1000, 7000),
        };
        let (lasts, count) = (Duration::from_millis(lasts), dice.between(1, 3) as usize);
        let dice = Dice::new(dice.between(0, u64::MAX - 1), 3);
        Self { at, kind, replica, lasts, count, dice }
    }
}
