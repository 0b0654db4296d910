//! The connections to the peers, and where each peer is looked for.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;

use crate::{
    NodeConfig, NodeId,
    identity::{Identity, address::is_unspecified},
    net::{peer::Peer, raft_network::Peers},
    platform::Platform,
    types::MemberNode,
};

/// Connections to the peers, by node id. Not part of `Core`, so that openraft, which `Core` owns, can refer
/// to it without a reference cycle.
pub(crate) struct PeerTable {
    pub platform: Platform,
    pub identity: Arc<Identity>,
    pub peers: Mutex<BTreeMap<NodeId, Arc<Peer>>>,
    /// The addresses that the operator configured.
    listed: BTreeMap<NodeId, String>,
}

impl PeerTable {
    pub(crate) fn new(platform: Platform, identity: Arc<Identity>, config: &NodeConfig) -> PeerTable {
        let listed = config.bootstrap.clone().unwrap_or_default();
        PeerTable { platform, identity, peers: Mutex::default(), listed }
    }

    /// Sets the addresses at which a peer is looked for, in this order: the one that it gives for itself, the
    /// one that it last published in the membership, and the one that the operator configured.
    fn place(&self, peer: &Peer, known: &str) {
        let listed = self.listed.get(&peer.id()).map(String::as_str);
        self.identity.with_told_address(peer.id(), |told| {
            let sound = |place: &str| !is_unspecified(place);
            peer.set_places([
                told,
                Some(known).filter(|place| sound(place)),
                listed.filter(|place| sound(place)),
            ]);
        });
    }

    /// The peer with this id, which was last known to be at this address.
    pub(crate) fn at(&self, id: NodeId, address: &str) -> Arc<Peer> {
        let mut peers = self.peers.lock();
        let peer = peers.entry(id).or_insert_with(|| {
            Arc::new(Peer::new(
                id,
                address.to_owned(),
                self.platform.transport.clone(),
                self.identity.clone(),
            ))
        });
        self.place(peer, address);
        peer.clone()
    }

    /// Greets all other nodes over connections of their own, and waits this long for their answers. A node
    /// that does not answer in time counts as an error; what the others say is learnt. `acquaintances` keeps
    /// the connections from one call to the next.
    pub(crate) async fn greet_all(
        &self,
        acquaintances: &mut BTreeMap<NodeId, Peer>,
        addresses: &BTreeMap<NodeId, String>,
        time: Duration,
    ) -> BTreeMap<NodeId, std::io::Result<()>> {
        let own_id = self.identity.node_id();
        for (id, address) in addresses.iter().filter(|(id, _)| **id != own_id) {
            let (transport, identity) = (&self.platform.transport, &self.identity);
            let peer = acquaintances
                .entry(*id)
                .or_insert_with(|| Peer::new(*id, address.clone(), transport.clone(), identity.clone()));
            self.place(peer, address);
        }
        let greetings =
            acquaintances.iter().filter(|(id, _)| addresses.contains_key(id)).map(|(id, peer)| async move {
                let greeted = tokio::time::timeout(time, peer.greet_anew()).await;
                (*id, greeted.unwrap_or_else(|_| Err(std::io::Error::other("it does not answer"))))
            });
        futures::future::join_all(greetings).await.into_iter().collect()
    }

    pub(super) fn known(&self, id: NodeId) -> Option<Arc<Peer>> {
        self.peers.lock().get(&id).cloned()
    }
}

impl Peers for PeerTable {
    fn peer(&self, id: u64, node: &MemberNode) -> Arc<Peer> {
        self.at(id, &node.peer)
    }
}
