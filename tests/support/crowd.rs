//! Many connections to one address, and what becomes of them.

use std::{
    io::{self, Read},
    net::TcpStream,
    time::{Duration, Instant},
};

/// Raises this process's limit of open files, which the nodes that it starts have too.
pub fn raise_file_limit(files: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both take a pointer to a limit, which lives as long as the call.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        assert!(limit.rlim_max >= files, "the machine allows {} open files", limit.rlim_max);
        limit.rlim_cur = limit.rlim_cur.max(files);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
}

/// Whether the other end has closed the connection, as far as this one knows. What it has sent is read.
pub fn has_ended(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut buffer = [0; 4096];
    let ended = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break true,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break false,
            Err(_) => break true,
        }
    };
    stream.set_nonblocking(false).unwrap();
    ended
}

/// Waits until the other end has closed the connection; gives how long that took, and what it sent.
pub fn wait_end(stream: &mut TcpStream, patience: Duration) -> (Duration, Vec<u8>) {
    let (started, mut sent) = (Instant::now(), Vec::new());
    stream.set_read_timeout(Some(patience)).unwrap();
    match stream.read_to_end(&mut sent) {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            panic!("it is open after {patience:?}: {}", sent.escape_ascii())
        }
        // Closed, or reset because something was not read.
        Ok(_) | Err(_) => (started.elapsed(), sent),
    }
}
