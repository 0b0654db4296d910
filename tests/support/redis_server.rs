//! A real redis-server, where one is installed.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{process::free_address, resp::Client};

/// A redis-server without persistence, killed when it goes out of scope.
pub struct RedisServer {
    pub address: String,
    child: Child,
    _dir: TempDir,
}

impl RedisServer {
    /// None, and a word about it, where `redis-server` is not on the PATH or is not of series 7.0, whose
    /// replies are the ones to give.
    pub fn start() -> Option<RedisServer> {
        let version = Command::new("redis-server").arg("--version").output();
        let version = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        if !version.as_ref().is_ok_and(|version| version.contains("v=7.0.")) {
            eprintln!("skipped: there is no redis-server 7.0 on the PATH ({version:?})");
            return None;
        }
        let address = free_address();
        let (_, port) = address.rsplit_once(':').expect("an address has a port");
        let dir = tempfile::tempdir().expect("a directory for the test");
        let child = Command::new("redis-server")
            .args(["--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server starts");
        let deadline = Instant::now() + Duration::from_secs(20);
        while Client::connect(&address).is_err() {
            assert!(Instant::now() < deadline, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(RedisServer { address, child, _dir: dir })
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
