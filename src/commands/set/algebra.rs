//! Intersections, unions and differences of sets, as a reply, counted or stored. The order of a result
//! depends on the sets alone, so that it is the same on all nodes.

use std::{borrow::Cow, collections::HashSet};

use crate::commands::{
    Spec,
    keys::{self, Access},
    set::GROUP,
};
use crate::{
    args::{Args, parse_integer},
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, Deadline, Member, Set, View},
};

const READ: &[&str] = &["readonly"];
const STORE: &[&str] = &["write", "denyoom"];

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::read("SINTER", -2, keys::READ_ALL, sinter)
        .about(READ, GROUP, "1.0.0", "Intersect multiple sets")
        .syntax("key...")
        .complexity(
            "O(N*M) worst case where N is the cardinality of the smallest set and M is the number \
             of sets",
        )
        .tips(&["nondeterministic_output_order"]),
    Spec::read("SUNION", -2, keys::READ_ALL, sunion)
        .about(READ, GROUP, "1.0.0", "Add multiple sets")
        .syntax("key...")
        .complexity("O(N) where N is the total number of elements in all given sets")
        .tips(&["nondeterministic_output_order"]),
    Spec::read("SDIFF", -2, keys::READ_ALL, sdiff)
        .about(READ, GROUP, "1.0.0", "Subtract multiple sets")
        .syntax("key...")
        .complexity("O(N) where N is the total number of elements in all given sets")
        .tips(&["nondeterministic_output_order"]),
    Spec::read("SINTERCARD", -3, &[keys::counted(1, Access::Ro, "access")], sintercard)
        .about(READ, GROUP, "7.0.0", "Intersect multiple sets and return the cardinality of the result")
        .syntax("numkeys:integer key... [LIMIT limit:integer]")
        .complexity(
            "O(N*M) worst case where N is the cardinality of the smallest set and M is the number \
             of sets",
        ),
    Spec::write(
        "SINTERSTORE",
        -3,
        &[keys::one(1, Access::Rw, "update"), keys::rest(2, Access::Ro, "access")],
        sinterstore,
    )
    .about(STORE, GROUP, "1.0.0", "Intersect multiple sets and store the resulting set in a key")
    .syntax("destination:key key...")
    .complexity(
        "O(N*M) worst case where N is the cardinality of the smallest set and M is the number \
             of sets",
    ),
    Spec::write("SUNIONSTORE", -3, keys::STORE, sunionstore)
        .about(STORE, GROUP, "1.0.0", "Add multiple sets and store the resulting set in a key")
        .syntax("destination:key key...")
        .complexity("O(N) where N is the total number of elements in all given sets"),
    Spec::write("SDIFFSTORE", -3, keys::STORE, sdiffstore)
        .about(STORE, GROUP, "1.0.0", "Subtract multiple sets and store the resulting set in a key")
        .syntax("destination:key key...")
        .complexity("O(N) where N is the total number of elements in all given sets"),
];

/// The members of a result, in an order that depends on the sets alone. Those of large sets are not copied.
type Members<'a> = Vec<Cow<'a, [u8]>>;

fn members_of(set: &Set) -> impl Iterator<Item = Cow<'_, [u8]>> {
    set.iter().map(|member| match member {
        Member::Bytes(bytes) => Cow::Borrowed(bytes),
        Member::Integer(text) => Cow::Owned(text.to_vec()),
    })
}

/// The sets at the keys, each once, however often its key is named; None for a missing key. An error if any key has
/// another type.
fn sets<'a>(view: &View<'a>, keys: &[&[u8]]) -> Result<Vec<Option<&'a Set>>> {
    let mut seen = HashSet::new();
    let different = keys.iter().filter(|key| seen.insert(**key));
    different.map(|key| view.value::<Set>(key)).collect()
}

/// At most `max` members that are in all sets.
fn intersection<'a>(view: &View<'a>, keys: &[&[u8]], max: usize) -> Result<Members<'a>> {
    let sets: Option<Vec<&Set>> = sets(view, keys)?.into_iter().collect();
    let Some(mut sets) = sets else { return Ok(Members::new()) };
    sets.sort_by_key(|set| set.len());
    let [smallest, others @ ..] = &sets[..] else { return Ok(Members::new()) };
    let is_common = |member: &Cow<'_, [u8]>| others.iter().all(|set| set.contains(member));
    Ok(members_of(smallest).filter(is_common).take(max).collect())
}

fn union<'a>(view: &View<'a>, keys: &[&[u8]]) -> Result<Members<'a>> {
    let sets: Vec<&Set> = sets(view, keys)?.into_iter().flatten().collect();
    if let [only] = sets[..] {
        return Ok(members_of(only).collect());
    }
    let mut seen = HashSet::new();
    let all = sets.into_iter().flat_map(members_of);
    Ok(all.filter(|member| seen.insert(member.clone())).collect())
}

fn difference<'a>(view: &View<'a>, keys: &[&[u8]]) -> Result<Members<'a>> {
    let (first, others) = (view.value::<Set>(keys[0])?, sets(view, &keys[1..])?);
    let Some(first) = first else { return Ok(Members::new()) };
    if keys[1..].contains(&keys[0]) {
        return Ok(Members::new());
    }
    let is_left = |member: &Cow<'_, [u8]>| !others.iter().flatten().any(|set| set.contains(member));
    Ok(members_of(first).filter(is_left).collect())
}

fn show(members: &Members<'_>, reply: &mut Reply) {
    reply.set(members.len());
    members.iter().for_each(|member| reply.bulk(member));
}

/// A result apart from the sets that it was made of, in one allocation, so that it can be stored.
struct Copied {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Copied {
    fn of(members: &Members<'_>) -> Copied {
        let mut result = Copied {
            bytes: Vec::with_capacity(members.iter().map(|member| member.len()).sum()),
            ends: Vec::with_capacity(members.len()),
        };
        for member in members {
            result.bytes.extend_from_slice(member);
            result.ends.push(result.bytes.len());
        }
        result
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.bytes[start..end])
    }
}

/// Stores a result at a key, replacing any value; an empty one deletes the key.
fn store(
    ctx: &mut Ctx<'_>,
    args: &Args<'_>,
    make: impl for<'a> Fn(&View<'a>, &[&[u8]]) -> Result<Members<'a>>,
    reply: &mut Reply,
) -> Result<()> {
    let view = ctx.view();
    let members = make(&view, args.from(2))?;
    ctx.check_memory_of(members.iter().map(|member| member.len()), 1)?;
    let members = Copied::of(&members);
    let set = ctx.build::<Set>(|set, pages| {
        members.iter().for_each(|member| _ = set.insert(member, pages));
    });
    ctx.put(args.at(1), set, Deadline::None);
    reply.size(members.ends.len());
    Ok(())
}

fn sinter(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    show(&intersection(view, args.from(1), usize::MAX)?, reply);
    Ok(())
}

fn sunion(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    show(&union(view, args.from(1))?, reply);
    Ok(())
}

fn sdiff(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    show(&difference(view, args.from(1))?, reply);
    Ok(())
}

fn sintercard(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let number = |index: usize| parse_integer(args.at(index)).and_then(|count| usize::try_from(count).ok());
    let keys = number(1).filter(|&keys| keys > 0);
    let keys = keys.ok_or_else(|| Error::err("numkeys should be greater than 0"))?;
    if keys > args.len() - 2 {
        return Err(Error::err("Number of keys can't be greater than number of args"));
    }
    let mut max = usize::MAX;
    for index in (2 + keys..args.len()).step_by(2) {
        if !args.is(index, "LIMIT") || index + 1 == args.len() {
            return Err(Error::Syntax);
        }
        let limit = number(index + 1).ok_or_else(|| Error::err("LIMIT can't be negative"))?;
        // 0 means no limit.
        max = if limit == 0 { usize::MAX } else { limit };
    }
    reply.size(intersection(view, &args.from(2)[..keys], max)?.len());
    Ok(())
}

fn sinterstore(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    store(ctx, args, |view, keys| intersection(view, keys, usize::MAX), reply)
}

fn sunionstore(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    store(ctx, args, union, reply)
}

fn sdiffstore(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    store(ctx, args, difference, reply)
}
