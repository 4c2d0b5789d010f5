//! `make demo`: starts a NATS server and the operator on this machine, sends a few dozen calls by HTTP and by NATS, shows their
//! statuses as they change, and reports. Nobody is called: `simulate-call` stands in for the caller.
//!
//! `make run` is the same and then keeps everything running, to be tried out. Whatever happens, nothing stays behind.
//!
//! | module | what |
//! |---|---|
//! | `stage` | the two servers, and their end |
//! | `script` | the calls, and what should become of each |
//! | `send` | a call on its way: the few lines that a program of your own needs |
//! | `ledger` | what was heard of every call, and whether it is what the script says |
//! | `show` | how it looks on a terminal |

mod ledger;
mod script;
mod send;
mod show;
mod stage;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_nats::Subscriber;
use futures::StreamExt;
use sipstuff_operator::call::StatusEvent;
use tokio::signal::unix::{SignalKind, signal};

use self::ledger::Ledger;
use self::script::Planned;
use self::show::Screen;
use self::stage::Stage;

/// How long the calls may take together. On an idle machine it is about eight seconds.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two calls sent, so that the lines can be followed.
const PACE: Duration = Duration::from_millis(60);

#[tokio::main]
async fn main() -> ExitCode {
    let keep = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == "--keep" => true,
        _ => {
            eprintln!("usage: demo [--keep]");
            return ExitCode::from(2);
        }
    };
    let screen = Screen::new();
    // Whichever ends first: the other is dropped, and with it every process and folder that it made.
    let result = tokio::select! {
        result = demo(keep, &screen) => result,
        () = interrupted() => {
            println!("\nInterrupted. Everything that was started is stopped and removed.");
            return if keep { ExitCode::SUCCESS } else { ExitCode::from(130) };
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo(keep: bool, screen: &Screen) -> Result<()> {
    screen.chapter("A NATS server and the operator");
    let stage = Stage::set().await?;
    screen.stage(&stage);
    let played = play(&stage, screen).await;
    match played {
        Ok(()) if keep => keep_running(&stage, screen).await,
        Ok(()) => {
            stage.strike().await?;
            screen.goodbye();
            Ok(())
        }
        Err(error) => {
            eprintln!("\nThe end of the operator's log:\n{}", stage.operator_log_tail());
            Err(error)
        }
    }
}

/// The calls, from the first to the report.
async fn play(stage: &Stage, screen: &Screen) -> Result<()> {
    let nats = async_nats::connect(&stage.nats_url).await.context("the NATS server does not take a connection")?;
    let mut statuses = nats.subscribe("sip.status").await?;
    nats.flush().await?;

    screen.chapter("Calls, by HTTP and by NATS");
    let script = script::calls();
    send::samples(&script, stage, &nats, screen).await?;

    screen.chapter("What comes back on the subject sip.status");
    let mut ledger = Ledger::of(&script);
    let rest = send_rest(&script, stage, &nats);
    let listening = listen(&mut statuses, &mut ledger, screen);
    let (sent, heard) = tokio::join!(rest, tokio::time::timeout(PATIENCE, listening));
    sent?;
    match heard {
        Ok(heard) => heard?,
        Err(_) => bail!("after {PATIENCE:?} these calls have not ended: {}", ledger.open().join(", ")),
    }

    let after = send::inspect(stage, &nats).await?;
    screen.report(&ledger);
    ledger.check(&after)?;
    screen.verdict(&ledger);
    Ok(())
}

async fn send_rest(script: &[Planned], stage: &Stage, nats: &async_nats::Client) -> Result<()> {
    for planned in script.iter().filter(|planned| !planned.is_sample()) {
        send::send(planned, stage, nats).await?;
        tokio::time::sleep(PACE).await;
    }
    Ok(())
}

/// Shows every change of state until the last call has ended.
async fn listen(statuses: &mut Subscriber, ledger: &mut Ledger, screen: &Screen) -> Result<()> {
    while !ledger.is_complete() {
        let event = next(statuses).await?;
        screen.change(&event);
        ledger.note(event);
    }
    Ok(())
}

async fn next(statuses: &mut Subscriber) -> Result<StatusEvent> {
    let message = statuses.next().await.context("the NATS server has ended the subscription")?;
    serde_json::from_slice(&message.payload).context("what came on sip.status is no status event")
}

/// Shows what the reader's own calls do, until Ctrl-C drops this.
async fn keep_running(stage: &Stage, screen: &Screen) -> Result<()> {
    screen.what_to_try(stage);
    let nats = async_nats::connect(&stage.nats_url).await?;
    let mut statuses = nats.subscribe("sip.status").await?;
    loop {
        screen.change(&next(&mut statuses).await?);
    }
}

/// Ctrl-C, or a polite end by somebody else.
async fn interrupted() {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let mut signals = kinds.map(|kind| signal(kind).expect("a process may listen to its signals"));
    let [interrupt, terminate, hangup] = &mut signals;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}
