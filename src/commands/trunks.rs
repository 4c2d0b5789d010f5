//! `trunks`: how the trunks are, and opening and closing their breakers by hand. It works on the bucket that every replica watches, so it
//! needs no operator that runs.

use anyhow::{Result, bail};
use clap::Subcommand;

use super::nats_session::{self, NatsSession};
use super::pause::user;
use crate::config::Settings;
use crate::nats::streams;
use crate::policy::{Breaker, Trunks};
use crate::queue::window::Occupancy;
use crate::queue::{Breakers, Window};

/// What `trunks` does.
#[derive(Debug, Clone, Default, Subcommand)]
pub enum TrunksCommand {
    /// List the trunks: channels, calls in progress, pace, and how the breaker is (the default)
    #[default]
    List,
    /// Dial on a trunk again; nothing is known of it then, so it begins with a few calls
    Close {
        /// Name of the trunk
        name: String,
        /// Reason, shown with the trunk and in the alert
        #[arg(long, value_name = "TEXT", default_value = "closed by hand")]
        why: String,
    },
    /// Dial nothing on a trunk until `trunks close`; calls in progress continue, and calls with another trunk go there
    Open {
        /// Name of the trunk
        name: String,
        /// Reason, shown with the trunk and in the alert
        #[arg(long, value_name = "TEXT")]
        why: String,
    },
}

/// Runs it.
///
/// # Errors
/// NATS does not answer or refuses the request, or no trunk has that name.
pub async fn run(command: TrunksCommand, settings: &Settings) -> Result<()> {
    let trunks = settings.trunks()?.0.borrow().clone();
    let NatsSession { jetstream, .. } = nats_session::open(settings).await?;
    let streams = settings.queue.settings();
    let bucket = streams::bucket(&jetstream, &streams).await?;
    let breakers = Breakers::new(bucket, jetstream.clone(), &streams.names.alerts, settings.trunks.breaker_failures);
    let window = Window::new(jetstream.clone(), &streams.names);
    let dialled = streams::dialled_trunks(&jetstream, &streams.names).await.unwrap_or_default();
    let known = |name: &str| {
        if trunks.get(name).is_some() || dialled.iter().any(|known| known == name) {
            return Ok(());
        }
        bail!("unknown trunk `{name}`; pass one of {}", names(&trunks).join(", "))
    };
    match command {
        TrunksCommand::Close { name, why } => {
            known(&name)?;
            breakers.close(&name, user(), &why).await?;
            println!("calls are dialled on trunk {name} again");
        }
        TrunksCommand::Open { name, why } => {
            known(&name)?;
            breakers.open(&name, user(), &why).await?;
            println!("nothing is dialled on trunk {name} until `trunks close {name}`; calls in progress continue");
        }
        TrunksCommand::List => {
            println!("{:<24} {:>8} {:>11} {:>10}  BREAKER", "TRUNK", "CHANNELS", "IN PROGRESS", "PER SECOND");
            let former = dialled.iter().filter(|name| trunks.get(name).is_none()).cloned();
            for name in names(&trunks).into_iter().chain(former) {
                let breaker = breakers.read(&name).await?;
                let occupancy = window.occupancy(&name).await.ok();
                println!("{}", line(&name, &trunks, occupancy, &breaker));
            }
        }
    }
    Ok(())
}

fn names(trunks: &Trunks) -> Vec<String> {
    trunks.iter().map(|trunk| trunk.name.clone()).collect()
}

fn line(name: &str, trunks: &Trunks, occupancy: Option<Occupancy>, breaker: &Breaker) -> String {
    let trunk = trunks.get(name);
    let channels = trunk.map_or_else(|| "removed".to_owned(), |trunk| trunk.max_active.to_string());
    let in_flight = occupancy.map_or_else(|| "-".to_owned(), |occupancy| occupancy.in_flight.to_string());
    let pace = trunk.and_then(|trunk| trunk.calls_per_second).map_or_else(|| "-".to_owned(), |pace| pace.to_string());
    let mut text = format!("{name:<24} {channels:>8} {in_flight:>11} {pace:>10}  {}", breaker.state());
    for (word, value) in [
        ("since", breaker.since().map(|since| format!("{since:.0}"))),
        ("by", breaker.by().map(str::to_owned)),
        ("until", breaker.until().map(|until| format!("{until:.0}"))),
    ] {
        if let Some(value) = value {
            text.push_str(&format!(", {word} {value}"));
        }
    }
    if let Some(reason) = breaker.reason() {
        text.push_str(&format!(": {reason}"));
    }
    if let Some(last) = breaker.faults().last() {
        text.push_str(&format!("; the last fault: {last}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::policy::Trunk;

    #[test]
    fn a_trunk_is_one_line_that_says_why_nothing_is_dialled_on_it() {
        let (name, secret) = ("berlin".to_owned(), "sip-berlin".to_owned());
        let trunks =
            Trunks::single(Trunk { name, secret, max_active: 7, calls_per_second: Some(2.5), node_selector: None });
        let mut breaker = Breaker::default();
        let occupancy = Occupancy { in_flight: 3, undelivered: 0, channels: 7 };
        let closed = line("berlin", &trunks, Some(occupancy), &breaker);
        assert_eq!(closed, "berlin                          7           3        2.5  closed");
        breaker.open(Some("anna".to_owned()), "the provider moves".to_owned(), Timestamp::UNIX_EPOCH);
        let open = line("gone", &trunks, None, &breaker);
        let why = "open, since 1970-01-01T00:00:00Z, by anna: the provider moves";
        assert_eq!(open, format!("gone                      removed           -          -  {why}"));
    }
}
