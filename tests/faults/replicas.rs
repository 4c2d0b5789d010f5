//! A cluster of three nats-servers, of which one lags or takes itself for the leader: what it does not know is not forgotten.

use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use sipstuff_operator::call::{Call, CallId, Change, Status, StatusEvent, validate};
use sipstuff_operator::nats::{Names, StreamSettings, streams};
use sipstuff_operator::policy::DEFAULT_TRUNK;
use sipstuff_operator::queue::Inbox;
use sipstuff_operator::status_log::StatusLog;

use crate::support::process::Scratch;
use crate::support::status::queue_is_empty;
use crate::support::{
    NatsCluster, Operator, OperatorOptions, PATIENCE, cli, delete, eventually, eventually_some, name_of, post_call,
    request, with,
};

/// Calls of the batch.
const CALLS: usize = 200;
/// Records that a stalled server misses: enough for it to need a while until it has them.
const MISSED: usize = 2_000;
/// Questions that wait for it when it goes on.
const ASKED: usize = 50;

fn first_event(number: usize) -> StatusEvent {
    let body = request("+49301", "hello").to_string();
    let spec = validate::parse(body.as_bytes(), jiff::Timestamp::now()).unwrap().spec;
    let call = Call::new(CallId::parse(format!("missed-{number}")).unwrap(), spec);
    let now = jiff::Timestamp::now();
    StatusEvent::first(&call, "calls", now, Change::Queued, now).unwrap()
}

async fn made(cluster: &NatsCluster) {
    let settings = StreamSettings { names: Names::default(), replicas: 3, queue_max_messages: -1, queue_max_bytes: -1 };
    let js = cluster.servers[0].jetstream().await;
    eventually_some("the streams are made", PATIENCE, async || {
        streams::ensure(&js, &settings, DEFAULT_TRUNK, 1).await.ok()
    })
    .await;
}

async fn log_at(cluster: &NatsCluster, server: usize) -> StatusLog {
    let js = cluster.servers[server].jetstream().await;
    StatusLog::open(js, &Names::default(), Duration::from_secs(86_400)).await.unwrap()
}

/// Direct gets of a client may be answered by the server that it is connected to, once that has found its copy of the stream to be
/// current: so the server is stalled again until it was seen to answer while it lagged.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_found_though_the_replica_that_is_asked_does_not_have_it_yet() {
    let cluster = NatsCluster::start().await;
    made(&cluster).await;
    let leader = cluster.leader_of("SIP_STATUS", 0).await;
    let lagging = (leader + 1) % 3;
    let (written, read) = (log_at(&cluster, leader).await, log_at(&cluster, lagging).await);
    let mut numbers = (0..).step_by(MISSED);
    eventually("the replica is seen to lag", PATIENCE, async || {
        let first = numbers.next().unwrap();
        misses_while_it_catches_up(&cluster, lagging, &written, &read, first).await > 0
    })
    .await;
}

/// Stalls a server while records are written, asks for the last one by way of it, and lets it go on. Returns how many plain direct
/// gets found nothing; asserts that the log found the record each time.
async fn misses_while_it_catches_up(
    cluster: &NatsCluster,
    lagging: usize,
    written: &StatusLog,
    read: &StatusLog,
    first: usize,
) -> usize {
    let direct = cluster.servers[lagging].jetstream().await.get_stream("SIP_STATUS").await.unwrap();
    cluster.stall(lagging);
    let appended = join_all((first..first + MISSED).map(|number| written.append(first_event(number), 0))).await;
    let last = appended.into_iter().map(Result::unwrap).max_by_key(|recorded| recorded.sequence).unwrap();
    let (name, sequence) = (last.event.name.clone(), last.sequence);
    let asked = join_all((0..ASKED).map(|_| async {
        let (by_name, by_sequence, plain) =
            tokio::join!(read.last(&name), read.at(sequence), direct.direct_get(sequence));
        assert_eq!(by_name.unwrap().map(|found| found.sequence), Some(sequence));
        assert_eq!(by_sequence.unwrap().map(|found| found.event), Some(last.event.clone()));
        usize::from(plain.is_err())
    }));
    // The questions are on their way before it goes on.
    let (misses, ()) = tokio::join!(asked, async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        cluster.go_on(lagging);
    });
    misses.into_iter().sum()
}

/// What is in the inbox is told by its stream's leader; one that was stalled takes itself for that, and has heard of nothing meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_counts_as_admitted_by_the_word_of_a_leader_that_was_stalled_and_deposed() {
    let cluster = NatsCluster::start().await;
    made(&cluster).await;
    let stalled = cluster.leader_of("SIP_CALLS", 0).await;
    let asking = join_all(
        (0..ASKED).map(|_| async { Inbox::new(cluster.servers[stalled].jetstream().await, &Names::default()) }),
    )
    .await;
    let publishing = cluster.servers[(stalled + 1) % 3].jetstream().await;
    cluster.stall(stalled);
    // Accepted only once another server leads.
    eventually("a request is in the inbox", PATIENCE, async || {
        let stored = publishing.publish("sip.calls", request("+49301", "hello").to_string().into()).await;
        match stored {
            Ok(stored) => stored.await.is_ok(),
            Err(_) => false,
        }
    })
    .await;
    let asked = join_all(asking.iter().map(|inbox| inbox.is_admitted(Duration::from_secs(2))));
    let (answers, ()) = tokio::join!(asked, async {
        // The questions are on their way before it goes on.
        tokio::time::sleep(Duration::from_millis(100)).await;
        cluster.go_on(stalled);
    });
    for answer in answers {
        assert!(!answer.is_ok_and(|admitted| admitted), "nobody admits anything here");
    }
}

/// Two operators: one that is connected to the server that will be disturbed, one that records a batch meanwhile.
struct Disturbed {
    cluster: NatsCluster,
    folder: Scratch,
    disturbed: usize,
    cancelling: Operator,
    recording: Operator,
}

impl Disturbed {
    /// The server to be disturbed leads the status log, or it does not.
    async fn set(is_leader: bool) -> Self {
        let (cluster, folder) = (NatsCluster::start().await, Scratch::new("replicas"));
        let operator = |server: usize, name: &str| {
            let options = OperatorOptions::local(&cluster.servers[server], &folder.join(name));
            options.env("NATS_REPLICAS", 3).env("SIMULATE_LOG", folder.join("calls").display())
        };
        // The streams are made by the first operator; which server leads which of them is the servers' affair.
        drop(Operator::start(operator(0, "first")).await);
        let leader = cluster.leader_of("SIP_STATUS", 0).await;
        let disturbed = if is_leader { leader } else { (leader + 1) % 3 };
        let cancelling = Operator::start(operator(disturbed, "cancelling")).await;
        let recording = Operator::start(operator((disturbed + 1) % 3, "recording")).await;
        let this = Self { cluster, folder, disturbed, cancelling, recording };
        this.command(&["pause", "--for", "1h"]).await;
        this
    }

    fn other(&self) -> usize {
        (self.disturbed + 1) % 3
    }

    async fn command(&self, args: &[&str]) {
        eventually(format!("{args:?} succeeds"), PATIENCE, async || {
            cli::run(args, &[("NATS_URL", &self.cluster.servers[self.other()].url())]).await.code == Some(0)
        })
        .await;
    }

    async fn record_batch(&self) {
        let ids = (0..CALLS).map(|number| format!("call-{number}"));
        join_all(ids.map(|id| async move {
            let body = with(request("+49301", "hello"), json!({"id": id, "batch": "march"}));
            let accepted = async || post_call(self.recording.base(), &body).await.status == 202;
            eventually(format!("{id} is accepted"), PATIENCE, accepted).await;
        }))
        .await;
    }

    /// Cancels the batch, as often as the answer is to try again; asserts that all calls are cancelled by the first answer that is
    /// not, and that none is dialled.
    async fn every_call_is_cancelled(&self) {
        let answer = eventually_some("the batch is cancelled", PATIENCE, async || {
            let reply = delete(self.cancelling.base(), "/jobs?batch=march").await;
            assert!([202, 503].contains(&reply.status.as_u16()), "{reply:?}");
            (reply.status == 202).then_some(reply.json)
        })
        .await;
        assert_eq!(answer["cancelled"], CALLS, "{answer}");
        let js = self.cluster.servers[self.other()].jetstream().await;
        for number in 0..CALLS {
            let subject = format!("sip.status.{}", name_of(&format!("call-{number}")));
            let last = js.get_stream("SIP_STATUS").await.unwrap().get_last_raw_message_by_subject(&subject).await;
            let last: StatusEvent = serde_json::from_slice(&last.unwrap().payload).unwrap();
            assert_eq!(last.status, Status::Cancelled, "{number}");
        }
        self.command(&["resume"]).await;
        for stream in ["SIP_CALLS", "SIP_QUEUE", "SIP_DIAL"] {
            eventually(format!("{stream} is empty"), PATIENCE, async || queue_is_empty(&js, stream).await).await;
        }
        assert!(!self.folder.join("calls").exists(), "a cancelled call was dialled");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_cancelled_whole_by_way_of_a_server_that_was_stalled_when_it_was_recorded() {
    let setup = Disturbed::set(false).await;
    setup.cluster.stall(setup.disturbed);
    setup.record_batch().await;
    setup.cluster.go_on(setup.disturbed);
    setup.every_call_is_cancelled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_cancelled_whole_by_way_of_a_leader_that_was_stalled_and_deposed() {
    let setup = Disturbed::set(true).await;
    setup.cluster.stall(setup.disturbed);
    // Accepted only once another server leads.
    setup.record_batch().await;
    setup.cluster.go_on(setup.disturbed);
    setup.every_call_is_cancelled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_cancelled_whole_when_the_leader_is_killed() {
    let setup = Disturbed::set(true).await;
    setup.record_batch().await;
    setup.cluster.servers[setup.disturbed].kill();
    setup.every_call_is_cancelled().await;
}
