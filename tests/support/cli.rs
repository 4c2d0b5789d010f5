//! The program's commands as a person runs them.

use std::time::Duration;

use super::operator::BINARY;
use super::process::Scratch;

/// How a command ended, and what it printed.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// Both outputs.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// Runs a command with these variables and nothing of the test's own environment.
///
/// # Panics
/// When it has not ended within 30 seconds.
pub async fn run(args: &[&str], env: &[(&str, &str)]) -> Finished {
    let home = Scratch::new("home");
    let mut command = tokio::process::Command::new(BINARY);
    command.args(args).env_clear().env("HOME", home.path()).current_dir(home.path());
    command.env("RUST_LOG", "warn").envs(env.iter().copied()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(30), command.output()).await;
    let output = output.expect("it ends by itself").expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}
