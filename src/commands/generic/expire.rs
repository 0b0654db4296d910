//! Deadlines: setting, reading and removing them. Deadlines are instants of the log clock; clients give and
//! see them as instants of the wall clock.

use crate::commands::{Spec, keys};
use crate::{
    args::{Args, parse_integer},
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, View},
};

const GROUP: &str = "generic";
const READ: &[&str] = &["readonly", "fast"];
const WRITE: &[&str] = &["write", "fast"];

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write("EXPIRE", -3, keys::UPDATE, expire)
        .about(WRITE, GROUP, "1.0.0", "Set a key's time to live in seconds")
        .syntax("key seconds:integer [condition=<NX|XX|GT|LT>@7.0.0]")
        .complexity("O(1)"),
    Spec::write("PEXPIRE", -3, keys::UPDATE, pexpire)
        .about(WRITE, GROUP, "2.6.0", "Set a key's time to live in milliseconds")
        .syntax("key milliseconds:integer [condition=<NX|XX|GT|LT>@7.0.0]")
        .complexity("O(1)"),
    Spec::write("EXPIREAT", -3, keys::UPDATE, expireat)
        .about(WRITE, GROUP, "1.2.0", "Set the expiration for a key as a UNIX timestamp")
        .syntax("key unix-time-seconds:unix-time [condition=<NX|XX|GT|LT>@7.0.0]")
        .complexity("O(1)"),
    Spec::write("PEXPIREAT", -3, keys::UPDATE, pexpireat)
        .about(
            WRITE,
            GROUP,
            "2.6.0",
            "Set the expiration for a key as a UNIX timestamp specified in milliseconds",
        )
        .syntax("key unix-time-milliseconds:unix-time [condition=<NX|XX|GT|LT>@7.0.0]")
        .complexity("O(1)"),
    Spec::write("PERSIST", 2, keys::UPDATE, persist)
        .about(WRITE, GROUP, "2.2.0", "Remove the expiration from a key")
        .syntax("key")
        .complexity("O(1)"),
    Spec::read("TTL", 2, keys::READ, ttl)
        .about(READ, GROUP, "1.0.0", "Get the time to live for a key in seconds")
        .syntax("key")
        .complexity("O(1)")
        .tips(&["nondeterministic_output"]),
    Spec::read("PTTL", 2, keys::READ, pttl)
        .about(READ, GROUP, "2.6.0", "Get the time to live for a key in milliseconds")
        .syntax("key")
        .complexity("O(1)")
        .tips(&["nondeterministic_output"]),
    Spec::read("EXPIRETIME", 2, keys::READ, expiretime)
        .about(READ, GROUP, "7.0.0", "Get the expiration Unix timestamp for a key")
        .syntax("key")
        .complexity("O(1)"),
    Spec::read("PEXPIRETIME", 2, keys::READ, pexpiretime)
        .about(READ, GROUP, "7.0.0", "Get the expiration Unix timestamp for a key in milliseconds")
        .syntax("key")
        .complexity("O(1)"),
];

/// The expiry as a client gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// EX
    Seconds(i64),
    /// PX
    Milliseconds(i64),
    /// EXAT
    AtSeconds(i64),
    /// PXAT
    AtMilliseconds(i64),
}

/// An option EX, PX, EXAT or PXAT whose argument is not parsed yet: Redis parses the numbers only after all
/// options have been found valid.
#[derive(Clone, Copy)]
pub(crate) struct ExpiryOption<'a> {
    unit: fn(i64) -> Expiry,
    text: &'a [u8],
}

impl<'a> ExpiryOption<'a> {
    /// The option at `index`, with its argument. An error if it is none of them, or a second one after
    /// `before`.
    pub(crate) fn parse(
        args: &Args<'a>,
        index: usize,
        before: Option<ExpiryOption<'a>>,
    ) -> Result<ExpiryOption<'a>> {
        let unit: fn(i64) -> Expiry = match () {
            _ if args.is(index, "EX") => Expiry::Seconds,
            _ if args.is(index, "PX") => Expiry::Milliseconds,
            _ if args.is(index, "EXAT") => Expiry::AtSeconds,
            _ if args.is(index, "PXAT") => Expiry::AtMilliseconds,
            _ => return Err(Error::Syntax),
        };
        let kind = |unit: fn(i64) -> Expiry| std::mem::discriminant(&unit(0));
        if before.is_some_and(|before| kind(before.unit) != kind(unit)) {
            return Err(Error::Syntax);
        }
        let text = args.get(index + 1).ok_or(Error::Syntax)?;
        Ok(ExpiryOption { unit, text })
    }

    /// Parses the number.
    pub(crate) fn expiry(self) -> Result<Expiry> {
        parse_integer(self.text).map(self.unit).ok_or(Error::NotInteger)
    }
}

impl Expiry {
    /// The deadline by the log clock, for commands that take only positive numbers. A past deadline may be
    /// returned as another past one.
    pub(crate) fn deadline(self, ctx: &Ctx<'_>, command: &'static str) -> Result<u64> {
        let (Expiry::Seconds(value)
        | Expiry::Milliseconds(value)
        | Expiry::AtSeconds(value)
        | Expiry::AtMilliseconds(value)) = self;
        if value <= 0 {
            return Err(Error::InvalidExpire(command.into()));
        }
        // 0 means no deadline.
        self.instant(ctx, command).map(|instant| instant.max(1).unsigned_abs())
    }

    /// The instant by the log clock in milliseconds, which may be before the epoch.
    fn instant(self, ctx: &Ctx<'_>, command: &'static str) -> Result<i64> {
        let instant = match self {
            Expiry::Seconds(value) => {
                value.checked_mul(1_000).and_then(|value| value.checked_add_unsigned(ctx.now_ms))
            }
            Expiry::Milliseconds(value) => value.checked_add_unsigned(ctx.now_ms),
            Expiry::AtSeconds(value) => value.checked_mul(1_000).map(|value| ctx.log_ms(value)),
            Expiry::AtMilliseconds(value) => Some(ctx.log_ms(value)),
        };
        instant.ok_or(Error::InvalidExpire(command.into()))
    }
}

fn expire(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    expire_by(ctx, args, reply, Expiry::Seconds, "expire")
}

fn pexpire(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    expire_by(ctx, args, reply, Expiry::Milliseconds, "pexpire")
}

fn expireat(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    expire_by(ctx, args, reply, Expiry::AtSeconds, "expireat")
}

fn pexpireat(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    expire_by(ctx, args, reply, Expiry::AtMilliseconds, "pexpireat")
}

fn expire_by(
    ctx: &mut Ctx<'_>,
    args: &Args<'_>,
    reply: &mut Reply,
    expiry: fn(i64) -> Expiry,
    command: &'static str,
) -> Result<()> {
    let conditions = Conditions::parse(args)?;
    let instant = expiry(args.integer(2)?).instant(ctx, command)?;
    let key = args.at(1);
    check_may_move(ctx, key)?;
    let present = ctx.view().deadline(key);
    let holds = present.is_some_and(|present| conditions.hold(present, instant));
    if holds {
        match u64::try_from(instant) {
            Ok(deadline) if deadline > ctx.now_ms => ctx.set_deadline(key, Some(deadline)),
            _ => ctx.delete(key),
        };
    }
    reply.flag(holds);
    Ok(())
}

/// The deadline of a lock and similar values is set by their own commands.
fn check_may_move(ctx: &Ctx<'_>, key: &[u8]) -> Result<()> {
    if ctx.view().keeps_its_time(key) {
        return Err(Error::err(
            "the time of a lock, semaphore, election, lease or session is set by its own commands",
        ));
    }
    Ok(())
}

/// NX, XX, GT and LT.
#[derive(Default)]
struct Conditions {
    nx: bool,
    xx: bool,
    gt: bool,
    lt: bool,
}

impl Conditions {
    fn parse(args: &Args<'_>) -> Result<Conditions> {
        let mut conditions = Conditions::default();
        for index in 3..args.len() {
            let Conditions { nx, xx, gt, lt } = &mut conditions;
            let known = [("NX", nx), ("XX", xx), ("GT", gt), ("LT", lt)];
            let Some((_, flag)) = known.into_iter().find(|(word, _)| args.is(index, word)) else {
                let option = String::from_utf8_lossy(args.at(index));
                return Err(Error::err(format!("Unsupported option {option}")));
            };
            *flag = true;
        }
        let Conditions { nx, xx, gt, lt } = conditions;
        if nx && (xx || gt || lt) {
            return Err(Error::err("NX and XX, GT or LT options at the same time are not compatible"));
        }
        if gt && lt {
            return Err(Error::err("GT and LT options at the same time are not compatible"));
        }
        Ok(conditions)
    }

    /// For GT and LT, a key without a deadline never expires.
    fn hold(&self, present: Option<u64>, instant: i64) -> bool {
        let is_later = present.is_some_and(|present| i128::from(instant) > i128::from(present));
        let is_earlier = present.is_none_or(|present| i128::from(instant) < i128::from(present));
        let (has_deadline, has_none) = (present.is_some(), present.is_none());
        (!self.nx || has_none)
            && (!self.xx || has_deadline)
            && (!self.gt || is_later)
            && (!self.lt || is_earlier)
    }
}

fn persist(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    check_may_move(ctx, args.at(1))?;
    let has_deadline = ctx.view().deadline(args.at(1)).flatten().is_some();
    reply.flag(has_deadline && ctx.set_deadline(args.at(1), None));
    Ok(())
}

/// The four commands that read a deadline: -2 without the key, -1 without a deadline.
fn read_deadline(view: &View<'_>, args: &Args<'_>, reply: &mut Reply, show: impl FnOnce(u64) -> u64) {
    reply.integer(match view.deadline(args.at(1)) {
        None => -2,
        Some(None) => -1,
        Some(Some(deadline)) => show(deadline) as i64,
    });
}

/// Rounds milliseconds to seconds as Redis does.
fn seconds(milliseconds: u64) -> u64 {
    (milliseconds + 500) / 1_000
}

fn ttl(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    read_deadline(view, args, reply, |deadline| seconds(deadline.saturating_sub(view.estimate_ms)));
    Ok(())
}

fn pttl(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    read_deadline(view, args, reply, |deadline| deadline.saturating_sub(view.estimate_ms));
    Ok(())
}

fn expiretime(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    read_deadline(view, args, reply, |deadline| seconds(view.wall_ms(deadline)));
    Ok(())
}

fn pexpiretime(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    read_deadline(view, args, reply, |deadline| view.wall_ms(deadline));
    Ok(())
}
