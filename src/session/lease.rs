//! LEASE.BIND: a lease that lives as long as the connection. This node keeps it alive meanwhile; then it runs out, or
//! is revoked at once: an ephemeral node in ZooKeeper's sense.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinHandle;

use super::{Session, Shared};
use crate::{
    args::Args,
    error::Error,
    proposal,
    resp::{Protocol, Reply},
    store::Lease,
};

/// A lease is kept alive so often within its time.
const KEEPALIVES: u32 = 3;
/// The least pause between two attempts.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest pause after one that failed.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// A lease that is bound to a connection, until this is dropped.
pub(super) struct Bound {
    shared: Arc<Shared>,
    db: u32,
    id: Vec<u8>,
    is_revoked: bool,
    keeper: JoinHandle<()>,
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.keeper.abort();
        if self.is_revoked {
            self.shared.wakes.leave(self.db, vec![b"LEASE.REVOKE".to_vec(), std::mem::take(&mut self.id)]);
        }
    }
}

impl Session {
    /// LEASE.BIND id [REVOKE].
    pub(super) async fn bind_lease(&mut self, argv: &[&[u8]]) {
        let args = Args::new(argv);
        let is_revoked = args.is(2, "REVOKE");
        if args.len() > 3 || args.len() == 3 && !is_revoked {
            return self.reply(|reply| reply.error(&Error::Syntax));
        }
        let (db, id) = (self.db, args.at(1).to_vec());
        // Whoever binds a lease has it for its whole time.
        let answer = keep_alive(&self.shared, db, &id).await;
        if answer.starts_with(b"-") {
            return self.out.extend_from_slice(&answer);
        }
        let ttl_ms = self
            .shared
            .router
            .read(db, |view| view.value::<Lease>(&id).ok().flatten().map_or(0, |lease| lease.ttl_ms));
        let pause = (Duration::from_millis(ttl_ms) / KEEPALIVES).max(PAUSE_MIN);
        let keeper = tokio::spawn(keep(self.shared.clone(), db, id.clone(), pause));
        self.bound.retain(|bound| (bound.db, &bound.id) != (db, &id));
        self.bound.push(Bound { shared: self.shared.clone(), db, id, is_revoked, keeper });
        self.reply(Reply::ok);
    }
}

/// Keeps a lease alive until there is none.
async fn keep(shared: Arc<Shared>, db: u32, id: Vec<u8>, pause: Duration) {
    let mut next = pause;
    loop {
        tokio::time::sleep(next).await;
        let answer = keep_alive(&shared, db, &id).await;
        if answer.starts_with(b"-NOLEASE") || answer.starts_with(b"-WRONGTYPE") {
            return;
        }
        next = if answer.starts_with(b"-") { (pause / 4).clamp(PAUSE_MIN, RETRY_MAX) } else { pause };
    }
}

/// LEASE.KEEPALIVE; gives its answer.
async fn keep_alive(shared: &Shared, db: u32, id: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    proposal::put_call(&mut bytes, db, &[b"LEASE.KEEPALIVE", id]);
    shared.router.call(&bytes, 1, Protocol::Resp2).await
}
