//! Who on this node waits for a grant of a lock, a semaphore or an election. The machine says how waits end, in the
//! order of the log; each is told to the session that registered it. What the session has to tell the log in turn goes
//! through one queue (`Notice`), and is repeated until it is known to be there.
//!
//! A grant is never lost: one that finds nobody to be told, because the client is gone or the proposal was given up, is
//! given back at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use kvorum_raft::Role;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

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
const WATCH_STEP: Duration = Duration::from_millis(500);
/// A node that was not heard for so long has lost its waiting clients.
const CONTACT_LOST_MS: u64 = 3_000;
/// How long a stopping node goes on to say what it has to say.
const SETTLE_MAX: Duration = Duration::from_millis(500);

/// What the log has to know.
#[derive(Debug)]
enum Notice {
    /// Whoever waited is gone.
    Cancel { db: u32, key: Vec<u8>, ticket: Ticket },
    /// Whoever waited knows of its grant.
    Confirm(Arc<Confirmation>),
    /// Nobody waits at a node, but for one run of it.
    Forget { node: u64, but_boot: u64 },
    /// A command that somebody left behind, its name first.
    Call { db: u32, argv: Vec<Vec<u8>> },
}

/// That whoever waited knows of its grant. Until the log has it, the same owner's asking again counts as the same
/// acquisition: it may not have been told.
#[derive(Debug)]
pub struct Confirmation {
    db: u32,
    key: Vec<u8>,
    ticket: Ticket,
    is_said: AtomicBool,
}

impl Confirmation {
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
    told: oneshot::Sender<Outcome>,
    /// The log knows of it.
    is_queued: bool,
}

/// All that wait on this node.
#[derive(Debug)]
pub struct Wakes {
    node: u64,
    boot: u64,
    last: AtomicU64,
    waiting: Mutex<HashMap<u64, Waiting>>,
    notices: mpsc::UnboundedSender<Notice>,
    /// Notices that the log does not have yet.
    unsaid: AtomicUsize,
}

/// The queue of notices, for [`Wakes::run`].
#[derive(Debug)]
pub struct Notices(mpsc::UnboundedReceiver<Notice>);

impl Wakes {
    /// Those of this run of a node: nobody yet.
    pub fn new(node: u64) -> (Arc<Wakes>, Notices) {
        let (notices, queue) = mpsc::unbounded_channel();
        let wakes = Wakes {
            node,
            // 0 stands for no run.
            boot: fastrand::u64(1..),
            last: AtomicU64::new(0),
            waiting: Mutex::default(),
            notices,
            unsaid: AtomicUsize::new(0),
        };
        (Arc::new(wakes), Notices(queue))
    }

    /// Registers a wait. It must be registered before the log can know of it.
    pub fn register(self: &Arc<Self>, db: u32, key: &[u8]) -> Wait {
        let number = self.last.fetch_add(1, Relaxed) + 1;
        let (told, outcome) = oneshot::channel();
        self.waiting.lock().insert(number, Waiting { told, is_queued: false });
        let ticket = Ticket { node: self.node, boot: self.boot, number };
        Wait { wakes: self.clone(), db, key: key.to_vec(), ticket, outcome, is_over: false }
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

    fn say(&self, notice: Notice) {
        self.unsaid.fetch_add(1, Relaxed);
        // Without a receiver the node has stopped.
        let _ = self.notices.send(notice);
    }

    /// Says what has to be said, and watches over the waits of this node's earlier runs and, while it leads, of nodes
    /// that are gone. For ever.
    pub async fn run(&self, notices: Notices, router: &Router) {
        tokio::join!(self.tell(notices, router), self.watch_nodes(router));
    }

    async fn tell(&self, mut notices: Notices, router: &Router) {
        let mut batch = Vec::new();
        // Confirmations that may still travel with what the client does next.
        let mut later: VecDeque<(Instant, Arc<Confirmation>)> = VecDeque::new();
        loop {
            let due = later.front().map(|(due, _)| *due);
            tokio::select! {
                count = notices.0.recv_many(&mut batch, NOTICES_MAX) => if count == 0 { return },
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
            }
            // `count` requests, which settle `done` notices: a confirmation may have travelled by another way.
            let (mut bytes, mut count, mut done) = (Vec::new(), 0, 0);
            for notice in batch.drain(..) {
                match notice {
                    Notice::Confirm(confirmation) => {
                        later.push_back((Instant::now() + CONFIRM_PAUSE, confirmation));
                    }
                    notice => {
                        notice.put(&mut bytes);
                        count += 1;
                        done += 1;
                    }
                }
            }
            while let Some((due, confirmation)) = later.front()
                && *due <= Instant::now()
            {
                count += usize::from(confirmation.say(&mut bytes));
                done += 1;
                later.pop_front();
            }
            while count > 0 && !propose(router, &bytes, count).await {
                tokio::time::sleep(NOTICE_PAUSE).await;
            }
            self.unsaid.fetch_sub(done, Relaxed);
        }
    }

    async fn watch_nodes(&self, router: &Router) {
        loop {
            tokio::time::sleep(WATCH_STEP).await;
            let waiting = router.waiting_nodes();
            if waiting.iter().any(|(node, boot)| *node == self.node && *boot != self.boot) {
                self.say(Notice::Forget { node: self.node, but_boot: self.boot });
            }
            let waiting: BTreeSet<u64> = waiting.into_iter().map(|(node, _)| node).collect();
            if waiting.iter().all(|node| *node == self.node) {
                continue;
            }
            let status = router.status();
            if status.role != Role::Leader {
                continue;
            }
            let contacts: BTreeMap<u64, Option<u64>> =
                status.members.iter().map(|member| (member.id, member.last_contact_ms)).collect();
            for node in waiting.into_iter().filter(|node| *node != self.node) {
                let silent_ms = contacts.get(&node).copied().flatten();
                if silent_ms.is_none_or(|ms| ms > CONTACT_LOST_MS) {
                    tracing::info!(node, "a node is out of contact: its clients do not wait any more");
                    self.say(Notice::Forget { node, but_boot: 0 });
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
    fn woke(&self, wakes: Vec<Wake>) {
        for Wake { ticket, outcome } in wakes {
            if (ticket.node, ticket.boot) != (self.node, self.boot) {
                continue;
            }
            let waiting = self.waiting.lock().remove(&ticket.number);
            match waiting {
                // One that ended meanwhile cancels by itself.
                Some(waiting) => drop(waiting.told.send(outcome)),
                None if matches!(outcome, Outcome::Granted { .. }) => {
                    self.say(Notice::Cancel { db: 0, key: Vec::new(), ticket });
                }
                None => {}
            }
        }
    }

    fn replaced(&self, outcome_of: &dyn Fn(Ticket) -> Option<Outcome>) {
        let numbers: Vec<u64> = {
            let waiting = self.waiting.lock();
            waiting.iter().filter(|(_, waiting)| waiting.is_queued).map(|(number, _)| *number).collect()
        };
        let tickets = numbers.into_iter().map(|number| Ticket { node: self.node, boot: self.boot, number });
        let ended = tickets.filter_map(|ticket| Some(Wake { ticket, outcome: outcome_of(ticket)? }));
        self.woke(ended.collect());
    }
}

impl Notice {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Notice::Cancel { db, key, ticket } => {
                proposal::put_cancel(out, &Waited { db: *db, key, ticket: *ticket });
            }
            Notice::Confirm(confirmation) => drop(confirmation.say(out)),
            Notice::Forget { node, but_boot } => proposal::put_forget_node(out, *node, *but_boot),
            Notice::Call { db, argv } => {
                let argv: Vec<&[u8]> = argv.iter().map(Vec::as_slice).collect();
                proposal::put_call(out, *db, &argv);
            }
        }
    }
}

/// Proposes requests. True if they are in the log for certain: they may be there twice.
async fn propose(router: &Router, bytes: &[u8], count: usize) -> bool {
    // All of them fail, or none.
    !is_unavailable(&router.call(bytes, count, Protocol::Resp2).await)
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
    outcome: oneshot::Receiver<Outcome>,
    is_over: bool,
}

impl Wait {
    /// What stands in the log for it.
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// The log knows of it.
    pub fn queued(&self) {
        if let Some(waiting) = self.wakes.waiting.lock().get_mut(&self.ticket.number) {
            waiting.is_queued = true;
        }
    }

    /// How it ended. Cancel safe.
    pub async fn outcome(&mut self) -> Outcome {
        // The sender is only dropped with the table, when the process ends.
        (&mut self.outcome).await.unwrap_or(Outcome::Gone)
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
