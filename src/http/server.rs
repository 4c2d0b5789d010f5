//! Sockets and their limits. Warp's own server has no timeout for request heads and no limit on connections, so its
//! routes run as a service on hyper. HTTP/1.1 only: the builder that detects the version waits for the first byte
//! without a timeout.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, debug_span, error};
use warp::Filter;
use warp::reply::Response;

use super::{HttpSettings, routes};
use crate::api::Api;

/// Largest head of a request, in bytes; hyper answers 431 to a larger one. It is also the largest read buffer of a
/// connection, which fills up while a body waits for its share.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Connections that the admin listener serves at a time: probes and a few scrapers.
const ADMIN_CONNECTIONS: usize = 64;
/// Pause after an error of the listener itself, such as no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves the API on a bound listener until `shutdown` resolves; then accepts no more connections, gives requests in
/// flight up to [`HttpSettings::drain_timeout`] to finish, and closes what is left. Dropping the future closes
/// everything at once.
pub async fn serve(
    listener: TcpListener,
    api: Api,
    settings: HttpSettings,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let settings = Arc::new(settings);
    let routes = routes::api(api, Arc::clone(&settings));
    run(listener, routes, &settings, shutdown).await;
}

/// Serves probes and metrics on a listener of their own, with its own few connections: neither slow clients nor large bodies of
/// the API keep them from being answered. Ends as [`serve`] does.
pub async fn serve_admin(listener: TcpListener, api: Api, shutdown: impl Future<Output = ()> + Send + 'static) {
    let settings = HttpSettings { max_connections: ADMIN_CONNECTIONS, ..HttpSettings::default() };
    run(listener, routes::admin(api), &settings, shutdown).await;
}

/// Like [`serve`], for any routes.
pub(super) async fn run<F>(
    listener: TcpListener,
    routes: F,
    settings: &HttpSettings,
    shutdown: impl Future<Output = ()> + Send + 'static,
) where
    F: Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static,
    F::Future: Send,
{
    let http1 = http1_builder(settings);
    let slots = Arc::new(Semaphore::new(settings.max_connections));
    let graceful = GracefulShutdown::new();
    let cut = CancellationToken::new();
    let cut_on_drop = cut.clone().drop_guard();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let (stream, slot) = tokio::select! {
            next = accept(&listener, &slots) => next,
            () = &mut shutdown => break,
        };
        let connection = http1.serve_connection(TokioIo::new(stream), traced(routes.clone()));
        let connection = graceful.watch(connection);
        let cut = cut.clone();
        tokio::spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended { debug!(%error, "a connection failed") },
                () = cut.cancelled() => {}
            }
            drop(slot);
        });
    }
    drop(listener);
    if tokio::time::timeout(settings.drain_timeout, graceful.shutdown()).await.is_err() {
        debug!("requests that did not finish in time are cut off");
    }
    drop(cut_on_drop);
}

fn http1_builder(settings: &HttpSettings) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(settings.header_timeout).max_buf_size(MAX_HEAD_BYTES);
    builder
}

/// The next connection, once there is room for it.
async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    let slot = Arc::clone(slots).acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are one small write each: waiting for more would only add latency.
                if let Err(error) = stream.set_nodelay(true) {
                    debug!(%error, "cannot set TCP_NODELAY");
                }
                return (stream, slot);
            }
            Err(error) if is_peer_error(&error) => debug!(%error, "a connection was closed before it was accepted"),
            Err(error) => {
                error!(%error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_peer_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// A span and an access line for every request, at debug. Not [`warp::trace()`]: that one writes three lines at info and warn.
fn traced<F>(
    routes: F,
) -> impl Service<
    hyper::Request<hyper::body::Incoming>,
    Response = Response,
    Error = Infallible,
    Future = impl Future<Output = Result<Response, Infallible>> + Send + 'static,
> + Send
where
    F: Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static,
    F::Future: Send,
{
    let service = TowerToHyperService::new(warp::service(routes));
    service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let span = debug_span!("request", method = %request.method(), path = request.uri().path());
        let begun = Instant::now();
        let response = service.call(request);
        async move {
            let response = response.await?;
            debug!(status = response.status().as_u16(), elapsed = ?begun.elapsed(), "answered");
            Ok(response)
        }
        .instrument(span)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::super::body;
    use super::super::problem::Problem;
    use super::*;

    /// A server on a free port whose one route reads the body as `POST /call` does and echoes it; `/slow` takes 300 ms.
    struct Server {
        at: SocketAddr,
        stop: oneshot::Sender<()>,
        task: JoinHandle<()>,
    }

    async fn start(settings: HttpSettings) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::new(settings.clone());
        let slow = warp::path!("slow").then(|| async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            Response::new("slow".into())
        });
        let echo = warp::header::headers_cloned().and(warp::body::stream()).then(move |headers, body| {
            let settings = Arc::clone(&shared);
            async move {
                let body = body::read(&settings, &headers, body).await;
                body.map(|bytes| Response::new(bytes.into())).unwrap_or_else(Problem::into_response)
            }
        });
        let routes =
            slow.or(echo).unify().recover(|_: warp::Rejection| async { Ok::<_, Infallible>(Response::default()) });
        let routes = routes.unify();
        let task =
            tokio::spawn(async move { run(listener, routes, &settings, async { stopped.await.unwrap() }).await });
        Server { at, stop, task }
    }

    fn quick() -> HttpSettings {
        HttpSettings {
            max_body_bytes: 1024,
            body_timeout: Duration::from_millis(300),
            header_timeout: Duration::from_millis(300),
            drain_timeout: Duration::from_millis(500),
            ..HttpSettings::default()
        }
    }

    /// Sends and reads until the server closes.
    async fn talk(at: SocketAddr, sent: &str) -> String {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_to_its_end_closes_the_connection() {
        let server = start(quick()).await;
        for sent in ["", "P", "POST / HTTP/1.1\r\nhost: x\r\nx-slow: "] {
            let begun = Instant::now();
            assert!(!talk(server.at, sent).await.starts_with("HTTP/1.1 2"));
            assert!(begun.elapsed() < Duration::from_secs(2), "{sent:?}");
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_to_its_end_is_408_and_closes_the_connection() {
        let server = start(quick()).await;
        let answer = talk(server.at, "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{\"a").await;
        assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("connection: close"), "{answer}");
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_413_whether_its_length_is_declared_or_not() {
        let server = start(quick()).await;
        let client = reqwest::Client::new();
        for size in [1025, 100_000, 4_000_000] {
            let url = format!("http://{}/", server.at);
            let declared = client.post(&url).body(vec![b'x'; size]).send().await.unwrap();
            let pieces = futures::stream::iter(vec![b'x'; size].chunks(1000).map(<[u8]>::to_vec).collect::<Vec<_>>());
            let pieces = futures::StreamExt::map(pieces, Ok::<_, Infallible>);
            let chunked = client.post(&url).body(reqwest::Body::wrap_stream(pieces)).send().await.unwrap();
            for response in [declared, chunked] {
                assert_eq!(response.status(), 413, "{size}");
                assert!(response.text().await.unwrap().contains("1024 bytes"));
            }
        }
        let largest = client.post(format!("http://{}/", server.at)).body(vec![b'x'; 1024]).send().await.unwrap();
        assert_eq!((largest.status().as_u16(), largest.bytes().await.unwrap().len()), (200, 1024));
    }

    #[tokio::test]
    async fn connections_over_the_limit_wait_until_one_ends() {
        let server = start(HttpSettings { max_connections: 1, ..quick() }).await;
        let _idle = TcpStream::connect(server.at).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let begun = Instant::now();
        let answer = talk(server.at, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(begun.elapsed() > Duration::from_millis(150), "served beside the first: {:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_shutdown_lets_a_request_in_flight_end_and_takes_no_other() {
        let server = start(quick()).await;
        let slow = tokio::spawn(reqwest::get(format!("http://{}/slow", server.at)));
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.stop.send(()).unwrap();
        server.task.await.unwrap();
        assert_eq!(slow.await.unwrap().unwrap().text().await.unwrap(), "slow");
        assert!(TcpStream::connect(server.at).await.is_err());
    }

    #[tokio::test]
    async fn a_shutdown_does_not_wait_endlessly() {
        let settings = HttpSettings { drain_timeout: Duration::from_millis(50), ..quick() };
        let server = start(settings).await;
        let slow = tokio::spawn(reqwest::get(format!("http://{}/slow", server.at)));
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.stop.send(()).unwrap();
        tokio::time::timeout(Duration::from_millis(200), server.task).await.unwrap().unwrap();
        assert!(slow.await.unwrap().is_err(), "what is left is cut off");
    }
}
