//! Semaphores: SEM.ACQUIRE, SEM.RENEW, SEM.RELEASE, SEM.INFO. Each SEM.ACQUIRE names the total of permits,
//! which must be the same as long as there are holders or waiters.

use crate::commands::{
    Origin, Spec,
    blocking::Until,
    coordination::hold::{self, Options},
    keys,
};
use crate::{
    args::Args,
    error::{Error, Result},
    resp::Reply,
    store::{ClaimKind, Ctx, Holder, Share, View},
};

const GROUP: &str = "semaphore";
const SINCE: &str = "1.0.0";

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write("SEM.ACQUIRE", -9, keys::CHANGE, acquire)
        .about(
            &["write", "denyoom", "fast", "blocking"],
            GROUP,
            SINCE,
            "Takes permits of a semaphore, and gives a fencing token",
        )
        .syntax(
            "key owner PERMITS permits:integer OF total:integer span=<PX milliseconds:integer|LEASE \
             lease-id> [WAIT milliseconds:integer] [DATA data] [DELAY milliseconds:integer]",
        )
        .complexity("O(log(N)) where N is the number of its holders and waiters")
        .of(Origin::Kvorum)
        .waits(Until::Granted, hold::WAIT, Reply::null),
    Spec::write("SEM.RENEW", 6, keys::CHANGE, renew)
        .about(&["write", "fast"], GROUP, SINCE, "Lets a hold of a semaphore last until a new deadline")
        .syntax("key owner token:integer PX milliseconds:integer")
        .complexity("O(log(N)) where N is the number of its holders")
        .of(Origin::Kvorum),
    Spec::write("SEM.RELEASE", 4, keys::CHANGE, release)
        .about(&["write", "fast"], GROUP, SINCE, "Takes back one acquisition of a semaphore")
        .syntax("key owner token:integer")
        .complexity("O(log(N)) where N is the number of its holders and waiters")
        .of(Origin::Kvorum),
    Spec::read("SEM.INFO", 2, keys::READ, info)
        .about(
            &["readonly", "fast"],
            GROUP,
            SINCE,
            "Says who holds how many permits of a semaphore, and who waits",
        )
        .syntax("key")
        .complexity("O(N) where N is the number of its holders and waiters")
        .of(Origin::Kvorum),
];

/// A number of permits at `index`, preceded by `word`.
fn permits(args: &Args<'_>, word: &str, index: usize) -> Result<u64> {
    if !args.is(index - 1, word) {
        return Err(Error::Syntax);
    }
    u64::try_from(args.integer(index)?).ok().filter(|&count| count > 0).ok_or(Error::NotPositive)
}

fn acquire(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (key, owner) = (args.at(1), args.at(2));
    let (count, total) = (permits(args, "PERMITS", 4)?, permits(args, "OF", 6)?);
    if count > total {
        return Err(Error::err(format!("{count} permits are more than there are: {total}")));
    }
    let asked = Options::parse(args, 7, "DATA", false, "sem.acquire")?.acquire(
        ctx,
        key,
        owner,
        Share::Permits(count),
    )?;
    let answer = ctx.claims_or_new(key, ClaimKind::Semaphore, |semaphore, turn| {
        semaphore.agree_on_total(total)?;
        semaphore.acquire(&asked, turn)
    })?;
    hold::reply_answer(ctx, answer, ClaimKind::Semaphore, reply);
    Ok(())
}

fn renew(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    hold::renew(ctx, args, ClaimKind::Semaphore, "sem.renew", reply)
}

fn release(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let left = hold::release(ctx, args, ClaimKind::Semaphore)?;
    reply.integer(left as i64);
    Ok(())
}

fn info(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let Some(semaphore) = view.claims(args.at(1), ClaimKind::Semaphore)? else {
        reply.null();
        return Ok(());
    };
    let holders: Vec<&Holder> = semaphore.holders(view.now_ms).collect();
    let held = holders.iter().map(|holder| match holder.share {
        Share::Permits(count) => count,
        Share::All => semaphore.total(),
    });
    let held: u64 = held.sum();
    reply.map(4);
    reply.bulk(b"permits");
    reply.integer(semaphore.total() as i64);
    reply.bulk(b"available");
    reply.integer(semaphore.total().saturating_sub(held) as i64);
    reply.bulk(b"holders");
    reply.array(holders.len());
    holders.iter().for_each(|holder| hold::reply_holder(holder, view, true, reply));
    hold::reply_waiting(semaphore, reply);
    Ok(())
}
