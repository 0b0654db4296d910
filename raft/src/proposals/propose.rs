//! The path from a proposal to a log entry. All proposals that wait on this node travel as one batch; all
//! batches that wait on the leader, its own and those of followers, as one entry; a few entries are in flight
//! at a time. `group_commit.rs` decides how long an entry waits for more proposals.
//!
//! The outcome table, which everything here serves:
//! - never sent, or the leader answered that it had not appended it: retried, then *not applied*; at once
//!   when the group has been out of reach for longer than a failover takes;
//! - sent, and the connection or the leader was lost before `apply`: never retried, *unknown*.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use openraft::{errors::ClientWriteError, impls::ProgressResponder};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch},
    time::Instant,
};

use crate::{
    Local, NodeId, ProposeError, Unavailable, chance,
    net::peer::CallError,
    proposals::{
        batch::{self, BatchBuilder, BatchId, Forwarded, OwnBatch},
        group::Group,
        group_commit::{GroupCommit, Load, Verdict},
    },
    safeguard::{self, Safeguard},
    types::Payload,
};

mod give_up;
mod window;

/// The pause before a refused batch is sent again.
const REFUSED_PAUSE: Duration = Duration::from_millis(5);

/// How often time limits are checked.
const SWEEP: Duration = Duration::from_millis(20);

/// How many times the tasks that are ready may run before an entry is closed.
const GATHER_YIELDS_MAX: usize = 8;

/// How long proposals wait for more of them while nothing is in flight.
const GATHER: Duration = Duration::from_millis(1);

/// How long proposals wait for what is in flight, which may take long where disks or links are slow.
const PATIENCE: Duration = Duration::from_millis(10);

/// Limits, from the node's configuration.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub batch_bytes_max: usize,
    pub batch_proposals_max: usize,
    pub proposal_bytes_max: usize,
    /// The most bytes of proposals that may wait.
    pub waiting_bytes_max: usize,
    pub in_flight_max: usize,
    pub timeout: Duration,
}

/// One node's proposals to one group.
pub(crate) struct Proposer<L> {
    node: NodeId,
    boot: u64,
    limits: Limits,
    /// Why proposals are refused rather than queued: the group has been out of reach for longer than a
    /// failover takes.
    refusal: watch::Receiver<Option<Unavailable>>,
    queue: Mutex<Queue<L>>,
    pending: Mutex<BTreeMap<u64, Pending<L>>>,
    wake: Notify,
    in_flight: Arc<Semaphore>,
    /// How many permits `in_flight` has in all.
    window: Mutex<usize>,
    pub(crate) entries: std::sync::atomic::AtomicU64,
    pub(crate) proposals: std::sync::atomic::AtomicU64,
}

/// What waits to be sent.
struct Queue<L> {
    /// Batches of this node; the last one is being filled.
    drafts: VecDeque<Draft<L>>,
    /// Batches of this node that were not appended, to be sent again.
    retries: VecDeque<Encoded<L>>,
    /// Batches of other nodes that take this one for the leader.
    incoming: VecDeque<Incoming>,
    /// The bytes in `drafts`.
    waiting_bytes: usize,
    /// The proposals in `drafts`, and those in the batches in `retries` and `incoming`.
    waiting: usize,
    /// The proposals in flight.
    in_flight: usize,
    /// The entries or batches that contain them, and the bytes of these.
    entries_in_flight: usize,
    bytes_in_flight: usize,
    group_commit: GroupCommit,
    next_sequence: u64,
    stopped: bool,
    /// Why new proposals are refused, if they are.
    refused: Option<&'static str>,
}

struct Draft<L> {
    builder: BatchBuilder,
    locals: Vec<L>,
    since: Instant,
}

struct Encoded<L> {
    sequence: u64,
    batch: OwnBatch,
    locals: Vec<L>,
    since: Instant,
}

struct Incoming {
    since: Instant,
    batch: Bytes,
    answer: oneshot::Sender<Forwarded>,
}

/// A batch of this node on its way.
struct Own {
    sequence: u64,
    batch: OwnBatch,
    count: usize,
}

/// A batch that may be in a log.
struct Pending<L> {
    locals: Vec<L>,
    since: Instant,
    /// False while the connection to the leader is still being made.
    sent: bool,
    /// The term in which it was sent.
    term: u64,
    /// The node that it was sent to is lost: it is settled once an entry of a later term is applied.
    in_doubt: bool,
}

impl<L> Queue<L> {
    /// Adds a proposal to the last draft if it fits, or else to a new one; a large one is a draft already.
    fn add(&mut self, large: Option<BatchBuilder>, small: &[u8], local: L, limits: &Limits) {
        let fits = self.drafts.back().is_some_and(|draft| {
            draft.builder.count() < limits.batch_proposals_max
                && draft.builder.len() + small.len() <= limits.batch_bytes_max
        });
        let is_large = large.is_some();
        if is_large || !fits {
            let builder = large.unwrap_or_else(BatchBuilder::new);
            self.drafts.push_back(Draft { builder, locals: Vec::new(), since: Instant::now() });
        }
        let draft = self.drafts.back_mut().expect("one was just pushed if there was none");
        if !is_large {
            draft.builder.push(small);
        }
        draft.locals.push(local);
    }

    fn is_empty(&self) -> bool {
        self.drafts.is_empty() && self.retries.is_empty() && self.incoming.is_empty()
    }

    fn load(&self) -> Load {
        let batches = self.retries.iter().map(|encoded| encoded.batch.len());
        let batches: usize = batches.chain(self.incoming.iter().map(|incoming| incoming.batch.len())).sum();
        Load { waiting: self.waiting, bytes: self.waiting_bytes + batches, in_flight: self.in_flight }
    }

    fn more_wait(&mut self, proposals: usize) {
        self.waiting += proposals;
        let load = self.load();
        self.group_commit.came(load);
    }

    fn judge(&self) -> Verdict {
        self.group_commit.judge(self.load())
    }
}

impl<L: Local> Proposer<L> {
    pub(crate) fn new(
        node: NodeId,
        limits: Limits,
        refusal: watch::Receiver<Option<Unavailable>>,
    ) -> Proposer<L> {
        let in_flight = Arc::new(Semaphore::new(limits.in_flight_max));
        let window = Mutex::new(limits.in_flight_max);
        Proposer {
            node,
            boot: chance::id(),
            limits,
            refusal,
            queue: Mutex::new(Queue {
                drafts: VecDeque::new(),
                retries: VecDeque::new(),
                incoming: VecDeque::new(),
                waiting_bytes: 0,
                waiting: 0,
                in_flight: 0,
                entries_in_flight: 0,
                bytes_in_flight: 0,
                group_commit: GroupCommit::default(),
                next_sequence: 1,
                stopped: false,
                refused: None,
            }),
            pending: Mutex::default(),
            wake: Notify::new(),
            in_flight,
            window,
            entries: Default::default(),
            proposals: Default::default(),
        }
    }

    fn refusal(&self) -> Option<Unavailable> {
        self.refusal.borrow().clone()
    }

    /// Queues a proposal. Never blocks; a refusal goes to `local`. A large one that is owned is not copied.
    pub(crate) fn propose(&self, bytes: Cow<'_, [u8]>, local: L) {
        if let Err((local, why)) = self.enqueue(bytes, local) {
            local.failed(ProposeError::NotApplied(why));
        }
    }

    fn enqueue(&self, bytes: Cow<'_, [u8]>, local: L) -> Result<(), (L, Unavailable)> {
        let limits = &self.limits;
        if bytes.len() > limits.proposal_bytes_max {
            return Err((local, Unavailable::TooLarge(limits.proposal_bytes_max)));
        }
        if let Some(why) = self.refusal() {
            return Err((local, why));
        }
        let size = bytes.len();
        let (large, small) = if size > limits.batch_bytes_max {
            // It has a batch of its own, which is made before others have to wait for it.
            (Some(BatchBuilder::of(bytes)), Cow::default())
        } else {
            (None, bytes)
        };
        let mut queue = self.queue.lock();
        if queue.stopped {
            return Err((local, Unavailable::NotServing("it is stopping")));
        }
        if let Some(why) = queue.refused {
            return Err((local, Unavailable::Apart(why)));
        }
        if queue.waiting_bytes > 0 && queue.waiting_bytes + size > limits.waiting_bytes_max {
            return Err((local, Unavailable::Overloaded));
        }
        queue.waiting_bytes += size;
        queue.add(large, &small, local, limits);
        queue.more_wait(1);
        // This one may complete an entry, or be the first to wait for others.
        let is_news = queue.waiting == 1 || queue.judge() == Verdict::Send;
        drop(queue);
        if is_news {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Takes a batch that another node sent to its leader. Bytes that are not a batch are answered with
    /// `NotAppended`.
    pub(crate) async fn accept(&self, batch: Bytes) -> Forwarded {
        if batch::check(&batch).is_err() {
            return Forwarded::NotAppended;
        }
        let (answer, answered) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            if queue.stopped || queue.refused.is_some() {
                return Forwarded::NotAppended;
            }
            let proposals = batch::proposals_of(&batch);
            queue.incoming.push_back(Incoming { since: Instant::now(), batch, answer });
            queue.more_wait(proposals);
        }
        self.wake.notify_one();
        answered.await.unwrap_or(Forwarded::Unknown)
    }

    /// Refuses everything new from here on, for this reason; None ends that.
    pub(crate) fn refuse(&self, why: Option<&'static str>) {
        self.queue.lock().refused = why;
    }

    /// For `apply`: those who wait for this batch on this node. None for batches of other nodes, and for
    /// those that were given up.
    pub(crate) fn applied(&self, id: BatchId) -> Option<Vec<L>> {
        if id.origin != self.node || id.boot != self.boot {
            return None;
        }
        self.pending.lock().remove(&id.sequence).map(|pending| pending.locals)
    }

    /// Whether nothing of this node's clients waits or is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        let queue = self.queue.lock();
        queue.drafts.is_empty() && queue.retries.is_empty() && self.pending.lock().is_empty()
    }

    /// Sends what waits, for ever; ended by dropping it, after `stop`.
    pub(crate) async fn run(self: Arc<Self>, group: Arc<impl Group>) {
        loop {
            let Some(permit) = self.next_permit().await else { return };
            if group.leader() == Some(self.node) {
                self.append_next(&group, permit).await;
                continue;
            }
            self.refuse_incoming();
            // Read before the leader: with a later term than this leader's, a batch in doubt would be
            // settled too late.
            let (term, _) = group.terms();
            match group.leader() {
                Some(leader) => self.forward_next(&group, (leader, term), permit),
                None => {
                    drop(permit);
                    // Everything waits; `sweep` fails what waits too long.
                    let _ = tokio::time::timeout(SWEEP, group.leader_is_not(None)).await;
                }
            }
        }
    }

    /// Waits until there is enough to send and room for an entry in flight.
    async fn next_permit(&self) -> Option<OwnedSemaphorePermit> {
        let permit = self.in_flight.clone().acquire_owned().await.ok()?;
        self.room().await;
        let gathered = self.enough().await;
        // Tasks that are ready to run may have proposals for this entry.
        let mut waiting = 0;
        for _ in 0..GATHER_YIELDS_MAX {
            let present = self.queue.lock().waiting;
            if present <= waiting {
                break;
            }
            waiting = present;
            tokio::task::yield_now().await;
        }
        self.queue.lock().group_commit.sent(gathered);
        Some(permit)
    }

    /// Waits until what is queued should be sent. Returns whether it waited for more proposals, and if so,
    /// whether enough came.
    async fn enough(&self) -> Option<bool> {
        let (mut gather_until, mut wait_until) = (None, None);
        loop {
            let wake = self.wake.notified();
            let (verdict, is_empty) = {
                let queue = self.queue.lock();
                (queue.judge(), queue.is_empty())
            };
            if is_empty {
                wake.await;
                continue;
            }
            let in_time = |limit| Instant::now() + limit;
            let until = match verdict {
                Verdict::Send => return gather_until.map(|_| true),
                Verdict::Gather => *gather_until.get_or_insert_with(|| in_time(GATHER)),
                Verdict::Wait => *wait_until.get_or_insert_with(|| in_time(PATIENCE)),
            };
            if tokio::time::timeout_at(until, wake).await.is_err() {
                return (verdict == Verdict::Gather).then_some(false);
            }
        }
    }

    /// Proposals have left the queue, in an entry or for the leader.
    fn sent(&self, proposals: usize, bytes: usize) {
        let mut queue = self.queue.lock();
        queue.waiting = queue.waiting.saturating_sub(proposals);
        queue.in_flight += proposals;
        queue.entries_in_flight += 1;
        queue.bytes_in_flight += bytes;
    }

    /// They are settled, one way or the other.
    fn landed(&self, proposals: usize, bytes: usize) {
        let mut queue = self.queue.lock();
        queue.in_flight -= proposals;
        queue.entries_in_flight -= 1;
        queue.bytes_in_flight -= bytes;
        drop(queue);
        self.wake.notify_one();
    }

    /// The next batch of this node, registered as pending: from here on it may be in a log.
    fn take_own(&self, term: u64, sent: bool) -> Option<Own> {
        let mut queue = self.queue.lock();
        let encoded = queue.retries.pop_front().or_else(|| {
            let draft = queue.drafts.pop_front()?;
            let sequence = queue.next_sequence;
            queue.next_sequence += 1;
            let id = BatchId { origin: self.node, boot: self.boot, sequence };
            let batch = draft.builder.finish(id);
            queue.waiting_bytes =
                if queue.drafts.is_empty() { 0 } else { queue.waiting_bytes.saturating_sub(batch.len()) };
            self.proposals.fetch_add(draft.locals.len() as u64, std::sync::atomic::Ordering::Relaxed);
            Some(Encoded { sequence, batch, locals: draft.locals, since: draft.since })
        })?;
        let Encoded { sequence, batch, locals, since } = encoded;
        let count = locals.len();
        self.pending.lock().insert(sequence, Pending { locals, since, sent, term, in_doubt: false });
        Some(Own { sequence, batch, count })
    }

    /// Queues a batch again that is in no log.
    fn take_back(&self, sequence: u64, batch: OwnBatch) {
        // Gone if `sweep` has given it up meanwhile.
        let pending = self.pending.lock().remove(&sequence);
        if let Some(Pending { locals, since, .. }) = pending {
            if let Some(why) = self.refusal() {
                return fail_all(locals, &ProposeError::NotApplied(why));
            }
            let mut queue = self.queue.lock();
            queue.waiting += locals.len();
            queue.retries.push_back(Encoded { sequence, batch, locals, since });
            drop(queue);
            self.wake.notify_one();
        }
    }

    /// Marks a batch as sent: from here on it may be in a log. False if it was given up already.
    fn begin(&self, sequence: u64) -> bool {
        self.pending.lock().get_mut(&sequence).map(|pending| pending.sent = true).is_some()
    }

    /// The node that had the batch is lost; if it was never sent, it is queued again.
    fn doubt(&self, sequence: u64, batch: OwnBatch) {
        let sent = self.pending.lock().get_mut(&sequence).map(|pending| {
            pending.in_doubt = pending.sent;
            pending.sent
        });
        if sent == Some(false) || sent.is_some() && safeguard::is_off(Safeguard::NoRetryAfterAppend) {
            self.take_back(sequence, batch);
        }
    }

    fn fail(&self, sequence: u64, error: &ProposeError) {
        let pending = self.pending.lock().remove(&sequence);
        fail_all(pending.into_iter().flat_map(|pending| pending.locals), error);
    }

    /// Leader only: appends one entry of this node's next batch and all batches of other nodes that fit.
    async fn append_next(self: &Arc<Self>, group: &Arc<impl Group>, permit: OwnedSemaphorePermit) {
        let (term, _) = group.terms();
        let mut own = self.take_own(term, true);
        let mut head = Vec::with_capacity(64);
        group.begin_entry(&mut head);
        let incoming = self.take_incoming(head.len() + own.as_ref().map_or(0, |own| own.batch.len()));
        if own.is_none() && incoming.is_empty() {
            return;
        }
        let theirs: usize = incoming.iter().map(|incoming| batch::proposals_of(&incoming.batch)).sum();
        let proposals = theirs + own.as_ref().map_or(0, |own| own.count);
        let payload = payload_of(&head, &mut own, &incoming);
        let answers: Vec<_> = incoming.into_iter().map(|incoming| incoming.answer).collect();
        let size = payload.len();
        self.sent(proposals, size);
        self.entries.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (responder, done) = ProgressResponder::complete_only();
        if group.append(Payload(payload), responder).await.is_err() {
            tokio::time::sleep(REFUSED_PAUSE).await;
            self.settle(own, answers, Forwarded::NotAppended);
            self.landed(proposals, size);
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            let outcome = match done.await {
                Ok(Ok(_)) => Forwarded::Applied,
                Ok(Err(ClientWriteError::ForwardToLeader(_))) => Forwarded::NotAppended,
                // LogEntryDiscarded, or openraft has stopped.
                Ok(Err(_)) | Err(_) => Forwarded::Unknown,
            };
            if outcome == Forwarded::NotAppended {
                // This node no longer leads, or no majority has answered it for a while: asking again at once
                // would be a busy loop.
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
            this.settle(own, answers, outcome);
            drop(permit);
            this.landed(proposals, size);
        });
    }

    /// Other nodes' batches that fit after `bytes`; at least one as long as `bytes` is below the limit of a
    /// batch.
    fn take_incoming(&self, bytes: usize) -> Vec<Incoming> {
        let mut room = (2 * self.limits.batch_bytes_max).saturating_sub(bytes);
        let mut queue = self.queue.lock();
        let mut taken = Vec::new();
        while let Some(incoming) = queue.incoming.front() {
            let is_first = taken.is_empty() && bytes < self.limits.batch_bytes_max;
            if incoming.batch.len() > room && !is_first {
                break;
            }
            room = room.saturating_sub(incoming.batch.len());
            taken.extend(queue.incoming.pop_front());
        }
        taken
    }

    fn settle(&self, own: Option<Own>, answers: Vec<oneshot::Sender<Forwarded>>, outcome: Forwarded) {
        if let Some(Own { sequence, batch, .. }) = own {
            match outcome {
                Forwarded::NotAppended => self.take_back(sequence, batch),
                // `apply` has answered everybody already, unless a snapshot replaced the entry.
                Forwarded::Applied | Forwarded::Unknown => self.fail(sequence, &ProposeError::Unknown),
            }
        }
        for answer in answers {
            // The peer's connection may be gone.
            let _ = answer.send(outcome);
        }
    }

    fn refuse_incoming(&self) {
        let incoming = {
            let mut queue = self.queue.lock();
            let incoming = std::mem::take(&mut queue.incoming);
            let proposals: usize = incoming.iter().map(|incoming| batch::proposals_of(&incoming.batch)).sum();
            queue.waiting = queue.waiting.saturating_sub(proposals);
            incoming
        };
        for incoming in incoming {
            let _ = incoming.answer.send(Forwarded::NotAppended);
        }
    }

    /// Follower only: sends this node's next batch to the leader of a term.
    fn forward_next(
        self: &Arc<Self>,
        group: &Arc<impl Group>,
        (leader, term): (NodeId, u64),
        permit: OwnedSemaphorePermit,
    ) {
        let Some(Own { sequence, batch, count }) = self.take_own(term, false) else { return };
        let size = batch.len();
        self.sent(count, size);
        let (this, group) = (self.clone(), group.clone());
        tokio::spawn(async move {
            // A leader that vanished silently would keep proposals waiting that the next one could serve.
            let outcome = tokio::select! {
                biased;
                outcome = group.forward(leader, batch.bytes(), this.limits.timeout, || this.begin(sequence)) => outcome,
                () = group.leader_is_not(Some(leader)) => Err(CallError::Lost("there is another leader".into())),
            };
            match outcome {
                Ok(Forwarded::Applied) => {}
                Ok(Forwarded::NotAppended) | Err(CallError::NotSent(_)) => {
                    // The leader is changing: give the news a moment to arrive before asking again.
                    tokio::time::sleep(REFUSED_PAUSE).await;
                    this.take_back(sequence, batch);
                }
                Ok(Forwarded::Unknown) | Err(CallError::Lost(_)) => this.doubt(sequence, batch),
            }
            drop(permit);
            this.landed(count, size);
        });
    }
}

/// The payload of an entry: its head, this node's batch, and those of others.
fn payload_of(head: &[u8], own: &mut Option<Own>, incoming: &[Incoming]) -> Bytes {
    match own.take() {
        Some(Own { sequence, batch, count }) if incoming.is_empty() => {
            let (batch, payload) = batch.into_entry(head);
            *own = Some(Own { sequence, batch, count });
            payload
        }
        taken => {
            *own = taken;
            let mine = own.as_ref().map(|own| own.batch.bytes());
            let theirs = incoming.iter().map(|incoming| &incoming.batch[..]);
            let parts: Vec<&[u8]> = [head].into_iter().chain(mine.as_deref()).chain(theirs).collect();
            parts.concat().into()
        }
    }
}

fn fail_all<L: Local>(locals: impl IntoIterator<Item = L>, error: &ProposeError) {
    locals.into_iter().for_each(|local| local.failed(error.clone()));
}
