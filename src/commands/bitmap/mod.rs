//! Commands on strings as arrays of bits. Bit 0 is the highest bit of the first byte.

pub mod fields;

use crate::{
    args::{Args, parse_integer},
    commands::{
        Spec,
        keys::{self, Access},
        string::STRING_BYTES_MAX,
    },
    error::{Error, Result},
    resp::Reply,
    store::{BYTES_OF_AN_ELEMENT, Ctx, Deadline, View, level},
};

/// The group of these commands.
pub(super) const GROUP: &str = "bitmap";

const READ: &[&str] = &["readonly"];
const WRITE: &[&str] = &["write", "denyoom"];

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::read("GETBIT", 3, keys::READ, getbit)
        .about(&["readonly", "fast"], GROUP, "2.2.0", "Get a bit of the string stored at a key")
        .syntax("key offset:integer")
        .complexity("O(1)")
        .from_level(level::TYPES),
    Spec::write("SETBIT", 4, keys::CHANGE, setbit)
        .about(WRITE, GROUP, "2.2.0", "Set a bit of the string stored at a key, and return what it was")
        .syntax("key offset:integer value:integer")
        .complexity("O(1)")
        .from_level(level::TYPES),
    Spec::read("BITCOUNT", -2, keys::READ, bitcount)
        .about(READ, GROUP, "2.6.0", "Count the bits of a string that are set")
        .syntax("key [index=(start:integer end:integer [index_unit=<BYTE|BIT>@7.0.0])]")
        .complexity("O(N)")
        .from_level(level::TYPES),
    Spec::read("BITPOS", -3, keys::READ, bitpos)
        .about(READ, GROUP, "2.8.7", "Find the first bit of a string that is set, or clear")
        .syntax(
            "key bit:integer [index=(start:integer [end_index=(end:integer [index_unit=<BYTE|BIT>@7.0.0])])]",
        )
        .complexity("O(N)")
        .from_level(level::TYPES),
    Spec::write(
        "BITOP",
        -4,
        &[keys::one(2, Access::Ow, "update"), keys::rest(3, Access::Ro, "access")],
        bitop,
    )
    .about(WRITE, GROUP, "2.6.0", "Combine strings bit by bit, and store the result")
    .syntax("operation destkey:key key...")
    .complexity("O(N)")
    .from_level(level::TYPES),
];

/// An offset in bits. With a `width`, `#N` means the N-th field of that many bits.
pub(super) fn offset(text: &[u8], width: Option<u32>) -> Result<usize> {
    let invalid = || Error::err("bit offset is not an integer or out of range");
    let number = match (text, width) {
        ([b'#', digits @ ..], Some(width)) => {
            parse_integer(digits).and_then(|number| number.checked_mul(i64::from(width)))
        }
        _ => parse_integer(text),
    };
    let offset = number.and_then(|number| usize::try_from(number).ok()).ok_or_else(invalid)?;
    if offset / 8 >= STRING_BYTES_MAX { Err(invalid()) } else { Ok(offset) }
}

fn getbit(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let offset = offset(args.at(2), None)?;
    let byte = view.string(args.at(1))?.and_then(|bytes| bytes.get(offset / 8).copied()).unwrap_or(0);
    reply.flag(is_set(byte, offset));
    Ok(())
}

fn is_set(byte: u8, offset: usize) -> bool {
    byte & 0x80 >> (offset % 8) != 0
}

fn setbit(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (key, offset) = (args.at(1), offset(args.at(2), None)?);
    let bit = match parse_integer(args.at(3)) {
        Some(bit @ (0 | 1)) => bit == 1,
        _ => return Err(Error::err("bit is not an integer or out of range")),
    };
    let (place, bytes) = (offset / 8, ctx.string(key)?.unwrap_or_default());
    let (len, present) = (bytes.len(), bytes.get(place).copied());
    let before = is_set(present.unwrap_or(0), offset);
    if present.is_none() || before != bit {
        ctx.check_growth((place + 1).saturating_sub(len))?;
        let byte = present.unwrap_or(0) & !(0x80 >> (offset % 8)) | u8::from(bit) << (7 - offset % 8);
        ctx.write_string(key, place, &[byte])?;
    }
    reply.flag(before);
    Ok(())
}

/// Which bits of a string of `len` bytes are meant: from the first up to, but excluding, the second. `end` may be
/// missing; `unit` is `BYTE` or `BIT`.
fn bits_of(len: usize, start: i64, end: Option<i64>, is_in_bits: bool) -> (usize, usize) {
    let len = len as i64 * if is_in_bits { 8 } else { 1 };
    let from_begin = |index: i64| if index < 0 { index.saturating_add(len).max(0) } else { index };
    let (start, end) = (from_begin(start), end.map_or(len - 1, from_begin).min(len - 1));
    if start > end {
        return (0, 0);
    }
    let (start, end) = (start as usize, end as usize + 1);
    if is_in_bits { (start, end) } else { (start * 8, end * 8) }
}

/// Whether the argument at `index` says that a range is one of bits.
fn is_in_bits(args: &Args<'_>, index: usize) -> Result<bool> {
    match () {
        () if args.is(index, "BIT") => Ok(true),
        () if args.is(index, "BYTE") => Ok(false),
        () => Err(Error::Syntax),
    }
}

/// The bytes with bits from `start` to `end`, those outside of the range replaced by `outside`.
fn masked(bytes: &[u8], (start, end): (usize, usize), outside: bool) -> impl Iterator<Item = (usize, u8)> {
    let chosen = &bytes[start / 8..end.div_ceil(8)];
    chosen.iter().zip(start / 8..).map(move |(&byte, place)| {
        let before = start.saturating_sub(place * 8);
        let after = ((place + 1) * 8).saturating_sub(end);
        let mask = (0xff_u8.checked_shr(before as u32).unwrap_or(0))
            & (0xff_u8.checked_shl(after as u32).unwrap_or(0));
        (place, if outside { byte | !mask } else { byte & mask })
    })
}

fn bitcount(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let Some(bytes) = view.string(args.at(1))? else {
        reply.size(0);
        return Ok(());
    };
    let range = match args.len() {
        2 => (0, bytes.len() * 8),
        4 | 5 => {
            let (start, end) = (args.integer(2)?, args.integer(3)?);
            // As in Redis, before it looks at the unit.
            if start < 0 && end < 0 && start > end {
                reply.size(0);
                return Ok(());
            }
            bits_of(bytes.len(), start, Some(end), args.len() == 5 && is_in_bits(args, 4)?)
        }
        _ => return Err(Error::Syntax),
    };
    view.check_elements((range.1 - range.0) / 8 / BYTES_OF_AN_ELEMENT)?;
    reply.size(masked(bytes, range, false).map(|(_, byte)| byte.count_ones() as usize).sum());
    Ok(())
}

fn bitpos(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let bit = match args.integer(2)? {
        bit @ (0 | 1) => bit == 1,
        _ => return Err(Error::err("The bit argument must be 1 or 0.")),
    };
    let Some(bytes) = view.string(args.at(1))? else {
        reply.integer(if bit { -1 } else { 0 });
        return Ok(());
    };
    let range = match args.len() {
        3 => (0, bytes.len() * 8),
        4..=6 => {
            let start = args.integer(3)?;
            let is_in_bits = args.len() == 6 && is_in_bits(args, 5)?;
            let end = if args.len() > 4 { Some(args.integer(4)?) } else { None };
            bits_of(bytes.len(), start, end, is_in_bits)
        }
        _ => return Err(Error::Syntax),
    };
    view.check_elements((range.1 - range.0) / 8 / BYTES_OF_AN_ELEMENT)?;
    let is_open = args.len() < 5;
    let found = masked(bytes, range, !bit).find(|&(_, byte)| byte != if bit { 0 } else { 0xff });
    reply.integer(match found {
        Some((place, byte)) => {
            (place * 8) as i64 + i64::from(if bit { byte.leading_zeros() } else { byte.leading_ones() })
        }
        // Beyond the end of a string all bits are clear.
        None if !bit && is_open && range.1 > range.0 => range.1 as i64,
        None => -1,
    });
    Ok(())
}

/// An operation on the bits of several strings.
#[derive(Clone, Copy, PartialEq)]
enum Operation {
    And,
    Or,
    Xor,
    Not,
    /// Set in the first string and in no other.
    Diff,
    /// Set in another string and not in the first.
    Diff1,
    /// Set in the first string and in another.
    AndOr,
    /// Set in exactly one.
    One,
}

impl Operation {
    const ALL: [(&str, Operation); 8] = [
        ("AND", Operation::And),
        ("OR", Operation::Or),
        ("XOR", Operation::Xor),
        ("NOT", Operation::Not),
        ("DIFF", Operation::Diff),
        ("DIFF1", Operation::Diff1),
        ("ANDOR", Operation::AndOr),
        ("ONE", Operation::One),
    ];

    fn parse(args: &Args<'_>) -> Result<Operation> {
        let found = Operation::ALL.into_iter().find(|(name, _)| args.is(1, name));
        let (name, operation) = found.ok_or(Error::Syntax)?;
        let sources = args.len() - 3;
        match operation {
            Operation::Not if sources != 1 => {
                Err(Error::err("BITOP NOT must be called with a single source key."))
            }
            Operation::Diff | Operation::Diff1 | Operation::AndOr if sources < 2 => {
                Err(Error::err(format!("BITOP {name} must be called with at least two source keys.")))
            }
            _ => Ok(operation),
        }
    }

    /// The result for strings, of which shorter ones count as padded with zeros to `len` bytes.
    fn apply(self, sources: &[&[u8]], len: usize) -> Vec<u8> {
        let (first, others) = (sources[0], &sources[1..]);
        let mut result = first.to_vec();
        result.resize(len, 0);
        match self {
            Operation::Not => result.iter_mut().for_each(|byte| *byte = !*byte),
            Operation::And => {
                let shortest = sources.iter().map(|source| source.len()).min().unwrap_or(0);
                result[shortest..].fill(0);
                let both = &mut result[..shortest];
                others.iter().for_each(|other| combine(both, other, |byte, other| byte & other));
            }
            Operation::Or => others.iter().for_each(|other| combine(&mut result, other, |a, b| a | b)),
            Operation::Xor => others.iter().for_each(|other| combine(&mut result, other, |a, b| a ^ b)),
            Operation::Diff | Operation::Diff1 | Operation::AndOr => {
                let mut any = vec![0; len];
                others.iter().for_each(|other| combine(&mut any, other, |a, b| a | b));
                combine(&mut result, &any, |first, any| match self {
                    Operation::Diff => first & !any,
                    Operation::Diff1 => !first & any,
                    _ => first & any,
                });
            }
            Operation::One => {
                // The bits that were seen more than once.
                let mut again = vec![0; len];
                for other in others {
                    for (place, &byte) in other.iter().enumerate() {
                        again[place] |= result[place] & byte;
                        result[place] |= byte;
                    }
                }
                combine(&mut result, &again, |once, again| once & !again);
            }
        }
        result
    }
}

fn combine(result: &mut [u8], other: &[u8], operation: impl Fn(u8, u8) -> u8) {
    result.iter_mut().zip(other).for_each(|(byte, &other)| *byte = operation(*byte, other));
}

fn sources<'a>(view: &View<'a>, args: &Args<'_>) -> Result<Vec<&'a [u8]>> {
    args.from(3).iter().map(|key| Ok(view.string(key)?.unwrap_or_default())).collect()
}

fn bitop(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let operation = Operation::parse(args)?;
    let lens = sources(&ctx.view(), args)?.iter().map(|source| source.len()).collect::<Vec<_>>();
    let len = lens.iter().copied().max().unwrap_or(0);
    ctx.check_elements(lens.iter().map(|len| len / BYTES_OF_AN_ELEMENT).sum())?;
    ctx.check_memory(len)?;
    if len > 0 {
        let result = operation.apply(&sources(&ctx.view(), args)?, len);
        ctx.set(args.at(2), &result, Deadline::None);
    } else {
        ctx.delete(args.at(2));
    }
    reply.size(len);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Operation, bits_of, masked};

    #[test]
    fn operations_are_those_of_single_bits() {
        let mut chance = fastrand::Rng::with_seed(1);
        for (name, operation) in Operation::ALL {
            for _ in 0..200 {
                let count = if name == "NOT" { 1 } else { chance.usize(2..5) };
                let sources: Vec<Vec<u8>> =
                    (0..count).map(|_| (0..chance.usize(..20)).map(|_| chance.u8(..)).collect()).collect();
                let len = sources.iter().map(Vec::len).max().unwrap();
                let borrowed: Vec<&[u8]> = sources.iter().map(Vec::as_slice).collect();
                let result = operation.apply(&borrowed, len);
                for bit in 0..len * 8 {
                    let is_set =
                        |bytes: &[u8]| bytes.get(bit / 8).is_some_and(|byte| byte & 0x80 >> (bit % 8) != 0);
                    let (first, all) =
                        (is_set(borrowed[0]), borrowed.iter().filter(|source| is_set(source)).count());
                    let others = all - usize::from(first);
                    let expected = match operation {
                        Operation::And => all == count,
                        Operation::Or => all > 0,
                        Operation::Xor => all % 2 == 1,
                        Operation::Not => !first,
                        Operation::Diff => first && others == 0,
                        Operation::Diff1 => !first && others > 0,
                        Operation::AndOr => first && others > 0,
                        Operation::One => all == 1,
                    };
                    assert_eq!(is_set(&result), expected, "{name} {sources:?} {bit}");
                }
            }
        }
    }

    #[test]
    fn a_range_of_bits_is_cut_at_both_ends() {
        assert_eq!(bits_of(3, 0, None, false), (0, 24));
        assert_eq!(bits_of(3, -2, Some(-1), false), (8, 24));
        assert_eq!(bits_of(3, 5, Some(9), true), (5, 10));
        assert_eq!(bits_of(3, -5, Some(i64::MAX), true), (19, 24));
        assert_eq!(bits_of(3, 7, Some(3), true), (0, 0));
        assert_eq!(bits_of(0, 0, None, false), (0, 0));
        let cut = |range, outside| masked(&[0xff, 0, 0xff], range, outside).collect::<Vec<_>>();
        assert_eq!(cut((5, 10), false), [(0, 0b0000_0111), (1, 0)]);
        assert_eq!(cut((5, 10), true), [(0, 0xff), (1, 0b0011_1111)]);
        assert_eq!(cut((18, 20), false), [(2, 0b0011_0000)]);
        assert_eq!(cut((0, 0), false), []);
    }
}
