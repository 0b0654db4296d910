//! What a node makes of its peers' greetings: whether it talks to them, and what it takes from them.
//!
//! Anybody can connect and say anything. So what is taken from a greeting depends on who is believed: a node
//! that the membership names, with the disk that it has there. While this node knows no membership, as when a
//! cluster is formed or a node joins, it is any that may be one of the first members. What ends this node or
//! replaces its own view (another cluster, a later version, an older disk) is taken only from peers that this
//! node has called, or believes.

use std::{sync::atomic::Ordering, time::Duration};

use futures::future::BoxFuture;

use super::{Identity, PEERS_MAX, Told, directory::Content};
use crate::{
    NodeId,
    identity::witness::{Held, Known, Met},
    net::{
        handshake::{Hello, PROTOCOL_OLDEST, PROTOCOL_VERSION, objection, outgrown},
        peer::Greeter,
    },
    safeguard::{self, Safeguard},
};

impl Identity {
    /// Whether the membership names the sender, with this disk.
    pub(crate) fn names(&self, theirs: &Hello) -> bool {
        match self.members.lock().get(&theirs.node_id) {
            Some(Some(disk)) => *disk == theirs.disk_id,
            Some(None) => true,
            None => false,
        }
    }

    /// Whether to believe what the sender says of others and of the time.
    pub(crate) fn believes(&self, theirs: &Hello) -> bool {
        let first_members = &self.introduction.first_members;
        let may_be_first = first_members.is_empty() || first_members.contains(&theirs.node_id);
        self.names(theirs) || !self.has_members() && may_be_first
    }

    /// Takes what a peer says of this disk in a greeting.
    fn hear_of_older_disk(&self, greeting: &Hello) {
        if !greeting.went_back.is_empty() {
            *self.went_back.lock() = Some((greeting.node_id, greeting.went_back.clone()));
        }
    }

    /// The caller `first` objects to this disk, with a second greeting.
    pub(crate) fn parted(&self, first: &Hello, second: &Hello) {
        if second.node_id == first.node_id && second.check().is_ok() && self.believes(first) {
            self.hear_of_older_disk(second);
        }
    }

    /// Why a peer's disk is an older copy, as far as this node knows.
    pub(crate) fn old_disk(&self, id: NodeId) -> Option<String> {
        self.old_disks.lock().get(&id).map(|(_, why)| why.clone())
    }

    /// The same, if it is the start that sends this greeting that has the older copy: another one may be
    /// refused for another reason.
    pub(crate) fn old_disk_of(&self, theirs: &Hello) -> Option<String> {
        let old_disks = self.old_disks.lock();
        let (_, why) = old_disks.get(&theirs.node_id).filter(|(boot, _)| *boot == theirs.begun.boot)?;
        Some(why.clone())
    }

    /// Why this node must not talk to the sender of `theirs`.
    pub(crate) fn judge(&self, theirs: &Hello) -> Option<String> {
        let known = self.members.lock().get(&theirs.node_id).cloned().flatten();
        let ours = self.hello(theirs.node_id);
        let objection = objection(&ours, theirs, known.as_deref());
        if self.believes(theirs) {
            self.note_outgrown(&ours, theirs, objection.as_ref());
        }
        let objection = objection.or_else(|| {
            let is_retired = self.retired.lock().contains(&theirs.node_id);
            is_retired.then(|| {
                format!(
                    "node {id} was removed from the cluster, and its id is never given again; set its data directory \
                     aside and join with a new id",
                    id = theirs.node_id
                )
            })
        });
        let objection = objection.or_else(|| self.judge_disk(theirs));
        if objection.is_none() && self.believes(theirs) {
            let mut seen = self.seen.lock();
            if seen.len() < PEERS_MAX || seen.contains_key(&theirs.node_id) {
                seen.insert(theirs.node_id, theirs.clone());
            }
        }
        objection
    }

    /// Why a peer's disk must have gone back to an older copy.
    pub(super) fn judge_disk(&self, theirs: &Hello) -> Option<String> {
        if safeguard::is_off(Safeguard::DiskWitness) {
            return None;
        }
        let id = theirs.node_id;
        // This node replicates to the start that was greeted last. Another start of the same disk must hold
        // as much.
        if let Some(matched) = self.matched.get().and_then(|matched| matched(id))
            && let Some(seen) = self.seen(id).filter(|seen| seen.begun.boot != theirs.begun.boot)
            && let Some(life) = seen.begun.lives.present()
        {
            let (disk_id, boot, held) = (seen.disk_id, seen.begun.boot, Held::new(Some(matched), 0));
            self.witness.hear(id, &Known { disk_id, life, boot, held });
        }
        let met = self.file.look(|content| content.met.get(&id).cloned());
        let why = self.witness.objection(id, &theirs.disk_id, &theirs.begun, met.as_ref());
        let mut old_disks = self.old_disks.lock();
        match &why {
            Some(why) => old_disks.insert(id, (theirs.begun.boot, why.clone())),
            None => old_disks.remove(&id),
        };
        why.map(|why| {
            format!(
                "node {id} came back with an older copy of its disk ({why}): what it acknowledged and voted since is lost, \
                 so its id must not be used again; remove it (DELETE /v1/cluster/members/{id}) and join with a new id"
            )
        })
    }

    /// As `judge`, for a caller: a node without data that is no member must be told that the cluster is
    /// formed, also by a node that has not heard the cluster's id.
    pub(crate) fn judge_caller(&self, theirs: &Hello) -> Option<String> {
        self.judge(theirs).or_else(|| {
            let known = self.members.lock().get(&theirs.node_id).cloned().flatten();
            let is_member = known.is_some_and(|disk| disk == theirs.disk_id);
            (self.has_log() && theirs.cluster_id.is_empty() && !is_member).then(|| {
                format!("node {} is no member of the cluster, which is formed already", theirs.node_id)
            })
        })
    }

    /// Remembers that a peer whose version is later than this node's cannot be followed any more.
    fn note_outgrown(&self, ours: &Hello, theirs: &Hello, objection: Option<&String>) {
        if objection.is_some() && objection == outgrown(ours, theirs).as_ref() {
            *self.outgrown.lock() = objection.cloned();
        }
    }

    /// As `judge`, for the answer of a peer that this node has called. Remembers if the peer belongs to another
    /// cluster: this node may be the one that is in the wrong place.
    fn judge_answer(&self, answer: &Hello) -> Option<String> {
        let (ours, theirs) = (self.cluster_id(), &answer.cluster_id);
        if ours.as_ref().is_some_and(|ours| !theirs.is_empty() && ours != theirs) {
            self.strangers.lock().insert(answer.node_id);
            if ours.is_some_and(|ours| answer.former_clusters.contains(&ours)) {
                *self.successor.lock() = Some((answer.node_id, theirs.clone()));
            }
        } else {
            self.strangers.lock().remove(&answer.node_id);
        }
        if answer.refusal.is_empty() {
            return self.judge(answer);
        }
        // It does not say which disk it has.
        let own = self.hello(answer.node_id);
        let objection = objection(&own, answer, None);
        self.note_outgrown(&own, answer, objection.as_ref());
        if objection.is_none() {
            let mut seen = self.seen.lock();
            let seen = seen.entry(answer.node_id).or_insert_with(|| answer.clone());
            seen.has_log |= answer.has_log;
        }
        objection
    }

    /// Whether a disk of a member can hold this. Marks only grow, and refuse who has less.
    pub(super) fn is_within_reason(&self, id: NodeId, held: &Held) -> bool {
        let Some(horizon) = self.horizon.get().map(|horizon| horizon()) else { return true };
        let (term, index) = held.last.unwrap_or_default();
        let checked = horizon.check_term(term.max(held.voted)).and_then(|()| horizon.check_index(index));
        if let Err(why) = &checked
            && let Some(times) = self.unreasonable.lock().say(id)
        {
            tracing::error!(peer = id, why, times, "what is said of a peer's disk is not believed");
        }
        checked.is_ok()
    }

    /// Learns from a peer when neither side objects. What the peer says of its disk is durable afterwards.
    pub(crate) async fn learn(&self, theirs: &Hello) -> Result<(), String> {
        let is_believed = self.believes(theirs);
        if is_believed {
            self.clock.hear_wall(theirs.node_id, theirs.wall_ms);
            theirs.clock_ms.into_iter().for_each(|clock_ms| self.clock.learn_ms(clock_ms));
        }
        let joins = self.cluster_id().is_none() && !theirs.cluster_id.is_empty();
        let present = theirs.begun.lives.present().filter(|_| is_believed);
        let met = present.map(|life| Met { disk_id: theirs.disk_id.clone(), life });
        let is_known = self.file.look(|content| {
            content.lives.is_met && (met.is_none() || content.met.get(&theirs.node_id) == met.as_ref())
        });
        if joins || !is_known {
            let (file, theirs, met) = (self.file.clone(), theirs.clone(), met.clone());
            let save = move || file.change(|content| take(content, &theirs, met));
            let saved = self.platform.block(save).await.flatten();
            saved.map_err(|error| format!("cannot save what a peer says of itself: {error}"))?;
        }
        if joins {
            tracing::info!(cluster_id = theirs.cluster_id, "this node is now part of the cluster");
        }
        if is_believed {
            let told = Told { life: theirs.begun.lives.number, address: theirs.address.clone() };
            self.hear_of_address(theirs.node_id, &told);
        }
        if let Some(Met { disk_id, life }) = met
            && self.is_within_reason(theirs.node_id, &theirs.begun.with)
        {
            // The end of its log need not be committed.
            let (boot, held) = (theirs.begun.boot, Held { last: None, ..theirs.begun.with });
            self.witness.hear(theirs.node_id, &Known { disk_id, life, boot, held });
        }
        Ok(())
    }
}

/// What a peer's greeting adds to the identity file.
fn take(content: &mut Content, theirs: &Hello, met: Option<Met>) {
    if content.cluster_id.is_empty() {
        content.cluster_id.clone_from(&theirs.cluster_id);
        content.former_clusters.clone_from(&theirs.former_clusters);
    }
    content.lives.is_met = true;
    if let Some(met) = met
        && (content.met.len() < PEERS_MAX || content.met.contains_key(&theirs.node_id))
    {
        content.met.insert(theirs.node_id, met);
    }
}

impl Greeter for Identity {
    fn hello(&self, to: NodeId) -> Hello {
        let content = self.file.look(Content::clone);
        Hello {
            protocol_version: PROTOCOL_VERSION,
            cluster_id: content.cluster_id,
            node_id: content.node_id,
            to,
            disk_id: content.disk_id,
            clock_ms: self.clock.live_ms(),
            refusal: String::new(),
            former_clusters: content.former_clusters,
            protocol_oldest: PROTOCOL_OLDEST,
            has_log: content.has_log || self.has_entries.load(Ordering::Relaxed),
            first_members: self.introduction.first_members.clone(),
            apply_level: self.apply_level.load(Ordering::Acquire),
            apply_level_max: self.introduction.apply_level_max,
            begun: self.begun(),
            address: self.address.get().cloned().unwrap_or_default(),
            went_back: String::new(),
            wall_ms: self.clock.wall_ms(),
        }
    }

    fn greeted<'a>(&'a self, answer: &'a Hello) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let objection = self.judge_answer(answer);
            let refusal = (!answer.refusal.is_empty()).then(|| (answer.node_id, answer.refusal.clone()));
            self.refusal.lock().clone_from(&refusal);
            self.hear_of_older_disk(answer);
            match (objection, refusal) {
                (Some(why), _) => Err(why),
                (None, Some((_, why))) => Err(format!("refused: {why}")),
                (None, None) => self.learn(answer).await,
            }
        })
    }

    fn parting(&self, answer: &Hello) -> Option<Hello> {
        Some(Hello { went_back: self.old_disk_of(answer)?, ..self.hello(answer.node_id) })
    }

    fn judgement(&self) -> u64 {
        // Both only grow, so the sum changes whenever either does.
        self.judgement.load(Ordering::Acquire) + u64::from(self.apply_level.load(Ordering::Acquire))
    }

    fn objection(&self, theirs: &Hello) -> Option<String> {
        self.judge(theirs)
    }

    fn measured(&self, id: NodeId, round_trip: Duration) {
        self.distances.take(id, round_trip);
    }
}

#[cfg(test)]
#[path = "greetings_tests.rs"]
mod tests;
