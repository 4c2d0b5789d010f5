//! The gate of a pod: what happens between a claim and the moment that its pod is let through.

use std::time::Duration;

use serde_json::json;
use sipstuff_operator::call::Status;

use crate::support::{Operator, PATIENCE, Setup, accepted, eventually, in_seconds, request_of, with};

/// An operator that stands still for some seconds once it has made a Job, as if Kubernetes were slow to make the pod.
async fn slow(setup: &Setup) -> Operator {
    Operator::start(setup.options().failpoints("after-start=sleep(10000)")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_comes_while_the_pod_is_made_holds_the_call_at_its_gate() {
    tokio::join!(
        holds(&["pause", "--for", "1h"], &["resume"]),
        holds(&["pause", "--trunk", "default"], &["resume", "--trunk", "default"]),
    );
}

async fn holds(pause: &[&str], resume: &[&str]) {
    let setup = Setup::kubernetes(0.2).await;
    let operator = slow(&setup).await;
    accepted(&operator, &request_of("held")).await;
    eventually("its Job is there", PATIENCE, async || setup.jobs().await.len() == 1).await;
    assert_eq!(setup.command(pause).await.code, Some(0));
    tokio::time::sleep(Duration::from_secs(12)).await;
    let state = setup.state("held").await.unwrap();
    assert_eq!((state.status, state.pod), (Status::Pending, None), "{pause:?}");
    assert_eq!(setup.node().start_count(), 0, "{pause:?}");

    assert_eq!(setup.command(resume).await.code, Some(0));
    assert_eq!(setup.end_of("held").await.status, Status::Succeeded);
    setup.was_placed_once("held").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_too_late_once_its_pod_is_made_expires_and_nobody_is_dialled() {
    let setup = Setup::kubernetes(0.2).await;
    let operator = slow(&setup).await;
    accepted(&operator, &with(request_of("late"), json!({"not_after": in_seconds(8)}))).await;
    eventually("its Job is there", PATIENCE, async || setup.jobs().await.len() == 1).await;
    assert_eq!(setup.end_of("late").await.status, Status::Expired);
    eventually("its Job is removed", PATIENCE, async || setup.jobs().await.is_empty()).await;
    setup.queue_empties().await;
    assert_eq!(setup.node().start_count(), 0);
}
