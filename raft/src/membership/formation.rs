//! A cluster is formed once, by the node with the lowest id in the list that all were started with. The
//! others check who is missing too, so that they can report it.
//!
//! It needs all of them: each says which disk it has, which goes into the first membership, that it has no
//! log, and that it was started with the same list. So nodes that were wiped can never form a new cluster
//! behind the back of one that was not, two lists never make two clusters, and no node votes before the
//! others know its disk.
//!
//! A crash at any step leaves something from which the next start continues: until the first entry is in a
//! log there is at most a cluster id, which the forming node reuses.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use openraft::errors::{InitializeError, RaftError};

use crate::{
    Machine, NodeId, identity::DISK_ENDPOINT, net::peer::Peer, node::core::Core, state::level,
    types::MemberNode,
};

/// How long a peer may take to answer: connecting and greeting take two round trips.
const GREETING: Duration = Duration::from_millis(750);
/// The time between two attempts, and between two checks by those who wait for the cluster to be formed.
const PAUSE: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_millis(500);
/// Who is missing is logged once in this many attempts.
const SILENT_ATTEMPTS: u32 = 50;

/// Who is there.
enum Gathered {
    /// All, as the first membership will have them.
    All(BTreeMap<NodeId, MemberNode>),
    /// Not all: who is missing, and why.
    Missing(Vec<String>),
    /// This node has a log: there is a cluster already.
    Formed(NodeId),
}

/// Forms the cluster, if that is this node's task and there is none.
pub(crate) async fn form_cluster<M: Machine>(core: Arc<Core<M>>) {
    let Some(peers) = core.config.bootstrap.clone() else { return };
    if core.raft.is_initialized().await.unwrap_or(true) || core.identity.has_log() {
        return;
    }
    let Some(former) = peers.keys().next().copied() else { return };
    if former == core.config.id {
        form(&core, &peers).await;
    } else {
        tracing::info!(by = former, "waiting for the cluster to be formed");
        look_who_is_missing(&core, &peers, former).await;
    }
    *core.forming.lock() = None;
}

async fn form<M: Machine>(core: &Core<M>, peers: &BTreeMap<NodeId, String>) {
    let (mut attempts, mut acquaintances) = (0, BTreeMap::new());
    loop {
        match gather(core, peers, &mut acquaintances).await {
            Gathered::Formed(by) => {
                tracing::warn!(
                    peer = by,
                    "the peers are part of a cluster already; this node waits to be made a member of it"
                );
                return;
            }
            Gathered::All(members) => {
                if initialize(core, members).await {
                    return;
                }
            }
            Gathered::Missing(missing) => {
                attempts += 1;
                if attempts % SILENT_ATTEMPTS == 1 {
                    tracing::info!(?missing, "the cluster is formed when all of its nodes are there");
                }
                *core.forming.lock() = Some(waits_for(&missing));
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Reports who is missing until another node has formed the cluster.
async fn look_who_is_missing<M: Machine>(core: &Core<M>, peers: &BTreeMap<NodeId, String>, former: NodeId) {
    let mut acquaintances = BTreeMap::new();
    while !core.raft.is_initialized().await.unwrap_or(true) {
        let waits_for = match gather(core, peers, &mut acquaintances).await {
            Gathered::Formed(_) => return,
            Gathered::All(_) => format!("the cluster is not formed yet: node {former} is about to form it"),
            Gathered::Missing(missing) => waits_for(&missing),
        };
        *core.forming.lock() = Some(waits_for);
        tokio::time::sleep(LOOK).await;
    }
}

fn waits_for(missing: &[String]) -> String {
    format!("the cluster is not formed yet: it waits for {}", missing.join("; "))
}

/// Gives the cluster its id and its first entry. False if that has to be tried again.
async fn initialize<M: Machine>(core: &Core<M>, members: BTreeMap<NodeId, MemberNode>) -> bool {
    if core.identity.cluster_id().is_none()
        && let Err(error) = core.identity.form_cluster()
    {
        tracing::error!(%error, "the cluster's id could not be saved");
        return false;
    }
    // The greetings on the connections made so far did not name the cluster.
    core.table.peers.lock().clear();
    match core.raft.initialize(members).await {
        Ok(()) => {
            tracing::info!(cluster_id = core.identity.cluster_id(), "formed the cluster");
            true
        }
        // Another node has, or this node is stopping.
        Err(RaftError::APIError(InitializeError::NotAllowed(_)) | RaftError::Fatal(_)) => true,
        Err(error) => {
            tracing::error!(%error, "the cluster could not be formed");
            false
        }
    }
}

async fn gather<M: Machine>(
    core: &Core<M>,
    peers: &BTreeMap<NodeId, String>,
    acquaintances: &mut BTreeMap<NodeId, Peer>,
) -> Gathered {
    let ids: Vec<NodeId> = peers.keys().copied().collect();
    let mut greeted = core.table.greet_all(acquaintances, peers, GREETING).await;
    let (mut members, mut missing) = (BTreeMap::new(), Vec::new());
    for (id, address) in peers {
        let (disk, level_max) = if *id == core.config.id {
            (core.identity.disk_id(), core.applier.machine.apply_level_max())
        } else {
            let seen = core.identity.seen(*id);
            let greeted =
                greeted.remove(id).unwrap_or_else(|| Err(std::io::Error::other("it was not asked")));
            // Also from a node that refuses this one because of it.
            if seen.as_ref().is_some_and(|hello| hello.has_log) {
                return Gathered::Formed(*id);
            }
            match (greeted, seen) {
                (Err(why), _) => {
                    missing.push(format!("node {id} ({address}): {why}"));
                    continue;
                }
                (Ok(()), None) => {
                    missing.push(format!("node {id} ({address}): it has not said who it is"));
                    continue;
                }
                (Ok(()), Some(hello)) if hello.first_members != ids => {
                    let theirs = hello.first_members;
                    missing
                        .push(format!("node {id}: its --peers are {theirs:?}, those of this node {ids:?}"));
                    continue;
                }
                (Ok(()), Some(hello)) => (hello.disk_id, hello.apply_level_max),
            }
        };
        let mut endpoints = BTreeMap::from([(DISK_ENDPOINT.to_owned(), disk)]);
        level::publish(&mut endpoints, level_max);
        members.insert(*id, MemberNode { peer: address.clone(), endpoints });
    }
    if missing.is_empty() { Gathered::All(members) } else { Gathered::Missing(missing) }
}
