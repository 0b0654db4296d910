//! A network in memory: addresses are names, links can be cut.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::Arc,
};

use futures::future::BoxFuture;
use kvorum_raft::transport::{Connection, Listener, Transport};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc},
    task::AbortHandle,
};

type Incoming = Box<dyn Connection>;

#[derive(Default)]
struct Hub {
    listeners: HashMap<String, mpsc::UnboundedSender<Incoming>>,
    cut: HashSet<(String, String)>,
    links: Vec<(String, String, AbortHandle, Arc<Notify>)>,
    /// How many connections were asked for, by address.
    attempts: HashMap<String, u64>,
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
            let mut hub = self.hub.lock();
            *hub.attempts.entry(address.into()).or_default() += 1;
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            if hub.cut.contains(&(self.name.clone(), address.to_owned())) {
                return Err(refused());
            }
            let (ours, mut left) = tokio::io::duplex(1 << 16);
            let (mut right, theirs) = tokio::io::duplex(1 << 16);
            hub.listeners.get(address).ok_or_else(refused)?.send(Box::new(theirs)).map_err(|_| refused())?;
            let silence = Arc::new(Notify::new());
            let silenced = silence.clone();
            let pump = tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut left, &mut right) => {}
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
    receiver: mpsc::UnboundedReceiver<Incoming>,
}

impl Listener for Door {
    fn local_address(&self) -> String {
        self.name.clone()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Box<dyn Connection>>> {
        Box::pin(async { self.receiver.recv().await.ok_or_else(|| io::ErrorKind::NotConnected.into()) })
    }
}
