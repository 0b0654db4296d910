//! What log entries do besides changing the state: the machine's one exit. After each entry it hands one value to
//! all listeners, in log order, and before the replies: whoever subscribes after a reply gets only what comes
//! after it. The same after a snapshot has replaced entries.
//!
//! What no listener wants is not recorded, and costs nothing.

use crate::{
    resp::Recorded,
    store::{Fate, Ticket},
};

pub mod changes;

pub use changes::{Changes, Class, Event};

/// What one entry has done.
#[derive(Debug)]
pub struct Effects {
    /// Its log index.
    pub index: u64,
    /// The keys that were changed; None if no listener wanted them.
    pub changes: Option<Changes>,
    /// The waits that ended, of clients of any node.
    pub ended: Vec<Ended>,
}

/// A wait that ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its ticket.
    pub ticket: Ticket,
    /// The database, and the key that it waited for, by its present name; empty if it is gone.
    pub place: (u32, Box<[u8]>),
    /// How it ended.
    pub outcome: Outcome,
}

/// How a wait ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What the client is told.
    pub reply: Recorded,
    /// [`Fate::Granted`] if it is a grant, which is taken back unless the log says that the client was told.
    pub fate: Fate,
}

/// A snapshot that has replaced the state. The effects of the entries up to it were not seen, or are seen again.
pub struct Replaced<'a> {
    /// The index of its last entry.
    pub applied: u64,
    /// How a wait ended; None if it goes on.
    pub outcome_of: &'a dyn Fn(Ticket) -> Option<Outcome>,
}

/// Receives the effects of entries. It must not block.
pub trait Listener: Send + Sync {
    /// The largest value to be recorded with a key that is changed; None while it needs no changes.
    fn wants_changes(&self) -> Option<usize>;

    /// An entry was applied. Called in log order.
    fn applied(&self, effects: &Effects);

    /// A snapshot was loaded.
    fn replaced(&self, replaced: &Replaced<'_>);
}
