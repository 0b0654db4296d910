//! ZMPOP and BZMPOP: members from an end of the first of several sorted sets that there is.

use super::{GROUP, pop};
use crate::{
    args::Args,
    commands::{
        Spec, Timeout,
        blocking::Until,
        keys::{self, Access},
    },
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, level},
};

const COMPLEXITY: &str = "O(K) + O(M*log(N)) where K is the number of provided keys, N being the number of elements \
                          in the sorted set, and M being the number of elements popped.";
const TIMEOUT: Timeout = Timeout::Seconds(1);

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write("ZMPOP", -4, &[keys::counted(1, Access::Rw, "access delete")], zmpop)
        .about(&["write"], GROUP, "7.0.0", "Remove and return members of the first sorted set that there is")
        .syntax("numkeys:integer key... where=<MIN|MAX> [COUNT count:integer]")
        .complexity(COMPLEXITY)
        .from_level(level::TYPES),
    Spec::write("BZMPOP", -5, &[keys::counted(2, Access::Rw, "access delete")], bzmpop)
        .about(
            &["write", "blocking"],
            GROUP,
            "7.0.0",
            "Remove and return members of the first sorted set that there is, or block until there is one",
        )
        .syntax("timeout:double numkeys:integer key... where=<MIN|MAX> [COUNT count:integer]")
        .complexity(COMPLEXITY)
        .waits(Until::Holds("zset"), TIMEOUT, Reply::null_array)
        .from_level(level::TYPES),
];

/// `numkeys key [key ...] MIN|MAX [COUNT count]` from an argument on. False if there is none of the sets.
fn pop_first(ctx: &mut Ctx<'_>, args: &Args<'_>, at: usize, reply: &mut Reply) -> Result<bool> {
    let keys = args.positive(at, "numkeys")?;
    let where_at = keys.checked_add(at + 1).filter(|&index| index < args.len()).ok_or(Error::Syntax)?;
    let from_top = match () {
        () if args.is(where_at, "MAX") => true,
        () if args.is(where_at, "MIN") => false,
        () => return Err(Error::Syntax),
    };
    let count = match args.len() - where_at {
        1 => 1,
        3.. if args.is(where_at + 1, "COUNT") => args.positive(where_at + 2, "count")?,
        _ => return Err(Error::Syntax),
    };
    if args.len() - where_at > 3 {
        return Err(Error::Syntax);
    }
    for key in &args.from(at + 1)[..keys] {
        let popped = pop(ctx, key, count, from_top)?;
        if popped.is_empty() {
            continue;
        }
        reply.array(2);
        reply.bulk(key);
        reply.array(popped.len());
        for (member, score) in &popped {
            reply.array(2);
            reply.bulk(member);
            reply.double(*score);
        }
        return Ok(true);
    }
    Ok(false)
}

fn zmpop(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    if !pop_first(ctx, args, 1, reply)? {
        reply.null_array();
    }
    Ok(())
}

fn bzmpop(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    TIMEOUT.seconds(args)?;
    if !pop_first(ctx, args, 2, reply)? && !ctx.wait_for_keys() {
        reply.null_array();
    }
    Ok(())
}
