//! One owner's claim: what it asks for, what it holds, its place in the queue, and how its client is told.
//! `claims.rs` combines them.

use std::sync::Arc;

use crate::store::waits::Ticket;

/// How long the place of an owner in the queue is kept after its client is gone.
pub const ABSENCE_MS_MAX: u64 = 3_000;

/// The approximate size of a holder or a waiter without its strings.
pub(in crate::store) const FIXED_BYTES: usize = 40;

/// What is claimed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ClaimKind {
    #[default]
    Lock,
    Semaphore,
    Election,
}

/// How much of it is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// All of it, exclusively.
    All,
    /// This many permits. Each holder of a shared lock has one.
    Permits(u64),
}

/// The name of a lease, in the same database.
pub type LeaseId = Arc<[u8]>;

/// How long a hold lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Span {
    /// This many milliseconds from the grant.
    Ms(u64),
    /// As long as the lease lives.
    Lease(LeaseId),
}

/// When a hold ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Until {
    /// When the log clock is past this time, in milliseconds since the Unix epoch.
    At(u64),
    /// When the lease ends.
    Lease(LeaseId),
}

impl Span {
    pub(in crate::store) fn lease(&self) -> Option<&LeaseId> {
        match self {
            Span::Lease(id) => Some(id),
            Span::Ms(_) => None,
        }
    }
}

impl Until {
    pub(in crate::store) fn lease(&self) -> Option<&LeaseId> {
        match self {
            Until::Lease(id) => Some(id),
            Until::At(_) => None,
        }
    }
}

/// How a wait ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was granted.
    Granted {
        /// The kind of key.
        kind: ClaimKind,
        /// The fencing token.
        token: u64,
        /// How long the hold lasts; None if it is tied to a lease.
        remaining_ms: Option<u64>,
    },
    /// The timeout of the wait has passed.
    TimedOut,
    /// The owner asked again on another connection, and waits there instead.
    Superseded,
    /// The key was deleted, the lease ended, or the node was out of contact.
    Gone,
    /// The node of its client was out of contact.
    OutOfContact,
    /// How it ended is not known: a snapshot has replaced the entry that ended it.
    Unknown,
}

/// A wait that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wake {
    /// The ticket of the wait.
    pub ticket: Ticket,
    /// How it ended.
    pub outcome: Outcome,
    /// The database.
    pub db: u32,
    /// The present name of the key on which the client waited; empty if it is gone.
    pub key: Box<[u8]>,
}

/// One owner's hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Chosen by the client.
    pub owner: Arc<[u8]>,
    /// The fencing token; increases over all claims.
    pub token: u64,
    /// How many releases are needed.
    pub count: u64,
    /// How much is held.
    pub share: Share,
    /// When it ends.
    pub until: Until,
    /// The lock delay after it expires.
    pub delay_ms: u64,
    /// Set from the grant to a waiter until the client's receipt of it is confirmed.
    pub ticket: Option<Ticket>,
    /// What the owner wants others to see.
    pub data: Box<[u8]>,
}

/// An owner in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct Waiter {
    pub(in crate::store) owner: Arc<[u8]>,
    pub(in crate::store) share: Share,
    pub(in crate::store) span: Span,
    pub(in crate::store) delay_ms: u64,
    pub(in crate::store) ticket: Ticket,
    /// It waits until the log clock is past this.
    pub(in crate::store) deadline: u64,
    /// Its client is gone: nothing is granted to it, but for a while its owner can reclaim its place.
    pub(in crate::store) is_absent: bool,
    pub(in crate::store) data: Box<[u8]>,
}

/// What an owner asks for.
#[derive(Clone, Debug)]
pub struct Acquire<'a> {
    /// Who asks.
    pub owner: &'a [u8],
    /// How much.
    pub share: Share,
    /// How long.
    pub span: Span,
    /// None keeps the data of an earlier acquisition.
    pub data: Option<&'a [u8]>,
    /// The lock delay if the hold expires.
    pub delay_ms: u64,
    /// The ticket and the deadline of a wait; None not to wait.
    pub wait: Option<(Ticket, u64)>,
    /// Whether another acquisition needs another release.
    pub is_counted: bool,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is held under this fencing token.
    Held {
        /// The fencing token.
        token: u64,
        /// When it ends.
        until: Until,
    },
    /// The owner is in the queue.
    Queued,
    /// Others hold it.
    Taken,
}

/// The parts of the replicated state that a change of claims uses.
pub struct Turn<'a> {
    /// The log clock.
    pub now_ms: u64,
    /// The last token issued.
    pub token: &'a mut u64,
    /// Waits that ended.
    pub wakes: &'a mut Vec<Wake>,
    /// Reset by a change that turned out to change nothing.
    pub changed: bool,
}

impl Turn<'_> {
    pub(in crate::store) fn issue(&mut self) -> u64 {
        *self.token += 1;
        *self.token
    }

    pub(in crate::store) fn wake(&mut self, ticket: Ticket, outcome: Outcome) {
        // The caller fills in the database and the key.
        self.wakes.push(Wake { ticket, outcome, db: 0, key: Box::default() });
    }
}

impl Acquire<'_> {
    pub(in crate::store) fn until(&self, now_ms: u64) -> Until {
        match &self.span {
            Span::Ms(ms) => Until::At(now_ms + ms),
            Span::Lease(id) => Until::Lease(id.clone()),
        }
    }
}

impl Waiter {
    /// Its client is gone.
    pub(in crate::store) fn leave(&mut self, now_ms: u64) {
        if !self.is_absent {
            self.is_absent = true;
            self.deadline = self.deadline.min(now_ms + ABSENCE_MS_MAX);
        }
    }

    pub(in crate::store) fn new(asked: &Acquire<'_>, ticket: Ticket, deadline: u64) -> Waiter {
        Waiter {
            owner: asked.owner.into(),
            share: asked.share,
            span: asked.span.clone(),
            delay_ms: asked.delay_ms,
            ticket,
            deadline,
            is_absent: false,
            data: asked.data.unwrap_or_default().into(),
        }
    }
}

impl Holder {
    /// Whether the hold is valid at this time.
    pub fn is_on(&self, now_ms: u64) -> bool {
        self.deadline().is_none_or(|deadline| deadline >= now_ms)
    }

    /// When it expires, unless it is tied to a lease.
    pub fn deadline(&self) -> Option<u64> {
        match self.until {
            Until::At(deadline) => Some(deadline),
            Until::Lease(_) => None,
        }
    }
}
