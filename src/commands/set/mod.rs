//! Sets: adding, removing and choosing members. Operations on several sets are in `set_algebra.rs`.

pub mod algebra;

use super::{
    Spec,
    generic::scan::{ScanOptions, reply_step},
    keys,
};
use crate::{
    args::Args,
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, Set, View, level, looked_at},
};

/// The group of COMMAND DOCS.
pub(crate) const GROUP: &str = "set";
/// The most random members or fields, possibly repeated, in one reply; and the same at the first level. Redis
/// has no limit: there one call can use up all memory.
pub(crate) const REPEATED_CHOICES_MAX: usize = 1 << 17;
const FIRST_RULE_REPEATED_CHOICES_MAX: usize = 1 << 24;

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write("SADD", -3, keys::INSERT, sadd)
        .about(&["write", "denyoom", "fast"], GROUP, "1.0.0", "Add one or more members to a set")
        .syntax("key member...")
        .complexity(
            "O(1) for each element added, so O(N) to add N elements when the command is called with \
             multiple arguments",
        ),
    Spec::write("SREM", -3, keys::DELETE, srem)
        .about(&["write", "fast"], GROUP, "1.0.0", "Remove one or more members from a set")
        .syntax("key member...")
        .complexity("O(N) where N is the number of members to be removed"),
    Spec::read("SISMEMBER", 3, keys::LOOK, sismember)
        .about(&["readonly", "fast"], GROUP, "1.0.0", "Determine if a given value is a member of a set")
        .syntax("key member")
        .complexity("O(1)"),
    Spec::read("SMISMEMBER", -3, keys::READ, smismember)
        .about(
            &["readonly", "fast"],
            GROUP,
            "6.2.0",
            "Returns the membership associated with the given elements for a set",
        )
        .syntax("key member...")
        .complexity("O(N) where N is the number of elements being checked for membership"),
    Spec::read("SMEMBERS", 2, keys::READ, smembers)
        .about(&["readonly"], GROUP, "1.0.0", "Get all the members in a set")
        .syntax("key")
        .complexity("O(N) where N is the set cardinality")
        .tips(&["nondeterministic_output_order"]),
    Spec::read("SCARD", 2, keys::LOOK, scard)
        .about(&["readonly", "fast"], GROUP, "1.0.0", "Get the number of members in a set")
        .syntax("key")
        .complexity("O(1)"),
    Spec::write("SPOP", -2, keys::TAKE, spop)
        .about(
            &["write", "fast"],
            GROUP,
            "1.0.0",
            "Remove and return one or multiple random members from a set",
        )
        .syntax("key [count:integer@3.2.0]")
        .complexity(
            "Without the count argument O(1), otherwise O(N) where N is the value of the passed \
             count",
        )
        .tips(&["nondeterministic_output"]),
    Spec::read("SRANDMEMBER", -2, keys::READ, srandmember)
        .about(&["readonly"], GROUP, "1.0.0", "Get one or multiple random members from a set")
        .syntax("key [count:integer@2.6.0]")
        .complexity(
            "Without the count argument O(1), otherwise O(N) where N is the absolute value of the \
             passed count",
        )
        .tips(&["nondeterministic_output"]),
    Spec::write("SMOVE", 4, keys::MOVE, smove)
        .about(&["write", "fast"], GROUP, "1.0.0", "Move a member from one set to another")
        .syntax("source:key destination:key member")
        .complexity("O(1)"),
    Spec::read("SSCAN", -3, keys::READ, sscan)
        .about(&["readonly"], GROUP, "2.8.0", "Incrementally iterate Set elements")
        .syntax("key cursor:integer [MATCH pattern:pattern] [COUNT count:integer]")
        .complexity("O(1) for every call")
        .tips(&["nondeterministic_output"]),
];

fn sadd(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let added = ctx.modify_or_create::<Set, _>(args.at(1), |set, pages| {
        let added = args.from(2).iter().filter(|member| set.insert(member, pages)).count();
        if added == 0 {
            pages.unchanged();
        }
        Ok(added)
    })?;
    reply.size(added);
    Ok(())
}

fn srem(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let removed = ctx.modify::<Set, _>(args.at(1), |set, pages| {
        let removed = args.from(2).iter().filter(|member| set.remove(member, pages)).count();
        if removed == 0 {
            pages.unchanged();
        }
        Ok(removed)
    })?;
    reply.size(removed.unwrap_or(0));
    Ok(())
}

fn sismember(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let set = view.value::<Set>(args.at(1))?;
    reply.flag(set.is_some_and(|set| set.contains(args.at(2))));
    Ok(())
}

fn smismember(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let set = view.value::<Set>(args.at(1))?;
    reply.array(args.len() - 2);
    for member in args.from(2) {
        reply.flag(set.is_some_and(|set| set.contains(member)));
    }
    Ok(())
}

fn smembers(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let set = view.value::<Set>(args.at(1))?;
    view.check_elements(set.map_or(0, Set::len))?;
    reply.set(set.map_or(0, Set::len));
    set.into_iter().flat_map(Set::iter).for_each(|member| reply.bulk(member.as_ref()));
    Ok(())
}

fn scard(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.size(view.value::<Set>(args.at(1))?.map_or(0, Set::len));
    Ok(())
}

/// A count of at least 0. As in Redis, everything else is one error.
pub(crate) fn positive(args: &Args<'_>, index: usize) -> Result<usize> {
    let count = args.integer(index).ok();
    count.and_then(|count| usize::try_from(count).ok()).ok_or(Error::NotPositive)
}

fn spop(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let wanted = match args.len() {
        2 => None,
        3 => Some(positive(args, 2)?),
        _ => return Err(Error::Syntax),
    };
    let mut chance = ctx.chance().clone();
    let popped = ctx.modify::<Set, _>(args.at(1), |set, pages| {
        pages.check_elements(looked_at(set.len(), wanted.unwrap_or(1)))?;
        let chosen = set.choose_different(wanted.unwrap_or(1), &mut chance);
        let popped: Vec<Vec<u8>> = chosen.iter().map(|member| member.as_ref().to_vec()).collect();
        popped.iter().for_each(|member| _ = set.remove(member, pages));
        if popped.is_empty() {
            pages.unchanged();
        }
        Ok(popped)
    })?;
    *ctx.chance() = chance;
    let popped = popped.unwrap_or_default();
    match wanted {
        None => reply.bulk_or_null(popped.first().map(Vec::as_slice)),
        Some(_) => {
            reply.set(popped.len());
            popped.iter().for_each(|member| reply.bulk(member));
        }
    }
    Ok(())
}

/// A number of random members: a positive count asks for different ones, a negative one for that many
/// independent choices.
pub(crate) enum Choices {
    Different(usize),
    Repeated(usize),
}

impl Choices {
    /// How many of `len` members they may look at.
    pub(crate) fn looked_at(&self, len: usize) -> usize {
        match *self {
            Choices::Different(count) => looked_at(len, count),
            Choices::Repeated(count) => count,
        }
    }

    /// Reads the count at `index`.
    pub(crate) fn parse(view: &View<'_>, args: &Args<'_>, index: usize) -> Result<Choices> {
        let count = args.integer(index)?;
        if count >= 0 {
            return Ok(Choices::Different(count as usize));
        }
        if count == i64::MIN {
            let max = i64::MAX;
            return Err(Error::err(format!("value is out of range, value must between -{max} and {max}")));
        }
        let count = count.unsigned_abs() as usize;
        let is_bounded = view.level >= level::BOUNDED;
        let max = if is_bounded { REPEATED_CHOICES_MAX } else { FIRST_RULE_REPEATED_CHOICES_MAX };
        if count > max {
            return Err(Error::err("value is out of range"));
        }
        Ok(Choices::Repeated(count))
    }
}

fn srandmember(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let choices = match args.len() {
        2 => None,
        3 => Some(Choices::parse(view, args, 2)?),
        _ => return Err(Error::Syntax),
    };
    let (set, mut chance) = (view.value::<Set>(args.at(1))?, view.chance());
    if let (Some(set), Some(choices)) = (set, &choices) {
        view.check_elements(choices.looked_at(set.len()))?;
    }
    match (set, choices) {
        (None, None) => reply.null(),
        (None, Some(_)) => reply.array(0),
        (Some(set), None) => {
            reply.bulk_or_null(set.choose(&mut chance).as_ref().map(AsRef::as_ref));
        }
        (Some(set), Some(Choices::Different(count))) => {
            let chosen = set.choose_different(count, &mut chance);
            reply.array(chosen.len());
            chosen.iter().for_each(|member| reply.bulk(member.as_ref()));
        }
        (Some(set), Some(Choices::Repeated(count))) => {
            reply.array(count);
            for _ in 0..count {
                reply.bulk(set.choose(&mut chance).expect("no set is empty").as_ref());
            }
        }
    }
    Ok(())
}

fn smove(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (from, to, member) = (args.at(1), args.at(2), args.at(3));
    let view = ctx.view();
    let Some(source) = view.value::<Set>(from)? else {
        reply.flag(false);
        return Ok(());
    };
    view.value::<Set>(to)?;
    let is_member = source.contains(member);
    if is_member && from != to {
        ctx.modify::<Set, _>(from, |set, pages| Ok(set.remove(member, pages)))?;
        ctx.modify_or_create::<Set, _>(to, |set, pages| {
            if !set.insert(member, pages) {
                pages.unchanged();
            }
            Ok(())
        })?;
    }
    reply.flag(is_member);
    Ok(())
}

fn sscan(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    // Redis checks the options only if the key exists.
    ScanOptions::cursor_of(args, 2)?;
    let Some(set) = view.value::<Set>(args.at(1))? else {
        reply_step(0, 0, reply);
        return Ok(());
    };
    let options = ScanOptions::parse(view, args, 2, false)?;
    view.check_elements(options.count.min(set.len()))?;
    let mut found = Vec::new();
    let cursor = set.scan(options.cursor, options.count, |member| {
        if options.matches(member.as_ref()) {
            found.push(member);
        }
    });
    options.check_work()?;
    reply_step(cursor, found.len(), reply);
    found.iter().for_each(|member| reply.bulk(member.as_ref()));
    Ok(())
}
