//! Unions, intersections and differences of sorted sets, and of sets, whose members all have the score 1. As a reply,
//! counted or stored.

use std::{
    borrow::Cow,
    cmp::Ordering,
    collections::{HashMap, hash_map::Entry},
};

use super::{GROUP, READ, member_and_score};
use crate::{
    args::{Args, parse_float, parse_integer},
    commands::{
        Spec,
        keys::{self, Access, KeySpec},
    },
    error::{Error, Result},
    resp::Reply,
    store::{BYTES_OF_AN_ELEMENT, Ctx, Set, SortedSet, View, level},
};

const STORE: &[&str] = &["write", "denyoom"];
const READ_KEYS: &[KeySpec] = &[keys::counted(1, Access::Ro, "access")];
const STORE_KEYS: &[KeySpec] = &[keys::one(1, Access::Ow, "update"), keys::counted(2, Access::Ro, "access")];

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::read("ZUNION", -3, READ_KEYS, zunion)
        .about(READ, GROUP, "6.2.0", "Unite sorted sets")
        .syntax("numkeys:integer key... [WEIGHTS weight:integer...] [AGGREGATE aggregate=<SUM|MIN|MAX>] [WITHSCORES]")
        .complexity(UNION_COMPLEXITY)
        .from_level(level::TYPES),
    Spec::read("ZINTER", -3, READ_KEYS, zinter)
        .about(READ, GROUP, "6.2.0", "Intersect sorted sets")
        .syntax("numkeys:integer key... [WEIGHTS weight:integer...] [AGGREGATE aggregate=<SUM|MIN|MAX>] [WITHSCORES]")
        .complexity(INTERSECTION_COMPLEXITY)
        .from_level(level::TYPES),
    Spec::read("ZDIFF", -3, READ_KEYS, zdiff)
        .about(READ, GROUP, "6.2.0", "Subtract sorted sets from the first one")
        .syntax("numkeys:integer key... [WITHSCORES]")
        .complexity(DIFFERENCE_COMPLEXITY)
        .from_level(level::TYPES),
    Spec::read("ZINTERCARD", -3, READ_KEYS, zintercard)
        .about(READ, GROUP, "7.0.0", "Count the members that sorted sets have in common")
        .syntax("numkeys:integer key... [LIMIT limit:integer]")
        .complexity(
            "O(N*K) worst case with N being the smallest input sorted set, K being the number of input sorted sets.",
        )
        .from_level(level::TYPES),
    Spec::write("ZUNIONSTORE", -4, STORE_KEYS, zunionstore)
        .about(STORE, GROUP, "2.0.0", "Unite sorted sets, and store the result")
        .syntax(
            "destination:key numkeys:integer key... [WEIGHTS weight:integer...] [AGGREGATE \
             aggregate=<SUM|MIN|MAX>]",
        )
        .complexity(
            "O(N)+O(M log(M)) with N being the sum of the sizes of the input sorted sets, and M being the number of \
             elements in the resulting sorted set.",
        )
        .from_level(level::TYPES),
    Spec::write("ZINTERSTORE", -4, STORE_KEYS, zinterstore)
        .about(STORE, GROUP, "2.0.0", "Intersect sorted sets, and store the result")
        .syntax(
            "destination:key numkeys:integer key... [WEIGHTS weight:integer...] [AGGREGATE \
             aggregate=<SUM|MIN|MAX>]",
        )
        .complexity(INTERSECTION_COMPLEXITY)
        .from_level(level::TYPES),
    Spec::write("ZDIFFSTORE", -4, STORE_KEYS, zdiffstore)
        .about(STORE, GROUP, "6.2.0", "Subtract sorted sets from the first one, and store the result")
        .syntax("destination:key numkeys:integer key...")
        .complexity(DIFFERENCE_COMPLEXITY)
        .from_level(level::TYPES),
];

const UNION_COMPLEXITY: &str = "O(N)+O(M*log(M)) with N being the sum of the sizes of the input sorted sets, and M \
                                being the number of elements in the resulting sorted set.";
const INTERSECTION_COMPLEXITY: &str = "O(N*K)+O(M*log(M)) worst case with N being the smallest input sorted set, K \
                                       being the number of input sorted sets and M being the number of elements in \
                                       the resulting sorted set.";
const DIFFERENCE_COMPLEXITY: &str = "O(L + (N-K)log(N)) worst case where L is the total number of elements in all \
                                     the sets, N is the size of the first set, and K is the size of the result set.";

/// What is made of several sorted sets.
#[derive(Clone, Copy, PartialEq)]
enum Operation {
    Union,
    Intersection,
    Difference,
}

/// How the scores of a member become one.
#[derive(Clone, Copy)]
enum Aggregate {
    Sum,
    Min,
    Max,
}

impl Aggregate {
    fn of(self, a: f64, b: f64) -> f64 {
        match self {
            Aggregate::Sum => number(a + b),
            // Which of two zeros is the lesser is not for the machine to say.
            Aggregate::Min if b < a => b,
            Aggregate::Max if b > a => b,
            Aggregate::Min | Aggregate::Max => a,
        }
    }
}

/// As in Redis, what is no number is 0: infinities of both signs, and an infinity times 0.
fn number(score: f64) -> f64 {
    if score.is_nan() { 0.0 } else { score }
}

/// A sorted set, or a set.
#[derive(Clone, Copy)]
enum Source<'a> {
    Sorted(&'a SortedSet),
    Plain(&'a Set),
    Missing,
}

impl<'a> Source<'a> {
    fn at(view: &View<'a>, key: &[u8]) -> Result<Source<'a>> {
        Ok(match view.value::<Set>(key) {
            Ok(Some(set)) => Source::Plain(set),
            Ok(None) => Source::Missing,
            Err(_) => view.value::<SortedSet>(key)?.map_or(Source::Missing, Source::Sorted),
        })
    }

    fn len(self) -> usize {
        match self {
            Source::Sorted(set) => set.len(),
            Source::Plain(set) => set.len(),
            Source::Missing => 0,
        }
    }

    fn score(self, member: &[u8]) -> Option<f64> {
        match self {
            Source::Sorted(set) => set.score(member),
            Source::Plain(set) => set.contains(member).then_some(1.0),
            Source::Missing => None,
        }
    }

    fn iter(self) -> Box<dyn Iterator<Item = (Cow<'a, [u8]>, f64)> + 'a> {
        match self {
            Source::Sorted(set) => Box::new(set.iter().map(|(member, score)| (Cow::Borrowed(member), score))),
            Source::Plain(set) => Box::new(set.iter().map(|member| (member.into_name(), 1.0))),
            Source::Missing => Box::new(std::iter::empty()),
        }
    }
}

/// A call, but for what it is about.
struct Query<'a> {
    operation: Operation,
    /// With the factor of its scores. For all but differences in ascending order of their sizes, as Redis adds them.
    sources: Vec<(Source<'a>, f64)>,
    /// What going through them costs besides, in elements: a few members may be large, and a key be named many times.
    cost: usize,
    aggregate: Aggregate,
    with_scores: bool,
    /// For those that only count: up to how many; 0 for all.
    limit: usize,
}

/// The members of a result with their scores, in their order.
type Scored<'a> = Vec<(Cow<'a, [u8]>, f64)>;

/// Which options a command takes.
#[derive(Clone, Copy, PartialEq)]
enum Purpose {
    Show,
    Store,
    Count,
}

impl<'a> Query<'a> {
    /// Reads the number of keys at `at`, the keys and the options.
    fn parse(
        view: &View<'a>,
        args: &Args<'_>,
        at: usize,
        operation: Operation,
        purpose: Purpose,
    ) -> Result<Query<'a>> {
        let count = args.integer(at)?;
        if count < 1 {
            let name = String::from_utf8_lossy(args.at(0)).to_ascii_lowercase();
            return Err(Error::err(format!("at least 1 input key is needed for '{name}' command")));
        }
        let count =
            usize::try_from(count).ok().filter(|count| *count < args.len() - at).ok_or(Error::Syntax)?;
        let sources = args.from(at + 1)[..count].iter().map(|key| Ok((Source::at(view, key)?, 1.0)));
        let sources = sources.collect::<Result<Vec<_>>>()?;
        let cost = args.from(at + 1)[..count].iter().map(|key| view.cost_of(key) / BYTES_OF_AN_ELEMENT).sum();
        let mut query =
            Query { operation, cost, sources, aggregate: Aggregate::Sum, with_scores: false, limit: 0 };
        query.parse_options(args, at + 1 + count, purpose)?;
        if operation != Operation::Difference {
            query.sources.sort_by_key(|(source, _)| source.len());
        }
        Ok(query)
    }

    fn parse_options(&mut self, args: &Args<'_>, mut index: usize, purpose: Purpose) -> Result<()> {
        let is_weighted = self.operation != Operation::Difference && purpose != Purpose::Count;
        while index < args.len() {
            let left = args.len() - index;
            if is_weighted && left > self.sources.len() && args.is(index, "WEIGHTS") {
                for (_, weight) in &mut self.sources {
                    index += 1;
                    let value = parse_float(args.at(index));
                    *weight = value.ok_or_else(|| Error::err("weight value is not a float"))?;
                }
            } else if is_weighted && left > 1 && args.is(index, "AGGREGATE") {
                index += 1;
                self.aggregate = match () {
                    () if args.is(index, "SUM") => Aggregate::Sum,
                    () if args.is(index, "MIN") => Aggregate::Min,
                    () if args.is(index, "MAX") => Aggregate::Max,
                    () => return Err(Error::Syntax),
                };
            } else if purpose == Purpose::Show && args.is(index, "WITHSCORES") {
                self.with_scores = true;
            } else if purpose == Purpose::Count && left > 1 && args.is(index, "LIMIT") {
                index += 1;
                let limit = parse_integer(args.at(index)).and_then(|limit| usize::try_from(limit).ok());
                self.limit = limit.ok_or_else(|| Error::err("LIMIT can't be negative"))?;
            } else {
                return Err(Error::Syntax);
            }
            index += 1;
        }
        Ok(())
    }

    /// How many elements making the result touches.
    fn touched(&self) -> usize {
        let first = self.sources[0].0.len();
        let members: usize = match self.operation {
            Operation::Union => self.sources.iter().map(|(source, _)| source.len()).sum(),
            Operation::Intersection | Operation::Difference => first.saturating_mul(self.sources.len()),
        };
        members.saturating_add(self.cost)
    }

    /// The members that all sets have, with their scores, in the order of the smallest.
    fn common(&self) -> impl Iterator<Item = (Cow<'a, [u8]>, f64)> {
        let ((smallest, weight), others) = (self.sources[0], &self.sources[1..]);
        smallest.iter().filter_map(move |(member, score)| {
            let first = number(score * weight);
            let score = others.iter().try_fold(first, |sum, (source, weight)| {
                Some(self.aggregate.of(sum, number(source.score(&member)? * weight)))
            })?;
            Some((member, score))
        })
    }

    fn union(&self) -> Scored<'a> {
        let mut scores: HashMap<Cow<'a, [u8]>, f64> = HashMap::new();
        for &(source, weight) in &self.sources {
            for (member, score) in source.iter() {
                let score = number(score * weight);
                match scores.entry(member) {
                    Entry::Occupied(mut sum) => _ = sum.insert(self.aggregate.of(*sum.get(), score)),
                    Entry::Vacant(place) => _ = place.insert(score),
                }
            }
        }
        scores.into_iter().collect()
    }

    fn difference(&self) -> Scored<'a> {
        let (first, others) = (self.sources[0].0, &self.sources[1..]);
        let is_left = |member: &[u8]| others.iter().all(|(source, _)| source.score(member).is_none());
        first.iter().filter(|(member, _)| is_left(member)).collect()
    }

    fn run(&self) -> Scored<'a> {
        let mut result = match self.operation {
            Operation::Union => self.union(),
            Operation::Intersection => self.common().collect(),
            Operation::Difference => self.difference(),
        };
        result.sort_unstable_by(|(a, score), (b, other)| {
            score.partial_cmp(other).unwrap_or(Ordering::Equal).then_with(|| a.cmp(b))
        });
        result
    }
}

fn show(view: &View<'_>, args: &Args<'_>, operation: Operation, reply: &mut Reply) -> Result<()> {
    let query = Query::parse(view, args, 1, operation, Purpose::Show)?;
    view.check_elements(query.touched())?;
    let result = query.run();
    if query.with_scores {
        reply.pairs(result.len());
        result.iter().for_each(|(member, score)| member_and_score(member, *score, reply));
    } else {
        reply.array(result.len());
        result.iter().for_each(|(member, _)| reply.bulk(member));
    }
    Ok(())
}

fn store(ctx: &mut Ctx<'_>, args: &Args<'_>, operation: Operation, reply: &mut Reply) -> Result<()> {
    let touched = Query::parse(&ctx.view(), args, 2, operation, Purpose::Store)?.touched();
    ctx.check_elements(touched)?;
    let result = Query::parse(&ctx.view(), args, 2, operation, Purpose::Store)?.run();
    ctx.check_memory_of(result.iter().map(|(member, _)| member.len()), 2)?;
    let result: Vec<(Vec<u8>, f64)> =
        result.into_iter().map(|(member, score)| (member.into_owned(), score)).collect();
    super::store(ctx, args.at(1), &result, reply);
    Ok(())
}

fn zunion(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    show(view, args, Operation::Union, reply)
}

fn zinter(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    show(view, args, Operation::Intersection, reply)
}

fn zdiff(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    show(view, args, Operation::Difference, reply)
}

fn zintercard(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let query = Query::parse(view, args, 1, Operation::Intersection, Purpose::Count)?;
    view.check_elements(query.touched())?;
    let max = if query.limit == 0 { usize::MAX } else { query.limit };
    reply.size(query.common().take(max).count());
    Ok(())
}

fn zunionstore(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    store(ctx, args, Operation::Union, reply)
}

fn zinterstore(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    store(ctx, args, Operation::Intersection, reply)
}

fn zdiffstore(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    store(ctx, args, Operation::Difference, reply)
}
