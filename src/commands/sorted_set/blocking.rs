//! Sorted sets: commands that wait until there is a member.

use super::{GROUP, pop};
use crate::{
    args::Args,
    commands::{Spec, Timeout, blocking::Until, keys},
    error::Result,
    resp::Reply,
    store::{Ctx, level},
};

const FLAGS: &[&str] = &["write", "noscript", "fast", "blocking"];
const UNTIL: Until = Until::Holds("zset");
const LAST: Timeout = Timeout::LastSeconds;

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write("BZPOPMIN", -3, keys::TAKE_FIRST, bzpopmin)
        .about(
            FLAGS,
            GROUP,
            "5.0.0",
            "Remove and return the member with the lowest score in a sorted set, or block until one is available",
        )
        .syntax("key... timeout:double")
        .complexity("O(log(N)) with N being the number of elements in the sorted set.")
        .waits(UNTIL, LAST, Reply::null_array)
        .from_level(level::WAITS),
    Spec::write("BZPOPMAX", -3, keys::TAKE_FIRST, bzpopmax)
        .about(
            FLAGS,
            GROUP,
            "5.0.0",
            "Remove and return the member with the highest score in a sorted set, or block until one is available",
        )
        .syntax("key... timeout:double")
        .complexity("O(log(N)) with N being the number of elements in the sorted set.")
        .waits(UNTIL, LAST, Reply::null_array)
        .from_level(level::WAITS),
];

fn bzpopmin(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    pop_or_wait(ctx, args, false, reply)
}

fn bzpopmax(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    pop_or_wait(ctx, args, true, reply)
}

fn pop_or_wait(ctx: &mut Ctx<'_>, args: &Args<'_>, from_top: bool, reply: &mut Reply) -> Result<()> {
    LAST.seconds(args)?;
    for key in &args.from(1)[..args.len() - 2] {
        if let Some((member, score)) = pop(ctx, key, 1, from_top)?.first() {
            reply.array(3);
            reply.bulk(key);
            reply.bulk(member);
            reply.double(*score);
            return Ok(());
        }
    }
    if !ctx.wait_for_keys() {
        reply.null_array();
    }
    Ok(())
}
