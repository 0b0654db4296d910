//! Makes a data directory the only member of a new cluster.
//!
//! The steps, each durable before the next: the old state is copied; the identity file gets a note of the
//! recovery, with which no node starts; the log gets a vote for this node in a higher term, and entries of
//! that term to its end, the last of them the new membership, all marked as committed; the identity file gets
//! the new cluster's id and loses the note. A crash before the note leaves the old cluster's node; after it,
//! the next recovery of the directory continues where this one stopped.

use std::path::PathBuf;

use openraft::{
    EntryPayload, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
    type_config::TypeConfigExt,
};

use super::{RecoverError, Survivor, copy, io};
use crate::{
    NodeId,
    codec::Membership,
    identity::directory::{self, Content, Unfinished},
    log::{Log, LogConfig, LogStore},
    types::{Entry, GROUP, LogId, TypeConfig, Vote},
};

/// Indexes that are skipped between the old log and the new one, filled with empty entries. What was derived
/// from an index that was lost (a lock's token, a position in the change feed) is not issued again, unless
/// more than this many were lost.
pub const INDEXES_SKIPPED: u64 = 100_000;

/// Entries in one append.
const APPEND_ENTRIES: u64 = 10_000;

/// The outcome of a recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCluster {
    /// Its id.
    pub cluster_id: String,
    /// Its only member.
    pub node_id: NodeId,
    /// The last index of the old log that is kept.
    pub kept_index: u64,
    /// A complete data directory with the state before.
    pub backup: PathBuf,
}

/// Makes the survivor a cluster of its own, or finishes what an earlier call began. `term_max` is the highest
/// term that any survivor knows.
pub async fn found_cluster(survivor: Survivor, term_max: u64) -> Result<NewCluster, RecoverError> {
    let mut content = survivor.content.clone();
    let unfinished = match content.unfinished.clone() {
        Some(unfinished) => unfinished,
        None => {
            let backup = copy::back_up(&survivor.dir)?;
            crash_point("copied");
            let unfinished = begin(&survivor, term_max, backup);
            content.unfinished = Some(unfinished.clone());
            save(&survivor, &content)?;
            crash_point("begun");
            unfinished
        }
    };
    extend_log(&survivor, &unfinished).await?;
    crash_point("extended");
    let former = std::mem::replace(&mut content.cluster_id, unfinished.cluster_id.clone());
    content.former_clusters.extend(Some(former).filter(|former| !former.is_empty()));
    content.has_log = true;
    content.peers = [(content.node_id, unfinished.member.peer.clone())].into();
    content.unfinished = None;
    save(&survivor, &content)?;
    Ok(NewCluster {
        cluster_id: content.cluster_id,
        node_id: content.node_id,
        kept_index: unfinished.base_index,
        backup: unfinished.backup,
    })
}

fn save(survivor: &Survivor, content: &Content) -> Result<(), RecoverError> {
    directory::save(&survivor.dir, content).map_err(io(format!("cannot write to {}", survivor.dir.display())))
}

fn begin(survivor: &Survivor, term_max: u64, backup: PathBuf) -> Unfinished {
    Unfinished {
        cluster_id: directory::random_id(),
        term: survivor.term.max(survivor.last.term).max(term_max) + 1,
        base_term: survivor.last.term,
        base_index: survivor.last.index,
        member: survivor.member.clone(),
        backup,
    }
}

/// Extends the log to its new end, from wherever it is between the old one and that.
async fn extend_log(survivor: &Survivor, unfinished: &Unfinished) -> Result<(), RecoverError> {
    let config = LogConfig {
        dir: survivor.dir.join("log"),
        segment_bytes: survivor.segment_bytes,
        cache_bytes: 0,
        spare_segments: 0,
        space: crate::space::unknown(),
    };
    // A failed write is reported to whoever waits for it.
    let log = Log::open(config, std::sync::Arc::new(|_| ()))
        .map_err(|error| RecoverError::Damaged { dir: survivor.dir.clone(), detail: error.to_string() })?;
    let extended = extend(&mut log.store(GROUP), survivor.node_id, unfinished).await;
    log.close();
    extended.map_err(io(format!("cannot write the log of {}", survivor.dir.display())))
}

async fn extend(store: &mut LogStore, node_id: NodeId, unfinished: &Unfinished) -> std::io::Result<()> {
    let vote = Vote::new(unfinished.term, node_id);
    if store.read_vote().await? != Some(vote) {
        store.save_vote(&vote).await?;
    }
    crash_point("voted");
    let base = LogId::new_term_index(unfinished.base_term, unfinished.base_index);
    let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
    let mut last = index(store.get_log_state().await?.last_log_id);
    if last < base.index {
        // A received checkpoint is ahead of the log.
        store.purge(base).await?;
        last = base.index;
    }
    let end = base.index + INDEXES_SKIPPED + 1;
    while last < end {
        let next = (last + APPEND_ENTRIES).min(end);
        let entries: Vec<Entry> =
            (last + 1..=next).map(|index| entry(index, end, node_id, unfinished)).collect();
        let (done, flushed) = TypeConfig::oneshot();
        store.append(entries, IOFlushed::signal(done)).await?;
        flushed.await.map_err(std::io::Error::other)??;
        last = next;
        crash_point("appended");
    }
    store.save_committed(Some(LogId::new_term_index(unfinished.term, end))).await?;
    // Records that nobody waits for become durable with the next one that somebody waits for.
    store.save_vote(&vote).await
}

/// The entry at `index` of the new part, which ends at `end` with the membership.
fn entry(index: u64, end: u64, node_id: NodeId, unfinished: &Unfinished) -> Entry {
    let payload = if index < end {
        EntryPayload::Blank
    } else {
        let members = std::collections::BTreeMap::from([(node_id, unfinished.member.clone())]);
        let membership = Membership::new(vec![[node_id].into()], members);
        EntryPayload::Membership(membership.expect("its only voter is among its nodes"))
    };
    Entry { log_id: LogId::new_term_index(unfinished.term, index), payload }
}

/// In debug builds, ends the process after the named step if the environment says so: what tests call a
/// crash.
fn crash_point(step: &str) {
    if cfg!(debug_assertions) && std::env::var("KVORUM_TEST_CRASH_AFTER").is_ok_and(|name| name == step) {
        std::process::abort();
    }
}
