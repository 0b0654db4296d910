//! What a session tells its client unasked. It does so while it waits for the client's bytes, never within a
//! reply, and takes from a source only what the client takes: a client that does not read costs one buffer.
//!
//! A new source is a variant of [`Source`] that notifies [`Pushes::wake`] when it has something to say.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    time::{Interval, MissedTickBehavior, interval_at},
};

use super::{Session, feed::FeedSource, observe::ElectionSource, table::Row};
use crate::{
    error::Error,
    resp::{Protocol, Reply},
};

/// How often sources may say something though nothing woke them.
const TICK: Duration = Duration::from_secs(1);
/// Pushes above this are sent before more are made.
const PUSH_BYTES: usize = 16 << 10;

/// Who pushes to a client.
pub(super) enum Source {
    /// FEED.SUBSCRIBE.
    Feed(FeedSource),
    /// ELECT.OBSERVE.
    Election(ElectionSource),
}

/// What a source did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It has said something, and may have more.
    Some,
    /// It has nothing to say for now; it will wake the session.
    Nothing,
    /// It has said its last.
    Ended,
}

impl Source {
    /// Writes the next message.
    fn push(&mut self, reply: &mut Reply) -> Pushed {
        match self {
            Source::Feed(feed) => feed.push(reply),
            Source::Election(election) => election.push(reply),
        }
    }

    /// Writes, when there is no message, what is worth telling about that.
    fn push_quiet(&mut self, reply: &mut Reply) {
        match self {
            Source::Feed(feed) => feed.push_quiet(reply),
            Source::Election(election) => election.push_quiet(reply),
        }
    }
}

/// The sources of a session.
#[derive(Default)]
pub(super) struct Pushes {
    sources: Vec<Source>,
    wake: Arc<Notify>,
    /// Ticks while there are sources.
    tick: Option<Interval>,
}

impl Pushes {
    /// Whether nothing will be pushed.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// What sources notify.
    pub fn wake(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    pub fn add(&mut self, source: Source) {
        self.sources.push(source);
        self.tick.get_or_insert_with(|| {
            let mut tick = interval_at(tokio::time::Instant::now() + TICK, TICK);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            tick
        });
    }

    /// Takes out the first source that `is_it`.
    pub fn remove(&mut self, is_it: impl FnMut(&Source) -> bool) -> Option<Source> {
        let source = self.sources.iter().position(is_it).map(|at| self.sources.remove(at));
        self.tick.take_if(|_| self.sources.is_empty());
        source
    }

    pub fn clear(&mut self) {
        self.sources.clear();
        self.tick = None;
    }

    /// Resolves when a source may have something to say.
    pub async fn ready(&mut self) {
        match &mut self.tick {
            None => std::future::pending().await,
            Some(tick) => tokio::select! {
                biased;
                () = self.wake.notified() => {}
                _ = tick.tick() => {}
            },
        }
    }
}

impl Session {
    /// Sends what sources have to say, a piece of it; the rest when the client has had its turn.
    pub(super) async fn push(&mut self) -> io::Result<()> {
        let mut reply = Reply::new(std::mem::take(&mut self.out), self.protocol);
        let Pushes { sources, wake, .. } = &mut self.pushes;
        sources.retain_mut(|source| {
            let start = reply.buffer().len();
            loop {
                match source.push(&mut reply) {
                    Pushed::Some if reply.buffer().len() < PUSH_BYTES => {}
                    Pushed::Some => {
                        wake.notify_one();
                        return true;
                    }
                    Pushed::Nothing => {
                        if reply.buffer().len() == start {
                            source.push_quiet(&mut reply);
                        }
                        return true;
                    }
                    Pushed::Ended => return false,
                }
            }
        });
        self.out = reply.into_buffer();
        if self.pushes.is_empty() {
            self.pushes.clear();
            self.show_subscribed();
        }
        self.flush().await
    }

    /// Whether the protocol leaves no room for replies beside messages.
    pub(super) fn is_listening_only(&self) -> bool {
        self.protocol == Protocol::Resp2 && !self.pushes.is_empty()
    }

    /// Why a command is refused while the client listens.
    pub(super) fn not_while_listening(&self, row: &Row) -> Option<Error> {
        (!row.while_listening && self.is_listening_only()).then(|| {
            Error::err(format!(
                "Can't execute '{}': only FEED.(UN)SUBSCRIBE / ELECT.(UN)OBSERVE / PING / QUIT / RESET are allowed in \
                 this context",
                row.name
            ))
        })
    }

    /// Tells CLIENT LIST whether this client listens.
    pub(super) fn show_subscribed(&self) {
        let is_subscribed = !self.pushes.is_empty();
        self.identify(|identity| identity.is_subscribed = is_subscribed);
    }
}
