//! Intersections, unions and differences of sets, as a reply, counted or stored. The order of a result
//! depends on the sets alone, so that it is the same on all nodes.

use std::{
    borrow::Cow,
    cmp::Reverse,
    collections::{BinaryHeap, HashSet, binary_heap::PeekMut},
    iter, mem,
};

use crate::commands::{
    Spec,
    keys::{self, Access},
    set::GROUP,
};
use crate::{
    args::{Args, parse_integer},
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, Deadline, Hashing, Set, View, level},
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

/// A member with its hash. Those of large sets are not copied.
#[derive(Clone, Eq, PartialEq, Ord, PartialOrd)]
struct Hashed<'a> {
    hash: u64,
    name: Cow<'a, [u8]>,
}

/// The members of a result, each once, in an order that depends on the sets alone.
type Members<'a> = Box<dyn Iterator<Item = Hashed<'a>> + 'a>;

/// Makes a result.
type MakeFn = for<'a> fn(&View<'a>, &[&[u8]]) -> Result<Members<'a>>;

/// How many elements making a result touches.
type TouchedFn = fn(&View<'_>, &[&[u8]]) -> Result<usize>;

/// A set's members in its own order.
fn members_of<'a>(set: &'a Set, hashing: Hashing) -> Members<'a> {
    if set.is_in_order_of_hashes() {
        return hashed_members_of(set, hashing);
    }
    Box::new(
        set.iter().map(move |member| Hashed { hash: hashing.of(member.as_ref()), name: member.into_name() }),
    )
}

/// A set's members in the order of their hashes.
fn hashed_members_of<'a>(set: &'a Set, hashing: Hashing) -> Members<'a> {
    Box::new(set.iter_hashed(hashing).map(|(hash, member)| Hashed { hash, name: member.into_name() }))
}

/// The sets at the keys, each once, however often its key is named; None for a missing key. An error if any key has
/// another type.
fn sets<'a>(view: &View<'a>, keys: &[&[u8]]) -> Result<Vec<Option<&'a Set>>> {
    let mut seen = HashSet::new();
    let different = keys.iter().filter(|key| seen.insert(**key));
    different.map(|key| view.value::<Set>(key)).collect()
}

/// The sets in ascending order of their sizes; None if a key is missing, so that they have nothing in common.
fn by_size<'a>(view: &View<'a>, keys: &[&[u8]]) -> Result<Option<Vec<&'a Set>>> {
    let sets: Option<Vec<&Set>> = sets(view, keys)?.into_iter().collect();
    Ok(sets.map(|mut sets| {
        sets.sort_by_key(|set| set.len());
        sets
    }))
}

/// Members that are in all sets.
fn intersection<'a>(view: &View<'a>, keys: &[&[u8]]) -> Result<Members<'a>> {
    let (sets, hashing) = (by_size(view, keys)?.unwrap_or_default(), view.hashing());
    let Some((smallest, others)) = sets.split_first() else { return Ok(Box::new(iter::empty())) };
    let others = others.to_vec();
    let is_common =
        move |member: &Hashed<'_>| others.iter().all(|set| set.contains_hashed(member.hash, &member.name));
    Ok(Box::new(members_of(smallest, hashing).filter(is_common)))
}

fn touched_by_intersection(view: &View<'_>, keys: &[&[u8]]) -> Result<usize> {
    let sets = by_size(view, keys)?.unwrap_or_default();
    Ok(sets.first().map_or(0, |smallest| smallest.len().saturating_mul(sets.len())))
}

fn union<'a>(view: &View<'a>, keys: &[&[u8]]) -> Result<Members<'a>> {
    let sets: Vec<&Set> = sets(view, keys)?.into_iter().flatten().collect();
    let hashing = view.hashing();
    if view.level >= level::LIMITS && sets.iter().any(|set| set.is_in_order_of_hashes()) {
        return Ok(Box::new(Merged::of(sets.into_iter(), hashing)));
    }
    // Small sets one after the other, as Redis does.
    let (all, mut seen) = (sets.into_iter().flat_map(move |set| members_of(set, hashing)), HashSet::new());
    Ok(Box::new(all.filter(move |member| seen.insert(member.name.clone()))))
}

fn touched_by_union(view: &View<'_>, keys: &[&[u8]]) -> Result<usize> {
    Ok(sets(view, keys)?.into_iter().flatten().map(Set::len).sum())
}

fn difference<'a>(view: &View<'a>, keys: &[&[u8]]) -> Result<Members<'a>> {
    let (first, others) = (view.value::<Set>(keys[0])?, sets(view, &keys[1..])?);
    let first = first.filter(|_| !keys[1..].contains(&keys[0]));
    let Some(first) = first else { return Ok(Box::new(iter::empty())) };
    let (others, hashing): (Vec<&Set>, _) = (others.into_iter().flatten().collect(), view.hashing());
    if is_merged(first, &others) && first.is_in_order_of_hashes() {
        let mut gone = Merged::of(others.into_iter(), hashing).peekable();
        return Ok(Box::new(members_of(first, hashing).filter(move |member| {
            while gone.next_if(|gone| gone < member).is_some() {}
            gone.peek() != Some(member)
        })));
    }
    let is_left =
        move |member: &Hashed<'_>| !others.iter().any(|set| set.contains_hashed(member.hash, &member.name));
    Ok(Box::new(members_of(first, hashing).filter(is_left)))
}

/// Whether it is less work to go through all other sets than to look up each member in each of them.
fn is_merged(first: &Set, others: &[&Set]) -> bool {
    others.iter().map(|set| set.len()).sum::<usize>()
        < first.len().saturating_mul(others.len()) / MERGED_SHARE
}

fn touched_by_difference(view: &View<'_>, keys: &[&[u8]]) -> Result<usize> {
    let (first, others) = (view.value::<Set>(keys[0])?, sets(view, &keys[1..])?);
    let others: Vec<&Set> = others.into_iter().flatten().collect();
    Ok(first.map_or(0, |first| {
        let all = others.iter().map(|set| set.len()).sum::<usize>().saturating_add(first.len());
        all.min(first.len().saturating_mul(others.len().max(1)))
    }))
}

/// A lookup costs about as much as this many steps through all sets.
const MERGED_SHARE: usize = 2;

/// All members of several sets in the order of their hashes, each once.
struct Merged<'a> {
    /// The next member of each set, and the set's number.
    heads: BinaryHeap<Reverse<(Hashed<'a>, usize)>>,
    rests: Vec<Members<'a>>,
}

impl<'a> Merged<'a> {
    fn of(sets: impl Iterator<Item = &'a Set>, hashing: Hashing) -> Merged<'a> {
        let mut merged = Merged {
            heads: BinaryHeap::new(),
            rests: sets.map(|set| hashed_members_of(set, hashing)).collect(),
        };
        for (number, rest) in merged.rests.iter_mut().enumerate() {
            merged.heads.extend(rest.next().map(|head| Reverse((head, number))));
        }
        merged
    }

    /// Takes the first member out of its set.
    fn advance(&mut self) -> Option<Hashed<'a>> {
        let mut first = self.heads.peek_mut()?;
        let number = first.0.1;
        match self.rests[number].next() {
            Some(next) => Some(mem::replace(&mut first.0.0, next)),
            None => Some(PeekMut::pop(first).0.0),
        }
    }
}

impl<'a> Iterator for Merged<'a> {
    type Item = Hashed<'a>;

    fn next(&mut self) -> Option<Hashed<'a>> {
        let member = self.advance()?;
        while self.heads.peek().is_some_and(|head| head.0.0 == member) {
            self.advance();
        }
        Some(member)
    }
}

/// Replies with a result.
fn show(view: &View<'_>, args: &Args<'_>, touched: TouchedFn, make: MakeFn, reply: &mut Reply) -> Result<()> {
    view.check_elements(touched(view, args.from(1))?)?;
    let members: Vec<_> = make(view, args.from(1))?.collect();
    reply.set(members.len());
    members.iter().for_each(|member| reply.bulk(&member.name));
    Ok(())
}

/// A result apart from the sets that it was made of, in one allocation, so that it can be stored.
#[derive(Default)]
struct Copied {
    names: Vec<u8>,
    /// Each member's hash, and the end of its name.
    ends: Vec<(u64, usize)>,
}

impl Copied {
    fn of(members: Members<'_>) -> Copied {
        let mut result = Copied::default();
        for member in members {
            result.names.extend_from_slice(&member.name);
            result.ends.push((member.hash, result.names.len()));
        }
        result
    }

    fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut start = 0;
        self.ends.iter().map(move |&(hash, end)| (hash, &self.names[mem::replace(&mut start, end)..end]))
    }
}

/// Stores a result at a key, replacing any value; an empty one deletes the key.
fn store(
    ctx: &mut Ctx<'_>,
    args: &Args<'_>,
    touched: TouchedFn,
    make: MakeFn,
    reply: &mut Reply,
) -> Result<()> {
    let count = touched(&ctx.view(), args.from(2))?;
    ctx.check_elements(count)?;
    let members = Copied::of(make(&ctx.view(), args.from(2))?);
    ctx.check_memory_of(members.iter().map(|(_, member)| member.len()), 1)?;
    let set = ctx.build::<Set>(|set, pages| {
        members.iter().for_each(|(hash, member)| _ = set.insert_hashed(hash, member, pages));
    });
    ctx.put(args.at(1), set, Deadline::None);
    reply.size(members.ends.len());
    Ok(())
}

fn sinter(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    show(view, args, touched_by_intersection, intersection, reply)
}

fn sunion(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    show(view, args, touched_by_union, union, reply)
}

fn sdiff(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    show(view, args, touched_by_difference, difference, reply)
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
    let keys = &args.from(2)[..keys];
    view.check_elements(touched_by_intersection(view, keys)?)?;
    reply.size(intersection(view, keys)?.take(max).count());
    Ok(())
}

fn sinterstore(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    store(ctx, args, touched_by_intersection, intersection, reply)
}

fn sunionstore(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    store(ctx, args, touched_by_union, union, reply)
}

fn sdiffstore(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    store(ctx, args, touched_by_difference, difference, reply)
}
