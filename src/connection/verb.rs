//! A row of a command that the connection runs, with its function. A verb, or a container of verbs, is one
//! file with its rows and its functions.

use futures::future::BoxFuture;

use super::Connection;
use crate::{args::Args, commands::Spec, error::Result, resp::Reply};

/// Runs a verb. If it returns an error it has written no reply.
pub type VerbFn = fn(&mut Connection, &Args<'_>, &mut Reply) -> Result<()>;

/// Runs a verb that may block; it writes its replies itself.
pub type WaitFn = for<'a> fn(&'a mut Connection, &'a [&'a [u8]]) -> BoxFuture<'a, ()>;

/// How a verb runs.
#[derive(Clone, Copy)]
pub enum How {
    /// It does not: it is a container, and needs a subcommand.
    Container,
    /// At once, even while earlier commands of the pipeline are pending: its reply does not depend on them.
    Now(VerbFn),
    /// Once everything before it is done.
    Alone(VerbFn),
    /// Once everything before it is done; then it may block. In a transaction, where nothing may block, the
    /// second function runs instead.
    Wait(WaitFn, VerbFn),
    /// EXEC: turns the queue into one request.
    Exec,
}

/// A row, and how it runs.
pub struct Verb {
    /// What is said about it.
    pub spec: Spec,
    /// How it runs.
    pub how: How,
    /// Its subcommands.
    pub subcommands: &'static [Verb],
}

impl Verb {
    /// One that runs at once.
    pub const fn now(spec: Spec, function: VerbFn) -> Verb {
        Verb { spec, how: How::Now(function), subcommands: &[] }
    }

    /// One that runs when all before it is done.
    pub const fn alone(spec: Spec, function: VerbFn) -> Verb {
        Verb { spec, how: How::Alone(function), subcommands: &[] }
    }

    /// One that may block, and what it does in a transaction.
    pub const fn wait(spec: Spec, function: WaitFn, in_transaction: VerbFn) -> Verb {
        Verb { spec, how: How::Wait(function, in_transaction), subcommands: &[] }
    }

    /// One that may block, and is refused in a transaction.
    pub const fn wait_outside(spec: Spec, function: WaitFn) -> Verb {
        Verb::wait(spec, function, |_, _, _| Ok(()))
    }

    /// A container of others.
    pub const fn container(spec: Spec, subcommands: &'static [Verb]) -> Verb {
        Verb { spec, how: How::Container, subcommands }
    }

    /// EXEC.
    pub const fn exec(spec: Spec) -> Verb {
        Verb { spec, how: How::Exec, subcommands: &[] }
    }

    /// With these subcommands.
    pub const fn with(mut self, subcommands: &'static [Verb]) -> Verb {
        self.subcommands = subcommands;
        self
    }
}

/// Flags that several verbs have.
pub(super) mod flags {
    pub(in crate::connection) const LOADING: &[&str] = &["loading", "stale"];
    pub(in crate::connection) const FAST: &[&str] = &["loading", "stale", "fast"];
    pub(in crate::connection) const QUIET: &[&str] = &["noscript", "loading", "stale"];
    pub(in crate::connection) const QUIET_FAST: &[&str] = &["noscript", "loading", "stale", "fast"];
    pub(in crate::connection) const BEFORE_AUTH: &[&str] =
        &["noscript", "loading", "stale", "fast", "no_auth", "allow_busy"];
    pub(in crate::connection) const BUSY: &[&str] = &["noscript", "loading", "stale", "fast", "allow_busy"];
    pub(in crate::connection) const BUSY_SLOW: &[&str] = &["noscript", "loading", "stale", "skip_slowlog"];
    pub(in crate::connection) const NOT_QUEUED: &[&str] = &["noscript", "loading", "stale", "no_multi"];
    pub(in crate::connection) const ADMIN: &[&str] = &["admin", "noscript", "loading", "stale"];
    pub(in crate::connection) const LISTENING: &[&str] =
        &["pubsub", "noscript", "loading", "stale", "no_multi"];
}

/// Groups that several verbs belong to.
pub(super) mod groups {
    pub(in crate::connection) const CONNECTION: &str = "connection";
    pub(in crate::connection) const SERVER: &str = "server";
    pub(in crate::connection) const TRANSACTIONS: &str = "transactions";
}
