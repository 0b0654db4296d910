//! Rate limits: INCREX, a counter with bounds and a deadline (Redis 8.8), and CL.THROTTLE, the generic cell
//! rate algorithm (as in the module redis-cell). Each call is one log entry and uses only the log clock, so
//! limits are exact across nodes and failovers.
//!
//! An INCREX that is out of bounds, and a CL.THROTTLE that is limited or only queries, change nothing: not
//! the value, not the deadline, not the version that WATCH compares.

use crate::commands::{
    Origin, Spec,
    generic::expire::ExpiryOption,
    keys,
    string::numbers::is_infinite,
    string::{GROUP, WRITE_FAST, set_or_delete},
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
    Spec::write("INCREX", -2, keys::CHANGE, increx)
        .about(WRITE_FAST, GROUP, "8.8.0", "Counts up to a bound, and sets the deadline")
        .syntax(
            "key [increment=<BYINT integer:integer|BYFLOAT float:double>] [LBOUND lower-bound] \
             [UBOUND upper-bound] [SATURATE] [expiration=<EX seconds:integer|PX \
             milliseconds:integer|EXAT unix-time-seconds:unix-time|PXAT \
             unix-time-milliseconds:unix-time|PERSIST>] [ENX]",
        )
        .complexity("O(1)"),
    Spec::write("CL.THROTTLE", -5, keys::CHANGE, throttle)
        .about(WRITE_FAST, GROUP, "4.0.0", "Limit the rate of actions by the generic cell rate algorithm")
        .syntax("key max-burst:integer count:integer period:integer [quantity:integer]")
        .complexity("O(1)")
        .of(Origin::Module("redis-cell")),
];

/// The increment of INCREX, not parsed yet.
#[derive(Clone, Copy)]
enum Increment<'a> {
    Integer(&'a [u8]),
    Float(&'a [u8]),
}

/// The options of INCREX. Numbers are parsed after all options have been found valid.
#[derive(Default)]
struct IncrexOptions<'a> {
    increment: Option<Increment<'a>>,
    lower: Option<&'a [u8]>,
    upper: Option<&'a [u8]>,
    saturates: bool,
    expiry: Option<ExpiryOption<'a>>,
    persists: bool,
    /// ENX: an existing deadline stays.
    keeps_deadline: bool,
}

impl<'a> IncrexOptions<'a> {
    fn parse(args: &Args<'a>) -> Result<IncrexOptions<'a>> {
        let mut options = IncrexOptions::default();
        let mut index = 2;
        while index < args.len() {
            index += options.take(args, index)?;
        }
        if options.persists && (options.keeps_deadline || options.expiry.is_some()) {
            return Err(Error::Syntax);
        }
        if options.keeps_deadline && options.expiry.is_none() {
            return Err(Error::err("ENX flag requires an expiration"));
        }
        Ok(options)
    }

    /// Takes the option at `index`; returns how many arguments it used. Unlike in SET, no option may be
    /// repeated.
    fn take(&mut self, args: &Args<'a>, index: usize) -> Result<usize> {
        for (word, flag) in [
            ("SATURATE", &mut self.saturates),
            ("PERSIST", &mut self.persists),
            ("ENX", &mut self.keeps_deadline),
        ] {
            if args.is(index, word) {
                return if std::mem::replace(flag, true) { Err(Error::Syntax) } else { Ok(1) };
            }
        }
        let operand = args.get(index + 1).ok_or(Error::Syntax)?;
        let is_repeated = match () {
            _ if args.is(index, "BYINT") => self.increment.replace(Increment::Integer(operand)).is_some(),
            _ if args.is(index, "BYFLOAT") => self.increment.replace(Increment::Float(operand)).is_some(),
            _ if args.is(index, "LBOUND") => self.lower.replace(operand).is_some(),
            _ if args.is(index, "UBOUND") => self.upper.replace(operand).is_some(),
            _ => self.expiry.replace(ExpiryOption::parse(args, index, None)?).is_some(),
        };
        if is_repeated { Err(Error::Syntax) } else { Ok(2) }
    }

    /// The new deadline of the key.
    fn deadline(&self, ctx: &Ctx<'_>, key: &[u8]) -> Result<Deadline> {
        let Some(option) = self.expiry else {
            return Ok(if self.persists { Deadline::None } else { Deadline::Keep });
        };
        let deadline = option.expiry()?.deadline(ctx, "increx")?;
        let stays = self.keeps_deadline && ctx.view().deadline(key).flatten().is_some();
        Ok(if stays { Deadline::Keep } else { Deadline::At(deadline) })
    }
}

fn increx(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let options = IncrexOptions::parse(args)?;
    match options.increment {
        Some(Increment::Float(text)) => increx_float(ctx, args.at(1), text, &options, reply),
        Some(Increment::Integer(text)) => {
            let increment = named_integer(text, "Increment")?;
            increx_integer(ctx, args.at(1), increment, &options, reply)
        }
        None => increx_integer(ctx, args.at(1), 1, &options, reply),
    }
}

fn crossed_bounds() -> Error {
    Error::err("LBOUND can't be greater than UBOUND")
}

fn named_integer(text: &[u8], name: &str) -> Result<i64> {
    parse_integer(text).ok_or_else(|| Error::err(format!("{name} is not an integer or out of range")))
}

fn increx_integer(
    ctx: &mut Ctx<'_>,
    key: &[u8],
    increment: i64,
    options: &IncrexOptions<'_>,
    reply: &mut Reply,
) -> Result<()> {
    let lower = options.lower.map_or(Ok(i64::MIN), |text| named_integer(text, "LBOUND"))?;
    let upper = options.upper.map_or(Ok(i64::MAX), |text| named_integer(text, "UBOUND"))?;
    if lower > upper {
        return Err(crossed_bounds());
    }
    let deadline = options.deadline(ctx, key)?;
    let before = match ctx.string(key)? {
        Some(text) => parse_integer(text).ok_or(Error::NotInteger)?,
        None => 0,
    };
    let sum = i128::from(before) + i128::from(increment);
    let value = sum.clamp(lower.into(), upper.into()) as i64;
    let is_rejected = i128::from(value) != sum && !options.saturates;
    let (value, applied) = if is_rejected {
        (before, 0)
    } else {
        // The difference between value and bound may exceed an integer.
        let applied = value.checked_sub(before);
        (value, applied.ok_or_else(|| Error::err("applied increment would overflow"))?)
    };
    if !is_rejected {
        set_or_delete(ctx, key, itoa::Buffer::new().format(value).as_bytes(), deadline);
    }
    reply.array(2);
    reply.integer(value);
    reply.integer(applied);
    Ok(())
}

fn increx_float(
    ctx: &mut Ctx<'_>,
    key: &[u8],
    increment: &[u8],
    options: &IncrexOptions<'_>,
    reply: &mut Reply,
) -> Result<()> {
    if is_infinite(increment) {
        return Err(Error::err("BYFLOAT increment cannot be Infinity"));
    }
    let increment = Extended::parse(increment).ok_or_else(|| not_float("Increment"))?;
    let lower = options.lower.map_or(Ok(Extended::MIN), |text| float_bound(text, "LBOUND"))?;
    let upper = options.upper.map_or(Ok(Extended::MAX), |text| float_bound(text, "UBOUND"))?;
    if lower.compare(upper).is_gt() {
        return Err(crossed_bounds());
    }
    let deadline = options.deadline(ctx, key)?;
    let before = match ctx.string(key)? {
        // SET may have stored an infinity.
        Some(text) if is_infinite(text) => return Err(Error::err("value cannot be Infinity")),
        Some(text) => Extended::parse(text).ok_or(Error::NotFloat)?,
        None => Extended::ZERO,
    };
    let (sum, is_too_large) = before.saturating_add(increment);
    let value = match () {
        _ if sum.compare(lower).is_lt() => lower,
        _ if sum.compare(upper).is_gt() => upper,
        _ => sum,
    };
    let is_rejected = (is_too_large || value != sum) && !options.saturates;
    let (value, applied) = if is_rejected {
        (before, Extended::ZERO)
    } else {
        // The difference after rounding, which may not be what was asked for.
        let (applied, is_too_large) = value.saturating_add(before.negated());
        if is_too_large {
            return Err(Error::err("applied increment would be Infinity"));
        }
        (value, applied)
    };
    let text = value.format();
    if !is_rejected {
        set_or_delete(ctx, key, text.as_bytes(), deadline);
    }
    reply.array(2);
    reply.decimal(&text);
    reply.decimal(&applied.format());
    Ok(())
}

fn not_float(name: &str) -> Error {
    Error::err(format!("{name} is not a valid float"))
}

/// An infinite bound is the largest number of its sign: no value exceeds it.
fn float_bound(text: &[u8], name: &str) -> Result<Extended> {
    match is_infinite(text) {
        true if text.starts_with(b"-") => Ok(Extended::MIN),
        true => Ok(Extended::MAX),
        false => Extended::parse(text).ok_or_else(|| not_float(name)),
    }
}

const NS_A_MS: i128 = 1_000_000;
const NS_A_SECOND: i128 = 1_000_000_000;

/// A rate with a burst. The bucket of `limit` actions refills by one in every interval.
///
/// Invariants:
/// - `interval_ns` and `limit` are at least 1;
/// - refilling takes at most `i64::MAX` nanoseconds, some 292 years: `interval_ns * limit` is in that range,
///   and its product with any i64 fits an i128.
#[derive(Clone, Copy, Debug)]
struct Quota {
    interval_ns: i128,
    limit: i128,
}

/// The decision on a request, and how full the bucket is afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Verdict {
    is_limited: bool,
    remaining: i128,
    /// The time until the same request would be allowed. None if it was, or if it never will be.
    retry_after_ns: Option<i128>,
    /// The time until the bucket is full.
    reset_after_ns: i128,
    /// The theoretical arrival time to store; the old one if the request was limited.
    arrival_ns: i128,
}

impl Quota {
    /// `count` actions in `period` seconds, with a burst of `max_burst` more. Fractions of a nanosecond are
    /// cut off the interval, so the rate is never below what was asked for.
    fn new(max_burst: i64, count: i64, period: i64) -> Result<Quota> {
        let interval_ns = i128::from(period) * NS_A_SECOND / i128::from(count);
        let limit = i128::from(max_burst) + 1;
        if interval_ns == 0 {
            return Err(Error::err("the rate is above one action in a nanosecond"));
        }
        match interval_ns.checked_mul(limit) {
            Some(refill_ns) if refill_ns <= i128::from(i64::MAX) => Ok(Quota { interval_ns, limit }),
            _ => Err(Error::err("max_burst is too high for the rate: it would take centuries to refill")),
        }
    }

    /// The generic cell rate algorithm. `arrival_ns` is the value stored by the last allowed request: when
    /// the bucket is full again.
    fn judge(&self, now_ns: i128, arrival_ns: Option<i128>, quantity: i64) -> Verdict {
        let tolerance_ns = self.interval_ns * self.limit;
        let increment_ns = self.interval_ns * i128::from(quantity);
        let before_ns = arrival_ns.map_or(now_ns, |arrival_ns| arrival_ns.max(now_ns));
        let wait_ns = before_ns + increment_ns - tolerance_ns - now_ns;
        let is_limited = wait_ns > 0;
        let is_ever_possible = increment_ns <= tolerance_ns;
        let arrival_ns = if is_limited { before_ns } else { before_ns + increment_ns };
        let reset_after_ns = arrival_ns - now_ns;
        Verdict {
            is_limited,
            // Below zero if the bucket was larger when the arrival time was stored.
            remaining: ((tolerance_ns - reset_after_ns) / self.interval_ns).max(0),
            retry_after_ns: (is_limited && is_ever_possible).then_some(wait_ns),
            reset_after_ns,
            arrival_ns,
        }
    }
}

fn throttle(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    if args.len() > 6 {
        return Err(Error::Arity("cl.throttle".into()));
    }
    let key = args.at(1);
    let at_least = |index: usize, name: &str, least: i64| match named_integer(args.at(index), name)? {
        number if number < least => Err(Error::err(format!("{name} must be at least {least}"))),
        number => Ok(number),
    };
    let max_burst = at_least(2, "max_burst", 0)?;
    let count = at_least(3, "count", 1)?;
    let period = at_least(4, "period", 1)?;
    let quantity = if args.len() > 5 { at_least(5, "quantity", 0)? } else { 1 };
    let quota = Quota::new(max_burst, count, period)?;
    let arrival_ns = match ctx.string(key)? {
        Some(text) => Some(i128::from(parse_arrival(text)?)),
        None => None,
    };
    let verdict = quota.judge(i128::from(ctx.now_ms) * NS_A_MS, arrival_ns, quantity);
    if !verdict.is_limited && quantity > 0 {
        // Overflows after the year 2554.
        let arrival_ns = u64::try_from(verdict.arrival_ns).unwrap_or(u64::MAX);
        // From then on a missing key means the same.
        let deadline_ms = arrival_ns.div_ceil(NS_A_MS as u64);
        ctx.set(key, itoa::Buffer::new().format(arrival_ns).as_bytes(), Deadline::At(deadline_ms));
    }
    // Rounded up, so that a client that waits this many seconds does not come too early. All fit: the times
    // of a quota do, and so does any stored value.
    let seconds = |ns: i128| (ns + NS_A_SECOND - 1).div_euclid(NS_A_SECOND) as i64;
    reply.array(5);
    reply.flag(verdict.is_limited);
    reply.integer(quota.limit as i64);
    reply.integer(verdict.remaining as i64);
    reply.integer(verdict.retry_after_ns.map_or(-1, seconds));
    reply.integer(seconds(verdict.reset_after_ns));
    Ok(())
}

/// Parses a stored theoretical arrival time: nanoseconds since the Unix epoch.
fn parse_arrival(text: &[u8]) -> Result<u64> {
    let digits = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok()).ok_or(Error::NotInteger)
}

#[cfg(test)]
mod tests {
    use super::{NS_A_MS, NS_A_SECOND, Quota, Verdict};

    /// The sequence of redis-cell's unit test: a burst of five actions, one per second.
    #[test]
    fn requests_are_judged_as_redis_cell_does() {
        let quota = Quota::new(4, 1, 1).unwrap();
        let mut arrival_ns = None;
        // Milliseconds, quantity; remaining, milliseconds until full, milliseconds until a retry, limited.
        for (now_ms, quantity, remaining, reset_ms, retry_ms, is_limited) in [
            (0, 6, 5, 0, None, true),
            (0, 1, 4, 1_000, None, false),
            (0, 1, 3, 2_000, None, false),
            (0, 1, 2, 3_000, None, false),
            (0, 1, 1, 4_000, None, false),
            (0, 1, 0, 5_000, None, false),
            (0, 1, 0, 5_000, Some(1_000), true),
            (3_000, 1, 2, 3_000, None, false),
            (3_100, 1, 1, 3_900, None, false),
            (4_000, 1, 1, 4_000, None, false),
            (8_000, 1, 4, 1_000, None, false),
            (9_500, 1, 4, 1_000, None, false),
            (9_500, 0, 4, 1_000, None, false),
            (9_500, 2, 2, 3_000, None, false),
            (9_500, 5, 2, 3_000, Some(3_000), true),
        ] {
            let verdict = quota.judge(now_ms * NS_A_MS, arrival_ns, quantity);
            let Verdict { remaining: left, retry_after_ns, reset_after_ns, .. } = verdict;
            assert_eq!(
                (left, reset_after_ns, retry_after_ns, verdict.is_limited),
                (remaining, reset_ms * NS_A_MS, retry_ms.map(|ms: i128| ms * NS_A_MS), is_limited),
                "{quantity} at {now_ms}"
            );
            arrival_ns = Some(verdict.arrival_ns);
        }
    }

    /// A bucket that fills with time and is emptied by requests, in nanoseconds of refilling.
    struct Bucket {
        level_ns: i128,
        now_ns: i128,
    }

    #[test]
    fn requests_are_judged_as_by_a_bucket() {
        for seed in 0..200 {
            println!("seed {seed}");
            let mut chance = fastrand::Rng::with_seed(seed);
            let (max_burst, count, period) = (chance.i64(0..20), chance.i64(1..50), chance.i64(1..100));
            let quota = Quota::new(max_burst, count, period).unwrap();
            let size_ns = quota.interval_ns * quota.limit;
            let mut bucket = Bucket { level_ns: size_ns, now_ns: 1_700_000_000_000 * NS_A_MS };
            let mut arrival_ns = None;
            for step in 0..300 {
                let elapsed_ns = match chance.u8(..3) {
                    0 => 0,
                    1 => chance.i128(0..quota.interval_ns * 2),
                    _ => chance.i128(0..20) * NS_A_MS,
                };
                bucket.now_ns += elapsed_ns;
                bucket.level_ns = size_ns.min(bucket.level_ns + elapsed_ns);
                let quantity = chance.i64(0..4 + max_burst / 2);
                let needed_ns = quota.interval_ns * i128::from(quantity);
                let is_limited = needed_ns > bucket.level_ns;
                let retry_after_ns =
                    (is_limited && needed_ns <= size_ns).then(|| needed_ns - bucket.level_ns);
                if !is_limited {
                    bucket.level_ns -= needed_ns;
                }
                let verdict = quota.judge(bucket.now_ns, arrival_ns, quantity);
                let expected = Verdict {
                    is_limited,
                    remaining: bucket.level_ns / quota.interval_ns,
                    retry_after_ns,
                    reset_after_ns: size_ns - bucket.level_ns,
                    arrival_ns: bucket.now_ns + size_ns - bucket.level_ns,
                };
                assert_eq!(verdict, expected, "step {step}: {quantity} of {quota:?}");
                if !is_limited && quantity > 0 {
                    arrival_ns = Some(verdict.arrival_ns);
                }
            }
        }
    }

    #[test]
    fn no_arguments_overflow() {
        let numbers = [1, 2, 999_999_999, 1_000_000_000, 1 << 40, i64::MAX - 1, i64::MAX];
        let quotas = numbers.iter().flat_map(|&count| numbers.map(|period| (count, period)));
        for (count, period) in quotas {
            for max_burst in numbers.into_iter().chain([0]) {
                let Ok(quota) = Quota::new(max_burst, count, period) else { continue };
                assert!(quota.interval_ns * quota.limit <= i128::from(i64::MAX));
                for arrival_ns in [None, Some(0), Some(i128::from(u64::MAX))] {
                    for now_ms in [0, u64::MAX] {
                        for quantity in numbers.into_iter().chain([0]) {
                            let verdict = quota.judge(i128::from(now_ms) * NS_A_MS, arrival_ns, quantity);
                            assert!((0..=quota.limit).contains(&verdict.remaining));
                            assert!(verdict.reset_after_ns / NS_A_SECOND < i128::from(i64::MAX));
                        }
                    }
                }
            }
        }
    }
}
