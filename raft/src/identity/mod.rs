//! Who this node is: the lock on its data directory and the identity file in it. Judges the peers that it
//! talks to, and learns from them the cluster's id, its time and the lives of their disks.
//!
//! Files: `directory.rs` is the lock and the file, `address.rs` says which ids and addresses are allowed,
//! `lives.rs` tells the starts of a disk apart, and `witness.rs` remembers how far the peers' disks were.

pub(crate) mod address;
pub(crate) mod directory;
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
    time::Duration,
};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{
    NodeId, StartError, chance,
    clock::Clock,
    elections::distance::Distances,
    identity::{
        address::{check_address, is_unspecified},
        directory::{Content, IdentityFile},
        witness::{Begun, Held, Known, Met, Witness},
    },
    net::{
        handshake::{Hello, PROTOCOL_OLDEST, PROTOCOL_VERSION, objection, outgrown},
        peer::Greeter,
    },
    platform::Platform,
    safeguard::{self, Safeguard},
    types::{LogId, MemberNode},
};

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
    clock: Arc<Clock>,
    /// The disk ids in the membership.
    disks: Mutex<BTreeMap<NodeId, String>>,
    /// Ids of nodes that were removed.
    retired: Mutex<BTreeSet<NodeId>>,
    /// Changes with `disks` and `retired`: a peer that was welcome may not be any more.
    judgement: AtomicU64,
    /// The last greeting of each peer that was not objected to.
    seen: Mutex<BTreeMap<NodeId, Hello>>,
    /// The peer that refused this node, and why; None if the last greeting was not refused.
    refusal: Mutex<Option<(NodeId, String)>>,
    /// A peer that says that this disk went back to an older copy, and its evidence.
    went_back: Mutex<Option<(NodeId, String)>>,
    /// Peers whose disks went back to an older copy: the start that showed it, and the evidence.
    old_disks: Mutex<BTreeMap<NodeId, (u64, String)>>,
    /// Peers that belong to another cluster, and that cluster's id.
    strangers: Mutex<BTreeMap<NodeId, String>>,
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
            clock: clock.clone(),
            disks: Mutex::default(),
            retired: Mutex::default(),
            judgement: AtomicU64::new(0),
            seen: Mutex::default(),
            refusal: Mutex::default(),
            went_back: Mutex::default(),
            old_disks: Mutex::default(),
            strangers: Mutex::default(),
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

    /// One of the peers that belong to another cluster, and that cluster's id, if they are more than half of
    /// the `others`: then it is this node that is in the wrong place.
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

    /// Gives a new cluster its id.
    pub(crate) fn form_cluster(&self) -> std::io::Result<()> {
        self.file.change(|content| content.cluster_id = directory::random_id())
    }

    /// Takes the members' disk ids from the membership.
    pub(crate) fn learn_disks<'a>(&self, members: impl Iterator<Item = (&'a NodeId, &'a MemberNode)>) {
        let disk_of =
            |(id, node): (&NodeId, &MemberNode)| Some((*id, node.endpoints.get(DISK_ENDPOINT)?.clone()));
        let disks: BTreeMap<NodeId, String> = members.filter_map(disk_of).collect();
        if std::mem::replace(&mut *self.disks.lock(), disks.clone()) != disks {
            self.judgement.fetch_add(1, Ordering::Release);
        }
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

    /// Takes the address of a peer, from itself or from another node that has heard it. Whether it is right
    /// shows when the peer is greeted.
    pub(crate) fn hear_of_address(&self, id: NodeId, heard: &Told) {
        let is_sound = check_address(&heard.address).is_ok() && !is_unspecified(&heard.address);
        let mut told = self.told.lock();
        if is_sound && id != self.node_id() && told.get(&id).is_none_or(|present| present.life <= heard.life)
        {
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

    /// Provides how far the followers' logs match this node's while it leads.
    pub(crate) fn judge_by(&self, matched: impl Fn(NodeId) -> Option<LogId> + Send + Sync + 'static) {
        self.matched.get_or_init(|| Box::new(matched));
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

    /// Takes what the peer `from` reports of a disk.
    pub(crate) fn hear_of_disk(&self, from: NodeId, id: NodeId, known: &Known) {
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

    /// Takes what a peer says of this disk in a greeting.
    pub(crate) fn hear_of_older_disk(&self, greeting: &Hello) {
        if !greeting.went_back.is_empty() {
            *self.went_back.lock() = Some((greeting.node_id, greeting.went_back.clone()));
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

    /// A peer's last greeting that was not objected to.
    pub(crate) fn seen(&self, id: NodeId) -> Option<Hello> {
        self.seen.lock().get(&id).cloned()
    }

    /// A peer that refuses this node, and why.
    pub(crate) fn refusal(&self) -> Option<(NodeId, String)> {
        self.refusal.lock().clone()
    }

    /// Why this node must not talk to the sender of `theirs`. Remembers peers that belong to another cluster.
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
        let objection = objection.or_else(|| self.judge_disk(theirs));
        if objection.is_none() {
            self.seen.lock().insert(theirs.node_id, theirs.clone());
        }
        objection
    }

    /// Why a peer's disk must have gone back to an older copy.
    fn judge_disk(&self, theirs: &Hello) -> Option<String> {
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
            let is_member = self.disks.lock().get(&theirs.node_id) == Some(&theirs.disk_id);
            (self.has_log() && theirs.cluster_id.is_empty() && !is_member).then(|| {
                format!("node {} is no member of the cluster, which is formed already", theirs.node_id)
            })
        })
    }

    /// Learns from a peer when neither side objects. What the peer says of its disk is durable afterwards.
    pub(crate) async fn learn(&self, theirs: &Hello) -> Result<(), String> {
        if let Some(clock_ms) = theirs.clock_ms {
            self.clock.learn_ms(clock_ms);
        }
        let joins = self.cluster_id().is_none() && !theirs.cluster_id.is_empty();
        let present = theirs.begun.lives.present();
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
        let told = Told { life: theirs.begun.lives.number, address: theirs.address.clone() };
        self.hear_of_address(theirs.node_id, &told);
        if let Some(Met { disk_id, life }) = met {
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
    if let Some(met) = met {
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
        }
    }

    fn greeted<'a>(&'a self, answer: &'a Hello) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let objection = self.judge(answer);
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
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use super::{Begun, Greeter, Held, Hello, Identity, Introduction, Known, LogId};
    use crate::identity::lives::Lives;
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

    /// A peer's greeting in one start of its disk.
    fn greeting(number: u64, boot: u64, index: u64) -> Hello {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(Clock::new(Arc::new(|| 0)));
        let peer =
            Identity::open(dir.path(), 2, Introduction::default(), &clock, &Platform::system()).unwrap();
        let names = (1..=number).collect();
        let lives = Lives { number, names, is_met: true };
        let with = Held { last: Some((1, index)), voted: 1 };
        Hello { disk_id: "disk".into(), begun: Begun { lives, boot, with }, ..peer.hello(1) }
    }

    #[tokio::test]
    async fn a_disk_is_judged_by_what_was_committed_and_by_the_start_that_had_it() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(Clock::new(Arc::new(|| 0)));
        let identity =
            Identity::open(dir.path(), 1, Introduction::default(), &clock, &Platform::system()).unwrap();
        let matched = Arc::new(AtomicU64::new(0));
        let told = matched.clone();
        identity.judge_by(move |_| Some(LogId::new_term_index(1, told.load(Ordering::Relaxed))));
        let welcome = async |hello: &Hello| {
            assert_eq!(identity.judge(hello), None);
            identity.learn(hello).await.unwrap();
        };
        welcome(&greeting(1, 7, 90)).await;
        // Entries that were not committed may be truncated.
        welcome(&greeting(2, 8, 50)).await;
        matched.store(60, Ordering::Relaxed);
        // It has acknowledged these since: it need not have begun with them.
        welcome(&greeting(2, 8, 50)).await;
        assert!(identity.judge(&greeting(3, 9, 59)).unwrap().contains("had acknowledged 60"));
        welcome(&greeting(3, 9, 60)).await;
        // What is reported of another start of the same life changes nothing.
        let other = Known { boot: 10, ..identity.witness.newest(2).unwrap() };
        identity.witness.hear(2, &other);
        matched.store(70, Ordering::Relaxed);
        welcome(&greeting(3, 9, 60)).await;
        // A connection of an earlier start is judged anew: what follows from that is not said of this one.
        assert!(identity.judge(&greeting(2, 8, 50)).is_some());
        assert!(identity.old_disk_of(&greeting(2, 8, 50)).is_some());
        assert_eq!(identity.old_disk_of(&greeting(3, 9, 60)), None);
    }
}
