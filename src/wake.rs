//! The clients on this node whose calls wait. The machine reports how waits end, in log order; each outcome is
//! passed to the connection that registered the wait. What the connection must write to the log in turn goes
//! through one queue (`Notice`), and is retried until it is known to be in the log.
//!
//! A grant is never lost: one that cannot be delivered, because the client is gone or the proposal was given
//! up, is released at once. Any other outcome is final: what was popped for a client that is gone is popped.
//!
//! A wait is ended by a log entry, so it would never end while the log makes no progress. Therefore it is
//! given up here, without the log, when no majority was in contact for as long as any other request may take
//! (`watch_contact`), when its own timeout and that much more have passed, and when the node stops.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
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
    effects::{Effects, Ended, Listener, Outcome, Replaced},
    proposal::{self, Waited},
    resp::Protocol,
    router::Router,
    store::{Fate, Ticket},
};

/// How many notices are batched.
const NOTICES_MAX: usize = 1_000;
/// The pause before notices are retried.
const NOTICE_PAUSE: Duration = Duration::from_millis(100);
/// How long a confirmation waits for a proposal to share.
const CONFIRM_PAUSE: Duration = Duration::from_millis(5);
/// How often a node looks for waits of its earlier runs, and the leader for dead nodes.
const WATCH_STEP: Duration = Duration::from_millis(300);
/// How often a node checks for contact with a majority, while clients wait on it.
const CONTACT_STEP: Duration = Duration::from_secs(1);
/// A node that was silent for this long at this many checks in a row has lost its waiting clients. Checks are
/// counted rather than time: after this process was suspended, it has not heard from any node.
const SILENT_MS: u64 = 1_000;
const SILENT_LOOKS: u32 = 5;
/// Longer keys are truncated in notices.
const KEY_BYTES_MAX: usize = 1 << 10;
/// The longest wait; the log does not accept a longer one.
const WAIT_MAX: Duration = Duration::from_secs(2 * 366 * 24 * 3600);
/// How long a stopping node keeps trying to send its notices.
const SETTLE_MAX: Duration = Duration::from_millis(500);

/// What bounds the waits on a node.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The time limit of a request that does not block.
    pub request_timeout: Duration,
    /// The largest proposal.
    pub proposal_bytes_max: usize,
}

/// Why this node gave up a wait that may still be in the log. Whatever is granted to it is released, but
/// others may have seen the grant: as an error it means that the outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum GivenUp {
    /// Neither a leader nor its progress was seen for too long.
    #[error(
        "UNCERTAIN the wait was given up: this node is out of contact with a majority; a lock granted meanwhile is released"
    )]
    OutOfContact,
    /// The node is stopping.
    #[error("UNCERTAIN the wait was given up: this node is stopping; a lock granted meanwhile is released")]
    Stopping,
}

/// What must be written to the log.
#[derive(Debug)]
enum Notice {
    /// The client that waited is gone.
    Cancel { db: u32, key: Vec<u8>, ticket: Ticket },
    /// The client that waited has been told of its grant.
    Confirm(Arc<Confirmation>),
    /// A node's waits are over, except those of one run of it.
    Forget { node: u64, but_boot: u64, term: u64 },
    /// A command that a client left behind, its name first.
    Call { db: u32, argv: Vec<Vec<u8>> },
}

/// Confirms that the client has been told of its grant: from then on, the grant is not released for being
/// undeliverable.
#[derive(Debug)]
pub struct Confirmation {
    db: u32,
    key: Vec<u8>,
    ticket: Ticket,
    is_said: AtomicBool,
}

impl Confirmation {
    /// An upper bound of its size in a proposal.
    pub fn bytes_max(&self) -> usize {
        // A tag, and five numbers besides the key.
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

/// A connection that waits.
#[derive(Debug)]
struct Waiting {
    told: oneshot::Sender<Result<Outcome, GivenUp>>,
    /// The wait is in the log.
    is_queued: bool,
}

/// All waits on this node.
#[derive(Debug)]
pub struct Wakes {
    node: u64,
    boot: u64,
    limits: Limits,
    last: AtomicU64,
    waiting: Mutex<BTreeMap<u64, Waiting>>,
    /// No more waits are allowed.
    is_stopping: AtomicBool,
    notices: mpsc::UnboundedSender<Notice>,
    /// Notices that are not in the log yet.
    unsaid: AtomicUsize,
    /// How many snapshots replaced entries.
    snapshots: AtomicU64,
    /// Waits whose outcome was read from the state after a snapshot, each with the entry up to which it was: that
    /// entry, or one before it, may still report it.
    told_early: Mutex<HashMap<u64, u64>>,
    /// The last entry whose effects were heard.
    heard: AtomicU64,
    /// Grants to earlier runs of this node in entries above this index were never delivered to anybody.
    new_above: AtomicU64,
}

/// The queue of notices, for [`Wakes::run`].
#[derive(Debug)]
pub struct Notices(mpsc::UnboundedReceiver<Notice>);

impl Wakes {
    /// For one run of a node, without any waits.
    pub fn new(node: u64, limits: Limits) -> (Arc<Wakes>, Notices) {
        let (notices, queue) = mpsc::unbounded_channel();
        let wakes = Wakes {
            node,
            // 0 means no run.
            boot: chance::id().max(1),
            limits,
            last: AtomicU64::new(0),
            waiting: Mutex::default(),
            is_stopping: AtomicBool::new(false),
            notices,
            unsaid: AtomicUsize::new(0),
            snapshots: AtomicU64::new(0),
            told_early: Mutex::default(),
            heard: AtomicU64::new(0),
            new_above: AtomicU64::new(u64::MAX),
        };
        (Arc::new(wakes), Notices(queue))
    }

    /// Registers a wait of at most `time` from when it is in the log. It must be registered before that.
    pub fn register(self: &Arc<Self>, db: u32, key: &[u8], time: Duration) -> Wait {
        let number = self.last.fetch_add(1, Relaxed) + 1;
        let (told, outcome) = oneshot::channel();
        self.waiting.lock().insert(number, Waiting { told, is_queued: false });
        if self.is_stopping.load(SeqCst) {
            // `stop` may have run before the wait was in the table.
            self.give_up(number, GivenUp::Stopping);
        }
        let ticket = Ticket { node: self.node, boot: self.boot, number };
        let snapshots = self.snapshots.load(SeqCst);
        let key = said_of(key);
        let limit = time.saturating_add(self.limits.request_timeout).min(WAIT_MAX);
        let deadline = Instant::now() + limit;
        Wait {
            wakes: self.clone(),
            db,
            key,
            ticket,
            outcome,
            told: None,
            limit,
            deadline,
            snapshots,
            is_over: false,
        }
    }

    /// Ends all waits, present and future: the node stops. `run` sends the notices that they leave behind,
    /// and `settle` waits for that.
    pub fn stop(&self) {
        self.is_stopping.store(true, SeqCst);
        self.give_up_all(GivenUp::Stopping);
    }

    fn give_up_all(&self, why: GivenUp) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        // If the receiver is gone, the wait was dropped and cancels itself.
        waiting.into_values().for_each(|waiting| drop(waiting.told.send(Err(why))));
    }

    fn give_up(&self, number: u64, why: GivenUp) {
        if let Some(waiting) = self.waiting.lock().remove(&number) {
            // The receiver is about to read it, or was dropped.
            let _ = waiting.told.send(Err(why));
        }
    }

    /// Entries up to this index were in this node's log when it started.
    pub fn started_with(&self, last_log_index: u64) {
        self.new_above.store(last_log_index, Relaxed);
    }

    /// The number of waits.
    pub fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Whether there are no waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Confirms again after the proposal that carried the confirmation may have been lost.
    pub fn confirm_again(&self, confirmation: &Confirmation) {
        let Confirmation { db, key, ticket, .. } = confirmation;
        let is_said = AtomicBool::new(false);
        let again = Confirmation { db: *db, key: key.clone(), ticket: *ticket, is_said };
        self.say(Notice::Confirm(Arc::new(again)));
    }

    /// Executes a command whose reply nobody wants, as soon as that is possible.
    pub fn leave(&self, db: u32, argv: Vec<Vec<u8>>) {
        self.say(Notice::Call { db, argv });
    }

    /// Tells a connection how its wait ended. False if it was told already or the wait is not registered.
    fn tell_waiting(&self, number: u64, outcome: Outcome) -> bool {
        let waiting = self.waiting.lock().remove(&number);
        // If the receiver is gone, the wait was dropped and cancels itself.
        waiting.map(|waiting| drop(waiting.told.send(Ok(outcome)))).is_some()
    }

    fn say(&self, notice: Notice) {
        self.unsaid.fetch_add(1, Relaxed);
        // The receiver is gone when the node has stopped.
        let _ = self.notices.send(notice);
    }

    /// Sends notices, and watches the waits of this node's earlier runs, those of dead nodes while this node
    /// leads, and its own waits while it has no contact with a majority. Runs forever.
    pub async fn run(&self, notices: Notices, router: &Router) {
        tokio::join!(self.tell(notices, router), self.watch_nodes(router), self.watch_contact(router));
    }

    /// Gives up all waits when this node has been out of contact for as long as a request may take. No event
    /// reports that: the leader that a node knows of may be long gone. So the node asks, while a client
    /// waits.
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
            // Ask again: the request fails at once while the loss is known, and contact may return soon.
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
        // Confirmations that may still go along with the client's next command.
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

    /// Sends notices, in as many proposals as they need.
    async fn tell_all(&self, notices: &[Notice], router: &Router) {
        let mut together = Together::default();
        let mut one = Vec::new();
        for notice in notices {
            one.clear();
            // If a confirmation went along with another proposal, there is nothing to send.
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

    /// Waits until all notices were sent, for a bounded time.
    pub async fn settle(&self) {
        let started = Instant::now();
        while self.unsaid.load(Relaxed) > 0 && started.elapsed() < SETTLE_MAX {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Listener for Wakes {
    fn wants_changes(&self) -> Option<usize> {
        None
    }

    fn applied(&self, effects: &Effects) {
        for Ended { ticket, place: (db, key), outcome } in &effects.ended {
            let (ticket, db) = (*ticket, *db);
            let is_own_run = ticket.boot == self.boot;
            if ticket.node != self.node || !is_own_run && effects.index <= self.new_above.load(Relaxed) {
                continue;
            }
            let is_granted = outcome.fate == Fate::Granted;
            let is_told = is_own_run && self.tell_waiting(ticket.number, outcome.clone());
            // Delivered a moment ago, when the outcome was read from the state.
            let was_told = is_own_run && self.told_early.lock().remove(&ticket.number).is_some();
            let is_told = is_told || was_told;
            if is_granted && !is_told {
                self.say(Notice::Cancel { db, key: said_of(key), ticket });
            }
        }
        self.heard.store(effects.index, Relaxed);
    }

    fn replaced(&self, replaced: &Replaced<'_>) {
        self.snapshots.fetch_add(1, SeqCst);
        let numbers: Vec<u64> = {
            let waiting = self.waiting.lock();
            waiting.iter().filter(|(_, waiting)| waiting.is_queued).map(|(number, _)| *number).collect()
        };
        for number in numbers {
            if let Some(outcome) = (replaced.outcome_of)(Ticket { node: self.node, boot: self.boot, number })
            {
                self.tell_waiting(number, outcome);
            }
        }
    }
}

/// Notices that share one proposal.
#[derive(Debug, Default)]
struct Together {
    bytes: Vec<u8>,
    /// How many requests there are in `bytes`.
    requests: usize,
    /// How many notices are done when these are in the log.
    notices: usize,
}

impl Together {
    /// Proposes them until they are in the log, and empties itself. Returns how many notices that settled.
    async fn say(&mut self, router: &Router) -> usize {
        let Together { bytes, requests, notices } = std::mem::take(self);
        if requests == 0 {
            return notices;
        }
        loop {
            // Either all of them fail, or none.
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
    /// Appends its request. False if nothing needs to be sent any more.
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

/// The part of a key that goes into notices. It only speeds up searches, and a prefix does so nearly as well:
/// a long key is not worth repeating in the log.
fn said_of(key: &[u8]) -> Vec<u8> {
    key[..key.len().min(KEY_BYTES_MAX)].to_vec()
}

/// Whether a reply means that a request was not executed, or that this is unknown.
pub fn is_unavailable(reply: &[u8]) -> bool {
    let errors: [&[u8]; 4] = [b"-UNCERTAIN", b"-CLUSTERDOWN", b"-TRYAGAIN", b"-LOADING"];
    errors.iter().any(|error| reply.starts_with(error))
}

/// One wait. If it is dropped before it is over, whatever was granted to it is released.
#[derive(Debug)]
pub struct Wait {
    wakes: Arc<Wakes>,
    db: u32,
    key: Vec<u8>,
    ticket: Ticket,
    outcome: oneshot::Receiver<Result<Outcome, GivenUp>>,
    told: Option<Outcome>,
    /// The timeout from when the wait is in the log, and the moment when it expires.
    limit: Duration,
    deadline: Instant,
    /// How many snapshots had been installed when the wait began.
    snapshots: u64,
    is_over: bool,
}

impl Wait {
    /// The ticket that identifies it in the log.
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// Call when the wait is in the log.
    pub fn queued(&mut self, router: &Router) {
        self.deadline = Instant::now() + self.limit;
        if let Some(waiting) = self.wakes.waiting.lock().get_mut(&self.ticket.number) {
            waiting.is_queued = true;
        }
        // A snapshot may have ended it before it was marked: then no other code reports that.
        if self.wakes.snapshots.load(SeqCst) != self.snapshots
            && let Some((index, outcome)) = router.outcome_at(self.db, &self.key, self.ticket)
        {
            let number = self.ticket.number;
            {
                let mut told_early = self.wakes.told_early.lock();
                // What was heard is not reported again.
                told_early.retain(|_, reported_by| *reported_by > self.wakes.heard.load(Relaxed));
                told_early.insert(number, index);
            }
            if !self.wakes.tell_waiting(number, outcome) {
                // The entry itself was first, and no other reports it again.
                self.wakes.told_early.lock().remove(&number);
            }
        }
    }

    /// Returns when the wait has ended; [`Wait::told`] says how. After an error, drop the wait, so that it is
    /// cancelled in the log. Cancel safe.
    pub async fn ended(&mut self) -> Result<(), GivenUp> {
        let told = match timeout_at(self.deadline, &mut self.outcome).await {
            // The sender is dropped only with the table, when the process ends.
            Ok(told) => told.unwrap_or(Err(GivenUp::Stopping)),
            // The log ends the wait at about the same time, if it makes progress at all.
            Err(_) => Err(GivenUp::OutOfContact),
        };
        told.map(|outcome| self.told = Some(outcome))
    }

    /// How the wait ended, if it has.
    pub fn told(&mut self) -> Option<Outcome> {
        self.told.take().or_else(|| self.outcome.try_recv().ok()?.ok())
    }

    /// Appends the request that ends the wait in the log.
    pub fn put_cancel(&self, out: &mut Vec<u8>) {
        proposal::put_cancel(out, &Waited { db: self.db, key: &self.key, ticket: self.ticket });
    }

    /// The client has been told what has become of its call, which was not granted anything, or has not begun to
    /// wait.
    pub fn over(mut self) {
        self.is_over = true;
    }

    /// The client has been told of the grant. The confirmation goes to the log soon, or earlier if the returned
    /// value is used.
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
