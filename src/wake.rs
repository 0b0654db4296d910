//! Who on this node waits for a grant of a lock, a semaphore or an election. The machine says how waits end, in the
//! order of the log; each is told to the session that registered it. What the session has to tell the log in turn goes
//! through one queue (`Notice`), and is repeated until it is known to be there.
//!
//! A grant is never lost: one that finds nobody to be told, because the client is gone or the proposal was given up, is
//! given back at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
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
/// How often the leader looks for nodes that are gone.
const WATCH_STEP: Duration = Duration::from_millis(500);
/// A node that was not heard for so long has lost its waiting clients.
const CONTACT_LOST_MS: u64 = 3_000;
/// How long a stopping node goes on to say what it has to say.
const SETTLE_MAX: Duration = Duration::from_millis(500);

/// What the log has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Notice {
    /// Whoever waited is gone.
    Cancel { db: u32, key: Vec<u8>, ticket: Ticket },
    /// Whoever waited knows of its grant.
    Confirm { db: u32, key: Vec<u8>, ticket: Ticket },
    /// Nobody waits at a node, but for one run of it.
    Forget { node: u64, but_boot: u64 },
    /// A command that somebody left behind, its name first.
    Call { db: u32, argv: Vec<Vec<u8>> },
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

    /// Has a command executed that nobody waits for any more, when that is possible.
    pub fn leave(&self, db: u32, argv: Vec<Vec<u8>>) {
        self.say(Notice::Call { db, argv });
    }

    fn say(&self, notice: Notice) {
        self.unsaid.fetch_add(1, Relaxed);
        // Without a receiver the node has stopped.
        let _ = self.notices.send(notice);
    }

    /// Says what has to be said, and watches over other nodes while this one leads. For ever.
    pub async fn run(&self, notices: Notices, router: &Router) {
        self.say(Notice::Forget { node: self.node, but_boot: self.boot });
        tokio::join!(self.tell(notices, router), self.watch_nodes(router));
    }

    async fn tell(&self, mut notices: Notices, router: &Router) {
        let mut batch = Vec::new();
        while notices.0.recv_many(&mut batch, NOTICES_MAX).await > 0 {
            let mut bytes = Vec::new();
            batch.iter().for_each(|notice| notice.put(&mut bytes));
            while !propose(router, &bytes, batch.len()).await {
                tokio::time::sleep(NOTICE_PAUSE).await;
            }
            self.unsaid.fetch_sub(batch.len(), Relaxed);
            batch.clear();
        }
    }

    async fn watch_nodes(&self, router: &Router) {
        loop {
            tokio::time::sleep(WATCH_STEP).await;
            let waiting: BTreeSet<u64> = router.waiting_nodes().into_iter().map(|(node, _)| node).collect();
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
            Notice::Confirm { db, key, ticket } => {
                proposal::put_confirm(out, &Waited { db: *db, key, ticket: *ticket });
            }
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
    let replies = router.call(bytes, count, Protocol::Resp2).await;
    let unsaid: [&[u8]; 4] = [b"-UNCERTAIN", b"-CLUSTERDOWN", b"-TRYAGAIN", b"-LOADING"];
    // All of them fail, or none.
    !unsaid.iter().any(|error| replies.starts_with(error))
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

    /// The client was told of the grant.
    pub fn confirm(mut self) {
        self.is_over = true;
        let (db, key, ticket) = (self.db, std::mem::take(&mut self.key), self.ticket);
        self.wakes.say(Notice::Confirm { db, key, ticket });
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
