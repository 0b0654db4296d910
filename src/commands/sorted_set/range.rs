//! Ranges of sorted sets by rank, score or member: replied, counted, removed, stored. ZRANGE selects the form
//! by options; the older commands are each one form of it.

use std::ops::Range;

use crate::commands::{
    Spec,
    keys::{self, Access, KeySpec},
    sorted_set::{GROUP, READ, READ_FAST, TAKE, member_and_score, store},
};
use crate::{
    args::{Args, parse_float},
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, Edge, SortedSet, View},
};

/// A range of the second key is read, and the first one is overwritten.
const STORE: &[KeySpec] = &[keys::one(1, Access::Ow, "update"), keys::one(2, Access::Ro, "access")];

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::read("ZRANGE", -4, keys::READ, zrange)
        .about(READ, GROUP, "1.2.0", "Return a range of members in a sorted set")
        .syntax(
            "key start stop [sortby=<BYSCORE|BYLEX>@6.2.0] [REV@6.2.0] [LIMIT \
             offset_count=(offset:integer count:integer)@6.2.0] [WITHSCORES]",
        )
        .complexity(
            "O(log(N)+M) with N being the number of elements in the sorted set and M the number of \
             elements returned",
        ),
    Spec::read("ZREVRANGE", -4, keys::READ, zrevrange)
        .about(
            READ,
            GROUP,
            "1.2.0",
            "Return a range of members in a sorted set, by index, from high scores to low",
        )
        .syntax("key start:integer stop:integer [WITHSCORES]")
        .complexity(
            "O(log(N)+M) with N being the number of elements in the sorted set and M the number of \
             elements returned",
        )
        .deprecated("6.2.0", "`ZRANGE` with the `REV` argument"),
    Spec::read("ZRANGEBYSCORE", -4, keys::READ, zrangebyscore)
        .about(READ, GROUP, "1.0.5", "Return a range of members in a sorted set, by score")
        .syntax(
            "key min:double max:double [WITHSCORES@2.0.0] [LIMIT offset_count=(offset:integer \
             count:integer)]",
        )
        .complexity(
            "O(log(N)+M) with N being the number of elements in the sorted set and M the number of \
             elements being returned",
        )
        .deprecated("6.2.0", "`ZRANGE` with the `BYSCORE` argument"),
    Spec::read("ZREVRANGEBYSCORE", -4, keys::READ, zrevrangebyscore)
        .about(
            READ,
            GROUP,
            "2.2.0",
            "Return a range of members in a sorted set, by score, from high scores to low",
        )
        .syntax(
            "key max:double min:double [WITHSCORES] [LIMIT offset_count=(offset:integer \
             count:integer)]",
        )
        .complexity(
            "O(log(N)+M) with N being the number of elements in the sorted set and M the number of \
             elements being returned",
        )
        .deprecated("6.2.0", "`ZRANGE` with the `REV` and `BYSCORE` arguments"),
    Spec::read("ZRANGEBYLEX", -4, keys::READ, zrangebylex)
        .about(READ, GROUP, "2.8.9", "Return a range of members in a sorted set, by lexicographical range")
        .syntax("key min max [LIMIT offset_count=(offset:integer count:integer)]")
        .complexity(
            "O(log(N)+M) with N being the number of elements in the sorted set and M the number of \
             elements being returned",
        )
        .deprecated("6.2.0", "`ZRANGE` with the `BYLEX` argument"),
    Spec::read("ZREVRANGEBYLEX", -4, keys::READ, zrevrangebylex).about(
        READ,
        GROUP,
        "2.8.9",
        "Return a range of members in a sorted set, by lexicographical range, ordered from higher to lower \
         strings.",
    ).syntax("key max min [LIMIT offset_count=(offset:integer count:integer)]").complexity(
            "O(log(N)+M) with N being the number of elements in the sorted set and M the number of \
             elements being returned",
        ).deprecated("6.2.0", "`ZRANGE` with the `REV` and `BYLEX` arguments"),
    Spec::write("ZRANGESTORE", -5, STORE, zrangestore)
        .about(
            &["write", "denyoom"],
            GROUP,
            "6.2.0",
            "Store a range of members from sorted set into another key",
        )
        .syntax(
            "dst:key src:key min max [sortby=<BYSCORE|BYLEX>] [REV] [LIMIT \
             offset_count=(offset:integer count:integer)]",
        )
        .complexity(
            "O(log(N)+M) with N being the number of elements in the sorted set and M the number of \
             elements stored into the destination key",
        ),
    Spec::read("ZCOUNT", 4, keys::READ, zcount)
        .about(
            READ_FAST,
            GROUP,
            "2.0.0",
            "Count the members in a sorted set with scores within the given values",
        )
        .syntax("key min:double max:double")
        .complexity("O(log(N)) where N is the number of elements"),
    Spec::read("ZLEXCOUNT", 4, keys::READ, zlexcount)
        .about(
            READ_FAST,
            GROUP,
            "2.8.9",
            "Count the number of members in a sorted set between a given lexicographical range",
        )
        .syntax("key min max")
        .complexity("O(log(N)) with N being the number of elements in the sorted set"),
    Spec::write("ZREMRANGEBYRANK", 4, keys::DELETE, zremrangebyrank)
        .about(TAKE, GROUP, "2.0.0", "Remove all members in a sorted set within the given indexes")
        .syntax("key start:integer stop:integer")
        .complexity(
            "O(log(N)+M) with N being the number of elements in the sorted set and M the number of \
             elements removed by the operation",
        ),
    Spec::write("ZREMRANGEBYSCORE", 4, keys::DELETE, zremrangebyscore)
        .about(TAKE, GROUP, "1.2.0", "Remove all members in a sorted set within the given scores")
        .syntax("key min:double max:double")
        .complexity(
            "O(log(N)+M) with N being the number of elements in the sorted set and M the number of \
             elements removed by the operation",
        ),
    Spec::write("ZREMRANGEBYLEX", 4, keys::DELETE, zremrangebylex)
        .about(
            TAKE,
            GROUP,
            "2.8.9",
            "Remove all members in a sorted set between the given lexicographical range",
        )
        .syntax("key min max")
        .complexity(
            "O(log(N)+M) with N being the number of elements in the sorted set and M the number of \
             elements removed by the operation",
        ),
];

/// The meaning of a range's limits.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Rank,
    Score,
    Member,
}

/// A range as requested.
#[derive(Clone, Copy)]
enum Limits<'a> {
    /// The first and the last rank; negative ones count from the end.
    Ranks(i64, i64),
    Edges(Edge<'a>, Edge<'a>),
}

impl<'a> Limits<'a> {
    /// Reads the limits at two indices.
    fn parse(by: By, args: &Args<'a>, min: usize, max: usize) -> Result<Limits<'a>> {
        match by {
            By::Rank => Ok(Limits::Ranks(args.integer(min)?, args.integer(max)?)),
            By::Score => {
                let invalid = || Error::err("min or max is not a float");
                let (low, low_out) = score_limit(args.at(min)).ok_or_else(invalid)?;
                let (high, high_out) = score_limit(args.at(max)).ok_or_else(invalid)?;
                Ok(Limits::Edges(
                    if low_out { Edge::AfterScore(low) } else { Edge::BeforeScore(low) },
                    if high_out { Edge::BeforeScore(high) } else { Edge::AfterScore(high) },
                ))
            }
            By::Member => {
                let invalid = || Error::err("min or max not valid string range item");
                let low = member_limit(args.at(min), true).ok_or_else(invalid)?;
                let high = member_limit(args.at(max), false).ok_or_else(invalid)?;
                Ok(Limits::Edges(low, high))
            }
        }
    }

    /// The ranks in a set that are in the range.
    fn ranks(self, set: &SortedSet, reversed: bool) -> Range<usize> {
        match self {
            Limits::Ranks(first, last) => {
                let len = set.len() as i64;
                let from_begin = |rank: i64| if rank < 0 { rank.saturating_add(len) } else { rank };
                let (first, last) = (from_begin(first).max(0), from_begin(last).min(len - 1));
                if first > last {
                    return 0..0;
                }
                let (first, last) = if reversed { (len - 1 - last, len - 1 - first) } else { (first, last) };
                first as usize..last as usize + 1
            }
            Limits::Edges(low, high) => {
                let (start, end) = (set.rank_of_edge(low), set.rank_of_edge(high));
                start..end.max(start)
            }
        }
    }
}

/// A score and whether it is exclusive. Parsed like C's `strtod`: empty text is 0, and overflow is infinite.
fn score_limit(text: &[u8]) -> Option<(f64, bool)> {
    let (text, is_out) = match text {
        [b'(', rest @ ..] => (rest, true),
        _ => (text, false),
    };
    if text.is_empty() {
        return Some((0.0, is_out));
    }
    let text = text.trim_ascii_start();
    let rounded = || std::str::from_utf8(text).ok()?.parse::<f64>().ok();
    let score = parse_float(text).or_else(rounded).filter(|score| !score.is_nan())?;
    Some((score, is_out))
}

/// `-`, `+`, `[member` or `(member`.
fn member_limit(text: &[u8], is_low: bool) -> Option<Edge<'_>> {
    match text {
        [b'-'] => Some(Edge::First),
        [b'+'] => Some(Edge::Last),
        [b'[', member @ ..] if is_low => Some(Edge::BeforeMember(member)),
        [b'[', member @ ..] => Some(Edge::AfterMember(member)),
        [b'(', member @ ..] if is_low => Some(Edge::AfterMember(member)),
        [b'(', member @ ..] => Some(Edge::BeforeMember(member)),
        _ => None,
    }
}

/// The arguments of ZRANGE or one of its forms.
struct Query<'a> {
    limits: Limits<'a>,
    reversed: bool,
    with_scores: bool,
    /// How many elements to skip at the beginning of the range; None skips all.
    skipped: Option<usize>,
    count_max: usize,
}

impl<'a> Query<'a> {
    /// Reads the limits at `first` and the options after them. `by` and `reversed` are given by the command's
    /// name, or None if they are options.
    fn parse(
        args: &Args<'a>,
        first: usize,
        by: Option<By>,
        reversed: Option<bool>,
        stores: bool,
    ) -> Result<Query<'a>> {
        let (mut chosen_by, mut is_reversed, mut with_scores) = (by, reversed, false);
        let (mut offset, mut limit) = (0, -1);
        let mut index = first + 2;
        while index < args.len() {
            match () {
                _ if !stores && args.is(index, "WITHSCORES") => with_scores = true,
                _ if args.is(index, "LIMIT") && index + 2 < args.len() => {
                    (offset, limit) = (args.integer(index + 1)?, args.integer(index + 2)?);
                    index += 2;
                }
                _ if is_reversed.is_none() && args.is(index, "REV") => is_reversed = Some(true),
                _ if chosen_by.is_none() && args.is(index, "BYLEX") => chosen_by = Some(By::Member),
                _ if chosen_by.is_none() && args.is(index, "BYSCORE") => chosen_by = Some(By::Score),
                _ => return Err(Error::Syntax),
            }
            index += 1;
        }
        let (by, reversed) = (chosen_by.unwrap_or(By::Rank), is_reversed.unwrap_or(false));
        if limit != -1 && by == By::Rank {
            return Err(Error::err(
                "syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX",
            ));
        }
        if with_scores && by == By::Member {
            return Err(Error::err("syntax error, WITHSCORES not supported in combination with BYLEX"));
        }
        let swapped = reversed && by != By::Rank;
        let (min, max) = if swapped { (first + 1, first) } else { (first, first + 1) };
        Ok(Query {
            limits: Limits::parse(by, args, min, max)?,
            reversed,
            with_scores,
            // By rank, a LIMIT without an end is accepted and ignored, as in Redis.
            skipped: if by == By::Rank { Some(0) } else { usize::try_from(offset).ok() },
            count_max: usize::try_from(limit).unwrap_or(usize::MAX),
        })
    }

    /// The selected ranks, to be returned from the last one if reversed.
    fn ranks(&self, set: &SortedSet) -> Range<usize> {
        let Range { start, end } = self.limits.ranks(set, self.reversed);
        let skipped = self.skipped.unwrap_or(usize::MAX).min(end - start);
        let count = self.count_max.min(end - start - skipped);
        if self.reversed {
            end - skipped - count..end - skipped
        } else {
            start + skipped..start + skipped + count
        }
    }

    fn show(&self, view: &View<'_>, key: &[u8], reply: &mut Reply) -> Result<()> {
        let Some(set) = view.value::<SortedSet>(key)? else {
            reply.array(0);
            return Ok(());
        };
        let ranks = self.ranks(set);
        view.check_elements(ranks.len())?;
        if self.with_scores {
            reply.pairs(ranks.len());
        } else {
            reply.array(ranks.len());
        }
        let show = |(member, score)| {
            if self.with_scores {
                member_and_score(member, score, reply);
            } else {
                reply.bulk(member);
            }
        };
        let range = set.range(ranks);
        if self.reversed {
            range.rev().for_each(show)
        } else {
            range.for_each(show)
        }
        Ok(())
    }
}

fn zrange(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    Query::parse(args, 2, None, None, false)?.show(view, args.at(1), reply)
}

fn zrevrange(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    Query::parse(args, 2, Some(By::Rank), Some(true), false)?.show(view, args.at(1), reply)
}

fn zrangebyscore(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    Query::parse(args, 2, Some(By::Score), Some(false), false)?.show(view, args.at(1), reply)
}

fn zrevrangebyscore(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    Query::parse(args, 2, Some(By::Score), Some(true), false)?.show(view, args.at(1), reply)
}

fn zrangebylex(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    Query::parse(args, 2, Some(By::Member), Some(false), false)?.show(view, args.at(1), reply)
}

fn zrevrangebylex(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    Query::parse(args, 2, Some(By::Member), Some(true), false)?.show(view, args.at(1), reply)
}

fn zrangestore(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let query = Query::parse(args, 3, None, None, true)?;
    let source = ctx.view().value::<SortedSet>(args.at(2))?.map_or(0, |set| query.ranks(set).len());
    ctx.check_elements(source)?;
    let found: Vec<(Vec<u8>, f64)> = match ctx.view().value::<SortedSet>(args.at(2))? {
        Some(set) => {
            let found = || set.range(query.ranks(set));
            ctx.check_memory_of(found().map(|(member, _)| member.len()), 2)?;
            found().map(|(member, score)| (member.to_vec(), score)).collect()
        }
        None => Vec::new(),
    };
    store(ctx, args.at(1), &found, reply);
    Ok(())
}

fn zcount(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    count(view, args, reply, By::Score)
}

fn zlexcount(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    count(view, args, reply, By::Member)
}

fn count(view: &View<'_>, args: &Args<'_>, reply: &mut Reply, by: By) -> Result<()> {
    let limits = Limits::parse(by, args, 2, 3)?;
    let set = view.value::<SortedSet>(args.at(1))?;
    reply.size(set.map_or(0, |set| limits.ranks(set, false).len()));
    Ok(())
}

fn zremrangebyrank(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    remove(ctx, args, reply, By::Rank)
}

fn zremrangebyscore(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    remove(ctx, args, reply, By::Score)
}

fn zremrangebylex(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    remove(ctx, args, reply, By::Member)
}

fn remove(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply, by: By) -> Result<()> {
    let limits = Limits::parse(by, args, 2, 3)?;
    let removed = ctx.modify::<SortedSet, _>(args.at(1), |set, pages| {
        let ranks = limits.ranks(set, false);
        pages.check_elements(ranks.len())?;
        let found = set.range(ranks);
        let members: Vec<Vec<u8>> = found.map(|(member, _)| member.to_vec()).collect();
        members.iter().for_each(|member| _ = set.remove(member, pages));
        if members.is_empty() {
            pages.unchanged();
        }
        Ok(members.len())
    })?;
    reply.size(removed.unwrap_or(0));
    Ok(())
}
