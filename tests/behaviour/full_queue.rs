//! A full queue: what does not fit is refused, and nothing that was accepted is forgotten.

use async_nats::jetstream::stream::DiscardPolicy;
use serde_json::json;
use sipstuff_operator::call::Status;

use crate::support::http::Reply;
use crate::support::{
    Operator, PATIENCE, Setup, accepted, delete, eventually_some, get_json, post_call, request, request_of, with,
};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_cannot_be_recorded_yet_is_cancelled_with_its_batch_or_the_answer_is_to_try_again() {
    let setup = Setup::local(0.1).await;
    let operator = setup.operator().await;
    let mut log = setup.js.get_stream("SIP_STATUS").await.unwrap();
    let settings = log.info().await.unwrap().config.clone();
    let mut full = settings.clone();
    (full.max_bytes, full.discard) = (1, DiscardPolicy::New);
    // As an operator that starts later would set it, so that this one leaves it.
    full.metadata.insert("sipstuff-operator.started".to_owned(), "2200-01-01T00:00:00Z".to_owned());
    setup.js.update_stream(full).await.unwrap();
    accepted(&operator, &with(request_of("march-1"), json!({"batch": "march"}))).await;
    let refused = delete(operator.base(), "/jobs?batch=march").await;
    assert_eq!(refused.status, 503, "{refused:?}");
    setup.js.update_stream(settings).await.unwrap();
    let cancelled = eventually_some("the batch is cancelled", PATIENCE, async || {
        let reply = delete(operator.base(), "/jobs?batch=march").await;
        (reply.status == 202).then_some(reply.json)
    })
    .await;
    // Unless it was dialled before that.
    let ended = cancelled["cancelled"].as_u64().unwrap() + cancelled["cancelling"].as_u64().unwrap();
    assert_eq!(ended + cancelled["ended"].as_u64().unwrap(), 1, "{cancelled}");
}
