//! MULTI, EXEC, DISCARD, WATCH, UNWATCH. A transaction with a write is one request in the log; a read-only
//! one runs on one view. WATCH records the versions of keys; they are compared where the transaction is
//! executed.
//!
//! Connection commands (PING, SELECT ...) may be queued too. They are not part of the log, so the connection runs
//! them after the transaction was executed, and inserts their replies between the others.

use std::collections::{BTreeMap, btree_map::Entry};

use kvorum_raft::{Need, aside};
use smallvec::SmallVec;

use super::{
    Connection,
    pipeline::call,
    table::{Dispatch, Row},
    verb::{Verb, flags, groups},
};
use crate::{
    args::{Args, parse_integer},
    commands::{self, InMulti, LONG_CALLS, Spec, keys},
    error::{Error, Result},
    proposal::{self, Argv, Call, Step, Watched},
    resp::{Elements, Replies, Reply},
    store::View,
};

/// The rows of this family.
pub(super) const VERBS: &[Verb] = &[
    Verb::now(
        Spec::connection("DISCARD", 1)
            .about(flags::BUSY, groups::TRANSACTIONS, "2.0.0", "Discard all commands issued after MULTI")
            .complexity("O(N), when N is the number of queued commands")
            .in_multi(InMulti::AtOnce),
        discard,
    ),
    Verb::exec(
        Spec::connection("EXEC", 1)
            .about(flags::BUSY_SLOW, groups::TRANSACTIONS, "1.2.0", "Execute all commands issued after MULTI")
            .complexity("Depends on commands in the transaction")
            .in_multi(InMulti::AtOnce),
    ),
    Verb::now(
        Spec::connection("MULTI", 1)
            .about(flags::BUSY, groups::TRANSACTIONS, "1.2.0", "Mark the start of a transaction block")
            .complexity("O(1)")
            .in_multi(InMulti::AtOnce),
        multi,
    ),
    Verb::now(
        Spec::connection("UNWATCH", 1)
            .about(flags::BUSY, groups::TRANSACTIONS, "2.2.0", "Forget about all watched keys")
            .complexity("O(1)"),
        unwatch,
    ),
    Verb::wait_outside(
        Spec { keys: keys::LOOK_ALL, ..Spec::connection("WATCH", -2) }
            .about(
                flags::BUSY,
                groups::TRANSACTIONS,
                "2.2.0",
                "Watch the given keys to determine execution of the MULTI/EXEC block",
            )
            .syntax("key...")
            .complexity("O(1) for every key")
            .in_multi(InMulti::AtOnce),
        |connection, argv| Box::pin(connection.watch(argv)),
    ),
];

/// The versions of the watched keys, by database and key.
pub(super) type WatchedKeys = BTreeMap<(u32, Vec<u8>), u64>;

/// The keys that a connection watches.
#[derive(Default)]
pub(super) struct Watching {
    keys: WatchedKeys,
    /// The size of all keys, and what holds them.
    bytes: usize,
}

impl Watching {
    /// If a key is watched twice, the first version counts.
    fn add(&mut self, db: u32, key: &[u8], version: u64) {
        if let Entry::Vacant(place) = self.keys.entry((db, key.to_vec())) {
            place.insert(version);
            self.bytes += key.len() + size_of::<((u32, Vec<u8>), u64)>();
        }
    }

    fn take(&mut self) -> WatchedKeys {
        std::mem::take(self).keys
    }

    /// What they take in memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The commands since MULTI.
#[derive(Default)]
pub(super) struct Queue {
    /// A command was refused: EXEC will fail.
    pub(super) broken: bool,
    calls: Vec<Queued>,
    /// One of them writes.
    writes: bool,
    watched: WatchedKeys,
    /// The size of all arguments.
    pub(super) bytes: usize,
    /// What they take in the log, at least.
    log_bytes: usize,
    /// The largest need for disk space among its commands.
    pub(super) need: Need,
}

struct Queued {
    row: &'static Row,
    run: Dispatch,
    db: u32,
    argv: Vec<Vec<u8>>,
}

impl Queued {
    fn is_verb(&self) -> bool {
        !matches!(self.run, Dispatch::Read(_) | Dispatch::Write)
    }

    fn argv(&self) -> Argv<'_> {
        self.argv.iter().map(Vec::as_slice).collect()
    }
}

impl Queue {
    /// Whether there is nothing to execute and nothing to compare.
    pub(super) fn is_trivial(&self) -> bool {
        self.calls.is_empty() && self.watched.is_empty()
    }

    /// Whether it contains connection commands.
    pub(super) fn has_verb(&self) -> bool {
        self.calls.iter().any(Queued::is_verb)
    }

    /// Whether it contains a write and so must go through the log.
    pub(super) fn needs_log(&self) -> bool {
        self.writes
    }

    /// Appends it to a proposal, without the connection commands.
    pub(super) fn put(&self, bytes: &mut Vec<u8>) {
        let watched: Vec<Watched<'_>> = self
            .watched
            .iter()
            .map(|((db, key), version)| Watched { db: *db, key, version: *version })
            .collect();
        let calls: Vec<Call<'_>> = self
            .calls
            .iter()
            .filter(|queued| !queued.is_verb())
            .map(|queued| Call { db: queued.db, argv: queued.argv() })
            .collect();
        proposal::put_transaction(bytes, &watched, &calls);
    }

    /// Executes a read-only transaction, without the connection commands.
    pub(super) fn read(&self, view: &View<'_>, reply: &mut Reply) {
        let has_changed = |(db, key): &(u32, Vec<u8>), version: u64| {
            let view_of_db = view.in_db(*db);
            let is_another = view_of_db.version(key) != version;
            view.late.set(view.late.get() | view_of_db.late.get());
            is_another
        };
        if self.watched.iter().any(|(key, version)| has_changed(key, *version)) {
            return reply.null_array();
        }
        if self.calls.len() > LONG_CALLS {
            return aside::run(|| self.read_all(view, reply));
        }
        self.read_all(view, reply);
    }

    fn read_all(&self, view: &View<'_>, reply: &mut Reply) {
        let reads = || self.calls.iter().filter(|queued| matches!(queued.run, Dispatch::Read(_)));
        reply.array(reads().count());
        for queued in reads() {
            let view_of_db = view.in_db(queued.db);
            // They count together.
            view_of_db.elements.set(view.elements.get());
            commands::Call::of(queued.row.spec, &queued.argv()).read_or_error(&view_of_db, reply);
            view.elements.set(view_of_db.elements.get());
            view.late.set(view.late.get() | view_of_db.late.get());
        }
    }
}

impl Connection {
    /// Queues a command.
    pub(super) fn enqueue(&mut self, row: &'static Row, run: Dispatch, argv: &Argv<'_>) -> Result<()> {
        let bytes_max = self.shared.settings.query_buffer_bytes_max();
        let shared = self.shared.clone();
        let argv: Argv<'_> = if row.spec.takes_delay() {
            Connection::with_delay(row, argv, shared.settings.lock_delay_ms())
        } else {
            argv.iter().copied().collect()
        };
        let (db, queue) = (self.db, self.queue.get_or_insert_default());
        if row.spec.in_multi == InMulti::Refused {
            queue.broken = true;
            return Err(Error::err("Command not allowed inside a transaction"));
        }
        let size: usize = argv.iter().map(|argument| argument.len() + size_of::<Vec<u8>>()).sum();
        if queue.broken {
            // It will not be executed, so it need not be kept.
            return Ok(());
        }
        let is_write = matches!(run, Dispatch::Write);
        let in_log = queue.log_bytes + argv.iter().map(|argument| argument.len() + 1).sum::<usize>();
        // Only one that writes goes through the log, with all of its commands.
        let is_too_long = (is_write || queue.writes) && in_log > shared.proposal_bytes_max;
        if is_too_long || queue.bytes + size > bytes_max {
            queue.broken = true;
            queue.calls = Vec::new();
            let limit = if is_too_long { "proposal-bytes-max" } else { "client-query-buffer-limit" };
            return Err(Error::err(format!("the transaction is larger than {limit}, and is not applied")));
        }
        queue.log_bytes = in_log;
        queue.bytes += size;
        if is_write {
            queue.writes = true;
            queue.need = queue.need.max(commands::Call::of(row.spec, &argv).need());
        }
        queue.calls.push(Queued { row, run, db, argv: argv.iter().map(|arg| arg.to_vec()).collect() });
        let count = queue.calls.len();
        self.identify(|identity| identity.queued = Some(count));
        Ok(())
    }

    /// Closes the transaction and returns its queue, or why it cannot be executed.
    pub(super) fn take_transaction(&mut self) -> Result<Queue> {
        let mut queue = self.queue.take().ok_or_else(|| Error::err("EXEC without MULTI"))?;
        queue.watched.append(&mut self.watched.take());
        self.identify(|identity| {
            identity.queued = None;
            identity.watched = 0;
        });
        if queue.broken {
            return Err(Error::Other("EXECABORT Transaction discarded because of previous errors.".into()));
        }
        Ok(queue)
    }

    /// Executes the queue that was taken and put back, because it contains connection commands.
    pub(super) async fn exec_with_verbs(&mut self) {
        let Some(mut queue) = self.queue.take() else { return };
        self.settle_dbs(&mut queue);
        let before = self.out.take();
        if queue.needs_log() {
            let mut bytes = Vec::new();
            queue.put(&mut bytes);
            if self.through_log(bytes.into(), vec![Step::Write]).await.is_err() {
                self.closing = true;
            }
        } else if let Err(error) = self.read_transaction(&queue).await {
            self.reply(|reply| reply.error(&error));
        }
        let replies = std::mem::replace(&mut self.out, before);
        self.splice(&queue, replies).await;
    }

    /// Executes a read-only transaction, without the connection commands.
    async fn read_transaction(&mut self, queue: &Queue) -> Result<()> {
        self.catch_up().await?;
        let (protocol, bytes_max) = (self.protocol, self.reply_bytes_max());
        let read = |view: &View<'_>| {
            let mut reply = Reply::new(Replies::within(bytes_max), protocol);
            queue.read(view, &mut reply);
            reply.into_buffer()
        };
        self.out = self.shared.router.read_at(self.read_level, self.db, read).await?;
        Ok(())
    }

    /// Gives the commands after a queued SELECT their database. A SELECT that will fail changes nothing.
    fn settle_dbs(&self, queue: &mut Queue) {
        let mut db = self.db;
        for queued in &mut queue.calls {
            queued.db = db;
            if queued.row.spec.selects_db
                && let Some(next) = parse_integer(&queued.argv[1]).and_then(|db| u32::try_from(db).ok())
                && next < self.shared.settings.databases()
            {
                db = next;
            }
        }
    }

    /// Inserts the replies of connection commands between those of the executed transaction.
    async fn splice(&mut self, queue: &Queue, replies: Replies) {
        let mut elements = match Elements::of(replies) {
            Ok(elements) => elements,
            // Not executed: null or an error.
            Err(replies) => return self.out.append(replies),
        };
        self.reply(|reply| reply.array(queue.calls.len()));
        for queued in &queue.calls {
            let argv = queued.argv();
            match queued.run {
                Dispatch::Read(_) | Dispatch::Write => self.out.append(elements.next_element()),
                Dispatch::Now(function) | Dispatch::Alone(function) | Dispatch::Wait(_, function) => {
                    let mut reply = Reply::new(self.out.take(), self.protocol);
                    call(self, function, &argv, &mut reply);
                    self.out = reply.into_buffer();
                }
                Dispatch::Exec => {}
            }
        }
    }

    /// WATCH: records the versions of keys.
    pub(super) async fn watch(&mut self, argv: &[&[u8]]) {
        if self.queue.is_some() {
            return self.reply(|reply| reply.error(&Error::err("WATCH inside MULTI is not allowed")));
        }
        if let Err(error) = self.shared.router.barrier(kvorum_raft::ReadLevel::Linearizable).await {
            return self.reply(|reply| reply.error(&error));
        }
        let db = self.db;
        let versions: SmallVec<[u64; 8]> =
            self.shared.router.read(db, |view| argv[1..].iter().map(|key| view.version(key)).collect()).await;
        for (key, version) in argv[1..].iter().zip(versions) {
            self.watched.add(db, key, version);
        }
        let count = self.watched.keys.len();
        self.identify(|identity| identity.watched = count);
        self.reply(Reply::ok);
    }

    /// Drops the transaction and the watched keys.
    pub(super) fn drop_transaction(&mut self) {
        self.queue = None;
        self.watched.take();
        self.identify(|identity| {
            identity.queued = None;
            identity.watched = 0;
        });
    }
}

pub(super) fn multi(connection: &mut Connection, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    if connection.queue.is_some() {
        return Err(Error::err("MULTI calls can not be nested"));
    }
    connection.queue = Some(Queue::default());
    connection.identify(|identity| identity.queued = Some(0));
    reply.ok();
    Ok(())
}

pub(super) fn discard(connection: &mut Connection, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    if connection.queue.is_none() {
        return Err(Error::err("DISCARD without MULTI"));
    }
    connection.drop_transaction();
    reply.ok();
    Ok(())
}

pub(super) fn unwatch(connection: &mut Connection, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    connection.watched.take();
    connection.identify(|identity| identity.watched = 0);
    reply.ok();
    Ok(())
}
