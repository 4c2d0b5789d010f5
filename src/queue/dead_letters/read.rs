//! Reading dead letters, replaying them into the queue, deleting them.

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{DirectGetErrorKind, Stream};
use bytes::Bytes;

use super as dead;
use crate::call::{CallId, Refusal, Status, validate};
use crate::clock;
use crate::nats::delete::delete;
use crate::nats::publish::publish;
use crate::nats::{Names, NatsError};
use crate::queue::inbox::HEADER_CALL_ID;
use crate::status_log::StatusLog;

/// Prefix of all headers that say why a message is a dead letter.
const PREFIX_DEAD: &str = "Sip-Dead-";

/// The dead letters.
pub struct Letters {
    jetstream: Context,
    stream: Stream<()>,
    names: Names,
}

/// One of them.
#[derive(Debug, Clone)]
pub struct Letter {
    /// Its sequence among the dead letters: what it is called by.
    pub number: u64,
    /// Why it is one.
    pub reason: String,
    /// When it was put aside, RFC 3339.
    pub time: String,
    /// The id of the call that it asks for, where it names one.
    pub id: Option<CallId>,
    /// The message as it was published (cut, when [`Self::is_cut`]).
    pub payload: Bytes,
    /// Whether there was no room for all of it.
    pub is_cut: bool,
    headers: HeaderMap,
}

/// Why a dead letter was not sent back.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReplayError {
    /// A part of it is missing.
    #[error("dead letter {0} was cut, since it was as large as a message may be; send it with an edited payload")]
    Cut(u64),
    /// It would come back at once.
    #[error("dead letter {number} would be refused again: {refusal}")]
    StillRefused {
        /// Which.
        number: u64,
        /// Why.
        refusal: Refusal,
    },
    /// NATS does not answer.
    #[error(transparent)]
    Nats(#[from] NatsError),
}

impl Letters {
    /// The dead letters of the queue.
    ///
    /// # Errors
    /// [`NatsError`] when the name is none.
    pub async fn open(jetstream: Context, names: Names) -> Result<Self, NatsError> {
        let stream = jetstream.get_stream_no_info(&names.dead_stream).await.map_err(NatsError::of)?;
        Ok(Self { jetstream, stream, names })
    }

    /// The first letter whose number is `from` or higher.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn next(&self, from: u64) -> Result<Option<Letter>, NatsError> {
        let found = self.stream.direct_get_next_for_subject(self.names.dead.clone(), Some(from)).await;
        self.found(found)
    }

    /// The letter with that number.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn get(&self, number: u64) -> Result<Option<Letter>, NatsError> {
        self.found(self.stream.direct_get(number).await)
    }

    fn found(
        &self,
        found: Result<StreamMessage, async_nats::jetstream::stream::DirectGetError>,
    ) -> Result<Option<Letter>, NatsError> {
        match found {
            Ok(message) => Ok(Some(Letter::of(message))),
            Err(error) => match error.kind() {
                DirectGetErrorKind::NotFound => Ok(None),
                DirectGetErrorKind::ErrorResponse(status, _) if status.as_u16() == 404 => Ok(None),
                _ => Err(NatsError::of(error)),
            },
        }
    }

    /// Sends a letter back into the queue, with another payload if one is given, then removes it. Its call has an id from then
    /// on, so that a crash in between, after which it is sent once more, places no second call.
    ///
    /// # Errors
    /// [`ReplayError`]; the letter is still there then.
    pub async fn replay(&self, letter: &Letter, log: &StatusLog, edited: Option<Bytes>) -> Result<CallId, ReplayError> {
        let number = letter.number;
        let payload = match edited {
            Some(payload) => payload,
            None if letter.is_cut => return Err(ReplayError::Cut(number)),
            None => letter.payload.clone(),
        };
        let refused = |refusal| ReplayError::StillRefused { number, refusal };
        let id = validate::parse(&payload, clock::now()).map_err(refused)?.id.unwrap_or_else(|| letter.id_or_origin());
        self.allow_again(&id, log).await?;
        self.publish(&id, letter, payload).await?;
        self.remove(number).await?;
        Ok(id)
    }

    /// A call that was rejected because of this message may now be made.
    async fn allow_again(&self, id: &CallId, log: &StatusLog) -> Result<(), NatsError> {
        let name = id.name();
        match log.last(&name).await? {
            Some(last) if last.event.status == Status::Rejected && last.event.attempt == 0 => log.forget(&name).await,
            _ => Ok(()),
        }
    }

    async fn publish(&self, id: &CallId, letter: &Letter, payload: Bytes) -> Result<(), NatsError> {
        let mut headers = letter.original_headers();
        headers.insert(HEADER_CALL_ID, id.as_str());
        publish(&self.jetstream, self.names.calls.clone().into(), headers, payload).await.map(drop)
    }

    /// Deletes a letter; one that is gone is fine.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn remove(&self, number: u64) -> Result<(), NatsError> {
        delete(&self.jetstream, &self.names.dead_stream, number).await
    }

    /// Deletes all letters and returns how many there were.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn remove_all(&self) -> Result<u64, NatsError> {
        self.stream.purge().await.map(|purged| purged.purged).map_err(NatsError::of)
    }
}

impl Letter {
    fn of(message: StreamMessage) -> Self {
        let header = |name: &str| message.headers.get(name).map(|value| value.as_str().to_owned());
        let in_body = match validate::parse(&message.payload, clock::now()) {
            Ok(parsed) => parsed.id,
            Err(Refusal::Invalid { id, .. }) => id,
            Err(Refusal::Malformed(_)) => None,
        };
        let named = || header(HEADER_CALL_ID).or_else(|| header(&format!("{}Nats-Msg-Id", dead::PREFIX_ORIGINAL)));
        Self {
            number: message.sequence,
            reason: header(dead::HEADER_REASON).unwrap_or_default(),
            time: header(dead::HEADER_TIME).unwrap_or_default(),
            id: in_body.or_else(|| CallId::parse(named()?).ok()),
            is_cut: header(dead::HEADER_TRUNCATED).is_some(),
            payload: message.payload,
            headers: message.headers,
        }
    }

    /// The call's id; where the message names none, the one that the queue would have given it: the same for a second letter of
    /// the same message, so that sending both back places one call.
    fn id_or_origin(&self) -> CallId {
        let origin = || CallId::parse(self.headers.get("Nats-Msg-Id")?.as_str()).ok();
        self.id.clone().or_else(origin).unwrap_or_else(clock::fresh_id)
    }

    /// The message's own headers, without what was added to it and without what the server would act upon.
    fn original_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, values) in self.headers.iter() {
            let text: &str = name.as_ref();
            let is_ours = text.starts_with(PREFIX_DEAD) || text.starts_with(dead::PREFIX_ORIGINAL);
            if is_ours || text.to_ascii_lowercase().starts_with("nats-") {
                continue;
            }
            for value in values {
                headers.append(name.clone(), value.clone());
            }
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_letters_of_one_message_ask_for_one_call() {
        let letter = |number: u64, time: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", "7@2030-01-01T00:00:00Z");
            let (reason, time) = (String::new(), time.to_owned());
            Letter { number, reason, time, id: None, payload: Bytes::new(), is_cut: false, headers }
        };
        let (one, other) = (letter(1, "2030-01-01T00:00:01Z"), letter(2, "2030-01-01T01:00:00Z"));
        assert_eq!(one.id_or_origin(), other.id_or_origin());
        assert_eq!(one.id_or_origin().as_str(), "7@2030-01-01T00:00:00Z");
    }
}
