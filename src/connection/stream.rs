//! A client's connection as its connection uses it: a TCP socket, or one end of a stream in a simulation. Silent
//! clients are detected by the kernel (keepalive and TCP_USER_TIMEOUT), not by the protocol.

use std::{
    io::{self, IoSlice},
    net::{Shutdown, SocketAddr},
    os::fd::AsRawFd,
    time::Duration,
};

#[cfg(feature = "simulation")]
use kvorum_raft::simulation::Endpoint;
use smallvec::SmallVec;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::Interest,
    net::{TcpStream, tcp::OwnedWriteHalf},
};

/// After this much silence, keepalive probes start for a client that neither blocks nor has a bound lease.
const QUIET: Duration = Duration::from_secs(300);
/// The interval of these probes, and how many may go unanswered.
const QUIET_STEP: Duration = Duration::from_secs(75);
const QUIET_QUESTIONS: u32 = 9;
/// The system accepts no larger value, and for a lease of days half a minute does not matter.
#[cfg(target_os = "linux")]
const USER_TIMEOUT_MAX: Duration = Duration::from_secs(86_400);
/// Keepalive probes within the allowed silence. So two answers may be lost, if the silence is at least this
/// many seconds.
const QUESTIONS: u32 = 4;
/// A blocked client whose host is silent for this long is gone.
pub(super) const WAITING_SILENCE: Duration = Duration::from_secs(15);

fn questions(silence: Option<Duration>) -> TcpKeepalive {
    let step = silence.map(|silence| (silence / QUESTIONS).clamp(Duration::from_secs(1), QUIET));
    TcpKeepalive::new()
        .with_time(step.unwrap_or(QUIET))
        .with_interval(step.unwrap_or(QUIET_STEP))
        .with_retries(if step.is_some() { QUESTIONS - 1 } else { QUIET_QUESTIONS })
}

fn expect_signs(socket: &SockRef<'_>, silence: Option<Duration>) -> io::Result<()> {
    socket.set_tcp_keepalive(&questions(silence))?;
    // TCP_USER_TIMEOUT replaces the number of probes, and also limits how long sent data may stay
    // unacknowledged. The kernel checks it when a probe is due, so the last interval is left out.
    #[cfg(target_os = "linux")]
    socket
        .set_tcp_user_timeout(silence.map(|silence| (silence - silence / QUESTIONS).min(USER_TIMEOUT_MAX)))?;
    Ok(())
}

/// Enables keepalive probes for an HTTP client: any of its requests may be one that blocks.
pub fn ask_often(stream: &TcpStream) {
    // A socket that refuses this is about to fail anyway.
    let _ = SockRef::from(stream).set_tcp_keepalive(&questions(Some(WAITING_SILENCE)));
}

/// How many parts one write takes.
const PARTS_MAX: usize = 64;

/// The writing side, which can also observe and end the whole connection.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Stream {
    Tcp(OwnedWriteHalf),
    #[cfg(feature = "simulation")]
    Simulated(Endpoint),
}

impl Stream {
    /// The remote and the local address.
    pub(super) fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        match self {
            Stream::Tcp(socket) => Ok((socket.peer_addr()?, socket.local_addr()?)),
            #[cfg(feature = "simulation")]
            Stream::Simulated(_) => {
                Ok((SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from(([127, 0, 0, 1], 2))))
            }
        }
    }

    /// The socket's file descriptor.
    pub(super) fn fd(&self) -> i32 {
        match self {
            Stream::Tcp(socket) => socket.as_ref().as_raw_fd(),
            #[cfg(feature = "simulation")]
            Stream::Simulated(_) => -1,
        }
    }

    /// Writes as much of these parts, one behind the other, as fits.
    pub(super) fn try_write<'a>(&self, parts: impl Iterator<Item = &'a [u8]>) -> io::Result<usize> {
        let parts: SmallVec<[IoSlice<'_>; 8]> = parts.take(PARTS_MAX).map(IoSlice::new).collect();
        match (self, &parts[..]) {
            (_, []) => Ok(0),
            (Stream::Tcp(socket), [one]) => socket.try_write(one),
            (Stream::Tcp(socket), parts) => socket.try_write_vectored(parts),
            #[cfg(feature = "simulation")]
            (Stream::Simulated(end), [first, ..]) => end.write(first),
        }
    }

    /// Returns when more may fit.
    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(socket) => socket.writable().await,
            #[cfg(feature = "simulation")]
            Stream::Simulated(_) => Ok(()),
        }
    }

    /// Returns when there is something to read; true if that is the end of the connection.
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

    /// Has the system probe the other side, and break the connection after this much silence: neither answers
    /// to the probes nor acknowledgements of sent data. The system counts whole seconds, so two seconds is
    /// the minimum. None for the default of an idle connection.
    pub(crate) fn expect_signs(&self, silence: Option<Duration>) {
        match self {
            // A socket that refuses this is about to fail anyway.
            Stream::Tcp(socket) => drop(expect_signs(&SockRef::from(socket.as_ref()), silence)),
            #[cfg(feature = "simulation")]
            Stream::Simulated(_) => {}
        }
    }

    /// Shuts down one or both directions. An error means that the other side was first.
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
