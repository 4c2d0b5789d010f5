//! Submits the calls, each at its moment and in its way, and cancels some.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::plan::{Planned, Way};
use super::world::World;

/// Requests under way at once.
const AT_ONCE: usize = 64;
/// How long to wait for an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Before the next try.
const AGAIN: Duration = Duration::from_millis(500);

/// How a request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Stored: the call must have its end.
    Accepted,
    /// Without an answer: it may have been accepted.
    Unknown,
    /// Refused: the call must not exist.
    Refused,
}

/// What became of every request so far.
#[derive(Debug, Default)]
pub struct Answers {
    by_id: Mutex<HashMap<String, Answer>>,
    /// Requests that were sent again.
    pub repeated: AtomicUsize,
    /// Cancels that were answered 202.
    pub cancels: AtomicUsize,
}

impl Answers {
    pub fn of(&self, id: &str) -> Answer {
        self.by_id.lock().expect("no panic while it is held").get(id).copied().unwrap_or(Answer::Unknown)
    }

    pub fn count(&self) -> usize {
        self.by_id.lock().expect("no panic while it is held").len()
    }

    fn set(&self, id: &str, answer: Answer) {
        self.by_id.lock().expect("no panic while it is held").insert(id.to_owned(), answer);
    }
}

/// Submits every call of the plan; returns when all of them, and all cancels, are answered.
pub async fn run(world: Arc<World>, answers: Arc<Answers>) {
    let http = reqwest::Client::builder().no_proxy().timeout(ANSWER).build().expect("a plain client");
    let traffic = Arc::new(Traffic { world, answers, http, permits: Semaphore::new(AT_ONCE) });
    let mut tasks = JoinSet::new();
    let moments = traffic.world.plan.submissions();
    for (call, at) in traffic.world.plan.calls().into_iter().zip(moments) {
        tokio::time::sleep(at.saturating_sub(traffic.world.begin.elapsed())).await;
        tasks.spawn(Arc::clone(&traffic).submit_and_cancel(call));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("a request is answered");
    }
}

struct Traffic {
    world: Arc<World>,
    answers: Arc<Answers>,
    http: reqwest::Client,
    permits: Semaphore,
}

impl Traffic {
    async fn submit_and_cancel(self: Arc<Self>, call: Planned) {
        let cancel = async {
            if let Some(after) = call.cancel {
                tokio::time::sleep(after).await;
                self.cancel(&call).await;
            }
        };
        tokio::join!(self.submit(&call), cancel);
    }

    async fn submit(&self, call: &Planned) {
        let _permit = self.permits.acquire().await.expect("it is never closed");
        let body = call.body();
        let answer = match call.way {
            Way::Http | Way::InvalidHttp => self.post(call, &body, usize::MAX).await,
            Way::HttpOnce => self.post(call, &body, 1).await,
            Way::Nats | Way::Invalid | Way::NatsHeader => self.publish(call, &body).await,
            Way::Both => tokio::join!(self.publish(call, &body), self.post(call, &body, usize::MAX)).0,
        };
        self.answers.set(&call.id, answer);
    }

    async fn post(&self, call: &Planned, body: &Value, tries: usize) -> Answer {
        for number in 0..tries {
            let replica =
                (call.dest.len() + call.id.len() + number + call.id.as_bytes()[call.id.len() - 1] as usize) % 2;
            let url = format!("{}/call", self.world.replicas[replica].base());
            let answer = self.http.post(url).json(body).send().await;
            match answer.map(|answer| answer.status().as_u16()) {
                Ok(202) => return Answer::Accepted,
                Ok(422) if !call.is_valid() => return Answer::Refused,
                Ok(503) | Err(_) => {}
                Ok(status) => panic!("{}: POST /call answers {status}", call.id),
            }
            self.answers.repeated.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(AGAIN).await;
        }
        Answer::Unknown
    }

    /// Published until the queue says that it has it.
    async fn publish(&self, call: &Planned, body: &Value) -> Answer {
        let mut headers = HeaderMap::new();
        if call.way == Way::NatsHeader {
            headers.insert("Nats-Msg-Id", call.id.as_str());
        }
        loop {
            let sent = async {
                let ack =
                    self.world.js().publish_with_headers("sip.calls", headers.clone(), body.to_string().into()).await;
                ack.ok()?.await.ok()
            };
            if let Ok(Some(_)) = tokio::time::timeout(ANSWER, sent).await {
                return Answer::Accepted;
            }
            self.answers.repeated.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Asks until it is cancelled, or has been unknown for a while.
    async fn cancel(&self, call: &Planned) {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(20) {
            let replica = usize::from(call.id.len().is_multiple_of(2));
            let id = call.id.replace('/', "%2F");
            let url = format!("{}/jobs/{id}", self.world.replicas[replica].base());
            match self.http.delete(url).send().await.map(|answer| answer.status().as_u16()) {
                Ok(202) => {
                    self.answers.cancels.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Ok(404 | 503) | Err(_) => tokio::time::sleep(AGAIN).await,
                Ok(status) => panic!("{}: DELETE answers {status}", call.id),
            }
        }
    }
}
