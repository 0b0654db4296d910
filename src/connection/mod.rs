//! One connection: reads what has arrived, runs it unit by unit (`pipeline.rs`), and answers with one write.
//!
//! A connection is one task and owns all its state. It waits in few places only: for bytes to arrive, for the
//! barrier of its reads, for its writes to be applied, in a blocking command, and for the client to read its
//! replies. While it waits in any but the first it reads nothing, so a client that does not read its replies
//! stops itself. While it waits for bytes it also sends pushed messages (`push.rs`).

use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Instant, SystemTime},
};

use kvorum_raft::ReadLevel;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::watch,
};

use crate::{
    args::Args,
    commands,
    error::Error,
    glob,
    resp::{Protocol, Replies, Reply, request::Decoder},
    router::Router,
    wake::{Confirmation, Wakes},
};

pub mod clients;
pub mod descriptors;
mod pipeline;
mod presence;
mod push;
mod refusal;
mod room;
pub mod settings;
pub mod stats;
pub mod stream;
pub mod table;
mod transaction;
mod verb;
pub mod verbs;
mod waiting;

pub use verbs::info::{cpu_seconds, resident_bytes, role_name};
pub use waiting::register;

use clients::{Client, Clients, Identity};
use settings::Settings;
use stats::Stats;
use transaction::{Queue, Watching};

/// The Redis version whose commands and replies this server follows; clients gate features by it.
pub const REDIS_VERSION: &str = "7.4.0";

/// What a connection's empty buffers shrink to.
const IDLE_BYTES: usize = 4 << 10;

/// How far a connection's buffer grows while more arrives than one read takes.
const READ_BYTES_MAX: usize = 256 << 10;
/// Empty buffers above this are freed.
const KEPT_BYTES_MAX: usize = 64 << 10;
/// Replies above this are sent before the next unit runs.
const FLUSH_BYTES: usize = 256 << 10;

/// A reply may become so large, whatever the others have.
const REPLY_BYTES_MIN: usize = 16 << 20;

/// What all connections of a node share.
pub struct Shared {
    /// Routes requests.
    pub router: Router,
    /// Parameters and limits.
    pub settings: Settings,
    /// The waits of this node's clients.
    pub wakes: Arc<Wakes>,
    /// All connections.
    pub clients: Clients,
    /// Counters.
    pub stats: Stats,
    /// When the process began to serve.
    pub started: Instant,
    /// The same moment by the wall clock.
    pub started_at: SystemTime,
    /// 40 hex digits, different at each start.
    pub run_id: String,
    /// Where this node listens for Redis clients.
    pub resp_port: u16,
    /// The address at which peers reach this node.
    pub peer_address: String,
    /// The largest proposal that the log takes.
    pub proposal_bytes_max: usize,
    /// Held while a digest is computed.
    pub digest_turn: tokio::sync::Mutex<()>,
    /// Whether the node is stopping: then unbounded operations end.
    pub stopping: watch::Receiver<bool>,
}

/// Which replies a client wants to see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ReplyMode {
    #[default]
    On,
    Off,
    /// All but that of the next command.
    SkipNext,
}

/// One connection's state.
///
/// Invariants:
/// - `out` holds the replies, in order, of everything executed and not yet sent.
/// - `identity` in `client` equals the corresponding fields here.
pub struct Connection {
    shared: Arc<Shared>,
    client: Arc<Client>,
    protocol: Protocol,
    db: u32,
    /// The consistency of reads.
    read_level: ReadLevel,
    /// Reads wait until the entry at this index is applied here; 0 once it is.
    read_after: u64,
    replies: ReplyMode,
    /// The replies of the current unit are hidden from the client.
    is_hidden: bool,
    /// The commands since MULTI.
    queue: Option<Queue>,
    watched: Watching,
    /// Grants that were delivered to the client, which the log may not know yet.
    unconfirmed: Vec<Arc<Confirmation>>,
    /// The client's exactly-once session: its database and key.
    in_session: Option<(u32, Vec<u8>)>,
    /// Leases bound to the connection.
    bound: verbs::lease::Bindings,
    pushes: push::Pushes,
    /// Which goes first when both bytes have arrived and a push is ready.
    pushes_come_first: bool,
    out: Replies,
    /// Nothing more is executed; what is in `out` is sent.
    closing: bool,
    /// Reused from unit to unit.
    scratch: pipeline::Scratch,
}

/// Serves a connection until it ends.
pub async fn serve(shared: Arc<Shared>, client: Arc<Client>, mut reader: impl AsyncRead + Unpin) {
    let mut connection = Connection::new(shared, client);
    // A socket error cannot be reported to anybody: the client is gone.
    let _ = connection.serve(&mut reader).await;
}

impl Drop for Connection {
    fn drop(&mut self) {
        // REVOKEs of its leases must be queued before a stopping node takes this client for gone.
        self.bound.clear();
        self.shared.clients.leave(self.client.id);
    }
}

impl Connection {
    fn new(shared: Arc<Shared>, client: Arc<Client>) -> Connection {
        let read_level = shared.settings.read_level();
        let out = Replies::within(shared.settings.output_buffer_bytes_max());
        let connection = Connection {
            shared,
            client,
            protocol: Protocol::Resp2,
            db: 0,
            read_level,
            read_after: 0,
            replies: ReplyMode::On,
            is_hidden: false,
            queue: None,
            watched: Watching::default(),
            unconfirmed: Vec::new(),
            in_session: None,
            bound: verbs::lease::Bindings::default(),
            pushes: push::Pushes::default(),
            pushes_come_first: false,
            out,
            closing: false,
            scratch: pipeline::Scratch::default(),
        };
        connection.identify(|identity| identity.readonly = read_level == ReadLevel::Stale);
        connection
    }

    async fn serve(&mut self, reader: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(IDLE_BYTES);
        let mut decoder = Decoder::default();
        while self.goes_on() {
            if buffer.len() == buffer.capacity() {
                reserve(&mut buffer, &decoder);
            }
            let count = self.next_bytes(reader, &mut buffer).await?;
            if count == 0 {
                break;
            }
            let was_filled = buffer.len() == buffer.capacity();
            if !self.hold(buffer.len()) {
                break;
            }
            self.shared.stats.bytes_in.fetch_add(count as u64, Relaxed);
            self.client.touch();
            self.out.limit(self.reply_bytes_max());
            let verdict = decoder.decode(&mut buffer, &self.shared.settings.limits());
            self.client.is_busy.store(true, Relaxed);
            self.run(&buffer, &decoder).await?;
            self.client.is_busy.store(false, Relaxed);
            if let Err(error) = verdict
                && self.goes_on()
            {
                self.shared.stats.protocol_errors.fetch_add(1, Relaxed);
                self.reply(|reply| reply.error(&Error::Other(error.to_string().into())));
                self.closing = true;
            }
            self.flush().await?;
            self.client.touch();
            let done = decoder.forget();
            buffer.drain(..done);
            self.client.query_bytes.store(buffer.len(), Relaxed);
            self.hold(buffer.len());
            if buffer.len() > self.shared.settings.query_buffer_bytes_max() {
                self.shared.stats.query_limit_disconnections.fetch_add(1, Relaxed);
                break;
            }
            if was_filled && buffer.capacity() < READ_BYTES_MAX {
                // More is waiting: let the next read take more of it at once.
                buffer.reserve((2 * buffer.capacity()).min(READ_BYTES_MAX) - buffer.len());
            }
            if buffer.is_empty() && buffer.capacity() > KEPT_BYTES_MAX {
                buffer = Vec::with_capacity(IDLE_BYTES);
            }
        }
        Ok(())
    }

    /// Counts the buffers of this connection, with so many bytes of commands. False if it has to end because those of
    /// all are too large together: then those with the largest are closed.
    fn hold(&self, query_bytes: usize) -> bool {
        let clients = &self.shared.clients;
        let queued = self.queue.as_ref().map_or(0, |queue| queue.bytes) + self.watched.bytes();
        let mut all = clients.hold(&self.client, query_bytes + queued + self.out.len());
        let Some(max) = self.shared.settings.clients_bytes_max() else { return true };
        let mut goes_on = true;
        while all > max
            && let Some(largest) = clients.largest()
        {
            // What it has counts no more, although it takes a moment to be free.
            all = clients.hold(&largest, 0);
            largest.hang_up();
            goes_on &= largest.id != self.client.id;
            self.shared.stats.evicted_clients.fetch_add(1, Relaxed);
            tracing::info!(
                client = largest.id,
                "closing the client with the largest buffers: maxmemory-clients is reached"
            );
        }
        goes_on
    }

    /// How large replies may grow.
    fn reply_bytes_max(&self) -> usize {
        let output = self.shared.settings.output_buffer_bytes_max();
        let left = |max: usize| max.saturating_sub(self.shared.clients.held_bytes()).max(REPLY_BYTES_MIN);
        self.shared.settings.clients_bytes_max().map_or(output, |max| output.min(left(max)))
    }

    /// Whether what else the client has sent is to be executed.
    fn goes_on(&self) -> bool {
        !self.closing && !self.out.is_over() && !self.client.is_killed()
    }

    /// Reads what has arrived, and sends meanwhile what is to be pushed.
    async fn next_bytes(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        buffer: &mut Vec<u8>,
    ) -> io::Result<usize> {
        while !self.pushes.is_empty() {
            // They alternate, so that neither can starve the other.
            self.pushes_come_first = !self.pushes_come_first;
            if self.pushes_come_first {
                tokio::select! {
                    biased;
                    () = self.pushes.ready() => self.push().await?,
                    count = reader.read_buf(buffer) => return count,
                }
            } else {
                tokio::select! {
                    biased;
                    count = reader.read_buf(buffer) => return count,
                    () = self.pushes.ready() => self.push().await?,
                }
            }
        }
        reader.read_buf(buffer).await
    }

    /// Sends all pending replies.
    async fn flush(&mut self) -> io::Result<()> {
        if self.out.is_over() {
            self.shared.stats.output_limit_disconnections.fetch_add(1, Relaxed);
            tracing::info!(
                client = self.client.id,
                "closing a client: its replies passed client-output-buffer-limit"
            );
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        if self.out.is_empty() {
            return Ok(());
        }
        self.shared.stats.bytes_out.fetch_add(self.out.len() as u64, Relaxed);
        let stream = self.client.stream();
        let mut sent = 0;
        while sent < self.out.len() {
            match stream.try_write(self.out.parts(sent)) {
                Ok(count) => sent = self.out.free_sent(sent + count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.client.reply_bytes.store(self.out.len() - sent, Relaxed);
                    if !self.hold(self.client.query_bytes.load(Relaxed)) {
                        return Err(io::ErrorKind::OutOfMemory.into());
                    }
                    // A client that does not read is idle, whatever else it waits for.
                    let was_busy = self.client.is_busy.swap(false, Relaxed);
                    self.client.touch();
                    stream.writable().await?;
                    self.client.is_busy.store(was_busy, Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        self.client.reply_bytes.store(0, Relaxed);
        self.out.clear(KEPT_BYTES_MAX);
        self.hold(self.client.query_bytes.load(Relaxed));
        Ok(())
    }

    /// Appends to the pending replies.
    fn reply<R>(&mut self, write: impl FnOnce(&mut Reply) -> R) -> R {
        let mut reply = Reply::new(self.out.take(), self.protocol);
        let result = write(&mut reply);
        self.out = reply.into_buffer();
        result
    }

    /// Changes what CLIENT LIST shows of this client.
    fn identify(&self, change: impl FnOnce(&mut Identity)) {
        change(&mut self.client.identity.lock());
    }
}

/// Makes room for more bytes. For a long argument there is room for four times of what has arrived, and no more than it
/// needs: whoever claims that it is long has to send it, and what has arrived is seldom copied.
fn reserve(buffer: &mut Vec<u8>, decoder: &Decoder) {
    match decoder.missing_bytes(buffer) {
        0 => buffer.reserve(buffer.len().clamp(IDLE_BYTES, 16 << 20)),
        missing => buffer.reserve_exact(missing.min((3 * buffer.len()).max(READ_BYTES_MAX))),
    }
}

/// Answers HELP of a container.
fn help(_: &mut Connection, args: &Args<'_>, reply: &mut Reply) -> crate::error::Result<()> {
    commands::help::help(args, reply)
}

/// Whether a name matches a pattern, ignoring case.
fn fits(pattern: &[u8], name: &str) -> bool {
    glob::matches(&pattern.to_ascii_lowercase(), name.as_bytes())
}
