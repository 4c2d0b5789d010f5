//! `dead`: manages dead letters, the messages that could not become calls.

use std::io::Read;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::Value;

use super::nats_session::{self, NatsSession};
use crate::config::Settings;
use crate::queue::dead_letters::read::{Letter, Letters};
use crate::status_log::StatusLog;

/// What can be done with dead letters.
#[derive(Debug, Clone, Subcommand)]
pub enum Dead {
    /// List them: number, time, id of the call, reason
    List,
    /// Show one: its reason and its payload, with passwords masked
    Show {
        /// Number, as `dead list` shows it
        number: u64,
        /// Write only the payload, with its passwords
        #[arg(long)]
        raw: bool,
    },
    /// Send them back to the queue; those that would be refused again are kept
    Replay {
        #[command(flatten)]
        which: Which,
        /// Send this JSON instead of the payload (`-` for standard input); requires exactly one number
        #[arg(long, value_name = "JSON", conflicts_with = "all")]
        data: Option<String>,
    },
    /// Delete them
    Purge {
        #[command(flatten)]
        which: Which,
    },
}

/// Which dead letters.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// Numbers, as `dead list` shows them
    pub numbers: Vec<u64>,
    /// All of them
    #[arg(long)]
    pub all: bool,
}

/// Runs the command.
///
/// # Errors
/// NATS does not answer, or one of the letters does not exist or was not sent back.
pub async fn run(command: Dead, settings: &Settings) -> Result<()> {
    let NatsSession { jetstream, names, .. } = nats_session::open(settings).await?;
    let log = StatusLog::open(jetstream.clone(), &names, settings.queue.status_retention).await?;
    let letters = Letters::open(jetstream, names).await?;
    match command {
        Dead::List => list(&letters).await,
        Dead::Show { number, raw } => show(&named(&letters, number).await?, raw),
        Dead::Replay { which, data } => replay(&letters, &log, which, data).await,
        Dead::Purge { which: Which { all: true, .. } } => {
            println!("{} deleted", letters.remove_all().await?);
            Ok(())
        }
        Dead::Purge { which } => purge(&letters, which.numbers).await,
    }
}

async fn list(letters: &Letters) -> Result<()> {
    let mut from = 1;
    while let Some(letter) = letters.next(from).await? {
        let id = letter.id.as_ref().map_or("-", |id| id.as_str());
        println!("{}\t{}\t{id}\t{}", letter.number, letter.time, letter.reason);
        from = letter.number + 1;
    }
    Ok(())
}

async fn named(letters: &Letters, number: u64) -> Result<Letter> {
    letters.get(number).await?.with_context(|| format!("there is no dead letter {number}"))
}

fn show(letter: &Letter, raw: bool) -> Result<()> {
    use std::io::Write;
    if raw {
        return Ok(std::io::stdout().write_all(&letter.payload)?);
    }
    println!("number  {}", letter.number);
    println!("time    {}", letter.time);
    println!("id      {}", letter.id.as_ref().map_or("-", |id| id.as_str()));
    println!("reason  {}", letter.reason);
    println!("payload {}", masked(&letter.payload));
    Ok(())
}

/// What is not JSON cannot be masked, so only `--raw` shows it.
fn masked(payload: &[u8]) -> String {
    let Ok(mut value) = serde_json::from_slice::<Value>(payload) else {
        return format!("{} bytes that are not JSON; --raw shows them", payload.len());
    };
    mask(&mut value);
    serde_json::to_string_pretty(&value).unwrap_or_default()
}

fn mask(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.iter_mut().for_each(|(name, value)| {
            if name.to_ascii_lowercase().contains("password") { *value = "***".into() } else { mask(value) }
        }),
        Value::Array(values) => values.iter_mut().for_each(mask),
        _ => {}
    }
}

async fn replay(letters: &Letters, log: &StatusLog, which: Which, data: Option<String>) -> Result<()> {
    if data.is_some() && which.numbers.len() != 1 {
        bail!("--data replaces one payload: give exactly one number");
    }
    let edited = data.map(payload).transpose()?;
    let mut refused = 0;
    for number in numbers(letters, which).await? {
        let letter = named(letters, number).await?;
        match letters.replay(&letter, log, edited.clone().map(Into::into)).await {
            Ok(id) => println!("{number} sent back as call {id}"),
            Err(error) => {
                eprintln!("{error}");
                refused += 1;
            }
        }
    }
    if refused > 0 { bail!("{refused} not sent back") } else { Ok(()) }
}

fn payload(data: String) -> Result<Vec<u8>> {
    if data != "-" {
        return Ok(data.into_bytes());
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).context("standard input cannot be read")?;
    Ok(bytes)
}

async fn purge(letters: &Letters, numbers: Vec<u64>) -> Result<()> {
    for number in numbers {
        named(letters, number).await?;
        letters.remove(number).await?;
        println!("{number} deleted");
    }
    Ok(())
}

async fn numbers(letters: &Letters, which: Which) -> Result<Vec<u64>> {
    if !which.all {
        return Ok(which.numbers);
    }
    let (mut numbers, mut from) = (Vec::new(), 1);
    while let Some(letter) = letters.next(from).await? {
        numbers.push(letter.number);
        from = letter.number + 1;
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_masked_wherever_it_is_and_what_is_not_json_is_not_shown() {
        let shown = masked(br#"{"dest": "1", "sip_password": "s3cret", "x": [{"TURN_PASSWORD": ["s3cret"]}]}"#);
        assert!(shown.contains("***") && !shown.contains("s3cret"), "{shown}");
        assert!(!masked(b"{\"sip_password\": \"s3cret\"").contains("s3cret"));
    }
}
