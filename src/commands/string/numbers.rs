//! Numeric commands on strings. Floats are added as `Extended`, so that sums have the digits that Redis
//! gives them.

use crate::commands::{
    Spec, keys,
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
    Spec::write("INCR", 2, keys::CHANGE, incr)
        .about(WRITE_FAST, GROUP, "1.0.0", "Increment the integer value of a key by one")
        .syntax("key")
        .complexity("O(1)"),
    Spec::write("DECR", 2, keys::CHANGE, decr)
        .about(WRITE_FAST, GROUP, "1.0.0", "Decrement the integer value of a key by one")
        .syntax("key")
        .complexity("O(1)"),
    Spec::write("INCRBY", 3, keys::CHANGE, incrby)
        .about(WRITE_FAST, GROUP, "1.0.0", "Increment the integer value of a key by the given amount")
        .syntax("key increment:integer")
        .complexity("O(1)"),
    Spec::write("DECRBY", 3, keys::CHANGE, decrby)
        .about(WRITE_FAST, GROUP, "1.0.0", "Decrement the integer value of a key by the given number")
        .syntax("key decrement:integer")
        .complexity("O(1)"),
    Spec::write("INCRBYFLOAT", 3, keys::CHANGE, incrbyfloat)
        .about(WRITE_FAST, GROUP, "2.6.0", "Increment the float value of a key by the given amount")
        .syntax("key increment:double")
        .complexity("O(1)"),
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
        // SET may have stored an infinity; nothing can be added to it.
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

/// Whether a text is an infinite float.
pub(crate) fn is_infinite(text: &[u8]) -> bool {
    let unsigned = text.strip_prefix(b"-").or(text.strip_prefix(b"+")).unwrap_or(text);
    unsigned.eq_ignore_ascii_case(b"inf") || unsigned.eq_ignore_ascii_case(b"infinity")
}

/// Parses the increment of INCRBYFLOAT and HINCRBYFLOAT.
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
