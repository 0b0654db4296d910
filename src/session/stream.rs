//! A client's connection as its session uses it: a TCP socket, or the end of a stream in a simulation.

use std::{
    io,
    net::{Shutdown, SocketAddr},
    os::fd::AsRawFd,
};

#[cfg(feature = "simulation")]
use kvorum_raft::simulation::Endpoint;
use socket2::SockRef;
use tokio::{io::Interest, net::tcp::OwnedWriteHalf};

/// The writing side, which also sees and ends the whole.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Stream {
    Tcp(OwnedWriteHalf),
    #[cfg(feature = "simulation")]
    Simulated(Endpoint),
}

impl Stream {
    /// The other side's address and this side's.
    pub(super) fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        match self {
            Stream::Tcp(socket) => Ok((socket.peer_addr()?, socket.local_addr()?)),
            #[cfg(feature = "simulation")]
            Stream::Simulated(_) => {
                Ok((SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from(([127, 0, 0, 1], 2))))
            }
        }
    }

    /// The socket's number.
    pub(super) fn fd(&self) -> i32 {
        match self {
            Stream::Tcp(socket) => socket.as_ref().as_raw_fd(),
            #[cfg(feature = "simulation")]
            Stream::Simulated(_) => -1,
        }
    }

    /// Writes what fits.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(socket) => socket.try_write(bytes),
            #[cfg(feature = "simulation")]
            Stream::Simulated(end) => end.write(bytes),
        }
    }

    /// Returns when something may fit again.
    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(socket) => socket.writable().await,
            #[cfg(feature = "simulation")]
            Stream::Simulated(_) => Ok(()),
        }
    }

    /// Returns when there is something to read; true when that is the end of the connection.
    pub(super) async fn has_ended(&self) -> bool {
        match self {
            Stream::Tcp(socket) => {
                socket.as_ref().ready(Interest::READABLE).await.is_ok_and(|ready| ready.is_read_closed())
            }
            #[cfg(feature = "simulation")]
            Stream::Simulated(end) => {
                end.ended().await;
                true
            }
        }
    }

    /// Closes one or both directions. An error means that the other side was faster.
    pub(super) fn shutdown(&self, how: Shutdown) {
        match self {
            Stream::Tcp(socket) => drop(SockRef::from(socket.as_ref()).shutdown(how)),
            #[cfg(feature = "simulation")]
            Stream::Simulated(end) if how == Shutdown::Read => end.end(),
            #[cfg(feature = "simulation")]
            Stream::Simulated(end) => end.break_off(),
        }
    }
}
