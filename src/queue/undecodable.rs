//! Messages that the client library cannot hand over: a header block that is not UTF-8, or has a line without a colon, ends
//! the connection. So nobody sees the message, it comes again after every ack wait, and whatever is delivered beside it is
//! lost until then.
//!
//! So what comes again is read by its sequence in the stream, where headers are Base64 and harm nobody.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::response::Response;
use async_nats::{HeaderMap, HeaderName};
use data_encoding::BASE64;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Delivery;
use crate::nats::delete::delete;
use crate::nats::get::NO_MESSAGE;
use crate::nats::{Names, NatsError, timestamp};
use crate::retry::{self, Retry};

/// How often is looked whether a message comes again: well within the ack wait.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Messages that are read at most each time.
const READS_PER_LOOK: usize = 100;

/// Header of a dead letter: the header block that could not be read, as far as it is text.
const HEADER_BLOCK: &str = "Sip-Original-Headers";

/// Looks until `stop`; `put_aside` gets each message that cannot be decoded, with what is wrong with it, before it is removed from
/// the queue.
pub async fn watch<F, Done>(jetstream: Context, names: Names, stop: CancellationToken, put_aside: F)
where
    F: Fn(Delivery, String) -> Done,
    Done: Future<Output = Result<(), NatsError>>,
{
    let mut known = Known::default();
    let mut retry = Retry::new("look for messages that cannot be decoded");
    while !stop.is_cancelled() {
        retry::sleep(&stop, LOOK_EVERY).await;
        let looked = tokio::select! {
            looked = look(&jetstream, &names, &mut known, &put_aside) => looked,
            () = stop.cancelled() => return,
        };
        match looked {
            Ok(()) => retry.worked(),
            Err(error) => retry::sleep(&stop, retry.failed(error.chain())).await,
        }
    }
}

/// The messages that were looked at and can be decoded, by their sequences. With when the consumer was made: in a stream that was
/// lost and made again, the same sequences are other messages.
#[derive(Default)]
struct Known {
    decodable: BTreeSet<u64>,
    consumer: Option<Timestamp>,
}

impl Known {
    fn begin(&mut self, consumer: Timestamp, acknowledged: u64) {
        if self.consumer.replace(consumer) != Some(consumer) {
            self.decodable.clear();
        }
        self.decodable = self.decodable.split_off(&(acknowledged + 1));
    }

    /// The first sequence in this range that is worth a request.
    fn first_unknown(&self, mut range: RangeInclusive<u64>) -> Option<u64> {
        range.find(|sequence| !self.decodable.contains(sequence))
    }
}

/// While messages come again: looks at those that are delivered and not known, the oldest first, since one that
/// cannot be decoded is never acknowledged. Each is read once, and so many at most.
async fn look<F, Done>(jetstream: &Context, names: &Names, known: &mut Known, put_aside: &F) -> Result<(), NatsError>
where
    F: Fn(Delivery, String) -> Done,
    Done: Future<Output = Result<(), NatsError>>,
{
    let consumer: PullConsumer = jetstream
        .get_consumer_from_stream(&names.admission_consumer, &names.calls_stream)
        .await
        .map_err(NatsError::of)?;
    let info = consumer.cached_info();
    let (acknowledged, last) = (info.ack_floor.stream_sequence, info.delivered.stream_sequence);
    known.begin(timestamp(info.created.unix_timestamp_nanos()), acknowledged);
    if info.num_redelivered == 0 {
        return Ok(());
    }
    let mut next = acknowledged + 1;
    for _ in 0..READS_PER_LOOK {
        let Some(sequence) = known.first_unknown(next..=last) else { break };
        let Some(stored) = Stored::from(jetstream, names, sequence).await? else { break };
        next = stored.seq + 1;
        if stored.seq > last {
            break;
        }
        if !known.decodable.contains(&stored.seq) {
            judge(jetstream, names, stored, put_aside).await?;
            known.decodable.insert(next - 1);
        }
    }
    Ok(())
}

/// Puts a message aside and removes it, if it cannot be decoded.
async fn judge<F, Done>(jetstream: &Context, names: &Names, stored: Stored, put_aside: &F) -> Result<(), NatsError>
where
    F: Fn(Delivery, String) -> Done,
    Done: Future<Output = Result<(), NatsError>>,
{
    let Err(problem) = stored.headers_can_be_read() else { return Ok(()) };
    let sequence = stored.seq;
    put_aside(stored.into_delivery(), problem.to_owned()).await?;
    delete(jetstream, &names.calls_stream, sequence).await
}

/// A message as the stream's API shows it.
#[derive(Debug, Deserialize)]
struct Stored {
    subject: String,
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    time: Timestamp,
}

#[derive(Deserialize)]
struct Answer {
    message: Stored,
}

impl Stored {
    /// The first message of the queue from that sequence on.
    async fn from(jetstream: &Context, names: &Names, sequence: u64) -> Result<Option<Self>, NatsError> {
        let subject = format!("STREAM.MSG.GET.{}", names.calls_stream);
        let request = json!({"seq": sequence, "next_by_subj": names.calls});
        match jetstream.request(subject, &request).await.map_err(NatsError::of)? {
            Response::Ok(Answer { message }) => Ok(Some(message)),
            Response::Err { error } if error.error_code().0 == NO_MESSAGE => Ok(None),
            Response::Err { error } => Err(NatsError::of(error)),
        }
    }

    fn block(&self) -> Vec<u8> {
        BASE64.decode(self.hdrs.as_bytes()).unwrap_or_default()
    }

    fn headers_can_be_read(&self) -> Result<(), &'static str> {
        let block = self.block();
        if block.is_empty() { Ok(()) } else { can_be_read(&block) }
    }

    fn into_delivery(self) -> Delivery {
        let mut headers = HeaderMap::new();
        let text = String::from_utf8_lossy(&self.block()).replace(char::is_control, " ");
        headers.insert(HEADER_BLOCK, text.as_str());
        let payload = BASE64.decode(self.data.as_bytes()).unwrap_or_default().into();
        Delivery {
            payload,
            headers,
            subject: self.subject,
            sequence: self.seq,
            deliveries: 1,
            published: self.time,
            reply: "nobody.waits".into(),
        }
    }
}

/// Whether the client library hands a message with this header block over.
fn can_be_read(block: &[u8]) -> Result<(), &'static str> {
    let mut lines = str::from_utf8(block).map_err(|_| "they are not UTF-8")?.lines();
    if !lines.next().is_some_and(|line| line.starts_with("NATS/1.0")) {
        return Err("they do not begin with `NATS/1.0`");
    }
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with(char::is_whitespace)) {
        let (name, _) = line.split_once(':').ok_or("a line has no colon")?;
        HeaderName::from_str(name).map_err(|_| "a name has a character that is not allowed")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_library_reads_is_told_from_what_it_does_not() {
        let good: [&[u8]; 5] = [
            b"NATS/1.0\r\n\r\n",
            b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
            b"NATS/1.0\r\nNats-Msg-Id: a\r\nX: b: c\r\n\r\n",
            "NATS/1.0\r\nX:M\u{fc}ller\r\n\r\n".as_bytes(),
            b"NATS/1.0\r\nX: a\r\n  b\r\n\r\n",
        ];
        for block in good {
            assert_eq!(can_be_read(block), Ok(()), "{}", String::from_utf8_lossy(block));
        }
        let bad: [&[u8]; 5] = [
            b"NATS/1.0\r\nX: M\xfcller\r\n\r\n",
            b"NATS/1.0\r\nno colon\r\n\r\n",
            b"NATS/1.0\r\nBad Name: x\r\n\r\n",
            b"HTTP/1.1\r\n\r\n",
            b"\r\n",
        ];
        for block in bad {
            assert!(can_be_read(block).is_err(), "{}", String::from_utf8_lossy(block));
        }
    }
}
