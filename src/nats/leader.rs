//! What a stream's leader says of it, when it may be trusted: a server that was stalled takes itself for the leader until it hears from
//! the others, and knows nothing of what was stored meanwhile.

use std::time::Duration;

use async_nats::jetstream::stream::{Info, Stream};

use super::NatsError;

/// For how long the leader of a stream counts as one without a word from the other servers: they answer its heartbeats, one a second.
const HEARD_WITHIN: Duration = Duration::from_secs(3);

/// The state of a stream, by the word of a leader that most of the stream's servers follow.
///
/// # Errors
/// [`NatsError`]; its kind is `Unavailable` when the server that answered is not the leader, or cannot show that it still is.
pub async fn info<I>(stream: &Stream<I>) -> Result<Info, NatsError> {
    let info = stream.get_info().await.map_err(NatsError::of)?;
    if is_followed(&info) {
        return Ok(info);
    }
    let name = &info.config.name;
    Err(NatsError::unavailable(format!("no server leads the stream {name}, or it has not heard from the others")))
}

/// Whether the server that answered leads the stream, and has heard from enough of the others to lead it still. A server that knows of
/// no leader answers as well, with what it has itself.
fn is_followed(info: &Info) -> bool {
    let Some(cluster) = info.cluster.as_ref().filter(|cluster| !cluster.replicas.is_empty()) else { return true };
    let heard = cluster.replicas.iter().filter(|other| other.active <= HEARD_WITHIN).count();
    cluster.leader_since.is_some() && (heard + 1) * 2 > cluster.replicas.len() + 1
}
