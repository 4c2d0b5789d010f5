//! The command line: what there is to say, and what is said back when it is wrong.

use clap::{
    Arg, ArgMatches, Command as Clap, CommandFactory, FromArgMatches, Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};
use std::{ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

use super::{dead::Dead, dumpjob::Dumpjob, startjob::Startjob};
use crate::{
    config::{Settings, at_least},
    nats::NatsSettings,
};

/// Turns call requests from NATS JetStream or HTTP into Kubernetes Jobs, each of which places one SIP phone call, and tells how
/// every call went. Without a command it serves.
#[derive(Debug, Parser)]
#[command(name = "sipstuff-operator", version, max_term_width = 110)]
pub struct Cli {
    /// Settings.
    #[command(flatten)]
    pub settings: Settings,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve: dial what is in the queue, answer HTTP (the default)
    Serve,
    /// Try the connections to NATS and to the runner; exit 0 when both work, else 1
    Conntest,
    /// Print the Job that a request would make, for `kubectl apply -f -`
    Dumpjob(Dumpjob),
    /// Create the Job of a request at once, past the queue
    Startjob(Startjob),
    /// Dial no new call, on any replica, for a while or until `resume`; calls in progress go on
    Pause {
        /// How long, such as 10m; without it, until `resume`
        #[arg(long = "for", value_name = "DURATION", value_parser = |text: &str| at_least(text, Duration::from_secs(1)))]
        duration: Option<Duration>,
        /// Why, shown by `/health`
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Dial again
    Resume,
    /// Look after the messages that could not become calls
    Dead {
        /// What to do with them
        #[command(subcommand)]
        what: Dead,
    },
    /// Write the JSON Schemas, OpenAPI and AsyncAPI documents
    Schema {
        /// Write one file each into this folder instead of all to standard output
        #[arg(long, value_name = "DIR")]
        out_dir: Option<PathBuf>,
    },
    /// Print the table of settings for the README
    #[command(hide = true)]
    Settings,
    /// Stand in for the caller: takes its arguments, writes its log lines; `simulate-call --help`
    #[command(disable_help_flag = true)]
    SimulateCall {
        /// The caller's arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// A setting with the value that is in effect, a secret only as far as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// Its environment variable.
    pub variable: String,
    /// Its value, as it would be written.
    pub value: String,
}

/// Parses the command line and the environment; also tells the configuration in effect. An empty variable counts as not set, as manifests often write it so.
///
/// # Errors
/// The exit code, after the reason (or the help that was asked for) was printed: 2 for a mistake.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<(Cli, Vec<Effective>), ExitCode> {
    let mut command = without_empty_variables(Cli::command());
    let matches = command.clone().try_get_matches_from(arguments);
    let parsed = matches.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, effective(&command, &matches))));
    parsed.map_err(|error| {
        match named_variable(&mut command, &error) {
            Some(text) => eprintln!("{text}"),
            None => drop(error.print()),
        }
        ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
    })
}

fn without_empty_variables(command: Clap) -> Clap {
    let is_empty = |arg: &Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    let empty: Vec<_> = command.get_arguments().filter(|arg| is_empty(arg)).map(|arg| arg.get_id().clone()).collect();
    empty.into_iter().fold(command, |command, id| command.mut_arg(id, |arg| arg.env(None::<&'static str>)))
}

/// A bad value that came from the environment is told by its variable's name, since nobody typed the flag.
fn named_variable(command: &mut Clap, error: &clap::Error) -> Option<String> {
    if !matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation) {
        return None;
    }
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let flag = text(ContextKind::InvalidArg)?;
    let long = flag.trim_start_matches("--").split([' ', '=']).next()?;
    let variable = command.get_arguments().find(|arg| arg.get_long() == Some(long))?.get_env()?.to_owned();
    let value = text(ContextKind::InvalidValue)?;
    if std::env::var_os(&variable)? != *value {
        return None;
    }
    let accepted = text(ContextKind::ValidValue).map(|values| format!("accepted: {values}"));
    let why = accepted.or_else(|| std::error::Error::source(error).map(ToString::to_string)).unwrap_or_default();
    Some(format!(
        "error: {}={value} is not accepted: {why}\n\nThe same can be given as --{long}; see --help.",
        variable.display()
    ))
}

fn effective(command: &Clap, matches: &ArgMatches) -> Vec<Effective> {
    command.get_arguments().filter_map(|arg| effective_one(arg, matches)).collect()
}

/// What may hold a secret is marked by `hide_env_values`: of an address the part after the password is shown.
fn effective_one(arg: &Arg, matches: &ArgMatches) -> Option<Effective> {
    let variable = arg.get_env()?.to_str()?.to_owned();
    let given: Vec<_> = matches.get_raw(arg.get_id().as_str())?.map(|value| value.to_string_lossy()).collect();
    let given = given.join(",");
    let value = match (arg.is_hide_env_values_set(), variable.as_str()) {
        (false, _) => given,
        (true, "NATS_URL") => NatsSettings { url: given, ..Default::default() }.address(),
        (true, _) => "(set)".to_owned(),
    };
    Some(Effective { variable, value })
}

/// The table of settings, in Markdown: one row each, with variable, flag and default.
pub fn settings_table() -> String {
    let mut rows = vec!["| variable | flag | default | what |".to_owned(), "|---|---|---|---|".to_owned()];
    rows.extend(Cli::command().get_arguments().filter_map(row));
    rows.join("\n")
}

fn row(arg: &Arg) -> Option<String> {
    let (variable, long) = (arg.get_env()?.to_str()?, arg.get_long()?);
    let default: Vec<_> = arg.get_default_values().iter().filter_map(|value| value.to_str()).collect();
    let default = if default.is_empty() { "–".to_owned() } else { format!("`{}`", default.join(",")) };
    let values: Vec<_> = arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default().replace('|', "\\|");
    let accepted = if values.is_empty() { String::new() } else { format!(": {}", values.join(", ")) };
    Some(format!("| `{variable}` | `--{long}` | {default} | {help}{accepted} |"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_setting_is_in_the_table() {
        let table = settings_table();
        for variable in ["NATS_URL", "MAX_ACTIVE_CALLS", "RUNNER", "JOB_IMAGE", "NODE_SELECTOR", "PORT", "LOG_FORMAT"] {
            assert!(table.contains(&format!("| `{variable}` |")), "{variable} is missing in\n{table}");
        }
    }
}
