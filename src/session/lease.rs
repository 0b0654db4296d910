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
    /// To be revoked with the connection, if it is still bound by this number.
    revoked_as: Option<Vec<u8>>,
    keeper: JoinHandle<()>,
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.keeper.abort();
        if let Some(binding) = self.revoked_as.take() {
            let id = std::mem::take(&mut self.id);
            let argv = vec![b"LEASE.REVOKE".to_vec(), id, b"BINDING".to_vec(), binding];
            self.shared.wakes.leave(self.db, argv);
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
        // Whoever binds a lease has it for its whole time, and takes it over from whoever had bound it.
        let answer = call(&self.shared, db, &[b"LEASE.BINDING", &id]).await;
        if answer.starts_with(b"-") {
            return self.out.extend_from_slice(&answer);
        }
        let binding: Vec<u8> = answer.iter().copied().filter(u8::is_ascii_digit).collect();
        let ttl_ms = self
            .shared
            .router
            .read(db, |view| view.value::<Lease>(&id).ok().flatten().map_or(0, |lease| lease.ttl_ms));
        let pause = (Duration::from_millis(ttl_ms) / KEEPALIVES).max(PAUSE_MIN);
        let keeper = tokio::spawn(keep(self.shared.clone(), db, id.clone(), pause));
        self.bound.retain(|bound| (bound.db, &bound.id) != (db, &id));
        let revoked_as = is_revoked.then_some(binding);
        self.bound.push(Bound { shared: self.shared.clone(), db, id, revoked_as, keeper });
        self.reply(Reply::ok);
    }
}

/// Keeps a lease alive until there is none.
async fn keep(shared: Arc<Shared>, db: u32, id: Vec<u8>, pause: Duration) {
    let mut next = pause;
    loop {
        tokio::time::sleep(next).await;
        let answer = call(&shared, db, &[b"LEASE.KEEPALIVE", &id]).await;
        if answer.starts_with(b"-NOLEASE") || answer.starts_with(b"-WRONGTYPE") {
            return;
        }
        next = if answer.starts_with(b"-") { (pause / 4).clamp(PAUSE_MIN, RETRY_MAX) } else { pause };
    }
}

/// Executes a command of leases; gives its answer.
async fn call(shared: &Shared, db: u32, argv: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    proposal::put_call(&mut bytes, db, argv);
    shared.router.call(&bytes, 1, Protocol::Resp2).await
}
