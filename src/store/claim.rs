//! One owner's claim: what it asks for, what it holds, where it waits and how it is told. `claims.rs` puts them
//! together.

use std::sync::Arc;

/// How long the place of an owner is kept whose client is gone.
pub const ABSENCE_MS_MAX: u64 = 3_000;

/// What the numbers of a holder or a waiter take, about.
pub(super) const FIXED_BYTES: usize = 40;

/// What is claimed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ClaimKind {
    #[default]
    Lock,
    Semaphore,
    Election,
}

/// How much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// All, alone.
    All,
    /// So many permits. A shared lock is held by one each.
    Permits(u64),
}

/// The name of a lease, in the same database.
pub type LeaseId = Arc<[u8]>;

/// How long a hold lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Span {
    /// So many milliseconds from the grant.
    Ms(u64),
    /// As long as a lease.
    Lease(LeaseId),
}

/// When a hold ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Until {
    /// When the log clock is past this, in milliseconds since the Unix epoch.
    At(u64),
    /// With a lease.
    Lease(LeaseId),
}

/// Who is to be told how a wait ended: a node, one run of it, and a number that this run never uses again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub struct Ticket {
    pub node: u64,
    pub boot: u64,
    pub number: u64,
}

/// How a wait ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is held now.
    Granted {
        /// What was waited for.
        kind: ClaimKind,
        /// The number of the grant.
        token: u64,
        /// How long it lasts; None with a lease.
        remaining_ms: Option<u64>,
    },
    /// The time for waiting is over.
    TimedOut,
    /// The owner asked again elsewhere, and waits there in its place.
    Superseded,
    /// The key was deleted, or the lease ended.
    Gone,
}

/// A wait that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wake {
    /// Whose.
    pub ticket: Ticket,
    /// How.
    pub outcome: Outcome,
    /// The database.
    pub db: u32,
    /// What was waited for, as it is named now; empty if it is gone.
    pub key: Box<[u8]>,
}

/// One owner's hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Chosen by the client.
    pub owner: Box<[u8]>,
    /// The number of the grant; rises over all claims.
    pub token: u64,
    /// How many releases are due.
    pub count: u64,
    /// How much is held.
    pub share: Share,
    /// When it ends.
    pub until: Until,
    /// How long nothing is granted after it ran out.
    pub delay_ms: u64,
    /// Set from a grant to one who waited until it is known that it was told so.
    pub ticket: Option<Ticket>,
    /// What the owner wants others to see.
    pub data: Box<[u8]>,
}

/// An owner in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiter {
    pub(super) owner: Box<[u8]>,
    pub(super) share: Share,
    pub(super) span: Span,
    pub(super) delay_ms: u64,
    pub(super) ticket: Ticket,
    /// It waits as long as the log clock is not past this.
    pub(super) deadline: u64,
    /// Its client is gone: nothing is granted to it, but for a while its owner can come back to its place.
    pub(super) is_absent: bool,
    pub(super) data: Box<[u8]>,
}

/// What an owner asks for.
#[derive(Clone, Debug)]
pub struct Wish<'a> {
    /// Who asks.
    pub owner: &'a [u8],
    /// For how much.
    pub share: Share,
    /// For how long.
    pub span: Span,
    /// None leaves what an earlier acquisition said.
    pub data: Option<&'a [u8]>,
    /// How long nothing is to be granted if the hold runs out.
    pub delay_ms: u64,
    /// To wait until this deadline, and to be told there.
    pub wait: Option<(Ticket, u64)>,
    /// Whether acquiring again asks for one more release.
    pub is_counted: bool,
}

/// The answer to a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is held under this token.
    Held {
        /// The number of the grant.
        token: u64,
        /// When it ends.
        until: Until,
    },
    /// The owner waits.
    Queued,
    /// Others hold it.
    Taken,
}

/// The log's state that a change of claims uses.
pub struct Turn<'a> {
    /// The log clock.
    pub now_ms: u64,
    /// The last token issued.
    pub token: &'a mut u64,
    /// Waits that ended.
    pub wakes: &'a mut Vec<Wake>,
    /// Set to false by a change that changed nothing after all.
    pub changed: bool,
}

impl Turn<'_> {
    pub(super) fn issue(&mut self) -> u64 {
        *self.token += 1;
        *self.token
    }

    pub(super) fn wake(&mut self, ticket: Ticket, outcome: Outcome) {
        // Whoever changes claims knows where they are.
        self.wakes.push(Wake { ticket, outcome, db: 0, key: Box::default() });
    }
}

impl Wish<'_> {
    pub(super) fn until(&self, now_ms: u64) -> Until {
        match &self.span {
            Span::Ms(ms) => Until::At(now_ms + ms),
            Span::Lease(id) => Until::Lease(id.clone()),
        }
    }
}

impl Waiter {
    /// Its client is gone.
    pub(super) fn leave(&mut self, now_ms: u64) {
        if !self.is_absent {
            self.is_absent = true;
            self.deadline = self.deadline.min(now_ms + ABSENCE_MS_MAX);
        }
    }

    pub(super) fn new(wish: &Wish<'_>, ticket: Ticket, deadline: u64) -> Waiter {
        Waiter {
            owner: wish.owner.into(),
            share: wish.share,
            span: wish.span.clone(),
            delay_ms: wish.delay_ms,
            ticket,
            deadline,
            is_absent: false,
            data: wish.data.unwrap_or_default().into(),
        }
    }
}

impl Holder {
    /// Whether it holds at this moment.
    pub fn is_on(&self, now_ms: u64) -> bool {
        self.deadline().is_none_or(|deadline| deadline >= now_ms)
    }

    /// When it ends, if it does by itself.
    pub fn deadline(&self) -> Option<u64> {
        match self.until {
            Until::At(deadline) => Some(deadline),
            Until::Lease(_) => None,
        }
    }
}
