//! Deleting stored messages, which the server then leaves on its disk until it compacts the file.
//!
//! Not by the client library's own call: that one has the server erase them, for which it writes the whole file anew, of up to 8 MiB,
//! and syncs it, for each message.

use async_nats::jetstream::Context;
use async_nats::jetstream::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::NatsError;
use super::get::{Which, ask_leader};

/// The server's code for a message that was deleted before.
const DELETED_BEFORE: u64 = 10043;

#[derive(Deserialize)]
struct Deleted {}

/// Deletes a message; that it is gone already is as good.
///
/// # Errors
/// [`NatsError`].
pub async fn delete(jetstream: &Context, stream: &str, sequence: u64) -> Result<(), NatsError> {
    let request = json!({ "seq": sequence, "no_erase": true });
    let answer = jetstream.request(format!("STREAM.MSG.DELETE.{stream}"), &request).await.map_err(NatsError::of)?;
    match answer {
        Response::Ok(Deleted {}) => Ok(()),
        Response::Err { error } if error.error_code().0 == DELETED_BEFORE => Ok(()),
        // Of a message that is out of the stream's range it has one code with any failure.
        Response::Err { error } => match ask_leader(jetstream, stream, Which::At { seq: sequence }).await? {
            None => Ok(()),
            Some(_) => Err(NatsError::of(error)),
        },
    }
}
