//! What is done with the data directories of stopped nodes, and never by a running one: showing a log entry by
//! entry (`history.rs`), and recovery from a lost majority, which makes one of them the only member of a new
//! cluster.
//!
//! For that `survivor.rs` inspects and changes nothing, `judge.rs` says which directory may be chosen,
//! `copy.rs` keeps the old state, `rewrite.rs` makes the new one.

mod copy;
mod history;
mod judge;
mod rewrite;
mod survivor;

use std::path::PathBuf;

use thiserror::Error;

use crate::{StartError, want::Want};

pub use self::{
    history::{History, PastContent, PastEntry, Voted},
    judge::{check, longest, surviving_majority},
    rewrite::{INDEXES_SKIPPED, NewCluster, found_cluster},
    survivor::{Checkpoint, LogEnd, Survivor},
};

/// Why a directory cannot be inspected, or cannot be made a new cluster.
#[derive(Debug, Error)]
pub enum RecoverError {
    /// Another process holds it, or it cannot be read.
    #[error(transparent)]
    Directory(#[from] StartError),
    /// It does not belong to a node.
    #[error("{} is not the data directory of a node: there is no identity.json", .0.display())]
    NotData(PathBuf),
    /// Its log is damaged.
    #[error("the log of {} is damaged: {detail}", dir.display())]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// Where and how.
        detail: String,
    },
    /// There is no room for the copy of the old state.
    #[error("{} needs {needed} bytes of free space for a copy of its state, and has {free}", dir.display())]
    NoRoom {
        /// The directory.
        dir: PathBuf,
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
    },
    /// It would lose more than it must. Nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// The operating system refused.
    #[error("{context}: {source}")]
    Io {
        /// What was attempted.
        context: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl RecoverError {
    /// What the system refused, if it is that.
    pub fn want(&self) -> Option<Want> {
        match self {
            RecoverError::Directory(error) => error.want(),
            RecoverError::Io { source, .. } => Want::of(source).filter(|want| *want != Want::Other),
            _ => None,
        }
    }
}

/// Adds what was attempted.
fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> RecoverError {
    let context = context.into();
    move |source| RecoverError::Io { context, source }
}
