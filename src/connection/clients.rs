//! All connections of this node: their identities, and a handle to disconnect each. A connection reports its
//! changes; it is never queried.
//!
//! Disconnecting shuts down the socket: the connection's own read or write then fails, wherever the connection is,
//! and until then it costs nothing.

use std::{
    collections::BTreeMap,
    net::{Shutdown, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{stream::Stream, table};

/// What a client told about itself, and the state of its connection.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Identity {
    pub name: Vec<u8>,
    pub lib_name: Vec<u8>,
    pub lib_ver: Vec<u8>,
    pub db: u32,
    pub resp3: bool,
    pub readonly: bool,
    /// It receives pushed messages, so silence does not make it idle.
    pub is_subscribed: bool,
    pub no_evict: bool,
    pub no_touch: bool,
    /// The number of queued commands, when a transaction is open.
    pub queued: Option<usize>,
    /// The number of watched keys.
    pub watched: usize,
}

/// How CLIENT UNBLOCK ends a blocking command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unblock {
    /// As if its timeout had passed.
    Timeout,
    /// With an error.
    Error,
}

/// One connection.
///
/// Invariant: the connection updates `identity` whenever its own fields change.
#[derive(Debug)]
pub struct Client {
    /// Never used again by this process.
    pub id: u64,
    /// The remote address.
    pub addr: SocketAddr,
    /// The local address.
    pub local_addr: SocketAddr,
    /// The socket's file descriptor, for CLIENT LIST.
    pub fd: i32,
    /// When it was accepted.
    pub since: Instant,
    /// When bytes last came or went or a command ended, in milliseconds after `since`.
    active_ms: AtomicU64,
    /// The table index of the last command's row.
    pub last_row: AtomicUsize,
    /// Bytes that have arrived and are not executed yet.
    pub query_bytes: AtomicUsize,
    /// Bytes of replies that are not sent yet.
    pub reply_bytes: AtomicUsize,
    /// What of its buffers counts among those of all clients.
    held_bytes: AtomicUsize,
    /// What CLIENT LIST shows of the connection.
    pub identity: Mutex<Identity>,
    /// No more of its commands are executed, and the connection ends.
    killed: AtomicBool,
    /// It is executing a command, so silence does not make it idle.
    pub(super) is_busy: AtomicBool,
    /// Leases bound to the connection: while there are any, silence does not make it idle.
    pub(super) leases: AtomicUsize,
    /// How long the client's host may be silent before the connection counts as broken; None for the default.
    silence: Mutex<Option<Duration>>,
    /// Taken by CLIENT UNBLOCK while a command blocks.
    pub unblock: Mutex<Option<oneshot::Sender<Unblock>>>,
    stream: Stream,
}

impl Client {
    /// The connection, for writing.
    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Ends the connection at once; replies in transit are lost.
    pub fn hang_up(&self) {
        self.kill();
        self.stream.shutdown(Shutdown::Both);
    }

    /// Executes no more of its commands; pending replies are still sent.
    pub(super) fn kill(&self) {
        self.killed.store(true, Relaxed);
    }

    /// Whether no more of its commands may be executed.
    pub(super) fn is_killed(&self) -> bool {
        self.killed.load(Relaxed)
    }

    /// Records activity of the client.
    pub(super) fn touch(&self) {
        self.active_ms.store(self.since.elapsed().as_millis() as u64, Relaxed);
    }

    /// Whether it has been inactive for longer than this, without a reason to be.
    pub fn is_idle_for(&self, ms: u64) -> bool {
        self.idle_ms() > ms
            && !self.is_busy.load(Relaxed)
            && self.leases.load(Relaxed) == 0
            && !self.identity.lock().is_subscribed
    }

    /// Sets how long its host may be silent.
    pub(super) fn expect_signs(&self, silence: Option<Duration>) {
        let mut present = self.silence.lock();
        if *present != silence {
            *present = silence;
            self.stream.expect_signs(silence);
        }
    }

    /// Ends the connection once what has arrived by now is answered.
    pub fn finish(&self) {
        self.stream.shutdown(Shutdown::Read);
    }

    /// Milliseconds since its last activity.
    fn idle_ms(&self) -> u64 {
        (self.since.elapsed().as_millis() as u64).saturating_sub(self.active_ms.load(Relaxed))
    }

    /// CLIENT LIST's line, with its newline.
    pub fn describe(&self, out: &mut Vec<u8>) {
        use std::io::Write;
        let identity = self.identity.lock().clone();
        let flags = match () {
            () if self.unblock.lock().is_some() => "b",
            () if identity.queued.is_some() => "x",
            () if identity.is_subscribed => "P",
            () if identity.readonly => "r",
            () if identity.no_evict => "e",
            () => "N",
        };
        let query = self.query_bytes.load(Relaxed);
        let replies = self.reply_bytes.load(Relaxed);
        let command = table::row(self.last_row.load(Relaxed)).map_or("NULL", |row| &row.name);
        // Writing to a Vec cannot fail.
        let _ = writeln!(
            out,
            "id={} addr={} laddr={} fd={} name={} age={} idle={} flags={flags} db={} sub=0 psub=0 ssub=0 \
             multi={} qbuf={query} qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl={replies} oll=0 omem=0 \
             tot-mem={} events=r cmd={command} user=default redir=-1 resp={} lib-name={} lib-ver={}",
            self.id,
            self.addr,
            self.local_addr,
            self.fd,
            String::from_utf8_lossy(&identity.name),
            self.since.elapsed().as_secs(),
            self.idle_ms() / 1000,
            identity.db,
            identity.queued.map_or(-1, |count| count as i64),
            query + replies,
            if identity.resp3 { 3 } else { 2 },
            String::from_utf8_lossy(&identity.lib_name),
            String::from_utf8_lossy(&identity.lib_ver),
        );
    }
}

/// Buffers up to this size are not counted.
const SMALL_BYTES: usize = 64 << 10;

/// All connections of this node.
#[derive(Debug, Default)]
pub struct Clients {
    last_id: AtomicU64,
    by_id: Mutex<BTreeMap<u64, Arc<Client>>>,
    /// The large buffers of all together.
    held_bytes: AtomicUsize,
}

impl Clients {
    /// Registers a connection. An error means that it is closed already.
    pub fn enter(&self, stream: Stream) -> std::io::Result<Arc<Client>> {
        let (addr, local_addr) = stream.addresses()?;
        let client = Arc::new(Client {
            id: self.last_id.fetch_add(1, Relaxed) + 1,
            addr,
            local_addr,
            fd: stream.fd(),
            since: Instant::now(),
            active_ms: AtomicU64::new(0),
            last_row: AtomicUsize::new(usize::MAX),
            query_bytes: AtomicUsize::new(0),
            reply_bytes: AtomicUsize::new(0),
            held_bytes: AtomicUsize::new(0),
            identity: Mutex::default(),
            killed: AtomicBool::new(false),
            is_busy: AtomicBool::new(false),
            leases: AtomicUsize::new(0),
            silence: Mutex::default(),
            unblock: Mutex::default(),
            stream,
        });
        self.by_id.lock().insert(client.id, client.clone());
        Ok(client)
    }

    /// Removes a closed connection.
    pub fn leave(&self, id: u64) {
        let gone = self.by_id.lock().remove(&id);
        gone.into_iter().for_each(|client| _ = self.hold(&client, 0));
    }

    /// Counts a connection's buffers, which now take that many bytes, and returns what those of all take. Small ones
    /// do not count: there is a limit to the number of connections.
    pub(super) fn hold(&self, client: &Client, bytes: usize) -> usize {
        let bytes = if bytes > SMALL_BYTES { bytes } else { 0 };
        if bytes == client.held_bytes.load(Relaxed) {
            return self.held_bytes();
        }
        let before = client.held_bytes.swap(bytes, Relaxed);
        if bytes >= before {
            self.held_bytes.fetch_add(bytes - before, Relaxed) + (bytes - before)
        } else {
            self.held_bytes.fetch_sub(before - bytes, Relaxed) - (before - bytes)
        }
    }

    /// The connection with the largest buffers.
    pub(super) fn largest(&self) -> Option<Arc<Client>> {
        let by_id = self.by_id.lock();
        by_id.values().max_by_key(|client| client.held_bytes.load(Relaxed)).cloned()
    }

    /// What the large buffers of all connections take.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes.load(Relaxed)
    }

    /// The number of connections.
    pub fn len(&self) -> usize {
        self.by_id.lock().len()
    }

    /// The number of clients blocked in a command.
    pub fn waiting(&self) -> usize {
        self.by_id.lock().values().filter(|client| client.unblock.lock().is_some()).count()
    }

    /// Whether there are no connections.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One of them.
    pub(super) fn get(&self, id: u64) -> Option<Arc<Client>> {
        self.by_id.lock().get(&id).cloned()
    }

    /// All of them, oldest first.
    pub fn all(&self) -> Vec<Arc<Client>> {
        self.by_id.lock().values().cloned().collect()
    }
}
