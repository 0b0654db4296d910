//! Which socket has the other end of a loopback connection: one request to the kernel (sock_diag(7)). The
//! tables in /proc/net would have to be read completely, and are long on a busy machine.

use std::{
    net::SocketAddrV4,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// The lengths of a netlink header, and of the `inet_diag_req_v2` after it.
const HEADER: usize = 16;
const REQUEST: usize = 56;
/// The offset of the inode in the answer, an `inet_diag_msg`.
const INODE: usize = HEADER + 68;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;

fn request(local: SocketAddrV4, remote: SocketAddrV4) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port: there is only one request and one answer.
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[libc::AF_INET as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    // All states.
    bytes.extend_from_slice(&u32::MAX.to_ne_bytes());
    bytes.extend_from_slice(&local.port().to_be_bytes());
    bytes.extend_from_slice(&remote.port().to_be_bytes());
    for address in [local, remote] {
        bytes.extend_from_slice(&address.ip().octets());
        bytes.extend_from_slice(&[0; 12]);
    }
    // Any interface, and no cookie.
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[0xff; 8]);
    bytes
}

/// The inode of the socket on this machine that is bound to `local` and connected to `remote`.
pub(crate) fn inode(local: SocketAddrV4, remote: SocketAddrV4) -> Option<u32> {
    // SAFETY: socket(2) takes no pointers; the descriptor is new and has no other owner.
    let socket = unsafe {
        let socket =
            libc::socket(libc::AF_NETLINK, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, libc::NETLINK_SOCK_DIAG);
        (socket >= 0).then(|| OwnedFd::from_raw_fd(socket))?
    };
    let question = request(local, remote);
    let mut answer = [0_u8; 1024];
    // SAFETY: both buffers outlive the calls, which are given their lengths. The kernel answers within
    // send(2), so recv(2) need not wait.
    let len = unsafe {
        libc::send(socket.as_raw_fd(), question.as_ptr().cast(), question.len(), 0);
        libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), libc::MSG_DONTWAIT)
    };
    let answer = answer.get(..usize::try_from(len).ok()?)?;
    if answer.get(4..6)? != SOCK_DIAG_BY_FAMILY.to_ne_bytes() {
        return None;
    }
    let inode = answer.get(INODE..INODE + 4)?.try_into().ok()?;
    Some(u32::from_ne_bytes(inode)).filter(|inode| *inode != 0)
}
