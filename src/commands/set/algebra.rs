//! Intersections, unions and differences of sets, as a reply, counted or stored. The order of a result
//! depends on the sets alone, so that it is the same on all nodes.

use std::collections::HashSet;

use crate::commands::{
    Spec,
    keys::{self, Access},
    set::GROUP,
};
use crate::{
    args::{Args, parse_integer},
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, Deadline, Set, View},
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

/// The members of a result, in an order that depends on the sets alone.
type Members = Vec<Vec<u8>>;

/// The sets at the keys; None for a missing key. An error if any key has another type.
fn sets<'a>(view: &View<'a>, keys: &[&[u8]]) -> Result<Vec<Option<&'a Set>>> {
    keys.iter().map(|key| view.value::<Set>(key)).collect()
}

/// At most `max` members that are in all sets.
fn intersection(view: &View<'_>, keys: &[&[u8]], max: usize) -> Result<Members> {
    let sets: Option<Vec<&Set>> = sets(view, keys)?.into_iter().collect();
    let Some(mut sets) = sets else { return Ok(Members::new()) };
    sets.sort_by_key(|set| set.len());
    let [smallest, others @ ..] = &sets[..] else { return Ok(Members::new()) };
    let is_common = |member: &[u8]| others.iter().all(|set| set.contains(member));
    let common = smallest.iter().filter(|member| is_common(member.as_ref()));
    Ok(common.take(max).map(|member| member.as_ref().to_vec()).collect())
}

fn union(view: &View<'_>, keys: &[&[u8]]) -> Result<Members> {
    let (mut seen, mut members) = (HashSet::new(), Members::new());
    for member in sets(view, keys)?.into_iter().flatten().flat_map(Set::iter) {
        if !seen.contains(member.as_ref()) {
            seen.insert(member.as_ref().to_vec());
            members.push(member.as_ref().to_vec());
        }
    }
    Ok(members)
}

fn difference(view: &View<'_>, keys: &[&[u8]]) -> Result<Members> {
    let sets = sets(view, keys)?;
    let (Some(first), others) = (sets[0], &sets[1..]) else { return Ok(Members::new()) };
    let is_left = |member: &[u8]| !others.iter().flatten().any(|set| set.contains(member));
    let left = first.iter().filter(|member| is_left(member.as_ref()));
    Ok(left.map(|member| member.as_ref().to_vec()).collect())
}

fn show(members: &Members, reply: &mut Reply) {
    reply.set(members.len());
    members.iter().for_each(|member| reply.bulk(member));
}

/// Stores a result at a key, replacing any value; an empty one deletes the key.
fn store(ctx: &mut Ctx<'_>, key: &[u8], members: &Members, reply: &mut Reply) -> Result<()> {
    ctx.check_memory_of(members.iter().map(Vec::len), 1)?;
    let set = ctx.build::<Set>(|set, pages| {
        members.iter().for_each(|member| _ = set.insert(member, pages));
    });
    ctx.put(key, set, Deadline::None);
    reply.size(members.len());
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
    let members = intersection(&ctx.view(), args.from(2), usize::MAX)?;
    store(ctx, args.at(1), &members, reply)
}

fn sunionstore(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let members = union(&ctx.view(), args.from(2))?;
    store(ctx, args.at(1), &members, reply)
}

fn sdiffstore(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let members = difference(&ctx.view(), args.from(2))?;
    store(ctx, args.at(1), &members, reply)
}
