//! The log: one line per thing worth telling, to standard error, as text or JSON.

use tracing::Level;
use tracing_subscriber::{
    EnvFilter,
    filter::{FilterFn, filter_fn},
    prelude::*,
};

use crate::config::{LogArgs, LogFormat};

/// What libraries say that we say ourselves, or that is said again at every try. Whoever wants to hear it names the target.
const QUIET: &str = "async_nats=warn,kube_client::client::builder=off";

/// Starts logging; once per process.
pub fn start(settings: &LogArgs) {
    let LogArgs { rust_log, log_format } = settings;
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

/// Whatever `RUST_LOG` asks for: at these levels libraries write down whole messages and addresses, and the passwords in them.
fn no_foreign_details() -> FilterFn {
    filter_fn(|metadata| match metadata.target() {
        ours if ours.starts_with("sipstuff_operator") => true,
        nats if nats.starts_with("async_nats") => *metadata.level() <= Level::INFO,
        _ => *metadata.level() <= Level::DEBUG,
    })
}
