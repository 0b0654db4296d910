//! Fencing: FENCE runs a command only while its token is valid; FENCE.GUARD makes a key refuse all unfenced
//! writes.
//!
//! Guards are stored with the lock that they name, so that lock exists while it guards something.

use crate::commands::{
    Call, Origin, Run, Spec,
    coordination::hold,
    keys::{self, Access},
};
use crate::{
    args::Args,
    error::{Error, Result},
    resp::Reply,
    store::{Claims, Ctx, View},
};

/// Where the command begins that FENCE runs.
const COMMAND_AT: usize = 3;
const GROUP: &str = "lock";
const SINCE: &str = "1.0.0";

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write("FENCE", -4, &[keys::one(1, Access::Ro, ""), keys::WRAPPED], fence)
        .about(
            &["write", "denyoom"],
            GROUP,
            SINCE,
            "Runs a command while a token holds its lock, semaphore or election",
        )
        .syntax("lock:key token:integer command [argument...]")
        .complexity("Depends on the command")
        .of(Origin::Kvorum)
        .wraps(|_| Some(COMMAND_AT)),
    Spec::write(
        "FENCE.GUARD",
        3,
        &[keys::one(1, Access::Rw, "update"), keys::one(2, Access::Rw, "update")],
        guard,
    )
    .about(
        &["write", "denyoom", "fast"],
        GROUP,
        SINCE,
        "Refuses all writes to a key but those that are fenced by a lock",
    )
    .syntax("key lock:key")
    .complexity("O(1)")
    .of(Origin::Kvorum)
    .minds_guards(|_| true),
    Spec::write("FENCE.UNGUARD", 2, keys::CHANGE, unguard)
        .about(&["write", "fast"], GROUP, SINCE, "Lets a key be written without a fence again")
        .syntax("key")
        .complexity("O(1)")
        .of(Origin::Kvorum)
        .minds_guards(|_| true),
];

fn fence(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let lock = args.at(1);
    check_token(&ctx.view(), lock, args.integer(2)?)?;
    let call = Call::resolve_at(args.from(COMMAND_AT), ctx.level())?;
    if matches!(call.spec.run, Run::Connection) {
        return Err(Error::err("FENCE runs only commands that read or write keys"));
    }
    if call.spec.wraps.is_some() {
        // One token is enough, and clients must not control the depth of recursion.
        return Err(Error::err("FENCE runs neither FENCE nor ONCE: ONCE runs FENCE"));
    }
    // A fenced command must not block: nobody could be told how its wait ends.
    ctx.ticket = None;
    call.run(ctx, Some(lock), reply)
}

/// Checks that a lock, a semaphore or an election is held under this token.
fn check_token(view: &View<'_>, key: &[u8], token: i64) -> Result<()> {
    let claims = view.value::<Claims>(key)?;
    if claims.is_some_and(|claims| claims.has_token(token.cast_unsigned(), view.now_ms)) {
        return Ok(());
    }
    let noun = claims.map_or("lock", |claims| hold::noun(claims.kind()));
    Err(Error::Other(match claims.and_then(|claims| claims.holders(view.now_ms).next_back()) {
        Some(present) => format!("FENCED the present token is {}", present.token).into(),
        None => format!("FENCED the {noun} is not held").into(),
    }))
}

/// Refuses a write to a guarded key, unless it is fenced by the lock that guards it; and any write that would
/// remove a lock that guards keys.
pub fn admit(view: &View<'_>, call: &Call<'_>, fenced_by: Option<&[u8]>) -> Result<()> {
    // For a command that another one runs, this is called when it runs.
    if !view.has_guards() || (call.spec.minds_guards)(&call.args) {
        return Ok(());
    }
    let is_claim = matches!(call.spec.group, "lock" | "semaphore" | "election");
    for key in call.written_keys() {
        if let Some(lock) = view.guard_of(key)
            && fenced_by != Some(lock)
        {
            return Err(guarded(key, lock));
        }
        if !is_claim && view.value::<Claims>(key).is_ok_and(|claims| claims.is_some_and(Claims::guards_any)) {
            let key = key.escape_ascii();
            return Err(Error::Other(
                format!("GUARDED '{key}' guards keys: FENCE.UNGUARD them first").into(),
            ));
        }
    }
    Ok(())
}

fn guarded(key: &[u8], lock: &[u8]) -> Error {
    let (key, lock) = (key.escape_ascii(), lock.escape_ascii());
    Error::Other(format!("GUARDED '{key}' is guarded by '{lock}': write it with FENCE").into())
}

/// Refuses a write to a key that is not among the keys of its command, or in another database. No fence
/// admits it.
pub(in crate::commands) fn admit_key(view: &View<'_>, key: &[u8]) -> Result<()> {
    if let Some(lock) = view.guard_of(key) {
        return Err(guarded(key, lock));
    }
    if view.value::<Claims>(key).is_ok_and(|claims| claims.is_some_and(Claims::guards_any)) {
        let key = key.escape_ascii();
        return Err(Error::Other(format!("GUARDED '{key}' guards keys: FENCE.UNGUARD them first").into()));
    }
    Ok(())
}

fn guard(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let is_new = ctx.guard(args.at(1), args.at(2))?;
    reply.flag(is_new);
    Ok(())
}

fn unguard(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.flag(ctx.unguard(args.at(1)));
    Ok(())
}
