//! Elections: ELECT.CAMPAIGN, ELECT.RENEW, ELECT.PROCLAIM, ELECT.RESIGN, ELECT.LEADER, ELECT.LIST. The leader of an election holds
//! it alone; its epoch is the number of the grant, and what it proclaims is the data of its hold. ELECT.OBSERVE is the
//! session's (`session/observe.rs`).

use super::{Keys, Spec, claim, claim::Options, key};
use crate::{
    args::Args,
    error::Result,
    resp::Reply,
    store::{ClaimKind, Ctx, Holder, Share, View, Wish},
};

const GROUP: &str = "election";
const SINCE: &str = "1.0.0";

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write("ELECT.CAMPAIGN", -5, key(), campaign).about(
        &["write", "denyoom", "fast", "blocking"],
        GROUP,
        SINCE,
        "Becomes the leader, perhaps after waiting for it, and gives the epoch",
    ),
    Spec::write("ELECT.RENEW", 6, key(), renew).about(
        &["write", "fast"],
        GROUP,
        SINCE,
        "Lets a leader lead until a new deadline",
    ),
    Spec::write("ELECT.PROCLAIM", 5, key(), proclaim).about(
        &["write", "denyoom", "fast"],
        GROUP,
        SINCE,
        "Gives the leader's value another content",
    ),
    Spec::write("ELECT.RESIGN", 4, key(), resign).about(&["write", "fast"], GROUP, SINCE, "Ends leading"),
    Spec::read("ELECT.LEADER", 2, key(), leader).about(
        &["readonly", "fast"],
        GROUP,
        SINCE,
        "Says who leads, in which epoch, and what the leader proclaims",
    ),
    Spec::session("ELECT.OBSERVE", -2).about(
        &["pubsub", "noscript", "no_multi"],
        GROUP,
        SINCE,
        "Tells who leads, at once and whenever that changes",
    ),
    Spec::session("ELECT.UNOBSERVE", -1).about(
        &["pubsub", "noscript", "no_multi"],
        GROUP,
        SINCE,
        "Stops observing elections",
    ),
    Spec::read("ELECT.LIST", -1, Keys::None, list).about(
        &["readonly", "touches_arbitrary_keys"],
        GROUP,
        SINCE,
        "Iterates over the elections",
    ),
];

fn campaign(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (key, candidate) = (args.at(1), args.at(2));
    let options = Options::parse(args, 3, "VALUE", false, "elect.campaign")?;
    let wish = Wish { is_counted: false, ..options.wish(ctx, key, candidate, Share::All)? };
    let answer =
        ctx.claims_or_new(key, ClaimKind::Election, |election, turn| election.acquire(&wish, turn))?;
    claim::reply_answer(answer, ClaimKind::Election, ctx.now_ms, reply);
    Ok(())
}

fn renew(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    claim::renew(ctx, args, ClaimKind::Election, "elect.renew", reply)
}

fn proclaim(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (key, candidate, epoch) = (args.at(1), args.at(2), args.integer(3)?);
    claim::check_hold(&ctx.view(), ClaimKind::Election, key, candidate, epoch)?;
    ctx.claims(key, ClaimKind::Election, |election, _| election.set_data(candidate, args.at(4)))?;
    reply.ok();
    Ok(())
}

fn resign(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    claim::release(ctx, args, ClaimKind::Election)?;
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

/// A leader as everybody sees it.
fn reply_leader(leader: &Holder, now_ms: u64, reply: &mut Reply) {
    reply.map(4);
    reply.bulk(b"candidate");
    reply.bulk(&leader.owner);
    reply.bulk(b"epoch");
    reply.integer(leader.token as i64);
    reply.bulk(b"value");
    reply.bulk(&leader.data);
    claim::reply_remaining(leader.deadline().map(|deadline| deadline.saturating_sub(now_ms)), reply);
}

fn list(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    claim::list(view, args, "election", reply)
}
