//! From a message to a call: decode → validate → identify.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};

use super::Delivery;
use super::inbox::HEADER_CALL_ID;
use crate::call::cloud_event::{self, Opened};
use crate::call::{Call, CallId, FieldError, Priority, Refusal, validate};

/// Header: the call's priority, where the body does not name one.
pub const HEADER_PRIORITY: &str = "Sip-Priority";
/// How much the clocks of two replicas may differ: a moment that one of them accepts must not be too far ahead for the other.
const CLOCKS_DIFFER_BY: SignedDuration = SignedDuration::from_hours(1);

/// Why a message is not a call, and whose it is when that much is known.
pub struct Unfit {
    /// The id that the message names.
    pub id: Option<CallId>,
    /// What is wrong.
    pub refusal: Refusal,
}

/// A call, and the request as it goes on from here: taken out of the envelope that it may have come in.
pub struct Decoded {
    /// The call.
    pub call: Call,
    /// The request.
    pub request: Bytes,
}

/// Makes a call of a message.
///
/// # Errors
/// [`Unfit`] when it cannot be one.
pub fn decode(delivery: &Delivery, now: Timestamp) -> Result<Decoded, Unfit> {
    let opened = cloud_event::open(delivery.header("content-type"), |name| delivery.header(name), &delivery.payload);
    let Opened { request, id: by_event } = opened.map_err(|refusal| Unfit { id: None, refusal })?;
    match validate::parse(&request, now + CLOCKS_DIFFER_BY) {
        Ok(parsed) => {
            let id = identify(delivery, parsed.id.or(by_event)).map_err(|refusal| Unfit { id: None, refusal })?;
            let mut spec = parsed.spec;
            if spec.priority.is_default()
                && let Some(priority) = priority(delivery).transpose().map_err(|refusal| unfit(&id, refusal))?
            {
                spec.priority = priority;
            }
            Ok(Decoded { call: Call::new(id, spec).in_trace(delivery.traceparent()), request })
        }
        Err(refusal) => {
            let body_id = match &refusal {
                Refusal::Invalid { id, .. } => id.clone(),
                Refusal::Malformed(_) => None,
            };
            Err(Unfit { id: body_id.or(by_event).or_else(|| named(delivery).and_then(Result::ok)), refusal })
        }
    }
}

fn unfit(id: &CallId, refusal: Refusal) -> Unfit {
    Unfit { id: Some(id.clone()), refusal }
}

/// The id in the body or of the event, else the one in a header, else one made of what the queue knows of the message.
fn identify(delivery: &Delivery, body_id: Option<CallId>) -> Result<CallId, Refusal> {
    match body_id.map(Ok).or_else(|| named(delivery)) {
        Some(named) => named,
        None => Ok(CallId::of_message(delivery.sequence, delivery.published)),
    }
}

/// The id that a header names.
fn named(delivery: &Delivery) -> Option<Result<CallId, Refusal>> {
    [HEADER_CALL_ID, "Nats-Msg-Id"].into_iter().find_map(|name| {
        let text = delivery.header(name)?;
        Some(CallId::parse(text).map_err(|error| refusal(name, error.to_string())))
    })
}

fn priority(delivery: &Delivery) -> Option<Result<Priority, Refusal>> {
    let text = delivery.header(HEADER_PRIORITY)?;
    let wrong = || refusal(HEADER_PRIORITY, format!("not valid; pass one of {}", Priority::WORDS.join(", ")));
    Some(Priority::parse(text).ok_or_else(wrong))
}

fn refusal(header: &str, message: String) -> Refusal {
    Refusal::Invalid { id: None, errors: vec![FieldError { field: header.to_owned(), message }] }
}
