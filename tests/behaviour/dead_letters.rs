//! Dead letters: what was put aside can be listed, shown, sent back and removed.

use serde_json::json;
use sipstuff_operator::call::Status;

use crate::support::status::messages_in;
use crate::support::{Operator, PATIENCE, Setup, eventually, get_json, request, with};

/// An operator with one dead letter: a request with a misspelt field, an id and a password.
async fn with_a_dead_letter(setup: &Setup) -> Operator {
    let operator = setup.operator().await;
    let bad = json!({"id": "typo", "dst": "+490", "text": "a", "sip_password": "s3cret"});
    setup.publish(&[], bad.to_string()).await;
    assert_eq!(setup.events.final_of("typo", PATIENCE).await.status, Status::Rejected);
    setup.queue_empties().await;
    operator
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_with_their_reasons() {
    let setup = Setup::local(0.2).await;
    let _operator = with_a_dead_letter(&setup).await;
    let listed = setup.command(&["dead", "list"]).await.text();
    assert!(listed.contains("typo") && listed.contains("dst"), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_shown_without_its_password() {
    let setup = Setup::local(0.2).await;
    let _operator = with_a_dead_letter(&setup).await;
    let shown = setup.command(&["dead", "show", "1"]).await.text();
    assert!(shown.contains("\"dst\"") && !shown.contains("s3cret"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_would_be_refused_again_is_not_sent_back() {
    let setup = Setup::local(0.2).await;
    let _operator = with_a_dead_letter(&setup).await;
    let refused = setup.command(&["dead", "replay", "1"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.text());
    assert_eq!(messages_in(&setup.js, "SIP_DEAD").await, 1, "what would be refused again stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_dead_letter_is_sent_back_and_becomes_a_call() {
    let setup = Setup::local(0.2).await;
    let operator = with_a_dead_letter(&setup).await;
    let good = with(request("+490", "a"), json!({"id": "typo"})).to_string();
    let replayed = setup.command(&["dead", "replay", "1", "--data", &good]).await;
    assert_eq!(replayed.code, Some(0), "{}", replayed.text());
    let ended = async || get_json(operator.base(), "/jobs/typo").await.json["status"] == "succeeded";
    eventually("the edited call succeeds", PATIENCE, ended).await;
    assert_eq!(messages_in(&setup.js, "SIP_DEAD").await, 0);
    assert_eq!(setup.calls_to("+490").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_purged() {
    let setup = Setup::local(0.2).await;
    let _operator = setup.operator().await;
    setup.publish(&[], "not json").await;
    eventually("a dead letter", PATIENCE, async || messages_in(&setup.js, "SIP_DEAD").await == 1).await;
    assert!(setup.command(&["dead", "purge", "--all"]).await.text().contains("1 deleted"));
    assert_eq!(messages_in(&setup.js, "SIP_DEAD").await, 0);
}
