//! Redial: a call whose attempt failed is dialled again if the outcome says that it may help.

use jiff::SignedDuration;
use serde_json::json;
use sipstuff_operator::call::{Outcome, Status};

use crate::support::{PATIENCE, Setup, accepted, request, with};

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_callee_is_called_again_after_a_delay_that_doubles() {
    let setup = Setup::local(0.2).await;
    let operator = setup.operator().await;
    let again = json!({"id": "busy", "max_attempts": 3, "retry_delay": 1});
    accepted(&operator, &with(request("+49486", "a"), again)).await;

    let end = setup.events.final_of("busy", PATIENCE).await;
    assert_eq!(
        (end.status, end.attempt, end.outcome, end.sip_code),
        (Status::Failed, 3, Some(Outcome::Busy), Some(486))
    );
    let starts = setup.calls_to("+49486");
    assert_eq!(starts.len(), 3);
    assert!(starts[2].duration_since(starts[1]) >= SignedDuration::from_secs(2), "the delay doubles: {starts:?}");
    setup.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attempt_is_reported_and_only_the_last_is_final() {
    let setup = Setup::local(0.2).await;
    let operator = setup.operator().await;
    let again = json!({"id": "busy", "max_attempts": 3, "retry_delay": 1});
    accepted(&operator, &with(request("+49486", "a"), again)).await;

    setup.events.final_of("busy", PATIENCE).await;
    use Status::*;
    let attempt = [Queued, Pending, Running, Failed, Scheduled];
    let expected = [&attempt, &attempt, &attempt[..4]].concat();
    assert_eq!(setup.events.statuses_of("busy"), expected);
    let finals = setup.events.events_of("busy").iter().filter(|event| event.is_final).count();
    assert_eq!(finals, 1, "only the last attempt is the end of the call");
    setup.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callee_who_declined_is_not_called_again() {
    let setup = Setup::local(0.2).await;
    let operator = setup.operator().await;
    let declined = json!({"id": "declined", "max_attempts": 3, "retry_delay": 1});
    accepted(&operator, &with(request("+49603", "b"), declined)).await;

    let end = setup.events.final_of("declined", PATIENCE).await;
    assert_eq!((end.attempt, end.outcome), (1, Some(Outcome::Declined)));
    setup.queue_empties().await;
    assert_eq!(setup.calls_to("+49603").len(), 1);
}
