//! Settings: every one is a flag with an environment variable, typed here at the edge. Nothing below reads the environment.
//!
//! A group that is converted for another module has its own file, with the conversion; groups that are used as they are
//! stay here. `values` parses the text of a setting.

mod job;
mod nats;
mod queue;
pub mod trunks;
mod values;

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

pub use self::job::{HangUp, JobArgs, Selector};
pub use self::nats::{MonitoringUrls, NatsArgs};
pub use self::queue::QueueArgs;
pub use self::trunks::TrunkArgs;
pub use self::values::at_least;
use self::values::{address, log_filter, not_empty, whole};

/// All settings.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    #[command(flatten)]
    pub nats: NatsArgs,
    #[command(flatten)]
    pub queue: QueueArgs,
    #[command(flatten)]
    pub trunks: TrunkArgs,
    #[command(flatten)]
    pub runner: RunnerArgs,
    #[command(flatten)]
    pub job: JobArgs,
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

/// Where Jobs run.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Runner")]
pub struct RunnerArgs {
    /// Where Jobs run; defaults to kubernetes in a cluster or with a kubeconfig
    #[arg(long, env = "RUNNER", global = true, value_enum)]
    pub runner: Option<RunnerKind>,
    /// Identity among the clusters and machines that share the queue; defaults to the UID of the Job namespace, or to
    /// one kept in STATE_DIR
    #[arg(long, env = "CLUSTER_NAME", global = true, value_parser = not_empty)]
    pub cluster_name: Option<String>,
    /// Local runner: directory for state and logs; defaults to sipstuff-operator in the user's state directory
    #[arg(long, env = "STATE_DIR", global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Local runner: command to run instead of `python3 -m sipstuff.cli`
    #[arg(long, env = "LOCAL_CALLER", global = true, value_name = "COMMAND")]
    pub local_caller: Option<String>,
    /// Local runner: file of NAME=VALUE lines, used in place of the credentials Secret
    #[arg(long, env = "LOCAL_SECRETS_FILE", global = true, value_name = "FILE")]
    pub local_secrets_file: Option<PathBuf>,
}

/// The available runners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RunnerKind {
    /// Jobs in a Kubernetes cluster.
    Kubernetes,
    /// Processes on this machine.
    Local,
}

/// The HTTP API, and the listener for probes and metrics.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpArgs {
    /// Address to listen on. The API has no authentication yet: let only trusted networks reach it
    #[arg(long, env = "HOST", default_value = "127.0.0.1", global = true, value_parser = address)]
    pub host: IpAddr,
    /// Port to listen on; 0 for a free one
    #[arg(long, env = "PORT", default_value_t = 8080, global = true, value_parser = whole(0_u16..=u16::MAX))]
    pub port: u16,
    /// Address of the probes and metrics; defaults to HOST
    #[arg(long, env = "ADMIN_HOST", global = true, value_parser = address)]
    pub admin_host: Option<IpAddr>,
    /// Port of the probes and metrics (/livez, /readyz, /health, /metrics), which answer there however busy the API is; 0 for a
    /// free one
    #[arg(long, env = "ADMIN_PORT", default_value_t = 8081, global = true, value_parser = whole(0_u16..=u16::MAX))]
    pub admin_port: u16,
}

/// The log.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// What is logged: a level, or `target=level` pairs separated by commas; defaults to LOGURU_LEVEL
    #[arg(
        long, env = "RUST_LOG", default_value = "info", default_value_ifs = LEVELS.map(by_loguru), global = true,
        value_parser = log_filter
    )]
    pub rust_log: String,
    /// Log level by its name in the Python service, used where RUST_LOG is not set
    #[arg(long, env = "LOGURU_LEVEL", global = true, value_name = "LEVEL", value_parser = LEVELS.map(|(name, _)| name))]
    pub loguru_level: Option<String>,
    /// Log format
    #[arg(long, env = "LOG_FORMAT", default_value = "text", global = true, value_enum)]
    pub log_format: LogFormat,
}

/// Loguru's levels, and what each is called here. Its `SUCCESS` and `CRITICAL` have no counterpart.
const LEVELS: [(&str, &str); 7] = [
    ("TRACE", "trace"),
    ("DEBUG", "debug"),
    ("INFO", "info"),
    ("SUCCESS", "info"),
    ("WARNING", "warn"),
    ("ERROR", "error"),
    ("CRITICAL", "error"),
];

fn by_loguru((name, level): (&'static str, &'static str)) -> (&'static str, &'static str, Option<&'static str>) {
    ("loguru_level", name, Some(level))
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// An invalid setting that is found only after the command line was parsed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct BadSetting(String);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::{Args, Command, FromArgMatches};

    use super::LogArgs;

    /// Without the variables of whoever runs the tests.
    fn rust_log(arguments: &[&str]) -> Result<String, clap::Error> {
        let command = LogArgs::augment_args(Command::new("log"));
        let command = command.mut_args(|arg| arg.env(None::<&'static str>));
        let matches = command.try_get_matches_from([&["log"], arguments].concat())?;
        Ok(LogArgs::from_arg_matches(&matches)?.rust_log)
    }

    #[test]
    fn the_level_of_the_python_service_counts_where_rust_log_is_not_set() {
        for (level, filter) in
            [("DEBUG", "debug"), ("WARNING", "warn"), ("SUCCESS", "info"), ("CRITICAL", "error"), ("TRACE", "trace")]
        {
            assert_eq!(rust_log(&["--loguru-level", level]).unwrap(), filter, "{level}");
        }
        assert_eq!(rust_log(&[]).unwrap(), "info");
        assert_eq!(rust_log(&["--loguru-level", "DEBUG", "--rust-log", "warn"]).unwrap(), "warn");
        assert!(rust_log(&["--loguru-level", "debug"]).is_err());
    }
}
