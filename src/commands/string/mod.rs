//! Strings as a whole: reading, setting, and setting under a condition. Numeric commands are in
//! `numbers.rs`, ranges in `ranges.rs`.

pub mod lcs;
pub mod numbers;
pub mod ranges;
pub mod rate_limit;

use super::{
    Origin, Spec,
    generic::expire::{Expiry, ExpiryOption},
    keys::{self, Access},
};
use crate::{
    args::Args,
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, Deadline, Text, View, hash_of},
};

/// The longest string; the default of Redis's `proto-max-bulk-len`.
pub(crate) const STRING_BYTES_MAX: usize = 512 << 20;

/// The group of COMMAND DOCS.
pub(crate) const GROUP: &str = "string";
pub(crate) const READ: &[&str] = &["readonly"];
pub(crate) const READ_FAST: &[&str] = &["readonly", "fast"];
pub(crate) const WRITE: &[&str] = &["write", "denyoom"];
pub(crate) const WRITE_FAST: &[&str] = &["write", "denyoom", "fast"];
/// Writes that never need memory.
const TAKE: &[&str] = &["write"];
const TAKE_FAST: &[&str] = &["write", "fast"];

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::read("GET", 2, keys::READ, get)
        .about(READ_FAST, GROUP, "1.0.0", "Get the value of a key")
        .syntax("key")
        .complexity("O(1)"),
    Spec::read("MGET", -2, keys::READ_ALL, mget)
        .about(READ_FAST, GROUP, "1.0.0", "Get the values of all the given keys")
        .syntax("key...")
        .complexity("O(N) where N is the number of keys to retrieve")
        .tips(&["request_policy:multi_shard"]),
    Spec::read("DIGEST", 2, keys::READ, digest)
        .about(READ_FAST, GROUP, "8.4.0", "Get the hash digest of a string value")
        .syntax("key")
        .complexity("O(N) where N is the length of the string"),
    Spec::write(
        "SET",
        -3,
        &[keys::one(1, Access::Rw, "access update variable_flags")
            .noted("RW and ACCESS due to the optional `GET` argument")
            .varying(use_of_set)],
        set,
    )
    .about(WRITE, GROUP, "1.0.0", "Set the string value of a key")
    .syntax(
        "key value [condition=<NX|XX|IFEQ ifeq-value@8.4.0|IFNE ifne-value@8.4.0|IFDEQ ifdeq-digest@8.4.0|\
         IFDNE ifdne-digest@8.4.0>@2.6.12] [GET@6.2.0] [expiration=<EX seconds:integer@2.6.12|\
         PX milliseconds:integer@2.6.12|EXAT unix-time-seconds:unix-time@6.2.0|\
         PXAT unix-time-milliseconds:unix-time@6.2.0|KEEPTTL@6.0.0>]",
    )
    .complexity("O(1)"),
    Spec::write("SETNX", 3, &[keys::one(1, Access::Ow, "insert")], setnx)
        .about(WRITE_FAST, GROUP, "1.0.0", "Set the value of a key, only if the key does not exist")
        .syntax("key value")
        .complexity("O(1)"),
    Spec::write("SETEX", 4, keys::SET, setex)
        .about(WRITE, GROUP, "2.0.0", "Set the value and expiration of a key")
        .syntax("key seconds:integer value")
        .complexity("O(1)"),
    Spec::write("PSETEX", 4, keys::SET, psetex)
        .about(WRITE, GROUP, "2.6.0", "Set the value and expiration in milliseconds of a key")
        .syntax("key milliseconds:integer value")
        .complexity("O(1)"),
    Spec::write("GETSET", 3, keys::CHANGE, getset)
        .about(WRITE_FAST, GROUP, "1.0.0", "Set the string value of a key and return its old value")
        .syntax("key value")
        .complexity("O(1)")
        .deprecated("6.2.0", "`SET` with the `!GET` argument"),
    Spec::write("GETDEL", 2, keys::TAKE, getdel)
        .about(TAKE_FAST, GROUP, "6.2.0", "Get the value of a key and delete the key")
        .syntax("key")
        .complexity("O(1)"),
    Spec::write(
        "GETEX",
        -2,
        &[keys::one(1, Access::Rw, "access update").noted("RW and UPDATE because it changes the TTL")],
        getex,
    )
    .about(TAKE_FAST, GROUP, "6.2.0", "Get the value of a key and optionally set its expiration")
    .syntax(
        "key [expiration=<EX seconds:integer|PX milliseconds:integer|EXAT \
             unix-time-seconds:unix-time|PXAT unix-time-milliseconds:unix-time|PERSIST>]",
    )
    .complexity("O(1)"),
    Spec::write("MSET", -3, &[keys::range(1, -1, 2, Access::Ow, "update")], mset)
        .about(WRITE, GROUP, "1.0.1", "Set multiple keys to multiple values")
        .syntax("key_value=(key value)...")
        .complexity("O(N) where N is the number of keys to set")
        .tips(&["request_policy:multi_shard", "response_policy:all_succeeded"]),
    Spec::write("MSETNX", -3, &[keys::range(1, -1, 2, Access::Ow, "insert")], msetnx)
        .about(WRITE, GROUP, "1.0.1", "Set multiple keys to multiple values, only if none of the keys exist")
        .syntax("key_value=(key value)...")
        .complexity("O(N) where N is the number of keys to set")
        .tips(&["request_policy:multi_shard", "response_policy:agg_min"]),
    Spec::write("DELEX", -2, keys::CHANGE, delex)
        .about(TAKE_FAST, GROUP, "8.4.0", "Delete a key, under a condition on its value or digest")
        .syntax("key [condition=<IFEQ value|IFNE value|IFDEQ digest|IFDNE digest>]")
        .complexity("O(1), or O(N) for IFDEQ and IFDNE, where N is the length of the string"),
    Spec::write("DELIFEQ", 3, keys::CHANGE, delifeq)
        .about(TAKE, GROUP, "9.0.0", "Delete a key if its value is the given one")
        .syntax("key value")
        .complexity("O(1)")
        .of(Origin::Valkey),
];

/// SET only looks at the old value if it is to give or to compare it.
fn use_of_set(args: &Args<'_>) -> (Access, &'static str) {
    let looks = (3..args.len()).any(|at| args.is(at, "GET") || Condition::on_value(args, at).is_some());
    if looks { (Access::Rw, "access update") } else { (Access::Ow, "update") }
}

/// Replies with a whole string, or null.
fn reply_text(reply: &mut Reply, text: Option<Text<'_>>) {
    match text {
        Some(text) => reply.bulk_or_share(text.bytes, || text.share(0..text.bytes.len())),
        None => reply.null(),
    }
}

fn get(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply_text(reply, view.text(args.at(1))?);
    Ok(())
}

fn mget(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.array(args.len() - 1);
    for key in args.from(1) {
        // For values of other types, the reply is null, not an error.
        reply_text(reply, view.text(key).unwrap_or(None));
    }
    Ok(())
}

fn digest(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    match view.string(args.at(1))? {
        Some(value) => reply.bulk(digest_of(value).as_bytes()),
        None => reply.null(),
    }
    Ok(())
}

/// XXH3 of a value, in the format of DIGEST.
fn digest_of(value: &[u8]) -> String {
    format!("{:016x}", hash_of(value))
}

/// The condition under which SET and DELEX do anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition<'a> {
    Always,
    Missing,
    Exists,
    Equals(&'a [u8]),
    Differs(&'a [u8]),
    DigestEquals(&'a [u8]),
    DigestDiffers(&'a [u8]),
}

impl<'a> Condition<'a> {
    /// The condition on the value at `index`, if there is one.
    fn on_value(args: &Args<'a>, index: usize) -> Option<Condition<'a>> {
        let operand = args.get(index + 1)?;
        match () {
            _ if args.is(index, "IFEQ") => Some(Condition::Equals(operand)),
            _ if args.is(index, "IFNE") => Some(Condition::Differs(operand)),
            _ if args.is(index, "IFDEQ") => Some(Condition::DigestEquals(operand)),
            _ if args.is(index, "IFDNE") => Some(Condition::DigestDiffers(operand)),
            _ => None,
        }
    }

    /// Whether it holds. An error if it compares the value and that is not a string.
    fn holds(self, ctx: &Ctx<'_>, key: &[u8]) -> Result<bool> {
        Ok(match self {
            Condition::Always => true,
            Condition::Missing => !ctx.exists(key),
            Condition::Exists => ctx.exists(key),
            Condition::Equals(operand) => ctx.string(key)? == Some(operand),
            Condition::Differs(operand) => ctx.string(key)? != Some(operand),
            Condition::DigestEquals(operand) => match ctx.string(key)? {
                Some(value) => digest_equals(value, operand)?,
                None => false,
            },
            Condition::DigestDiffers(operand) => match ctx.string(key)? {
                Some(value) => !digest_equals(value, operand)?,
                None => true,
            },
        })
    }
}

fn digest_equals(value: &[u8], operand: &[u8]) -> Result<bool> {
    let digest = digest_of(value);
    if operand.len() != digest.len() {
        return Err(Error::err(format!("digest must be exactly {} hexadecimal characters", digest.len())));
    }
    Ok(operand.eq_ignore_ascii_case(digest.as_bytes()))
}

/// The options of SET.
struct SetOptions<'a> {
    condition: Condition<'a>,
    expiry: Option<ExpiryOption<'a>>,
    keeps_deadline: bool,
    gets: bool,
}

impl<'a> SetOptions<'a> {
    fn parse(args: &Args<'a>, first: usize) -> Result<SetOptions<'a>> {
        let mut options =
            SetOptions { condition: Condition::Always, expiry: None, keeps_deadline: false, gets: false };
        let mut index = first;
        while index < args.len() {
            index += options.take(args, index)?;
        }
        Ok(options)
    }

    /// Takes the option at `index`; returns how many arguments it used.
    fn take(&mut self, args: &Args<'a>, index: usize) -> Result<usize> {
        let condition = match () {
            _ if args.is(index, "NX") => Some((Condition::Missing, 1)),
            _ if args.is(index, "XX") => Some((Condition::Exists, 1)),
            _ => Condition::on_value(args, index).map(|condition| (condition, 2)),
        };
        if let Some((condition, used)) = condition {
            let is_same = std::mem::discriminant(&condition) == std::mem::discriminant(&self.condition);
            if self.condition != Condition::Always && !(used == 1 && is_same) {
                return Err(Error::Syntax);
            }
            self.condition = condition;
            return Ok(used);
        }
        if args.is(index, "GET") {
            self.gets = true;
            return Ok(1);
        }
        if args.is(index, "KEEPTTL") && self.expiry.is_none() {
            self.keeps_deadline = true;
            return Ok(1);
        }
        if self.keeps_deadline {
            return Err(Error::Syntax);
        }
        self.expiry = Some(ExpiryOption::parse(args, index, self.expiry)?);
        Ok(2)
    }

    fn deadline(&self, ctx: &Ctx<'_>, command: &'static str) -> Result<Deadline> {
        match self.expiry {
            Some(option) => Ok(Deadline::At(option.expiry()?.deadline(ctx, command)?)),
            None if self.keeps_deadline => Ok(Deadline::Keep),
            None => Ok(Deadline::None),
        }
    }
}

fn set(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (key, value) = (args.at(1), args.at(2));
    if args.len() == 3 {
        ctx.set(key, value, Deadline::None);
        reply.ok();
        return Ok(());
    }
    let options = SetOptions::parse(args, 3)?;
    let deadline = options.deadline(ctx, "set")?;
    if options.gets {
        // The type error must come before any write; after this check the condition cannot fail with it.
        ctx.string(key)?;
    }
    let holds = options.condition.holds(ctx, key)?;
    if options.gets {
        reply_text(reply, ctx.view().text(key)?);
    } else if holds {
        reply.ok();
    } else {
        reply.null();
    }
    if holds {
        set_or_delete(ctx, key, value, deadline);
    }
    Ok(())
}

/// A string whose deadline has passed is not set: the key is deleted instead.
pub(crate) fn set_or_delete(ctx: &mut Ctx<'_>, key: &[u8], value: &[u8], deadline: Deadline) {
    match deadline {
        Deadline::At(at) if at <= ctx.now_ms => _ = ctx.delete(key),
        _ => ctx.set(key, value, deadline),
    }
}

fn setnx(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let is_missing = !ctx.exists(args.at(1));
    if is_missing {
        ctx.set(args.at(1), args.at(2), Deadline::None);
    }
    reply.flag(is_missing);
    Ok(())
}

fn setex(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let deadline = Expiry::Seconds(args.integer(2)?).deadline(ctx, "setex")?;
    ctx.set(args.at(1), args.at(3), Deadline::At(deadline));
    reply.ok();
    Ok(())
}

fn psetex(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let deadline = Expiry::Milliseconds(args.integer(2)?).deadline(ctx, "psetex")?;
    ctx.set(args.at(1), args.at(3), Deadline::At(deadline));
    reply.ok();
    Ok(())
}

fn getset(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply_text(reply, ctx.view().text(args.at(1))?);
    ctx.set(args.at(1), args.at(2), Deadline::None);
    Ok(())
}

fn getdel(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply_text(reply, ctx.view().text(args.at(1))?);
    ctx.delete(args.at(1));
    Ok(())
}

fn getex(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let key = args.at(1);
    let (mut expiry, mut persists, mut index) = (None, false, 2);
    while index < args.len() {
        if args.is(index, "PERSIST") && expiry.is_none() {
            persists = true;
            index += 1;
        } else if persists {
            return Err(Error::Syntax);
        } else {
            expiry = Some(ExpiryOption::parse(args, index, expiry)?);
            index += 2;
        }
    }
    let value = ctx.view().text(key)?;
    if value.is_none() {
        reply.null();
        return Ok(());
    }
    let deadline = match expiry {
        Some(option) => Some(option.expiry()?.deadline(ctx, "getex")?),
        None => None,
    };
    reply_text(reply, value);
    match deadline {
        Some(deadline) if deadline <= ctx.now_ms => _ = ctx.delete(key),
        Some(deadline) => _ = ctx.set_deadline(key, Some(deadline)),
        None if persists && ctx.view().deadline(key).flatten().is_some() => _ = ctx.set_deadline(key, None),
        None => {}
    }
    Ok(())
}

fn pairs_are_whole(args: &Args<'_>, command: &'static str) -> Result<()> {
    if args.len().is_multiple_of(2) { Err(Error::Arity(command.into())) } else { Ok(()) }
}

fn mset(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    pairs_are_whole(args, "mset")?;
    for pair in args.from(1).chunks_exact(2) {
        ctx.set(pair[0], pair[1], Deadline::None);
    }
    reply.ok();
    Ok(())
}

fn msetnx(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    pairs_are_whole(args, "msetnx")?;
    let pairs = args.from(1).chunks_exact(2);
    let all_missing = !pairs.clone().any(|pair| ctx.exists(pair[0]));
    if all_missing {
        pairs.for_each(|pair| ctx.set(pair[0], pair[1], Deadline::None));
    }
    reply.flag(all_missing);
    Ok(())
}

fn delex(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let key = args.at(1);
    let condition = match args.len() {
        2 => Condition::Always,
        4 => Condition::on_value(args, 2).ok_or(Error::Syntax)?,
        _ => return Err(Error::Arity("delex".into())),
    };
    // A condition that holds for a missing key deletes nothing.
    let holds = condition.holds(ctx, key)?;
    reply.flag(holds && ctx.delete(key));
    Ok(())
}

fn delifeq(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let holds = Condition::Equals(args.at(2)).holds(ctx, args.at(1))?;
    reply.flag(holds && ctx.delete(args.at(1)));
    Ok(())
}
