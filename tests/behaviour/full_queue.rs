//! A full queue: what does not fit is refused, and nothing that was accepted is forgotten.

use serde_json::json;
use sipstuff_operator::call::Status;

use crate::support::http::Reply;
use crate::support::{Operator, PATIENCE, Setup, get_json, post_call, request, with};

/// An operator with a queue for three messages that dials one call at a time.
async fn operator_with_a_short_queue(setup: &Setup) -> Operator {
    Operator::start(setup.options().env("QUEUE_MAX_MESSAGES", 3).env("MAX_ACTIVE_CALLS", 1)).await
}

/// Submits calls until one is refused: the ids of those that were accepted, and the refusal.
async fn fill(operator: &Operator) -> (Vec<String>, Reply) {
    let mut accepted = Vec::new();
    loop {
        let id = format!("call-{}", accepted.len());
        let reply = post_call(operator.base(), &with(request("+490", "a"), json!({"id": id}))).await;
        match reply.status.as_u16() {
            202 => accepted.push(id),
            _ => return (accepted, reply),
        }
        assert!(accepted.len() < 10, "the queue never fills up");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_with_503_and_leaves_nothing_behind() {
    let setup = Setup::local(1.0).await;
    let operator = operator_with_a_short_queue(&setup).await;
    let (accepted, refused) = fill(&operator).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.headers.contains_key("retry-after"));
    let unknown = get_json(operator.base(), &format!("/jobs/call-{}", accepted.len())).await;
    assert_eq!(unknown.status, 404, "a refused call leaves nothing behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_forgets_nothing_that_it_accepted() {
    let setup = Setup::local(1.0).await;
    let operator = operator_with_a_short_queue(&setup).await;
    let (accepted, _) = fill(&operator).await;
    for id in &accepted {
        assert_eq!(setup.events.final_of(id, PATIENCE).await.status, Status::Succeeded);
    }
    assert_eq!(setup.calls_to("+490").len(), accepted.len());
}
