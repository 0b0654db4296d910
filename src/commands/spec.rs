//! A row of the command table: all that is said about a command besides the function that runs it.

use kvorum_raft::Need;

use super::{
    blocking::{Timeout, Until, Waits},
    keys::KeySpec,
};
use crate::{
    args::Args,
    error::Result,
    resp::Reply,
    store::{Ctx, View, level},
};

/// Reads the state and cannot change it.
pub type ReadFn = fn(&View<'_>, &Args<'_>, &mut Reply) -> Result<()>;
/// Goes through the log. If it returns an error, it has changed nothing and written no reply.
pub type WriteFn = fn(&mut Ctx<'_>, &Args<'_>, &mut Reply) -> Result<()>;
/// Where the command begins that another one runs, among its arguments; None if that cannot be told.
pub type WrapsFn = fn(&Args<'_>) -> Option<usize>;

/// How a command runs.
#[derive(Clone, Copy)]
pub enum Run {
    /// On any node whose read barrier allows it, under the shared lock.
    Read(ReadFn),
    /// In `apply`, on every node.
    Write(WriteFn),
    /// In the connection, which has a function for it and accesses no keys.
    Connection,
}

/// Whose command it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Redis has it.
    Redis,
    /// Valkey has it, and Redis has not.
    Valkey,
    /// A module for Redis, by name.
    Module(&'static str),
    /// Only Kvorum has it.
    Kvorum,
}

/// What happens to a command between MULTI and EXEC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InMulti {
    /// It is queued.
    Queued,
    /// It runs at once.
    AtOnce,
    /// It is refused, and EXEC with it.
    Refused,
}

/// One row: a command or subcommand.
#[derive(Clone, Copy)]
pub struct Spec {
    /// Upper case; for a subcommand, for example, `CONFIG|GET`.
    pub name: &'static str,
    /// As Redis counts: including the name; negative means at least.
    pub arity: i32,
    /// The apply level from which on it is known: in older entries it is unknown, as it was to whoever wrote them.
    pub level: u32,
    /// Its arity in entries below an apply level.
    pub older_arity: Option<(u32, i32)>,
    /// Where its keys are, and what it does with them.
    pub keys: &'static [KeySpec],
    /// How it runs.
    pub run: Run,
    /// Redis's flags, lower case (`readonly`, `write`, `denyoom`, `fast`, ...), as COMMAND INFO returns them.
    pub flags: &'static [&'static str],
    /// The group of COMMAND DOCS (`string`, `generic`, `connection`, ...).
    pub group: &'static str,
    /// The version that introduced it, of whoever did.
    pub since: &'static str,
    /// One line for COMMAND DOCS.
    pub summary: &'static str,
    /// Its arguments, in the notation of `syntax.rs`.
    pub syntax: &'static str,
    /// How long it takes.
    pub complexity: &'static str,
    /// ACL categories besides those that follow from the flags; None for those that follow from the group.
    pub acl: Option<&'static [&'static str]>,
    /// Redis's tips for clients and proxies.
    pub tips: &'static [&'static str],
    /// Whose it is.
    pub origin: Origin,
    /// The version that deprecated it, and what replaced it.
    pub deprecated: Option<(&'static str, &'static str)>,
    /// It is for those who look into the server itself.
    pub is_internal: bool,
    /// Where the command begins that it runs, if it runs another one.
    pub wraps: Option<WrapsFn>,
    /// What happens to it in a transaction.
    pub in_multi: InMulti,
    /// Whether a subscriber that speaks RESP2 may call it.
    pub while_subscribed: bool,
    /// Queued commands after it are about the database that it selects.
    pub selects_db: bool,
    /// Where it is told for how long it may block.
    pub timeout: Timeout,
    /// What its calls wait for, if it is a command on the state that may wait.
    pub waits: Option<Waits>,
    /// It needs no room, as it leaves nothing behind.
    pub frees_all: bool,
    /// Which calls look at the guards of keys by themselves (`coordination/fence.rs`).
    pub minds_guards: fn(&Args<'_>) -> bool,
    /// Rows of subcommands, for containers.
    pub subcommands: &'static [Spec],
}

impl Spec {
    /// A command that only reads.
    pub const fn read(name: &'static str, arity: i32, keys: &'static [KeySpec], run: ReadFn) -> Spec {
        Spec::new(name, arity, keys, Run::Read(run))
    }

    /// A command that goes through the log.
    pub const fn write(name: &'static str, arity: i32, keys: &'static [KeySpec], run: WriteFn) -> Spec {
        Spec::new(name, arity, keys, Run::Write(run))
    }

    /// A command of the connection or the server.
    pub const fn connection(name: &'static str, arity: i32) -> Spec {
        Spec::new(name, arity, &[], Run::Connection)
    }

    const fn new(name: &'static str, arity: i32, keys: &'static [KeySpec], run: Run) -> Spec {
        Spec {
            name,
            arity,
            level: level::FIRST,
            older_arity: None,
            keys,
            run,
            flags: &[],
            group: "generic",
            since: "1.0.0",
            summary: "",
            syntax: "",
            complexity: "",
            acl: None,
            tips: &[],
            origin: Origin::Redis,
            deprecated: None,
            is_internal: false,
            wraps: None,
            in_multi: InMulti::Queued,
            while_subscribed: false,
            selects_db: false,
            timeout: Timeout::None,
            waits: None,
            frees_all: false,
            minds_guards: |_| false,
            subcommands: &[],
        }
    }

    /// Its flags, group, version and summary.
    pub const fn about(
        mut self,
        flags: &'static [&'static str],
        group: &'static str,
        since: &'static str,
        summary: &'static str,
    ) -> Spec {
        self.flags = flags;
        self.group = group;
        self.since = since;
        self.summary = summary;
        self
    }

    /// The apply level from which on it is known.
    pub const fn from_level(mut self, level: u32) -> Spec {
        self.level = level;
        self
    }

    /// Its arity in entries below an apply level.
    pub const fn arity_below(mut self, level: u32, arity: i32) -> Spec {
        self.older_arity = Some((level, arity));
        self
    }

    /// Its arguments.
    pub const fn syntax(mut self, syntax: &'static str) -> Spec {
        self.syntax = syntax;
        self
    }

    /// How long it takes.
    pub const fn complexity(mut self, complexity: &'static str) -> Spec {
        self.complexity = complexity;
        self
    }

    /// Its ACL categories besides those that follow from its flags.
    pub const fn acl(mut self, categories: &'static [&'static str]) -> Spec {
        self.acl = Some(categories);
        self
    }

    /// Its tips.
    pub const fn tips(mut self, tips: &'static [&'static str]) -> Spec {
        self.tips = tips;
        self
    }

    /// Whose it is.
    pub const fn of(mut self, origin: Origin) -> Spec {
        self.origin = origin;
        self
    }

    /// It is deprecated since a version, by what replaced it.
    pub const fn deprecated(mut self, since: &'static str, by: &'static str) -> Spec {
        self.deprecated = Some((since, by));
        self
    }

    /// It is for those who look into the server itself.
    pub const fn internal(mut self) -> Spec {
        self.is_internal = true;
        self
    }

    /// It runs another command.
    pub const fn wraps(mut self, at: WrapsFn) -> Spec {
        self.wraps = Some(at);
        self.minds_guards = |_| true;
        self
    }

    /// What happens to it in a transaction.
    pub const fn in_multi(mut self, in_multi: InMulti) -> Spec {
        self.in_multi = in_multi;
        self
    }

    /// A subscriber that speaks RESP2 may call it.
    pub const fn while_subscribed(mut self) -> Spec {
        self.while_subscribed = true;
        self
    }

    /// Queued commands after it are about the database that it selects.
    pub const fn selects_db(mut self) -> Spec {
        self.selects_db = true;
        self
    }

    /// Where it is told for how long it may block.
    pub const fn timeout(mut self, timeout: Timeout) -> Spec {
        self.timeout = timeout;
        self
    }

    /// What its calls wait for, where they say for how long, and what they reply when that is over.
    pub const fn waits(mut self, until: Until, timeout: Timeout, at_timeout: fn(&mut Reply)) -> Spec {
        self.timeout = timeout;
        self.waits = Some(Waits { until, at_timeout });
        self
    }

    /// It needs no room.
    pub const fn frees_all(mut self) -> Spec {
        self.frees_all = true;
        self
    }

    /// Which calls look at the guards of keys by themselves.
    pub const fn minds_guards(mut self, which: fn(&Args<'_>) -> bool) -> Spec {
        self.minds_guards = which;
        self
    }

    /// Its subcommands.
    pub const fn with(mut self, subcommands: &'static [Spec]) -> Spec {
        self.subcommands = subcommands;
        self
    }

    /// Whether `count` arguments, including the name, match the arity.
    pub fn arity_fits(&self, count: usize) -> bool {
        fits(self.arity, count)
    }

    /// The same in an entry of an apply level.
    pub fn arity_fits_at(&self, count: usize, level: u32) -> bool {
        match self.older_arity {
            Some((below, arity)) if level < below => fits(arity, count),
            _ => self.arity_fits(count),
        }
    }

    /// Whether it has one of Redis's flags.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }

    /// Whether its calls take a lock delay, for which the configuration has a default.
    pub fn takes_delay(&self) -> bool {
        self.waits.is_some_and(|waits| waits.until == Until::Granted)
    }

    /// Whether it goes through the log.
    pub fn writes(&self) -> bool {
        matches!(self.run, Run::Write(_))
    }

    /// The disk space that it needs by itself. Commands that may grow the data have Redis's flag `denyoom`.
    pub fn own_need(&self) -> Need {
        match () {
            () if self.frees_all => Need::Nothing,
            () if self.has("denyoom") => Need::Growth,
            () => Need::Entry,
        }
    }
}

fn fits(arity: i32, count: usize) -> bool {
    if arity >= 0 { count == arity as usize } else { count >= arity.unsigned_abs() as usize }
}
