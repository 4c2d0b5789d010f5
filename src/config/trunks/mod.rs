//! The trunks that calls are dialled on: from `TRUNKS_FILE`, or one made from the settings that were there before it.

mod document;
mod file;
mod reload;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use tokio::sync::watch;

pub use self::file::{BadTrunks, RouteEntry, TrunkEntry, TrunksFile, parse};
pub use self::reload::Reload;
use super::values::{trunks_file, whole};
use super::{BadSetting, Settings};
use crate::policy::{DEFAULT_TRUNK, Trunk, Trunks};

/// Largest file, in bytes: that of a ConfigMap.
const MAX_FILE: u64 = 1024 * 1024;

/// The trunks, and when dialling on one of them stops.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Trunks")]
pub struct TrunkArgs {
    /// YAML file with the trunks and the routes to them, read again when it changes; defaults to one trunk, `default`,
    /// with SIP_SECRET_NAME, MAX_ACTIVE_CALLS and CALLS_PER_SECOND
    #[arg(long, env = "TRUNKS_FILE", global = true, value_parser = trunks_file, value_name = "FILE")]
    pub trunks_file: Option<PathBuf>,
    /// Number of calls in a row with a fault (auth, congestion, not_started, error) that stop dialling on a trunk for a
    /// while (1 to 100). 0: faults never stop it
    #[arg(long, env = "BREAKER_FAILURES", default_value_t = 5, global = true, value_parser = whole(0_u32..=100))]
    pub breaker_failures: u32,
}

/// The trunks as they are at any moment.
pub type LiveTrunks = watch::Receiver<Arc<Trunks>>;

impl Settings {
    /// The trunks, and the task that reloads them when their file changes (`None` without a file).
    ///
    /// # Errors
    /// [`BadSetting`] with everything that is wrong with the file.
    pub fn trunks(&self) -> Result<(LiveTrunks, Option<Reload>), BadSetting> {
        match &self.trunks.trunks_file {
            Some(path) => {
                let (trunks, reload) = Reload::open(path.clone())?;
                Ok((trunks, Some(reload)))
            }
            // Whoever receives needs no sender that lives on: nothing will change.
            None => Ok((watch::channel(Arc::new(Trunks::single(self.default_trunk()))).1, None)),
        }
    }

    fn default_trunk(&self) -> Trunk {
        let pace = self.queue.calls_per_second;
        Trunk {
            name: DEFAULT_TRUNK.to_owned(),
            secret: self.job.sip_secret_name.clone(),
            max_active: self.queue.max_active_calls,
            calls_per_second: (pace > 0.0).then_some(pace),
            node_selector: None,
        }
    }
}

/// Reads a file, as far as it may be one.
///
/// # Errors
/// A message that says why: the file cannot be read, is too large, or is not UTF-8 text.
pub(super) fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_FILE { Err("is larger than 1 MiB".to_owned()) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::{Args, Command, FromArgMatches};

    use super::*;

    /// Without the variables of whoever runs the tests.
    fn settings(arguments: &[&str]) -> Result<Settings, clap::Error> {
        let command = Settings::augment_args(Command::new("x")).mut_args(|arg| arg.env(None::<&'static str>));
        Settings::from_arg_matches(&command.try_get_matches_from([&["x"], arguments].concat())?)
    }

    #[test]
    fn without_a_file_there_is_one_trunk_made_from_the_settings() {
        let arguments = ["--sip-secret-name", "s", "--max-active-calls", "7", "--calls-per-second", "2.5"];
        let (trunks, reload) = settings(&arguments).unwrap().trunks().unwrap();
        let expected = Trunk {
            name: "default".to_owned(),
            secret: "s".to_owned(),
            max_active: 7,
            calls_per_second: Some(2.5),
            node_selector: None,
        };
        assert_eq!(**trunks.borrow(), Trunks::single(expected));
        assert!(reload.is_none());
        let (trunks, _) = settings(&[]).unwrap().trunks().unwrap();
        assert_eq!(trunks.borrow().iter().next().unwrap().calls_per_second, None);
    }

    #[test]
    fn a_bad_file_is_refused_with_everything_that_is_wrong_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trunks.yaml");
        std::fs::write(&path, "trunks: [{name: A, secret: s, max_active: 0}]\n").unwrap();
        let error = settings(&["--trunks-file", path.to_str().unwrap()]).unwrap_err().to_string();
        assert!(error.contains("trunks[0].name") && error.contains("trunks[0].max_active"), "{error}");
        let missing = settings(&["--trunks-file", "/nowhere/trunks.yaml"]).unwrap_err().to_string();
        assert!(missing.contains("No such file"), "{missing}");
    }

    #[test]
    fn the_example_is_a_good_file_and_what_the_schema_takes() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/trunks.example.yaml");
        let text = read(&example).unwrap();
        let trunks = parse(&text).unwrap_or_else(|error| panic!("{}: {error}", example.display()));
        assert!(trunks.iter().count() > 1);
    }
}
