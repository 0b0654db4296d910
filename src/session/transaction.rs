//! MULTI, EXEC, DISCARD, WATCH, UNWATCH. A transaction with a write is one request in the log; one that only
//! reads is one view. WATCH remembers versions, and whoever executes the transaction compares them.
//!
//! Commands of the session (PING, SELECT ...) may be queued too. The log knows nothing of them, so the session
//! runs them when the transaction was executed, and puts their replies between those of the others.

use std::collections::BTreeMap;

use kvorum_raft::Need;
use smallvec::SmallVec;

use super::{
    Session,
    pipeline::{call, read_one},
    table::{self, Row, Run, Waiting},
};
use crate::{
    args::{Args, parse_integer},
    error::{Error, Result},
    proposal::{self, Argv, Call, Step, Watched},
    resp::{Protocol, Reply},
    store::View,
};

/// The versions of the keys that WATCH named, by database and key.
pub(super) type WatchedKeys = BTreeMap<(u32, Vec<u8>), u64>;

/// The commands since MULTI.
#[derive(Default)]
pub(super) struct Queue {
    /// A command was refused: EXEC will be too.
    pub(super) broken: bool,
    calls: Vec<Queued>,
    watched: WatchedKeys,
    /// Bytes of all arguments.
    pub(super) bytes: usize,
    /// The most that one of them asks of the disks.
    pub(super) need: Need,
}

struct Queued {
    row: &'static Row,
    run: Run,
    db: u32,
    argv: Vec<Vec<u8>>,
}

impl Queued {
    fn is_of_session(&self) -> bool {
        !matches!(self.run, Run::Read(_) | Run::Write)
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

    /// Whether a command of the session is among them.
    pub(super) fn has_session_call(&self) -> bool {
        self.calls.iter().any(Queued::is_of_session)
    }

    /// Whether it must go through the log: it writes.
    pub(super) fn needs_log(&self) -> bool {
        self.calls.iter().any(|queued| matches!(queued.run, Run::Write))
    }

    /// Appends it to a proposal, without the commands of the session.
    pub(super) fn put(&self, bytes: &mut Vec<u8>) {
        let watched: Vec<Watched<'_>> = self
            .watched
            .iter()
            .map(|((db, key), version)| Watched { db: *db, key, version: *version })
            .collect();
        let calls: Vec<Call<'_>> = self
            .calls
            .iter()
            .filter(|queued| !queued.is_of_session())
            .map(|queued| Call { db: queued.db, argv: queued.argv() })
            .collect();
        proposal::put_transaction(bytes, &watched, &calls);
    }

    /// Executes one that only reads, without the commands of the session.
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
        let reads = || {
            self.calls.iter().filter_map(|queued| match queued.run {
                Run::Read(run) => Some((run, queued)),
                _ => None,
            })
        };
        reply.array(reads().count());
        for (run, queued) in reads() {
            let view_of_db = view.in_db(queued.db);
            read_one(&view_of_db, run, &queued.argv(), reply);
            view.late.set(view.late.get() | view_of_db.late.get());
        }
    }
}

impl Session {
    /// Queues a command.
    pub(super) fn enqueue(&mut self, row: &'static Row, run: Run, argv: &Argv<'_>) -> Result<()> {
        let bytes_max = self.shared.settings.query_buffer_bytes_max();
        let shared = self.shared.clone();
        let argv: Argv<'_> = if row.may_wait {
            Session::with_delay(argv, shared.settings.lock_delay_ms())
        } else {
            argv.iter().copied().collect()
        };
        let (db, queue) = (self.db, self.queue.get_or_insert_default());
        if matches!(row.name.as_str(), "client|reply" | "debug") || row.spec.flags.contains(&"no_multi") {
            queue.broken = true;
            return Err(Error::err("Command not allowed inside a transaction"));
        }
        let size: usize = argv.iter().map(|argument| argument.len() + size_of::<Vec<u8>>()).sum();
        if queue.broken {
            // It will not be executed; there is no need to keep it.
            return Ok(());
        }
        if queue.bytes + size > bytes_max {
            queue.broken = true;
            return Err(Error::err("the transaction is larger than client-query-buffer-limit"));
        }
        queue.bytes += size;
        if matches!(run, Run::Write) {
            queue.need = queue.need.max(row.spec.need(&argv));
        }
        queue.calls.push(Queued { row, run, db, argv: argv.iter().map(|arg| arg.to_vec()).collect() });
        let count = queue.calls.len();
        self.identify(|identity| identity.queued = Some(count));
        Ok(())
    }

    /// Closes the transaction and takes it, or says why it cannot be executed.
    pub(super) fn take_transaction(&mut self) -> Result<Queue> {
        let mut queue = self.queue.take().ok_or_else(|| Error::err("EXEC without MULTI"))?;
        queue.watched.append(&mut self.watched);
        self.identify(|identity| {
            identity.queued = None;
            identity.watched = 0;
        });
        if queue.broken {
            return Err(Error::Other("EXECABORT Transaction discarded because of previous errors.".into()));
        }
        Ok(queue)
    }

    /// Executes the transaction that was taken and put back: one with commands of the session among its own.
    pub(super) async fn exec_with_session_calls(&mut self) {
        let Some(mut queue) = self.queue.take() else { return };
        self.settle_dbs(&mut queue);
        let before = std::mem::take(&mut self.out);
        if queue.needs_log() {
            let mut bytes = Vec::new();
            queue.put(&mut bytes);
            if self.through_log(&bytes, vec![Step::Write]).await.is_err() {
                self.closing = true;
            }
        } else if let Err(error) = self.read_transaction(&queue).await {
            self.reply(|reply| reply.error(&error));
        }
        let replies = std::mem::replace(&mut self.out, before);
        self.splice(&queue, &replies).await;
    }

    /// Executes one that only reads, without the commands of the session.
    async fn read_transaction(&mut self, queue: &Queue) -> Result<()> {
        self.barrier().await?;
        let protocol = self.protocol;
        let read = |view: &View<'_>| {
            let mut reply = Reply::new(Vec::new(), protocol);
            queue.read(view, &mut reply);
            reply.into_buffer()
        };
        self.out = self.read_behind_barrier(self.read_level, read).await?;
        Ok(())
    }

    /// Gives the commands after a queued SELECT their database. One that will fail selects nothing.
    fn settle_dbs(&self, queue: &mut Queue) {
        let mut db = self.db;
        for queued in &mut queue.calls {
            queued.db = db;
            if let Some(next) = selected(queued)
                && next < self.shared.settings.databases()
            {
                db = next;
            }
        }
    }

    /// Puts the session's replies between those of the executed transaction.
    async fn splice(&mut self, queue: &Queue, replies: &[u8]) {
        let elements = match replies.split_first() {
            Some((b'*', _)) if !replies.starts_with(b"*-1") => {
                let header = replies.iter().position(|&byte| byte == b'\n').map_or(0, |end| end + 1);
                &replies[header..]
            }
            // It was not executed: null, or an error.
            _ => return self.out.extend_from_slice(replies),
        };
        self.reply(|reply| reply.array(queue.calls.len()));
        // A queued HELLO changes the version of what follows, not of the replies that are there.
        let protocol = self.protocol;
        let mut rest = elements;
        for queued in &queue.calls {
            let argv = queued.argv();
            match queued.run {
                Run::Read(_) | Run::Write => {
                    let len = reply_len(rest, protocol);
                    self.out.extend_from_slice(&rest[..len]);
                    rest = &rest[len..];
                }
                Run::Now(function) | Run::Alone(function) => {
                    let mut reply = Reply::new(std::mem::take(&mut self.out), self.protocol);
                    call(self, function, &argv, &mut reply);
                    self.out = reply.into_buffer();
                }
                Run::Wait(_) | Run::Exec => self.without_waiting(queued.row, &argv),
            }
        }
    }

    /// WATCH: remembers the versions of keys.
    pub(super) async fn watch(&mut self, argv: &[&[u8]]) {
        if self.queue.is_some() {
            return self.reply(|reply| reply.error(&Error::err("WATCH inside MULTI is not allowed")));
        }
        if let Err(error) = self.shared.router.barrier(kvorum_raft::ReadLevel::Linearizable).await {
            return self.reply(|reply| reply.error(&error));
        }
        let db = self.db;
        let versions: SmallVec<[u64; 8]> =
            self.shared.router.read(db, |view| argv[1..].iter().map(|key| view.version(key)).collect());
        for (key, version) in argv[1..].iter().zip(versions) {
            // Whoever watches twice means the first moment.
            self.watched.entry((db, key.to_vec())).or_insert(version);
        }
        let count = self.watched.len();
        self.identify(|identity| identity.watched = count);
        self.reply(Reply::ok);
    }

    /// Forgets transaction and watched keys.
    pub(super) fn drop_transaction(&mut self) {
        self.queue = None;
        self.watched.clear();
        self.identify(|identity| {
            identity.queued = None;
            identity.watched = 0;
        });
    }
}

/// The database that a queued command selects.
fn selected(queued: &Queued) -> Option<u32> {
    let select = table::by_full_name("SELECT")?;
    if !std::ptr::eq(queued.row, select) {
        return None;
    }
    parse_integer(&queued.argv[1]).and_then(|db| u32::try_from(db).ok())
}

/// The length of the first reply in `replies`, which this server wrote.
fn reply_len(replies: &[u8], protocol: Protocol) -> usize {
    let len = match protocol {
        Protocol::Resp2 => {
            redis_protocol::resp2::decode::decode_range(replies).ok().flatten().map(|(_, len)| len)
        }
        Protocol::Resp3 => {
            redis_protocol::resp3::decode::complete::decode_range(replies).ok().flatten().map(|(_, len)| len)
        }
    };
    len.expect("a reply that this server wrote is well-formed")
}

pub(super) fn multi(session: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    if session.queue.is_some() {
        return Err(Error::err("MULTI calls can not be nested"));
    }
    session.queue = Some(Queue::default());
    session.identify(|identity| identity.queued = Some(0));
    reply.ok();
    Ok(())
}

pub(super) fn discard(session: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    if session.queue.is_none() {
        return Err(Error::err("DISCARD without MULTI"));
    }
    session.drop_transaction();
    reply.ok();
    Ok(())
}

pub(super) fn unwatch(session: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    session.watched.clear();
    session.identify(|identity| identity.watched = 0);
    reply.ok();
    Ok(())
}

impl Session {
    /// Runs a command that waits.
    pub(super) async fn wait(&mut self, waiting: Waiting, argv: &[&[u8]]) {
        match waiting {
            Waiting::Watch => self.watch(argv).await,
            Waiting::Debug => self.debug(argv).await,
            Waiting::Wait => self.wait_replicas(argv).await,
            Waiting::WaitAof => self.wait_aof(argv).await,
            Waiting::LeaseBind => self.bind_lease(argv).await,
            Waiting::ClientSession => self.client_session(argv).await,
            Waiting::Observe => self.observe(argv).await,
            Waiting::Consistency => self.read_as_asked(argv).await,
        }
    }
}
