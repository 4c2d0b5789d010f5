//! One file per subcommand, and the dispatch to them.

pub mod banner;
pub mod cli;
pub mod conntest;
pub mod dead;
pub mod dumpjob;
pub mod durability;
pub mod listen;
pub mod manifest;
pub mod nats_session;
pub mod open_runner;
pub mod pause;
pub mod request_flags;
pub mod run_attempt;
pub mod schema;
pub mod serve;
pub mod simulate_call;
pub mod startjob;
pub mod trunks;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use anyhow::{Context, Result};

use self::cli::{Cli, Command, Effective};
use crate::telemetry;

/// Runs the supervisor of a local attempt. Not for people, and without settings or runtime: there is one such process
/// for every call in progress.
const RUN_ATTEMPT: &str = "run-attempt";

/// Runs the command line; the exit code is 0, 1 for a failure, or 2 for a usage error.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    match arguments.get(1).and_then(|word| word.to_str()) {
        Some(RUN_ATTEMPT) => run_attempt::run(arguments.get(2).map(Into::into).unwrap_or_default()),
        Some("simulate-call") => simulate_call::run(arguments[2..].to_vec()),
        _ => match cli::parse(arguments) {
            Ok((cli, effective)) => dispatch(cli, &effective),
            Err(code) => code,
        },
    }
}

fn dispatch(cli: Cli, effective: &[Effective]) -> ExitCode {
    match run(cli, effective) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            let is_usage_error = error.is::<request_flags::RequestError>() || error.is::<crate::config::BadSetting>();
            ExitCode::from(if is_usage_error { 2 } else { 1 })
        }
    }
}

fn run(cli: Cli, effective: &[Effective]) -> Result<ExitCode> {
    let Cli { settings, command } = cli;
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    telemetry::start(&settings.log);
    match command.unwrap_or(Command::Serve) {
        Command::Serve => runtime()?.block_on(serve::run(settings, effective))?,
        Command::Conntest => return runtime()?.block_on(conntest::run(&settings)),
        Command::Dumpjob(command) => {
            let trunks = settings.trunks()?.0.borrow().clone();
            let (defaults, mut out, mut notes) = (settings.job.defaults()?, io::stdout().lock(), io::stderr().lock());
            dumpjob::run(&command, &defaults, &trunks, &mut out, &mut notes)?;
        }
        Command::Startjob(command) => runtime()?.block_on(async {
            let defaults = settings.job.defaults()?;
            let runner = open_runner::open_once(&settings, &defaults).await?.context("the runner cannot be used")?;
            let trunks = settings.trunks()?.0.borrow().clone();
            startjob::run(&command, &defaults, &trunks, runner.as_ref(), &mut io::stdout(), &mut io::stderr()).await
        })?,
        Command::Pause { what, duration, reason } => {
            runtime()?.block_on(pause::pause(what, duration, reason, &settings))?;
        }
        Command::Resume { what } => runtime()?.block_on(pause::resume(what, &settings))?,
        Command::Trunks { what } => runtime()?.block_on(trunks::run(what.unwrap_or_default(), &settings))?,
        Command::Dead { what } => runtime()?.block_on(dead::run(what, &settings))?,
        Command::Schema { out_dir } => schema::run(out_dir.as_deref())?,
        Command::Settings => println!("{}", cli::settings_table()),
        Command::SimulateCall { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime could not be started")
}
