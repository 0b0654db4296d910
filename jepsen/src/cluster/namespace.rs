//! A private network for the run, if this process has the rights: nobody else takes the port of a node that
//! is down, parallel runs do not collide, and packet faults affect nobody else.

use std::{io, sync::OnceLock};

use anyhow::{Context as _, Result};

/// Why this process shares its network with others; None if it does not.
static SHARED: OnceLock<Option<String>> = OnceLock::new();

/// Moves this process and all that it will start to a new network with only a loopback device. Must be called
/// before there are other threads, which would stay behind. Without the rights nothing changes.
pub(crate) fn enter() -> Result<()> {
    // SAFETY: it takes flags alone.
    let is_alone = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    let why = (!is_alone).then(|| io::Error::last_os_error().to_string());
    SHARED.get_or_init(|| why);
    if is_alone {
        raise_loopback().context("cannot raise the loopback of a new network namespace")
    } else {
        Ok(())
    }
}

/// Err says why the network is not private.
pub(crate) fn is_own() -> Result<(), String> {
    match SHARED.get() {
        Some(None) => Ok(()),
        Some(Some(why)) => Err(format!("this process has no network namespace of its own: {why}")),
        None => Err("this process has no network namespace of its own".to_owned()),
    }
}

fn raise_loopback() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: zeroes are a valid ifreq, and the name ends with one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the descriptor is open and the request outlives the call.
    let raised = unsafe {
        libc::ioctl(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SIOCSIFFLAGS,
            std::ptr::from_ref(&request),
        )
    };
    if raised == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
