//! Elections: ELECT.CAMPAIGN, ELECT.RENEW, ELECT.PROCLAIM, ELECT.RESIGN, ELECT.LEADER, ELECT.LIST. The leader
//! is the only holder; its epoch is the token of the grant, and the value that it proclaims is the data of
//! its hold. ELECT.OBSERVE is a verb of the connection (`connection/verbs/observe.rs`).

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
    store::{Acquire, ClaimKind, Ctx, Holder, Share, View},
};

const GROUP: &str = "election";
const SINCE: &str = "1.0.0";

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write("ELECT.CAMPAIGN", -5, keys::CHANGE, campaign)
        .about(
            &["write", "denyoom", "fast", "blocking"],
            GROUP,
            SINCE,
            "Becomes the leader, perhaps after waiting for it, and gives the epoch",
        )
        .syntax(
            "name:key candidate span=<PX milliseconds:integer|LEASE lease-id> [WAIT \
             milliseconds:integer] [VALUE value] [DELAY milliseconds:integer]",
        )
        .complexity("O(log(N)) where N is the number of candidates")
        .of(Origin::Kvorum)
        .waits(Until::Granted, hold::WAIT, Reply::null),
    Spec::write("ELECT.RENEW", 6, keys::CHANGE, renew)
        .about(&["write", "fast"], GROUP, SINCE, "Lets a leader lead until a new deadline")
        .syntax("name:key candidate epoch:integer PX milliseconds:integer")
        .complexity("O(1)")
        .of(Origin::Kvorum),
    Spec::write("ELECT.PROCLAIM", 5, keys::CHANGE, proclaim)
        .about(&["write", "denyoom", "fast"], GROUP, SINCE, "Gives the leader's value another content")
        .syntax("name:key candidate epoch:integer value")
        .complexity("O(1)")
        .of(Origin::Kvorum),
    Spec::write("ELECT.RESIGN", 4, keys::CHANGE, resign)
        .about(&["write", "fast"], GROUP, SINCE, "Ends leading")
        .syntax("name:key candidate epoch:integer")
        .complexity("O(log(N)) where N is the number of candidates")
        .of(Origin::Kvorum),
    Spec::read("ELECT.LEADER", 2, keys::READ, leader)
        .about(
            &["readonly", "fast"],
            GROUP,
            SINCE,
            "Says who leads, in which epoch, and what the leader proclaims",
        )
        .syntax("name:key")
        .complexity("O(1)")
        .of(Origin::Kvorum),
    Spec::read("ELECT.LIST", -1, keys::NONE, list)
        .about(&["readonly"], GROUP, SINCE, "Iterates over the elections")
        .syntax("[MATCH pattern:pattern] [CURSOR cursor:integer]")
        .complexity("O(1) for every call, O(N) for a whole iteration, where N is the number of keys")
        .of(Origin::Kvorum),
];

fn campaign(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (key, candidate) = (args.at(1), args.at(2));
    let options = Options::parse(args, 3, "VALUE", false, "elect.campaign")?;
    let asked = Acquire { is_counted: false, ..options.acquire(ctx, key, candidate, Share::All)? };
    let answer =
        ctx.claims_or_new(key, ClaimKind::Election, |election, turn| election.acquire(&asked, turn))?;
    hold::reply_answer(ctx, answer, ClaimKind::Election, reply);
    Ok(())
}

fn renew(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    hold::renew(ctx, args, ClaimKind::Election, "elect.renew", reply)
}

fn proclaim(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (key, candidate, epoch) = (args.at(1), args.at(2), args.integer(3)?);
    hold::check_hold(&ctx.view(), ClaimKind::Election, key, candidate, epoch)?;
    ctx.claims(key, ClaimKind::Election, |election, _| election.set_data(candidate, args.at(4)))?;
    reply.ok();
    Ok(())
}

fn resign(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    hold::release(ctx, args, ClaimKind::Election)?;
    reply.ok();
    Ok(())
}

fn leader(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let election = view.claims(args.at(1), ClaimKind::Election)?;
    match election.and_then(|election| election.holders(view.now_ms).next()) {
        Some(leader) => reply_leader(leader, view.estimate_ms, reply),
        None => reply.null(),
    }
    Ok(())
}

/// A leader as shown to everybody.
fn reply_leader(leader: &Holder, now_ms: u64, reply: &mut Reply) {
    reply.map(4);
    reply.bulk(b"candidate");
    reply.bulk(&leader.owner);
    reply.bulk(b"epoch");
    reply.integer(leader.token as i64);
    reply.bulk(b"value");
    reply.bulk(&leader.data);
    hold::reply_remaining(leader.deadline().map(|deadline| deadline.saturating_sub(now_ms)), reply);
}

fn list(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    hold::list(view, args, "election", reply)
}
