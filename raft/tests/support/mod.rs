//! Three nodes in one process, over a network in memory, with the counter machine. Each test uses a part of it.
#![allow(dead_code)]

pub mod counter;
pub mod network;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use counter::Counter;
use kvorum_raft::{Node, NodeConfig, NodeId, Platform, ReadLevel, Role, StartError};
use network::Network;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::runtime::Handle;

/// How long anything may take to come about.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Cluster {
    pub network: Network,
    pub nodes: BTreeMap<NodeId, (Node<Counter>, Arc<Counter>)>,
    /// The highest apply level that nodes know that are started from here on.
    pub level_max: u32,
    /// Nodes that the cluster contradicted, and how.
    pub contradicted: Arc<Mutex<BTreeMap<NodeId, String>>>,
    /// Changes the configuration of nodes that are started from here on.
    pub tune: fn(&mut NodeConfig),
    dir: TempDir,
}

pub fn name(id: NodeId) -> String {
    format!("node{id}:1")
}

impl Cluster {
    /// Starts nodes 1 to `size` and waits for a leader. `tune` changes each node's configuration.
    pub async fn start(size: u64, tune: fn(&mut NodeConfig)) -> Cluster {
        Cluster::start_at(2, size, tune).await
    }

    /// The same with nodes that know the apply levels up to `level_max`.
    pub async fn start_at(level_max: u32, size: u64, tune: fn(&mut NodeConfig)) -> Cluster {
        let mut cluster = Cluster::empty(tune);
        cluster.level_max = level_max;
        for id in 1..=size {
            cluster.start_node(id, Some((1..=size).map(|id| (id, name(id))).collect())).await;
        }
        cluster.leader().await;
        cluster
    }

    /// No nodes yet.
    pub fn empty(tune: fn(&mut NodeConfig)) -> Cluster {
        // RUST_LOG=kvorum_raft=info shows what the nodes say; a second call changes nothing.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let dir = tempfile::tempdir().expect("a directory for the test");
        Cluster {
            network: Network::default(),
            nodes: BTreeMap::new(),
            level_max: 2,
            contradicted: Arc::default(),
            dir,
            tune,
        }
    }

    pub async fn start_node(&mut self, id: NodeId, bootstrap: Option<BTreeMap<NodeId, String>>) {
        self.try_start_node(id, bootstrap).await.expect("the node starts");
    }

    pub async fn try_start_node(
        &mut self,
        id: NodeId,
        bootstrap: Option<BTreeMap<NodeId, String>>,
    ) -> Result<(), StartError> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match self.start_once(id, bootstrap.clone()).await {
                // openraft's last tasks of the run before may hold the directory a moment longer than its end.
                Err(StartError::Locked(_)) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                started => return started,
            }
        }
    }

    async fn start_once(
        &mut self,
        id: NodeId,
        bootstrap: Option<BTreeMap<NodeId, String>>,
    ) -> Result<(), StartError> {
        let mut config = NodeConfig::new(id, self.dir_of(id));
        config.peer_listen = name(id);
        config.bootstrap = bootstrap;
        config.log_segment_bytes = 1 << 20;
        config.disk_reserve_bytes = Some(1 << 20);
        (self.tune)(&mut config);
        let machine = counter::machine(self.level_max);
        let port = self.network.port(&name(id));
        let platform = Platform::over(port);
        #[cfg(feature = "simulation")]
        let platform = {
            let contradicted = self.contradicted.clone();
            platform.told_of_contradictions(move |why| drop(contradicted.lock().insert(id, why)))
        };
        let node = Node::start_on(platform, config, machine.clone()).await?;
        self.nodes.insert(id, (node, machine));
        Ok(())
    }

    pub fn dir_of(&self, id: NodeId) -> std::path::PathBuf {
        self.dir.path().join(id.to_string())
    }

    /// Ends a node as a crash would, as far as one process can.
    pub async fn stop_node(&mut self, id: NodeId) {
        let (node, _) = self.nodes.remove(&id).expect("the node runs");
        node.stop().await;
    }

    pub fn node(&self, id: NodeId) -> &Node<Counter> {
        &self.nodes[&id].0
    }

    pub fn machine(&self, id: NodeId) -> &Counter {
        &self.nodes[&id].1
    }

    /// The one node that leads and can confirm it.
    pub async fn leader(&self) -> NodeId {
        eventually("a leader", async || {
            for (id, (node, _)) in &self.nodes {
                if node.status().role == Role::Leader {
                    let confirmed =
                        tokio::time::timeout(Duration::from_secs(1), node.barrier(ReadLevel::Linearizable));
                    if let Ok(Ok(())) = confirmed.await {
                        return Some(*id);
                    }
                }
            }
            None
        })
        .await
    }

    /// Some node that does not lead.
    pub async fn follower(&self) -> NodeId {
        let leader = self.leader().await;
        *self.nodes.keys().find(|id| **id != leader).expect("more than one node")
    }

    /// Waits until every member has published its addresses: from here on the membership rests.
    pub async fn know_each_other(&self) {
        let leader = self.leader().await;
        eventually("the members to have published their addresses", async || {
            let members = self.node(leader).status().members;
            members.iter().all(|member| member.endpoints.contains_key("disk")).then_some(())
        })
        .await;
    }

    /// Waits until all nodes have the same counts as the leader.
    pub async fn converge(&self) {
        let leader = self.leader().await;
        eventually("the same state everywhere", async || {
            let expected = self.machine(leader).counts();
            self.nodes.values().all(|(_, machine)| machine.counts() == expected).then_some(())
        })
        .await;
    }
}

impl Drop for Cluster {
    /// Nodes whose directory goes while they write end the process.
    fn drop(&mut self) {
        let nodes = std::mem::take(&mut self.nodes);
        let handle = Handle::current();
        tokio::task::block_in_place(|| {
            handle.block_on(async {
                for (node, _) in nodes.values() {
                    node.stop().await;
                }
            });
        });
    }
}

/// Asks until there is an answer.
pub async fn eventually<R>(what: &str, ask: impl AsyncFn() -> Option<R>) -> R {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
