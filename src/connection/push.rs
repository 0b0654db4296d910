//! The messages that a connection pushes to its client. It does so while it waits for the client's bytes, never
//! within a reply, and takes from a source only what the client reads: a client that does not read costs one
//! buffer.
//!
//! A new source is a variant of [`Source`] that notifies [`Pushes::wake`] when it has a message.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    time::{Interval, MissedTickBehavior, interval_at},
};

use super::{Connection, table::Row, verbs::feed::FeedSource, verbs::observe::ElectionSource};
use crate::{
    error::Error,
    resp::{Protocol, Reply},
};

/// How often sources may write something although nothing woke them.
const TICK: Duration = Duration::from_secs(1);
/// Pushes above this are sent before more are made.
const PUSH_BYTES: usize = 16 << 10;

/// A source of pushed messages.
pub(super) enum Source {
    /// FEED.SUBSCRIBE.
    Feed(FeedSource),
    /// ELECT.OBSERVE.
    Election(ElectionSource),
}

/// The result of asking a source to push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It has written a message, and may have more.
    Some,
    /// It has no message now, and will wake the connection.
    Nothing,
    /// It has written its last message.
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

    /// Writes, when there is no message, what the client should know in that case.
    fn push_quiet(&mut self, reply: &mut Reply) {
        match self {
            Source::Feed(feed) => feed.push_quiet(reply),
            Source::Election(election) => election.push_quiet(reply),
        }
    }
}

/// The sources of a connection.
#[derive(Default)]
pub(super) struct Pushes {
    sources: Vec<Source>,
    wake: Arc<Notify>,
    /// Ticks while there are sources.
    tick: Option<Interval>,
}

impl Pushes {
    /// Whether there are no sources.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// What sources notify when they have a message.
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

    /// Removes the first source for which `is_it` is true.
    pub fn remove(&mut self, is_it: impl FnMut(&Source) -> bool) -> Option<Source> {
        let source = self.sources.iter().position(is_it).map(|at| self.sources.remove(at));
        self.tick.take_if(|_| self.sources.is_empty());
        source
    }

    /// Removes all sources for which `is_it` is true, and returns how many there were.
    pub fn remove_all(&mut self, mut is_it: impl FnMut(&Source) -> bool) -> usize {
        let before = self.sources.len();
        self.sources.retain(|source| !is_it(source));
        self.tick.take_if(|_| self.sources.is_empty());
        before - self.sources.len()
    }

    pub fn clear(&mut self) {
        self.sources.clear();
        self.tick = None;
    }

    /// Resolves when a source may have a message.
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

impl Connection {
    /// Sends some of the pending messages; the rest after the client had its turn.
    pub(super) async fn push(&mut self) -> io::Result<()> {
        let mut reply = Reply::new(self.out.take(), self.protocol);
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

    /// Whether the protocol allows no replies besides messages (RESP2 with a source).
    pub(super) fn is_listening_only(&self) -> bool {
        self.protocol == Protocol::Resp2 && !self.pushes.is_empty()
    }

    /// Why a command is refused to a subscriber.
    pub(super) fn not_while_listening(&self, row: &Row) -> Option<Error> {
        (!row.spec.while_subscribed && self.is_listening_only()).then(|| {
            Error::err(format!(
                "Can't execute '{}': only FEED.(UN)SUBSCRIBE / ELECT.(UN)OBSERVE / PING / QUIT / RESET are allowed in \
                 this context",
                row.name
            ))
        })
    }

    /// Updates CLIENT LIST's flag for subscribers.
    pub(super) fn show_subscribed(&self) {
        let is_subscribed = !self.pushes.is_empty();
        self.identify(|identity| identity.is_subscribed = is_subscribed);
    }
}
