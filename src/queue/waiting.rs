//! What waits to be dialled: the stream `SIP_QUEUE`, one message for each attempt that is to be made.
//!
//! Its subjects say what a call is, `sip.queue.<trunks>.<priority>.<due|new>.<batch>.<job>`, so that the oldest ones of any kind are one
//! direct get away, however many others wait, and a batch that is cancelled is one purge. There is no consumer: whoever feeds the
//! window takes what should be next and removes it here once it is there. A message that stays behind by a crash is offered again,
//! and the window or the status log knows it.

use std::collections::BTreeSet;

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::stream::Stream;
use bytes::Bytes;
use futures::StreamExt;

use crate::call::{Call, Priority, StatusEvent};
use crate::nats::delete::delete;
use crate::nats::get::{self, Head};
use crate::nats::publish::publish;
use crate::nats::{Names, NatsError, NatsErrorKind};
use crate::policy::TrunkGroup;

/// Header of a message that was taken back from the window: its sequence there.
const HEADER_TAKEN_BACK: &str = "Sip-Taken-Back";
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
    /// The trunks that may dial them; any, where there is none.
    pub trunks: Option<&'a TrunkGroup>,
    /// Their priority; any, where there is none.
    pub priority: Option<Priority>,
    /// Why they wait; for any reason, where there is none.
    pub class: Option<Class>,
    /// Their batch: any, where there is none; those without a batch, where it is `Some(None)`.
    pub batch: Option<Option<&'a str>>,
}

impl Kind<'_> {
    /// All that wait.
    pub const ANY: Self = Kind { trunks: None, priority: None, class: None, batch: None };
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

    /// Puts an attempt of a queued call there, for the trunks that may dial it; one that is there already stays as it is.
    ///
    /// # Errors
    /// [`NatsErrorKind::Full`] when there is no room for it.
    pub async fn put(
        &self,
        call: &StatusEvent,
        attempt: u32,
        trunks: &TrunkGroup,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<(), NatsError> {
        let (priority, class, batch) = (call.priority.as_str(), Class::of(call).as_str(), token(call.batch.as_deref()));
        let job = call.name.job(attempt);
        self.put_as(format!("{}.{trunks}.{priority}.{class}.{batch}.{job}", self.prefix), headers, body).await
    }

    /// Takes back an attempt that was in the window and may not be begun now. It goes before what is new, as if it had come due. `message` is
    /// its sequence there, by which the feed knows that the window has it only until this is done. False when the message that was offered
    /// to the window is still here: whoever offered it is about to remove it, so the attempt must stay in the window for now.
    ///
    /// # Errors
    /// As for [`Self::put`].
    pub async fn take_back(
        &self,
        call: &Call,
        attempt: u32,
        trunks: &TrunkGroup,
        message: u64,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Result<bool, NatsError> {
        let (priority, batch) = (call.spec.priority.as_str(), token(call.spec.batch.as_deref()));
        let (class, job) = (Class::Due.as_str(), call.name.job(attempt));
        headers.insert(HEADER_TAKEN_BACK, message.to_string().as_str());
        let subject = format!("{}.{trunks}.{priority}.{class}.{batch}.{job}", self.prefix);
        match publish(&self.jetstream, subject.clone().into(), headers, body).await {
            Err(error) if error.kind() == NatsErrorKind::Full => {
                let present = get::oldest(&self.jetstream, &self.stream_name, &subject, 1, 1).await?;
                let present = present.first().ok_or(error)?;
                Ok(taken_back_from(present) == Some(message))
            }
            put => put.map(|_| true),
        }
    }

    async fn put_as(&self, subject: String, headers: HeaderMap, body: Bytes) -> Result<(), NatsError> {
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
        self.oldest_from(1, kind, at_most).await
    }

    /// The same, of those with this sequence or a later one.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn oldest_from(&self, first: u64, kind: Kind<'_>, at_most: usize) -> Result<Vec<Head>, NatsError> {
        get::oldest(&self.jetstream, &self.stream_name, &self.filter(kind), first, at_most).await
    }

    /// Removes a message. That it is not there any more is as good.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn remove(&self, sequence: u64) -> Result<(), NatsError> {
        delete(&self.jetstream, &self.stream_name, sequence).await
    }

    /// Removes an attempt of a call that does not wait any more.
    ///
    /// # Errors
    /// [`NatsError`]; it may be offered to the window then, which does no harm.
    pub async fn withdraw(&self, call: &StatusEvent) -> Result<(), NatsError> {
        self.stream.purge().filter(self.anywhere(call)).await.map(drop).map_err(NatsError::of)
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
        self.withdraw_all(Kind { batch: Some(Some(batch)), ..Kind::ANY }, up_to).await
    }

    /// The same for the calls of a group of trunks.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn withdraw_group(&self, trunks: &TrunkGroup, up_to: u64) -> Result<(), NatsError> {
        self.withdraw_all(Kind { trunks: Some(trunks), ..Kind::ANY }, up_to).await
    }

    async fn withdraw_all(&self, kind: Kind<'_>, up_to: u64) -> Result<(), NatsError> {
        let purge = self.stream.purge().filter(self.filter(kind)).sequence(up_to + 1);
        purge.await.map(drop).map_err(NatsError::of)
    }

    /// The message of the next attempt of a call, as any replica of the stream has it.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn find(&self, call: &StatusEvent) -> Result<Option<Head>, NatsError> {
        let filter = self.anywhere(call);
        Ok(get::oldest(&self.jetstream, &self.stream_name, &filter, 1, 1).await?.pop())
    }

    /// The subject of the next attempt of a call, whatever it waits for.
    fn anywhere(&self, call: &StatusEvent) -> String {
        let (priority, batch) = (call.priority.as_str(), token(call.batch.as_deref()));
        format!("{}.*.{priority}.*.{batch}.{}", self.prefix, call.name.job(call.attempt + 1))
    }

    /// What the subject of a message says.
    pub fn place_of(&self, subject: &str) -> Option<(TrunkGroup, Class)> {
        let class = subject.strip_prefix(&self.prefix)?.split('.').nth(3)?;
        Some((self.group_of(subject)?, Class::ALL.into_iter().find(|known| known.as_str() == class)?))
    }

    /// How many of a kind wait, as any replica of the stream has them.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn count(&self, kind: Kind<'_>) -> Result<u64, NatsError> {
        Ok(self.oldest(kind, 1).await?.first().map_or(0, |head| head.after + 1))
    }

    /// Every group of trunks that calls wait for. It asks for the subject of every message, so it is for when trunks have changed.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn groups(&self) -> Result<BTreeSet<TrunkGroup>, NatsError> {
        let mut subjects = self.stream.info_with_subjects(self.filter(Kind::ANY)).await.map_err(NatsError::of)?;
        let mut groups = BTreeSet::new();
        while let Some(subject) = subjects.next().await {
            let (subject, _) = subject.map_err(NatsError::of)?;
            groups.extend(self.group_of(&subject));
        }
        Ok(groups)
    }

    /// Lets a message wait for other trunks.
    ///
    /// # Errors
    /// [`NatsError`]; it may wait for both then, and the window or the log knows the one that is left.
    pub async fn regroup(&self, head: Head, trunks: &TrunkGroup) -> Result<(), NatsError> {
        let Some(group) = self.group_of(&head.subject).filter(|group| group != trunks) else { return Ok(()) };
        let rest = &head.subject[self.prefix.len() + 1 + group.as_str().len()..];
        self.put_as(format!("{}.{trunks}{rest}", self.prefix), head.headers, head.payload).await?;
        self.remove(head.sequence).await
    }

    fn group_of(&self, subject: &str) -> Option<TrunkGroup> {
        let rest = subject.strip_prefix(&self.prefix)?.strip_prefix('.')?;
        rest.split('.').next().map(TrunkGroup::from_token)
    }

    fn filter(&self, kind: Kind<'_>) -> String {
        let Kind { trunks, priority, class, batch } = kind;
        let trunks = trunks.map_or("*", TrunkGroup::as_str);
        let priority = priority.map_or("*", Priority::as_str);
        let class = class.map_or("*", Class::as_str);
        let batch = batch.map_or_else(|| "*".to_owned(), token);
        format!("{}.{trunks}.{priority}.{class}.{batch}.*", self.prefix)
    }
}

/// The message of the window that one which waits was taken back from.
pub fn taken_back_from(head: &Head) -> Option<u64> {
    head.headers.get(HEADER_TAKEN_BACK)?.as_str().parse().ok()
}

/// The batch in the subject of a message that waits.
pub fn batch_of(subject: &str) -> Option<String> {
    let token = subject.rsplit('.').nth(1).filter(|token| *token != NO_BATCH)?;
    Some(token.replace("%2E", "."))
}

/// The Job that a message is for: the last token of its subject.
pub fn job_of(subject: &str) -> &str {
    subject.rsplit('.').next().unwrap_or(subject)
}

/// A batch as one token of a subject. It may hold dots, which end one, and no percent signs.
fn token(batch: Option<&str>) -> String {
    batch.map_or_else(|| NO_BATCH.to_owned(), |batch| batch.replace('.', "%2E"))
}
