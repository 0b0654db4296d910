//! All connections of this node: who they are, and a handle to hang up. A session tells what changes; it is
//! never asked.
//!
//! Hanging up is a shutdown of the socket: the session's own read or write then ends, wherever it stands, and
//! it costs nothing while nobody does it.

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

/// What a client told about itself, and what its session is at.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Identity {
    pub name: Vec<u8>,
    pub lib_name: Vec<u8>,
    pub lib_ver: Vec<u8>,
    pub db: u32,
    pub resp3: bool,
    pub readonly: bool,
    /// It listens for messages, so silence is no idleness.
    pub is_subscribed: bool,
    pub no_evict: bool,
    pub no_touch: bool,
    /// The number of queued commands, when a transaction is open.
    pub queued: Option<usize>,
    /// The number of watched keys.
    pub watched: usize,
}

/// How CLIENT UNBLOCK ends a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unblock {
    /// As if its time were over.
    Timeout,
    /// With an error.
    Error,
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    /// Never used again by this process.
    pub id: u64,
    /// The other side.
    pub addr: SocketAddr,
    /// This side.
    pub local_addr: SocketAddr,
    /// The socket's number, for CLIENT LIST.
    pub fd: i32,
    /// When it was accepted.
    pub since: Instant,
    /// Milliseconds after `since` when bytes came or went, or a command ended.
    active_ms: AtomicU64,
    /// The last command's row.
    pub last_row: AtomicUsize,
    /// Bytes that have arrived and were not yet executed.
    pub query_bytes: AtomicUsize,
    /// Bytes of replies that were not yet sent.
    pub reply_bytes: AtomicUsize,
    /// What the client told.
    pub identity: Mutex<Identity>,
    /// Nothing more is executed for it, and the session ends.
    killed: AtomicBool,
    /// It executes something, so silence is no idleness.
    pub(super) is_busy: AtomicBool,
    /// Its leases that live as long as the connection: while there is one, silence is no idleness.
    pub(super) leases: AtomicUsize,
    /// How long its machine may be silent before the connection counts as broken; None for the system's own measure.
    silence: Mutex<Option<Duration>>,
    /// Taken by CLIENT UNBLOCK while a command waits.
    pub unblock: Mutex<Option<oneshot::Sender<Unblock>>>,
    stream: Stream,
}

impl Client {
    /// The connection, to write to.
    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Ends the connection at once; replies on their way are lost.
    pub fn hang_up(&self) {
        self.kill();
        self.stream.shutdown(Shutdown::Both);
    }

    /// Has nothing more executed for it; what it is to be told is still sent.
    pub(super) fn kill(&self) {
        self.killed.store(true, Relaxed);
    }

    /// Whether nothing more is to be executed for it.
    pub(super) fn is_killed(&self) -> bool {
        self.killed.load(Relaxed)
    }

    /// Notes that it did something, or something was done for it.
    pub(super) fn touch(&self) {
        self.active_ms.store(self.since.elapsed().as_millis() as u64, Relaxed);
    }

    /// Whether it did nothing for so long, and nothing explains that.
    pub fn is_idle_for(&self, ms: u64) -> bool {
        self.idle_ms() > ms
            && !self.is_busy.load(Relaxed)
            && self.leases.load(Relaxed) == 0
            && !self.identity.lock().is_subscribed
    }

    /// Says how long its machine may be silent.
    pub(super) fn expect_signs(&self, silence: Option<Duration>) {
        let mut present = self.silence.lock();
        if *present != silence {
            *present = silence;
            self.stream.expect_signs(silence);
        }
    }

    /// Ends the connection when what has arrived by now is answered.
    pub fn finish(&self) {
        self.stream.shutdown(Shutdown::Read);
    }

    /// Milliseconds since it did something.
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

/// All connections.
#[derive(Debug, Default)]
pub struct Clients {
    last_id: AtomicU64,
    by_id: Mutex<BTreeMap<u64, Arc<Client>>>,
}

impl Clients {
    /// Enters a connection. An error means that it is gone already.
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

    /// Removes a connection that ended.
    pub fn leave(&self, id: u64) {
        self.by_id.lock().remove(&id);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_id.lock().len()
    }

    /// How many wait in a command.
    pub fn waiting(&self) -> usize {
        self.by_id.lock().values().filter(|client| client.unblock.lock().is_some()).count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, oldest first.
    pub fn all(&self) -> Vec<Arc<Client>> {
        self.by_id.lock().values().cloned().collect()
    }
}
