//! A whole server in a simulation: consensus, log, machine and connections as in `server`, without sockets. It
//! runs on the runtime of its caller, which owns its network, disk and clocks (`kvorum_raft::simulation`).

use std::{sync::Arc, time::Duration};

use kvorum_raft::{
    Node, Platform, StartError,
    simulation::{Endpoint, NodeEnd},
};
use tokio::sync::watch;

use crate::{
    config::Config,
    connection::{self, Shared, stream::Stream},
    machine::Machine,
    maxmemory, server,
    wake::Wakes,
};

/// A running server. Dropping it stops nothing: a simulated crash drops the runtime.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

impl Server {
    /// Starts it, as `kvorum serve` does.
    pub async fn start(platform: Platform, config: &Config) -> Result<Server, StartError> {
        let (wakes, notices) = Wakes::new(config.node.id, server::wake_limits(config));
        // Nobody asks this server to stop through it.
        let (_, stopping) = watch::channel(false);
        // The addresses are not bound.
        let shared = server::start(platform, config, config.resp, config.http, wakes, stopping).await?;
        shared.wakes.started_with(shared.router.status().last_log_index);
        let waking = shared.clone();
        tokio::spawn(async move { waking.wakes.run(notices, &waking.router).await });
        let (watching, configured) = (shared.clone(), config.maxmemory);
        tokio::spawn(async move { maxmemory::watch(&watching.router, configured).await });
        Ok(Server { shared })
    }

    /// Serves a client; to be called on the server's runtime. None if the server takes no more.
    pub fn connect(&self) -> Option<Endpoint> {
        let (end, reader): (Endpoint, NodeEnd) = Endpoint::new();
        let client = self.shared.clients.enter(Stream::Simulated(end.clone())).ok()?;
        tokio::spawn(connection::serve(self.shared.clone(), client, reader));
        Some(end)
    }

    /// Shuts down in order, as `kvorum serve` does; waits for clients for at most `drain`.
    pub async fn stop(&self, drain: Duration) {
        server::drain(&self.shared, None, drain).await;
        self.shared.wakes.settle().await;
        self.node().shutdown().await;
    }

    /// The node, for inspection and administration.
    pub fn node(&self) -> &Node<Machine> {
        self.shared.router.node()
    }

    /// The digest of all content. Walks over everything.
    pub fn digest(&self) -> u128 {
        self.shared.router.machine().digest()
    }

    /// The log clock.
    pub fn clock_ms(&self) -> u64 {
        self.shared.router.machine().now_ms()
    }
}
