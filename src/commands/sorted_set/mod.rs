//! Sorted sets: members and their scores, ranks, and random members. Ranges are in `range.rs`, what
//! is made of several in `algebra.rs`, commands that wait in `blocking.rs` and `pop_first.rs`.

pub mod algebra;
pub mod blocking;
pub mod pop_first;
pub mod range;

use super::{
    Spec,
    generic::scan::{ScanOptions, reply_step},
    keys,
    set::{Choices, positive},
};
use crate::{
    args::{Args, format_double, parse_float},
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, Deadline, Pages, SortedSet, View},
};

/// The group of COMMAND DOCS.
pub(crate) const GROUP: &str = "sorted-set";
pub(crate) const READ: &[&str] = &["readonly"];
pub(crate) const READ_FAST: &[&str] = &["readonly", "fast"];
const WRITE_FAST: &[&str] = &["write", "denyoom", "fast"];
/// Writes that never need memory.
pub(crate) const TAKE: &[&str] = &["write"];
const TAKE_FAST: &[&str] = &["write", "fast"];

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write("ZADD", -4, keys::UPDATE, zadd)
        .about(
            WRITE_FAST,
            GROUP,
            "1.2.0",
            "Add one or more members to a sorted set, or update its score if it already exists",
        )
        .syntax(
            "key [condition=<NX|XX>@3.0.2] [comparison=<GT|LT>@6.2.0] [change=CH@3.0.2] \
             [increment=INCR@3.0.2] score_member=(score:double member)...",
        )
        .complexity("O(log(N)) for each item added, where N is the number of elements in the sorted set"),
    Spec::write("ZINCRBY", 4, keys::CHANGE, zincrby)
        .about(WRITE_FAST, GROUP, "1.2.0", "Increment the score of a member in a sorted set")
        .syntax("key increment:integer member")
        .complexity("O(log(N)) where N is the number of elements in the sorted set"),
    Spec::write("ZREM", -3, keys::DELETE, zrem)
        .about(TAKE_FAST, GROUP, "1.2.0", "Remove one or more members from a sorted set")
        .syntax("key member...")
        .complexity(
            "O(M*log(N)) with N being the number of elements in the sorted set and M the number of \
             elements to be removed",
        ),
    Spec::read("ZCARD", 2, keys::LOOK, zcard)
        .about(READ_FAST, GROUP, "1.2.0", "Get the number of members in a sorted set")
        .syntax("key")
        .complexity("O(1)"),
    Spec::read("ZSCORE", 3, keys::READ, zscore)
        .about(READ_FAST, GROUP, "1.2.0", "Get the score associated with the given member in a sorted set")
        .syntax("key member")
        .complexity("O(1)"),
    Spec::read("ZMSCORE", -3, keys::READ, zmscore)
        .about(READ_FAST, GROUP, "6.2.0", "Get the score associated with the given members in a sorted set")
        .syntax("key member...")
        .complexity("O(N) where N is the number of members being requested"),
    Spec::read("ZRANK", -3, keys::READ, zrank)
        .about(READ_FAST, GROUP, "2.0.0", "Determine the index of a member in a sorted set")
        .syntax("key member [WITHSCORE@7.2.0]")
        .complexity("O(log(N))"),
    Spec::read("ZREVRANK", -3, keys::READ, zrevrank)
        .about(
            READ_FAST,
            GROUP,
            "2.0.0",
            "Determine the index of a member in a sorted set, from high scores to low",
        )
        .syntax("key member [WITHSCORE@7.2.0]")
        .complexity("O(log(N))"),
    Spec::write("ZPOPMIN", -2, keys::TAKE, zpopmin)
        .about(TAKE_FAST, GROUP, "5.0.0", "Remove and return members with the lowest scores in a sorted set")
        .syntax("key [count:integer]")
        .complexity(
            "O(log(N)*M) with N being the number of elements in the sorted set, and M being the \
             number of elements popped",
        ),
    Spec::write("ZPOPMAX", -2, keys::TAKE, zpopmax)
        .about(TAKE_FAST, GROUP, "5.0.0", "Remove and return members with the highest scores in a sorted set")
        .syntax("key [count:integer]")
        .complexity(
            "O(log(N)*M) with N being the number of elements in the sorted set, and M being the \
             number of elements popped",
        ),
    Spec::read("ZRANDMEMBER", -2, keys::READ, zrandmember)
        .about(READ, GROUP, "6.2.0", "Get one or multiple random elements from a sorted set")
        .syntax("key [options=(count:integer [WITHSCORES])]")
        .complexity("O(N) where N is the number of elements returned")
        .tips(&["nondeterministic_output"]),
    Spec::read("ZSCAN", -3, keys::READ, zscan)
        .about(READ, GROUP, "2.8.0", "Incrementally iterate sorted sets elements and associated scores")
        .syntax("key cursor:integer [MATCH pattern:pattern] [COUNT count:integer]")
        .complexity("O(1) for every call")
        .tips(&["nondeterministic_output"]),
];

/// The options of ZADD.
#[derive(Clone, Copy, Default)]
struct Conditions {
    /// NX: only add members.
    only_missing: bool,
    /// XX: only update members.
    only_present: bool,
    /// GT: only raise scores.
    only_greater: bool,
    /// LT: only lower scores.
    only_less: bool,
}

impl Conditions {
    fn check(self) -> Result<()> {
        let Conditions { only_missing, only_present, only_greater, only_less } = self;
        if only_missing && only_present {
            return Err(Error::err("XX and NX options at the same time are not compatible"));
        }
        if (only_missing && (only_greater || only_less)) || (only_greater && only_less) {
            return Err(Error::err("GT, LT, and/or NX options at the same time are not compatible"));
        }
        Ok(())
    }
}

/// What happened to a member.
#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    /// A condition did not hold.
    Left,
    /// Its score is unchanged.
    Same(f64),
    Updated(f64),
    Added(f64),
}

/// Sets or increments the score of one member.
fn zset(
    set: &mut SortedSet,
    member: &[u8],
    score: f64,
    increments: bool,
    conditions: Conditions,
    pages: &mut Pages<'_>,
) -> Result<Outcome> {
    let Some(before) = set.score(member) else {
        if conditions.only_present {
            return Ok(Outcome::Left);
        }
        set.insert(member, score, pages);
        return Ok(Outcome::Added(score));
    };
    if conditions.only_missing {
        return Ok(Outcome::Left);
    }
    let score = if increments { before + score } else { score };
    if score.is_nan() {
        return Err(Error::err("resulting score is not a number (NaN)"));
    }
    if (conditions.only_less && score >= before) || (conditions.only_greater && score <= before) {
        return Ok(Outcome::Left);
    }
    if score == before {
        return Ok(Outcome::Same(score));
    }
    set.insert(member, score, pages);
    Ok(Outcome::Updated(score))
}

pub(in crate::commands) fn zadd(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (mut conditions, mut counts_changes, mut increments) = (Conditions::default(), false, false);
    let mut first = 2;
    while first < args.len() {
        match () {
            _ if args.is(first, "NX") => conditions.only_missing = true,
            _ if args.is(first, "XX") => conditions.only_present = true,
            _ if args.is(first, "GT") => conditions.only_greater = true,
            _ if args.is(first, "LT") => conditions.only_less = true,
            _ if args.is(first, "CH") => counts_changes = true,
            _ if args.is(first, "INCR") => increments = true,
            _ => break,
        }
        first += 1;
    }
    let pairs = args.from(first);
    if pairs.is_empty() || !pairs.len().is_multiple_of(2) {
        return Err(Error::Syntax);
    }
    conditions.check()?;
    if increments && pairs.len() > 2 {
        return Err(Error::err("INCR option supports a single increment-element pair"));
    }
    let scores: Option<Vec<f64>> = pairs.iter().step_by(2).map(|text| parse_float(text)).collect();
    let scores = scores.ok_or(Error::NotFloat)?;
    let outcomes = ctx.modify_or_create::<SortedSet, _>(args.at(1), |set, pages| {
        let members = pairs.iter().skip(1).step_by(2);
        let outcomes = scores.iter().zip(members);
        let outcomes: Vec<Outcome> = outcomes
            .map(|(&score, member)| zset(set, member, score, increments, conditions, pages))
            .collect::<Result<_>>()?;
        if outcomes.iter().all(|outcome| matches!(outcome, Outcome::Left | Outcome::Same(_))) {
            pages.unchanged();
        }
        Ok(outcomes)
    })?;
    if increments {
        match outcomes[0] {
            Outcome::Left => reply.null(),
            Outcome::Same(score) | Outcome::Updated(score) | Outcome::Added(score) => reply.double(score),
        }
        return Ok(());
    }
    let counts = |outcome: &&Outcome| match outcome {
        Outcome::Added(_) => true,
        Outcome::Updated(_) => counts_changes,
        Outcome::Left | Outcome::Same(_) => false,
    };
    reply.size(outcomes.iter().filter(counts).count());
    Ok(())
}

fn zincrby(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let increment = args.float(2)?;
    let outcome = ctx.modify_or_create::<SortedSet, _>(args.at(1), |set, pages| {
        let outcome = zset(set, args.at(3), increment, true, Conditions::default(), pages)?;
        if matches!(outcome, Outcome::Same(_)) {
            pages.unchanged();
        }
        Ok(outcome)
    })?;
    match outcome {
        Outcome::Left => unreachable!("there was no condition"),
        Outcome::Same(score) | Outcome::Updated(score) | Outcome::Added(score) => reply.double(score),
    }
    Ok(())
}

fn zrem(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let removed = ctx.modify::<SortedSet, _>(args.at(1), |set, pages| {
        let removed = args.from(2).iter().filter(|member| set.remove(member, pages).is_some()).count();
        if removed == 0 {
            pages.unchanged();
        }
        Ok(removed)
    })?;
    reply.size(removed.unwrap_or(0));
    Ok(())
}

fn zcard(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.size(view.value::<SortedSet>(args.at(1))?.map_or(0, SortedSet::len));
    Ok(())
}

fn reply_score(score: Option<f64>, reply: &mut Reply) {
    match score {
        Some(score) => reply.double(score),
        None => reply.null(),
    }
}

fn zscore(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let set = view.value::<SortedSet>(args.at(1))?;
    reply_score(set.and_then(|set| set.score(args.at(2))), reply);
    Ok(())
}

fn zmscore(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let set = view.value::<SortedSet>(args.at(1))?;
    reply.array(args.len() - 2);
    for member in args.from(2) {
        reply_score(set.and_then(|set| set.score(member)), reply);
    }
    Ok(())
}

fn zrank(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    show_rank(view, args, reply, |_, rank| rank)
}

fn zrevrank(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    show_rank(view, args, reply, |set, rank| set.len() - 1 - rank)
}

fn show_rank(
    view: &View<'_>,
    args: &Args<'_>,
    reply: &mut Reply,
    shown: fn(&SortedSet, usize) -> usize,
) -> Result<()> {
    if args.len() > 4 {
        return Err(Error::Arity(String::from_utf8_lossy(args.at(0)).to_ascii_lowercase().into()));
    }
    let with_score = args.len() == 4;
    if with_score && !args.is(3, "WITHSCORE") {
        return Err(Error::Syntax);
    }
    let set = view.value::<SortedSet>(args.at(1))?;
    match set.and_then(|set| set.rank(args.at(2)).map(|(rank, score)| (shown(set, rank), score))) {
        None if with_score => reply.null_array(),
        None => reply.null(),
        Some((rank, score)) if with_score => {
            reply.array(2);
            reply.size(rank);
            reply.double(score);
        }
        Some((rank, _)) => reply.size(rank),
    }
    Ok(())
}

/// A member with its score, after [`Reply::pairs`].
pub(crate) fn member_and_score(member: &[u8], score: f64, reply: &mut Reply) {
    reply.pair();
    reply.bulk(member);
    reply.double(score);
}

fn zpopmin(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    zpop(ctx, args, reply, false)
}

fn zpopmax(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    zpop(ctx, args, reply, true)
}

fn zpop(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply, from_top: bool) -> Result<()> {
    let count = match args.len() {
        2 => None,
        3 => Some(positive(args, 2)?),
        _ => return Err(Error::Syntax),
    };
    let popped = pop(ctx, args.at(1), count.unwrap_or(1), from_top)?;
    if count.is_some() {
        reply.pairs(popped.len());
        popped.iter().for_each(|(member, score)| member_and_score(member, *score, reply));
        return Ok(());
    }
    // Without a count the reply is one flat pair in both protocol versions.
    reply.array(popped.len() * 2);
    for (member, score) in &popped {
        reply.bulk(member);
        reply.double(*score);
    }
    Ok(())
}

/// Stores a result at a key, replacing any value, and replies with its size; an empty one deletes the key.
pub(in crate::commands) fn store(
    ctx: &mut Ctx<'_>,
    key: &[u8],
    members: &[(Vec<u8>, f64)],
    reply: &mut Reply,
) {
    let set = ctx.build::<SortedSet>(|set, pages| {
        members.iter().for_each(|(member, score)| _ = set.insert(member, *score, pages));
    });
    ctx.put(key, set, Deadline::None);
    reply.size(members.len());
}

/// Removes up to `count` members with the lowest scores, or the highest, in that order.
fn pop(ctx: &mut Ctx<'_>, key: &[u8], count: usize, from_top: bool) -> Result<Vec<(Vec<u8>, f64)>> {
    let popped = ctx.modify::<SortedSet, _>(key, |set, pages| {
        let (len, count) = (set.len(), count.min(set.len()));
        pages.check_elements(count)?;
        let ranks = if from_top { len - count..len } else { 0..count };
        let mut popped: Vec<_> = set.range(ranks).map(|(member, score)| (member.to_vec(), score)).collect();
        if from_top {
            popped.reverse();
        }
        popped.iter().for_each(|(member, _)| _ = set.remove(member, pages));
        if popped.is_empty() {
            pages.unchanged();
        }
        Ok(popped)
    })?;
    Ok(popped.unwrap_or_default())
}

fn zrandmember(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let choices = if args.len() > 2 { Some(Choices::parse(view, args, 2)?) } else { None };
    let with_scores = args.is(3, "WITHSCORES");
    if args.len() > 4 || (args.len() == 4 && !with_scores) {
        return Err(Error::Syntax);
    }
    if with_scores && args.integer(2)?.unsigned_abs() > i64::MAX.unsigned_abs() / 2 {
        return Err(Error::err("value is out of range"));
    }
    let (set, mut chance) = (view.value::<SortedSet>(args.at(1))?, view.chance());
    if let (Some(set), Some(choices)) = (set, &choices) {
        view.check_elements(choices.looked_at(set.len()))?;
    }
    let chosen = match (set, choices) {
        (None, None) => {
            reply.null();
            return Ok(());
        }
        (Some(set), None) => {
            reply.bulk_or_null(set.choose(&mut chance).map(|(member, _)| member));
            return Ok(());
        }
        (None, Some(_)) => Vec::new(),
        (Some(set), Some(Choices::Different(count))) => set.choose_different(count, &mut chance),
        (Some(set), Some(Choices::Repeated(count))) => {
            (0..count).filter_map(|_| set.choose(&mut chance)).collect()
        }
    };
    if with_scores {
        reply.pairs(chosen.len());
        chosen.iter().for_each(|(member, score)| member_and_score(member, *score, reply));
    } else {
        reply.array(chosen.len());
        chosen.iter().for_each(|(member, _)| reply.bulk(member));
    }
    Ok(())
}

fn zscan(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    // Redis checks the options only if the key exists.
    ScanOptions::cursor_of(args, 2)?;
    let Some(set) = view.value::<SortedSet>(args.at(1))? else {
        reply_step(0, 0, reply);
        return Ok(());
    };
    let options = ScanOptions::parse(view, args, 2, false)?;
    view.check_elements(options.count.min(set.len()))?;
    let mut found = Vec::new();
    let cursor = set.scan(options.cursor, options.count, |member, score| {
        if options.matches(member) {
            found.push((member, score));
        }
    });
    options.check_work()?;
    reply_step(cursor, found.len() * 2, reply);
    for (member, score) in found {
        reply.bulk(member);
        // A bulk string in both protocol versions.
        reply.bulk(format_double(score).as_bytes());
    }
    Ok(())
}
