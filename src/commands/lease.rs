//! Leases: LEASE.GRANT, LEASE.KEEPALIVE, LEASE.REVOKE, LEASE.ATTACH, LEASE.INFO, LEASE.LIST. LEASE.BIND, which ties one
//! to a connection, is the session's.

use super::{Keys, Spec, claim, fence, key};
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
    Spec::write("LEASE.GRANT", -3, Keys::None, grant).about(
        &["write", "denyoom", "fast"],
        GROUP,
        SINCE,
        "Makes a lease: a time to live that keys and locks can share",
    ),
    Spec::write("LEASE.KEEPALIVE", -2, key(), keepalive).about(
        &["write", "fast"],
        GROUP,
        SINCE,
        "Gives a lease its whole time again",
    ),
    Spec::write("LEASE.BINDING", 2, key(), binding).about(
        &["write", "fast"],
        GROUP,
        SINCE,
        "Gives a lease its whole time again, and a number for whom it is bound to",
    ),
    Spec::write("LEASE.REVOKE", -2, key(), revoke).about(
        &["write"],
        GROUP,
        SINCE,
        "Ends a lease: deletes its keys and releases what it holds",
    ),
    Spec::write("LEASE.ATTACH", -3, Keys::Range { first: 2, last: -1, step: 1 }, attach).about(
        &["write", "denyoom"],
        GROUP,
        SINCE,
        "Lets keys live as long as a lease",
    ),
    Spec::read("LEASE.INFO", 2, key(), info).about(
        &["readonly"],
        GROUP,
        SINCE,
        "Says how long a lease lasts, and which keys depend on it",
    ),
    Spec::read("LEASE.LIST", -1, Keys::None, list).about(
        &["readonly", "touches_arbitrary_keys"],
        GROUP,
        SINCE,
        "Iterates over the leases",
    ),
    Spec::session("LEASE.BIND", -2).about(
        &["fast", "no_multi"],
        GROUP,
        SINCE,
        "Keeps a lease alive as long as this connection lives",
    ),
];

fn grant(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    if !args.is(1, "PX") {
        return Err(Error::Syntax);
    }
    let ttl_ms = claim::milliseconds(args, 2, 1, "lease.grant")?;
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

/// A name for a lease that no key has.
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
    claim::reply_remaining(Some(remaining_ms), reply);
}

/// The binding that an optional `BINDING number` names, at the end of a call.
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
    if ctx.level() < level::BOUNDED && args.len() > 2 {
        return Err(Error::Arity("lease.keepalive".into()));
    }
    let binding = named_binding(args)?;
    if let Some(lease) = ctx.lease(args.at(1))?
        && !is_bound_by(lease, binding)
    {
        return Err(Error::Other("NOTBOUND the lease is not bound by this number".into()));
    }
    let deadline = ctx.renew_lease(args.at(1), None)?.ok_or_else(claim::no_lease)?;
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
    ctx.renew_lease(id, None)?.ok_or_else(claim::no_lease)?;
    reply.integer(ctx.bind_lease(id)? as i64);
    Ok(())
}

fn attach(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (id, keys) = (args.at(1), args.from(2));
    let lease = ctx.lease(id)?.ok_or_else(claim::no_lease)?;
    if !lease.has_room(&keys.concat()) {
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
    claim::reply_remaining(deadline.map(|deadline| deadline.saturating_sub(view.estimate_ms)), reply);
    reply.bulk(b"keys");
    reply.array(lease.keys().count());
    lease.keys().for_each(|key| reply.bulk(key));
    Ok(())
}

fn list(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    claim::list(view, args, "lease", reply)
}
