//! The socket of a request, to see whether its client is still connected. hyper notices the end of a
//! connection only while no more bytes are pending: a client that sent one more byte and disconnected would
//! wait forever.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, RawFd},
    time::Duration,
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::net::{TcpListener, TcpStream};

use crate::connection::stream::ask_often;

/// How often the socket is checked.
const LOOK: Duration = Duration::from_millis(250);

/// Valid while the request is being answered: the connection's task owns both.
#[derive(Clone, Copy, Debug)]
pub(super) struct Socket(RawFd);

/// Accepts connections with frequent keepalive probes.
pub(super) struct Connections(pub(super) TcpListener);

impl Listener for Connections {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.0).await;
        ask_often(&stream);
        (stream, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Listener::local_addr(&self.0)
    }
}

impl Connected<IncomingStream<'_, Connections>> for Socket {
    fn connect_info(stream: IncomingStream<'_, Connections>) -> Socket {
        Socket(stream.io().as_raw_fd())
    }
}

impl Socket {
    /// Returns once the other end has closed the connection or is gone.
    pub(super) async fn ended(self) {
        while !self.has_ended() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether the other end has closed the connection, even behind bytes that were not read.
    #[cfg(target_os = "linux")]
    pub(super) fn has_ended(self) -> bool {
        let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
        let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
        // SAFETY: `info` has room for as many bytes as `length` says, and any bytes are a value of it.
        let state = unsafe {
            let asked = libc::getsockopt(
                self.0,
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut length,
            );
            (asked == 0).then(|| info.assume_init().tcpi_state)
        };
        // Defined in `linux/tcp.h` and `netinet/tcp.h`.
        const TCP_ESTABLISHED: u8 = 1;
        state != Some(TCP_ESTABLISHED)
    }

    /// On other systems only hyper notices.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn has_ended(self) -> bool {
        false
    }
}
