//! Who on this node waits for a grant of a lock, a semaphore or an election. The machine says how waits end, in the
//! order of the log; each is told to the session that registered it. What the session has to tell the log in turn goes
//! through one queue (`Notice`), and is repeated until it is known to be there.
//!
//! A grant is never lost: one that finds nobody to be told, because the client is gone or the proposal was given up, is
//! given back at once.
//!
//! A wait ends by the log, so it would have no end where the log stands still. Therefore it is given up here, without
//! the log, when no majority was heard of for as long as any other request may take (`watch_contact`), when
//! its time and that much more are over, and when the node stops.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use kvorum_raft::{ReadLevel, Role, Unavailable, chance};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use crate::{
    machine::Outlet,
    proposal::{self, Waited},
    resp::Protocol,
    router::Router,
    store::{Outcome, Ticket, Wake},
};

/// How many notices travel together.
const NOTICES_MAX: usize = 1_000;
/// The pause before notices are repeated.
const NOTICE_PAUSE: Duration = Duration::from_millis(100);
/// How long a confirmation waits for something to travel with.
const CONFIRM_PAUSE: Duration = Duration::from_millis(5);
/// How often a node looks for waits of its earlier runs, and the leader for nodes that are gone.
const WATCH_STEP: Duration = Duration::from_millis(300);
/// How often a node looks whether it is in contact with a majority, while clients wait there.
const CONTACT_STEP: Duration = Duration::from_secs(1);
/// A node that was silent for so long at so many looks in succession has lost its waiting clients. Looks are counted, not
/// time: a node that was stopped itself has heard of nobody meanwhile.
const SILENT_MS: u64 = 1_000;
const SILENT_LOOKS: u32 = 5;
/// Longer keys are cut off in notices.
const KEY_BYTES_MAX: usize = 1 << 10;
/// The longest wait: the log knows no longer one.
const WAIT_MAX: Duration = Duration::from_secs(2 * 366 * 24 * 3600);
/// How long a stopping node goes on to say what it has to say.
const SETTLE_MAX: Duration = Duration::from_millis(500);

/// What bounds the waits of a node.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long a request may take, when it does not wait.
    pub request_timeout: Duration,
    /// The largest proposal.
    pub proposal_bytes_max: usize,
}

/// Why this node has given up a wait of which the log may still know. Whatever it is granted goes back, but others may have
/// seen it meanwhile: as an error it says that the outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum GivenUp {
    /// No leader, or nothing of what it does, was heard of for too long.
    #[error(
        "UNCERTAIN the wait was given up: this node is out of contact with a majority; what it is granted goes back"
    )]
    OutOfContact,
    /// The node stops.
    #[error("UNCERTAIN the wait was given up: this node is stopping; what it is granted goes back")]
    Stopping,
}

/// What the log has to know.
#[derive(Debug)]
enum Notice {
    /// Whoever waited is gone.
    Cancel { db: u32, key: Vec<u8>, ticket: Ticket },
    /// Whoever waited knows of its grant.
    Confirm(Arc<Confirmation>),
    /// Nobody waits at a node, but for one run of it.
    Forget { node: u64, but_boot: u64, term: u64 },
    /// A command that somebody left behind, its name first.
    Call { db: u32, argv: Vec<Vec<u8>> },
}

/// That whoever waited knows of its grant: it can no longer be given back for want of somebody to be told.
#[derive(Debug)]
pub struct Confirmation {
    db: u32,
    key: Vec<u8>,
    ticket: Ticket,
    is_said: AtomicBool,
}

impl Confirmation {
    /// How much of a proposal it takes at most.
    pub fn bytes_max(&self) -> usize {
        // A tag, and five numbers beside the key.
        self.key.len() + 64
    }

    /// Appends it to a proposal, unless it is in one already. False if it is.
    pub fn say(&self, out: &mut Vec<u8>) -> bool {
        let is_new = !self.is_said.swap(true, Relaxed);
        if is_new {
            proposal::put_confirm(out, &Waited { db: self.db, key: &self.key, ticket: self.ticket });
        }
        is_new
    }
}

/// A session that waits.
#[derive(Debug)]
struct Waiting {
    told: oneshot::Sender<Result<Outcome, GivenUp>>,
    /// The log knows of it.
    is_queued: bool,
}

/// All that wait on this node.
#[derive(Debug)]
pub struct Wakes {
    node: u64,
    boot: u64,
    limits: Limits,
    last: AtomicU64,
    waiting: Mutex<BTreeMap<u64, Waiting>>,
    /// Nobody waits any more.
    is_stopping: AtomicBool,
    notices: mpsc::UnboundedSender<Notice>,
    /// Notices that the log does not have yet.
    unsaid: AtomicUsize,
    /// How many snapshots took the place of entries.
    snapshots: AtomicU64,
    /// Waits whose end was read off the state after a snapshot, though an entry may tell it yet.
    told_early: Mutex<HashSet<u64>>,
    /// What entries above this index grant to earlier runs of this node was never told to anybody.
    new_above: AtomicU64,
}

/// The queue of notices, for [`Wakes::run`].
#[derive(Debug)]
pub struct Notices(mpsc::UnboundedReceiver<Notice>);

impl Wakes {
    /// Those of this run of a node: nobody yet.
    pub fn new(node: u64, limits: Limits) -> (Arc<Wakes>, Notices) {
        let (notices, queue) = mpsc::unbounded_channel();
        let wakes = Wakes {
            node,
            // 0 stands for no run.
            boot: chance::id().max(1),
            limits,
            last: AtomicU64::new(0),
            waiting: Mutex::default(),
            is_stopping: AtomicBool::new(false),
            notices,
            unsaid: AtomicUsize::new(0),
            snapshots: AtomicU64::new(0),
            told_early: Mutex::default(),
            new_above: AtomicU64::new(u64::MAX),
        };
        (Arc::new(wakes), Notices(queue))
    }

    /// Registers a wait of at most `time` from when the log knows of it. It must be registered before that.
    pub fn register(self: &Arc<Self>, db: u32, key: &[u8], time: Duration) -> Wait {
        let number = self.last.fetch_add(1, Relaxed) + 1;
        let (told, outcome) = oneshot::channel();
        self.waiting.lock().insert(number, Waiting { told, is_queued: false });
        if self.is_stopping.load(SeqCst) {
            // `stop` may have been here before it was in the table.
            self.give_up(number, GivenUp::Stopping);
        }
        let ticket = Ticket { node: self.node, boot: self.boot, number };
        let snapshots = self.snapshots.load(SeqCst);
        let key = said_of(key);
        let limit = time.saturating_add(self.limits.request_timeout).min(WAIT_MAX);
        let deadline = Instant::now() + limit;
        Wait { wakes: self.clone(), db, key, ticket, outcome, limit, deadline, snapshots, is_over: false }
    }

    /// Ends all waits, and whoever comes to wait does not: the node stops. What they leave behind is said by `run`, for
    /// which `settle` waits.
    pub fn stop(&self) {
        self.is_stopping.store(true, SeqCst);
        self.give_up_all(GivenUp::Stopping);
    }

    fn give_up_all(&self, why: GivenUp) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        // One that ended meanwhile cancels by itself.
        waiting.into_values().for_each(|waiting| drop(waiting.told.send(Err(why))));
    }

    fn give_up(&self, number: u64, why: GivenUp) {
        if let Some(waiting) = self.waiting.lock().remove(&number) {
            // It is about to be asked for, or was dropped.
            let _ = waiting.told.send(Err(why));
        }
    }

    /// Entries up to this index were in this node's log when it started.
    pub fn started_with(&self, last_log_index: u64) {
        self.new_above.store(last_log_index, Relaxed);
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Confirms again what travelled with something that may be lost.
    pub fn confirm_again(&self, confirmation: &Confirmation) {
        let Confirmation { db, key, ticket, .. } = confirmation;
        let is_said = AtomicBool::new(false);
        let again = Confirmation { db: *db, key: key.clone(), ticket: *ticket, is_said };
        self.say(Notice::Confirm(Arc::new(again)));
    }

    /// Has a command executed that nobody waits for any more, when that is possible.
    pub fn leave(&self, db: u32, argv: Vec<Vec<u8>>) {
        self.say(Notice::Call { db, argv });
    }

    /// Tells a session how its wait ended, if it was not told yet. False if it was, or is not there.
    fn tell_waiting(&self, number: u64, outcome: Outcome) -> bool {
        let waiting = self.waiting.lock().remove(&number);
        // One that ended meanwhile cancels by itself.
        waiting.map(|waiting| drop(waiting.told.send(Ok(outcome)))).is_some()
    }

    fn say(&self, notice: Notice) {
        self.unsaid.fetch_add(1, Relaxed);
        // Without a receiver the node has stopped.
        let _ = self.notices.send(notice);
    }

    /// Says what has to be said, and watches over the waits of this node's earlier runs and, while it leads, of nodes
    /// that are gone; and over its own, while it is alone. For ever.
    pub async fn run(&self, notices: Notices, router: &Router) {
        tokio::join!(self.tell(notices, router), self.watch_nodes(router), self.watch_contact(router));
    }

    /// Gives up all waits when this node is out of contact for as long as a request may take. Nothing tells: who leads, as a
    /// node knows, may be gone for long. So it is asked for, while somebody waits.
    async fn watch_contact(&self, router: &Router) {
        let mut lost_since = None;
        loop {
            tokio::time::sleep(CONTACT_STEP).await;
            if self.is_empty() {
                lost_since = None;
                continue;
            }
            let asked = Instant::now();
            let answer = router.node().barrier(ReadLevel::Linearizable).await;
            if !matches!(answer, Err(Unavailable::NoLeader | Unavailable::NoQuorum)) {
                lost_since = None;
                continue;
            }
            // Asked again: it is refused at once where the loss is known, and may be over soon.
            if lost_since.get_or_insert(asked).elapsed() >= self.limits.request_timeout {
                tracing::info!(
                    waits = self.len(),
                    "out of contact: this node's clients do not wait any more"
                );
                self.give_up_all(GivenUp::OutOfContact);
            }
        }
    }

    async fn tell(&self, mut notices: Notices, router: &Router) {
        let mut batch = Vec::new();
        // Confirmations that may still travel with what the client does next.
        let mut later: VecDeque<(Instant, Arc<Confirmation>)> = VecDeque::new();
        loop {
            let due = later.front().map(|(due, _)| *due);
            tokio::select! {
                biased;
                count = notices.0.recv_many(&mut batch, NOTICES_MAX) => if count == 0 { return },
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
            let mut due = Vec::new();
            for notice in batch.drain(..) {
                match notice {
                    Notice::Confirm(confirmation) => {
                        later.push_back((Instant::now() + CONFIRM_PAUSE, confirmation));
                    }
                    notice => due.push(notice),
                }
            }
            let count = later.iter().take_while(|(at, _)| *at <= Instant::now()).count();
            due.extend(later.drain(..count).map(|(_, confirmation)| Notice::Confirm(confirmation)));
            self.tell_all(&due, router).await;
        }
    }

    /// Says notices, in as many proposals as they need.
    async fn tell_all(&self, notices: &[Notice], router: &Router) {
        let mut together = Together::default();
        let mut one = Vec::new();
        for notice in notices {
            one.clear();
            // A confirmation may have travelled by another way: then there is nothing to say.
            let has_words = notice.put(&mut one);
            if together.bytes.len() + one.len() > self.limits.proposal_bytes_max {
                self.unsaid.fetch_sub(together.say(router).await, Relaxed);
            }
            together.bytes.extend_from_slice(&one);
            together.requests += usize::from(has_words);
            together.notices += 1;
        }
        self.unsaid.fetch_sub(together.say(router).await, Relaxed);
    }

    async fn watch_nodes(&self, router: &Router) {
        let mut silent: BTreeMap<u64, u32> = BTreeMap::new();
        loop {
            tokio::time::sleep(WATCH_STEP).await;
            let waiting = router.waiting_nodes();
            if waiting.iter().any(|(node, boot)| *node == self.node && *boot != self.boot) {
                self.say(Notice::Forget { node: self.node, but_boot: self.boot, term: 0 });
            }
            let waiting: BTreeSet<u64> = waiting.into_iter().map(|(node, _)| node).collect();
            let status = router.status();
            if status.role != Role::Leader || waiting.iter().all(|node| *node == self.node) {
                silent.clear();
                continue;
            }
            let contacts: BTreeMap<u64, Option<u64>> =
                status.members.iter().map(|member| (member.id, member.last_contact_ms)).collect();
            for node in waiting.into_iter().filter(|node| *node != self.node) {
                let silent_ms = contacts.get(&node).copied().flatten();
                let looks = silent.entry(node).or_default();
                *looks = if silent_ms.is_none_or(|ms| ms > SILENT_MS) { *looks + 1 } else { 0 };
                if *looks >= SILENT_LOOKS {
                    tracing::info!(node, "a node is out of contact: its clients do not wait any more");
                    self.say(Notice::Forget { node, but_boot: 0, term: status.term });
                    *looks = 0;
                }
            }
        }
    }

    /// Waits until all was said, for a bounded time.
    pub async fn settle(&self) {
        let started = Instant::now();
        while self.unsaid.load(Relaxed) > 0 && started.elapsed() < SETTLE_MAX {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Outlet for Wakes {
    fn woke(&self, index: u64, wakes: Vec<Wake>) {
        for Wake { ticket, outcome, db, key } in wakes {
            let is_own_run = ticket.boot == self.boot;
            if ticket.node != self.node || !is_own_run && index <= self.new_above.load(Relaxed) {
                continue;
            }
            let is_granted = matches!(outcome, Outcome::Granted { .. });
            let is_told = is_own_run && self.tell_waiting(ticket.number, outcome);
            // By the state itself, a moment ago.
            let was_told = is_own_run && self.told_early.lock().remove(&ticket.number);
            let is_told = is_told || was_told;
            if is_granted && !is_told {
                self.say(Notice::Cancel { db, key: said_of(&key), ticket });
            }
        }
    }

    fn replaced(&self, outcome_of: &dyn Fn(Ticket) -> Option<Outcome>) {
        self.snapshots.fetch_add(1, SeqCst);
        let numbers: Vec<u64> = {
            let waiting = self.waiting.lock();
            waiting.iter().filter(|(_, waiting)| waiting.is_queued).map(|(number, _)| *number).collect()
        };
        for number in numbers {
            if let Some(outcome) = outcome_of(Ticket { node: self.node, boot: self.boot, number }) {
                self.tell_waiting(number, outcome);
            }
        }
    }
}

/// Notices that travel in one proposal.
#[derive(Debug, Default)]
struct Together {
    bytes: Vec<u8>,
    /// How many requests there are in `bytes`.
    requests: usize,
    /// How many notices they settle.
    notices: usize,
}

impl Together {
    /// Says them until they are in the log, and begins anew. Gives how many notices that settled.
    async fn say(&mut self, router: &Router) -> usize {
        let Together { bytes, requests, notices } = std::mem::take(self);
        if requests == 0 {
            return notices;
        }
        loop {
            // All of them fail, or none.
            let answer = router.call(&bytes, requests, Protocol::Resp2).await;
            if is_too_large(&answer) {
                tracing::error!(bytes = bytes.len(), "what a client left behind cannot be said");
            }
            if !is_unavailable(&answer) {
                return notices;
            }
            tokio::time::sleep(NOTICE_PAUSE).await;
        }
    }
}

impl Notice {
    /// Appends its request. False if there is nothing to be said any more.
    fn put(&self, out: &mut Vec<u8>) -> bool {
        match self {
            Notice::Cancel { db, key, ticket } => {
                proposal::put_cancel(out, &Waited { db: *db, key, ticket: *ticket });
            }
            Notice::Confirm(confirmation) => return confirmation.say(out),
            Notice::Forget { node, but_boot, term } => {
                proposal::put_forget_node(out, *node, *but_boot, *term);
            }
            Notice::Call { db, argv } => {
                let argv: Vec<&[u8]> = argv.iter().map(Vec::as_slice).collect();
                proposal::put_call(out, *db, &argv);
            }
        }
        true
    }
}

/// Whether a reply says that a proposal was refused for its size.
fn is_too_large(reply: &[u8]) -> bool {
    reply.starts_with(b"-ERR the request is larger than")
}

/// What notices say of a key. It only saves searches, and its beginning nearly as many: a long one is not worth its
/// repetition in the log.
fn said_of(key: &[u8]) -> Vec<u8> {
    key[..key.len().min(KEY_BYTES_MAX)].to_vec()
}

/// Whether a reply says that a request was not executed for certain.
pub fn is_unavailable(reply: &[u8]) -> bool {
    let errors: [&[u8]; 4] = [b"-UNCERTAIN", b"-CLUSTERDOWN", b"-TRYAGAIN", b"-LOADING"];
    errors.iter().any(|error| reply.starts_with(error))
}

/// One wait. When it is dropped before it is over, whatever was granted to it is given back.
#[derive(Debug)]
pub struct Wait {
    wakes: Arc<Wakes>,
    db: u32,
    key: Vec<u8>,
    ticket: Ticket,
    outcome: oneshot::Receiver<Result<Outcome, GivenUp>>,
    /// How long it may take from when the log knows of it, and the moment when that is over.
    limit: Duration,
    deadline: Instant,
    /// How many snapshots had been installed when it began.
    snapshots: u64,
    is_over: bool,
}

impl Wait {
    /// What stands in the log for it.
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// The log knows of it.
    pub fn queued(&mut self, router: &Router) {
        self.deadline = Instant::now() + self.limit;
        if let Some(waiting) = self.wakes.waiting.lock().get_mut(&self.ticket.number) {
            waiting.is_queued = true;
        }
        // A snapshot may have ended it before it was marked: then nobody else tells.
        if self.wakes.snapshots.load(SeqCst) != self.snapshots
            && let Some(outcome) = router.outcome_at(self.db, &self.key, self.ticket)
        {
            let number = self.ticket.number;
            self.wakes.told_early.lock().insert(number);
            if !self.wakes.tell_waiting(number, outcome) {
                // The entry itself was faster, and no other tells it again.
                self.wakes.told_early.lock().remove(&number);
            }
        }
    }

    /// How it ended. What was given up is to be dropped, so that the log learns of it. Cancel safe.
    pub async fn outcome(&mut self) -> Result<Outcome, GivenUp> {
        match timeout_at(self.deadline, &mut self.outcome).await {
            // The sender is only dropped with the table, when the process ends.
            Ok(told) => told.unwrap_or(Err(GivenUp::Stopping)),
            // The log says that its time is over at about that time, if it says anything.
            Err(_) => Err(GivenUp::OutOfContact),
        }
    }

    /// It ended without a grant, or never began.
    pub fn over(mut self) {
        self.is_over = true;
    }

    /// The client was told of the grant. The log learns it soon, or earlier by what this gives.
    pub fn confirm(mut self) -> Arc<Confirmation> {
        self.is_over = true;
        let (db, key, ticket) = (self.db, std::mem::take(&mut self.key), self.ticket);
        let confirmation = Arc::new(Confirmation { db, key, ticket, is_said: AtomicBool::new(false) });
        self.wakes.say(Notice::Confirm(confirmation.clone()));
        confirmation
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.wakes.waiting.lock().remove(&self.ticket.number);
        if !self.is_over {
            let (db, key, ticket) = (self.db, std::mem::take(&mut self.key), self.ticket);
            self.wakes.say(Notice::Cancel { db, key, ticket });
        }
    }
}
