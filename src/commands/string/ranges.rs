//! Commands on ranges of strings.

use std::ops::Range;

use crate::commands::{
    Spec, keys,
    string::{GROUP, READ, READ_FAST, STRING_BYTES_MAX, WRITE, WRITE_FAST},
};
use crate::{
    args::Args,
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, View},
};

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::read("STRLEN", 2, keys::LOOK, strlen)
        .about(READ_FAST, GROUP, "2.2.0", "Get the length of the value stored in a key")
        .syntax("key")
        .complexity("O(1)"),
    Spec::read("GETRANGE", 4, keys::READ, getrange)
        .about(READ, GROUP, "2.4.0", "Get a substring of the string stored at a key")
        .syntax("key start:integer end:integer")
        .complexity("O(N) where N is the length of the returned string"),
    Spec::read("SUBSTR", 4, keys::READ, getrange)
        .about(READ, GROUP, "1.0.0", "Get a substring of the string stored at a key")
        .syntax("key start:integer end:integer")
        .complexity("O(N) where N is the length of the returned string")
        .deprecated("2.0.0", "`GETRANGE`"),
    Spec::write("APPEND", 3, keys::INSERT, append)
        .about(WRITE_FAST, GROUP, "2.0.0", "Append a value to a key")
        .syntax("key value")
        .complexity("O(1)"),
    Spec::write("SETRANGE", 4, keys::UPDATE, setrange)
        .about(WRITE, GROUP, "2.2.0", "Overwrite part of a string at key starting at the specified offset")
        .syntax("key offset:integer value")
        .complexity("O(1), not counting the time taken to copy the new string in place"),
];

fn strlen(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.size(view.string(args.at(1))?.map_or(0, <[u8]>::len));
    Ok(())
}

fn getrange(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (start, end) = (args.integer(2)?, args.integer(3)?);
    match view.text(args.at(1))? {
        Some(text) => {
            let range = range_of(text.bytes.len(), start, end);
            reply.bulk_or_share(&text.bytes[range.clone()], || text.share(range));
        }
        None => reply.bulk(b""),
    }
    Ok(())
}

/// The bytes from `start` to `end`, inclusive; negative indexes count from the end.
fn range_of(len: usize, start: i64, end: i64) -> Range<usize> {
    let len = len as i64;
    let from_end = |index: i64| if index < 0 { (len + index.max(-len)).max(0) } else { index };
    // As in Redis, although both clamped to the beginning would mean the first byte.
    if start < 0 && end < 0 && start > end {
        return 0..0;
    }
    let (start, end) = (from_end(start), from_end(end).min(len - 1));
    if start > end { 0..0 } else { start as usize..end as usize + 1 }
}

fn check_len(len: usize) -> Result<()> {
    if len > STRING_BYTES_MAX {
        return Err(Error::err("string exceeds maximum allowed size (proto-max-bulk-len)"));
    }
    Ok(())
}

fn append(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (key, tail) = (args.at(1), args.at(2));
    let len = ctx.string(key)?.map_or(0, <[u8]>::len);
    check_len(len + tail.len())?;
    reply.size(ctx.write_string(key, len, tail)?);
    Ok(())
}

fn setrange(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (key, bytes) = (args.at(1), args.at(3));
    let offset = usize::try_from(args.integer(2)?).map_err(|_| Error::err("offset is out of range"))?;
    let len = ctx.string(key)?.map_or(0, <[u8]>::len);
    if bytes.is_empty() {
        reply.size(len);
        return Ok(());
    }
    let end = offset.saturating_add(bytes.len());
    check_len(end)?;
    ctx.check_growth(end.saturating_sub(len))?;
    reply.size(ctx.write_string(key, offset, bytes)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::range_of;

    #[test]
    fn ranges_are_those_of_redis() {
        for (start, end, expected) in [
            (0, -1, "abcdef"),
            (0, 2, "abc"),
            (-3, -1, "def"),
            (-100, 100, "abcdef"),
            (5, 1, ""),
            (6, 10, ""),
            (-1, -3, ""),
            (-100, -99, "a"),
            (-99, -100, ""),
            (i64::MIN, i64::MAX, "abcdef"),
        ] {
            assert_eq!(&"abcdef"[range_of(6, start, end)], expected, "{start} {end}");
        }
        assert_eq!(range_of(0, 0, -1), 0..0);
    }
}
