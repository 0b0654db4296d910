//! A network in memory: addresses are names, links can be cut, may be long, and what one node sends to another can be held
//! back, apart for the connections that either of them made.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use kvorum_raft::transport::{Connection, Incoming, Listener, Transport};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Notify, mpsc, watch},
    task::AbortHandle,
    time::Instant,
};

#[derive(Default)]
struct Hub {
    listeners: HashMap<String, mpsc::UnboundedSender<Box<dyn Connection>>>,
    cut: HashSet<(String, String)>,
    links: Vec<(String, String, AbortHandle, Arc<Notify>)>,
    /// How many connections were asked for, by address.
    attempts: HashMap<String, u64>,
    /// Whether what goes from one node to another on the connections of one of them is held.
    gates: HashMap<Way, watch::Sender<bool>>,
    /// How long everything takes from one node to another.
    one_way: watch::Sender<Duration>,
}

/// From, to, and who made the connection.
type Way = (String, String, String);

impl Hub {
    fn gate(&mut self, from: &str, to: &str, made_by: &str) -> &watch::Sender<bool> {
        self.gates
            .entry((from.into(), to.into(), made_by.into()))
            .or_insert_with(|| watch::Sender::new(false))
    }
}

/// What a connection passes on one way.
struct Passage {
    held: watch::Receiver<bool>,
    one_way: watch::Receiver<Duration>,
}

async fn arrival(due: Instant) {
    // The timer would make a millisecond of none.
    if due > Instant::now() {
        tokio::time::sleep_until(due).await;
    }
}

/// Carries bytes one way, while they are not held, each piece as late as the way is long.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut passage: Passage,
) -> io::Result<()> {
    let (mut buffer, mut has_ended) = (vec![0; 1 << 16], false);
    // With when each arrives; an empty one is the end.
    let mut pieces: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    loop {
        let due = pieces.front().map(|(due, _)| *due);
        tokio::select! {
            biased;
            () = arrival(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let (_, piece) = pieces.pop_front().expect("one is due");
                let _ = passage.held.wait_for(|held| !held).await;
                if piece.is_empty() {
                    return to.shutdown().await;
                }
                to.write_all(&piece).await?;
            }
            read = from.read(&mut buffer), if !has_ended => {
                let read = read?;
                has_ended = read == 0;
                let due = Instant::now() + *passage.one_way.borrow();
                pieces.push_back((due, buffer[..read].to_vec()));
            }
        }
    }
}

#[derive(Clone, Default)]
pub struct Network {
    hub: Arc<Mutex<Hub>>,
}

/// One node's end of the network.
pub struct Port {
    name: String,
    hub: Arc<Mutex<Hub>>,
}

impl Network {
    pub fn port(&self, name: &str) -> Arc<Port> {
        Arc::new(Port { name: name.into(), hub: self.hub.clone() })
    }

    /// Cuts all links between `name` and the others, in both directions, also those that exist.
    pub fn isolate(&self, name: &str, others: &[&str]) {
        self.cut(name, others, |pump, _| pump.abort());
    }

    /// The same, but nobody is told: connections stay open and carry nothing any more.
    pub fn silence(&self, name: &str, others: &[&str]) {
        self.cut(name, others, |_, silence| silence.notify_one());
    }

    fn cut(&self, name: &str, others: &[&str], end: impl Fn(&AbortHandle, &Notify)) {
        let mut hub = self.hub.lock();
        for other in others {
            hub.cut.insert((name.into(), (*other).into()));
            hub.cut.insert(((*other).into(), name.into()));
        }
        hub.links.retain(|(from, to, pump, silence)| {
            let cut = [from, to].iter().any(|end| *end == name)
                && others.iter().any(|other| from == other || to == other);
            if cut {
                end(pump, silence);
            }
            !cut
        });
    }

    /// Holds what `from` sends to `to` on the connections that `made_by` made, or lets it go.
    pub fn hold(&self, from: &str, to: &str, made_by: &str, is_held: bool) {
        self.hub.lock().gate(from, to, made_by).send_replace(is_held);
    }

    /// From here on everything takes so long from one node to another.
    pub fn stretch(&self, one_way: Duration) {
        self.hub.lock().one_way.send_replace(one_way);
    }

    pub fn attempts(&self, address: &str) -> u64 {
        self.hub.lock().attempts.get(address).copied().unwrap_or(0)
    }

    pub fn heal(&self) {
        self.hub.lock().cut.clear();
    }
}

impl Transport for Port {
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let (sender, receiver) = mpsc::unbounded_channel();
            self.hub.lock().listeners.insert(address.into(), sender);
            Ok(Box::new(Door { name: address.into(), receiver }) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        Box::pin(async move {
            let one_way = *self.hub.lock().one_way.borrow();
            arrival(Instant::now() + 2 * one_way).await;
            let mut hub = self.hub.lock();
            *hub.attempts.entry(address.into()).or_default() += 1;
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            if hub.cut.contains(&(self.name.clone(), address.to_owned())) {
                return Err(refused());
            }
            let (ours, left) = tokio::io::duplex(1 << 16);
            let (right, theirs) = tokio::io::duplex(1 << 16);
            hub.listeners.get(address).ok_or_else(refused)?.send(Box::new(theirs)).map_err(|_| refused())?;
            let silence = Arc::new(Notify::new());
            let silenced = silence.clone();
            let one_way = hub.one_way.subscribe();
            let (asking, answering) = (
                Passage {
                    held: hub.gate(&self.name, address, &self.name).subscribe(),
                    one_way: one_way.clone(),
                },
                Passage { held: hub.gate(address, &self.name, &self.name).subscribe(), one_way },
            );
            let (left_in, left_out) = tokio::io::split(left);
            let (right_in, right_out) = tokio::io::split(right);
            let pump = tokio::spawn(async move {
                let both = async {
                    tokio::join!(pump(left_in, right_out, asking), pump(right_in, left_out, answering))
                };
                tokio::select! {
                    _ = both => {}
                    () = silenced.notified() => std::future::pending().await,
                }
            });
            hub.links.push((self.name.clone(), address.into(), pump.abort_handle(), silence));
            Ok(Box::new(ours) as Box<dyn Connection>)
        })
    }
}

struct Door {
    name: String,
    receiver: mpsc::UnboundedReceiver<Box<dyn Connection>>,
}

impl Listener for Door {
    fn local_address(&self) -> String {
        self.name.clone()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Incoming>> {
        Box::pin(async {
            let connection = self.receiver.recv().await.ok_or(io::ErrorKind::NotConnected)?;
            Ok((connection, None))
        })
    }
}
