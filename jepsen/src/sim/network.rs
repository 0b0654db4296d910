//! The simulated network: byte streams between nodes and from clients to nodes. Pieces take a random time,
//! plus the latency between nodes; each stream keeps its order, as TCP does, but streams overtake each other.
//! Ways are blocked separately by direction and by side of the connection: what is sent meanwhile is held,
//! and arrives late or never, and what two ways have held arrives at independent times. Single calls between
//! peers may arrive twice, the second time much later.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::{Ipv6Addr, SocketAddrV6},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::future::BoxFuture;
use kvorum_raft::{
    simulation::{Endpoint, NodeEnd, duplicable},
    transport::{Connection, Incoming, Listener, Transport},
};
use tokio::sync::mpsc;

/// The owner of an end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Node(u64),
    Client(usize),
}

/// Which side made a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    /// The sender's connections: votes, entries, requests.
    Calls,
    /// The receiver's connections: answers.
    Answers,
}

impl Side {
    pub(super) const BOTH: [Side; 2] = [Side::Calls, Side::Answers];
}

/// What flows from one place to another, on the connections made by one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Way {
    pub(super) from: Place,
    pub(super) to: Place,
    pub(super) side: Side,
}

/// The network of all nodes; each node's address contains its id.
const NETWORK: u128 = 0xfd00 << 112;

/// The address at which peers reach a node.
pub(super) fn address(node: u64) -> String {
    format!("[{}]:7379", Ipv6Addr::from(NETWORK | u128::from(node)))
}

fn node_of(address: &str) -> Option<u64> {
    let address: SocketAddrV6 = address.parse().ok()?;
    u64::try_from(address.ip().to_bits() & !NETWORK).ok()
}

/// The part of the network that nodes and clients access.
#[derive(Default)]
pub(super) struct Hub {
    dials: Vec<(Place, u64, Endpoint)>,
    listeners: BTreeMap<u64, mpsc::UnboundedSender<NodeEnd>>,
}

pub(super) type SharedHub = Arc<Mutex<Hub>>;

fn lock(hub: &SharedHub) -> MutexGuard<'_, Hub> {
    hub.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins a connection. Whether it succeeds shows at the first read.
pub(super) fn dial(hub: &SharedHub, from: Place, to: u64) -> NodeEnd {
    let (end, near) = Endpoint::new();
    lock(hub).dials.push((from, to, end));
    near
}

/// A node's network.
pub(super) struct Port {
    pub(super) node: u64,
    pub(super) hub: SharedHub,
}

impl Transport for Port {
    fn listen<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        let (sender, incoming) = mpsc::unbounded_channel();
        lock(&self.hub).listeners.insert(self.node, sender);
        let door = Door { node: self.node, incoming };
        Box::pin(async { Ok(Box::new(door) as Box<dyn Listener>) })
    }

    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        let near = node_of(address).map(|to| dial(&self.hub, Place::Node(self.node), to));
        Box::pin(async {
            let near = near.ok_or(io::ErrorKind::AddrNotAvailable)?;
            Ok(Box::new(near) as Box<dyn Connection>)
        })
    }
}

struct Door {
    node: u64,
    incoming: mpsc::UnboundedReceiver<NodeEnd>,
}

impl Listener for Door {
    fn local_address(&self) -> String {
        address(self.node)
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Incoming>> {
        Box::pin(async {
            match self.incoming.recv().await {
                Some(end) => Ok((Box::new(end) as Box<dyn Connection>, None)),
                None => std::future::pending().await,
            }
        })
    }
}

/// How much later a duplicate arrives at most, in milliseconds.
const AGAIN_MS_MAX: u64 = 2_000;
/// How long a way takes at most to deliver what it has held, in milliseconds.
const RELEASE_MS_MAX: u64 = 50;
/// The usual delay of pieces in milliseconds, and how many of a thousand take ten times as long.
const USUAL: Delay = Delay { on: None, max_ms: 2, late_permille: 2 };

/// The delay of pieces.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Delay {
    /// From where to where; None for everywhere.
    pub(super) on: Option<(Place, Place)>,
    pub(super) max_ms: u64,
    /// How many of a thousand pieces take ten times as long.
    pub(super) late_permille: u64,
}

/// One direction of a stream.
#[derive(Default)]
struct Lane {
    /// Each with its time of arrival, in milliseconds; None for the end.
    on_the_way: VecDeque<(u64, Option<Vec<u8>>)>,
    /// Duplicates of messages, each with its time of arrival.
    again: Vec<(u64, Vec<u8>)>,
    has_ended: bool,
}

impl Lane {
    /// Accepts what a node has written. Nothing overtakes earlier pieces.
    fn take(&mut self, end: &Endpoint, arrival: u64) {
        let arrival = self.on_the_way.back().map_or(arrival, |(last, _)| arrival.max(*last));
        let written = end.take_written();
        if !written.is_empty() {
            self.on_the_way.push_back((arrival, Some(written)));
        }
        if end.is_finished() && !self.has_ended {
            self.has_ended = true;
            self.on_the_way.push_back((arrival, None));
        }
    }

    /// Delivers what was held from now on, piece by piece, within a random time.
    fn release(&mut self, now: u64, chance: &mut fastrand::Rng) {
        let within = chance.u64(..=RELEASE_MS_MAX);
        let mut moments: Vec<u64> = self.on_the_way.iter().map(|_| now + chance.u64(..=within)).collect();
        moments.sort_unstable();
        for ((arrival, _), moment) in self.on_the_way.iter_mut().zip(moments) {
            *arrival = moment.max(*arrival);
        }
    }

    /// Duplicates a random message of the newest piece.
    fn double(&mut self, chance: &mut fastrand::Rng) {
        if let Some((arrival, Some(piece))) = self.on_the_way.back()
            && let Some(message) = chance.choice(duplicable(piece))
        {
            self.again.push((arrival + chance.u64(1..=AGAIN_MS_MAX), message.to_vec()));
        }
    }

    /// Delivers what is due; returns the number of bytes.
    fn deliver(&mut self, end: &Endpoint, now: u64) -> usize {
        let mut bytes = 0;
        while self.on_the_way.front().is_some_and(|(arrival, _)| *arrival <= now) {
            let Some((_, Some(piece))) = self.on_the_way.pop_front() else {
                end.end();
                break;
            };
            bytes += piece.len();
            end.deliver(&piece);
        }
        // Pieces are whole messages, so a duplicate can be inserted between them.
        for (_, message) in self.again.extract_if(.., |(arrival, _)| *arrival <= now) {
            bytes += message.len();
            end.deliver(&message);
        }
        bytes
    }

    fn is_over(&self) -> bool {
        self.has_ended && self.on_the_way.is_empty()
    }
}

struct Link {
    from: Place,
    to: u64,
    near: Endpoint,
    /// None until the other side has accepted.
    far: Option<Endpoint>,
    /// When the connection request arrives at the other side.
    arrival: u64,
    out: Lane,
    back: Lane,
}

impl Link {
    fn has(&self, node: u64) -> bool {
        self.from == Place::Node(node) || self.to == node
    }

    /// The way of the calls, and the way of the answers.
    fn ways(&self) -> (Way, Way) {
        let (from, to) = (self.from, Place::Node(self.to));
        (Way { from, to, side: Side::Calls }, Way { from: to, to: from, side: Side::Answers })
    }

    fn break_off(&self) {
        self.near.break_off();
        if let Some(far) = &self.far {
            far.break_off();
        }
    }
}

pub(super) struct Network {
    pub(super) hub: SharedHub,
    links: Vec<Link>,
    /// Blocked ways, and by how many faults.
    blocked: BTreeMap<Way, u32>,
    /// How often a way was unblocked: what was held on it then arrives, and may be an answer.
    pub(super) opened: u64,
    /// Delays, by the number of the fault. The longest applies.
    delays: BTreeMap<u64, Delay>,
    /// How many of a thousand pieces to a peer contain a message that is duplicated, by the number of the
    /// fault.
    twice: BTreeMap<u64, u64>,
    /// Nodes without power: nobody learns of their end before they are back.
    pub(super) dark: BTreeSet<u64>,
    /// The minimum latency between nodes.
    pub(super) distance_ms: u64,
    chance: fastrand::Rng,
    now: u64,
    /// The number of bytes delivered, for the trace.
    pub(super) delivered: u64,
}

impl Network {
    pub(super) fn new(chance: fastrand::Rng) -> Network {
        Network {
            hub: SharedHub::default(),
            links: Vec::new(),
            blocked: BTreeMap::new(),
            opened: 0,
            delays: BTreeMap::new(),
            twice: BTreeMap::new(),
            dark: BTreeSet::new(),
            distance_ms: 0,
            chance,
            now: 0,
            delivered: 0,
        }
    }

    /// Blocks a way until every fault that blocked it has released it.
    pub(super) fn block(&mut self, way: Way) {
        *self.blocked.entry(way).or_default() += 1;
    }

    /// Undoes one block.
    pub(super) fn release(&mut self, way: Way) {
        match self.blocked.get_mut(&way) {
            Some(faults) if *faults > 1 => *faults -= 1,
            Some(_) => {
                self.blocked.remove(&way);
                self.opened += 1;
                self.let_go(way);
            }
            None => {}
        }
    }

    fn let_go(&mut self, way: Way) {
        for link in &mut self.links {
            let (out, back) = link.ways();
            if out == way {
                link.out.release(self.now, &mut self.chance);
            } else if back == way {
                link.back.release(self.now, &mut self.chance);
            }
        }
    }

    /// Delays pieces until the fault with this number ends.
    pub(super) fn delay(&mut self, number: u64, delay: Delay) {
        self.delays.insert(number, delay);
    }

    /// Duplicates a message in this many of a thousand pieces to peers, until the fault with this number
    /// ends.
    pub(super) fn double(&mut self, number: u64, permille: u64) {
        self.twice.insert(number, permille);
    }

    /// Ends the fault with this number.
    pub(super) fn calm(&mut self, number: u64) {
        self.delays.remove(&number);
        self.twice.remove(&number);
    }

    /// Ends all blocks, delays and duplicates.
    pub(super) fn heal(&mut self) {
        let ways: Vec<Way> = std::mem::take(&mut self.blocked).into_keys().collect();
        self.opened += 1;
        ways.into_iter().for_each(|way| self.let_go(way));
        self.delays.clear();
        self.twice.clear();
    }

    /// Whether there are no network faults (duplicates aside).
    pub(super) fn is_fair(&self) -> bool {
        self.blocked.is_empty() && self.delays.is_empty()
    }

    /// Whether two nodes can communicate without extra delay.
    pub(super) fn are_connected(&self, one: u64, other: u64) -> bool {
        let (one, other) = (Place::Node(one), Place::Node(other));
        let is_between = |from: Place, to: Place| (from, to) == (one, other) || (from, to) == (other, one);
        !self.blocked.keys().any(|way| is_between(way.from, way.to))
            && !self.delays.values().any(|delay| delay.on.is_none_or(|(from, to)| is_between(from, to)))
    }

    /// Whether two nodes are blocked from each other, in one direction or both.
    pub(super) fn are_apart(&self, one: u64, other: u64) -> bool {
        let (one, other) = (Place::Node(one), Place::Node(other));
        self.blocked
            .keys()
            .any(|way| (way.from, way.to) == (one, other) || (way.from, way.to) == (other, one))
    }

    /// Whether all clients can communicate with this node.
    pub(super) fn is_open(&self, node: u64) -> bool {
        let node = Place::Node(node);
        let is_client = |place: Place| matches!(place, Place::Client(_));
        !self
            .blocked
            .keys()
            .any(|way| (way.from == node && is_client(way.to)) || (way.to == node && is_client(way.from)))
    }

    /// A node's process has ended: it no longer listens.
    pub(super) fn stop_listening(&self, node: u64) {
        lock(&self.hub).listeners.remove(&node);
    }

    /// Breaks all streams of a node.
    pub(super) fn break_off(&mut self, node: u64) {
        self.links.retain(|link| {
            let keep = !link.has(node);
            if !keep {
                link.break_off();
            }
            keep
        });
    }

    /// Breaks one stream. False if there is none.
    pub(super) fn break_one(&mut self) -> bool {
        if self.links.is_empty() {
            return false;
        }
        let at = self.chance.usize(..self.links.len());
        self.links.remove(at).break_off();
        true
    }

    fn arrival(&mut self, from: Place, to: Place) -> u64 {
        let slow = self.delays.values().filter(|delay| delay.on.is_none_or(|on| on == (from, to)));
        let delay = slow.max_by_key(|delay| delay.max_ms).copied().unwrap_or(USUAL);
        let ms = self.chance.u64(1..=delay.max_ms.max(1));
        let is_late = self.chance.u64(..1000) < delay.late_permille;
        let are_nodes = matches!((from, to), (Place::Node(_), Place::Node(_)));
        let distance_ms = if are_nodes { self.distance_ms } else { 0 };
        self.now + distance_ms + if is_late { 10 * ms } else { ms }
    }

    /// Accepts what was written, and delivers what is due. `accept` opens a client's connection on a node.
    pub(super) fn step(&mut self, now: u64, mut accept: impl FnMut(u64) -> Option<Endpoint>) {
        self.now = now;
        let dials = std::mem::take(&mut lock(&self.hub).dials);
        for (from, to, near) in dials {
            let arrival = self.arrival(from, Place::Node(to));
            let (out, back) = (Lane::default(), Lane::default());
            self.links.push(Link { from, to, near, far: None, arrival, out, back });
        }
        let mut links = std::mem::take(&mut self.links);
        links.retain_mut(|link| self.step_link(link, &mut accept));
        self.links = links;
    }

    /// Steps one link. False if it is gone.
    fn step_link(&mut self, link: &mut Link, accept: &mut impl FnMut(u64) -> Option<Endpoint>) -> bool {
        let is_dark = self.dark.iter().any(|node| link.has(*node));
        if is_dark {
            return true;
        }
        let (now, (out, back)) = (self.now, link.ways());
        if link.far.is_none() {
            if now < link.arrival || self.blocked.contains_key(&out) {
                return !link.near.is_finished();
            }
            let far = match link.from {
                Place::Client(_) => accept(link.to),
                Place::Node(_) => self.listening(link.to),
            };
            let Some(far) = far else {
                link.near.break_off();
                return false;
            };
            link.far = Some(far);
        }
        let Some(far) = &link.far else { return true };
        let (there, here) = (self.arrival(out.from, out.to), self.arrival(back.from, back.to));
        link.out.take(&link.near, there);
        let twice = self.twice.values().max().copied().unwrap_or(0);
        if matches!(link.from, Place::Node(_)) && self.chance.u64(..1000) < twice {
            link.out.double(&mut self.chance);
        }
        link.back.take(far, here);
        for (way, lane, end) in [(out, &mut link.out, far), (back, &mut link.back, &link.near)] {
            if !self.blocked.contains_key(&way) {
                self.delivered += lane.deliver(end, now) as u64;
            }
        }
        !(link.out.is_over() && link.back.is_over())
    }

    fn listening(&self, node: u64) -> Option<Endpoint> {
        let (far, theirs) = Endpoint::new();
        lock(&self.hub).listeners.get(&node)?.send(theirs).ok()?;
        Some(far)
    }
}
