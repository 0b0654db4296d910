//! Locks: LOCK.ACQUIRE, LOCK.RENEW, LOCK.RELEASE, LOCK.INFO, LOCK.LIST, LOCK.BREAK; and FENCE, which runs a command
//! only while a token holds its lock.
//!
//! Time is the log's clock and tokens are part of the replicated state, so neither a jump of a clock nor a failover
//! ends a hold early or issues a token twice. Whoever finds a lock taken is told so at once: nobody waits here.

use super::{Keys, Run, Spec, key, scan::ScanOptions};
use crate::{
    args::Args,
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, Holder, Lock, View, Wish},
};

const GROUP: &str = "lock";
const SINCE: &str = "1.0.0";

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write("LOCK.ACQUIRE", -5, key(), acquire).about(
        &["write", "denyoom", "fast"],
        GROUP,
        SINCE,
        "Takes a lock, or takes it once more, and gives its fencing token",
    ),
    Spec::write("LOCK.RENEW", 6, key(), renew).about(
        &["write", "fast"],
        GROUP,
        SINCE,
        "Lets a hold of a lock last until a new deadline",
    ),
    Spec::write("LOCK.RELEASE", 4, key(), release).about(
        &["write", "fast"],
        GROUP,
        SINCE,
        "Takes back one acquisition of a lock",
    ),
    Spec::write("LOCK.BREAK", 2, key(), break_lock).about(
        &["write", "fast", "admin"],
        GROUP,
        SINCE,
        "Ends all holds of a lock, whoever has them",
    ),
    Spec::read("LOCK.INFO", 2, key(), info).about(
        &["readonly", "fast"],
        GROUP,
        SINCE,
        "Says who holds a lock, under which token and for how long",
    ),
    Spec::read("LOCK.LIST", -1, Keys::None, list).about(
        &["readonly", "touches_arbitrary_keys"],
        GROUP,
        SINCE,
        "Iterates over the locks that are held",
    ),
    Spec::write("FENCE", -4, key(), fence).about(
        &["write", "denyoom"],
        GROUP,
        SINCE,
        "Runs a command while a token holds its lock",
    ),
];

/// The longest hold without renewal, in milliseconds: a year.
const TTL_MS_MAX: i64 = 365 * 24 * 3600 * 1000;

/// The deadline that `PX ms` at `index` asks for.
fn deadline(ctx: &Ctx<'_>, args: &Args<'_>, index: usize, command: &'static str) -> Result<u64> {
    if !args.is(index, "PX") {
        return Err(Error::Syntax);
    }
    match args.get(index + 1).map(|_| args.integer(index + 1)).transpose()? {
        Some(ttl_ms @ 1..=TTL_MS_MAX) => Ok(ctx.now_ms + ttl_ms.unsigned_abs()),
        Some(_) => Err(Error::InvalidExpire(command.into())),
        None => Err(Error::Syntax),
    }
}

fn acquire(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (key, owner) = (args.at(1), args.at(2));
    let deadline = deadline(ctx, args, 3, "lock.acquire")?;
    let mut wish = Wish { owner, is_shared: false, deadline, data: None };
    let mut index = 5;
    while index < args.len() {
        if args.is(index, "SHARED") {
            wish.is_shared = true;
        } else if args.is(index, "DATA") {
            index += 1;
            wish.data = Some(args.get(index).ok_or(Error::Syntax)?);
        } else {
            return Err(Error::Syntax);
        }
        index += 1;
    }
    let (token, now_ms) = (ctx.next_token(), ctx.now_ms);
    let granted = ctx.modify_or_create::<Lock, _>(key, |lock, pages| {
        let granted = lock.acquire(wish, token, now_ms).map(|holder| (holder.token, holder.deadline));
        if granted.is_none() {
            pages.unchanged();
        }
        Ok(granted)
    })?;
    let Some((held_under, held_until)) = granted else {
        reply.null();
        return Ok(());
    };
    if held_under == token {
        ctx.issue_token();
    }
    follow_holders(ctx, key);
    reply_hold(held_under, held_until - now_ms, reply);
    Ok(())
}

/// The key dies with its last holder.
fn follow_holders(ctx: &mut Ctx<'_>, key: &[u8]) {
    let view = ctx.view();
    let last = view.value::<Lock>(key).ok().flatten().and_then(Lock::last_deadline);
    if last.is_some() && view.deadline(key) != Some(last) {
        ctx.set_deadline(key, last);
    }
}

fn reply_hold(token: u64, remaining_ms: u64, reply: &mut Reply) {
    reply.map(2);
    reply.bulk(b"token");
    reply.integer(token as i64);
    reply.bulk(b"remaining_ms");
    reply.integer(remaining_ms as i64);
}

/// Checks that an owner holds a lock under this token; says otherwise what is wrong.
fn check_hold(view: &View<'_>, key: &[u8], owner: &[u8], token: i64) -> Result<()> {
    let not_held = || Error::Other("NOTHELD the lock is not held".into());
    let lock = view.value::<Lock>(key)?.ok_or_else(not_held)?;
    let Some(holder) = lock.of_owner(owner, view.now_ms) else {
        let is_held = lock.holders(view.now_ms).next().is_some();
        return Err(if is_held {
            Error::Other("NOTOWNER the lock is held by another owner".into())
        } else {
            not_held()
        });
    };
    if holder.token as i64 == token {
        return Ok(());
    }
    Err(Error::Other(format!("OLDTOKEN the owner holds the lock under token {}", holder.token).into()))
}

fn renew(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (key, owner, token) = (args.at(1), args.at(2), args.integer(3)?);
    let deadline = deadline(ctx, args, 4, "lock.renew")?;
    check_hold(&ctx.view(), key, owner, token)?;
    ctx.modify::<Lock, _>(key, |lock, _| {
        lock.renew(owner, deadline);
        Ok(())
    })?;
    follow_holders(ctx, key);
    reply_hold(token.unsigned_abs(), deadline - ctx.now_ms, reply);
    Ok(())
}

fn release(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (key, owner, token) = (args.at(1), args.at(2), args.integer(3)?);
    check_hold(&ctx.view(), key, owner, token)?;
    let now_ms = ctx.now_ms;
    let left = ctx.modify::<Lock, _>(key, |lock, _| Ok(lock.release(owner, now_ms)))?;
    follow_holders(ctx, key);
    reply.integer(left.unwrap_or(0) as i64);
    Ok(())
}

fn break_lock(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let key = args.at(1);
    let is_held = ctx.view().value::<Lock>(key)?.is_some();
    if is_held {
        tracing::warn!(key = %key.escape_ascii(), "a lock was broken");
        ctx.delete(key);
    }
    reply.flag(is_held);
    Ok(())
}

fn info(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let Some(lock) = view.value::<Lock>(args.at(1))? else {
        reply.null();
        return Ok(());
    };
    let holders: Vec<&Holder> = lock.holders(view.now_ms).collect();
    reply.map(2);
    reply.bulk(b"mode");
    reply.bulk(if lock.is_shared() { b"shared" } else { b"exclusive" });
    reply.bulk(b"holders");
    reply.array(holders.len());
    for holder in holders {
        reply.map(5);
        reply.bulk(b"owner");
        reply.bulk(&holder.owner);
        reply.bulk(b"token");
        reply.integer(holder.token as i64);
        reply.bulk(b"count");
        reply.integer(holder.count as i64);
        reply.bulk(b"remaining_ms");
        reply.integer(holder.deadline.saturating_sub(view.estimate_ms) as i64);
        reply.bulk(b"data");
        reply.bulk(&holder.data);
    }
    Ok(())
}

fn list(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (mut pattern, mut cursor) = (&b"*"[..], &b"0"[..]);
    for index in (1..args.len()).step_by(2) {
        let value = args.get(index + 1).ok_or(Error::Syntax)?;
        match () {
            () if args.is(index, "MATCH") => pattern = value,
            () if args.is(index, "CURSOR") => cursor = value,
            () => return Err(Error::Syntax),
        }
    }
    let scan: [&[u8]; 6] = [b"SCAN", cursor, b"MATCH", pattern, b"TYPE", b"lock"];
    ScanOptions::parse(&Args::new(&scan), 1, true)?.reply_keys(view, reply);
    Ok(())
}

fn fence(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    check_token(&ctx.view(), args.at(1), args.integer(2)?)?;
    let call = Args::new(args.from(3));
    let spec = super::resolve(args.from(3))?;
    match spec.run {
        // One token is enough, and a client must not choose how deep this goes.
        Run::Write(_) if spec.name == "FENCE" => Err(Error::err("FENCE calls can not be nested")),
        Run::Write(write) => write(ctx, &call, reply),
        Run::Read(read) => read(&ctx.view(), &call, reply),
        Run::Session => Err(Error::err("FENCE runs only commands that read or write keys")),
    }
}

/// Checks that somebody holds a lock under this token.
fn check_token(view: &View<'_>, key: &[u8], token: i64) -> Result<()> {
    let lock = view.value::<Lock>(key)?;
    let tokens = || lock.into_iter().flat_map(|lock| lock.holders(view.now_ms)).map(|holder| holder.token);
    if tokens().any(|present| present as i64 == token) {
        return Ok(());
    }
    Err(Error::Other(match tokens().max() {
        Some(present) => format!("FENCED the present token is {present}").into(),
        None => "FENCED the lock is not held".into(),
    }))
}
