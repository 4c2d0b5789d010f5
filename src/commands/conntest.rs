//! `conntest`: tests everything that the operator depends on.

use std::fmt;
use std::process::ExitCode;

use anyhow::Result;
use async_nats::jetstream::account::Account;

use super::{durability, open_runner};
use crate::config::Settings;
use crate::error_chain::error_chain;
use crate::job::JobDefaults;
use crate::nats::connect;
use crate::runner::Runner;

/// The result of testing one dependency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What was tested, such as `nats` or `kubernetes`.
    pub name: String,
    /// Where: a server's address, and the context that it comes from. Never a password.
    pub address: String,
    /// Server and version, or why it cannot be used, in its own words.
    pub result: Result<String, String>,
    /// What may be wrong, although it works.
    pub warning: Option<String>,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, address, result, warning } = self;
        match result {
            Ok(server) => write!(f, "ok      {name}: {server} at {address}")?,
            Err(problem) => write!(f, "FAILED  {name} at {address}: {problem}")?,
        }
        warning.iter().try_for_each(|warning| write!(f, "\nwarning {name}: {warning}"))
    }
}

/// Tests NATS and the runner, prints a line for each, and returns the exit code: 0 when both work, else 1.
///
/// # Errors
/// The settings are invalid.
pub async fn run(settings: &Settings) -> Result<ExitCode> {
    let defaults = settings.job.defaults()?;
    let answers = [ask_nats(settings).await, ask_configured_runner(settings, &defaults).await?];
    for answer in &answers {
        println!("{answer}");
    }
    Ok(ExitCode::from(exit_code(&answers)))
}

async fn ask_nats(settings: &Settings) -> Answer {
    let nats = settings.nats.settings();
    let result = match connect::connect(&nats).await {
        Ok(client) => {
            let account = connect::jetstream(client.clone()).query_account().await;
            let version = client.server_info().version;
            let found = |account: Account| format!("nats-server {version}, JetStream with {} streams", account.streams);
            account.map(found).map_err(|error| format!("JetStream does not answer: {}", error_chain(&error)))
        }
        Err(error) => Err(error_chain(&error)),
    };
    let durability = match &result {
        Ok(_) => Some(durability::ask(settings.nats.nats_monitoring_url.as_ref()).await),
        Err(_) => None,
    };
    let warning = durability.filter(|durability| durability.is_warning).map(|durability| durability.text);
    Answer { name: "nats".to_owned(), address: nats.address(), result, warning }
}

async fn ask_configured_runner(settings: &Settings, defaults: &JobDefaults) -> Result<Answer> {
    Ok(match open_runner::open_once(settings, defaults).await? {
        Ok(runner) => ask_runner(runner.as_ref()).await,
        Err(error) => Answer {
            name: "runner".to_owned(),
            address: format!("namespace {}", defaults.namespace),
            result: Err(error.to_string()),
            warning: None,
        },
    })
}

/// Tests a runner.
pub async fn ask_runner(runner: &dyn Runner) -> Answer {
    let info = runner.info();
    Answer {
        name: info.kind.to_owned(),
        address: format!("{} (namespace {})", info.address, info.namespace),
        result: runner.check().await.map_err(|error| error.to_string()),
        warning: None,
    }
}

/// The exit code: 0 when everything answered, else 1.
pub fn exit_code(answers: &[Answer]) -> u8 {
    u8::from(answers.iter().any(|answer| answer.result.is_err()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(result: Result<&str, &str>) -> Answer {
        let result = result.map(str::to_owned).map_err(str::to_owned);
        Answer {
            name: "kubernetes".to_owned(),
            address: "https://10.0.0.1 (context prod)".to_owned(),
            result,
            warning: None,
        }
    }

    #[test]
    fn an_answer_names_what_where_and_which_version() {
        let (good, bad) = (answer(Ok("v1.37.2")), answer(Err("connection refused")));
        assert_eq!(good.to_string(), "ok      kubernetes: v1.37.2 at https://10.0.0.1 (context prod)");
        assert_eq!(bad.to_string(), "FAILED  kubernetes at https://10.0.0.1 (context prod): connection refused");
        let doubtful = Answer { warning: Some("it is slow".to_owned()), ..good.clone() };
        assert!(doubtful.to_string().ends_with("prod)\nwarning kubernetes: it is slow"), "{doubtful}");
        assert_eq!((exit_code(&[good.clone(), good.clone()]), exit_code(&[good, bad])), (0, 1));
    }
}
