//! What the data directory of a stopped node holds. Inspecting it changes no byte; the pages are read from a
//! copy, because sled writes to what it opens.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{RecoverError, copy, io};
use crate::{
    NodeId, StartError,
    identity::{
        DISK_ENDPOINT,
        directory::{self, Content},
    },
    log::{self, LogError},
    pages::{self, PAGES, PageStore, PagesError},
    snapshot::head::Head,
    types::{GROUP, LogId, MemberNode, StoredMembership},
    want::Want,
};

/// The copy of the pages that is read, inside the data directory.
const COPY: &str = "recover.tmp";

const CACHE_BYTES: usize = 8 << 20;
const SCAN_BYTES: usize = 4 << 20;

/// The end of a log. The greater one has more: by term, then by index, as in Raft's elections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogEnd {
    /// The last entry's term.
    pub term: u64,
    /// The last entry's index; 0 for no entry.
    pub index: u64,
}

impl LogEnd {
    pub(super) fn of(id: Option<LogId>) -> LogEnd {
        id.map_or(LogEnd::default(), |id| LogEnd { term: id.leader_id.term, index: id.index })
    }
}

/// The last checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checkpoint {
    /// There is none.
    None,
    /// All its pages were read and are what was committed.
    At {
        /// The last log index in it.
        index: u64,
        /// How many pages it has.
        pages: u64,
    },
    /// It cannot be read, or there was no room to look at it.
    Unreadable(String),
}

/// A stopped node's directory, locked for as long as this lives.
#[derive(Debug)]
pub struct Survivor {
    /// The directory.
    pub dir: PathBuf,
    /// Whose it is.
    pub node_id: NodeId,
    /// None for a node that was never part of a cluster, or was killed before it heard which it is.
    pub cluster_id: Option<String>,
    /// The highest term it has voted in or followed.
    pub term: u64,
    /// The node that it has voted for in that term, or that it followed.
    pub voted_for: Option<NodeId>,
    /// The last entry that it has.
    pub last: LogEnd,
    /// The highest index that it knows to be committed.
    pub committed_index: u64,
    /// The highest index that is no longer in the log, but in the checkpoint.
    pub purged_index: u64,
    /// The last checkpoint.
    pub checkpoint: Checkpoint,
    /// Unreadable pages that were set aside, the newest first.
    pub set_aside: Vec<PathBuf>,
    /// The voters of the last membership in it: two sets while one replaces the other.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// All members of it, with the address for peers.
    pub members: BTreeMap<NodeId, String>,
    /// A recovery of this directory was begun and not finished.
    pub is_unfinished: bool,
    pub(super) content: Content,
    pub(super) segment_bytes: u64,
    /// This node, as stored in the membership.
    pub(super) member: MemberNode,
    _lock: File,
}

impl Survivor {
    /// Locks the directory and inspects it. Refuses one that is in use, and one with a damaged log.
    pub async fn open(dir: &Path) -> Result<Survivor, RecoverError> {
        if !dir.join("identity.json").exists() {
            return Err(RecoverError::NotData(dir.to_owned()));
        }
        let lock = directory::lock(dir)?;
        let content = directory::read(dir)?.ok_or_else(|| RecoverError::NotData(dir.to_owned()))?;
        let log = log::look(&dir.join("log"), GROUP).map_err(|error| match error {
            LogError::Corrupted { file, offset, detail } => RecoverError::Damaged {
                dir: dir.to_owned(),
                detail: format!("{} at byte {offset}: {detail}", file.display()),
            },
            LogError::Config(detail) => RecoverError::Damaged { dir: dir.to_owned(), detail },
            LogError::Io { context, source } => {
                RecoverError::Io { context: format!("cannot {context}"), source }
            }
        })?;
        let (checkpoint, head) = look_at_pages(dir).await?;
        let (applied, in_head) = head.map_or((None, StoredMembership::default()), |head| {
            (head.progress.last, head.progress.membership)
        });
        let membership =
            log.membership.filter(|found| *found.log_id() > *in_head.log_id()).unwrap_or(in_head);
        let membership = membership.membership();
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
        let node = membership.get_node(&content.node_id).cloned();
        let member = node.unwrap_or_else(|| this_node(&content));
        Ok(Survivor {
            dir: dir.to_owned(),
            node_id: content.node_id,
            cluster_id: Some(content.cluster_id.clone()).filter(|id| !id.is_empty()),
            term: log.vote.map_or(0, |vote| vote.leader_id.term).max(LogEnd::of(log.last).term),
            voted_for: log.vote.map(|vote| vote.leader_id.voted_for),
            last: LogEnd::of(log.last).max(LogEnd::of(applied)),
            committed_index: index(log.committed).max(index(applied)),
            purged_index: index(log.purged),
            checkpoint,
            set_aside: pages::unreadable(&dir.join(PAGES)).map_err(io("cannot list the directory"))?,
            voters: membership.get_joint_config().clone(),
            members: membership.nodes().map(|(id, node)| (*id, node.peer.clone())).collect(),
            is_unfinished: content.unfinished.is_some(),
            content,
            segment_bytes: log.segment_bytes,
            member,
            _lock: lock,
        })
    }

    /// Why nothing can be recovered from it; None if something can.
    pub fn unusable(&self) -> Option<String> {
        if self.last.index == 0 {
            return Some("it has never been a member of a cluster, and has no data".into());
        }
        let set_aside = match self.set_aside.first() {
            Some(newest) => format!(
                "; pages were set aside in {}: start the node once, it uses them if they are whole",
                newest.display()
            ),
            None => String::new(),
        };
        let reached = match &self.checkpoint {
            Checkpoint::None => 0,
            Checkpoint::At { index, .. } => *index,
            Checkpoint::Unreadable(why) if self.purged_index > 0 => {
                return Some(format!(
                    "its checkpoint cannot be read, and the log begins after {}: {why}{set_aside}",
                    self.purged_index
                ));
            }
            // The log has everything.
            Checkpoint::Unreadable(_) => self.purged_index,
        };
        (reached < self.purged_index).then(|| {
            format!(
                "its checkpoint ends at {reached}, and the log begins after {}{set_aside}",
                self.purged_index
            )
        })
    }
}

/// The entry for a node in a membership that it is not part of. It publishes its addresses when it runs.
fn this_node(content: &Content) -> MemberNode {
    let peer = content.peers.get(&content.node_id).cloned().unwrap_or_default();
    let endpoints = BTreeMap::from([(DISK_ENDPOINT.to_owned(), content.disk_id.clone())]);
    MemberNode { peer, endpoints }
}

async fn look_at_pages(dir: &Path) -> Result<(Checkpoint, Option<Head>), RecoverError> {
    let scratch = dir.join(COPY);
    let failed = |source| io(format!("cannot copy the pages of {}", dir.display()))(source);
    copy::remove(&scratch).map_err(failed)?;
    // `.old` is the live one after a crash in a replacement.
    let names: Vec<&str> =
        ["pages", "pages.old"].into_iter().filter(|name| dir.join(name).exists()).collect();
    if names.is_empty() {
        return Ok((Checkpoint::None, None));
    }
    let mut bytes = 0;
    for name in &names {
        bytes += copy::size(&dir.join(name)).map_err(failed)?;
    }
    if let Err(error @ RecoverError::NoRoom { .. }) = copy::check_room(dir, bytes) {
        return Ok((Checkpoint::Unreadable(error.to_string()), None));
    }
    for name in &names {
        copy::copy(&dir.join(name), &scratch.join(name)).map_err(failed)?;
    }
    let read = read_pages(&scratch.join("pages")).await;
    copy::remove(&scratch).map_err(failed)?;
    Ok(match read {
        Ok((None, _)) => (Checkpoint::None, None),
        Ok((Some(head), pages)) => (Checkpoint::At { index: head.index(), pages }, Some(head)),
        Err(LookError::Damaged(why)) => (Checkpoint::Unreadable(why), None),
        // Nothing is known of the pages. What was copied is removed.
        Err(LookError::Pages(PagesError::Full(why))) => return Err(wanting(Want::Space, why)),
        Err(LookError::Pages(PagesError::Refused { want, why })) => return Err(wanting(want, why)),
        Err(LookError::Pages(error)) => (Checkpoint::Unreadable(error.to_string()), None),
    })
}

/// Why the pages of a copy cannot be read.
enum LookError {
    Pages(PagesError),
    Damaged(String),
}

impl From<PagesError> for LookError {
    fn from(error: PagesError) -> LookError {
        LookError::Pages(error)
    }
}

fn wanting(want: Want, why: String) -> RecoverError {
    StartError::Wanting { want, context: "cannot read the pages".to_owned(), why }.into()
}

/// The head, and how many pages there are. A scan to the end checks them.
async fn read_pages(dir: &Path) -> Result<(Option<Head>, u64), LookError> {
    let damaged = |why: String| LookError::Damaged(why);
    let path = dir.to_owned();
    // A failed write can only be one to a copy.
    let opened = tokio::task::spawn_blocking(move || PageStore::open(&path, CACHE_BYTES, Arc::new(|_| ())));
    let store = opened.await.map_err(|error| damaged(error.to_string()))??;
    let Some(head) = store.head(GROUP).await? else { return Ok((None, 0)) };
    let head =
        Head::decode(&head).map_err(|error| damaged(format!("the head of the checkpoint: {error}")))?;
    let (mut after, mut count) = (None, 0);
    loop {
        let pages = store.scan(GROUP, after.take(), SCAN_BYTES).await?;
        let Some((last, _)) = pages.last() else { break };
        after = Some(last.clone());
        count += pages.len() as u64;
    }
    store.close();
    Ok((Some(head), count))
}
