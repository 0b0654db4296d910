//! A whole server in a simulation: consensus, log, machine and sessions as in `server`, without sockets. It runs on the
//! runtime of its caller, who holds its network, disk and clocks (`kvorum_raft::simulation`).

use std::{sync::Arc, time::Duration};

use kvorum_raft::{
    Node, Platform, StartError,
    simulation::{Endpoint, NodeEnd},
};
use tokio::sync::watch;

use crate::{
    config::Config,
    machine::Machine,
    server,
    session::{self, Shared, stream::Stream},
    wake::Wakes,
};

/// A server that runs. Dropping it stops nothing: a simulated crash drops the runtime.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

impl Server {
    /// Starts it, as `kvorum serve` does.
    pub async fn start(platform: Platform, config: &Config) -> Result<Server, StartError> {
        let (wakes, notices) = Wakes::new(config.node.id, server::wake_limits(config));
        // Nobody asks it to stop.
        let (_, stopping) = watch::channel(false);
        // Nobody listens there.
        let shared = server::start(platform, config, config.resp, config.http, wakes, stopping).await?;
        shared.wakes.started_with(shared.router.status().last_log_index);
        let waking = shared.clone();
        tokio::spawn(async move { waking.wakes.run(notices, &waking.router).await });
        Ok(Server { shared })
    }

    /// Serves a client; to be called on the server's runtime. None if the server takes no more.
    pub fn connect(&self) -> Option<Endpoint> {
        let (end, reader): (Endpoint, NodeEnd) = Endpoint::new();
        let client = self.shared.clients.enter(Stream::Simulated(end.clone())).ok()?;
        tokio::spawn(session::serve(self.shared.clone(), client, reader));
        Some(end)
    }

    /// Stops in order, as `kvorum serve` does when it is asked to; waits for clients at most so long.
    pub async fn stop(&self, drain: Duration) {
        server::drain(&self.shared, None, drain).await;
        self.shared.wakes.settle().await;
        self.node().shutdown().await;
    }

    /// The node, to look at and to administer.
    pub fn node(&self) -> &Node<Machine> {
        self.shared.router.node()
    }

    /// The digest of all content. Walks over everything.
    pub fn digest(&self) -> u128 {
        self.shared.router.machine().digest()
    }

    /// The machine's clock, which the log moves.
    pub fn clock_ms(&self) -> u64 {
        self.shared.router.machine().now_ms()
    }
}
