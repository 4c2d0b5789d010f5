//! What waits to be dialled: the stream `SIP_QUEUE`, one message for each attempt that is to be made.
//!
//! Its subjects say what a call is, `sip.queue.<trunk>.<priority>.<due|new>.<batch>.<job>`, so that the oldest ones of any kind are one
//! direct get away, however many others wait, and a batch that is cancelled is one purge. There is no consumer: whoever feeds the
//! window takes what should be next and removes it here once it is there. A message that stays behind by a crash is offered again,
//! and the window or the status log knows it.

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::stream::{DeleteMessageError, DeleteMessageErrorKind, Stream};
use bytes::Bytes;

use crate::call::{Priority, StatusEvent};
use crate::nats::get::{self, Head};
use crate::nats::publish::publish;
use crate::nats::{Names, NatsError, NatsErrorKind};

/// The only trunk, where none are configured.
pub const DEFAULT_TRUNK: &str = "default";
/// The server's codes for there being no such message.
const NO_MESSAGE: [u64; 2] = [10037, 10057];
/// Stands for no batch; a batch begins with a letter or a digit.
const NO_BATCH: &str = "-";

/// Why a call waits: what comes due goes before what is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// It waited for its moment: a redial, or its `not_before`.
    Due,
    /// It is to be dialled for the first time.
    New,
}

impl Class {
    /// Both, in the order of dialling.
    pub const ALL: [Self; 2] = [Self::Due, Self::New];

    fn as_str(self) -> &'static str {
        match self {
            Self::Due => "due",
            Self::New => "new",
        }
    }

    /// Of a call that is queued.
    pub fn of(event: &StatusEvent) -> Self {
        if event.due_at.is_some() { Self::Due } else { Self::New }
    }
}

/// Which calls: any of those that wait, by what their subjects say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind<'a> {
    /// Their priority; any, where there is none.
    pub priority: Option<Priority>,
    /// Why they wait; for any reason, where there is none.
    pub class: Option<Class>,
    /// Their batch: any, where there is none; those without a batch, where it is `Some(None)`.
    pub batch: Option<Option<&'a str>>,
}

/// The calls that wait.
#[derive(Clone)]
pub struct Waiting {
    jetstream: Context,
    stream: Stream<()>,
    stream_name: String,
    prefix: String,
}

impl Waiting {
    /// Those in the stream that `names` names.
    ///
    /// # Errors
    /// [`NatsError`] when the name is none.
    pub async fn open(jetstream: Context, names: &Names) -> Result<Self, NatsError> {
        let stream = jetstream.get_stream_no_info(&names.queue_stream).await.map_err(NatsError::of)?;
        Ok(Self { jetstream, stream, stream_name: names.queue_stream.clone(), prefix: names.queue.clone() })
    }

    /// Puts an attempt of a queued call there; one that is there already stays as it is.
    ///
    /// # Errors
    /// [`NatsErrorKind::Full`] when there is no room for it.
    pub async fn put(
        &self,
        call: &StatusEvent,
        attempt: u32,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<(), NatsError> {
        let subject = self.subject(call, attempt);
        match publish(&self.jetstream, subject.clone().into(), headers, body).await {
            Err(error) if error.kind() == NatsErrorKind::Full && self.holds(&subject).await? => Ok(()),
            put => put.map(drop),
        }
    }

    /// Whether it has a message with this subject. The server refuses a second one, and says the same of a stream that is full.
    async fn holds(&self, subject: &str) -> Result<bool, NatsError> {
        let which = get::Which::Last { last_by_subj: subject };
        Ok(get::ask_leader(&self.jetstream, &self.stream_name, which).await?.is_some())
    }

    /// The oldest ones of a kind, at most so many, as any replica of the stream has them.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn oldest(&self, kind: Kind<'_>, at_most: usize) -> Result<Vec<Head>, NatsError> {
        get::oldest(&self.jetstream, &self.stream_name, &self.filter(kind), at_most).await
    }

    /// Removes a message. That it is not there any more is as good.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn remove(&self, sequence: u64) -> Result<(), NatsError> {
        match self.stream.delete_message(sequence).await {
            Err(error) if !is_gone(&error) => Err(NatsError::of(error)),
            _ => Ok(()),
        }
    }

    /// Removes an attempt of a call that does not wait any more.
    ///
    /// # Errors
    /// [`NatsError`]; it may be offered to the window then, which does no harm.
    pub async fn withdraw(&self, call: &StatusEvent) -> Result<(), NatsError> {
        let subject = self.subject(call, call.attempt + 1);
        self.stream.purge().filter(subject).await.map(drop).map_err(NatsError::of)
    }

    /// The last sequence that was given to a message.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn last_sequence(&self) -> Result<u64, NatsError> {
        Ok(self.stream.get_info().await.map_err(NatsError::of)?.state.last_sequence)
    }

    /// Removes the calls of a batch up to a sequence. What came later may have been published after the cancel.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn withdraw_batch(&self, batch: &str, up_to: u64) -> Result<(), NatsError> {
        let filter = self.filter(Kind { priority: None, class: None, batch: Some(Some(batch)) });
        self.stream.purge().filter(filter).sequence(up_to + 1).await.map(drop).map_err(NatsError::of)
    }

    fn subject(&self, call: &StatusEvent, attempt: u32) -> String {
        let (priority, class, batch) = (call.priority.as_str(), Class::of(call).as_str(), token(call.batch.as_deref()));
        format!("{}.{DEFAULT_TRUNK}.{priority}.{class}.{batch}.{}", self.prefix, call.name.job(attempt))
    }

    fn filter(&self, kind: Kind<'_>) -> String {
        let Kind { priority, class, batch } = kind;
        let priority = priority.map_or("*", Priority::as_str);
        let class = class.map_or("*", Class::as_str);
        let batch = batch.map_or_else(|| "*".to_owned(), token);
        format!("{}.{DEFAULT_TRUNK}.{priority}.{class}.{batch}.*", self.prefix)
    }
}

/// Whether another replica was faster.
fn is_gone(error: &DeleteMessageError) -> bool {
    let code = match error.kind() {
        DeleteMessageErrorKind::JetStream(answer) => answer.error_code().0,
        _ => return false,
    };
    NO_MESSAGE.contains(&code)
}

/// The Job that a message is for: the last token of its subject.
pub fn job_of(subject: &str) -> &str {
    subject.rsplit('.').next().unwrap_or(subject)
}

/// A batch as one token of a subject. It may hold dots, which end one, and no percent signs.
fn token(batch: Option<&str>) -> String {
    batch.map_or_else(|| NO_BATCH.to_owned(), |batch| batch.replace('.', "%2E"))
}
