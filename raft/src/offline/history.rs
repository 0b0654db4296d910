//! The log of a stopped node, entry by entry, for a person who must find out what happened. Changes nothing, and goes
//! on behind damaged places.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::Path,
};

use bytes::Bytes;
use openraft::EntryPayload;

use super::{LogEnd, RecoverError, io};
use crate::{
    NodeId,
    codec::{Membership, RaftPayload},
    identity::directory,
    log::{self, Listed, Listing, LogError},
    proposals::entry::{self, Pace},
    types::GROUP,
};

/// The log of a stopped node, which cannot be started for as long as this lives.
pub struct History {
    /// Whose it is.
    pub node_id: NodeId,
    /// None for a node that was never part of a cluster, or was killed before it heard which it is.
    pub cluster_id: Option<String>,
    /// What it has voted last.
    pub vote: Option<Voted>,
    /// The first entry and the last one that are there.
    pub ends: Option<(LogEnd, LogEnd)>,
    /// The highest entry that the log says is committed. What a checkpoint has was committed too.
    pub committed: Option<LogEnd>,
    /// The last entry that is no longer in the log, but in the checkpoint.
    pub purged: Option<LogEnd>,
    /// Where and how the log is damaged, so that no node starts on it.
    pub damage: Option<String>,
    /// The places of a damaged log that cannot be read.
    pub unreadable: Vec<String>,
    listing: Listing,
    _lock: Option<File>,
}

/// A vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Voted {
    /// In this term.
    pub term: u64,
    /// For this node.
    pub node: NodeId,
    /// A majority has voted for it, as far as this node knows.
    pub is_leader: bool,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastEntry {
    /// Its index.
    pub index: u64,
    /// The term of the leader that wrote it.
    pub term: u64,
    /// The bytes of its content.
    pub bytes: usize,
    /// The level at which it is applied; 0 before the first proposals. None where the log does not tell: it is the
    /// level of the checkpoint then, or that of an entry that cannot be read.
    pub level: Option<u32>,
    /// What it holds.
    pub content: PastContent,
}

/// What an entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PastContent {
    /// Nothing: a new leader begins with such an entry.
    Blank,
    /// The members from here on.
    Members {
        /// The voters: two sets while one replaces the other.
        voters: Vec<BTreeSet<NodeId>>,
        /// All members with their addresses by name; that for peers is `peer`.
        members: BTreeMap<NodeId, BTreeMap<String, String>>,
    },
    /// What was proposed.
    Proposals {
        /// The log's clock as the leader has set it, in milliseconds since the Unix epoch.
        clock_ms: u64,
        /// How far that is ahead of the leader's wall clock.
        ahead_ms: i64,
        /// What it asks of the nodes besides: to raise the level, to take a checkpoint, and so on.
        asks: Vec<String>,
        /// The proposals in their order, each with the node that made it.
        proposals: Vec<(NodeId, Bytes)>,
    },
    /// It cannot be read, for this reason.
    Unreadable(String),
}

impl History {
    /// Opens the directory of a stopped node, or a copy of one. Refuses one that is in use.
    pub fn open(dir: &Path) -> Result<History, RecoverError> {
        if !dir.join("identity.json").exists() {
            return Err(RecoverError::NotData(dir.to_owned()));
        }
        let lock = directory::lock_unchanged(dir)?;
        let content = directory::read(dir)?.ok_or_else(|| RecoverError::NotData(dir.to_owned()))?;
        let listing = log::listing(&dir.join("log"), GROUP).map_err(|error| match error {
            LogError::Io { context, source } => io(format!("cannot {context}"))(source),
            other => RecoverError::Refused(other.to_string()),
        })?;
        let end = |id| LogEnd::of(Some(id));
        Ok(History {
            node_id: content.node_id,
            cluster_id: Some(content.cluster_id).filter(|id| !id.is_empty()),
            vote: listing.vote.map(|vote| Voted {
                term: vote.leader_id.term,
                node: vote.leader_id.voted_for,
                is_leader: vote.committed,
            }),
            ends: listing.ends().map(|(first, last)| (end(first), end(last))),
            committed: listing.committed.map(end),
            purged: listing.purged.map(end),
            damage: listing.damage.as_ref().map(ToString::to_string),
            unreadable: listing
                .skipped
                .iter()
                .map(|place| {
                    format!(
                        "bytes {} to {} of {}",
                        place.from,
                        place.to.saturating_sub(1),
                        place.file.display()
                    )
                })
                .collect(),
            listing,
            _lock: lock,
        })
    }

    /// All entries in their order, read some megabytes at a time. Between those of a damaged log there are gaps.
    /// Blocks.
    pub fn entries(&self) -> impl Iterator<Item = PastEntry> {
        // Before the first entry of all the level is 0.
        let mut level = self.purged.is_none().then_some(0);
        let mut next = self.ends.map_or(0, |(first, _)| first.index);
        self.listing.entries().map(move |listed| {
            if listed.id.index != next {
                level = None;
            }
            next = listed.id.index.saturating_add(1);
            entry(listed, &mut level)
        })
    }
}

fn entry(listed: Listed, level: &mut Option<u32>) -> PastEntry {
    let content = match listed.content {
        Ok(payload) => content(payload, level),
        Err(why) => PastContent::Unreadable(why),
    };
    if matches!(content, PastContent::Unreadable(_)) {
        *level = None;
    }
    let (index, term) = (listed.id.index, listed.id.leader_id.term);
    PastEntry { index, term, bytes: listed.bytes, level: *level, content }
}

fn content(payload: RaftPayload, level: &mut Option<u32>) -> PastContent {
    let bytes = match payload {
        EntryPayload::Blank => return PastContent::Blank,
        EntryPayload::Membership(membership) => return members(&membership),
        EntryPayload::Normal(payload) => payload.0,
    };
    let parsed = match entry::decode(&bytes) {
        Ok(parsed) => parsed,
        Err(error) => return PastContent::Unreadable(format!("not an entry of this version: {error}")),
    };
    let mut asks = Vec::new();
    // As the state machine does: a level below the present one raises nothing.
    *level = level.map(|level| level.max(1));
    if let Some(raise) = parsed.head.raise {
        asks.push(format!("raise the apply level to {}", raise.level));
        *level = (*level).max(Some(raise.level));
    }
    match parsed.head.pace {
        Some(Pace::Close) => asks.push("let the log's clock wait for the wall clock".to_owned()),
        Some(Pace::GoOn) => asks.push("let the log's clock go on".to_owned()),
        None => {}
    }
    if parsed.head.is_checkpoint {
        asks.push("take a checkpoint".to_owned());
    }
    let proposals = parsed.batches.into_iter().flat_map(|batch| {
        let origin = batch.id.origin;
        batch.map(move |proposal| (origin, proposal))
    });
    PastContent::Proposals {
        clock_ms: parsed.head.stamp.clock_ms,
        ahead_ms: parsed.head.stamp.ahead_ms,
        asks,
        proposals: proposals.map(|(origin, proposal)| (origin, bytes.slice_ref(proposal))).collect(),
    }
}

fn members(membership: &Membership) -> PastContent {
    let members = membership.nodes().map(|(id, node)| {
        let mut addresses = node.endpoints.clone();
        addresses.insert("peer".to_owned(), node.peer.clone());
        (*id, addresses)
    });
    PastContent::Members { voters: membership.get_joint_config().clone(), members: members.collect() }
}
