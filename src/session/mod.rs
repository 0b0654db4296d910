//! One connection: read what has arrived, run it unit by unit (`pipeline.rs`), answer with one write.
//!
//! A session is one task and owns all its state. It waits in few places only: for bytes to arrive, for the
//! barrier of its reads, for its writes to be applied, for what a command waits for, and for the client to take its
//! replies; while it waits for any of these it reads nothing, so that a client that does not read its replies stops
//! itself. While it waits for bytes it also sends what its client is to be told unasked (`push.rs`).

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
    error::Error,
    glob,
    resp::{Protocol, Reply, request::Decoder},
    router::Router,
    wake::{Confirmation, Wakes},
};

mod client;
pub mod clients;
mod command;
mod config;
mod connection;
pub mod consistency;
mod feed;
mod info;
mod lease;
mod observe;
mod once;
mod pipeline;
mod presence;
mod push;
mod room;
mod server;
pub mod settings;
pub mod stats;
pub mod stream;
pub mod table;
mod transaction;
mod waiting;

pub use info::{cpu_seconds, resident_bytes, role_name};
pub use waiting::{reply_outcome, wait_time};

use clients::{Client, Clients, Identity};
use settings::Settings;
use stats::Stats;
use transaction::{Queue, WatchedKeys};

/// The Redis version whose commands and replies this server follows; clients gate features by it.
pub const REDIS_VERSION: &str = "7.4.0";

/// What a connection's buffers shrink to when nothing is in them.
const IDLE_BYTES: usize = 4 << 10;

/// The room that a connection's buffer grows to while more arrives than one read takes.
const READ_BYTES_MAX: usize = 256 << 10;
/// Buffers above this are given back when they are empty.
const KEPT_BYTES_MAX: usize = 64 << 10;
/// Replies above this are sent before the next unit is run.
const FLUSH_BYTES: usize = 256 << 10;

/// What all connections of a node share.
pub struct Shared {
    /// Where requests go.
    pub router: Router,
    /// Parameters and limits.
    pub settings: Settings,
    /// Who waits in the log.
    pub wakes: Arc<Wakes>,
    /// All connections.
    pub clients: Clients,
    /// What was counted.
    pub stats: Stats,
    /// When the process began to serve.
    pub started: Instant,
    /// The same by the wall clock.
    pub started_at: SystemTime,
    /// 40 hex digits, another at each start.
    pub run_id: String,
    /// Where this node listens for Redis clients.
    pub resp_port: u16,
    /// Where its peers reach this node.
    pub peer_address: String,
    /// The largest proposal that the log takes.
    pub proposal_bytes_max: usize,
    /// Whether the node is about to stop: what has no end of its own ends.
    pub stopping: watch::Receiver<bool>,
}

/// Which replies a client wants to see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Replies {
    #[default]
    On,
    Off,
    /// Not that of the next command.
    SkipNext,
}

/// One connection's state.
///
/// Invariants:
/// - `out` holds the replies, in order, of all that was executed and not yet sent.
/// - `identity` in `client` says the same as the fields here.
pub struct Session {
    shared: Arc<Shared>,
    client: Arc<Client>,
    protocol: Protocol,
    db: u32,
    /// What reads promise.
    read_level: ReadLevel,
    /// Reads wait until the entry at this index is applied here; 0 when it is.
    read_after: u64,
    replies: Replies,
    /// The client does not see the replies of the unit under way.
    is_hidden: bool,
    /// Commands since MULTI.
    queue: Option<Queue>,
    watched: WatchedKeys,
    /// Grants of which the log may not know yet that the client was told.
    unconfirmed: Vec<Arc<Confirmation>>,
    /// The session that the client is in: its database and key.
    in_session: Option<(u32, Vec<u8>)>,
    /// Leases that live as long as the connection.
    bound: lease::Bindings,
    pushes: push::Pushes,
    /// Whose turn it is when both bytes have arrived and something is to be pushed.
    pushes_come_first: bool,
    out: Vec<u8>,
    /// Nothing more is executed; what is in `out` is sent.
    closing: bool,
    /// Reused from unit to unit.
    scratch: pipeline::Scratch,
}

/// Serves a connection until it ends.
pub async fn serve(shared: Arc<Shared>, client: Arc<Client>, mut reader: impl AsyncRead + Unpin) {
    let mut session = Session::new(shared, client);
    // An error of the socket has no one to be told to: the client is gone.
    let _ = session.serve(&mut reader).await;
}

impl Drop for Session {
    fn drop(&mut self) {
        // What its leases leave behind is to be said before a node that stops takes it for gone.
        self.bound.clear();
        self.shared.clients.leave(self.client.id);
    }
}

impl Session {
    fn new(shared: Arc<Shared>, client: Arc<Client>) -> Session {
        let read_level = shared.settings.read_level();
        let session = Session {
            shared,
            client,
            protocol: Protocol::Resp2,
            db: 0,
            read_level,
            read_after: 0,
            replies: Replies::On,
            is_hidden: false,
            queue: None,
            watched: WatchedKeys::new(),
            unconfirmed: Vec::new(),
            in_session: None,
            bound: lease::Bindings::default(),
            pushes: push::Pushes::default(),
            pushes_come_first: false,
            out: Vec::new(),
            closing: false,
            scratch: pipeline::Scratch::default(),
        };
        session.identify(|identity| identity.readonly = read_level == ReadLevel::Stale);
        session
    }

    async fn serve(&mut self, reader: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(IDLE_BYTES);
        let mut decoder = Decoder::default();
        while self.goes_on() {
            if buffer.len() == buffer.capacity() {
                // What arrives faster than it fits gets more room, up to what is needed for one argument.
                buffer.reserve(buffer.len().clamp(IDLE_BYTES, 16 << 20));
            }
            let count = self.next_bytes(reader, &mut buffer).await?;
            if count == 0 {
                break;
            }
            let was_filled = buffer.len() == buffer.capacity();
            self.shared.stats.bytes_in.fetch_add(count as u64, Relaxed);
            self.client.touch();
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
            if buffer.len() > self.shared.settings.query_buffer_bytes_max() {
                self.shared.stats.query_limit_disconnections.fetch_add(1, Relaxed);
                break;
            }
            if was_filled && buffer.capacity() < READ_BYTES_MAX {
                // More is waiting: the next read takes more of it at once.
                buffer.reserve((2 * buffer.capacity()).min(READ_BYTES_MAX) - buffer.len());
            }
            if buffer.is_empty() && buffer.capacity() > KEPT_BYTES_MAX {
                buffer = Vec::with_capacity(IDLE_BYTES);
            }
        }
        Ok(())
    }

    /// Whether what else the client has sent is to be executed.
    fn goes_on(&self) -> bool {
        !self.closing && !self.client.is_killed()
    }

    /// Reads what has arrived, and sends meanwhile what is to be pushed.
    async fn next_bytes(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        buffer: &mut Vec<u8>,
    ) -> io::Result<usize> {
        while !self.pushes.is_empty() {
            // In turns: neither can keep the other away.
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

    /// Sends all replies.
    async fn flush(&mut self) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        if self.out.len() > self.shared.settings.output_buffer_bytes_max() {
            self.shared.stats.output_limit_disconnections.fetch_add(1, Relaxed);
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.shared.stats.bytes_out.fetch_add(self.out.len() as u64, Relaxed);
        let stream = self.client.stream();
        let mut rest = self.out.as_slice();
        loop {
            match stream.try_write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.client.reply_bytes.store(rest.len(), Relaxed);
                    // A client that takes nothing is idle, whatever else it waits for.
                    let was_busy = self.client.is_busy.swap(false, Relaxed);
                    self.client.touch();
                    stream.writable().await?;
                    self.client.is_busy.store(was_busy, Relaxed);
                }
                Err(error) => return Err(error),
            }
            if rest.is_empty() {
                break;
            }
        }
        self.client.reply_bytes.store(0, Relaxed);
        self.out.clear();
        if self.out.capacity() > KEPT_BYTES_MAX {
            self.out = Vec::new();
        }
        Ok(())
    }

    /// Writes to the end of the pending replies.
    fn reply<R>(&mut self, write: impl FnOnce(&mut Reply) -> R) -> R {
        let mut reply = Reply::new(std::mem::take(&mut self.out), self.protocol);
        let result = write(&mut reply);
        self.out = reply.into_buffer();
        result
    }

    /// Changes what CLIENT LIST shows of this client.
    fn identify(&self, change: impl FnOnce(&mut Identity)) {
        change(&mut self.client.identity.lock());
    }
}

/// A container's HELP, as Redis lays it out.
fn help(reply: &mut Reply, container: &str, lines: &[&str]) {
    reply.array(lines.len() + 3);
    reply.simple(&format!("{container} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"));
    for line in lines {
        reply.simple(line);
    }
    reply.simple("HELP");
    reply.simple("    Prints this help.");
}

/// Whether a name fits a pattern, whatever the case.
fn fits(pattern: &[u8], name: &str) -> bool {
    glob::matches(&pattern.to_ascii_lowercase(), name.as_bytes())
}
