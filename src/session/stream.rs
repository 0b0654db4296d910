//! A client's connection as its session uses it: a TCP socket, or the end of a stream in a simulation.

use std::{
    io,
    net::{Shutdown, SocketAddr},
    os::fd::AsRawFd,
    time::Duration,
};

#[cfg(feature = "simulation")]
use kvorum_raft::simulation::Endpoint;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::Interest,
    net::{TcpStream, tcp::OwnedWriteHalf},
};

/// After this much silence the system asks whether a client is still there that does not wait and has no lease.
const QUIET: Duration = Duration::from_secs(300);
/// How often it asks then, and how many answers may be missing.
const QUIET_STEP: Duration = Duration::from_secs(75);
const QUIET_QUESTIONS: u32 = 9;
/// How often it asks within the time that a client may be silent. So two answers may get lost, where that time has so
/// many seconds.
const QUESTIONS: u32 = 4;
/// A client that waits and whose machine is not heard of for so long is gone.
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
    // It holds for the questions, in the place of their number, and for what was sent and is not acknowledged. It is
    // looked at when a question is due, so the last step is left out.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(silence.map(|silence| silence - silence / QUESTIONS))?;
    Ok(())
}

/// Has the system ask whether whoever makes requests over HTTP is still there: any of them may be one that waits.
pub fn ask_often(stream: &TcpStream) {
    // A socket that refuses is about to fail anyway.
    let _ = SockRef::from(stream).set_tcp_keepalive(&questions(Some(WAITING_SILENCE)));
}

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

    /// Has the system ask whether the other side is still there, and break the connection when for so long nothing came
    /// from it: no answer to the questions, and no word that it got what was sent. The system knows whole seconds, so two
    /// seconds is the least. None for what an idle connection needs.
    pub(crate) fn expect_signs(&self, silence: Option<Duration>) {
        match self {
            // A socket that refuses is about to fail anyway.
            Stream::Tcp(socket) => drop(expect_signs(&SockRef::from(socket.as_ref()), silence)),
            #[cfg(feature = "simulation")]
            Stream::Simulated(_) => {}
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
