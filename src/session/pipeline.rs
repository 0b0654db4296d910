//! Runs what a client has sent, in units. A unit is a stretch of a pipeline that costs one wait: either reads
//! only, behind one barrier, or writes and reads that ride through the log together, each read executed at its
//! position. Never one wait per command.
//!
//! Requests are classified in their order, and what a command changes in the session (SELECT, MULTI, the
//! queue) changes at that moment; so commands whose effect or reply depends on earlier replies end the unit
//! before them.

use std::{
    io,
    ops::Range,
    time::{Duration, Instant},
};

use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::{
    FLUSH_BYTES, Replies, Session,
    consistency::is_linearizable,
    table::{self, Row, Run, SessionFn},
    transaction::Queue,
};
use crate::{
    args::Args,
    commands::ReadFn,
    error::Error,
    proposal::{self, Argv, Pipeline, Step},
    resp::{
        Reply,
        request::{Decoder, Request},
    },
    router::LATE_READS_MAX,
    store::View,
};

/// The most commands in a unit.
const UNIT_COMMANDS_MAX: usize = 1024;
/// A unit takes no further command when its arguments have this size.
const UNIT_BYTES_MAX: usize = 1 << 20;

/// What a session reuses from unit to unit.
#[derive(Default)]
pub(super) struct Scratch {
    items: Vec<Item>,
    /// Replies that are known, at the items' ranges.
    ready: Vec<u8>,
    /// The proposal.
    bytes: Vec<u8>,
    /// Rows of the unit's commands and how often they stand in it.
    tally: SmallVec<[(&'static Row, u64); 4]>,
    /// The row of the last command: most pipelines repeat one.
    last: Option<(&'static Row, Vec<u8>)>,
}

/// One command of a unit.
enum Item {
    /// Its reply, in `Scratch::ready`.
    Ready(Range<usize>),
    Read {
        request: Request,
        db: u32,
        run: ReadFn,
    },
    Write {
        request: Request,
        db: u32,
        row: &'static Row,
    },
    /// EXEC.
    Transaction(Box<Queue>),
}

/// What the classification of a request leads to.
enum Class {
    /// It is in the unit.
    Taken,
    /// It belongs into the next unit.
    Next,
    /// It must be executed by itself.
    Alone(&'static Row),
}

/// A request as it was resolved.
enum Resolved {
    Row(&'static Row, Run),
    /// An error, complete with its prefix.
    Refused(Vec<u8>),
    /// EXEC with arguments, with the error: the transaction is over.
    Aborted(Vec<u8>),
    /// A browser speaks: somebody's page may be writing to a server on this machine.
    Http,
}

impl Session {
    /// Runs all complete requests.
    pub(super) async fn run(&mut self, buffer: &[u8], decoder: &Decoder) -> io::Result<()> {
        let requests = decoder.requests();
        let mut next = 0;
        while next < requests.len() && self.goes_on() {
            let mut scratch = std::mem::take(&mut self.scratch);
            let result = self.unit(buffer, decoder, &requests[next..], &mut scratch).await;
            self.scratch = scratch;
            next += result?;
            if self.out.len() > FLUSH_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Runs the first of `requests`. Returns how many.
    async fn unit(
        &mut self,
        buffer: &[u8],
        decoder: &Decoder,
        requests: &[Request],
        scratch: &mut Scratch,
    ) -> io::Result<usize> {
        let started = Instant::now();
        let (hidden, skips) = (self.replies != Replies::On, self.replies == Replies::SkipNext);
        self.is_hidden = hidden;
        let mut mark = self.out.len();
        if skips {
            self.replies = Replies::On;
        }
        let count_max = if skips { 1 } else { UNIT_COMMANDS_MAX };
        scratch.clear();
        let (mut count, mut bytes, mut writes_next) = (0, 0, false);
        while count < requests.len().min(count_max) && bytes < UNIT_BYTES_MAX && !self.closing {
            let request = requests[count];
            match self.classify(buffer, decoder, request, scratch) {
                Class::Taken => {
                    count += 1;
                    bytes += decoder.bytes_of(request);
                }
                Class::Alone(row) if count == 0 => {
                    if matches!(row.run, Some(Run::Wait(_) | Run::Write)) {
                        // It may take long, and what came before it is answered.
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
            // It was killed by somebody who relies on it.
            self.closing = true;
            return Ok(count);
        }
        if scratch.has_write() {
            self.propose(buffer, decoder, scratch).await?;
        } else if !scratch.items.is_empty() {
            self.read(buffer, decoder, scratch).await?;
        }
        scratch.record(started.elapsed());
        self.shared.stats.commands.fetch_add(count as u64, std::sync::atomic::Ordering::Relaxed);
        // CLIENT REPLY ON is answered.
        if hidden && (skips || self.replies != Replies::On) {
            self.out.truncate(mark);
        } else if writes_next {
            // It may take long.
            self.flush().await?;
        }
        Ok(count)
    }

    fn classify(
        &mut self,
        buffer: &[u8],
        decoder: &Decoder,
        request: Request,
        scratch: &mut Scratch,
    ) -> Class {
        let (row, run) = match scratch.resolve(buffer, decoder, request) {
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
        if self.queue.is_some() && !row.in_transaction {
            scratch.count(row);
            let queued = self.enqueue(row, run, &argv());
            self.ready(scratch, |_, reply| match queued {
                Ok(()) => reply.simple("QUEUED"),
                Err(error) => reply.error(&error),
            });
            return Class::Taken;
        }
        if self.writes(run) && self.reads_are_local() && scratch.has_only_reads() {
            // They are answered also when nothing can be written.
            return Class::Next;
        }
        match run {
            Run::Read(run) => scratch.items.push(Item::Read { request, db: self.db, run }),
            Run::Write if row.may_wait && Session::asks_to_wait(row, &argv()) => return Class::Alone(row),
            Run::Write => scratch.items.push(Item::Write { request, db: self.db, row }),
            Run::Now(function) => {
                let argv = argv();
                self.ready(scratch, |session, reply| call(session, function, &argv, reply));
            }
            Run::Exec => match self.take_transaction().and_then(|queue| self.admit(queue)) {
                Ok(queue) if queue.is_trivial() => self.ready(scratch, |_, reply| reply.array(0)),
                Ok(queue) if queue.has_session_call() => {
                    // Its replies are put together by hand, so it goes alone.
                    self.queue = Some(queue);
                    return Class::Alone(row);
                }
                Ok(queue) => scratch.items.push(Item::Transaction(Box::new(queue))),
                Err(error) => self.ready(scratch, |_, reply| reply.error(&error)),
            },
            Run::Alone(_) | Run::Wait(_) => return Class::Alone(row),
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

    /// Runs a command all by itself. Everything before it is done and its replies are in `out`.
    async fn alone(&mut self, row: &'static Row, argv: &Argv<'_>) -> io::Result<()> {
        let started = Instant::now();
        match row.run {
            Some(Run::Alone(function)) => {
                let mut reply = Reply::new(std::mem::take(&mut self.out), self.protocol);
                call(self, function, argv, &mut reply);
                self.out = reply.into_buffer();
            }
            Some(Run::Wait(waiting)) => self.wait(waiting, argv).await,
            Some(Run::Exec) => self.exec_with_session_calls().await,
            Some(Run::Write) => {
                let shared = self.shared.clone();
                let argv = Session::with_delay(argv, shared.settings.lock_delay_ms());
                self.wait_for_grant(&argv).await?;
            }
            _ => {}
        }
        row.counters.record(1, started.elapsed());
        Ok(())
    }

    /// Keeps a reply that is known, at its place.
    fn ready(&mut self, scratch: &mut Scratch, write: impl FnOnce(&mut Session, &mut Reply)) {
        if scratch.items.is_empty() {
            let mut reply = Reply::new(std::mem::take(&mut self.out), self.protocol);
            write(self, &mut reply);
            self.out = reply.into_buffer();
        } else {
            let start = scratch.ready.len();
            let mut reply = Reply::new(std::mem::take(&mut scratch.ready), self.protocol);
            write(self, &mut reply);
            scratch.ready = reply.into_buffer();
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
        let (mut done, mut late_reads) = (0, 0);
        while done < items.len() {
            let mark = self.out.len();
            let (ran, late) = self.read_some(buffer, decoder, scratch, &items[done..]);
            if late && is_linearizable(self.read_level) && late_reads < LATE_READS_MAX {
                self.out.truncate(mark);
                if let Err(error) = self.shared.router.tick().await {
                    self.refuse(scratch, &items[done..], &error);
                    return Ok(());
                }
                late_reads += 1;
                continue;
            }
            done += ran;
            if self.out.len() > FLUSH_BYTES && !self.is_hidden && done < items.len() {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Reads under one lock: all the items of one database, until the replies are large. Returns how many were
    /// run, and whether they met a key that is late.
    fn read_some(
        &mut self,
        buffer: &[u8],
        decoder: &Decoder,
        scratch: &Scratch,
        items: &[Item],
    ) -> (usize, bool) {
        let db = items.iter().find_map(Item::db).unwrap_or(self.db);
        let mut reply = Reply::new(std::mem::take(&mut self.out), self.protocol);
        let result = self.shared.router.read(db, |view| {
            let mut ran = 0;
            for item in items {
                if item.db().is_some_and(|other| other != db) || ran > 0 && reply.buffer().len() > FLUSH_BYTES
                {
                    break;
                }
                match item {
                    Item::Ready(range) => reply.raw(&scratch.ready[range.clone()]),
                    Item::Read { request, run, .. } => {
                        read_one(view, *run, &decoder.argv(buffer, *request), &mut reply);
                    }
                    Item::Transaction(queue) => queue.read(view, &mut reply),
                    Item::Write { .. } => unreachable!("a unit with a write goes through the log"),
                }
                ran += 1;
            }
            (ran, view.late.get())
        });
        self.out = reply.into_buffer();
        result
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
    fn writes(&self, run: Run) -> bool {
        match run {
            Run::Write => true,
            Run::Exec => self.queue.as_ref().is_some_and(Queue::needs_log),
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
                    if row.may_wait {
                        let delay_ms = self.shared.settings.lock_delay_ms();
                        proposal::put_call(bytes, *db, &Session::with_delay(&argv, delay_ms));
                    } else {
                        proposal::put_call(bytes, *db, &argv);
                    }
                    steps.push(Step::Write);
                }
                // One that only reads rides in the log too: rare, and its reads are then one moment's.
                Item::Transaction(queue) => {
                    queue.put(bytes);
                    steps.push(Step::Write);
                }
            }
            if start > 0 && self.prefix_bytes() + bytes.len() > self.shared.proposal_bytes_max {
                // The last one begins another proposal: what is too large is refused alone.
                let last = steps.pop().into_iter().collect();
                self.through_log(&bytes[..start], std::mem::replace(&mut steps, last)).await?;
                bytes.drain(..start);
            }
        }
        self.through_log(bytes, steps).await
    }

    /// Proposes, and waits for the replies, which come to the end of `out`.
    pub(super) async fn through_log(&mut self, bytes: &[u8], steps: Vec<Step>) -> io::Result<()> {
        if self.unconfirmed.is_empty() && self.in_session.is_none() {
            return self.through_log_alone(bytes, steps).await;
        }
        self.through_log_with_prefix(bytes, steps).await
    }

    /// As `through_log`, with nothing else.
    pub(super) async fn through_log_alone(&mut self, bytes: &[u8], steps: Vec<Step>) -> io::Result<()> {
        let (done, replies) = oneshot::channel();
        let pipeline = Pipeline {
            steps,
            protocol: self.protocol,
            chance: fastrand::u64(..),
            replies: std::mem::take(&mut self.out),
            done,
        };
        self.shared.router.propose(bytes, pipeline);
        // Without an answer the node is stopping, and the outcome is unknown: as when the connection breaks.
        self.out = replies.await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))?;
        Ok(())
    }
}

impl Item {
    /// The database that it is about; None when any view will do.
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

    /// Whether there are reads, and nothing that goes through the log.
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

    fn record(&self, elapsed: Duration) {
        for (row, count) in &self.tally {
            row.counters.record(*count, elapsed);
        }
    }

    /// Finds a request's row and checks its arity.
    fn resolve(&mut self, buffer: &[u8], decoder: &Decoder, request: Request) -> Resolved {
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
                row.counters.reject();
                let text = Error::Arity(row.name.as_str().into()).to_string();
                match row.run {
                    Some(Run::Exec) => {
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

/// Whether a command's name is the beginning of an HTTP request, as Redis knows it.
fn is_http(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"POST") || name.eq_ignore_ascii_case(b"Host:")
}

/// Runs a function of the session; its error becomes the reply.
pub(super) fn call(session: &mut Session, function: SessionFn, argv: &[&[u8]], reply: &mut Reply) {
    if let Err(error) = function(session, &Args::new(argv), reply) {
        reply.error(&error);
    }
}

/// Runs a read command; its error becomes the reply.
pub(super) fn read_one(view: &View<'_>, run: ReadFn, argv: &Argv<'_>, reply: &mut Reply) {
    if let Err(error) = run(view, &Args::new(argv), reply) {
        reply.error(&error);
    }
}

/// An error whose text is not all UTF-8.
fn error_line(reply: &mut Reply, text: &[u8]) {
    let line: Vec<u8> =
        text.iter().map(|&byte| if byte == b'\r' || byte == b'\n' { b' ' } else { byte }).collect();
    reply.raw(b"-");
    reply.raw(&line);
    reply.raw(b"\r\n");
}

/// As Redis cuts what it quotes: at `max` bytes, and where C's string ends.
fn quoted(text: &[u8], max: usize) -> &[u8] {
    let text = &text[..text.len().min(max)];
    &text[..text.iter().position(|&byte| byte == 0).unwrap_or(text.len())]
}

fn unknown_command(argv: &[&[u8]]) -> Vec<u8> {
    let mut shown = Vec::new();
    for argument in &argv[1..] {
        if shown.len() >= 128 {
            break;
        }
        let room = 128 - shown.len();
        shown.push(b'\'');
        shown.extend_from_slice(quoted(argument, room));
        shown.extend_from_slice(b"' ");
    }
    [b"ERR unknown command '", quoted(argv[0], 128), b"', with args beginning with: ", &shown].concat()
}

fn unknown_subcommand(container: &Row, name: &[u8]) -> Vec<u8> {
    let help = format!("'. Try {} HELP.", container.spec.name);
    [b"ERR unknown subcommand '", quoted(name, 128), help.as_bytes()].concat()
}
