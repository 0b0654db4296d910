//! A node's own connections to one peer, made when first needed, and again after an error: one for what may
//! be huge, and one for the rest, so that no heartbeat, vote or read waits behind a value of 100 MB.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWriteExt},
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    frame::{self, Kind, Outgoing},
    handshake::Hello,
    transport::{Connection, Transport},
};
use crate::{GroupId, NodeId, sparse::Sparse};

/// What a peer connection needs to know of its node.
pub(crate) trait Greeter: Send + Sync + 'static {
    /// This node's greeting to `to`.
    fn hello(&self, to: NodeId) -> Hello;
    /// Judges the other side's answer, which may be a refusal, and learns from it. Err is the reason not to
    /// talk to it.
    fn greeted<'a>(&'a self, answer: &'a Hello) -> BoxFuture<'a, Result<(), String>>;
    /// Changes when a peer that was welcome may not be any more.
    fn judgement(&self) -> u64;
    /// What to tell a peer whose disk is an older copy, in a second greeting, before the connection is closed.
    fn parting(&self, answer: &Hello) -> Option<Hello>;
    /// Why not to talk to the sender of this greeting.
    fn objection(&self, theirs: &Hello) -> Option<String>;
    /// How long the other side took to answer the greeting.
    fn measured(&self, id: NodeId, round_trip: Duration);
}

/// How long making a connection may take, greetings included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection on which an answer is due is asked whether it is alive after this much silence, ...
const PING_AFTER: Duration = Duration::from_millis(500);

/// ... and is closed when nothing comes for this long after that.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// One peer.
pub(crate) struct Peer {
    remote: Arc<Remote>,
    lanes: [Arc<tokio::sync::Mutex<Option<Greeted>>>; 2],
    next_id: AtomicU64,
}

/// How a peer is reached.
struct Remote {
    id: NodeId,
    /// The addresses to try, the likeliest first.
    places: Mutex<Vec<String>>,
    transport: Arc<dyn Transport>,
    greeter: Arc<dyn Greeter>,
    reports: Mutex<Reports>,
}

/// What was logged, so that a peer that stays away does not fill the log.
#[derive(Default)]
struct Reports {
    errors: Sparse<String>,
    is_away: bool,
}

/// A connection, and the grounds on which it was made.
struct Greeted {
    link: Link,
    answer: Hello,
    judgement: u64,
}

/// An established connection. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Link {
    frames: mpsc::UnboundedSender<Outgoing>,
    waiting: Arc<Mutex<Waiting>>,
    closed: Arc<AtomicBool>,
}

/// A call under way. When it ends, even because its caller gave it up, its answer is no longer expected.
struct Expected<'a> {
    link: &'a Link,
    id: u64,
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.link.forget(self.id);
    }
}

/// Those who wait for answers. Emptied when the connection closes, which ends every wait.
#[derive(Default)]
struct Waiting {
    calls: BTreeMap<u64, oneshot::Sender<Bytes>>,
    streams: BTreeMap<u64, mpsc::UnboundedSender<Bytes>>,
    /// Whether something was asked since anything was last heard, including by calls that were given up.
    is_owed: bool,
    closed: bool,
}

/// Why a call had no answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The request was not sent.
    NotSent(io::Error),
    /// It may have arrived.
    Lost(String),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CallError::NotSent(error) => write!(f, "not connected: {error}"),
            CallError::Lost(why) => f.write_str(why),
        }
    }
}

impl Peer {
    pub(crate) fn new(
        id: NodeId,
        address: String,
        transport: Arc<dyn Transport>,
        greeter: Arc<dyn Greeter>,
    ) -> Peer {
        let (places, reports) = (Mutex::new(vec![address]), Mutex::default());
        let remote = Arc::new(Remote { id, places, transport, greeter, reports });
        Peer { remote, lanes: Default::default(), next_id: AtomicU64::new(1) }
    }

    pub(crate) fn id(&self) -> NodeId {
        self.remote.id
    }

    /// Sets the addresses to try, the likeliest first; repetitions are left out. Called for each message, so
    /// it allocates only when something has changed.
    pub(crate) fn set_places(&self, mut places: [Option<&str>; 3]) {
        for at in 1..places.len() {
            if places[..at].contains(&places[at]) {
                places[at] = None;
            }
        }
        let mut present = self.remote.places.lock();
        if !places.iter().flatten().eq(present.iter()) {
            *present = places.into_iter().flatten().map(str::to_owned).collect();
        }
    }

    /// The connection for small messages, made now if there is none.
    pub(crate) async fn link(&self) -> io::Result<Link> {
        self.lane(false).await
    }

    /// Makes a connection only to exchange greetings.
    pub(crate) async fn greet_anew(&self) -> io::Result<()> {
        let greeted = self.link().await.map(|_| ());
        // Whoever connects holds it, and what it makes then is of no use.
        if let Ok(mut lane) = self.lanes[0].try_lock() {
            *lane = None;
        }
        greeted
    }

    /// The connection for what may be huge, made now if there is none.
    pub(crate) async fn bulk_link(&self) -> io::Result<Link> {
        self.lane(true).await
    }

    async fn lane(&self, is_bulk: bool) -> io::Result<Link> {
        if !is_bulk && let Ok(mut bulk) = self.lanes[1].try_lock() {
            // A stream asks for its connection once; small calls come again and again.
            self.present(&mut bulk);
        }
        let mut link = self.lanes[usize::from(is_bulk)].clone().lock_owned().await;
        if let Some(present) = self.present(&mut link) {
            return Ok(present);
        }
        let remote = self.remote.clone();
        // It continues when the caller gives up: a request may have less time than a distant peer's greeting
        // takes.
        let connecting = tokio::spawn(async move {
            let new = remote.connect(is_bulk).await?;
            Ok(link.insert(new).link.clone())
        });
        connecting.await.unwrap_or_else(|_| Err(closed()))
    }

    /// The present connection, if the peer is still welcome.
    fn present(&self, lane: &mut Option<Greeted>) -> Option<Link> {
        let greeted = lane.as_mut()?;
        let judgement = self.remote.greeter.judgement();
        let is_welcome =
            greeted.judgement == judgement || self.remote.greeter.objection(&greeted.answer).is_none();
        if is_welcome && !greeted.link.closed.load(Ordering::Acquire) {
            greeted.judgement = judgement;
            return Some(greeted.link.clone());
        }
        // Calls under way are still answered; nothing else uses it.
        greeted.link.end_streams();
        *lane = None;
        None
    }

    /// Asks and waits for the answer, for `timeout` at most, connecting included.
    pub(crate) async fn call(
        &self,
        kind: Kind,
        group: GroupId,
        body: &[u8],
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        self.call_once_connected(kind, group, body, timeout, || true).await
    }

    /// As [`Peer::call`]; once connected, `begin` decides whether to send at all.
    pub(crate) async fn call_once_connected(
        &self,
        kind: Kind,
        group: GroupId,
        body: &[u8],
        timeout: Duration,
        begin: impl FnOnce() -> bool,
    ) -> Result<Bytes, CallError> {
        let link = tokio::time::timeout(timeout, self.lane(kind.may_be_huge()))
            .await
            .unwrap_or_else(|_| Err(timed_out()))
            .map_err(CallError::NotSent)?;
        if !begin() {
            return Err(CallError::NotSent(io::Error::other("nobody waits for it any more")));
        }
        let id = self.next_id();
        let (sender, answer) = oneshot::channel();
        link.expect_answer(id, sender).map_err(CallError::NotSent)?;
        let _expected = Expected { link: &link, id };
        link.send(frame::encode(kind, id, group, body)).map_err(CallError::NotSent)?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(CallError::Lost("the connection was lost".into())),
            Err(_) => Err(CallError::Lost("no answer in time".into())),
        }
    }

    /// An id for a call or stream, unique on this peer.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

impl Remote {
    /// A new connection. Errors are logged.
    async fn connect(&self, is_bulk: bool) -> io::Result<Greeted> {
        let places = self.places.lock().clone();
        let (mut connected, mut tried) = (Err(io::Error::other("its address is not known")), String::new());
        for place in places {
            let greeted = tokio::time::timeout(CONNECT_TIMEOUT, self.greet(&place, is_bulk)).await;
            connected = greeted.unwrap_or_else(|_| Err(timed_out()));
            tried = place;
            if connected.is_ok() {
                break;
            }
        }
        let mut reports = self.reports.lock();
        match &connected {
            Ok(_) => {
                if std::mem::take(&mut reports.is_away) {
                    tracing::info!(peer = self.id, "connected to the peer again");
                }
            }
            Err(error) => {
                if let Some(times) = reports.errors.say(error.to_string()) {
                    tracing::warn!(peer = self.id, address = tried, %error, times, "cannot reach the peer");
                    reports.is_away = true;
                }
            }
        }
        connected
    }

    async fn greet(&self, address: &str, is_bulk: bool) -> io::Result<Greeted> {
        let judgement = self.greeter.judgement();
        let mut connection = self.transport.connect(address).await?;
        let asked = Instant::now();
        connection
            .write_all(&frame::encode(Kind::Hello, 0, 0, &self.greeter.hello(self.id).encode()))
            .await?;
        let mut buffer = BytesMut::new();
        let answer = frame::read_greeting(&mut connection, &mut buffer).await?;
        let round_trip = asked.elapsed();
        let answer = (answer.kind == Kind::Hello).then(|| Hello::decode(&answer.body));
        let Some(Ok(answer)) = answer else {
            return Err(io::Error::other(format!("{address} does not speak the peer protocol")));
        };
        answer
            .check()
            .map_err(|why| io::Error::other(format!("{address} answers what no node says: {why}")))?;
        if !answer.refusal.is_empty() {
            self.greeter.greeted(&answer).await.map_err(io::Error::other)?;
        }
        if answer.node_id != self.id {
            return Err(io::Error::other(format!(
                "{address} is node {}, not node {}",
                answer.node_id, self.id
            )));
        }
        if let Err(why) = self.greeter.greeted(&answer).await {
            if let Some(said) = self.greeter.parting(&answer) {
                // It may know nobody whom it could ask. An error means that it has gone.
                let _ = connection.write_all(&frame::encode(Kind::Hello, 0, 0, &said.encode())).await;
                let _ = connection.flush().await;
            }
            return Err(io::Error::other(why));
        }
        self.greeter.measured(self.id, round_trip);
        Ok(Greeted { link: Link::start(connection, buffer, is_bulk), answer, judgement })
    }
}

impl Link {
    fn start(connection: Box<dyn Connection>, buffer: BytesMut, is_bulk: bool) -> Link {
        let (reader, writer) = tokio::io::split(connection);
        let (frames, outgoing) = mpsc::unbounded_channel();
        // The reading side must not keep a sender of frames, or the writing side would never end.
        let pings = (!is_bulk).then(|| frames.downgrade());
        let link = Link { frames, waiting: Arc::default(), closed: Arc::default() };
        let writing = tokio::spawn(frame::write_all(writer, outgoing));
        let (waiting, closed) = (link.waiting.clone(), link.closed.clone());
        tokio::spawn(async move {
            read_answers(reader, buffer, &waiting, pings).await;
            closed.store(true, Ordering::Release);
            waiting.lock().close();
            writing.abort();
        });
        link
    }

    /// Sends a frame, in the order of the calls.
    pub(crate) fn send(&self, frame: impl Into<Outgoing>) -> io::Result<()> {
        self.frames.send(frame.into()).map_err(|_| closed())
    }

    fn expect_answer(&self, id: u64, sender: oneshot::Sender<Bytes>) -> io::Result<()> {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(closed());
        }
        waiting.calls.insert(id, sender);
        waiting.is_owed = true;
        Ok(())
    }

    /// The answers to a stream's frames arrive on the receiver, which ends with the connection.
    pub(crate) fn expect_stream(&self, id: u64) -> io::Result<mpsc::UnboundedReceiver<Bytes>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(closed());
        }
        waiting.streams.insert(id, sender);
        Ok(receiver)
    }

    fn end_streams(&self) {
        self.waiting.lock().streams.clear();
    }

    /// Stops expecting answers for this id.
    pub(crate) fn forget(&self, id: u64) {
        let mut waiting = self.waiting.lock();
        waiting.calls.remove(&id);
        waiting.streams.remove(&id);
    }
}

/// Hands answers to those who wait, until the connection is lost or, where `pings` can be sent, silent
/// although an answer is due; it is due even if those who asked have given up, as heartbeats do before the
/// next one is due. TCP alone would wait for a quarter of an hour for a peer that vanished silently, and
/// resume with one that has come back only after as long as it was away.
async fn read_answers(
    mut reader: impl AsyncRead + Unpin,
    mut buffer: BytesMut,
    waiting: &Mutex<Waiting>,
    pings: Option<mpsc::WeakUnboundedSender<Outgoing>>,
) {
    let mut pinged: Option<Instant> = None;
    loop {
        let read = tokio::select! {
            biased;
            read = frame::read(&mut reader, &mut buffer) => Some(read),
            () = tokio::time::sleep(PING_AFTER), if pings.is_some() => None,
        };
        match read {
            Some(Ok(answer)) => {
                waiting.lock().answer(answer);
                pinged = None;
            }
            Some(Err(_)) => return,
            None if !waiting.lock().is_owed => {}
            None => match pinged {
                Some(since) if since.elapsed() >= SILENCE_MAX => return,
                Some(_) => {}
                None => {
                    pinged = Some(Instant::now());
                    // Without senders the connection is being closed.
                    let Some(frames) = pings.as_ref().and_then(mpsc::WeakUnboundedSender::upgrade) else {
                        return;
                    };
                    let _ = frames.send(frame::encode(Kind::Ping, 0, 0, &[]).into());
                }
            },
        }
    }
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "connecting took too long")
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the connection was closed")
}

impl Waiting {
    /// A receiver that is gone no longer waits for it.
    fn answer(&mut self, answer: frame::Frame) {
        if answer.kind == Kind::Stream {
            if let Some(stream) = self.streams.get(&answer.id) {
                let _ = stream.send(answer.body);
            }
        } else if let Some(call) = self.calls.remove(&answer.id) {
            let _ = call.send(answer.body);
        }
        self.is_owed = !self.calls.is_empty();
    }

    fn close(&mut self) {
        self.closed = true;
        self.calls.clear();
        self.streams.clear();
    }
}

#[cfg(test)]
#[path = "peer_tests.rs"]
mod tests;
