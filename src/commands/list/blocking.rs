//! Lists: commands that wait until there is an element. Whoever pushes one serves the first that waits, in the
//! same log entry.

use super::{End, GROUP, end_of, move_element, pop_first};
use crate::{
    args::Args,
    commands::{
        Spec, Timeout,
        blocking::Until,
        keys::{self, Access},
    },
    error::Result,
    resp::Reply,
    store::{Ctx, List, level},
};

const FLAGS: &[&str] = &["write", "noscript", "blocking"];
const MOVE_FLAGS: &[&str] = &["write", "denyoom", "noscript", "blocking"];
const UNTIL: Until = Until::Holds("list");
const LAST: Timeout = Timeout::LastSeconds;
const FIRST: Timeout = Timeout::Seconds(1);

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write("BLPOP", -3, keys::TAKE_FIRST, blpop)
        .about(FLAGS, GROUP, "2.0.0", "Remove and get the first element in a list, or block until one is available")
        .syntax("key... timeout:double")
        .complexity("O(N) where N is the number of provided keys.")
        .waits(UNTIL, LAST, Reply::null_array)
        .from_level(level::WAITS),
    Spec::write("BRPOP", -3, keys::TAKE_FIRST, brpop)
        .about(FLAGS, GROUP, "2.0.0", "Remove and get the last element in a list, or block until one is available")
        .syntax("key... timeout:double")
        .complexity("O(N) where N is the number of provided keys.")
        .waits(UNTIL, LAST, Reply::null_array)
        .from_level(level::WAITS),
    Spec::write("BLMPOP", -5, &[keys::counted(2, Access::Rw, "access delete")], blmpop)
        .about(
            &["write", "blocking", "movablekeys"],
            GROUP,
            "7.0.0",
            "Pop elements from a list, or block until one is available",
        )
        .syntax("timeout:double numkeys:integer key... where=<LEFT|RIGHT> [COUNT count:integer]")
        .complexity(
            "O(N+M) where N is the number of provided keys and M is the number of elements returned.",
        )
        .waits(UNTIL, FIRST, Reply::null_array)
        .from_level(level::WAITS),
    Spec::write("BLMOVE", 6, keys::MOVE, blmove)
        .about(
            MOVE_FLAGS,
            GROUP,
            "6.2.0",
            "Pop an element from a list, push it to another list and return it; or block until one is available",
        )
        .syntax("source:key destination:key wherefrom=<LEFT|RIGHT> whereto=<LEFT|RIGHT> timeout:double")
        .complexity("O(1)")
        .waits(UNTIL, LAST, Reply::null_array)
        .from_level(level::WAITS),
    Spec::write("BRPOPLPUSH", 4, keys::MOVE, brpoplpush)
        .about(
            MOVE_FLAGS,
            GROUP,
            "2.2.0",
            "Pop the last element of a list, prepend it to another list and return it; or block until one is \
             available",
        )
        .syntax("source:key destination:key timeout:double")
        .complexity("O(1)")
        .deprecated("6.2.0", "`BLMOVE` with the `RIGHT` and `LEFT` arguments")
        .waits(UNTIL, LAST, Reply::null_array)
        .from_level(level::WAITS),
];

fn blpop(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    pop(ctx, args, End::Left, reply)
}

fn brpop(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    pop(ctx, args, End::Right, reply)
}

fn pop(ctx: &mut Ctx<'_>, args: &Args<'_>, end: End, reply: &mut Reply) -> Result<()> {
    LAST.seconds(args)?;
    for key in &args.from(1)[..args.len() - 2] {
        let popped = ctx.modify(key, |list: &mut List, pages| {
            reply.array(2);
            reply.bulk(key);
            reply.bulk_or_null(list.end(end));
            list.drop_end(end, 1, pages);
            Ok(())
        })?;
        if popped.is_some() {
            return Ok(());
        }
    }
    if !ctx.wait_for_keys() {
        reply.null_array();
    }
    Ok(())
}

fn blmpop(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    FIRST.seconds(args)?;
    if !pop_first(ctx, args, 2, reply)? && !ctx.wait_for_keys() {
        reply.null_array();
    }
    Ok(())
}

fn blmove(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (from_end, to_end) = (end_of(args, 3)?, end_of(args, 4)?);
    LAST.seconds(args)?;
    move_or_wait(ctx, args, (from_end, to_end), reply)
}

fn brpoplpush(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    LAST.seconds(args)?;
    move_or_wait(ctx, args, (End::Right, End::Left), reply)
}

fn move_or_wait(
    ctx: &mut Ctx<'_>,
    args: &Args<'_>,
    (from_end, to_end): (End, End),
    reply: &mut Reply,
) -> Result<()> {
    match move_element(ctx, (args.at(1), from_end), (args.at(2), to_end))? {
        Some(element) => reply.bulk(&element),
        None if ctx.wait_for_keys() => {}
        None => reply.null(),
    }
    Ok(())
}
