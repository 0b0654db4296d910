//! Hashes: all fields, a step of a walk over them, and fields by chance.

use super::{
    Spec,
    hash::GROUP,
    key,
    scan::{ScanOptions, reply_step},
    set::REPEATED_CHOICES_MAX,
};
use crate::{
    args::Args,
    error::{Error, Result},
    resp::{Protocol, Reply},
    store::{Hash, View, different, level},
};

const READ: &[&str] = &["readonly"];

/// The most fields that HRANDFIELD gave with repetitions by the first rule.
const FIRST_RULE_REPEATED_FIELDS_MAX: usize = 1 << 20;
/// With more than one field in so many wanted, the fields are walked over instead of chosen one by one.
const WALKED_SHARE: usize = 3;

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::read("HGETALL", 2, key(), hgetall).about(
        READ,
        GROUP,
        "2.0.0",
        "Get all the fields and values in a hash",
    ),
    Spec::read("HKEYS", 2, key(), hkeys).about(READ, GROUP, "2.0.0", "Get all the fields in a hash"),
    Spec::read("HVALS", 2, key(), hvals).about(READ, GROUP, "2.0.0", "Get all the values in a hash"),
    Spec::read("HSCAN", -3, key(), hscan).about(
        READ,
        GROUP,
        "2.8.0",
        "Incrementally iterate hash fields and associated values",
    ),
    Spec::read("HRANDFIELD", -2, key(), hrandfield).about(
        READ,
        GROUP,
        "6.2.0",
        "Get one or multiple random fields from a hash",
    ),
];

fn hgetall(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let hash = view.value::<Hash>(args.at(1))?;
    reply.map(hash.map_or(0, Hash::len));
    for (field, value) in hash.iter().flat_map(|hash| hash.iter()) {
        reply.bulk(field);
        reply.bulk(value);
    }
    Ok(())
}

fn hkeys(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let hash = view.value::<Hash>(args.at(1))?;
    reply.array(hash.map_or(0, Hash::len));
    hash.iter().flat_map(|hash| hash.iter()).for_each(|(field, _)| reply.bulk(field));
    Ok(())
}

fn hvals(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let hash = view.value::<Hash>(args.at(1))?;
    reply.array(hash.map_or(0, Hash::len));
    hash.iter().flat_map(|hash| hash.iter()).for_each(|(_, value)| reply.bulk(value));
    Ok(())
}

fn hscan(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let cursor = ScanOptions::cursor_of(args, 2)?;
    // As in Redis, the options of a call that finds nothing are not looked at.
    let Some(hash) = view.value::<Hash>(args.at(1))? else {
        reply_step(0, 0, reply);
        return Ok(());
    };
    let options = ScanOptions::parse(view, args, 2, false)?;
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
    let chosen = choose(view, hash, count);
    let is_nested = with_values && reply.protocol() == Protocol::Resp3;
    reply.array(if with_values && !is_nested { 2 * chosen.len() } else { chosen.len() });
    for (field, value) in chosen {
        if is_nested {
            reply.array(2);
        }
        reply.bulk(field);
        if with_values {
            reply.bulk(value);
        }
    }
    Ok(())
}

/// `count` fields that are all different, or all that there are; with a negative count as many as it says, any
/// of them more than once.
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
    if wanted > left / WALKED_SHARE {
        // Each is taken with the chance that makes all choices of so many equally likely.
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
