//! The command line: its commands and flags, and the errors that it prints.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgMatches, Command as Clap, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::dead::Dead;
use super::dumpjob::Dumpjob;
use super::pause::PauseScope;
use super::startjob::Startjob;
use super::trunks::TrunksCommand;
use crate::config::{Settings, at_least};
use crate::nats::NatsSettings;

/// Turns call requests from NATS JetStream or HTTP into Kubernetes Jobs, each of which places one SIP phone call, and
/// reports how every call went. Without a command, it runs `serve`.
#[derive(Debug, Parser)]
#[command(name = "sipstuff-operator", version, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub settings: Settings,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Dial the calls in the queue and serve HTTP (the default)
    Serve,
    /// Test the connections to NATS and to the runner; exits 0 if both work, else 1
    Conntest,
    /// Print the Job that a request would create, for `kubectl apply -f -`
    Dumpjob(Dumpjob),
    /// Create the Job of a request right away, without the queue
    Startjob(Startjob),
    /// Stop dialling new calls, all or those of a batch or a trunk, on all replicas, for a while or until `resume`; calls in
    /// progress continue
    Pause {
        #[command(flatten)]
        what: PauseScope,
        /// How long, such as 10m; without it, until `resume`
        #[arg(long = "for", value_name = "DURATION", conflicts_with = "trunk", value_parser = |text: &str| at_least(text, Duration::from_secs(1)))]
        duration: Option<Duration>,
        /// Reason, shown by `/health`
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Resume dialling
    Resume {
        #[command(flatten)]
        what: PauseScope,
    },
    /// List the trunks, or stop and resume dialling on one
    Trunks {
        #[command(subcommand)]
        what: Option<TrunksCommand>,
    },
    /// Manage dead letters, the messages that could not become calls
    Dead {
        #[command(subcommand)]
        what: Dead,
    },
    /// Write the JSON Schemas, OpenAPI and AsyncAPI documents
    Schema {
        /// Write each document to a file in this directory instead of all of them to standard output
        #[arg(long, value_name = "DIR")]
        out_dir: Option<PathBuf>,
    },
    /// Print the table of settings for the README
    #[command(hide = true)]
    Settings,
    /// Simulate the caller: takes its arguments and writes its log lines; see `simulate-call --help`
    #[command(disable_help_flag = true)]
    SimulateCall {
        /// The caller's arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// A setting with the value that is in effect; a secret is masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// Its environment variable.
    pub variable: String,
    /// Its value, as it would be written.
    pub value: String,
}

/// Parses the command line and the environment; also returns the configuration in effect. An empty variable counts as
/// not set, since manifests often contain such.
///
/// # Errors
/// The exit code, after the error (or the help that was asked for) was printed: 2 for a usage error.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<(Cli, Vec<Effective>), ExitCode> {
    let mut command = without_empty_variables(Cli::command());
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let mut refused: Vec<BadValue> = Vec::new();
    loop {
        let error = match parse_once(&command, &arguments) {
            Ok(parsed) if refused.is_empty() => return Ok(parsed),
            Ok(_) => return Err(refuse(&refused)),
            Err(error) => error,
        };
        let Some(bad) = BadValue::of(&command, &error) else {
            if !refused.is_empty() {
                return Err(refuse(&refused));
            }
            drop(error.print());
            return Err(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)));
        };
        // clap stops at the first bad value: with that one removed, it reports the next.
        let is_overruled = bad.is_overruled(&arguments);
        let was_removed = bad.remove(&mut command, &mut arguments);
        if !is_overruled {
            refused.push(bad);
        }
        if !was_removed {
            return Err(refuse(&refused));
        }
    }
}

fn parse_once(command: &Clap, arguments: &[OsString]) -> Result<(Cli, Vec<Effective>), clap::Error> {
    let matches = command.clone().try_get_matches_from(arguments)?;
    Ok((Cli::from_arg_matches(&matches)?, effective(command, &matches)))
}

fn refuse(bad: &[BadValue]) -> ExitCode {
    for BadValue { text, .. } in bad {
        eprintln!("error: {text}");
    }
    if bad.iter().any(|bad| bad.is_variable) {
        eprintln!("\nEach variable can also be given as a flag; see --help.");
    }
    ExitCode::from(2)
}

fn without_empty_variables(command: Clap) -> Clap {
    let is_empty = |arg: &Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    let empty: Vec<_> = command.get_arguments().filter(|arg| is_empty(arg)).map(|arg| arg.get_id().clone()).collect();
    empty.into_iter().fold(command, |command, id| command.mut_arg(id, |arg| arg.env(None::<&'static str>)))
}

/// A value that is not valid.
struct BadValue {
    /// The flag's name, without dashes.
    long: String,
    /// Whether it came from the environment: then it is named by its variable, since nobody typed the flag.
    is_variable: bool,
    text: String,
}

impl BadValue {
    fn of(command: &Clap, error: &clap::Error) -> Option<Self> {
        if !matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation) {
            return None;
        }
        let text = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.clone()),
            Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
            _ => None,
        };
        let flag = text(ContextKind::InvalidArg)?;
        let long = flag.trim_start_matches("--").split([' ', '=']).next()?.to_owned();
        let value = text(ContextKind::InvalidValue)?;
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(&long));
        let variable =
            arg.and_then(Arg::get_env).filter(|name| std::env::var_os(name).is_some_and(|set| *set == *value));
        let accepted = text(ContextKind::ValidValue).map(|values| format!("accepted: {values}"));
        let why = accepted.or_else(|| std::error::Error::source(error).map(ToString::to_string)).unwrap_or_default();
        let colon = if why.starts_with("accepted: ") { ";" } else { ":" };
        let is_secret = arg.is_some_and(Arg::is_hide_env_values_set);
        let text = match variable.map(|variable| variable.display()) {
            Some(variable) if is_secret => format!("{variable} is not valid{colon} {why}"),
            Some(variable) => format!("{variable}={value} is not valid{colon} {why}"),
            None if is_secret => format!("{flag} is not valid{colon} {why}"),
            None => format!("`{value}` is not valid for {flag}{colon} {why}"),
        };
        Some(Self { long, is_variable: variable.is_some(), text })
    }

    /// Whether it is the value of a variable that a flag overrides.
    fn is_overruled(&self, arguments: &[OsString]) -> bool {
        let (flag, with_value) = (format!("--{}", self.long), format!("--{}=", self.long));
        let is_flag = |argument: &str| argument == flag || argument.starts_with(&with_value);
        self.is_variable && arguments.iter().filter_map(|argument| argument.to_str()).any(is_flag)
    }

    /// Removes it from where it came from; false if it could not be found.
    fn remove(&self, command: &mut Clap, arguments: &mut Vec<OsString>) -> bool {
        if self.is_variable {
            let id =
                command.get_arguments().find(|arg| arg.get_long() == Some(&self.long)).map(|arg| arg.get_id().clone());
            if let Some(id) = &id {
                *command = std::mem::take(command).mut_arg(id, |arg| arg.env(None::<&'static str>));
            }
            return id.is_some();
        }
        let (flag, with_value) = (format!("--{}", self.long), format!("--{}=", self.long));
        let found = arguments.iter().position(|argument| {
            *argument == *flag || argument.to_str().is_some_and(|text| text.starts_with(&with_value))
        });
        if let Some(at) = found {
            let end = if arguments[at] == *flag { at + 2 } else { at + 1 };
            arguments.drain(at..end.min(arguments.len()));
        }
        found.is_some()
    }
}

fn effective(command: &Clap, matches: &ArgMatches) -> Vec<Effective> {
    command.get_arguments().filter_map(|arg| effective_one(arg, matches)).collect()
}

/// `hide_env_values` marks what may hold a secret; an address is shown without its credentials.
fn effective_one(arg: &Arg, matches: &ArgMatches) -> Option<Effective> {
    let variable = arg.get_env()?.to_str()?.to_owned();
    let given: Vec<_> = matches.get_raw(arg.get_id().as_str())?.map(|value| value.to_string_lossy()).collect();
    let given = given.join(",");
    let value = match (arg.is_hide_env_values_set(), variable.as_str()) {
        (false, _) => given,
        // Credentials in this one are refused.
        (true, "NATS_MONITORING_URL") => given,
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
