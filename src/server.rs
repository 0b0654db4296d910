//! A running node: binds the addresses, starts consensus, accepts clients and administrators, and stops in
//! order: no new connections, then requests in progress finish within a bounded time, then the node stops.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant, SystemTime},
};

use kvorum_raft::{Node, Platform, StartError, chance};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::{JoinError, JoinHandle},
};
use tracing::{error, info, warn};

use crate::{
    admin::{self, names::Names},
    config::Config,
    connection::{self, Shared, clients::Clients, settings::Settings, stats::Stats, stream::Stream},
    feed::Feed,
    machine::Machine,
    maxmemory,
    router::Router,
    wake::{self, Wakes},
};

/// The listen backlog.
const BACKLOG: u32 = 1024;
/// How often idle connections are looked for.
const IDLE_STEP: Duration = Duration::from_secs(1);
/// The pause after a failed accept, for example for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why a server did not start.
#[derive(Debug, Error)]
pub enum ServeError {
    /// An address for clients or administrators cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address as configured.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The cluster refuses this node for good.
    #[error("this node was not added to the cluster: {0}")]
    NotAdded(String),
    /// A part of the server has ended without which it would look alive but serve only half of its functions.
    #[error("{0} has ended: {1}")]
    Ended(&'static str, String),
    /// The node did not start.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Serves until `stop` says so, then drains.
pub async fn serve(config: Config, mut stop: watch::Receiver<bool>) -> Result<(), ServeError> {
    // The addresses first: a port in use must be found before the node is started.
    let resp = listen(config.resp)?;
    let http = listen(config.http)?;
    let (resp_addr, http_addr) = (bound(&resp, config.resp), bound(&http, config.http));
    let (wakes, notices) = Wakes::new(config.node.id, wake_limits(&config));
    let shared = start(Platform::system(), &config, resp_addr, http_addr, wakes, stop.clone()).await?;
    shared.wakes.started_with(shared.router.status().last_log_index);
    let mut waking = tokio::spawn({
        let shared = shared.clone();
        async move { shared.wakes.run(notices, &shared.router).await }
    });
    info!(resp = %resp_addr, http = %http_addr, id = config.node.id, "serving");
    if config.node.bootstrap.is_none() && config.join.is_none() && shared.router.status().cluster_id.is_none()
    {
        warn!(
            "this node has no data, and neither --peers nor --join: it waits for others to make it a member"
        );
    }

    let limits = admin_limits(&config, &shared);
    let mut admin = tokio::spawn(admin::serve(http, shared.clone(), limits, stop.clone()));
    let joining = join(&shared, config.join.clone());
    let mut outcome = Ok(());
    tokio::select! {
        () = accept(&resp, &shared) => {}
        error = shared.router.node().among_strangers() => outcome = Err(ServeError::Start(error)),
        () = hang_up_idle(&shared) => {}
        refusal = joining => outcome = Err(ServeError::NotAdded(refusal)),
        () = maxmemory::watch(&shared.router, config.maxmemory) => {}
        ended = &mut waking => outcome = Err(ended_early("what serves those who wait", ended)),
        ended = &mut admin => if !*shared.stopping.borrow() {
            outcome = Err(ended_early("the admin API", ended));
        },
        _ = stop.wait_for(|stop| *stop) => {}
    }
    drop(resp);
    if matches!(outcome, Err(ServeError::Start(_))) {
        // The cluster refused it: no client waits for it, and it has no data worth keeping.
        shared.router.node().stop().await;
        return outcome;
    }
    drain(&shared, Some(&admin), Duration::from_millis(config.drain_ms)).await;
    // After the last request, and before the node stops: notices from clients that waited must still get into
    // the log.
    shared.wakes.settle().await;
    waking.abort();
    shared.router.node().shutdown().await;
    admin.abort();
    outcome
}

/// What the admin API takes. It answers by the names of all of the node's addresses.
fn admin_limits(config: &Config, shared: &Shared) -> admin::Limits {
    let peer_host = shared.peer_address.rsplit_once(':').map(|(host, _)| host.to_owned());
    let own = config.own_hosts.iter().cloned().chain(peer_host);
    admin::Limits {
        body_bytes_max: config.http_body_bytes_max,
        connections_max: config.http_connections_max,
        names: Names::new(own, &config.http_hosts),
    }
}

fn ended_early(what: &'static str, ended: Result<(), JoinError>) -> ServeError {
    ServeError::Ended(
        what,
        ended.err().map_or_else(|| "it is not known why".to_owned(), |error| error.to_string()),
    )
}

pub(crate) fn wake_limits(config: &Config) -> wake::Limits {
    wake::Limits {
        request_timeout: Duration::from_millis(config.node.request_timeout_ms),
        proposal_bytes_max: config.node.proposal_bytes_max,
    }
}

/// Joins a cluster, if `url` is given; returns only if that is refused for good.
async fn join(shared: &Arc<Shared>, url: Option<String>) -> String {
    if let Some(url) = url
        && let Err(refusal) = admin::join::join(shared.clone(), url).await
    {
        return refusal;
    }
    std::future::pending().await
}

/// Starts the node, and returns what its connections share.
pub(crate) async fn start(
    platform: Platform,
    config: &Config,
    resp: SocketAddr,
    http: SocketAddr,
    wakes: Arc<Wakes>,
    stopping: watch::Receiver<bool>,
) -> Result<Arc<Shared>, StartError> {
    connection::table::prepare();
    let feed = Arc::new(Feed::new(config.feed));
    let machine = Machine::new(config.settings.databases).with_listener(feed.clone());
    let machine = Arc::new(machine.with_listener(wakes.clone()));
    let mut node_config = config.node.clone();
    for (name, address) in [("resp", resp), ("http", http)] {
        node_config.endpoints.entry(name.to_owned()).or_insert_with(|| address.to_string());
    }
    let node = Node::start_on(platform, node_config, machine.clone()).await?;
    let mut settings = config.settings.clone();
    settings.port = resp.port();
    let peer_address = node.peer_address().to_owned();
    Ok(Arc::new(Shared {
        router: Router::new(node, machine, feed),
        settings: Settings::new(settings),
        wakes,
        clients: Clients::default(),
        stats: Stats::default(),
        digest_turn: tokio::sync::Mutex::default(),
        started: Instant::now(),
        started_at: SystemTime::now(),
        run_id: run_id(),
        resp_port: resp.port(),
        peer_address,
        proposal_bytes_max: config.node.proposal_bytes_max,
        stopping,
    }))
}

/// 40 hex digits, different for each run of the server.
fn run_id() -> String {
    let bytes = chance::entropy().into_iter().chain(chance::entropy()).take(20);
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // The port of a killed process must be available again at once.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().map_err(|source| ServeError::Listen { address, source })
}

fn bound(listener: &TcpListener, configured: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(configured)
}

/// Accepts clients, forever.
async fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut is_said = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                is_said = false;
                enter(stream, shared);
            }
            Err(error) => {
                if !std::mem::replace(&mut is_said, true) {
                    warn!(%error, "cannot accept clients");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn enter(stream: TcpStream, shared: &Arc<Shared>) {
    shared.stats.connections.fetch_add(1, Relaxed);
    if shared.clients.len() >= shared.settings.clients_max() {
        shared.stats.connections_refused.fetch_add(1, Relaxed);
        // If the client is gone or does not read, it is closed without the message.
        let _ = stream.try_write(b"-ERR max number of clients reached\r\n");
        return;
    }
    // An optimization only; a socket that refuses it is about to fail anyway.
    let _ = stream.set_nodelay(true);
    let (reader, writer) = stream.into_split();
    let writer = Stream::Tcp(writer);
    writer.expect_signs(None);
    if let Ok(client) = shared.clients.enter(writer) {
        tokio::spawn(connection::serve(shared.clone(), client, reader));
    }
}

/// Disconnects clients that are idle for too long, forever.
async fn hang_up_idle(shared: &Shared) {
    loop {
        tokio::time::sleep(IDLE_STEP).await;
        let timeout_s = shared.settings.idle_timeout_s();
        if timeout_s > 0 {
            let clients = shared.clients.all();
            let idle = clients.iter().filter(|client| client.is_idle_for(timeout_s.saturating_mul(1000)));
            idle.for_each(|client| client.hang_up());
        }
    }
}

/// Lets clients finish what has arrived, including those of the admin API if there is one, then disconnects
/// the rest. All waits end at once.
pub(crate) async fn drain(shared: &Shared, admin: Option<&JoinHandle<()>>, limit: Duration) {
    let started = Instant::now();
    shared.wakes.stop();
    shared.clients.all().iter().for_each(|client| client.finish());
    let is_quiet = || admin.is_none_or(JoinHandle::is_finished);
    while !(shared.clients.is_empty() && is_quiet()) && started.elapsed() < limit {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if !is_quiet() {
        warn!("requests of the admin API did not finish in time");
    }
    let late = shared.clients.all();
    if !late.is_empty() {
        error!(clients = late.len(), "hanging up on clients that did not finish in time");
        late.iter().for_each(|client| client.hang_up());
    }
}
