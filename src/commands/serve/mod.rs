//! `serve`: wires everything together, and shuts it down at the end. `engine` is the only module that knows all parts.

mod engine;

use anyhow::{Context, Result};

use self::engine::Engine;
use super::cli::Effective;
use super::listen::listen;
use super::{banner, nats_session};
use crate::api::Api;
use crate::config::Settings;
use crate::http::{self, HttpSettings};
use crate::nats::connect::Refusal;
use crate::{schema, shutdown};

/// Serves until a signal. HTTP answers from the beginning, and says what is not ready yet.
///
/// # Errors
/// What makes it impossible to start (the port is in use, a file cannot be read, the server is too old), or NATS has
/// refused the credentials for a minute.
pub async fn run(settings: Settings, effective: &[Effective]) -> Result<()> {
    let closing = shutdown::on_signal().context("cannot listen for signals")?;
    banner::print(effective);
    let defaults = settings.job.defaults()?;
    let trunks = settings.trunks()?;
    let listeners = listen(&settings.http).await?;
    let api = Api::default();
    let stopped = closing.clone().cancelled_owned();
    let server = tokio::spawn(http::serve(listeners.api, api.clone(), http_settings(), stopped));
    // Until the process ends: the kubelet goes on probing while calls are handed back.
    tokio::spawn(http::serve_admin(listeners.admin, api.clone(), std::future::pending()));
    let refusal = Refusal::default();
    let work = async {
        tokio::select! {
            started = Engine::start(&settings, (defaults, trunks), &api, &closing, &refusal) => started?.run(&closing).await,
            () = closing.cancelled() => {}
        }
        anyhow::Ok(())
    };
    tokio::select! {
        worked = work => worked?,
        error = nats_session::refused_for_long(&settings, &refusal) => return Err(error),
    }
    server.await.context("the HTTP server failed")?;
    tracing::info!("shut down cleanly");
    Ok(())
}

fn http_settings() -> HttpSettings {
    let document = schema::all().into_iter().find(|(name, _)| *name == "openapi.json");
    HttpSettings { openapi: document.map(|(_, document)| document).unwrap_or_default(), ..Default::default() }
}
