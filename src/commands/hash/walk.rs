//! Hashes: all fields, HSCAN, and random fields.

use crate::commands::{
    Spec,
    generic::scan::{ScanOptions, reply_step},
    hash::GROUP,
    keys,
    set::REPEATED_CHOICES_MAX,
};
use crate::{
    args::Args,
    error::{Error, Result},
    resp::Reply,
    store::{Hash, LISTED_SHARE, View, different, level, looked_at},
};

const READ: &[&str] = &["readonly"];

/// The most fields that HRANDFIELD returned with repetitions at the first level.
const FIRST_RULE_REPEATED_FIELDS_MAX: usize = 1 << 20;

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::read("HGETALL", 2, keys::READ, hgetall)
        .about(READ, GROUP, "2.0.0", "Get all the fields and values in a hash")
        .syntax("key")
        .complexity("O(N) where N is the size of the hash")
        .tips(&["nondeterministic_output_order"]),
    Spec::read("HKEYS", 2, keys::READ, hkeys)
        .about(READ, GROUP, "2.0.0", "Get all the fields in a hash")
        .syntax("key")
        .complexity("O(N) where N is the size of the hash")
        .tips(&["nondeterministic_output_order"]),
    Spec::read("HVALS", 2, keys::READ, hvals)
        .about(READ, GROUP, "2.0.0", "Get all the values in a hash")
        .syntax("key")
        .complexity("O(N) where N is the size of the hash")
        .tips(&["nondeterministic_output_order"]),
    Spec::read("HSCAN", -3, keys::READ, hscan)
        .about(READ, GROUP, "2.8.0", "Incrementally iterate hash fields and associated values")
        .syntax("key cursor:integer [MATCH pattern:pattern] [COUNT count:integer]")
        .complexity("O(1) for every call")
        .tips(&["nondeterministic_output"]),
    Spec::read("HRANDFIELD", -2, keys::READ, hrandfield)
        .about(READ, GROUP, "6.2.0", "Get one or multiple random fields from a hash")
        .syntax("key [options=(count:integer [WITHVALUES])]")
        .complexity("O(N) where N is the number of fields returned")
        .tips(&["nondeterministic_output"]),
];

/// A hash of which all fields are wanted.
fn whole<'a>(view: &View<'a>, key: &[u8]) -> Result<Option<&'a Hash>> {
    let hash = view.value::<Hash>(key)?;
    view.check_elements(hash.map_or(0, Hash::len))?;
    Ok(hash)
}

fn hgetall(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let hash = whole(view, args.at(1))?;
    reply.map(hash.map_or(0, Hash::len));
    for (field, value) in hash.iter().flat_map(|hash| hash.iter()) {
        reply.bulk(field);
        reply.bulk(value);
    }
    Ok(())
}

fn hkeys(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let hash = whole(view, args.at(1))?;
    reply.array(hash.map_or(0, Hash::len));
    hash.iter().flat_map(|hash| hash.iter()).for_each(|(field, _)| reply.bulk(field));
    Ok(())
}

fn hvals(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let hash = whole(view, args.at(1))?;
    reply.array(hash.map_or(0, Hash::len));
    hash.iter().flat_map(|hash| hash.iter()).for_each(|(_, value)| reply.bulk(value));
    Ok(())
}

fn hscan(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let cursor = ScanOptions::cursor_of(args, 2)?;
    // As in Redis, the options are not checked if the key does not exist.
    let Some(hash) = view.value::<Hash>(args.at(1))? else {
        reply_step(0, 0, reply);
        return Ok(());
    };
    let options = ScanOptions::parse(view, args, 2, false)?;
    view.check_elements(options.count.min(hash.len()))?;
    let mut found = Vec::new();
    let cursor = hash.scan(cursor, options.count, |field, value| {
        if options.matches(field) {
            found.extend([field, value]);
        }
    });
    options.check_work()?;
    reply_step(cursor, found.len(), reply);
    found.iter().for_each(|bytes| reply.bulk(bytes));
    Ok(())
}

fn hrandfield(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    if args.len() == 2 {
        let hash = view.value::<Hash>(args.at(1))?;
        let mut chance = view.chance();
        reply.bulk_or_null(hash.and_then(|hash| hash.choose(&mut chance)).map(|(field, _)| field));
        return Ok(());
    }
    let count = match args.integer(2)? {
        i64::MIN => {
            return Err(Error::err(format!(
                "value is out of range, value must between {} and {}",
                -i64::MAX,
                i64::MAX
            )));
        }
        count => count,
    };
    let with_values = match args.len() {
        3 => false,
        4 if args.is(3, "WITHVALUES") => true,
        _ => return Err(Error::Syntax),
    };
    let out_of_range = || Error::err("value is out of range");
    if with_values && !(-i64::MAX / 2..=i64::MAX / 2).contains(&count) {
        return Err(out_of_range());
    }
    let Some(hash) = view.value::<Hash>(args.at(1))? else {
        reply.array(0);
        return Ok(());
    };
    let is_bounded = view.level >= level::BOUNDED;
    let max = if is_bounded { REPEATED_CHOICES_MAX } else { FIRST_RULE_REPEATED_FIELDS_MAX };
    if count < 0 && count.unsigned_abs() > max as u64 {
        return Err(out_of_range());
    }
    let wanted = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX);
    view.check_elements(if count < 0 { wanted } else { looked_at(hash.len(), wanted) })?;
    let chosen = choose(view, hash, count);
    if !with_values {
        reply.array(chosen.len());
        chosen.iter().for_each(|(field, _)| reply.bulk(field));
        return Ok(());
    }
    reply.pairs(chosen.len());
    for (field, value) in chosen {
        reply.pair();
        reply.bulk(field);
        reply.bulk(value);
    }
    Ok(())
}

/// `count` different fields, or all if there are no more; with a negative count, that many fields, possibly
/// repeated.
fn choose<'a>(view: &View<'_>, hash: &'a Hash, count: i64) -> Vec<(&'a [u8], &'a [u8])> {
    let mut chance = view.chance();
    let wanted = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX);
    if count < 0 {
        return (0..wanted).filter_map(|_| hash.choose(&mut chance)).collect();
    }
    let mut left = hash.len();
    if wanted >= left {
        return hash.iter().collect();
    }
    if wanted > left / LISTED_SHARE {
        // Each is taken with the probability that makes all selections of this size equally likely.
        let mut chosen = Vec::with_capacity(wanted);
        for pair in hash.iter() {
            if chance.below(left) < wanted - chosen.len() {
                chosen.push(pair);
            }
            left -= 1;
        }
        return chosen;
    }
    different(
        wanted,
        &mut chance,
        |chance| hash.choose(chance),
        |(field, _)| *field,
        || hash.iter().collect(),
    )
}
