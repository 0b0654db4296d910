//! What a running node does by itself: follows the leadership, promotes learners, publishes its addresses,
//! lets keys expire on time, and watches its disk.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use openraft::async_runtime::watch::WatchReceiver;

use crate::{Machine, NodeId, node::core::Core, sparse::Sparse};

/// How often slow matters are attended to.
const UPKEEP: Duration = Duration::from_millis(100);

/// How late a key may expire on an idle cluster.
const DEADLINE_CHECK_MS: u64 = 50;

/// Follows openraft's view of leader, role and membership.
pub(crate) async fn follow<M: Machine>(core: Arc<Core<M>>) {
    let mut metrics = core.raft.server_metrics();
    let mut leader = None;
    let mut members = None;
    loop {
        // Copied: waiting for anything while openraft's metrics are borrowed stops its core.
        let (present, term, membership) = {
            let present = metrics.borrow_watched();
            (present.current_leader, present.vote.leader_id.term, present.membership_config.clone())
        };
        let leads = present == Some(core.config.id);
        let is_heard = leads || core.contact.is_heard();
        let current = present.filter(|_| is_heard);
        if leader != current {
            leader = current;
            match leader {
                Some(leader) => tracing::info!(leader, term, "there is a leader"),
                None => tracing::info!(term, "there is no leader"),
            }
            core.leader_changes.fetch_add(u64::from(leader.is_some()), Ordering::Relaxed);
            core.caught_up.store(false, Ordering::Release);
            core.leader.send_replace(leader);
        }
        // Without an entry this is openraft's initial value.
        if membership.log_id().is_some() && members.as_ref() != Some(&membership) {
            core.identity.learn_members(membership.membership().nodes());
            core.identity.note_entries();
            members = Some(membership);
        }
        core.changes.send_modify(|count| *count += 1);
        tokio::select! {
            biased;
            changed = metrics.changed() => if changed.is_err() {
                if !*core.stop.borrow() {
                    // It has panicked: a node without it serves nobody and looks alive.
                    (core.table.platform.fatal)("consensus has ended".to_owned());
                }
                return;
            },
            () = core.contact.silent(), if is_heard && !leads => {}
            () = core.contact.heard_again(), if !is_heard => {}
        }
    }
}

/// Saves what the identity file records of the membership. Apart from [`follow`], and while nothing of
/// openraft's is borrowed: a disk may take its time.
pub(crate) async fn save_members<M: Machine>(core: Arc<Core<M>>) {
    let mut changes = core.changes.subscribe();
    let mut saved = None;
    loop {
        let members = {
            let metrics = core.metrics();
            let committed = metrics.committed_membership_config.membership();
            let nodes = metrics.membership_config.membership().nodes();
            let peers: BTreeMap<NodeId, String> = nodes.map(|(id, node)| (*id, node.peer.clone())).collect();
            // What others have committed is known here before the log can be written: a disk may be full.
            let has_log = core.votes.durable_vote().is_some() || core.votes.durable_entry().is_some();
            (peers, has_log && committed.get_node(&core.config.id).is_some())
        };
        // Without members openraft has not said anything yet.
        if !members.0.is_empty() && saved.as_ref() != Some(&members) {
            let identity = core.identity.clone();
            let (peers, is_member) = members.clone();
            let save = move || identity.save_members(peers, is_member);
            match core.table.platform.block(save).await.flatten() {
                Ok(()) => saved = Some(members),
                // Tried again at the next change.
                Err(error) => tracing::warn!(%error, "the members' addresses could not be saved"),
            }
        }
        let is_saved = saved.as_ref().is_some_and(|(_, is_member)| *is_member);
        // That the log becomes durable is no such change.
        let patience = if is_saved { Duration::MAX } else { UPKEEP };
        // Cannot fail: the sender lives in `core`.
        let _ = tokio::time::timeout(patience, changes.changed()).await;
    }
}

/// Takes the ids of former members from what is applied: they are not welcome.
pub(crate) fn learn_retired<M: Machine>(core: &Core<M>) {
    core.applier.paused(|_, progress| core.identity.learn_retired(&progress.retired));
}

/// Membership upkeep and readiness.
pub(crate) async fn upkeep<M: Machine>(core: Arc<Core<M>>, peer_address: String) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        learn_retired(&core);
        if core.leader.borrow().is_none() {
            continue;
        }
        if !core.caught_up.load(Ordering::Acquire)
            && let Ok(index) = core.reads.join().await
        {
            // Limited in time: what was to be applied may be lost with its leader.
            if core.applied(index).await.is_ok() {
                core.caught_up.store(true, Ordering::Release);
                core.changes.send_modify(|count| *count += 1);
            }
        }
        core.publish_self(&peer_address).await;
        if core.is_leader() {
            core.finish_change().await;
            core.promote_learner().await;
        }
    }
}

/// Leader only: proposes a tick when something is due to expire and nobody proposes anything.
pub(crate) async fn tick_for_deadlines<M: Machine>(core: Arc<Core<M>>) {
    loop {
        let mut wait_ms = DEADLINE_CHECK_MS;
        if core.is_leader()
            && let Some(deadline_ms) = core.applier.machine.next_deadline_ms()
        {
            let now_ms = core.clock.estimate_ms();
            if now_ms > deadline_ms {
                // Without a majority nothing expires; tried again.
                if core.ticks.join().await.is_ok() {
                    wait_ms = 1;
                }
            } else {
                wait_ms = (deadline_ms - now_ms + 1).min(DEADLINE_CHECK_MS);
            }
        }
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
    }
}

/// Heartbeats do not touch the disk, so a leader whose disk has stalled would stay leader and serve nobody:
/// it hands over, and if nobody takes over it falls silent, so that the others elect a leader.
pub(crate) async fn watch_disk<M: Machine>(core: Arc<Core<M>>) {
    let stall = Duration::from_millis(core.config.disk_stall_ms);
    let (mut silent, mut said) = (false, Sparse::default());
    loop {
        tokio::time::sleep(stall / 8).await;
        let stalled_for = core.log.stats().fsync_in_progress_since.map(|since| since.elapsed());
        match stalled_for {
            Some(time) if time > stall && core.is_leader() => {
                if time > 2 * stall && !silent {
                    tracing::error!("the disk has not answered for {time:?}: this leader falls silent");
                    core.raft.runtime_config().heartbeat(false);
                    silent = true;
                } else if let Some(successor) = core.successor() {
                    // A full disk may stay so for hours, and the others may be full too.
                    if let Some(times) = said.say(successor) {
                        tracing::error!(
                            successor,
                            times,
                            "the disk has not answered for {time:?}: handing the leadership over"
                        );
                    }
                    // A failure shows in the next round.
                    let _ = core.raft.trigger().transfer_leader(successor).await;
                }
            }
            None if silent => {
                tracing::warn!("the disk answers again");
                core.raft.runtime_config().heartbeat(true);
                silent = false;
            }
            _ => {}
        }
    }
}
