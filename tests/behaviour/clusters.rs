//! Several clusters on one queue: each carries on its own calls only.

use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{AckKind, Message};
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use sipstuff_operator::call::{Change, Ended, Outcome, Status};
use sipstuff_operator::nats::Names;
use sipstuff_operator::status_log::StatusLog;

use crate::support::{Operator, PATIENCE, Proxy, Setup, accepted, eventually, eventually_some, request, with};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_another_cluster_is_left_alone() {
    let setup = Setup::local(6.0).await;
    let mut first = setup.operator().await;
    accepted(&first, &with(request("+490", "a"), json!({"id": "theirs"}))).await;
    setup.becomes("theirs", Status::Running).await;
    first.terminate(PATIENCE).await;

    let second = Operator::start(setup.options_of_machine("other").env("SIMULATE_SECONDS", 0.2)).await;
    accepted(&second, &with(request("+491", "b"), json!({"id": "ours"}))).await;
    assert_eq!(setup.events.final_of("ours", PATIENCE).await.status, Status::Succeeded);
    eventually("the other cluster's call was looked at", PATIENCE, async || second.log().contains("Elsewhere")).await;
    drop(second);

    let _first = first.restart().await;
    assert_eq!(setup.events.final_of("theirs", PATIENCE).await.status, Status::Succeeded);
    assert_eq!(setup.calls_to("+490").len(), 1);
    setup.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_is_recorded_by_its_own_cluster_while_another_has_the_message_also_when_it_is_redialled() {
    let setup = Setup::local(3.0).await;
    let mut own = setup.operator().await;
    let again = json!({"id": "busy", "max_attempts": 2, "retry_delay": 1});
    accepted(&own, &with(request("+49486", "a"), again)).await;
    setup.becomes("busy", Status::Running).await;
    own.terminate(PATIENCE).await;

    // Another cluster has it, and hands it back only when the end is known.
    let message = handed_back(&setup).await;
    let own = own.restart().await;
    let failed = tokio::select! {
        failed = setup.becomes("busy", Status::Failed) => failed,
        () = keep_in_progress(&message) => unreachable!("it goes on"),
    };
    assert_eq!((failed.outcome, failed.attempt, failed.is_final), (Some(Outcome::Busy), 1, false), "{failed:?}");
    message.ack_with(AckKind::Nak(None)).await.expect("it is handed back");

    let end = setup.end_of("busy").await;
    assert_eq!((end.outcome, end.attempt), (Some(Outcome::Busy), 2), "{end:?}");
    assert_eq!(setup.calls_to("+49486").len(), 2);
    setup.queue_empties().await;
    drop(own);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_without_a_job_is_ended_by_its_own_cluster_while_another_has_the_message() {
    let setup = Setup::local(0.2).await;
    let options = setup.options().env("JOB_START_SECONDS", 1).env("JOB_DEADLINE_MARGIN_SECONDS", 120);
    let mut own = Operator::start(options.clone().failpoints("after-claim=pause")).await;
    accepted(&own, &with(request("+492", "a"), json!({"id": "claimed"}))).await;
    setup.becomes("claimed", Status::Pending).await;
    own.kill9();

    let message = handed_back(&setup).await;
    let own = Operator::start(options).await;
    let ended = tokio::select! {
        ended = setup.becomes("claimed", Status::Failed) => ended,
        () = keep_in_progress(&message) => unreachable!("it goes on"),
    };
    assert_eq!((ended.outcome, ended.is_final), (Some(Outcome::NotStarted), false), "{ended:?}");
    message.ack_with(AckKind::Nak(None)).await.expect("it is handed back");
    assert_eq!(setup.end_of("claimed").await.status, Status::Succeeded);
    assert_eq!(setup.calls_to("+492").len(), 1);
    setup.queue_empties().await;
    drop(own);
}

/// Whoever was cut off while an attempt ended, and comes back when the next one is under way, leaves that alone.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_after_the_next_attempt_has_begun_elsewhere_does_not_end_it() {
    let setup = Setup::local(3.0).await;
    let proxy = Proxy::start(format!("127.0.0.1:{}", setup.nats.port())).await;
    let own = Operator::start(setup.options().nats_url(proxy.url("nats"))).await;
    let again = json!({"id": "busy", "max_attempts": 2, "retry_delay": 1});
    accepted(&own, &with(request("+49486", "a"), again)).await;
    let running = setup.becomes("busy", Status::Running).await;
    proxy.stall(true);

    // Another replica records the end, and another cluster has the next attempt.
    eventually("the first attempt is over", PATIENCE, async || own.log().contains("will try again")).await;
    let log = StatusLog::open(setup.js.clone(), &Names::default(), Duration::from_secs(86_400)).await.unwrap();
    let next = running.attempt + 1;
    for change in [failed(), Change::Scheduled { due_at: now() }, Change::Queued, claimed(next, "other"), began()] {
        let last = log.last(&running.name).await.unwrap().unwrap();
        log.append(last.event.next(change, now()).unwrap(), last.sequence).await.unwrap();
    }
    proxy.stall(false);
    eventually("the message of the first attempt is settled", PATIENCE, async || setup.in_flight().await == 0).await;
    let last = setup.state("busy").await.unwrap();
    assert_eq!(
        (last.status, last.attempt, last.cluster.as_deref()),
        (Status::Running, next, Some("other")),
        "{last:?}"
    );
}

fn failed() -> Change {
    let (outcome, completed_at) = (Outcome::Busy, now());
    let (sip_code, exit_code, reason, message) = (Some(486), Some(1), None, None);
    Change::Ended(Ended { outcome, sip_code, exit_code, completed_at, reason, message, evidence: None, redial: true })
}

fn claimed(attempt: u32, cluster: &str) -> Change {
    let (cluster, namespace, trunk) = (cluster.to_owned(), "n".to_owned(), "default".to_owned());
    Change::Pending { attempt, cluster, namespace, trunk, ends_by: now() + SignedDuration::from_mins(10) }
}

fn began() -> Change {
    Change::Running { started_at: now() }
}

fn now() -> Timestamp {
    Timestamp::now()
}

/// A message of the window, once one is not in flight any more.
async fn handed_back(setup: &Setup) -> Message {
    eventually_some("a message is handed back", PATIENCE, async || {
        let queue: PullConsumer = setup.js.get_consumer_from_stream("dialler-default", "SIP_DIAL").await.ok()?;
        queue.fetch().max_messages(1).messages().await.ok()?.next().await?.ok()
    })
    .await
}

async fn keep_in_progress(message: &Message) {
    loop {
        message.ack_with(AckKind::Progress).await.expect("NATS is there");
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}
