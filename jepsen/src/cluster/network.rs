//! TCP proxies in front of every node: one for its peers, one for clients. Bytes from a node A to a node B
//! pass the link (A, B), in whichever of the connections between them they flow, so that one direction alone
//! can be blocked; and within one direction only A's calls, on connections that A made, or only its answers,
//! on connections that B made. Clients are node 0.
//!
//! All nodes know one address of each peer, so a proxy must find out which node has connected: the kernel
//! knows which process has the other end of a loopback connection (sock_diag, /proc/PID/fd).

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{SocketAddr, SocketAddrV4},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::Runtime,
    sync::watch,
    task::AbortHandle,
    time::Instant,
};

use crate::cluster::socket;

/// The node number of all clients together.
pub(crate) const CLIENTS: u64 = 0;

/// How often and with which pauses a connection's owner is looked up: its entry may appear slightly late.
const LOOKUPS: usize = 5;
const LOOKUP_PAUSE: Duration = Duration::from_millis(5);
/// The bytes in flight over a distance, per connection and direction: beyond that the sender waits.
const ON_THE_WAY_MAX: usize = 16 << 20;
/// The same for a port in use.
const BIND_ATTEMPTS: usize = 50;
const BIND_PAUSE: Duration = Duration::from_millis(20);

/// What happens to the bytes from one node to another.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    /// By how many faults everything is blocked; what was sent meanwhile arrives late, as if retransmitted by
    /// TCP.
    pub(crate) blocked: u32,
    /// The same on connections that the sender made.
    pub(crate) calls_blocked: u32,
    /// The same on connections that the receiver made.
    pub(crate) answers_blocked: u32,
    /// By how many faults new connections are closed at once.
    pub(crate) refused: u32,
    /// The delay of each piece, minimum and maximum; zero for none.
    pub(crate) delay_ms: (u64, u64),
    /// How often all connections of the link were closed.
    pub(crate) cuts: u64,
}

/// Who made a connection, from the sender's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The sender: it sends calls.
    Calls,
    /// The receiver: it is sent answers.
    Answers,
}

impl Weather {
    fn is_blocked(&self, side: Side) -> bool {
        let of_side = match side {
            Side::Calls => self.calls_blocked,
            Side::Answers => self.answers_blocked,
        };
        self.blocked + of_side > 0
    }

    /// By how many faults connections made by this side are blocked.
    pub(crate) fn blocks(&mut self, side: Side) -> &mut u32 {
        match side {
            Side::Calls => &mut self.calls_blocked,
            Side::Answers => &mut self.answers_blocked,
        }
    }
}

/// One direction between two nodes, and what its weather has done.
#[derive(Default)]
pub(crate) struct Link {
    weather: watch::Sender<Weather>,
    held: AtomicU64,
    closed: AtomicU64,
    delayed: AtomicU64,
}

/// The effects of the weather on links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Toll {
    /// Pieces and connection attempts that waited for a block to end.
    pub(crate) held: u64,
    /// Connections closed or refused.
    pub(crate) closed: u64,
    /// Pieces that were delayed.
    pub(crate) delayed: u64,
}

type Links = HashMap<(u64, u64), Arc<Link>>;

/// All links, and the runtime that moves the bytes.
pub(crate) struct Network {
    shared: Arc<Shared>,
    runtime: Runtime,
}

/// Listens until it is dropped; its connections stay open.
pub(crate) struct Proxy(AbortHandle);

impl Drop for Proxy {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Default)]
struct Shared {
    links: Mutex<Links>,
    /// The node of each process.
    processes: Mutex<HashMap<u32, u64>>,
    /// The base latency from one node to another, whatever the weather.
    one_way: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Network {
    /// A network with this latency between nodes.
    pub(crate) fn new(one_way: Duration) -> Result<Network> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("cannot start the proxies' runtime")?;
        let shared = Arc::new(Shared { one_way, ..Shared::default() });
        Ok(Network { shared, runtime })
    }

    /// Assigns the connections of process `pid` to `node` from now on.
    pub(crate) fn is_process_of(&self, pid: u32, node: u64) {
        lock(&self.shared.processes).insert(pid, node);
    }

    pub(crate) fn has_ended(&self, pid: u32) {
        lock(&self.shared.processes).remove(&pid);
    }

    /// Opens `here` in front of `node`'s address, for its peers or for clients, until the proxy is dropped:
    /// where no process listens, the kernel must refuse connections.
    pub(crate) fn open(
        &self,
        node: u64,
        here: SocketAddr,
        address: SocketAddr,
        is_for_peers: bool,
    ) -> Result<Proxy> {
        // The previous listener on this address may still be closing.
        let mut listener = self.runtime.block_on(TcpListener::bind(here));
        for _ in 0..BIND_ATTEMPTS {
            if listener.is_ok() {
                break;
            }
            std::thread::sleep(BIND_PAUSE);
            listener = self.runtime.block_on(TcpListener::bind(here));
        }
        let listener = listener.context("cannot open a proxy's port")?;
        let serving = serve(self.shared.clone(), listener, node, address, is_for_peers);
        Ok(Proxy(self.runtime.spawn(serving).abort_handle()))
    }

    /// Changes the weather on links.
    pub(crate) fn change(&self, links: &[(u64, u64)], change: impl Fn(&mut Weather)) {
        for (from, to) in links {
            self.shared.link(*from, *to).weather.send_modify(&change);
        }
    }

    /// The effects of the weather on links so far.
    pub(crate) fn toll(&self, links: &[(u64, u64)]) -> Toll {
        links.iter().fold(Toll::default(), |toll, (from, to)| {
            let link = self.shared.link(*from, *to);
            Toll {
                held: toll.held + link.held.load(Ordering::Relaxed),
                closed: toll.closed + link.closed.load(Ordering::Relaxed),
                delayed: toll.delayed + link.delayed.load(Ordering::Relaxed),
            }
        })
    }

    /// Resets the weather of all links.
    pub(crate) fn heal(&self) {
        for link in lock(&self.shared.links).values() {
            link.weather
                .send_modify(|weather| *weather = Weather { cuts: weather.cuts, ..Weather::default() });
        }
    }
}

impl Shared {
    fn link(&self, from: u64, to: u64) -> Arc<Link> {
        lock(&self.links).entry((from, to)).or_default().clone()
    }

    /// The node whose process has the other end of a connection.
    fn owner(&self, other: SocketAddrV4, here: SocketAddrV4) -> Option<u64> {
        let inode = socket::inode(other, here)?;
        let wanted = format!("socket:[{inode}]");
        let processes: Vec<(u32, u64)> = lock(&self.processes).iter().map(|(pid, id)| (*pid, *id)).collect();
        let is_owner = |pid: u32| {
            let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            files
                .filter_map(|file| std::fs::read_link(file.path()).ok())
                .any(|target| target.to_str() == Some(&wanted))
        };
        processes.into_iter().find(|(pid, _)| is_owner(*pid)).map(|(_, node)| node)
    }
}

/// Accepts connections one at a time: a client that reconnects without a pause has to wait, and does not keep
/// this process busy looking up its owner.
async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    node: u64,
    address: SocketAddr,
    is_for_peers: bool,
) {
    loop {
        let Ok((stream, other)) = listener.accept().await else {
            tokio::time::sleep(LOOKUP_PAUSE).await;
            continue;
        };
        let from = if is_for_peers { owner_of(&shared, &stream, other).await } else { Some(CLIENTS) };
        // A process that has ended in the meantime needs no answer.
        let Some(from) = from else { continue };
        let (there, back) = (shared.link(from, node), shared.link(node, from));
        let one_way = if is_for_peers { shared.one_way } else { Duration::ZERO };
        if is_refused(&there) || is_refused(&back) {
            tokio::time::sleep(LOOKUP_PAUSE).await;
            continue;
        }
        tokio::spawn(async move {
            // An error is visible to both ends: the connection closes.
            let _ = carry(stream, address, one_way, there, back).await;
        });
    }
}

fn is_refused(link: &Link) -> bool {
    let is_refused = link.weather.borrow().refused > 0;
    link.closed.fetch_add(u64::from(is_refused), Ordering::Relaxed);
    is_refused
}

async fn owner_of(shared: &Arc<Shared>, stream: &TcpStream, other: SocketAddr) -> Option<u64> {
    let (SocketAddr::V4(other), SocketAddr::V4(here)) = (other, stream.local_addr().ok()?) else {
        return None;
    };
    for _ in 0..LOOKUPS {
        let lookup = shared.clone();
        if let Ok(Some(node)) = tokio::task::spawn_blocking(move || lookup.owner(other, here)).await {
            return Some(node);
        }
        tokio::time::sleep(LOOKUP_PAUSE).await;
    }
    None
}

/// Serves one connection. `there` is the link from the node that connected.
async fn carry(
    stream: TcpStream,
    address: SocketAddr,
    one_way: Duration,
    there: Arc<Link>,
    back: Arc<Link>,
) -> io::Result<()> {
    let (mut weather, mut weather_back) = (there.weather.subscribe(), back.weather.subscribe());
    // Neither a SYN nor its answer passes a block.
    for (weather, link, side) in
        [(&mut weather, &there, Side::Calls), (&mut weather_back, &back, Side::Answers)]
    {
        if weather.borrow().is_blocked(side) {
            link.held.fetch_add(1, Ordering::Relaxed);
            let _ = weather.wait_for(|weather| !weather.is_blocked(side)).await;
        }
    }
    let onward = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    onward.set_nodelay(true)?;
    let (from_here, to_here) = stream.into_split();
    let (from_there, to_there) = onward.into_split();
    tokio::select! {
        ended = pump(Way::new(from_here, one_way), to_there, &there, Side::Calls) => ended,
        ended = pump(Way::new(from_there, one_way), to_here, &back, Side::Answers) => ended,
    }
}

/// One direction of a connection, with a fixed latency.
struct Way {
    from: OwnedReadHalf,
    one_way: Duration,
    buffer: Vec<u8>,
    /// Each with its arrival time; an empty one is the end.
    pieces: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    has_ended: bool,
}

impl Way {
    fn new(from: OwnedReadHalf, one_way: Duration) -> Way {
        let (buffer, pieces) = (vec![0; 64 << 10], VecDeque::new());
        Way { from, one_way, buffer, pieces, bytes: 0, has_ended: false }
    }

    /// The next piece to arrive; an empty one at the end. Cancel safe.
    async fn next(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let due = self.pieces.front().map(|(due, _)| *due);
            let may_read = !self.has_ended && self.bytes < ON_THE_WAY_MAX;
            tokio::select! {
                biased;
                () = arrival(due), if due.is_some() => {
                    let (_, piece) = self.pieces.pop_front().unwrap_or((Instant::now(), Vec::new()));
                    self.bytes -= piece.len();
                    return Ok(piece);
                }
                read = self.from.read(&mut self.buffer), if may_read => {
                    let read = read?;
                    self.has_ended = read == 0;
                    self.bytes += read;
                    self.pieces.push_back((Instant::now() + self.one_way, self.buffer[..read].to_vec()));
                }
            }
        }
    }
}

/// Does not wait for a piece that is due: a timer takes at least a millisecond.
async fn arrival(due: Option<Instant>) {
    if let Some(due) = due.filter(|due| *due > Instant::now()) {
        tokio::time::sleep_until(due).await;
    }
}

async fn pump(mut way: Way, mut to: OwnedWriteHalf, link: &Link, side: Side) -> io::Result<()> {
    let mut weather = link.weather.subscribe();
    let cuts = weather.borrow().cuts;
    loop {
        let piece = tokio::select! {
            piece = way.next() => piece?,
            _ = weather.wait_for(|weather| weather.cuts != cuts) => {
                link.closed.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
        };
        if piece.is_empty() {
            return Ok(());
        }
        let (least, most) = weather.borrow().delay_ms;
        if most > 0 {
            link.delayed.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(fastrand::u64(least..=most))).await;
        }
        if weather.borrow().is_blocked(side) {
            link.held.fetch_add(1, Ordering::Relaxed);
            let through = weather.wait_for(|weather| !weather.is_blocked(side) || weather.cuts != cuts).await;
            if through.is_ok_and(|weather| weather.cuts != cuts) {
                link.closed.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
        }
        to.write_all(&piece).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// An echo server behind a proxy; this process is node 7.
    fn echo() -> (Network, Proxy, SocketAddr) {
        echo_at(Duration::ZERO)
    }

    fn echo_at(one_way: Duration) -> (Network, Proxy, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).is_ok() {
                        stream.write_all(&byte).unwrap();
                    }
                });
            }
        });
        let network = Network::new(one_way).unwrap();
        network.is_process_of(std::process::id(), 7);
        let here = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let proxy = network.open(3, here, address, true).unwrap();
        (network, proxy, here)
    }

    fn talk(stream: &mut TcpStream, ms: u64) -> io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_millis(ms)))?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    }

    #[test]
    fn each_direction_is_blocked_alone_and_what_was_held_arrives_later() {
        for link in [(7, 3), (3, 7)] {
            let (network, _proxy, address) = echo();
            let mut stream = TcpStream::connect(address).unwrap();
            talk(&mut stream, 5_000).unwrap();
            network.change(&[link], |weather| weather.blocked += 1);
            assert!(talk(&mut stream, 100).is_err());
            assert_eq!(network.toll(&[link]), Toll { held: 1, ..Toll::default() });
            assert_eq!(network.toll(&[(link.1, link.0)]), Toll::default());
            network.change(&[link], |weather| weather.blocked -= 1);
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            stream.read_exact(&mut [0]).unwrap();
        }
    }

    #[test]
    fn what_is_asked_and_what_is_answered_are_blocked_apart() {
        // This process made the connection, so it sends calls, and answers come back.
        for (link, calls, answers) in [((7, 3), 1, 0), ((3, 7), 0, 1), ((7, 3), 0, 1), ((3, 7), 1, 0)] {
            let (network, _proxy, address) = echo();
            let mut stream = TcpStream::connect(address).unwrap();
            talk(&mut stream, 5_000).unwrap();
            network.change(&[link], |weather| {
                (weather.calls_blocked, weather.answers_blocked) = (calls, answers);
            });
            let is_held = (link == (7, 3)) == (calls == 1);
            assert_eq!(talk(&mut stream, 200).is_err(), is_held, "{link:?}, {calls}, {answers}");
            network.heal();
            if is_held {
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                stream.read_exact(&mut [0]).unwrap();
            }
        }
    }

    #[test]
    fn over_a_distance_everything_takes_as_long_and_nothing_waits_for_what_was_sent_before() {
        let (_network, _proxy, address) = echo_at(Duration::from_millis(50));
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        let begun = std::time::Instant::now();
        for _ in 0..20 {
            stream.write_all(b"x").unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.read_exact(&mut [0; 20]).unwrap();
        let took = begun.elapsed();
        // The last piece was sent after 190 ms. Delayed one after the other, the pieces would take 2 s.
        assert!(took >= Duration::from_millis(290) && took < Duration::from_secs(1), "{took:?}");
    }

    #[test]
    fn connections_are_cut_and_refused() {
        let (network, _proxy, address) = echo();
        let mut stream = TcpStream::connect(address).unwrap();
        talk(&mut stream, 5_000).unwrap();
        network.change(&[(7, 3)], |weather| (weather.cuts, weather.refused) = (weather.cuts + 1, 1));
        assert!(talk(&mut stream, 5_000).is_err());
        assert!(talk(&mut TcpStream::connect(address).unwrap(), 5_000).is_err());
        assert!(network.toll(&[(7, 3)]).closed >= 2);
        network.heal();
        talk(&mut TcpStream::connect(address).unwrap(), 5_000).unwrap();
    }
}
