//! What the members tell each other twice a second, each to each: how far their disks are, what they know of
//! the others' disks, and the time by the log clock. Nobody waits for it. However late it
//! arrives it stays true, except how much room a disk has, which expires (`room.rs`). JSON, like administrative requests.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    Machine, NodeId,
    agreement::trail::Mark,
    identity::{
        Told,
        witness::{Held, Known},
    },
    net::{
        frame::Kind,
        handshake::{Hello, PROTOCOL_REPORTS},
    },
    node::core::Core,
    space::room::Room,
    types::{GROUP, LogId},
};

/// The time between two reports.
const EVERY: Duration = Duration::from_millis(500);

/// How long a member may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// How many reports pass between two writes of the witness's file.
const SAVED_EVERY: u32 = 2;

/// What one member says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Report {
    /// The sender.
    from: NodeId,
    /// What is known of disks, its own among them.
    disks: Vec<(NodeId, Known)>,
    /// What it has applied, as a running hash at some indexes.
    trail: Vec<Mark>,
    /// The digests of its pages at its last checkpoints.
    states: Vec<Mark>,
    /// The addresses that nodes give for themselves, its own among them.
    addresses: BTreeMap<NodeId, Told>,
    /// From the leader: the log clock, in microseconds since the Unix epoch.
    clock_us: Option<u64>,
    /// What its disk has room for. None from a version that does not report it.
    room: Option<Room>,
}

impl<M: Machine> Core<M> {
    /// The last entry that is committed, and durable on this node.
    fn acknowledged(&self) -> Option<LogId> {
        let applied = self.applier.paused(|_, progress| progress.last)?;
        let durable = self.votes.durable_entry()?;
        Some(if durable.index < applied.index { durable } else { applied })
    }

    fn report(&self) -> Report {
        let voted = self.votes.durable_vote().map_or(0, |vote| vote.leader_id.term);
        let own = self.identity.known(Held::new(self.acknowledged(), voted));
        let own = own.map(|known| (self.config.id, known));
        let disks = self.identity.witness.all().into_iter().chain(own).collect();
        Report {
            from: self.config.id,
            disks,
            trail: self.applier.told(),
            states: self.checkpointer.states(),
            addresses: self.identity.told_addresses(),
            clock_us: if self.is_leader() { self.clock.say_us() } else { None },
            room: Some(Room::of(self.space())),
        }
    }

    /// Answers a member's report with this node's, and that of another node with an empty one.
    pub(crate) fn answer_report(&self, from: &Hello, body: &[u8]) -> Result<Vec<u8>, String> {
        let heard: Report = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        if !self.identity.names(from) || heard.from != from.node_id {
            return Ok(b"{}".to_vec());
        }
        self.take_report(&heard, None);
        Ok(self.encoded_report())
    }

    fn encoded_report(&self) -> Vec<u8> {
        serde_json::to_vec(&self.report()).expect("a report has no maps with other keys than strings")
    }

    /// Takes in what a member says, in answer to a question sent at `asked`, or on its own.
    fn take_report(&self, heard: &Report, asked: Option<Instant>) {
        self.take_time(heard, asked);
        for (id, known) in &heard.disks {
            self.identity.hear_of_disk(heard.from, *id, known);
        }
        for (id, told) in &heard.addresses {
            self.identity.hear_of_address(*id, told);
        }
        self.hear_of_room(heard.from, heard.room);
        self.agreements.logs.compare(heard.from, &heard.trail, |index| self.applier.hash_at(index));
        self.agreements.states.compare(heard.from, &heard.states, |index| self.checkpointer.state_at(index));
        self.take_stand();
    }

    fn take_time(&self, heard: &Report, asked: Option<Instant>) {
        let Some(clock_us) = heard.clock_us else { return };
        // A deposed leader may continue for a while, and its clock with it.
        if *self.leader.borrow() != Some(heard.from) || self.is_leader() {
            return;
        }
        match asked {
            Some(asked) => self.clock.hear_us(clock_us, asked),
            None => self.clock.learn_us(clock_us),
        }
    }

    async fn exchange(&self, id: NodeId, report: &[u8]) {
        let Some(peer) = self.peer(id) else { return };
        let speaks = |hello: Hello| hello.protocol_version >= PROTOCOL_REPORTS;
        if peer.link().await.is_err() || !self.identity.seen(id).is_some_and(speaks) {
            return;
        }
        let asked = Instant::now();
        if let Ok(answer) = peer.call(Kind::Report, GROUP, report, PATIENCE).await
            && let Ok(heard) = serde_json::from_slice::<Report>(&answer)
            && heard.from == id
        {
            self.take_report(&heard, Some(asked));
        }
    }
}

/// Exchanges reports with all other members, for ever.
pub(crate) async fn exchange_reports<M: Machine>(core: Arc<Core<M>>) {
    let mut turn = 0_u32;
    loop {
        // News of the disk's room does not wait for its turn.
        let _ = tokio::time::timeout(EVERY, core.rooms.news.notified()).await;
        let others: Vec<NodeId> = {
            let metrics = core.metrics();
            metrics.membership_config.membership().nodes().map(|(id, _)| *id).collect()
        };
        let report = core.encoded_report();
        let exchanges = others.into_iter().filter(|id| *id != core.config.id).map(|id| {
            // A member that does not answer is asked again.
            tokio::time::timeout(PATIENCE, core.exchange(id, &report))
        });
        futures::future::join_all(exchanges).await;
        turn = turn.wrapping_add(1);
        if turn.is_multiple_of(SAVED_EVERY) {
            let identity = core.identity.clone();
            let saved = core.table.platform.block(move || identity.witness.save()).await.flatten();
            if let Err(error) = saved {
                tracing::debug!(%error, "what is known of the peers' disks could not be saved");
            }
        }
    }
}
