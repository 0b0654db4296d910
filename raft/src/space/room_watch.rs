//! Watches this node's disk and the others' reports, decides what is refused for lack of room (`room.rs`),
//! and makes room: by a checkpoint, by purging the log, and by handing the leadership over.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    DiskState, Machine, NodeId,
    node::core::Core,
    space::room::{Need, Room, Rooms, of_majority},
};

/// How often the disk is checked.
const LOOK: Duration = Duration::from_millis(200);

/// How long a leader without room waits between two attempts to hand over.
const HAND_OVER_PAUSE: Duration = Duration::from_secs(10);

impl<M: Machine> Core<M> {
    /// Takes what a member reports.
    pub(crate) fn hear_of_room(&self, from: NodeId, room: Option<Room>) {
        let before = self.rooms.heard.lock().insert(from, (Instant::now(), room));
        if before.is_none_or(|(_, before)| before != room) {
            self.judge_room();
        }
    }

    /// Decides what is refused.
    fn judge_room(&self) {
        let metrics = self.metrics();
        let configs = metrics.membership_config.membership().get_joint_config();
        let (heard, own) = (self.rooms.heard.lock().clone(), Room::of(self.space()));
        let of = |id: NodeId| if id == self.config.id { Some(own) } else { Rooms::of(&heard, id) };
        let least = |need: Need| {
            let of_config = |voters: &BTreeSet<NodeId>| {
                of_majority(voters.iter().map(|id| of(*id).map(|room| room.for_need(need))))
            };
            configs.iter().map(of_config).min().unwrap_or(u64::MAX)
        };
        let voters: BTreeSet<NodeId> = configs.iter().flatten().copied().collect();
        let short = voters.into_iter().filter(|id| of(*id).is_some_and(|room| room.growth == 0)).collect();
        self.rooms.set(least(Need::Growth), least(Need::Entry), short);
    }

    /// Leader only: the voters that have room for more data.
    fn roomy_voters(&self) -> BTreeSet<NodeId> {
        let heard = self.rooms.heard.lock().clone();
        let metrics = self.metrics();
        let voters = metrics.membership_config.membership().voter_ids();
        voters.filter(|id| Rooms::of(&heard, *id).is_some_and(|room| room.growth > 0)).collect()
    }

    /// The log up to the last checkpoint helps followers that lag, but not a full disk.
    async fn purge_all(&self) {
        let (purged, checkpoint) = (self.metrics().purged, self.checkpointer.last().last_log_id);
        if let Some(checkpoint) = checkpoint
            && purged.is_none_or(|purged| purged.index < checkpoint.index)
            && let Err(error) = self.raft.trigger().purge_log(checkpoint.index).await
        {
            tracing::debug!(%error, "the log could not be purged");
        }
    }
}

/// Watches the disk, for ever, and acts on its state.
pub(crate) async fn watch<M: Machine>(core: Arc<Core<M>>) {
    let space = core.space().clone();
    if !space.is_known() {
        // Nothing can be seen, and nothing is refused for it.
        return std::future::pending().await;
    }
    let mut before = None;
    let mut handed_over: Option<Instant> = None;
    loop {
        let _ = tokio::time::timeout(LOOK, space.changed()).await;
        let looking = space.clone();
        // It fails only by a panic, which is reported.
        let _ = core.table.platform.block(move || looking.look()).await;
        core.judge_room();
        let state = space.disk().state;
        if before.replace(state) != Some(state) {
            core.rooms.news.notify_one();
            core.changes.send_modify(|count| *count += 1);
        }
        if state == DiskState::Ample {
            continue;
        }
        core.checkpointer.consider();
        core.purge_all().await;
        let may_hand_over = handed_over.is_none_or(|at| at.elapsed() >= HAND_OVER_PAUSE);
        if state >= DiskState::Short && may_hand_over && core.is_leader() {
            handed_over = Some(Instant::now());
            hand_over(&core);
        }
    }
}

/// A leader without room hands over to a voter that has some.
fn hand_over<M: Machine>(core: &Arc<Core<M>>) {
    let Some(successor) = core.successor_among(&core.roomy_voters()) else { return };
    tracing::warn!(successor, "this leader's disk has no room for more data: handing the leadership over");
    let core = core.clone();
    tokio::spawn(async move {
        if core.transfer(successor).await.is_err() {
            tracing::debug!(successor, "the leadership was not taken over");
        }
    });
}
