//! LEASE.BIND: a lease that lives as long as the connection. This node keeps it alive until the connection
//! ends; then it expires, or is revoked at once, like an ephemeral node in ZooKeeper.
//!
//! A binding has a number, and the lease is kept alive and revoked only under that number: once another
//! connection has bound it, or its name belongs to another lease, this connection no longer affects it.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use kvorum_raft::Need;
use tokio::task::JoinHandle;

use crate::connection::{Connection, Shared, clients::Client, verb::Verb};
use crate::{
    args::Args,
    commands::{InMulti, Origin, Spec},
    error::Error,
    proposal,
    resp::{Protocol, Reply},
    store::{Lease, level},
};

/// The rows of this family.
pub(in crate::connection) const VERBS: &[Verb] = &[Verb::wait_outside(
    Spec::connection("LEASE.BIND", -2)
        .about(
            &["fast", "no_multi"],
            "lease",
            "1.0.0",
            "Keeps a lease alive as long as this connection lives",
        )
        .syntax("lease-id [REVOKE]")
        .of(Origin::Kvorum)
        .in_multi(InMulti::Refused),
    |connection, argv| Box::pin(connection.bind_lease(argv)),
)];

/// How many keepalives are sent within a lease's TTL.
const KEEPALIVES: u32 = 3;
/// The shortest pause between two keepalives.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest pause after a failed keepalive.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Ended bindings are swept when there are twice as many as after the last sweep, and at least this many.
const SWEPT_MIN: usize = 16;

/// A lease, and the number under which a connection has bound it.
#[derive(Clone)]
struct Binding {
    db: u32,
    id: Vec<u8>,
    /// In decimal digits.
    number: Vec<u8>,
}

/// A lease bound to a connection until this is dropped.
struct Bound {
    shared: Arc<Shared>,
    binding: Binding,
    ttl: Duration,
    /// The lease is revoked when the connection ends.
    is_revoked: bool,
    /// Finishes when the binding is no longer valid.
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

/// The leases bound to a connection.
#[derive(Default)]
pub(in crate::connection) struct Bindings {
    by_lease: BTreeMap<(u32, Vec<u8>), Bound>,
    /// How many were left after the last sweep.
    swept: usize,
    /// The shortest TTL, possibly of a binding that has ended.
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

    pub(in crate::connection) fn clear(&mut self) {
        *self = Bindings::default();
    }

    /// How long the client's host may be silent: as long as the shortest of its leases.
    pub(in crate::connection) fn silence(&self) -> Option<Duration> {
        self.ttl_min
    }
}

impl Connection {
    /// LEASE.BIND id [REVOKE].
    pub(in crate::connection) async fn bind_lease(&mut self, argv: &[&[u8]]) {
        let args = Args::new(argv);
        let is_revoked = args.is(2, "REVOKE");
        if args.len() > 3 || args.len() == 3 && !is_revoked {
            return self.reply(|reply| reply.error(&Error::Syntax));
        }
        if let Err(error) = self.shared.router.check_room(Need::Entry, 0) {
            return self.reply(|reply| reply.error(&error));
        }
        let (db, id) = (self.db, args.at(1).to_vec());
        // Binding renews the lease for its full TTL, and takes it over from the connection that had bound it.
        let answer = call(&self.shared, db, &[b"LEASE.BINDING", &id]).await;
        if answer.starts_with(b"-") {
            return self.out.extend_from_slice(&answer);
        }
        let number: Vec<u8> = answer.iter().copied().filter(u8::is_ascii_digit).collect();
        let ttl_ms = self
            .shared
            .router
            .read(db, |view| view.value::<Lease>(&id).ok().flatten().map_or(0, |lease| lease.ttl_ms))
            .await;
        let (shared, ttl) = (self.shared.clone(), Duration::from_millis(ttl_ms));
        let binding = Binding { db, id, number };
        let kept = Kept::of(&self.client);
        let keeper = tokio::spawn(keep(shared.clone(), binding.clone(), ttl, kept));
        self.bound.add(Bound { shared, binding, ttl, is_revoked, keeper });
        self.expect_signs(None);
        self.reply(Reply::ok);
    }

    /// Ends all bindings.
    pub(in crate::connection) fn unbind(&mut self) {
        self.bound.clear();
        self.expect_signs(None);
    }
}

/// Marks a client with a lease that is kept alive, so that it does not count as idle.
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

/// Keeps a lease alive while its binding is valid.
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

/// Renews this lease, and not another of the same name: BINDING is available from level 2 on.
fn keepalive_request<'a>(shared: &Shared, binding: &'a Binding) -> Vec<&'a [u8]> {
    let mut argv: Vec<&[u8]> = vec![b"LEASE.KEEPALIVE", &binding.id];
    if shared.router.machine().level() >= level::BOUNDED {
        argv.extend([&b"BINDING"[..], &binding.number]);
    }
    argv
}

/// Executes a lease command and returns its reply.
async fn call(shared: &Shared, db: u32, argv: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    proposal::put_call(&mut bytes, db, argv);
    shared.router.call(&bytes, 1, Protocol::Resp2).await
}
