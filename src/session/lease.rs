//! LEASE.BIND: a lease that lives as long as the connection. This node keeps it alive meanwhile; then it runs out, or
//! is revoked at once: an ephemeral node in ZooKeeper's sense.
//!
//! A binding has a number, and only under that is the lease kept and revoked: once somebody else has bound it, or another
//! lease has its name, this connection has no part in it.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use kvorum_raft::Need;
use tokio::task::JoinHandle;

use super::{Session, Shared, clients::Client};
use crate::{
    args::Args,
    error::Error,
    proposal,
    resp::{Protocol, Reply},
    store::{Lease, level},
};

/// A lease is kept alive so often within its time.
const KEEPALIVES: u32 = 3;
/// The least pause between two attempts.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest pause after one that failed.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Bindings that ended are looked for when there are twice as many as were left the last time, and not fewer than this.
const SWEPT_MIN: usize = 16;

/// A lease, and the number under which a connection has bound it.
#[derive(Clone)]
struct Binding {
    db: u32,
    id: Vec<u8>,
    /// In digits.
    number: Vec<u8>,
}

/// A lease that is bound to a connection, until this is dropped.
struct Bound {
    shared: Arc<Shared>,
    binding: Binding,
    ttl: Duration,
    /// It does not outlive the connection.
    is_revoked: bool,
    /// Ends when the binding is no longer valid.
    keeper: JoinHandle<()>,
}

impl Drop for Bound {
    fn drop(&mut self) {
        if self.is_revoked && !self.keeper.is_finished() {
            let Binding { db, id, number } = self.binding.clone();
            let argv = vec![b"LEASE.REVOKE".to_vec(), id, b"BINDING".to_vec(), number];
            self.shared.wakes.leave(db, argv);
        }
        self.keeper.abort();
    }
}

/// The leases that live as long as a connection.
#[derive(Default)]
pub(super) struct Bindings {
    by_lease: BTreeMap<(u32, Vec<u8>), Bound>,
    /// How many were left when those that ended were last looked for.
    swept: usize,
    /// The least time to live, perhaps of one that has ended.
    ttl_min: Option<Duration>,
}

impl Bindings {
    fn add(&mut self, bound: Bound) {
        if self.by_lease.len() >= (2 * self.swept).max(SWEPT_MIN) {
            self.by_lease.retain(|_, bound| !bound.keeper.is_finished());
            self.swept = self.by_lease.len();
            self.ttl_min = self.by_lease.values().map(|bound| bound.ttl).min();
        }
        self.ttl_min = self.ttl_min.into_iter().chain([bound.ttl]).min();
        self.by_lease.insert((bound.binding.db, bound.binding.id.clone()), bound);
    }

    pub(super) fn clear(&mut self) {
        *self = Bindings::default();
    }

    /// How long the client's machine may be silent: as long as the shortest of its leases.
    pub(super) fn silence(&self) -> Option<Duration> {
        self.ttl_min
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
        if let Err(error) = self.shared.router.check_room(Need::Entry, 0) {
            return self.reply(|reply| reply.error(&error));
        }
        let (db, id) = (self.db, args.at(1).to_vec());
        // Whoever binds a lease has it for its whole time, and takes it over from whoever had bound it.
        let answer = call(&self.shared, db, &[b"LEASE.BINDING", &id]).await;
        if answer.starts_with(b"-") {
            return self.out.extend_from_slice(&answer);
        }
        let number: Vec<u8> = answer.iter().copied().filter(u8::is_ascii_digit).collect();
        let ttl_ms = self
            .shared
            .router
            .read(db, |view| view.value::<Lease>(&id).ok().flatten().map_or(0, |lease| lease.ttl_ms));
        let (shared, ttl) = (self.shared.clone(), Duration::from_millis(ttl_ms));
        let binding = Binding { db, id, number };
        let kept = Kept::of(&self.client);
        let keeper = tokio::spawn(keep(shared.clone(), binding.clone(), ttl, kept));
        self.bound.add(Bound { shared, binding, ttl, is_revoked, keeper });
        self.expect_signs(None);
        self.reply(Reply::ok);
    }

    /// Ends all bindings.
    pub(super) fn unbind(&mut self) {
        self.bound.clear();
        self.expect_signs(None);
    }
}

/// A client's lease that is kept alive: while there is one, the client is not idle.
struct Kept(Arc<Client>);

impl Kept {
    fn of(client: &Arc<Client>) -> Kept {
        client.leases.fetch_add(1, Relaxed);
        Kept(client.clone())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.leases.fetch_sub(1, Relaxed);
    }
}

/// Keeps a lease alive for as long as its binding is valid.
async fn keep(shared: Arc<Shared>, binding: Binding, ttl: Duration, _kept: Kept) {
    let pause = (ttl / KEEPALIVES).max(PAUSE_MIN);
    let mut next = pause;
    loop {
        tokio::time::sleep(next).await;
        let answer = call(&shared, binding.db, &keepalive_request(&shared, &binding)).await;
        let is_over = |word: &&[u8]| answer.starts_with(word);
        if [&b"-NOLEASE"[..], b"-NOTBOUND", b"-WRONGTYPE"].iter().any(is_over) {
            return;
        }
        next = if answer.starts_with(b"-") { (pause / 4).clamp(PAUSE_MIN, RETRY_MAX) } else { pause };
    }
}

/// What keeps a lease alive, and no other of its name: that can be said from level 2 on.
fn keepalive_request<'a>(shared: &Shared, binding: &'a Binding) -> Vec<&'a [u8]> {
    let mut argv: Vec<&[u8]> = vec![b"LEASE.KEEPALIVE", &binding.id];
    if shared.router.machine().level() >= level::BOUNDED {
        argv.extend([&b"BINDING"[..], &binding.number]);
    }
    argv
}

/// Executes a command of leases; gives its answer.
async fn call(shared: &Shared, db: u32, argv: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    proposal::put_call(&mut bytes, db, argv);
    shared.router.call(&bytes, 1, Protocol::Resp2).await
}
