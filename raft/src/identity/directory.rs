//! A node's data directory: the lock that one process holds on it, and the file that says whose it is.
//!
//! The file is only ever replaced as a whole, so that a crash leaves the old one or the new one.

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    NodeId, StartError, chance,
    identity::{lives::Lives, witness::Met},
    space::Space,
    types::MemberNode,
};
use parking_lot::Mutex;

const FORMAT_VERSION: u32 = 1;
const FILE: &str = "identity.json";
const LOCK_FILE: &str = "LOCK";

/// The identity file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    format_version: u32,
    pub(crate) node_id: NodeId,
    /// Made with the directory; a different one under the same node id means that a disk was lost.
    pub(crate) disk_id: String,
    /// Empty until the node becomes part of a cluster.
    pub(crate) cluster_id: String,
    /// The node has been a member, so its log is not empty.
    #[serde(default)]
    pub(crate) has_log: bool,
    /// The last known members' peer addresses, for a node that must ask them before it can read its state.
    pub(crate) peers: BTreeMap<NodeId, String>,
    /// The lives of this disk.
    #[serde(default)]
    pub(crate) lives: Lives,
    /// The newest lives of the peers' disks that were met.
    #[serde(default)]
    pub(crate) met: BTreeMap<NodeId, Met>,
    /// Why the state in `pages/` is not to be used: it is not what a majority has after the same log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) distrusted_state: Option<String>,
    /// The clusters that this one was recovered from, the latest last: they must not be used any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) former_clusters: Vec<String>,
    /// A recovery that was begun: while this is set the node does not start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unfinished: Option<Unfinished>,
}

/// A recovery under way: enough to continue it after a crash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unfinished {
    /// The new cluster.
    pub(crate) cluster_id: String,
    /// The term of the entries that are added.
    pub(crate) term: u64,
    /// The term of the old log's last entry, and its index.
    pub(crate) base_term: u64,
    pub(crate) base_index: u64,
    /// The only member's addresses.
    pub(crate) member: MemberNode,
    /// Where the old state was copied to.
    pub(crate) backup: PathBuf,
}

impl Content {
    pub(crate) fn new(node_id: NodeId) -> Content {
        Content {
            format_version: FORMAT_VERSION,
            node_id,
            disk_id: random_id(),
            cluster_id: String::new(),
            has_log: false,
            peers: BTreeMap::new(),
            lives: Lives::default(),
            met: BTreeMap::new(),
            distrusted_state: None,
            former_clusters: Vec::new(),
            unfinished: None,
        }
    }
}

/// The identity file of a directory, and what it holds.
pub(crate) struct IdentityFile {
    dir: PathBuf,
    /// Room for it.
    space: Arc<Space>,
    content: Mutex<Content>,
    /// Held while the file is written; true once nothing more is written. Those who only read never wait for
    /// the disk.
    is_closed: Mutex<bool>,
}

impl IdentityFile {
    /// What the directory has.
    pub(crate) fn new(dir: &Path, space: Arc<Space>, content: Content) -> IdentityFile {
        IdentityFile { dir: dir.to_owned(), space, content: Mutex::new(content), is_closed: Mutex::default() }
    }

    /// Looks at what it holds.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&Content) -> R) -> R {
        look(&self.content.lock())
    }

    /// Stops all writing: what a stopped node still hears is no longer its own. Blocks.
    pub(crate) fn close(&self) {
        *self.is_closed.lock() = true;
    }

    /// Changes it, durably. Blocks.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Content)) -> io::Result<()> {
        let is_closed = self.is_closed.lock();
        if *is_closed {
            return Err(io::Error::other("the node has stopped"));
        }
        let before = self.content.lock().clone();
        let mut changed = before.clone();
        change(&mut changed);
        if changed != before {
            self.space.with_room(|| save(&self.dir, &changed))?;
            *self.content.lock() = changed;
        }
        Ok(())
    }
}

/// A unique id of 32 hex digits.
pub(crate) fn random_id() -> String {
    format!("{:032x}", u128::from_le_bytes(chance::entropy()))
}

/// Locks an existing directory for as long as the file lives.
pub(crate) fn lock(dir: &Path) -> Result<File, StartError> {
    let path = dir.join(LOCK_FILE);
    let io = |what: &str| {
        let context = format!("cannot {what} {}", path.display());
        move |source| StartError::Io { context, source }
    };
    let lock = File::create(&path).map_err(io("create"))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StartError::Locked(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(io("lock")(source)),
    }
}

/// Keeps nodes off an existing directory for as long as the file lives, and changes nothing in it. None where
/// there is no lock file: then no process has used this directory, which is a copy.
pub(crate) fn lock_unchanged(dir: &Path) -> Result<Option<File>, StartError> {
    let path = dir.join(LOCK_FILE);
    let failed = |source| StartError::Io { context: format!("cannot lock {}", path.display()), source };
    let lock = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    match lock.try_lock_shared() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Err(StartError::Locked(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Reads the identity file. None when there is none.
pub(crate) fn read(dir: &Path) -> Result<Option<Content>, StartError> {
    let file = dir.join(FILE);
    let io = |source| StartError::Io { context: format!("cannot read {}", file.display()), source };
    let bytes = match std::fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let content: Content = serde_json::from_slice(&bytes)
        .map_err(|error| io(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    if content.format_version != FORMAT_VERSION {
        return Err(StartError::Config(format!(
            "{} has format version {}, this program reads {FORMAT_VERSION}",
            file.display(),
            content.format_version
        )));
    }
    Ok(Some(content))
}

/// Replaces the file as a whole, durably.
pub(crate) fn save(dir: &Path, content: &Content) -> io::Result<()> {
    let new = dir.join("identity.json.new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec_pretty(content)?)?;
    file.sync_all()?;
    std::fs::rename(&new, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}
