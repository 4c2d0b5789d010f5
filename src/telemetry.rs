//! The log: one line per thing worth telling, to standard error, as text or JSON.

use tracing_subscriber::EnvFilter;

use crate::config::{LogArgs, LogFormat};

/// Starts logging; once per process.
pub fn start(settings: &LogArgs) {
    let LogArgs { rust_log, log_format } = settings;
    let filter = EnvFilter::try_new(rust_log).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log_format {
        LogFormat::Text => {
            use std::io::IsTerminal;
            builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).init();
        }
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
