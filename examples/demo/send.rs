//! A call on its way: the few lines that a program of your own needs, by HTTP and by NATS.

use anyhow::{Context, Result, bail};
use async_nats::{Client, jetstream};
use reqwest::StatusCode;
use serde_json::Value;

use super::ledger::After;
use super::script::{self, Planned, Way};
use super::show::Screen;
use super::stage::Stage;

/// Sends a call.
pub(crate) async fn send(planned: &Planned, stage: &Stage, nats: &Client) -> Result<()> {
    if planned.way != Way::Nats {
        by_http(planned, stage).await?;
    }
    if planned.way != Way::Http {
        by_nats(planned, nats).await?;
    }
    Ok(())
}

/// `POST /call`: 202 means that the queue has it on disk.
async fn by_http(planned: &Planned, stage: &Stage) -> Result<Value> {
    let (status, answer) = post(&planned.request, stage).await?;
    if status != StatusCode::ACCEPTED {
        bail!("POST /call of {} was answered {status}: {answer}", planned.id);
    }
    Ok(answer)
}

/// A message on `sip.calls`: through JetStream, which acknowledges that it is on disk.
async fn by_nats(planned: &Planned, nats: &Client) -> Result<()> {
    let jetstream = jetstream::new(nats.clone());
    let acknowledged = jetstream.publish("sip.calls", planned.request.to_string().into()).await?;
    acknowledged.await.with_context(|| format!("{} is not in the queue", planned.id))?;
    Ok(())
}

async fn post(request: &Value, stage: &Stage) -> Result<(StatusCode, Value)> {
    let answer = stage.http.post(format!("{}/call", stage.base)).json(request).send().await?;
    Ok((answer.status(), answer.json().await?))
}

/// The first call of each way and the two that are none, shown with their answers.
pub(crate) async fn samples(script: &[Planned], stage: &Stage, nats: &Client, screen: &Screen) -> Result<()> {
    for planned in script.iter().filter(|planned| planned.is_sample()) {
        if planned.way == Way::Http {
            let answer = by_http(planned, stage).await?;
            screen.posted(&planned.request, StatusCode::ACCEPTED, &answer);
        } else {
            by_nats(planned, nats).await?;
            screen.published(&planned.request, "in the queue: JetStream has acknowledged it");
        }
    }
    let request = script::invalid_by_http();
    let (status, problem) = post(&request, stage).await?;
    screen.posted(&request, status, &problem);
    if status != StatusCode::UNPROCESSABLE_ENTITY {
        bail!("an invalid request was answered {status}, not 422");
    }
    let invalid = script::invalid_by_nats();
    by_nats(&invalid, nats).await?;
    screen.published(&invalid.request, &format!("put aside: {}", dead_letter(nats).await?));
    Ok(())
}

/// The reason that the dead letter of the one message carries that is no call.
async fn dead_letter(nats: &Client) -> Result<String> {
    let stream = jetstream::new(nats.clone()).get_stream("SIP_DEAD").await?;
    for _ in 0..200 {
        if let Ok(letter) = stream.get_last_raw_message_by_subject("sip.dead").await {
            let reason = letter.headers.get("Sip-Dead-Reason").map(|reason| reason.as_str().to_owned());
            return reason.context("a dead letter does not say why it is one");
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    bail!("the message that is no call did not become a dead letter")
}

/// What the streams and `GET /jobs` hold once every call has ended.
pub(crate) async fn inspect(stage: &Stage, nats: &Client) -> Result<After> {
    let jetstream = jetstream::new(nats.clone());
    // The acknowledgement follows the last status: give it the moment that it takes.
    let on_the_way = async || {
        let streams = ["SIP_CALLS", "SIP_QUEUE", "SIP_DIAL"].map(|stream| messages(&jetstream, stream));
        anyhow::Ok(futures::future::try_join_all(streams).await?.into_iter().sum::<u64>())
    };
    let mut in_queue = on_the_way().await?;
    for _ in 0..200 {
        if in_queue == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        in_queue = on_the_way().await?;
    }
    let jobs: Vec<Value> = stage.http.get(format!("{}/jobs?limit=1000", stage.base)).send().await?.json().await?;
    Ok(After {
        in_queue,
        waiting: messages(&jetstream, "SIP_SCHEDULE").await?,
        dead: messages(&jetstream, "SIP_DEAD").await?,
        jobs,
    })
}

async fn messages(jetstream: &jetstream::Context, stream: &str) -> Result<u64> {
    let stream = jetstream.get_stream(stream).await.with_context(|| format!("stream {stream}"))?;
    Ok(stream.cached_info().state.messages)
}
