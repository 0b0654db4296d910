//! Strings as numbers.

use super::{
    Spec, key,
    string::{GROUP, WRITE_FAST},
};
use crate::{
    args::{Args, parse_integer},
    error::{Error, Result},
    extended::Extended,
    resp::Reply,
    store::{Ctx, Deadline},
};

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write("INCR", 2, key(), incr).about(
        WRITE_FAST,
        GROUP,
        "1.0.0",
        "Increment the integer value of a key by one",
    ),
    Spec::write("DECR", 2, key(), decr).about(
        WRITE_FAST,
        GROUP,
        "1.0.0",
        "Decrement the integer value of a key by one",
    ),
    Spec::write("INCRBY", 3, key(), incrby).about(
        WRITE_FAST,
        GROUP,
        "1.0.0",
        "Increment the integer value of a key by the given amount",
    ),
    Spec::write("DECRBY", 3, key(), decrby).about(
        WRITE_FAST,
        GROUP,
        "1.0.0",
        "Decrement the integer value of a key by the given number",
    ),
    Spec::write("INCRBYFLOAT", 3, key(), incrbyfloat).about(
        WRITE_FAST,
        GROUP,
        "2.6.0",
        "Increment the float value of a key by the given amount",
    ),
];

fn incr(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    add(ctx, args.at(1), 1, reply)
}

fn decr(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    add(ctx, args.at(1), -1, reply)
}

fn incrby(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    add(ctx, args.at(1), args.integer(2)?, reply)
}

fn decrby(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let increment = args.integer(2)?.checked_neg().ok_or_else(|| Error::err("decrement would overflow"))?;
    add(ctx, args.at(1), increment, reply)
}

fn add(ctx: &mut Ctx<'_>, key: &[u8], increment: i64, reply: &mut Reply) -> Result<()> {
    let value = match ctx.string(key)? {
        Some(text) => parse_integer(text).ok_or(Error::NotInteger)?,
        None => 0,
    };
    let value = value.checked_add(increment).ok_or(Error::Overflow)?;
    ctx.set(key, itoa::Buffer::new().format(value).as_bytes(), Deadline::Keep);
    reply.integer(value);
    Ok(())
}

fn incrbyfloat(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let key = args.at(1);
    let value = match ctx.string(key)? {
        // SET may have stored one; nothing can be added to it.
        Some(text) if is_infinite(text) => {
            parse_increment(args.at(2))?;
            return Err(would_overflow());
        }
        Some(text) => Extended::parse(text).ok_or(Error::NotFloat)?,
        None => Extended::ZERO,
    };
    let sum = add_float(value, parse_increment(args.at(2))?)?;
    ctx.set(key, sum.as_bytes(), Deadline::Keep);
    reply.bulk(sum.as_bytes());
    Ok(())
}

pub(crate) fn would_overflow() -> Error {
    Error::err("increment would produce NaN or Infinity")
}

/// Whether a text is a float that has no digits.
pub(crate) fn is_infinite(text: &[u8]) -> bool {
    let unsigned = text.strip_prefix(b"-").or(text.strip_prefix(b"+")).unwrap_or(text);
    unsigned.eq_ignore_ascii_case(b"inf") || unsigned.eq_ignore_ascii_case(b"infinity")
}

/// Reads the increment of INCRBYFLOAT and HINCRBYFLOAT.
pub(crate) fn parse_increment(text: &[u8]) -> Result<Extended> {
    if is_infinite(text) {
        return Err(would_overflow());
    }
    Extended::parse(text).ok_or(Error::NotFloat)
}

/// Adds an increment to a float, as INCRBYFLOAT and HINCRBYFLOAT do.
pub(crate) fn add_float(value: Extended, increment: Extended) -> Result<String> {
    Ok(value.checked_add(increment).ok_or_else(would_overflow)?.format())
}
