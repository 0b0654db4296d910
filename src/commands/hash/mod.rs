//! Hashes: setting, reading, counting and deleting fields. Scans and random fields are in `hash_walk.rs`.

pub mod walk;

use super::{
    Spec, keys,
    string::numbers::{add_float, is_infinite, parse_increment, would_overflow},
};
use crate::{
    args::{Args, parse_float, parse_integer},
    error::{Error, Result},
    extended::Extended,
    resp::Reply,
    store::{Ctx, Hash, View},
};

/// The group of COMMAND DOCS.
pub(crate) const GROUP: &str = "hash";
const READ_FAST: &[&str] = &["readonly", "fast"];
const WRITE_FAST: &[&str] = &["write", "denyoom", "fast"];

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write("HSET", -4, keys::UPDATE, hset)
        .about(WRITE_FAST, GROUP, "2.0.0", "Set the string value of a hash field")
        .syntax("key field_value=(field value)...")
        .complexity(
            "O(1) for each field/value pair added, so O(N) to add N field/value pairs when the \
             command is called with multiple field/value pairs",
        ),
    Spec::write("HMSET", -4, keys::UPDATE, hmset)
        .about(WRITE_FAST, GROUP, "2.0.0", "Set multiple hash fields to multiple values")
        .syntax("key field_value=(field value)...")
        .complexity("O(N) where N is the number of fields being set")
        .deprecated("4.0.0", "`HSET` with multiple field-value pairs"),
    Spec::write("HSETNX", 4, keys::INSERT, hsetnx)
        .about(WRITE_FAST, GROUP, "2.0.0", "Set the value of a hash field, only if the field does not exist")
        .syntax("key field value")
        .complexity("O(1)"),
    Spec::read("HGET", 3, keys::READ, hget)
        .about(READ_FAST, GROUP, "2.0.0", "Get the value of a hash field")
        .syntax("key field")
        .complexity("O(1)"),
    Spec::read("HMGET", -3, keys::READ, hmget)
        .about(READ_FAST, GROUP, "2.0.0", "Get the values of all the given hash fields")
        .syntax("key field...")
        .complexity("O(N) where N is the number of fields being requested"),
    Spec::read("HEXISTS", 3, keys::LOOK, hexists)
        .about(READ_FAST, GROUP, "2.0.0", "Determine if a hash field exists")
        .syntax("key field")
        .complexity("O(1)"),
    Spec::read("HLEN", 2, keys::LOOK, hlen)
        .about(READ_FAST, GROUP, "2.0.0", "Get the number of fields in a hash")
        .syntax("key")
        .complexity("O(1)"),
    Spec::read("HSTRLEN", 3, keys::LOOK, hstrlen)
        .about(READ_FAST, GROUP, "3.2.0", "Get the length of the value of a hash field")
        .syntax("key field")
        .complexity("O(1)"),
    Spec::write("HDEL", -3, keys::DELETE, hdel)
        .about(&["write", "fast"], GROUP, "2.0.0", "Delete one or more hash fields")
        .syntax("key field...")
        .complexity("O(N) where N is the number of fields to be removed"),
    Spec::write("HINCRBY", 4, keys::CHANGE, hincrby)
        .about(WRITE_FAST, GROUP, "2.0.0", "Increment the integer value of a hash field by the given number")
        .syntax("key field increment:integer")
        .complexity("O(1)"),
    Spec::write("HINCRBYFLOAT", 4, keys::CHANGE, hincrbyfloat)
        .about(WRITE_FAST, GROUP, "2.6.0", "Increment the float value of a hash field by the given amount")
        .syntax("key field increment:double")
        .complexity("O(1)"),
];

/// Sets the pairs of HSET and HMSET; returns the number of new fields.
fn set_pairs(ctx: &mut Ctx<'_>, args: &Args<'_>, command: &'static str) -> Result<usize> {
    let arguments = args.from(2);
    if !arguments.len().is_multiple_of(2) {
        return Err(Error::Arity(command.into()));
    }
    let longest = arguments.iter().map(|argument| argument.len()).max().unwrap_or(0);
    ctx.modify_or_create(args.at(1), |hash: &mut Hash, pages| {
        hash.make_room_for(longest, pages);
        Ok(arguments.chunks_exact(2).filter(|pair| hash.set(pair[0], pair[1], pages)).count())
    })
}

fn hset(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.size(set_pairs(ctx, args, "hset")?);
    Ok(())
}

fn hmset(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    set_pairs(ctx, args, "hmset")?;
    reply.ok();
    Ok(())
}

fn hsetnx(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (key, field) = (args.at(1), args.at(2));
    let is_missing = ctx.view().value::<Hash>(key)?.and_then(|hash| hash.get(field)).is_none();
    if is_missing {
        ctx.modify_or_create(key, |hash: &mut Hash, pages| Ok(hash.set(field, args.at(3), pages)))?;
    }
    reply.flag(is_missing);
    Ok(())
}

/// The value of a field, if key and field exist.
fn value_of<'a>(view: &View<'a>, key: &[u8], field: &[u8]) -> Result<Option<&'a [u8]>> {
    Ok(view.value::<Hash>(key)?.and_then(|hash| hash.get(field)))
}

fn hget(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.bulk_or_null(value_of(view, args.at(1), args.at(2))?);
    Ok(())
}

fn hmget(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let hash = view.value::<Hash>(args.at(1))?;
    reply.array(args.len() - 2);
    for field in args.from(2) {
        reply.bulk_or_null(hash.and_then(|hash| hash.get(field)));
    }
    Ok(())
}

fn hexists(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.flag(value_of(view, args.at(1), args.at(2))?.is_some());
    Ok(())
}

fn hlen(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.size(view.value::<Hash>(args.at(1))?.map_or(0, Hash::len));
    Ok(())
}

fn hstrlen(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.size(value_of(view, args.at(1), args.at(2))?.map_or(0, <[u8]>::len));
    Ok(())
}

fn hdel(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let deleted = ctx.modify(args.at(1), |hash: &mut Hash, pages| {
        let deleted = args.from(2).iter().filter(|field| hash.remove(field, pages)).count();
        if deleted == 0 {
            pages.unchanged();
        }
        Ok(deleted)
    })?;
    reply.size(deleted.unwrap_or(0));
    Ok(())
}

fn hincrby(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (key, field, increment) = (args.at(1), args.at(2), args.integer(3)?);
    let value = match value_of(&ctx.view(), key, field)? {
        Some(text) => parse_integer(text).ok_or_else(|| Error::err("hash value is not an integer"))?,
        None => 0,
    };
    let value = value.checked_add(increment).ok_or(Error::Overflow)?;
    set_number(ctx, key, field, itoa::Buffer::new().format(value))?;
    reply.integer(value);
    Ok(())
}

fn hincrbyfloat(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (key, field, increment) = (args.at(1), args.at(2), args.at(3));
    // Errors of the increment come first. For an infinity, Redis has another text here than in INCRBYFLOAT.
    if parse_float(increment).is_some_and(f64::is_infinite) {
        return Err(Error::err("value is NaN or Infinity"));
    }
    let increment = parse_increment(increment)?;
    let value = match value_of(&ctx.view(), key, field)? {
        Some(text) if is_infinite(text) => return Err(would_overflow()),
        Some(text) => Extended::parse(text).ok_or_else(|| Error::err("hash value is not a float"))?,
        None => Extended::ZERO,
    };
    let sum = add_float(value, increment)?;
    set_number(ctx, key, field, &sum)?;
    reply.bulk(sum.as_bytes());
    Ok(())
}

fn set_number(ctx: &mut Ctx<'_>, key: &[u8], field: &[u8], text: &str) -> Result<()> {
    ctx.modify_or_create(key, |hash: &mut Hash, pages| {
        hash.set(field, text.as_bytes(), pages);
        Ok(())
    })
}
