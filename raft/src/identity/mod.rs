//! Who this node is: the lock on its data directory and the identity file in it.
//!
//! Files: `greetings.rs` judges the peers that it talks to, and learns from them the cluster's id, its time and
//! the lives of their disks; `directory.rs` is the lock and the file, `address.rs` says which ids and addresses are allowed,
//! `lives.rs` tells the starts of a disk apart, and `witness.rs` remembers how far the peers' disks were.

pub(crate) mod address;
pub(crate) mod directory;
mod greetings;
pub(crate) mod lives;
pub(crate) mod witness;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{
    NodeId, StartError, chance,
    clock::Clock,
    elections::distance::Distances,
    identity::{
        address::{check_address, is_unspecified},
        directory::{Content, IdentityFile},
        witness::{Begun, Held, Known, Witness},
    },
    net::{handshake::Hello, horizon::Horizon},
    platform::Platform,
    safeguard::{self, Safeguard},
    sparse::Sparse,
    types::{LogId, MemberNode},
};

/// How many peers are remembered while no membership says who is one.
const PEERS_MAX: usize = 256;

/// The endpoint under which a node publishes its disk id.
pub(crate) const DISK_ENDPOINT: &str = "disk";

/// A node's address, as it gave it in one life of its disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) life: u64,
    pub(crate) address: String,
}

/// What a node says of itself besides what its directory holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Introduction {
    /// The ids of the members of the cluster that it was told to form; empty if it was told none.
    pub first_members: Vec<NodeId>,
    /// The highest level at which it can apply entries.
    pub apply_level_max: u32,
}

/// How far a peer's log matches this node's while it leads, as openraft knows it.
type Matched = Box<dyn Fn(NodeId) -> Option<LogId> + Send + Sync>;

/// One data directory, held by this process.
pub(crate) struct Identity {
    file: Arc<IdentityFile>,
    platform: Platform,
    introduction: Introduction,
    /// The level at which entries are applied, shared with the applier.
    apply_level: Arc<AtomicU32>,
    /// Whether the log has anything in it.
    has_entries: AtomicBool,
    /// Where peers reach this node, once it listens.
    address: OnceLock<String>,
    /// The random id of this process.
    boot: u64,
    /// What was on the disk when this process began, once that was read.
    begun_with: Mutex<Held>,
    /// The addresses that peers give for themselves, and in which lives of their disks.
    told: Mutex<BTreeMap<NodeId, Told>>,
    /// What is known of the peers' disks.
    pub(crate) witness: Witness,
    /// How far away the peers are.
    pub(crate) distances: Distances,
    matched: OnceLock<Matched>,
    /// How far the terms and indexes of a disk may be ahead of this node's.
    horizon: OnceLock<Box<dyn Fn() -> Horizon + Send + Sync>>,
    clock: Arc<Clock>,
    /// The members, with the ids of their disks as far as the membership has them.
    members: Mutex<BTreeMap<NodeId, Option<String>>>,
    /// Ids of nodes that were removed.
    retired: Mutex<BTreeSet<NodeId>>,
    /// Changes with `members` and `retired`: a peer that was welcome may not be any more.
    judgement: AtomicU64,
    /// The last greeting of each peer that was not objected to.
    seen: Mutex<BTreeMap<NodeId, Hello>>,
    /// The peer that refused this node, and why; None if the last greeting was not refused.
    refusal: Mutex<Option<(NodeId, String)>>,
    /// A peer that says that this disk went back to an older copy, and its evidence.
    went_back: Mutex<Option<(NodeId, String)>>,
    /// Peers whose disks went back to an older copy: the start that showed it, and the evidence.
    old_disks: Mutex<BTreeMap<NodeId, (u64, String)>>,
    /// Peers that belong to another cluster.
    strangers: Mutex<BTreeSet<NodeId>>,
    /// Whose disks are said to hold what no disk can, as far as that was logged.
    unreasonable: Mutex<Sparse<NodeId>>,
    /// A peer whose cluster was recovered from this node's, and that cluster's id.
    successor: Mutex<Option<(NodeId, String)>>,
    /// Why this version cannot follow its cluster, once a peer has shown that.
    outgrown: Mutex<Option<String>>,
    _lock: File,
}

impl Identity {
    /// Creates or opens the directory and locks it for as long as the value lives. Begins a new life of it.
    pub(crate) fn open(
        dir: &Path,
        node_id: NodeId,
        introduction: Introduction,
        clock: &Arc<Clock>,
        platform: &Platform,
    ) -> Result<Identity, StartError> {
        let io = |context: String| move |source| StartError::Io { context, source };
        std::fs::create_dir_all(dir).map_err(io(format!("cannot create {}", dir.display())))?;
        let lock = directory::lock(dir)?;
        let space = &platform.space;
        space.open();
        let content = match directory::read(dir)? {
            Some(content) => content,
            None => {
                let content = Content::new(node_id);
                let saved = space.with_room(|| directory::save(dir, &content));
                saved.map_err(io(format!("cannot write to {}", dir.display())))?;
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
        let witness = Witness::open(dir);
        let witness =
            witness.map_err(io(format!("cannot read what {} knows of other disks", dir.display())))?;
        let file = IdentityFile::new(dir, space.clone(), content);
        // Durable before any peer hears of it.
        file.change(|content| content.lives.begin())
            .map_err(io(format!("cannot write to {}", dir.display())))?;
        Ok(Identity {
            file: Arc::new(file),
            platform: platform.clone(),
            introduction,
            apply_level: Arc::default(),
            has_entries: AtomicBool::new(false),
            address: OnceLock::new(),
            boot: chance::id(),
            begun_with: Mutex::default(),
            told: Mutex::default(),
            witness,
            distances: Distances::default(),
            matched: OnceLock::new(),
            horizon: OnceLock::new(),
            clock: clock.clone(),
            members: Mutex::default(),
            retired: Mutex::default(),
            judgement: AtomicU64::new(0),
            seen: Mutex::default(),
            refusal: Mutex::default(),
            went_back: Mutex::default(),
            old_disks: Mutex::default(),
            strangers: Mutex::default(),
            unreasonable: Mutex::default(),
            successor: Mutex::default(),
            outgrown: Mutex::default(),
            _lock: lock,
        })
    }

    pub(crate) fn node_id(&self) -> NodeId {
        self.file.look(|content| content.node_id)
    }

    pub(crate) fn disk_id(&self) -> String {
        self.file.look(|content| content.disk_id.clone())
    }

    /// None while this node is not part of a cluster.
    pub(crate) fn cluster_id(&self) -> Option<String> {
        Some(self.file.look(|content| content.cluster_id.clone())).filter(|id| !id.is_empty())
    }

    /// Whether this node has been a member: if so, an empty log is a lost one.
    pub(crate) fn has_log(&self) -> bool {
        self.file.look(|content| content.has_log)
    }

    /// Records that the log is not empty: this node is, or was, part of a cluster.
    pub(crate) fn note_entries(&self) {
        self.has_entries.store(true, Ordering::Relaxed);
    }

    /// The members' addresses as last known.
    pub(crate) fn peers(&self) -> BTreeMap<NodeId, String> {
        self.file.look(|content| content.peers.clone())
    }

    /// One of the peers that belong to another cluster, if they are more than half of the `others`: then it is
    /// this node that is in the wrong place.
    pub(crate) fn stranger(&self, others: usize) -> Option<NodeId> {
        let strangers = self.strangers.lock();
        let is_alone = strangers.len() * 2 > others;
        strangers.first().filter(|_| is_alone).copied()
    }

    /// A peer that says that its cluster was recovered from this node's, and its cluster's id.
    pub(crate) fn successor(&self) -> Option<(NodeId, String)> {
        self.successor.lock().clone()
    }

    /// Why this version cannot follow its cluster.
    pub(crate) fn outgrown(&self) -> Option<String> {
        self.outgrown.lock().clone()
    }

    /// Gives a new cluster its id.
    pub(crate) fn form_cluster(&self) -> std::io::Result<()> {
        self.file.change(|content| content.cluster_id = directory::random_id())
    }

    /// Takes the members and their disk ids from the membership.
    pub(crate) fn learn_members<'a>(&self, members: impl Iterator<Item = (&'a NodeId, &'a MemberNode)>) {
        let disk_of = |(id, node): (&NodeId, &MemberNode)| (*id, node.endpoints.get(DISK_ENDPOINT).cloned());
        let members: BTreeMap<NodeId, Option<String>> = members.map(disk_of).collect();
        if std::mem::replace(&mut *self.members.lock(), members.clone()) != members {
            self.judgement.fetch_add(1, Ordering::Release);
        }
    }

    /// Whether this node knows a membership at all.
    pub(crate) fn has_members(&self) -> bool {
        !self.members.lock().is_empty()
    }

    fn is_member(&self, id: NodeId) -> bool {
        self.members.lock().contains_key(&id)
    }

    /// Saves the members' addresses, and that this node is a member, if a committed entry says so and its log
    /// is on the disk. Blocks.
    pub(crate) fn save_members(
        &self,
        peers: BTreeMap<NodeId, String>,
        is_member: bool,
    ) -> std::io::Result<()> {
        self.file.change(|content| {
            content.met.retain(|id, _| peers.contains_key(id));
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

    /// The level at which entries are applied, for the applier to maintain. As soon as it rises, greetings
    /// say so, and a peer that cannot follow is not welcome any more.
    pub(crate) fn apply_level(&self) -> Arc<AtomicU32> {
        self.apply_level.clone()
    }

    /// Stops all writing to the directory. Blocks.
    pub(crate) fn close(&self) {
        self.file.close();
        self.witness.close();
    }

    /// Sets the address at which peers reach this node.
    pub(crate) fn set_address(&self, address: &str) {
        self.address.get_or_init(|| address.to_owned());
    }

    /// Takes the address of a peer, from itself or from another member that has heard it. Whether it is right
    /// shows when the peer is greeted.
    pub(crate) fn hear_of_address(&self, id: NodeId, heard: &Told) {
        let is_sound = check_address(&heard.address).is_ok() && !is_unspecified(&heard.address);
        let may_be_peer = id != self.node_id() && (self.is_member(id) || !self.has_members());
        let mut told = self.told.lock();
        let is_newest = told.get(&id).map_or(told.len() < PEERS_MAX, |present| present.life <= heard.life);
        if is_sound && may_be_peer && is_newest {
            told.insert(id, heard.clone());
        }
    }

    /// Passes on the address that a peer gives for itself.
    pub(crate) fn with_told_address<R>(&self, id: NodeId, show: impl FnOnce(Option<&str>) -> R) -> R {
        show(self.told.lock().get(&id).map(|told| told.address.as_str()))
    }

    /// The addresses that peers give for themselves, and this node's.
    pub(crate) fn told_addresses(&self) -> BTreeMap<NodeId, Told> {
        let mut told = self.told.lock().clone();
        if let Some(address) = self.address.get() {
            let life = self.file.look(|content| content.lives.number);
            told.insert(self.node_id(), Told { life, address: address.clone() });
        }
        told
    }

    /// Sets what was on the disk when this process began.
    pub(crate) fn begin_with(&self, held: Held) {
        *self.begun_with.lock() = held;
    }

    /// Provides how far the followers' logs match this node's while it leads, and what a disk can hold.
    pub(crate) fn judge_by(
        &self,
        matched: impl Fn(NodeId) -> Option<LogId> + Send + Sync + 'static,
        horizon: impl Fn() -> Horizon + Send + Sync + 'static,
    ) {
        self.matched.get_or_init(|| Box::new(matched));
        self.horizon.get_or_init(|| Box::new(horizon));
    }

    /// This start of the node.
    fn begun(&self) -> Begun {
        let lives = self.file.look(|content| content.lives.clone());
        Begun { lives, boot: self.boot, with: *self.begun_with.lock() }
    }

    /// What is known of this disk, to tell others. `held` is what is durable on it.
    pub(crate) fn known(&self, held: Held) -> Option<Known> {
        let (disk_id, life) = self.file.look(|content| (content.disk_id.clone(), content.lives.present()));
        Some(Known { disk_id, life: life?, boot: self.boot, held })
    }

    /// Takes what the member `from` reports of a member's disk.
    pub(crate) fn hear_of_disk(&self, from: NodeId, id: NodeId, known: &Known) {
        if !self.is_member(id) || !self.is_within_reason(id, &known.held) {
            return;
        }
        self.witness.hear(id, known);
        if id == self.node_id() {
            let why = self.witness.objection(id, &self.disk_id(), &self.begun(), None);
            if let Some(why) = why.filter(|_| !safeguard::is_off(Safeguard::DiskWitness)) {
                *self.went_back.lock() = Some((from, why));
            }
        } else if self.old_disk(id).is_none()
            && self.seen(id).is_some_and(|hello| self.judge_disk(&hello).is_some())
        {
            // A peer that was welcome is not any more.
            self.judgement.fetch_add(1, Ordering::Release);
        }
    }

    /// The number of this disk's present life.
    #[cfg(feature = "simulation")]
    pub(crate) fn life(&self) -> u64 {
        self.file.look(|content| content.lives.number)
    }

    /// The newest known life of each peer's disk.
    #[cfg(feature = "simulation")]
    pub(crate) fn met(&self) -> BTreeMap<NodeId, u64> {
        self.file.look(|content| content.met.iter().map(|(id, met)| (*id, met.life.number)).collect())
    }

    /// Marks the state on this disk as not to be used, also by the next start. Blocks.
    pub(crate) fn distrust_state(&self, why: String) {
        tracing::error!(why, "this node ends, and takes its state anew from the others when it starts again");
        if let Err(error) = self.file.change(|content| content.distrusted_state = Some(why)) {
            (self.platform.fatal)(format!("cannot write the identity file: {error}"));
        }
    }

    /// Why the state on this disk is not to be used, if it is not.
    pub(crate) fn distrusted_state(&self) -> Option<String> {
        self.file.look(|content| content.distrusted_state.clone())
    }

    /// The state on this disk has been replaced and may be used again. Blocks.
    pub(crate) fn trust_state(&self) -> std::io::Result<()> {
        self.file.change(|content| content.distrusted_state = None)
    }

    /// A peer that says that this disk went back to an older copy, and its evidence.
    pub(crate) fn went_back(&self) -> Option<(NodeId, String)> {
        self.went_back.lock().clone()
    }

    /// A peer's last greeting that was not objected to.
    pub(crate) fn seen(&self, id: NodeId) -> Option<Hello> {
        self.seen.lock().get(&id).cloned()
    }

    /// A peer that refuses this node, and why.
    pub(crate) fn refusal(&self) -> Option<(NodeId, String)> {
        self.refusal.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Identity, Introduction};
    use crate::{Platform, StartError, clock::Clock};

    #[test]
    fn a_directory_belongs_to_one_node_and_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(Clock::new(Arc::new(|| 0)));
        let open = |id| Identity::open(dir.path(), id, Introduction::default(), &clock, &Platform::system());
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
