//! Runs a client's requests in units. A unit is a stretch of a pipeline that costs one wait: either reads
//! only, behind one barrier, or writes and reads that go through the log together, each read executed at its
//! position. Never one wait per command.
//!
//! Requests are classified in order, and changes to the connection (SELECT, MULTI, the queue) take effect at
//! that moment; so commands whose effect or reply depends on earlier replies end the unit before them.

use std::{
    borrow::Cow,
    io,
    ops::Range,
    time::{Duration, Instant},
};

use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::{
    Connection, FLUSH_BYTES, ReplyMode,
    refusal::{error_line, unknown_command, unknown_subcommand},
    stats::Stats,
    table::{self, Dispatch, Row},
    transaction::Queue,
    verb::VerbFn,
};
use crate::{
    args::Args,
    commands::{Call, InMulti, Spec},
    error::Error,
    proposal::{self, Argv, Pipeline, Step},
    resp::{
        Reply,
        request::{Decoder, RequestSpans},
    },
    store::{Fate, View},
};

/// The most commands in a unit.
const UNIT_COMMANDS_MAX: usize = 1024;
/// A unit takes no more commands once its arguments reach this size.
const UNIT_BYTES_MAX: usize = 1 << 20;

/// What an argument takes in a proposal besides its bytes, at most.
const CALL_ARGUMENT_BYTES: usize = 10;

/// What a connection reuses from unit to unit.
///
/// Invariant: between units `items`, `ready` and `tally` are empty.
#[derive(Default)]
pub(super) struct Scratch {
    items: Vec<Item>,
    /// Replies known in advance, at the items' ranges.
    ready: Vec<u8>,
    /// The proposal.
    bytes: Vec<u8>,
    /// Rows of the unit's commands, each with its number of occurrences.
    tally: SmallVec<[(&'static Row, u64); 4]>,
    /// The row of the last command: most pipelines repeat one command.
    last: Option<(&'static Row, Vec<u8>)>,
}

/// One command of a unit.
enum Item {
    /// Its reply is in `Scratch::ready`.
    Ready(Range<usize>),
    Read {
        request: RequestSpans,
        db: u32,
        spec: &'static Spec,
    },
    Write {
        request: RequestSpans,
        db: u32,
        row: &'static Row,
    },
    /// EXEC.
    Transaction(Box<Queue>),
}

/// The classification of a request.
enum Class {
    /// It was added to the unit.
    Taken,
    /// It belongs to the next unit.
    Next,
    /// It must run in a unit by itself.
    Alone(&'static Row),
}

/// A request as it was resolved.
enum Resolved {
    Row(&'static Row, Dispatch),
    /// An error, complete with its prefix.
    Refused(Vec<u8>),
    /// EXEC with the wrong number of arguments, with its error: it discards the transaction.
    Aborted(Vec<u8>),
    /// A browser: a web page may be attacking a server on this machine.
    Http,
}

impl Connection {
    /// Runs all complete requests.
    pub(super) async fn run(&mut self, buffer: &[u8], decoder: &Decoder) -> io::Result<()> {
        let requests = decoder.requests();
        let mut next = 0;
        while next < requests.len() && self.goes_on() {
            if requests[next].is_empty() {
                // In Redis, too, CLIENT REPLY SKIP is over then.
                if self.replies == ReplyMode::SkipNext {
                    self.replies = ReplyMode::On;
                }
                next += 1;
                continue;
            }
            let mut scratch = std::mem::take(&mut self.scratch);
            let result = self.unit(buffer, decoder, &requests[next..], &mut scratch).await;
            scratch.clear();
            self.scratch = scratch;
            next += result?;
            if self.out.len() > FLUSH_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Runs the first unit of `requests`. Returns how many requests that were.
    async fn unit(
        &mut self,
        buffer: &[u8],
        decoder: &Decoder,
        requests: &[RequestSpans],
        scratch: &mut Scratch,
    ) -> io::Result<usize> {
        let started = Instant::now();
        let (hidden, skips) = (self.replies != ReplyMode::On, self.replies == ReplyMode::SkipNext);
        self.is_hidden = hidden;
        let mut mark = self.out.len();
        if skips {
            self.replies = ReplyMode::On;
        }
        let count_max = if skips { 1 } else { UNIT_COMMANDS_MAX };
        let (mut count, mut bytes, mut writes_next) = (0, 0, false);
        while count < requests.len().min(count_max) && bytes < UNIT_BYTES_MAX && !self.closing {
            let request = requests[count];
            if request.is_empty() {
                break;
            }
            match self.classify(buffer, decoder, request, scratch) {
                Class::Taken => {
                    count += 1;
                    bytes += decoder.bytes_of(request);
                }
                Class::Alone(row) if count == 0 => {
                    if matches!(row.run, Some(Dispatch::Wait(..) | Dispatch::Write)) {
                        // It may take long, so send the earlier replies first.
                        self.flush().await?;
                        mark = self.out.len();
                    }
                    self.alone(row, &decoder.argv(buffer, request)).await?;
                    count = 1;
                    break;
                }
                Class::Alone(_) => break,
                Class::Next => {
                    writes_next = true;
                    break;
                }
            }
        }
        if self.client.is_killed() && !self.closing {
            // The client that killed it relies on nothing more being executed.
            self.closing = true;
            return Ok(count);
        }
        if scratch.has_write() {
            self.propose(buffer, decoder, scratch).await?;
        } else if !scratch.items.is_empty() {
            self.read(buffer, decoder, scratch).await?;
        }
        scratch.record(&self.shared.stats, started.elapsed());
        self.shared.stats.commands.fetch_add(count as u64, std::sync::atomic::Ordering::Relaxed);
        // The reply of CLIENT REPLY ON is shown.
        if hidden && (skips || self.replies != ReplyMode::On) {
            self.out.truncate(mark);
        } else if writes_next {
            // The next unit may take long.
            self.flush().await?;
        }
        Ok(count)
    }

    fn classify(
        &mut self,
        buffer: &[u8],
        decoder: &Decoder,
        request: RequestSpans,
        scratch: &mut Scratch,
    ) -> Class {
        let (row, run) = match scratch.resolve(&self.shared.stats, buffer, decoder, request) {
            Resolved::Row(row, run) => (row, run),
            Resolved::Refused(text) => {
                if let Some(queue) = &mut self.queue {
                    queue.broken = true;
                }
                self.ready(scratch, |_, reply| error_line(reply, &text));
                return Class::Taken;
            }
            Resolved::Http => {
                self.refuse_http();
                return Class::Taken;
            }
            Resolved::Aborted(text) => {
                self.drop_transaction();
                self.ready(scratch, |_, reply| error_line(reply, &text));
                return Class::Taken;
            }
        };
        self.client.last_row.store(row.index, std::sync::atomic::Ordering::Relaxed);
        let argv = || decoder.argv(buffer, request);
        let refused = self.not_while_listening(row);
        let refused = refused.or_else(|| self.no_room(row, run, decoder.bytes_of(request), argv));
        if let Some(error) = refused {
            self.ready(scratch, |_, reply| reply.error(&error));
            return Class::Taken;
        }
        if self.queue.is_some() && row.spec.in_multi != InMulti::AtOnce {
            scratch.count(row);
            let queued = self.enqueue(row, run, &argv());
            self.ready(scratch, |_, reply| match queued {
                Ok(()) => reply.simple("QUEUED"),
                Err(error) => reply.error(&error),
            });
            return Class::Taken;
        }
        if self.writes(run) && self.reads_are_local() && scratch.has_only_reads() {
            // They are answered even when nothing can be written.
            return Class::Next;
        }
        match run {
            Dispatch::Read(_) => scratch.items.push(Item::Read { request, db: self.db, spec: row.spec }),
            Dispatch::Write if Connection::asks_to_wait(row, argv) => return Class::Alone(row),
            Dispatch::Write => scratch.items.push(Item::Write { request, db: self.db, row }),
            Dispatch::Now(function) => {
                let argv = argv();
                self.ready(scratch, |connection, reply| call(connection, function, &argv, reply));
            }
            Dispatch::Exec => match self.take_transaction().and_then(|queue| self.admit(queue)) {
                Ok(queue) if queue.is_trivial() => self.ready(scratch, |_, reply| reply.array(0)),
                Ok(queue) if queue.has_verb() => {
                    // Its replies are assembled by the connection, so it runs alone.
                    self.queue = Some(queue);
                    return Class::Alone(row);
                }
                Ok(queue) => scratch.items.push(Item::Transaction(Box::new(queue))),
                Err(error) => self.ready(scratch, |_, reply| reply.error(&error)),
            },
            Dispatch::Alone(_) | Dispatch::Wait(..) => return Class::Alone(row),
        }
        scratch.count(row);
        Class::Taken
    }

    fn refuse_http(&mut self) {
        tracing::warn!(
            client = self.client.id,
            "possible attack: a client speaks HTTP (POST or Host:); its connection is closed"
        );
        self.closing = true;
    }

    /// Runs a command by itself. Everything before it is done and its replies are in `out`.
    async fn alone(&mut self, row: &'static Row, argv: &Argv<'_>) -> io::Result<()> {
        let started = Instant::now();
        match row.run {
            Some(Dispatch::Alone(function)) => {
                let mut reply = Reply::new(self.out.take(), self.protocol);
                call(self, function, argv, &mut reply);
                self.out = reply.into_buffer();
            }
            Some(Dispatch::Wait(function, _)) => function(self, argv).await,
            Some(Dispatch::Exec) => self.exec_with_verbs().await,
            Some(Dispatch::Write) => {
                let shared = self.shared.clone();
                let argv = Connection::with_delay(row, argv, shared.settings.lock_delay_ms());
                self.wait_for(&Call::of(row.spec, &argv)).await?;
            }
            _ => {}
        }
        self.shared.stats.of(row).record(1, started.elapsed());
        Ok(())
    }

    /// Stores a reply known in advance, at its position.
    fn ready(&mut self, scratch: &mut Scratch, write: impl FnOnce(&mut Connection, &mut Reply)) {
        if scratch.items.is_empty() {
            let mut reply = Reply::new(self.out.take(), self.protocol);
            write(self, &mut reply);
            self.out = reply.into_buffer();
        } else {
            let start = scratch.ready.len();
            let mut reply = Reply::new(std::mem::take(&mut scratch.ready), self.protocol);
            write(self, &mut reply);
            scratch.ready = reply.into_buffer().into_bytes();
            scratch.items.push(Item::Ready(start..scratch.ready.len()));
        }
    }

    /// Runs a unit without writes.
    async fn read(&mut self, buffer: &[u8], decoder: &Decoder, scratch: &Scratch) -> io::Result<()> {
        let items = scratch.items.as_slice();
        if let Err(error) = self.barrier().await {
            self.refuse(scratch, items, &error);
            return Ok(());
        }
        let shared = self.shared.clone();
        let mut done = 0;
        while done < items.len() {
            let rest = &items[done..];
            let db = rest.iter().find_map(Item::db).unwrap_or(self.db);
            let (mark, protocol, mut out) = (self.out.len(), self.protocol, self.out.take());
            let read = |view: &View<'_>| {
                out.truncate(mark);
                let mut reply = Reply::new(out.take(), protocol);
                let ran = read_some(view, buffer, decoder, scratch, rest, &mut reply);
                out = reply.into_buffer();
                ran
            };
            let result = shared.router.read_behind_barrier(self.read_level, db, read).await;
            self.out = out;
            match result {
                Ok(ran) => done += ran,
                Err(error) => {
                    self.out.truncate(mark);
                    self.refuse(scratch, rest, &error);
                    return Ok(());
                }
            }
            if self.out.len() > FLUSH_BYTES && !self.is_hidden && done < items.len() {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Answers each of `items` with an error that means "not applied".
    fn refuse(&mut self, scratch: &Scratch, items: &[Item], error: &Error) {
        self.reply(|reply| {
            for item in items {
                match item {
                    Item::Ready(range) => reply.raw(&scratch.ready[range.clone()]),
                    _ => reply.error(error),
                }
            }
        });
    }

    /// Whether a command goes through the log.
    fn writes(&self, run: Dispatch) -> bool {
        match run {
            Dispatch::Write => true,
            Dispatch::Exec => self.queue.as_ref().is_some_and(Queue::needs_log),
            _ => false,
        }
    }

    /// Sends a unit with writes through the log; in several proposals if it does not fit one.
    async fn propose(&mut self, buffer: &[u8], decoder: &Decoder, scratch: &mut Scratch) -> io::Result<()> {
        let Scratch { items, ready, bytes, .. } = scratch;
        bytes.clear();
        let mut steps = Vec::with_capacity(items.len());
        for item in items.iter() {
            let start = bytes.len();
            match item {
                Item::Ready(range) => match steps.last_mut() {
                    Some(Step::Ready(before)) => before.extend_from_slice(&ready[range.clone()]),
                    _ => steps.push(Step::Ready(ready[range.clone()].to_vec())),
                },
                Item::Read { request, db, .. } => {
                    let mut read = Vec::new();
                    proposal::put_call(&mut read, *db, &decoder.argv(buffer, *request));
                    steps.push(Step::Read(read));
                }
                Item::Write { request, db, row } => {
                    let argv = decoder.argv(buffer, *request);
                    let size = decoder.bytes_of(*request);
                    if size > UNIT_BYTES_MAX {
                        // It is moved into the log's batch, which needs some room more.
                        bytes.reserve_exact(size + CALL_ARGUMENT_BYTES * (argv.len() + 8));
                    }
                    if row.spec.takes_delay() {
                        let delay_ms = self.shared.settings.lock_delay_ms();
                        proposal::put_call(bytes, *db, &Connection::with_delay(row, &argv, delay_ms));
                    } else {
                        proposal::put_call(bytes, *db, &argv);
                    }
                    steps.push(Step::Write);
                }
                // A read-only transaction goes through the log here too: rare, and all its reads see one
                // state.
                Item::Transaction(queue) => {
                    queue.put(bytes);
                    steps.push(Step::Write);
                }
            }
            if start > 0 && self.prefix_bytes() + bytes.len() > self.shared.proposal_bytes_max {
                // The last item starts another proposal: if it is too large, only that one is refused.
                let last = steps.pop().into_iter().collect();
                self.through_log(Cow::Borrowed(&bytes[..start]), std::mem::replace(&mut steps, last)).await?;
                bytes.drain(..start);
            }
        }
        // A large proposal is given away; a small one's buffer is used again.
        let bytes = if bytes.len() > UNIT_BYTES_MAX {
            Cow::Owned(std::mem::take(bytes))
        } else {
            Cow::Borrowed(&bytes[..])
        };
        self.through_log(bytes, steps).await.map(drop)
    }

    /// Proposes, and waits for the replies, which are appended to `out`. Returns what has become of the last write.
    pub(super) async fn through_log(&mut self, bytes: Cow<'_, [u8]>, steps: Vec<Step>) -> io::Result<Fate> {
        if self.unconfirmed.is_empty() && self.in_session.is_none() {
            return self.through_log_alone(bytes, steps).await;
        }
        self.through_log_with_prefix(&bytes, steps).await
    }

    /// As `through_log`, without a prefix.
    pub(super) async fn through_log_alone(
        &mut self,
        bytes: Cow<'_, [u8]>,
        steps: Vec<Step>,
    ) -> io::Result<Fate> {
        let (done, replies) = oneshot::channel();
        let pipeline = Pipeline {
            steps,
            protocol: self.protocol,
            chance: fastrand::u64(..),
            replies: self.out.take(),
            done,
        };
        self.shared.router.propose(bytes, pipeline);
        // Without an answer the node is stopping and the outcome is unknown, as when the connection breaks.
        let answer = replies.await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))?;
        self.out = answer.replies;
        Ok(answer.fate)
    }
}

impl Item {
    /// The database of the item; None if any will do.
    fn db(&self) -> Option<u32> {
        match self {
            Item::Read { db, .. } | Item::Write { db, .. } => Some(*db),
            Item::Ready(_) | Item::Transaction(_) => None,
        }
    }
}

impl Scratch {
    fn clear(&mut self) {
        self.items.clear();
        self.ready.clear();
        self.tally.clear();
        for buffer in [&mut self.bytes, &mut self.ready] {
            if buffer.capacity() > UNIT_BYTES_MAX {
                *buffer = Vec::new();
            }
        }
    }

    /// Whether there are reads, and nothing that must go through the log.
    fn has_only_reads(&self) -> bool {
        !self.items.is_empty() && !self.has_write()
    }

    fn has_write(&self) -> bool {
        self.items.iter().any(|item| match item {
            Item::Write { .. } => true,
            Item::Transaction(queue) => queue.needs_log(),
            Item::Ready(_) | Item::Read { .. } => false,
        })
    }

    fn count(&mut self, row: &'static Row) {
        match self.tally.iter_mut().find(|(other, _)| std::ptr::eq(*other, row)) {
            Some((_, count)) => *count += 1,
            None => self.tally.push((row, 1)),
        }
    }

    fn record(&self, stats: &Stats, elapsed: Duration) {
        for (row, count) in &self.tally {
            stats.of(row).record(*count, elapsed);
        }
    }

    /// Finds a request's row and checks its arity.
    fn resolve(
        &mut self,
        stats: &Stats,
        buffer: &[u8],
        decoder: &Decoder,
        request: RequestSpans,
    ) -> Resolved {
        let name = decoder.name(buffer, request);
        let mut row = match &self.last {
            Some((row, last)) if last == name => *row,
            _ => match table::command(name) {
                Some(row) => {
                    self.last = Some((row, name.to_vec()));
                    row
                }
                None if is_http(name) => return Resolved::Http,
                None => return Resolved::Refused(unknown_command(&decoder.argv(buffer, request))),
            },
        };
        if !row.subcommands.is_empty() && request.len() > 1 {
            let name = decoder.argv(buffer, request)[1];
            row = match table::subcommand(row, name) {
                Some(row) => row,
                None => return Resolved::Refused(unknown_subcommand(row, name)),
            };
        }
        match row.run {
            Some(run) if row.spec.arity_fits(request.len()) => Resolved::Row(row, run),
            _ => {
                stats.of(row).reject();
                let text = Error::Arity(row.name.as_str().into()).to_string();
                match row.run {
                    Some(Dispatch::Exec) => {
                        let why = text.trim_start_matches("ERR ");
                        let text = format!("EXECABORT Transaction discarded because of: {why}");
                        Resolved::Aborted(text.into_bytes())
                    }
                    _ => Resolved::Refused(text.into_bytes()),
                }
            }
        }
    }
}

/// Whether a command's name looks like the beginning of an HTTP request; Redis checks the same.
fn is_http(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"POST") || name.eq_ignore_ascii_case(b"Host:")
}

/// Runs a function of the connection; its error becomes the reply.
pub(super) fn call(connection: &mut Connection, function: VerbFn, argv: &[&[u8]], reply: &mut Reply) {
    if let Err(error) = function(connection, &Args::new(argv), reply) {
        reply.error(&error);
    }
}

/// Runs items on one view, all of its database, until the replies are large. Returns how many were run.
fn read_some(
    view: &View<'_>,
    buffer: &[u8],
    decoder: &Decoder,
    scratch: &Scratch,
    items: &[Item],
    reply: &mut Reply,
) -> usize {
    let mut ran = 0;
    for item in items {
        if item.db().is_some_and(|db| db != view.db()) || ran > 0 && reply.buffer().len() > FLUSH_BYTES {
            break;
        }
        match item {
            Item::Ready(range) => reply.raw(&scratch.ready[range.clone()]),
            Item::Read { request, spec, .. } => {
                let argv = decoder.argv(buffer, *request);
                view.begin_request();
                Call::of(spec, &argv).read_or_error(view, reply);
            }
            Item::Transaction(queue) => {
                view.begin_request();
                queue.read(view, reply);
            }
            Item::Write { .. } => unreachable!("a unit with a write goes through the log"),
        }
        ran += 1;
    }
    ran
}
