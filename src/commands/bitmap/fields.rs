//! BITFIELD: integers of any width at any bit of a string.

use super::GROUP;
use crate::{
    args::{Args, parse_integer},
    commands::{
        Spec,
        keys::{self, Access},
        string::STRING_BYTES_MAX,
    },
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, View, level},
};

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write(
        "BITFIELD",
        -2,
        &[keys::one(1, Access::Rw, "access update variable_flags")
            .noted("This command allows both access and modification of the key")
            .varying(varies)],
        bitfield,
    )
    .about(&["write", "denyoom"], GROUP, "3.2.0", "Read and change integers of any width in a string")
    .syntax(
        "key [operation=<GET encoding_offset=(encoding offset:integer)|write=([OVERFLOW \
         wrap_sat_fail=<WRAP|SAT|FAIL>] write_operation=<SET encoding_offset_value=(encoding offset:integer \
         value:integer)|INCRBY encoding_offset_increment=(encoding offset:integer increment:integer)>)>...]",
    )
    .complexity("O(1) for each subcommand specified")
    .from_level(level::TYPES),
    Spec::read("BITFIELD_RO", -2, keys::READ, bitfield_ro)
        .about(&["readonly", "fast"], GROUP, "6.0.0", "Read integers of any width in a string")
        .syntax("key [GET encoding_offset=(encoding offset:integer)...*]")
        .complexity("O(1) for each subcommand specified")
        .from_level(level::TYPES),
];

/// What a call does with its key.
fn varies(args: &Args<'_>) -> (Access, &'static str) {
    match operations(args) {
        Ok(all) if all.iter().all(|operation| operation.action == Action::Get) => (Access::Ro, "access"),
        _ => (Access::Rw, "access update"),
    }
}

/// What happens to a number that its field has no room for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Overflow {
    /// The bits that there is no room for are dropped.
    Wrap,
    /// It becomes the nearest one that there is room for.
    Saturate,
    /// Nothing is changed.
    Fail,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Get,
    Set(i64),
    Add(i64),
}

/// The type of a field.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Type {
    is_signed: bool,
    bits: u32,
}

#[derive(Clone, Copy, Debug)]
struct Operation {
    field: Type,
    /// The first bit.
    offset: usize,
    action: Action,
    overflow: Overflow,
}

impl Type {
    fn parse(text: &[u8]) -> Result<Type> {
        let invalid = || {
            Error::err(
                "Invalid bitfield type. Use something like i16 u8. Note that u64 is not supported but i64 is.",
            )
        };
        let (is_signed, max) = match text.first() {
            Some(b'i') => (true, 64),
            Some(b'u') => (false, 63),
            _ => return Err(invalid()),
        };
        let bits = parse_integer(&text[1..]).filter(|bits| (1..=max).contains(bits));
        Ok(Type { is_signed, bits: bits.ok_or_else(invalid)? as u32 })
    }

    fn min(self) -> i128 {
        if self.is_signed { -(1 << (self.bits - 1)) } else { 0 }
    }

    fn max(self) -> i128 {
        (1 << (self.bits - u32::from(self.is_signed))) - 1
    }

    /// The number with these bits.
    fn number(self, bits: u64) -> i128 {
        let unsigned = i128::from(bits) & ((1 << self.bits) - 1);
        if self.is_signed && unsigned > self.max() { unsigned - (1 << self.bits) } else { unsigned }
    }

    /// The number that is stored instead of this one; None if that fails.
    fn fit(self, number: i128, overflow: Overflow) -> Option<i128> {
        if (self.min()..=self.max()).contains(&number) {
            return Some(number);
        }
        match overflow {
            Overflow::Wrap => Some(self.number(number as u64)),
            Overflow::Saturate => Some(number.clamp(self.min(), self.max())),
            Overflow::Fail => None,
        }
    }
}

impl Operation {
    /// The first byte, and the number of bytes.
    fn bytes(&self) -> (usize, usize) {
        let end = self.offset + self.field.bits as usize;
        (self.offset / 8, end.div_ceil(8) - self.offset / 8)
    }

    /// The bits around the field as a number, and how far the field is from its lower end. Bits beyond the end of the
    /// string are clear.
    fn window(&self, string: &[u8]) -> (u128, u32) {
        let (first, count) = self.bytes();
        let bytes = (first..first + count).map(|place| string.get(place).copied().unwrap_or(0));
        let window = bytes.fold(0, |window, byte| window << 8 | u128::from(byte));
        (window, (count * 8 - self.offset % 8) as u32 - self.field.bits)
    }

    fn get(&self, string: &[u8]) -> i128 {
        let (window, shift) = self.window(string);
        self.field.number((window >> shift) as u64)
    }

    /// The bytes from the first one on with another number in the field.
    fn with(&self, string: &[u8], number: i128) -> Vec<u8> {
        let (window, shift) = self.window(string);
        let mask = ((1u128 << self.field.bits) - 1) << shift;
        let window = window & !mask | (number as u128) << shift & mask;
        let count = self.bytes().1;
        window.to_be_bytes()[16 - count..].to_vec()
    }

    /// What it stores, if anything, and what it replies; None if the number does not fit and that fails.
    fn run(&self, string: &[u8]) -> Option<(Option<Vec<u8>>, i128)> {
        let before = self.get(string);
        match self.action {
            Action::Get => Some((None, before)),
            Action::Set(value) => {
                let value = if self.field.is_signed { i128::from(value) } else { i128::from(value as u64) };
                Some((Some(self.with(string, self.field.fit(value, self.overflow)?)), before))
            }
            Action::Add(increment) => {
                let sum = self.field.fit(before + i128::from(increment), self.overflow)?;
                Some((Some(self.with(string, sum)), sum))
            }
        }
    }
}

fn operations(args: &Args<'_>) -> Result<Vec<Operation>> {
    let (mut found, mut overflow, mut index) = (Vec::new(), Overflow::Wrap, 2);
    while index < args.len() {
        let left = args.len() - index - 1;
        if args.is(index, "OVERFLOW") && left >= 1 {
            overflow = match () {
                () if args.is(index + 1, "WRAP") => Overflow::Wrap,
                () if args.is(index + 1, "SAT") => Overflow::Saturate,
                () if args.is(index + 1, "FAIL") => Overflow::Fail,
                () => return Err(Error::err("Invalid OVERFLOW type specified")),
            };
            index += 2;
            continue;
        }
        let is_get = args.is(index, "GET") && left >= 2;
        let is_set = args.is(index, "SET") && left >= 3;
        let is_increment = args.is(index, "INCRBY") && left >= 3;
        if !is_get && !is_set && !is_increment {
            return Err(Error::Syntax);
        }
        let field = Type::parse(args.at(index + 1))?;
        let offset = super::offset(args.at(index + 2), Some(field.bits))?;
        let action = match () {
            () if is_get => Action::Get,
            () if is_set => Action::Set(args.integer(index + 3)?),
            () => Action::Add(args.integer(index + 3)?),
        };
        found.push(Operation { field, offset, action, overflow });
        index += if is_get { 3 } else { 4 };
    }
    Ok(found)
}

fn reply_number(number: i128, reply: &mut Reply) {
    // No field has more than 64 bits, or 63 if it is unsigned.
    reply.integer(number as i64);
}

fn bitfield(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (key, operations) = (args.at(1), operations(args)?);
    let writes = operations.iter().filter(|operation| operation.action != Action::Get);
    let needed =
        writes.map(|operation| operation.bytes()).map(|(first, count)| first + count).max().unwrap_or(0);
    let len = ctx.string(key)?.map_or(0, <[u8]>::len);
    if needed > STRING_BYTES_MAX {
        return Err(Error::err("bit offset is not an integer or out of range"));
    }
    if needed > len {
        // As in Redis, the string grows even if the numbers do not fit.
        ctx.check_growth(needed - len)?;
        ctx.write_string(key, needed - 1, &[0])?;
    }
    reply.array(operations.len());
    for operation in operations {
        match operation.run(ctx.string(key)?.unwrap_or_default()) {
            Some((changed, number)) => {
                if let Some(bytes) = changed {
                    ctx.write_string(key, operation.bytes().0, &bytes)?;
                }
                reply_number(number, reply);
            }
            None => reply.null(),
        }
    }
    Ok(())
}

fn bitfield_ro(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let operations = operations(args)?;
    if operations.iter().any(|operation| operation.action != Action::Get) {
        return Err(Error::err("BITFIELD_RO only supports the GET subcommand"));
    }
    let string = view.string(args.at(1))?.unwrap_or_default();
    reply.array(operations.len());
    operations.iter().for_each(|operation| reply_number(operation.get(string), reply));
    Ok(())
}
