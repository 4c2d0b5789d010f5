//! A network between two programs that can be cut, stalled and slowed: a TCP proxy on loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The state of the network.
#[derive(Debug, Clone, Default)]
struct Network {
    /// Raised by each cut; a connection lives as long as it does not change.
    cuts: u64,
    /// Raised each time that connections go silent; nothing passes any more on those made before.
    silences: u64,
    /// New connections are closed at once.
    refuse: bool,
    /// Bytes stay where they are.
    stall: bool,
    /// Added before every piece that is passed on.
    delay: Duration,
}

/// A running proxy; its connections end with it.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    network: watch::Sender<Network>,
    open: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy in front of `target`, such as `127.0.0.1:4222`.
    ///
    /// # Panics
    /// When no port can be bound.
    pub async fn start(target: impl Into<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port of loopback");
        let addr = listener.local_addr().expect("a bound listener has an address");
        let (network, _) = watch::channel(Network::default());
        let open = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(serve(listener, target.into(), network.subscribe(), Arc::clone(&open)));
        Self { addr, network, open, task }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The same as a URL, such as `nats://127.0.0.1:PORT`.
    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.addr)
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Ends every connection; new ones are taken.
    pub fn cut(&self) {
        self.network.send_modify(|network| network.cuts += 1);
    }

    /// Lets the present connections go silent for good, while they look alive; new ones work.
    pub fn silence(&self) {
        self.network.send_modify(|network| network.silences += 1);
    }

    /// Whether new connections are closed at once.
    pub fn refuse(&self, refuse: bool) {
        self.network.send_modify(|network| network.refuse = refuse);
    }

    /// Whether bytes stay where they are, while connections look alive.
    pub fn stall(&self, stall: bool) {
        self.network.send_modify(|network| network.stall = stall);
    }

    /// Adds a delay before every piece that is passed on, in either direction.
    pub fn slow(&self, delay: Duration) {
        self.network.send_modify(|network| network.delay = delay);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, target: String, network: watch::Receiver<Network>, open: Arc<AtomicUsize>) {
    // Aborted with this task, so that a dropped proxy leaves no connection behind.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((near, _)) = accepted else { continue };
                if !network.borrow().refuse {
                    connections.spawn(connect(near, target.clone(), network.clone(), Counted::new(&open)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(near: TcpStream, target: String, mut network: watch::Receiver<Network>, _counted: Counted) {
    let Ok(far) = TcpStream::connect(&target).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let Network { cuts, silences, .. } = network.borrow().clone();
    let (mut near_in, mut near_out) = near.into_split();
    let (mut far_in, mut far_out) = far.into_split();
    tokio::select! {
        () = pass(&mut near_in, &mut far_out, network.clone()) => {}
        () = pass(&mut far_in, &mut near_out, network.clone()) => {}
        _ = network.wait_for(|now| now.cuts != cuts || now.silences != silences) => {}
    }
    if network.borrow().silences != silences {
        // Both sides stay open: neither learns that the other hears nothing.
        let _ = network.wait_for(|now| now.cuts != cuts).await;
    }
}

async fn pass(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut network: watch::Receiver<Network>,
) {
    let mut piece = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        let delay = network.borrow().delay;
        tokio::time::sleep(delay).await;
        if network.wait_for(|now| !now.stall).await.is_err() || to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}

/// Counts one connection for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(open))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
