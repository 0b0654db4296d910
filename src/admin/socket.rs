//! The socket of a request, to see whether its client is still connected. hyper notices the end of a
//! connection only while no more bytes are pending: a client that sent one more byte and disconnected would
//! wait forever.

use std::{
    os::fd::{AsRawFd, RawFd},
    time::Duration,
};

use tokio::net::TcpStream;

/// How often the socket is checked.
const LOOK: Duration = Duration::from_millis(250);

/// Valid while the request is being answered: the connection's task owns both.
#[derive(Clone, Copy, Debug)]
pub(super) struct Socket(RawFd);

impl Socket {
    pub(super) fn of(stream: &TcpStream) -> Socket {
        Socket(stream.as_raw_fd())
    }

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
