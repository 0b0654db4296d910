//! How bytes reach a peer. TCP for real nodes; tests and simulations bring their own, with faults.

use std::{io, net::IpAddr, time::Duration};

use futures::future::BoxFuture;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};

/// A byte stream in both directions.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// A connection that somebody made, and the address of the machine that it comes from, where there is one.
pub type Incoming = (Box<dyn Connection>, Option<IpAddr>);

/// Accepts connections from peers.
pub trait Listener: Send {
    /// The address that peers can connect to.
    fn local_address(&self) -> String;
    /// The next connection.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Incoming>>;
}

/// Listens and connects.
pub trait Transport: Send + Sync + 'static {
    /// Binds `address`.
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>>;
    /// Connects to `address`.
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Connection>>>;
}

/// A connection ends, on both sides, when what was sent is not acknowledged for this long. Without this the
/// system keeps retransmitting for a quarter of an hour, at longer and longer intervals: after a cut of five
/// minutes nothing passes for two minutes more.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(4);

/// A silent connection is probed after this long, and then at this interval: three unanswered probes end it.
const KEEPALIVE: Duration = Duration::from_secs(1);

/// How long connecting to one of a name's addresses may take.
const RESOLVED_TIMEOUT: Duration = Duration::from_millis(900);

/// TCP with Nagle's algorithm off, and with ends that notice each other's silence within seconds.
pub struct Tcp;

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))
}

impl Transport for Tcp {
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener = TcpListener::bind(address).await?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        Box::pin(async move {
            // A name is resolved anew each time, and may have several addresses, of which one may lead
            // nowhere.
            let mut error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            for resolved in tokio::net::lookup_host(address).await? {
                match tokio::time::timeout(RESOLVED_TIMEOUT, TcpStream::connect(resolved)).await {
                    Ok(Ok(stream)) => {
                        tune(&stream)?;
                        return Ok(Box::new(stream) as Box<dyn Connection>);
                    }
                    Ok(Err(failed)) => error = failed,
                    Err(_) => error = io::ErrorKind::TimedOut.into(),
                }
            }
            Err(error)
        })
    }
}

impl Listener for TcpListener {
    fn local_address(&self) -> String {
        self.local_addr().map(|address| address.to_string()).unwrap_or_default()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Incoming>> {
        Box::pin(async move {
            let (stream, from) = TcpListener::accept(self).await?;
            tune(&stream)?;
            Ok((Box::new(stream) as Box<dyn Connection>, Some(from.ip())))
        })
    }
}
