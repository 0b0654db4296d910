//! Who this node is: the lock on its data directory and the identity file in it. Judges the peers that it
//! talks to, and learns the cluster's id and time from them.

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{
    NodeId, StartError,
    clock::Clock,
    net::{
        handshake::{Hello, PROTOCOL_VERSION, objection},
        peer::Greeter,
    },
};

const FORMAT_VERSION: u32 = 1;
const FILE: &str = "identity.json";
const LOCK_FILE: &str = "LOCK";

/// The endpoint under which a node publishes its disk id.
pub(crate) const DISK_ENDPOINT: &str = "disk";

/// The identity file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    format_version: u32,
    node_id: NodeId,
    /// Made with the directory; another one under the same node id means that a disk was lost.
    disk_id: String,
    /// Empty until the node becomes part of a cluster.
    cluster_id: String,
    /// It has been a member, so its log is not empty.
    #[serde(default)]
    has_log: bool,
    /// The last known members' peer addresses, for a node that must ask them before it can read its state.
    peers: BTreeMap<NodeId, String>,
}

/// One data directory, held by this process.
pub(crate) struct Identity {
    dir: PathBuf,
    content: Mutex<Content>,
    clock: Arc<Clock>,
    /// The disk ids in the membership.
    disks: Mutex<BTreeMap<NodeId, String>>,
    /// Peers that belong to another cluster, and that cluster's id.
    strangers: Mutex<BTreeMap<NodeId, String>>,
    _lock: File,
}

impl Identity {
    /// Creates or opens the directory and locks it for as long as the value lives.
    pub(crate) fn open(dir: &Path, node_id: NodeId, clock: Arc<Clock>) -> Result<Identity, StartError> {
        let io = |context: String| move |source| StartError::Io { context, source };
        std::fs::create_dir_all(dir).map_err(io(format!("cannot create {}", dir.display())))?;
        let path = dir.join(LOCK_FILE);
        let lock = File::create(&path).map_err(io(format!("cannot create {}", path.display())))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StartError::Locked(dir.to_owned())),
            Err(TryLockError::Error(source)) => {
                return Err(StartError::Io { context: format!("cannot lock {}", path.display()), source });
            }
        }
        let file = dir.join(FILE);
        let content = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice::<Content>(&bytes).map_err(|error| StartError::Io {
                context: format!("cannot read {}", file.display()),
                source: std::io::Error::new(std::io::ErrorKind::InvalidData, error),
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let content = Content {
                    format_version: FORMAT_VERSION,
                    node_id,
                    disk_id: random_id(),
                    cluster_id: String::new(),
                    has_log: false,
                    peers: BTreeMap::new(),
                };
                save(dir, &content).map_err(io(format!("cannot write {}", file.display())))?;
                content
            }
            Err(source) => {
                return Err(StartError::Io { context: format!("cannot read {}", file.display()), source });
            }
        };
        if content.node_id != node_id {
            return Err(StartError::OtherNode {
                dir: dir.to_owned(),
                found: content.node_id,
                expected: node_id,
            });
        }
        if content.format_version != FORMAT_VERSION {
            return Err(StartError::Config(format!(
                "{} has format version {}, this program reads {FORMAT_VERSION}",
                file.display(),
                content.format_version
            )));
        }
        Ok(Identity {
            dir: dir.to_owned(),
            content: Mutex::new(content),
            clock,
            disks: Mutex::default(),
            strangers: Mutex::default(),
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

    /// This node is a member by an entry that is committed.
    pub(crate) fn joined(&self) -> std::io::Result<()> {
        self.change(|content| content.has_log = true)
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

    /// Makes a new cluster's id.
    pub(crate) fn form_cluster(&self) -> std::io::Result<()> {
        self.change(|content| content.cluster_id = random_id())
    }

    /// Takes the members' addresses and disks from the membership.
    pub(crate) fn learn_members<'a>(
        &self,
        members: impl Iterator<Item = (NodeId, &'a crate::types::MemberNode)>,
    ) -> std::io::Result<()> {
        let (mut peers, mut disks) = (BTreeMap::new(), BTreeMap::new());
        for (id, node) in members {
            peers.insert(id, node.peer.clone());
            if let Some(disk) = node.endpoints.get(DISK_ENDPOINT) {
                disks.insert(id, disk.clone());
            }
        }
        *self.disks.lock() = disks;
        self.change(|content| content.peers = peers)
    }

    fn change(&self, change: impl FnOnce(&mut Content)) -> std::io::Result<()> {
        let mut content = self.content.lock();
        let mut changed = content.clone();
        change(&mut changed);
        if changed != *content {
            save(&self.dir, &changed)?;
            *content = changed;
        }
        Ok(())
    }

    /// Why this node must not talk to the one that sent `theirs`. Remembers who belongs to another cluster.
    pub(crate) fn judge(&self, theirs: &Hello) -> Option<String> {
        let is_stranger =
            !theirs.cluster_id.is_empty() && self.cluster_id().is_some_and(|ours| ours != theirs.cluster_id);
        if is_stranger {
            self.strangers.lock().insert(theirs.node_id, theirs.cluster_id.clone());
        } else {
            self.strangers.lock().remove(&theirs.node_id);
        }
        let disks = self.disks.lock();
        objection(&self.hello(theirs.node_id), theirs, disks.get(&theirs.node_id).map(String::as_str))
    }

    /// Learns from a peer that was not objected to.
    pub(crate) fn learn(&self, theirs: &Hello) -> Result<(), String> {
        if let Some(clock_ms) = theirs.clock_ms {
            self.clock.learn_ms(clock_ms);
        }
        if self.cluster_id().is_none() && !theirs.cluster_id.is_empty() {
            self.change(|content| content.cluster_id.clone_from(&theirs.cluster_id))
                .map_err(|error| format!("cannot save the cluster's id: {error}"))?;
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
        }
    }

    fn greeted(&self, answer: &Hello) -> Result<(), String> {
        match self.judge(answer) {
            Some(why) => Err(why),
            None if !answer.refusal.is_empty() => Err(format!("refused: {}", answer.refusal)),
            None => self.learn(answer),
        }
    }
}

fn random_id() -> String {
    format!("{:032x}", fastrand::u128(..))
}

/// Replaces the file as a whole, durably.
fn save(dir: &Path, content: &Content) -> std::io::Result<()> {
    let new = dir.join("identity.json.new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec_pretty(content)?)?;
    file.sync_all()?;
    std::fs::rename(&new, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Identity;
    use crate::{StartError, clock::Clock};

    #[test]
    fn a_directory_belongs_to_one_node_and_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(Clock::new(Arc::new(|| 0)));
        let identity = Identity::open(dir.path(), 3, clock.clone()).unwrap();
        assert!(matches!(Identity::open(dir.path(), 3, clock.clone()), Err(StartError::Locked(_))));
        identity.form_cluster().unwrap();
        let (disk, cluster) = (identity.disk_id(), identity.cluster_id());
        drop(identity);
        let again = Identity::open(dir.path(), 3, clock.clone()).unwrap();
        assert_eq!((again.disk_id(), again.cluster_id()), (disk, cluster));
        drop(again);
        let other = Identity::open(dir.path(), 4, clock).err().unwrap();
        assert!(matches!(other, StartError::OtherNode { found: 3, expected: 4, .. }));
    }
}
