//! Whether this node is in contact with its group: as a follower it hears its leader, and the leader has a majority.
//!
//! With pre-votes the term of a leader that is gone stays as it is, and with it openraft's word on who leads. So a follower
//! notes when it last heard its leader: a Raft message of a leader that no later vote has overtaken. That the connection to
//! it is there, and answers pings, says nothing.
//!
//! The limits follow from the election time-outs (`timing.rs`):
//! - After twice the greatest one of the configuration, and two heartbeats, the leader is not known any more, until it is heard
//!   again. Near by that is when the last of the others has begun to elect (openraft adds the leader's lease to the
//!   time-out). A distance adds little: heartbeats come as often.
//! - After three times the greatest one in force a failover would be over. From then on requests are refused at once, where until
//!   then they wait for the next leader. Looks are counted beside the time, because a node that was stopped itself has heard
//!   nobody meanwhile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use openraft::Instant as _;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    Machine, NodeConfig, NodeId, Unavailable,
    core::{Core, Metrics},
    log::LogStore,
    membership::{self, HasMajority},
    safeguard::{self, Safeguard},
    timing::Timing,
    types::Vote,
};

/// So many looks in succession, one a heartbeat, must find nobody before requests are refused.
const LOOKS_MIN: u32 = 3;

/// How soon it is noticed that the contact is back.
const RETURN: Duration = Duration::from_millis(10);

/// What a node knows of its contact with the group.
pub(crate) struct Contact {
    votes: LogStore,
    started: Instant,
    pub(crate) timing: Arc<Timing>,
    /// When the leader was last heard, in milliseconds since one before the start; 0 for never.
    heard_ms: AtomicU64,
    /// The leader is not known for its silence.
    is_silent: AtomicBool,
    heard_again: Notify,
    answers: Mutex<Answers>,
    /// Why requests are refused at once.
    refusal: watch::Sender<Option<Unavailable>>,
}

/// What the leader answers to a follower that asks whether it has a majority.
#[derive(Default)]
struct Answers {
    leader: Option<NodeId>,
    /// Since when it was asked in vain.
    unanswered_since: Option<Instant>,
    /// Since when it says that it has none.
    alone_since: Option<Instant>,
}

impl Contact {
    pub(crate) fn new(config: &NodeConfig, votes: LogStore) -> Contact {
        Contact {
            votes,
            started: Instant::now(),
            timing: Arc::new(Timing::new(config)),
            heard_ms: AtomicU64::new(0),
            is_silent: AtomicBool::new(false),
            heard_again: Notify::new(),
            answers: Mutex::default(),
            refusal: watch::Sender::new(None),
        }
    }

    /// A leader with this vote was heard.
    pub(crate) fn heard(&self, vote: &Vote) {
        if self.votes.vote().is_some_and(|ours| vote.leader_id.term < ours.leader_id.term) {
            return;
        }
        let now_ms = self.started.elapsed().as_millis() as u64 + 1;
        self.heard_ms.store(now_ms, SeqCst);
        if self.is_silent.load(SeqCst) && self.is_silent.swap(false, SeqCst) {
            self.heard_again.notify_one();
        }
    }

    /// For how long no leader was heard; None if none was since the start.
    pub(crate) fn silence(&self) -> Option<Duration> {
        let heard_ms = self.heard_ms.load(SeqCst).checked_sub(1)?;
        Some(self.started.elapsed().saturating_sub(Duration::from_millis(heard_ms)))
    }

    /// For how long a leader may be silent that is known.
    fn silence_max(&self) -> Duration {
        self.timing.contact_max() + 2 * self.timing.heartbeat()
    }

    /// Whether the leader was heard lately. If it was not, [`Contact::heard_again`] returns when it is.
    pub(crate) fn is_heard(&self) -> bool {
        // First: a message that comes in between is seen here or there.
        self.is_silent.store(true, SeqCst);
        let is_recent = |silence| silence < self.silence_max() || safeguard::is_off(Safeguard::Contact);
        let is_heard = self.silence().is_some_and(is_recent);
        if is_heard {
            self.is_silent.store(false, SeqCst);
        }
        is_heard
    }

    pub(crate) async fn heard_again(&self) {
        self.heard_again.notified().await;
    }

    /// Returns when no leader was heard for too long.
    pub(crate) async fn silent(&self) {
        while let Some(left) = self.silence().and_then(|silence| self.silence_max().checked_sub(silence))
            && !left.is_zero()
        {
            tokio::time::sleep(left).await;
        }
        if safeguard::is_off(Safeguard::Contact) {
            std::future::pending().await
        }
    }

    /// Tells why requests are refused at once, where they would wait else.
    pub(crate) fn watch_refusal(&self) -> watch::Receiver<Option<Unavailable>> {
        self.refusal.subscribe()
    }

    pub(crate) fn refusal(&self) -> Option<Unavailable> {
        self.refusal.borrow().clone()
    }

    /// Returns when requests are refused, with the reason.
    pub(crate) async fn refused(&self) -> Unavailable {
        let mut refusal = self.watch_refusal();
        // The sender lives in `self`.
        let why = refusal.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        why.unwrap_or(Unavailable::NoLeader)
    }

    /// What is wrong with this leader, as its answers show.
    pub(crate) fn complaint(&self, leader: NodeId) -> Option<Complaint> {
        let answers = self.answers.lock();
        if answers.leader != Some(leader) || safeguard::is_off(Safeguard::Contact) {
            return None;
        }
        match (answers.alone_since, answers.unanswered_since) {
            (Some(since), _) => Some(Complaint::IsAlone(since)),
            (None, Some(since)) => Some(Complaint::DoesNotAnswer(since)),
            (None, None) => None,
        }
    }

    fn take_answer(&self, leader: NodeId, asked: Instant, answer: Option<HasMajority>) {
        let mut answers = self.answers.lock();
        if answers.leader != Some(leader) {
            *answers = Answers { leader: Some(leader), ..Answers::default() };
        }
        answers.unanswered_since = match answer {
            Some(_) => None,
            None => answers.unanswered_since.or(Some(asked)),
        };
        match answer {
            Some(HasMajority::No) => answers.alone_since = answers.alone_since.or(Some(asked)),
            Some(HasMajority::Yes | HasMajority::Unknown) => answers.alone_since = None,
            None => {}
        }
    }
}

/// What is wrong with a leader that is heard, and since when.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Complaint {
    /// It says that it has no majority.
    IsAlone(Instant),
    /// It has not answered since it was asked.
    DoesNotAnswer(Instant),
}

impl<M: Machine> Core<M> {
    /// How long a member may be silent that counts as reachable.
    pub(crate) fn contact_max(&self) -> Duration {
        self.timing.contact_max()
    }

    /// As the leader: for how long no majority has answered; None if none has yet.
    fn majority_age(&self, metrics: &Metrics) -> Option<Duration> {
        let mut voters = metrics.membership_config.membership().voter_ids();
        if voters.next() == Some(self.config.id) && voters.next().is_none() {
            return Some(Duration::ZERO);
        }
        Some(metrics.last_quorum_acked.as_ref()?.elapsed())
    }

    /// Whether a majority of the voters was in contact with this leader lately.
    pub(crate) fn has_majority(&self, metrics: &Metrics) -> bool {
        self.majority_age(metrics).is_some_and(|age| age <= self.contact_max())
    }

    /// Why nothing can be served at present, and for how long that has been so.
    fn out_of_contact(&self) -> Option<(Unavailable, Duration)> {
        let silence = || self.contact.silence().unwrap_or_else(|| self.contact.started.elapsed());
        let leader = *self.leader.borrow();
        match leader {
            None => Some((Unavailable::NoLeader, silence())),
            Some(id) if id == self.config.id => {
                let metrics = self.metrics();
                let age = self.majority_age(&metrics).unwrap_or_else(silence);
                (!self.has_majority(&metrics)).then_some((Unavailable::NoQuorum, age))
            }
            Some(id) => match self.contact.complaint(id)? {
                // It says so only after so long.
                Complaint::IsAlone(since) => {
                    Some((Unavailable::NoQuorum, since.elapsed() + self.contact_max()))
                }
                // What travels on another connection may still be answered.
                Complaint::DoesNotAnswer(_) => None,
            },
        }
    }
}

/// Looks from time to time whether this node is in contact, and says whether requests are to wait.
pub(crate) async fn watch<M: Machine>(core: Arc<Core<M>>) {
    let step = core.timing.heartbeat();
    let mut looks = 0;
    loop {
        tokio::time::sleep(if looks < LOOKS_MIN { step } else { RETURN }).await;
        let lost = core.out_of_contact();
        looks = if lost.is_some() { (looks + 1).min(LOOKS_MIN) } else { 0 };
        let refusal = lost.filter(|(_, time)| looks >= LOOKS_MIN && *time >= core.timing.failover_max());
        let refusal = refusal.map(|(why, _)| why);
        core.contact.refusal.send_if_modified(|present| {
            let is_new = *present != refusal;
            if is_new {
                present.clone_from(&refusal);
            }
            is_new
        });
    }
}

/// As a follower: asks the leader whether it has a majority. One that has lost it goes on sending heartbeats.
pub(crate) async fn ask_leader<M: Machine>(core: Arc<Core<M>>) {
    let pause = Duration::from_millis(core.config.election_timeout_ms.0);
    loop {
        // As often at any distance.
        tokio::time::sleep(pause).await;
        let leader = *core.leader.borrow();
        let Some(leader) = leader.filter(|leader| *leader != core.config.id) else { continue };
        let Some(peer) = core.peer(leader) else { continue };
        let asked = Instant::now();
        let answer = membership::ask_for_majority(&peer, core.timing.election_max()).await;
        core.contact.take_answer(leader, asked, answer);
    }
}
