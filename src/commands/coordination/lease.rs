//! Leases: LEASE.GRANT, LEASE.KEEPALIVE, LEASE.REVOKE, LEASE.ATTACH, LEASE.INFO, LEASE.LIST. LEASE.BIND,
//! which ties a lease to a connection, is a verb of the connection.

use crate::commands::{
    Origin, Spec,
    coordination::fence,
    coordination::hold,
    keys::{self, Access},
};
use crate::{
    args::Args,
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, Lease, View, level},
};

const GROUP: &str = "lease";
const SINCE: &str = "1.0.0";

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write("LEASE.GRANT", -3, keys::NONE, grant)
        .about(
            &["write", "denyoom", "fast"],
            GROUP,
            SINCE,
            "Makes a lease: a time to live that keys and locks can share",
        )
        .syntax("PX milliseconds:integer [ID lease-id]")
        .complexity("O(1)")
        .of(Origin::Kvorum),
    Spec::write("LEASE.KEEPALIVE", -2, keys::CHANGE, keepalive)
        .about(&["write", "fast"], GROUP, SINCE, "Gives a lease its whole time again")
        .arity_below(level::BOUNDED, 2)
        .syntax("lease-id:key [BINDING number:integer]")
        .complexity("O(1)")
        .of(Origin::Kvorum),
    Spec::write("LEASE.BINDING", 2, keys::CHANGE, binding)
        .about(
            &["write", "fast"],
            GROUP,
            SINCE,
            "Gives a lease its whole time again, and a number for whom it is bound to",
        )
        .syntax("lease-id:key")
        .complexity("O(1)")
        .of(Origin::Kvorum),
    Spec::write("LEASE.REVOKE", -2, keys::CHANGE, revoke)
        .about(&["write"], GROUP, SINCE, "Ends a lease: deletes its keys and releases what it holds")
        .syntax("lease-id:key [BINDING number:integer]")
        .complexity("O(N) where N is the number of its keys")
        .of(Origin::Kvorum),
    Spec::write("LEASE.ATTACH", -3, &[keys::rest(2, Access::Rw, "update")], attach)
        .about(&["write", "denyoom"], GROUP, SINCE, "Lets keys live as long as a lease")
        .syntax("lease-id key...")
        .complexity("O(N) where N is the number of keys")
        .of(Origin::Kvorum),
    Spec::read("LEASE.INFO", 2, keys::READ, info)
        .about(&["readonly"], GROUP, SINCE, "Says how long a lease lasts, and which keys depend on it")
        .syntax("lease-id:key")
        .complexity("O(N) where N is the number of its keys")
        .of(Origin::Kvorum),
    Spec::read("LEASE.LIST", -1, keys::NONE, list)
        .about(&["readonly"], GROUP, SINCE, "Iterates over the leases")
        .syntax("[MATCH pattern:pattern] [CURSOR cursor:integer]")
        .complexity("O(1) for every call, O(N) for a whole iteration, where N is the number of keys")
        .of(Origin::Kvorum),
];

fn grant(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    if !args.is(1, "PX") {
        return Err(Error::Syntax);
    }
    let ttl_ms = hold::milliseconds(args, 2, 1, "lease.grant")?;
    let id = match (args.len(), args.is(3, "ID")) {
        (3, _) => free_id(ctx),
        (5, true) => args.at(4).to_vec(),
        _ => return Err(Error::Syntax),
    };
    fence::admit_key(&ctx.view(), &id)?;
    if ctx.exists(&id) {
        return Err(Error::err("a key of this name exists already"));
    }
    ctx.renew_lease(&id, Some(Lease::new(ttl_ms)))?;
    reply_lease(&id, ttl_ms, reply);
    Ok(())
}

/// A new name for a lease that is not the name of any key.
fn free_id(ctx: &mut Ctx<'_>) -> Vec<u8> {
    loop {
        let id = format!("lease:{}", ctx.issue_token()).into_bytes();
        if !ctx.exists(&id) {
            return id;
        }
    }
}

fn reply_lease(id: &[u8], remaining_ms: u64, reply: &mut Reply) {
    reply.map(2);
    reply.bulk(b"id");
    reply.bulk(id);
    hold::reply_remaining(Some(remaining_ms), reply);
}

/// The number of an optional `BINDING number` at the end of a call.
fn named_binding(args: &Args<'_>) -> Result<Option<i64>> {
    match (args.len(), args.is(2, "BINDING")) {
        (2, _) => Ok(None),
        (4, true) => Ok(Some(args.integer(3)?)),
        _ => Err(Error::Syntax),
    }
}

fn is_bound_by(lease: &Lease, binding: Option<i64>) -> bool {
    binding.is_none_or(|binding| lease.binding as i64 == binding)
}

fn keepalive(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let binding = named_binding(args)?;
    if let Some(lease) = ctx.lease(args.at(1))?
        && !is_bound_by(lease, binding)
    {
        return Err(Error::Other("NOTBOUND the lease is not bound by this number".into()));
    }
    let deadline = ctx.renew_lease(args.at(1), None)?.ok_or_else(hold::no_lease)?;
    reply_lease(args.at(1), deadline - ctx.now_ms, reply);
    Ok(())
}

fn revoke(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let binding = named_binding(args)?;
    let lease = ctx.lease(args.at(1))?;
    let is_meant = lease.is_some_and(|lease| is_bound_by(lease, binding));
    reply.flag(is_meant && ctx.delete(args.at(1)));
    Ok(())
}

fn binding(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let id = args.at(1);
    ctx.renew_lease(id, None)?.ok_or_else(hold::no_lease)?;
    reply.integer(ctx.bind_lease(id)? as i64);
    Ok(())
}

fn attach(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (id, keys) = (args.at(1), args.from(2));
    let level = ctx.level();
    let lease = ctx.lease(id)?.ok_or_else(hold::no_lease)?;
    if !lease.has_room(keys, level) {
        return Err(Error::err("the lease has no room for another key"));
    }
    if keys.iter().any(|key| ctx.view().keeps_its_time(key)) {
        return Err(Error::err(
            "a lock, semaphore, election, lease or session can not be attached to a lease",
        ));
    }
    let mut count = 0;
    for key in keys {
        if ctx.exists(key) {
            ctx.attach(id, key);
            count += 1;
        }
    }
    reply.size(count);
    Ok(())
}

fn info(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let id = args.at(1);
    let Some(lease) = view.value::<Lease>(id)? else {
        reply.null();
        return Ok(());
    };
    let deadline = view.deadline(id).flatten();
    reply.map(3);
    reply.bulk(b"ttl_ms");
    reply.integer(lease.ttl_ms as i64);
    hold::reply_remaining(deadline.map(|deadline| deadline.saturating_sub(view.estimate_ms)), reply);
    reply.bulk(b"keys");
    reply.array(lease.keys().count());
    lease.keys().for_each(|key| reply.bulk(key));
    Ok(())
}

fn list(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    hold::list(view, args, "lease", reply)
}
