//! Locks: LOCK.ACQUIRE, LOCK.RENEW, LOCK.RELEASE, LOCK.INFO, LOCK.LIST, LOCK.BREAK.

use crate::commands::{
    Origin, Spec,
    blocking::Until,
    coordination::hold::{self, Options},
    keys,
};
use crate::{
    args::Args,
    error::Result,
    resp::Reply,
    store::{ClaimKind, Ctx, Holder, Share, View},
};

const GROUP: &str = "lock";
const SINCE: &str = "1.0.0";

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write("LOCK.ACQUIRE", -5, keys::CHANGE, acquire)
        .about(
            &["write", "denyoom", "fast", "blocking"],
            GROUP,
            SINCE,
            "Takes a lock, or takes it once more, and gives its fencing token",
        )
        .syntax(
            "key owner span=<PX milliseconds:integer|LEASE lease-id> [WAIT milliseconds:integer] \
             [SHARED] [DATA data] [DELAY milliseconds:integer]",
        )
        .complexity("O(log(N)) where N is the number of its holders and waiters")
        .of(Origin::Kvorum)
        .waits(Until::Granted, hold::WAIT, Reply::null),
    Spec::write("LOCK.RENEW", 6, keys::CHANGE, renew)
        .about(&["write", "fast"], GROUP, SINCE, "Lets a hold of a lock last until a new deadline")
        .syntax("key owner token:integer PX milliseconds:integer")
        .complexity("O(log(N)) where N is the number of its holders")
        .of(Origin::Kvorum),
    Spec::write("LOCK.RELEASE", 4, keys::CHANGE, release)
        .about(&["write", "fast"], GROUP, SINCE, "Takes back one acquisition of a lock")
        .syntax("key owner token:integer")
        .complexity("O(log(N)) where N is the number of its holders and waiters")
        .of(Origin::Kvorum),
    Spec::write("LOCK.BREAK", 2, keys::CHANGE, break_lock)
        .about(&["write", "fast", "admin"], GROUP, SINCE, "Ends all holds of a lock, whoever has them")
        .syntax("key")
        .complexity("O(N) where N is the number of its holders")
        .of(Origin::Kvorum),
    Spec::read("LOCK.INFO", 2, keys::READ, info)
        .about(
            &["readonly", "fast"],
            GROUP,
            SINCE,
            "Says who holds a lock, under which token and for how long, and who waits for it",
        )
        .syntax("key")
        .complexity("O(N) where N is the number of its holders and waiters")
        .of(Origin::Kvorum),
    Spec::read("LOCK.LIST", -1, keys::NONE, list)
        .about(&["readonly"], GROUP, SINCE, "Iterates over the locks")
        .syntax("[MATCH pattern:pattern] [CURSOR cursor:integer]")
        .complexity("O(1) for every call, O(N) for a whole iteration, where N is the number of keys")
        .of(Origin::Kvorum),
];

fn acquire(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (key, owner) = (args.at(1), args.at(2));
    let options = Options::parse(args, 3, "DATA", true, "lock.acquire")?;
    let share = if options.is_shared { Share::Permits(1) } else { Share::All };
    let asked = options.acquire(ctx, key, owner, share)?;
    let answer = ctx.claims_or_new(key, ClaimKind::Lock, |lock, turn| lock.acquire(&asked, turn))?;
    hold::reply_answer(ctx, answer, ClaimKind::Lock, reply);
    Ok(())
}

fn renew(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    hold::renew(ctx, args, ClaimKind::Lock, "lock.renew", reply)
}

fn release(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let left = hold::release(ctx, args, ClaimKind::Lock)?;
    reply.integer(left as i64);
    Ok(())
}

fn break_lock(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (key, now_ms) = (args.at(1), ctx.now_ms);
    let is_held = ctx.claims(key, ClaimKind::Lock, |lock, turn| {
        let is_held = lock.holders(now_ms).next().is_some();
        turn.changed = is_held;
        lock.break_all();
        Ok(is_held)
    })?;
    if is_held == Some(true) {
        tracing::warn!(key = %key.escape_ascii(), "a lock was broken");
    }
    reply.flag(is_held == Some(true));
    Ok(())
}

fn info(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let Some(lock) = view.claims(args.at(1), ClaimKind::Lock)? else {
        reply.null();
        return Ok(());
    };
    let holders: Vec<&Holder> = lock.holders(view.now_ms).collect();
    let is_shared = holders.iter().any(|holder| holder.share != Share::All);
    reply.map(4);
    reply.bulk(b"mode");
    reply.bulk(match (holders.is_empty(), is_shared) {
        (true, _) => b"free",
        (false, true) => b"shared",
        (false, false) => b"exclusive",
    });
    reply.bulk(b"holders");
    reply.array(holders.len());
    holders.iter().for_each(|holder| hold::reply_holder(holder, view, false, reply));
    hold::reply_waiting(lock, reply);
    reply.bulk(b"delayed_ms");
    reply.integer(lock.closed_until().saturating_sub(view.estimate_ms) as i64);
    Ok(())
}

fn list(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    hold::list(view, args, "lock", reply)
}
