//! What an answered call was like: who hung up, and how much they heard.

use serde_json::json;
use sipstuff_operator::call::{Heard, Outcome, Party, Status};

use crate::support::{Operator, Setup, accepted, get_json, request_of, with};

#[tokio::test(flavor = "multi_thread")]
async fn how_much_of_the_announcement_was_heard_is_told() {
    let cases = [
        ("full", Heard::Full, Party::Caller, Some((2, 2))),
        ("part", Heard::Part, Party::Callee, Some((0, 2))),
        ("none", Heard::None, Party::Callee, None),
    ];
    for (simulated, heard, by, passes) in cases {
        let setup = Setup::local(0.8).await;
        let operator = Operator::start(setup.options().env("SIMULATE_HEARD", simulated)).await;
        accepted(&operator, &with(request_of(simulated), json!({"repeat": 2, "batch": "march"}))).await;
        let end = setup.end_of(simulated).await;
        assert_eq!((end.status, end.outcome, end.reason), (Status::Succeeded, Some(Outcome::Answered), None));
        let evidence = &end.evidence;
        assert_eq!((evidence.heard, evidence.hung_up_by), (Some(heard), Some(by)), "{evidence:?}");
        assert_eq!(evidence.passes_heard.zip(evidence.passes), passes, "{evidence:?}");
        // It rings for a quarter of the time.
        assert!(evidence.talk_seconds.is_some_and(|seconds| (0.4..5.0).contains(&seconds)), "{evidence:?}");
        let moments = [evidence.ringing_at, evidence.answered_at, evidence.ended_at];
        assert!(moments.iter().all(Option::is_some) && moments.is_sorted(), "{moments:?}");
        let shown = get_json(operator.base(), &format!("/jobs/{simulated}")).await.json;
        assert_eq!((&shown["heard"], &shown["hung_up_by"]), (&json!(heard), &json!(by)), "{shown}");
        let batch = get_json(operator.base(), "/batches/march").await.json;
        assert_eq!(batch["heard"], json!({simulated: 1}), "{batch}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_log_cannot_be_read_nobody_guesses_and_the_reason_says_why() {
    // There is no kubelet that would have the log.
    let setup = Setup::kubernetes(0.2).await;
    let operator = setup.operator().await;
    accepted(&operator, &request_of("unheard")).await;
    let end = setup.end_of("unheard").await;
    assert_eq!((end.status, end.evidence.heard), (Status::Succeeded, None), "{end:?}");
    let reason = end.reason.unwrap();
    assert!(reason.starts_with("what was heard is not known: the log of the caller cannot be read: "), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_heard_nothing_is_called_again_where_the_request_says_so() {
    let setup = Setup::local(0.2).await;
    let operator = Operator::start(setup.options().env("SIMULATE_HEARD", "none")).await;
    let again = json!({"max_attempts": 2, "retry_delay": 1, "redial_on": ["heard:none"]});
    accepted(&operator, &with(request_of("again"), again)).await;
    let end = setup.end_of("again").await;
    assert_eq!((end.status, end.attempt, end.evidence.heard), (Status::Succeeded, 2, Some(Heard::None)), "{end:?}");
    use Status::*;
    let expected = [Queued, Pending, Running, Failed, Scheduled, Queued, Pending, Running, Succeeded];
    assert_eq!(setup.statuses("again").await, expected);
    let first = setup.history("again").await.into_iter().find(|event| event.status == Failed).unwrap();
    assert_eq!(
        (first.outcome, first.evidence.heard, first.is_final),
        (Some(Outcome::Answered), Some(Heard::None), false)
    );
    assert_eq!(setup.calls_with("again"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_nobody_answered_has_no_evidence() {
    let setup = Setup::local(0.2).await;
    let operator = setup.operator().await;
    accepted(&operator, &with(request_of("busy"), json!({"dest": "+4930486"}))).await;
    let end = setup.end_of("busy").await;
    assert_eq!((end.outcome, end.evidence), (Some(Outcome::Busy), Default::default()));
}
