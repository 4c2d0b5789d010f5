//! The two listeners of `serve`: bound first, so that a port in use ends the start before anything else begins.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::net::TcpListener;

use crate::config::HttpArgs;

/// Both listeners, bound.
pub struct Listeners {
    /// For the API.
    pub api: TcpListener,
    /// For probes and metrics.
    pub admin: TcpListener,
}

/// Binds both, and logs where.
///
/// # Errors
/// A port is in use, or the address is not one of this machine; the text names the variables.
pub async fn listen(settings: &HttpArgs) -> Result<Listeners> {
    let HttpArgs { host, port, admin_host, admin_port } = *settings;
    let api = bind(SocketAddr::new(host, port), "HOST or PORT").await?;
    let admin_host = admin_host.unwrap_or(host);
    let admin = bind(SocketAddr::new(admin_host, admin_port), "ADMIN_HOST or ADMIN_PORT").await?;
    tracing::info!("probes and metrics on http://{}", admin.local_addr()?);
    tracing::info!("listening on http://{}", api.local_addr()?);
    Ok(Listeners { api, admin })
}

async fn bind(address: SocketAddr, variables: &str) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("cannot listen on {address}; choose another {variables}"))
}
