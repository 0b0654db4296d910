//! Whether this node is in contact with its group: a follower hears its leader, and the leader has a
//! majority.
//!
//! With pre-votes the term of a leader that is gone stays as it is, and with it openraft's view of who leads.
//! So a follower records when it last heard its leader: a Raft message of a leader that no later vote has
//! superseded. That the connection to it exists, and answers pings, proves nothing. The limits, and
//! what happens after them, are in `leader_watch.rs`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    NodeConfig, NodeId, Unavailable,
    elections::timing::Timing,
    log::LogStore,
    safeguard::{self, Safeguard},
    types::Vote,
};

/// What a node knows of its contact with the group.
pub(crate) struct Contact {
    votes: LogStore,
    pub(super) started: Instant,
    pub(crate) timing: Arc<Timing>,
    /// When the leader was last heard, in milliseconds since the start, plus one; 0 for never.
    heard_ms: AtomicU64,
    /// The leader counts as unknown because of its silence.
    is_silent: AtomicBool,
    heard_again: Notify,
    answers: Mutex<Answers>,
    /// Why requests are refused at once.
    pub(super) refusal: watch::Sender<Option<Unavailable>>,
}

/// The leader's answers to a follower that asks whether it has a majority.
#[derive(Default)]
struct Answers {
    leader: Option<NodeId>,
    /// Since when it has been asked in vain.
    unanswered_since: Option<Instant>,
    /// Since when it has said that it has none.
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

    /// How long no leader has been heard; None if none has since the start.
    pub(crate) fn silence(&self) -> Option<Duration> {
        let heard_ms = self.heard_ms.load(SeqCst).checked_sub(1)?;
        Some(self.started.elapsed().saturating_sub(Duration::from_millis(heard_ms)))
    }

    /// How long a known leader may be silent.
    fn silence_max(&self) -> Duration {
        self.timing.contact_max() + 2 * self.timing.heartbeat()
    }

    /// Whether the leader was heard recently. If not, [`Contact::heard_again`] returns when it is.
    pub(crate) fn is_heard(&self) -> bool {
        // Set first: a message that comes in between is noticed here or there.
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

    /// Returns when no leader has been heard for too long.
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

    /// Tells why requests are refused at once that would otherwise wait.
    pub(crate) fn watch_refusal(&self) -> watch::Receiver<Option<Unavailable>> {
        self.refusal.subscribe()
    }

    pub(crate) fn refusal(&self) -> Option<Unavailable> {
        self.refusal.borrow().clone()
    }

    /// Returns when requests are refused, with the reason.
    pub(crate) async fn refused(&self) -> Unavailable {
        let mut refusal = self.watch_refusal();
        // Cannot fail: the sender lives in `self`.
        let why = refusal.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        why.unwrap_or(Unavailable::NoLeader)
    }

    /// What is wrong with this leader, according to its answers.
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

    pub(super) fn take_answer(&self, leader: NodeId, asked: Instant, answer: Option<HasMajority>) {
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

/// A leader's answer about its majority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HasMajority {
    Yes,
    No,
    /// It no longer leads, or its version does not know the question.
    Unknown,
}
