//! The simulated network: byte streams between nodes and from clients to nodes. What is written takes its time; streams
//! keep their order, as TCP does, and overtake each other. Links are blocked in one direction or both: what is sent
//! meanwhile is held, and comes late or never. Single calls between peers come twice, the second time much later.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::future::BoxFuture;
use kvorum_raft::{
    simulation::{Endpoint, NodeEnd, duplicable},
    transport::{Connection, Listener, Transport},
};
use tokio::sync::mpsc;

/// Who has an end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Node(u64),
    Client(usize),
}

/// The address at which peers reach a node.
pub(super) fn address(node: u64) -> String {
    format!("127.0.0.{node}:7379")
}

fn node_of(address: &str) -> Option<u64> {
    address.strip_prefix("127.0.0.")?.split(':').next()?.parse().ok()
}

/// What nodes and clients reach of the network.
#[derive(Default)]
pub(super) struct Hub {
    dials: Vec<(Place, u64, Endpoint)>,
    listeners: BTreeMap<u64, mpsc::UnboundedSender<NodeEnd>>,
}

pub(super) type SharedHub = Arc<Mutex<Hub>>;

fn lock(hub: &SharedHub) -> MutexGuard<'_, Hub> {
    hub.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins a connection. Whether it comes about shows when something is read.
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

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Box<dyn Connection>>> {
        Box::pin(async {
            match self.incoming.recv().await {
                Some(end) => Ok(Box::new(end) as Box<dyn Connection>),
                None => std::future::pending().await,
            }
        })
    }
}

/// How much later a message comes again at most, in milliseconds.
const AGAIN_MS_MAX: u64 = 2_000;

/// One direction of a stream.
#[derive(Default)]
struct Lane {
    /// With the moment of arrival, in milliseconds; None for the end.
    on_the_way: VecDeque<(u64, Option<Vec<u8>>)>,
    /// Messages that were delivered, or will be, and come again.
    again: Vec<(u64, Vec<u8>)>,
    has_ended: bool,
}

impl Lane {
    /// Takes what a node wrote. Nothing overtakes what was written before.
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

    /// Has a message of the newest piece come twice.
    fn double(&mut self, chance: &mut fastrand::Rng) {
        if let Some((arrival, Some(piece))) = self.on_the_way.back()
            && let Some(message) = chance.choice(duplicable(piece))
        {
            self.again.push((arrival + chance.u64(1..=AGAIN_MS_MAX), message.to_vec()));
        }
    }

    /// Delivers what is due; gives how many bytes.
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
        // Pieces are whole messages, so there is room between them.
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
    /// When it is asked for at the other side.
    arrival: u64,
    out: Lane,
    back: Lane,
}

impl Link {
    fn has(&self, node: u64) -> bool {
        self.from == Place::Node(node) || self.to == node
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
    /// From whom to whom nothing arrives.
    blocked: BTreeSet<(Place, Place)>,
    /// Nodes without power: nobody hears of their end before they are back.
    pub(super) dark: BTreeSet<u64>,
    chance: fastrand::Rng,
    /// The longest that a piece is on its way, in milliseconds.
    pub(super) delay_max: u64,
    /// How often a piece takes ten times as long, in a thousand.
    pub(super) late_permille: u64,
    /// How often a piece that goes to a peer has a message that comes twice, in a thousand.
    pub(super) twice_permille: u64,
    /// Bytes delivered, for the trace.
    pub(super) delivered: u64,
}

impl Network {
    pub(super) fn new(chance: fastrand::Rng) -> Network {
        Network {
            hub: SharedHub::default(),
            links: Vec::new(),
            blocked: BTreeSet::new(),
            dark: BTreeSet::new(),
            chance,
            delay_max: 2,
            late_permille: 2,
            twice_permille: 0,
            delivered: 0,
        }
    }

    pub(super) fn block(&mut self, from: Place, to: Place) {
        self.blocked.insert((from, to));
    }

    /// Ends all blockades and delays.
    pub(super) fn heal(&mut self) {
        self.blocked.clear();
        (self.delay_max, self.late_permille, self.twice_permille) = (2, 2, 0);
    }

    /// A node's process has ended: nobody listens there.
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

    fn arrival(&mut self, now: u64) -> u64 {
        let delay = self.chance.u64(1..=self.delay_max);
        let is_late = self.chance.u64(..1000) < self.late_permille;
        now + if is_late { 10 * delay } else { delay }
    }

    /// Carries what was written, and delivers what is due. `accept` opens a client's connection on a node.
    pub(super) fn step(&mut self, now: u64, mut accept: impl FnMut(u64) -> Option<Endpoint>) {
        let dials = std::mem::take(&mut lock(&self.hub).dials);
        for (from, to, near) in dials {
            let arrival = self.arrival(now);
            let (out, back) = (Lane::default(), Lane::default());
            self.links.push(Link { from, to, near, far: None, arrival, out, back });
        }
        let mut links = std::mem::take(&mut self.links);
        links.retain_mut(|link| self.step_link(link, now, &mut accept));
        self.links = links;
    }

    /// False when the link is no more.
    fn step_link(
        &mut self,
        link: &mut Link,
        now: u64,
        accept: &mut impl FnMut(u64) -> Option<Endpoint>,
    ) -> bool {
        let (from, to) = (link.from, Place::Node(link.to));
        let is_dark = self.dark.iter().any(|node| link.has(*node));
        if is_dark {
            return true;
        }
        if link.far.is_none() {
            if now < link.arrival || self.blocked.contains(&(from, to)) {
                return !link.near.is_finished();
            }
            let far = match from {
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
        let (there, here) = (self.arrival(now), self.arrival(now));
        link.out.take(&link.near, there);
        if matches!(from, Place::Node(_)) && self.chance.u64(..1000) < self.twice_permille {
            link.out.double(&mut self.chance);
        }
        link.back.take(far, here);
        for (way, lane, end) in [((from, to), &mut link.out, far), ((to, from), &mut link.back, &link.near)] {
            if !self.blocked.contains(&way) {
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
