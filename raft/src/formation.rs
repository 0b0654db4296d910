//! A cluster is formed once, by the node with the lowest id of the list that all were started with.
//!
//! It needs all of them: each says which disk it has, which stands in the first membership, and that it has no data. So
//! nodes that were wiped can never form a cluster anew behind the back of one that was not, and no node votes before the
//! others know its disk.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{Machine, core::Core, identity::DISK_ENDPOINT, net::peer::Peer, types::MemberNode};

/// How long a peer may take to answer.
const GREETING: Duration = Duration::from_millis(500);
/// The time between two attempts.
const PAUSE: Duration = Duration::from_millis(100);
/// How many attempts pass without a word about who is missing.
const SILENT_ATTEMPTS: u32 = 50;

/// Forms the cluster, if that is this node's part and there is none.
pub(crate) async fn form_cluster<M: Machine>(core: Arc<Core<M>>) {
    let Some(peers) = core.config.bootstrap.clone() else { return };
    if core.raft.is_initialized().await.unwrap_or(true) || core.identity.cluster_id().is_some() {
        return;
    }
    if peers.keys().next() != Some(&core.config.id) {
        tracing::info!(by = peers.keys().next(), "waiting for the cluster to be formed");
        return;
    }
    let mut attempts = 0;
    let members = loop {
        let (members, missing) = gather(&core, &peers).await;
        if core.identity.cluster_id().is_some() {
            tracing::warn!(
                "the peers are part of a cluster already; this node waits to be made a member of it"
            );
            return;
        }
        if missing.is_empty() {
            break members;
        }
        attempts += 1;
        if attempts % SILENT_ATTEMPTS == 1 {
            tracing::info!(?missing, "the cluster is formed when all of its nodes are there");
        }
        tokio::time::sleep(PAUSE).await;
    };
    if let Err(error) = core.identity.form_cluster() {
        tracing::error!(%error, "the cluster's id could not be saved");
        return;
    }
    // The connections made so far have told nobody of the cluster.
    core.table.peers.lock().clear();
    match core.raft.initialize(members).await {
        Ok(()) => tracing::info!(cluster_id = core.identity.cluster_id(), "formed the cluster"),
        Err(error) => tracing::error!(%error, "the cluster could not be formed"),
    }
}

/// The members that were reached, with their disks, and the ids of those that were not.
async fn gather<M: Machine>(
    core: &Core<M>,
    peers: &BTreeMap<u64, String>,
) -> (BTreeMap<u64, MemberNode>, Vec<u64>) {
    let (mut members, mut missing) = (BTreeMap::new(), Vec::new());
    for (id, address) in peers {
        let disk = if *id == core.config.id {
            Some(core.identity.disk_id())
        } else {
            let peer: Arc<Peer> = core.table.at(*id, address);
            let linked = tokio::time::timeout(GREETING, peer.link()).await;
            core.identity.seen_disk(*id).filter(|_| matches!(linked, Ok(Ok(_))))
        };
        match disk {
            Some(disk) => {
                let endpoints = BTreeMap::from([(DISK_ENDPOINT.to_owned(), disk)]);
                members.insert(*id, MemberNode { peer: address.clone(), endpoints });
            }
            None => missing.push(*id),
        }
    }
    (members, missing)
}
