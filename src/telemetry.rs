//! The log: one line per thing worth knowing, to standard error, as text or JSON.

use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{FilterFn, filter_fn};
use tracing_subscriber::prelude::*;

use crate::config::{LogArgs, LogFormat};

/// What libraries log that we log ourselves, or that they repeat at every retry. To see it, name the target in `RUST_LOG`.
const QUIET: &str = "async_nats=warn,kube_client::client::builder=off";

/// Starts logging; once per process.
pub fn start(settings: &LogArgs) {
    // `loguru_level` is already in `rust_log`.
    let LogArgs { rust_log, loguru_level: _, log_format } = settings;
    let filter = EnvFilter::try_new(format!("{QUIET},{rust_log}")).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log_format {
        LogFormat::Text => {
            use std::io::IsTerminal;
            let ansi = std::io::stderr().is_terminal();
            builder.with_ansi(ansi).with_target(false).finish().with(no_foreign_details()).init();
        }
        LogFormat::Json => builder.json().flatten_event(true).finish().with(no_foreign_details()).init(),
    }
}

/// Whatever `RUST_LOG` asks for: at these levels libraries log whole messages and addresses, with the passwords in them.
fn no_foreign_details() -> FilterFn {
    filter_fn(|metadata| match metadata.target() {
        ours if ours.starts_with("sipstuff_operator") => true,
        nats if nats.starts_with("async_nats") => *metadata.level() <= Level::INFO,
        _ => *metadata.level() <= Level::DEBUG,
    })
}
