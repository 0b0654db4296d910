//! Who this node is: the lock on its data directory and the identity file in it. Judges the peers that it
//! talks to, and learns the cluster's id and time from them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use crate::{
    NodeId, StartError,
    clock::Clock,
    directory::{self, Content},
    net::{
        handshake::{Hello, PROTOCOL_VERSION, objection, outgrown},
        peer::Greeter,
    },
    types::MemberNode,
};

/// The endpoint under which a node publishes its disk id.
pub(crate) const DISK_ENDPOINT: &str = "disk";

/// What a node says of itself beside what its directory holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Introduction {
    /// The ids that it was told to form a cluster of; empty when it was told none.
    pub first_members: Vec<NodeId>,
    /// The highest level by which it can apply entries.
    pub apply_level_max: u32,
}

/// One data directory, held by this process.
pub(crate) struct Identity {
    dir: PathBuf,
    introduction: Introduction,
    /// The level by which it applies entries: the applier's own.
    apply_level: Arc<AtomicU32>,
    /// Whether the log has anything in it.
    has_entries: AtomicBool,
    content: Mutex<Content>,
    /// Held while the file is written. Nobody who only reads waits for the disk.
    saving: Mutex<()>,
    clock: Arc<Clock>,
    /// The disk ids in the membership.
    disks: Mutex<BTreeMap<NodeId, String>>,
    /// Ids of nodes that were removed.
    retired: Mutex<BTreeSet<NodeId>>,
    /// Changes with `disks` and `retired`: who was welcome may not be any more.
    judgement: AtomicU64,
    /// What peers said when they were last not objected to.
    seen: Mutex<BTreeMap<NodeId, Hello>>,
    /// The last peer that refused this node, and why; None when one has not since.
    refusal: Mutex<Option<(NodeId, String)>>,
    /// Peers that belong to another cluster, and that cluster's id.
    strangers: Mutex<BTreeMap<NodeId, String>>,
    /// A peer whose cluster was recovered from this node's, and that cluster's id.
    successor: Mutex<Option<(NodeId, String)>>,
    /// Why this version cannot follow its cluster, as soon as a peer has shown that.
    outgrown: Mutex<Option<String>>,
    _lock: File,
}

impl Identity {
    /// Creates or opens the directory and locks it for as long as the value lives.
    pub(crate) fn open(
        dir: &Path,
        node_id: NodeId,
        introduction: Introduction,
        clock: Arc<Clock>,
    ) -> Result<Identity, StartError> {
        let io = |context: String| move |source| StartError::Io { context, source };
        std::fs::create_dir_all(dir).map_err(io(format!("cannot create {}", dir.display())))?;
        let lock = directory::lock(dir)?;
        let content = match directory::read(dir)? {
            Some(content) => content,
            None => {
                let content = Content::new(node_id);
                directory::save(dir, &content).map_err(io(format!("cannot write to {}", dir.display())))?;
                content
            }
        };
        if content.node_id != node_id {
            return Err(StartError::OtherNode {
                dir: dir.to_owned(),
                found: content.node_id,
                expected: node_id,
            });
        }
        if let Some(unfinished) = content.unfinished {
            return Err(StartError::Unfinished { dir: dir.to_owned(), backup: unfinished.backup });
        }
        Ok(Identity {
            dir: dir.to_owned(),
            introduction,
            apply_level: Arc::default(),
            has_entries: AtomicBool::new(false),
            content: Mutex::new(content),
            saving: Mutex::default(),
            clock,
            disks: Mutex::default(),
            retired: Mutex::default(),
            judgement: AtomicU64::new(0),
            seen: Mutex::default(),
            refusal: Mutex::default(),
            strangers: Mutex::default(),
            successor: Mutex::default(),
            outgrown: Mutex::default(),
            _lock: lock,
        })
    }

    pub(crate) fn node_id(&self) -> NodeId {
        self.content.lock().node_id
    }

    pub(crate) fn disk_id(&self) -> String {
        self.content.lock().disk_id.clone()
    }

    /// None while this node is not part of a cluster.
    pub(crate) fn cluster_id(&self) -> Option<String> {
        Some(self.content.lock().cluster_id.clone()).filter(|id| !id.is_empty())
    }

    /// Whether this node has been a member: then an empty log is a lost one.
    pub(crate) fn has_log(&self) -> bool {
        self.content.lock().has_log
    }

    /// The log is not empty: this node is, or was, part of a cluster.
    pub(crate) fn note_entries(&self) {
        self.has_entries.store(true, Ordering::Relaxed);
    }

    /// The members' addresses as last known.
    pub(crate) fn peers(&self) -> BTreeMap<NodeId, String> {
        self.content.lock().peers.clone()
    }

    /// One of the peers that belong to another cluster, and that cluster's id, if they are more than half of the
    /// `others`: then it is this node that is in the wrong place.
    pub(crate) fn stranger(&self, others: usize) -> Option<(NodeId, String)> {
        let strangers = self.strangers.lock();
        let is_alone = strangers.len() * 2 > others;
        strangers.first_key_value().filter(|_| is_alone).map(|(id, cluster)| (*id, cluster.clone()))
    }

    /// A peer that says that its cluster was recovered from this node's, and its cluster's id.
    pub(crate) fn successor(&self) -> Option<(NodeId, String)> {
        self.successor.lock().clone()
    }

    /// Why this version cannot follow its cluster.
    pub(crate) fn outgrown(&self) -> Option<String> {
        self.outgrown.lock().clone()
    }

    /// Makes a new cluster's id.
    pub(crate) fn form_cluster(&self) -> std::io::Result<()> {
        self.change(|content| content.cluster_id = directory::random_id())
    }

    /// Takes the members' disks from the membership.
    pub(crate) fn learn_disks<'a>(&self, members: impl Iterator<Item = (&'a NodeId, &'a MemberNode)>) {
        let disk_of =
            |(id, node): (&NodeId, &MemberNode)| Some((*id, node.endpoints.get(DISK_ENDPOINT)?.clone()));
        let disks: BTreeMap<NodeId, String> = members.filter_map(disk_of).collect();
        if std::mem::replace(&mut *self.disks.lock(), disks.clone()) != disks {
            self.judgement.fetch_add(1, Ordering::Release);
        }
    }

    /// Saves the members' addresses, and that this node is one of them, if it is by an entry that is committed. Blocks.
    pub(crate) fn save_members(
        &self,
        peers: BTreeMap<NodeId, String>,
        is_member: bool,
    ) -> std::io::Result<()> {
        self.change(|content| {
            content.peers = peers;
            content.has_log |= is_member;
        })
    }

    /// Takes the ids of former members.
    pub(crate) fn learn_retired(&self, retired: &BTreeSet<NodeId>) {
        let mut known = self.retired.lock();
        if *known != *retired {
            known.clone_from(retired);
            self.judgement.fetch_add(1, Ordering::Release);
        }
    }

    /// The level by which entries are applied, for the applier to keep. From the moment that it rises, greetings say so,
    /// and who cannot follow is not welcome any more.
    pub(crate) fn apply_level(&self) -> Arc<AtomicU32> {
        self.apply_level.clone()
    }

    /// What a peer said when it was last not objected to.
    pub(crate) fn seen(&self, id: NodeId) -> Option<Hello> {
        self.seen.lock().get(&id).cloned()
    }

    /// A peer that refuses this node, and why.
    pub(crate) fn refusal(&self) -> Option<(NodeId, String)> {
        self.refusal.lock().clone()
    }

    fn change(&self, change: impl FnOnce(&mut Content)) -> std::io::Result<()> {
        let _turn = self.saving.lock();
        let before = self.content.lock().clone();
        let mut changed = before.clone();
        change(&mut changed);
        if changed != before {
            directory::save(&self.dir, &changed)?;
            *self.content.lock() = changed;
        }
        Ok(())
    }

    /// Why this node must not talk to the one that sent `theirs`. Remembers who belongs to another cluster.
    pub(crate) fn judge(&self, theirs: &Hello) -> Option<String> {
        let is_stranger =
            !theirs.cluster_id.is_empty() && self.cluster_id().is_some_and(|ours| ours != theirs.cluster_id);
        if is_stranger {
            self.strangers.lock().insert(theirs.node_id, theirs.cluster_id.clone());
            if self.cluster_id().is_some_and(|ours| theirs.former_clusters.contains(&ours)) {
                *self.successor.lock() = Some((theirs.node_id, theirs.cluster_id.clone()));
            }
        } else {
            self.strangers.lock().remove(&theirs.node_id);
        }
        let known = self.disks.lock().get(&theirs.node_id).cloned();
        let ours = self.hello(theirs.node_id);
        let objection = objection(&ours, theirs, known.as_deref());
        if objection.is_some() && objection == outgrown(&ours, theirs) {
            self.outgrown.lock().clone_from(&objection);
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
        if objection.is_none() {
            self.seen.lock().insert(theirs.node_id, theirs.clone());
        }
        objection
    }

    /// As `judge`, of one that calls: a node without data that is no member must hear that the cluster is formed, also
    /// from one that has not heard the cluster's id.
    pub(crate) fn judge_caller(&self, theirs: &Hello) -> Option<String> {
        self.judge(theirs).or_else(|| {
            let is_member = self.disks.lock().get(&theirs.node_id) == Some(&theirs.disk_id);
            (self.has_log() && theirs.cluster_id.is_empty() && !is_member).then(|| {
                format!("node {} is no member of the cluster, which is formed already", theirs.node_id)
            })
        })
    }

    /// Learns from a peer that was not objected to.
    pub(crate) fn learn(&self, theirs: &Hello) -> Result<(), String> {
        if let Some(clock_ms) = theirs.clock_ms {
            self.clock.learn_ms(clock_ms);
        }
        if self.cluster_id().is_none() && !theirs.cluster_id.is_empty() {
            let take = |content: &mut Content| {
                content.cluster_id.clone_from(&theirs.cluster_id);
                content.former_clusters.clone_from(&theirs.former_clusters);
            };
            self.change(take).map_err(|error| format!("cannot save the cluster's id: {error}"))?;
            tracing::info!(cluster_id = theirs.cluster_id, "this node is now part of the cluster");
        }
        Ok(())
    }
}

impl Greeter for Identity {
    fn hello(&self, to: NodeId) -> Hello {
        let content = self.content.lock();
        Hello {
            protocol_version: PROTOCOL_VERSION,
            cluster_id: content.cluster_id.clone(),
            node_id: content.node_id,
            to,
            disk_id: content.disk_id.clone(),
            clock_ms: self.clock.live_ms(),
            refusal: String::new(),
            former_clusters: content.former_clusters.clone(),
            protocol_oldest: PROTOCOL_VERSION,
            has_log: content.has_log || self.has_entries.load(Ordering::Relaxed),
            first_members: self.introduction.first_members.clone(),
            apply_level: self.apply_level.load(Ordering::Acquire),
            apply_level_max: self.introduction.apply_level_max,
        }
    }

    fn greeted(&self, answer: &Hello) -> Result<(), String> {
        let objection = self.judge(answer);
        let refusal = (!answer.refusal.is_empty()).then(|| (answer.node_id, answer.refusal.clone()));
        *self.refusal.lock() = refusal.clone();
        match (objection, refusal) {
            (Some(why), _) => Err(why),
            (None, Some((_, why))) => Err(format!("refused: {why}")),
            (None, None) => self.learn(answer),
        }
    }

    fn judgement(&self) -> u64 {
        // Both only grow.
        self.judgement.load(Ordering::Acquire) + u64::from(self.apply_level.load(Ordering::Acquire))
    }

    fn objection(&self, theirs: &Hello) -> Option<String> {
        self.judge(theirs)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Identity, Introduction};
    use crate::{StartError, clock::Clock};

    #[test]
    fn a_directory_belongs_to_one_node_and_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(Clock::new(Arc::new(|| 0)));
        let open = |id| Identity::open(dir.path(), id, Introduction::default(), clock.clone());
        let identity = open(3).unwrap();
        assert!(matches!(open(3), Err(StartError::Locked(_))));
        identity.form_cluster().unwrap();
        let (disk, cluster) = (identity.disk_id(), identity.cluster_id());
        drop(identity);
        let again = open(3).unwrap();
        assert_eq!((again.disk_id(), again.cluster_id()), (disk, cluster));
        drop(again);
        let other = open(4).err().unwrap();
        assert!(matches!(other, StartError::OtherNode { found: 3, expected: 4, .. }));
    }
}
