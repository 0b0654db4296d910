//! Whether a node is ready, which means that it can serve linearizable requests; and if not, why not, in one
//! place for all who ask: the HTTP API, INFO, metrics and the log.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use openraft::ServerState;
use tokio::time::Instant;

use crate::{
    Cause, DiskState, Machine, NotReady, Unavailable, elections::contact::Complaint, node::core::Core,
    space::room::Need, sparse, types::Metrics, want::Want,
};

/// How often to check whether something belongs in the log.
const LOOK: Duration = Duration::from_millis(500);

/// How long a node may not be ready before its log says so: every start and every failover takes a moment.
const SILENT: Duration = Duration::from_secs(3);

fn because(cause: Cause, why: impl Into<String>) -> Option<NotReady> {
    Some(NotReady { cause, why: why.into() })
}

impl<M: Machine> Core<M> {
    /// Why this node is not ready: of all reasons the one from which the others follow. A new reason has its
    /// place here.
    pub(crate) fn not_ready(&self, metrics: &Metrics) -> Option<NotReady> {
        self.log_waits()
            .or_else(|| self.disk_stalls())
            .or_else(|| self.is_no_member(metrics))
            .or_else(|| self.has_diverged())
            .or_else(|| self.has_no_leader())
            .or_else(|| self.has_no_majority(metrics))
            .or_else(|| self.refuses())
            .or_else(|| self.is_behind(metrics))
            .or_else(|| self.has_no_room())
    }

    fn log_waits(&self) -> Option<NotReady> {
        let want = self.space().log_waits_for()?;
        let dir = self.config.dir.display();
        if want == Want::Space {
            return because(Cause::DiskFull, format!("the disk is full: the log in {dir} waits for space"));
        }
        because(Cause::System, format!("the log in {dir} waits for {want}, which the system refuses"))
    }

    /// Other nodes are better asked. Where all disks are full, whoever makes room needs this node too.
    fn has_no_room(&self) -> Option<NotReady> {
        let disk = self.space().disk();
        if disk.state < DiskState::Short || self.rooms.shortage(Need::Growth).is_some() {
            return None;
        }
        let why = format!(
            "the disk is nearly full: {} bytes are free, and {} set aside; the other nodes have room",
            disk.free_bytes, disk.reserve_bytes
        );
        because(Cause::DiskFull, why)
    }

    fn disk_stalls(&self) -> Option<NotReady> {
        let time = self.log.stats().fsync_in_progress_since?.elapsed();
        // Reported before the node gives up its leadership because of it.
        if time < Duration::from_millis(self.config.disk_stall_ms / 2) {
            return None;
        }
        because(Cause::Disk, format!("the disk has not answered for {} ms", time.as_millis()))
    }

    fn is_no_member(&self, metrics: &Metrics) -> Option<NotReady> {
        if metrics.membership_config.membership().get_node(&self.config.id).is_some() {
            return None;
        }
        if let Some(why) = self.forming.lock().clone() {
            return because(Cause::NotFormed, why);
        }
        self.is_refused().or_else(|| because(Cause::NotMember, "this node is not a member of a cluster"))
    }

    fn has_diverged(&self) -> Option<NotReady> {
        because(Cause::Diverged, self.is_apart()?)
    }

    fn has_no_leader(&self) -> Option<NotReady> {
        if self.leader.borrow().is_some() {
            return None;
        }
        self.is_refused().or_else(|| because(Cause::NoLeader, "no leader is known"))
    }

    /// A node that its peers refuse knows no leader and is no longer a member: what they say is the reason.
    fn is_refused(&self) -> Option<NotReady> {
        let (peer, refusal) = self.identity.refusal()?;
        because(Cause::Refused, format!("node {peer} refuses this node: {refusal}"))
    }

    fn has_no_majority(&self, metrics: &Metrics) -> Option<NotReady> {
        if metrics.state == ServerState::Leader {
            if self.has_majority(metrics) {
                return None;
            }
            return because(Cause::NoMajority, "a majority of the members cannot be reached");
        }
        let leader = (*self.leader.borrow())?;
        match self.contact.complaint(leader)? {
            Complaint::IsAlone(_) => because(
                Cause::NoMajority,
                format!("node {leader}, which leads, cannot reach a majority of the members"),
            ),
            Complaint::DoesNotAnswer(since) if since.elapsed() >= self.contact_max() => {
                because(Cause::NoLeader, format!("node {leader}, which leads, does not answer"))
            }
            Complaint::DoesNotAnswer(_) => None,
        }
    }

    /// Still so for a moment after contact is restored.
    fn refuses(&self) -> Option<NotReady> {
        let why = self.contact.refusal()?;
        let cause = if why == Unavailable::NoLeader { Cause::NoLeader } else { Cause::NoMajority };
        because(cause, why.to_string())
    }

    fn is_behind(&self, metrics: &Metrics) -> Option<NotReady> {
        if metrics.state != ServerState::Leader && self.clock.live_ms().is_none() {
            return because(Cause::Behind, "this node has not heard the log's clock yet");
        }
        if self.caught_up.load(Ordering::Acquire) {
            return None;
        }
        because(Cause::Behind, "this node has not caught up with the leader yet")
    }
}

/// Writes into the log why the node is not ready when that lasts, and that it is ready again.
pub(crate) async fn watch<M: Machine>(core: Arc<Core<M>>) {
    let (mut since, mut said): (Option<Instant>, Option<Instant>) = (None, None);
    let mut is_said = false;
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(NotReady { why, .. }) = core.not_ready(&core.metrics()) else {
            if std::mem::take(&mut is_said) {
                tracing::info!("this node is ready again");
            }
            since = None;
            continue;
        };
        let time = since.get_or_insert_with(Instant::now).elapsed();
        if time >= SILENT && said.is_none_or(|said| said.elapsed() >= sparse::EVERY) {
            tracing::warn!(why, seconds = time.as_secs(), "this node is not ready");
            (said, is_said) = (Some(Instant::now()), true);
        }
    }
}
