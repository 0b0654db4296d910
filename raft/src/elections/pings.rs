//! Measures the distances of all members by pings, which a peer answers at once and without its disk, and
//! makes the timeouts follow them.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    Machine, NodeId,
    elections::distance::{EVERY, to_majority},
    net::frame::Kind,
    node::core::Core,
    sparse::Sparse,
    types::GROUP,
};

/// How long a ping waits for its answer, the connection included.
const PATIENCE: Duration = Duration::from_secs(1);

impl<M: Machine> Core<M> {
    /// Makes the timeouts follow the distances of the voters.
    pub(crate) fn follow_distances(&self) {
        let configurations = {
            let metrics = self.metrics();
            metrics.membership_config.membership().get_joint_config().clone()
        };
        let to = |id| self.identity.distances.to(id);
        let others = configurations.iter().flatten().filter(|id| **id != self.config.id);
        let farthest = others.filter_map(|id| to(*id)).max().unwrap_or_default();
        self.timing.follow(to_majority(self.config.id, &configurations, to), farthest);
        self.proposer.reach(farthest);
    }

    async fn ping(&self, id: NodeId) {
        let Some(peer) = self.peer(id) else { return };
        // A connection that is made now is measured by its greeting.
        if peer.link().await.is_err() {
            return;
        }
        let asked = Instant::now();
        if peer.call(Kind::Ping, GROUP, &[], PATIENCE).await.is_ok() {
            self.identity.distances.take(id, asked.elapsed());
        }
    }
}

/// Measures the distances of all members, for ever, and warns where the timeouts do not fit them.
pub(crate) async fn measure<M: Machine>(core: Arc<Core<M>>) {
    let mut warnings = Sparse::default();
    loop {
        let others: Vec<NodeId> = {
            let metrics = core.metrics();
            metrics.membership_config.membership().nodes().map(|(id, _)| *id).collect()
        };
        let pings = others.into_iter().filter(|id| *id != core.config.id);
        let pings = pings.map(|id| tokio::time::timeout(PATIENCE, core.ping(id)));
        futures::future::join_all(pings).await;
        core.follow_distances();
        if let Some(why) = core.timing.misfit()
            && warnings.say("misfit").is_some()
        {
            tracing::warn!(why, "the time-outs do not fit the distance");
        }
        tokio::time::sleep(EVERY).await;
    }
}
