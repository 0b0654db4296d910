//! Fencing: FENCE runs a command only while a token holds; FENCE.GUARD refuses all other writes to a key.
//!
//! Guards are kept with the lock they name, which therefore exists as long as it guards something.

use super::{Run, Spec, claim, key, once, two_keys};
use crate::{
    args::Args,
    error::{Error, Result},
    resp::Reply,
    store::{Claims, Ctx, View, level},
};

/// The command whose keys are also those of another.
pub(super) const NAME: &str = "FENCE";
const GROUP: &str = "lock";
const SINCE: &str = "1.0.0";

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write(NAME, -4, key(), fence).about(
        &["write", "denyoom"],
        GROUP,
        SINCE,
        "Runs a command while a token holds its lock, semaphore or election",
    ),
    Spec::write("FENCE.GUARD", 3, two_keys(), guard).about(
        &["write", "denyoom", "fast"],
        GROUP,
        SINCE,
        "Refuses all writes to a key but those that are fenced by a lock",
    ),
    Spec::write("FENCE.UNGUARD", 2, key(), unguard).about(
        &["write", "fast"],
        GROUP,
        SINCE,
        "Lets a key be written without a fence again",
    ),
];

/// Whether it runs another command.
fn is_wrapper(spec: &Spec) -> bool {
    matches!(spec.name, NAME | once::NAME)
}

/// The lock, and the keys of the command that it guards.
pub(super) fn keys<'a>(args: &Args<'a>) -> Vec<&'a [u8]> {
    let inner = args.get(3).and_then(|_| super::resolve(args.from(3)).ok()).filter(|spec| !is_wrapper(spec));
    let inner = inner.map(|spec| spec.keys_of(&Args::new(args.from(3)))).unwrap_or_default();
    args.get(1).into_iter().chain(inner).collect()
}

fn fence(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let lock = args.at(1);
    check_token(&ctx.view(), lock, args.integer(2)?)?;
    let call = Args::new(args.from(3));
    let spec = super::resolve(args.from(3))?;
    match spec.run {
        // One token is enough, and a client must not choose how deep this goes.
        Run::Write(_) if is_wrapper(spec) => {
            Err(Error::err("FENCE runs neither FENCE nor ONCE: ONCE runs FENCE"))
        }
        Run::Write(write) => {
            admit(&ctx.view(), spec, &call, Some(lock))?;
            // It has no one to tell how a wait ends.
            ctx.ticket = None;
            write(ctx, &call, reply)
        }
        Run::Read(read) => {
            let chance = if ctx.level() >= level::BOUNDED { ctx.chance().next_u64() } else { 0 };
            // A read changes nothing: it is only run for somebody who waits for its reply.
            if reply.is_on() { read(&ctx.view_by(chance), &call, reply) } else { Ok(()) }
        }
        Run::Session => Err(Error::err("FENCE runs only commands that read or write keys")),
    }
}

/// Checks that somebody holds a lock, a semaphore or an election under this token.
fn check_token(view: &View<'_>, key: &[u8], token: i64) -> Result<()> {
    let claims = view.value::<Claims>(key)?;
    let tokens = || claims.into_iter().flat_map(|claims| claims.holders(view.now_ms)).map(|hold| hold.token);
    if tokens().any(|present| present as i64 == token) {
        return Ok(());
    }
    let noun = claims.map_or("lock", |claims| claim::noun(claims.kind()));
    Err(Error::Other(match tokens().max() {
        Some(present) => format!("FENCED the present token is {present}").into(),
        None => format!("FENCED the {noun} is not held").into(),
    }))
}

/// Refuses a write to a guarded key, unless it is fenced by the lock that guards it; and anything that would take away
/// a lock that guards keys.
pub fn admit(view: &View<'_>, spec: &Spec, args: &Args<'_>, fenced_by: Option<&[u8]>) -> Result<()> {
    // What runs another command has that admitted.
    if !view.has_guards() || is_wrapper(spec) || matches!(spec.name, "FENCE.GUARD" | "FENCE.UNGUARD") {
        return Ok(());
    }
    let is_claim = matches!(spec.group, "lock" | "semaphore" | "election");
    for key in spec.written_keys(args) {
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

/// Refuses a write to a key that is not among those of its command, or of another database. No fence admits it.
pub(super) fn admit_key(view: &View<'_>, key: &[u8]) -> Result<()> {
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
