//! Signals: the first one asks for an orderly end, the second one ends the process at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code after a second signal.
const ABORTED: i32 = 130;

/// A token that is cancelled by the first SIGTERM or SIGINT; the second one aborts.
///
/// # Errors
/// The operating system refuses to tell of signals.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let first = token.clone();
    tokio::spawn(async move {
        next(&mut terminate, &mut interrupt).await;
        tracing::info!("asked to end: handing the calls in progress back; a second signal ends at once");
        first.cancel();
        next(&mut terminate, &mut interrupt).await;
        tracing::warn!("ended at once by a second signal");
        std::process::exit(ABORTED);
    });
    Ok(token)
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
