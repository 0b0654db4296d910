//! What commands may do to claims, guards, leases and sessions.

use crate::{
    error::{Error, Result},
    store::{
        Caller, Ctx, Deadline,
        claims::Claims,
        client_session::ClientSession,
        lease::Lease,
        level,
        object::{Typed, Value},
        owner::{ClaimKind, Turn},
        state::State,
        waits::Ticket,
    },
};

impl Ctx<'_> {
    /// Changes the claims of a kind at a key; None if the key does not exist.
    pub fn claims<R>(
        &mut self,
        key: &[u8],
        kind: ClaimKind,
        change: impl FnOnce(&mut Claims, &mut Turn<'_>) -> Result<R>,
    ) -> Result<Option<R>> {
        self.locate(key);
        if self.view().claims(key, kind)?.is_none() {
            return Ok(None);
        }
        let changed = self.state.change_claims(self.db, key, |claims, turn| {
            let result = change(claims, turn);
            turn.changed &= result.is_ok();
            result
        });
        changed.transpose()
    }

    /// As [`Ctx::claims`], but begins with new claims if the key does not exist.
    pub fn claims_or_new<R>(
        &mut self,
        key: &[u8],
        kind: ClaimKind,
        change: impl FnOnce(&mut Claims, &mut Turn<'_>) -> Result<R>,
    ) -> Result<R> {
        if self.locate(key).found.is_ok() {
            let Some(present) = self.view().value::<Claims>(key)?.map(Claims::kind) else {
                unreachable!("it was found");
            };
            let is_restored = self.level() >= level::BOUNDED;
            let result = self.claims(key, present, |claims, turn| {
                let before = claims.nature();
                let result = claims.become_kind(kind).and_then(|()| change(claims, turn));
                if result.is_err() && is_restored {
                    claims.set_nature(before);
                }
                result
            });
            return result.map(|result| result.expect("it is there"));
        }
        let mut claims = Claims::new(kind);
        let State { token, wakes, .. } = &mut *self.state;
        let mut turn = Turn { now_ms: self.now_ms, token, wakes, changed: true };
        let result = change(&mut claims, &mut turn)?;
        claims.settle(&mut turn);
        if !claims.is_idle() {
            let deadline = claims.next_deadline().map_or(Deadline::None, Deadline::At);
            self.put_value(key, claims.into_value(), deadline);
        }
        Ok(result)
    }

    /// Allows only holders of the claims at `lock` to write a key. False if that was so already.
    pub fn guard(&mut self, key: &[u8], lock: &[u8]) -> Result<bool> {
        // Nobody could ever take a lock that guards itself, or either of two that guard each other.
        let is_claimed = || self.view().value::<Claims>(key).is_ok_and(|claims| claims.is_some());
        if self.level() >= level::BOUNDED && (key == lock || is_claimed()) {
            return Err(Error::err("a lock, semaphore or election can not be guarded"));
        }
        match self.view().guard_of(key) {
            Some(present) if present == lock => return Ok(false),
            Some(present) => {
                let present = present.escape_ascii();
                return Err(Error::err(format!("the key is guarded by '{present}' already")));
            }
            None => {}
        }
        if self.locate(lock).found.is_err() {
            let mut claims = Claims::new(ClaimKind::Lock);
            claims.guard(key)?;
            self.put_value(lock, claims.into_value(), Deadline::None);
            return Ok(true);
        }
        if self.view().value::<Claims>(lock)?.is_some() {
            self.state.guard(self.db, key, lock)?;
        }
        Ok(true)
    }

    /// Lets anybody write a key again. False if it was not guarded.
    pub fn unguard(&mut self, key: &[u8]) -> bool {
        self.state.unguard(self.db, key)
    }

    /// A new token, higher than all that were ever issued.
    pub fn issue_token(&mut self) -> u64 {
        self.state.token += 1;
        self.state.token
    }

    /// The session at a key.
    pub fn session(&mut self, id: &[u8]) -> Result<Option<&ClientSession>> {
        self.locate(id);
        self.view().value::<ClientSession>(id)
    }

    /// Stores a session at a key that does not exist.
    pub fn put_session(&mut self, id: &[u8], session: ClientSession) {
        let deadline = self.now_ms + session.ttl_ms;
        self.put_value(id, Value::Session(session), Deadline::At(deadline));
    }

    /// Records that a command was applied in a session, and its reply, unless that is too long.
    pub fn remember(&mut self, caller: &Caller, number: u64, reply: Option<&[u8]>) {
        self.state.remember(caller, number, reply);
    }

    /// The lease at a key.
    pub fn lease(&mut self, id: &[u8]) -> Result<Option<&Lease>> {
        self.locate(id);
        self.view().value::<Lease>(id)
    }

    /// Creates a lease, or renews the existing one for its full TTL. Returns its deadline.
    pub fn renew_lease(&mut self, id: &[u8], lease: Option<Lease>) -> Result<Option<u64>> {
        if let Some(lease) = lease {
            let deadline = self.now_ms + lease.ttl_ms;
            self.put_value(id, Value::Lease(lease), Deadline::At(deadline));
            return Ok(Some(deadline));
        }
        let Some(ttl_ms) = self.lease(id)?.map(|lease| lease.ttl_ms) else { return Ok(None) };
        let deadline = self.now_ms + ttl_ms;
        self.set_deadline(id, Some(deadline));
        Ok(Some(deadline))
    }

    /// Binds an existing lease to another connection, and returns the number of that binding.
    pub fn bind_lease(&mut self, id: &[u8]) -> Result<u64> {
        let binding = self.issue_token();
        self.modify::<Lease, _>(id, |lease, _| {
            lease.binding = binding;
            Ok(())
        })?;
        Ok(binding)
    }

    /// Makes an existing plain key depend on an existing lease, and on no other.
    pub fn attach(&mut self, id: &[u8], key: &[u8]) {
        self.state.detach_key(self.db, key);
        self.state.attach(self.db, id, key);
    }

    /// The client that waited under a ticket is gone.
    pub fn cancel(&mut self, key: &[u8], ticket: Ticket) {
        if self.state.cancel_wait(ticket) {
            return;
        }
        self.state.change_ticketed(self.db, key, ticket, |claims, turn| {
            claims.cancel(ticket, turn.now_ms);
        });
    }

    /// The client that waited under a ticket has received its grant.
    pub fn confirm(&mut self, key: &[u8], ticket: Ticket) {
        self.state.change_ticketed(self.db, key, ticket, |claims, turn| {
            claims.confirm(ticket);
            // The change is not observable.
            turn.changed = false;
        });
    }

    /// A node's waits are over, except those of one run of it.
    pub fn forget_node(&mut self, node: u64, but_boot: u64) {
        self.state.forget_node(node, but_boot);
    }
}
