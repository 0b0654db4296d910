//! Scanning keys: SCAN, KEYS, RANDOMKEY; and the options that SCAN shares with HSCAN, SSCAN and ZSCAN.
//! Unlike in Redis, a pattern that takes too long to match is an error.

use crate::commands::{Spec, keys};
use crate::{
    args::Args,
    error::{Error, Result},
    glob::Matcher,
    resp::Reply,
    store::{View, level},
};

const GROUP: &str = "generic";
/// The default of COUNT.
const COUNT_DEFAULT: usize = 10;

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::read("SCAN", -2, keys::NONE, scan)
        .about(&["readonly"], GROUP, "2.8.0", "Incrementally iterate the keys space")
        .syntax("cursor:integer [MATCH pattern:pattern] [COUNT count:integer] [TYPE type@6.0.0]")
        .complexity("O(1) for every call")
        .tips(&["nondeterministic_output", "request_policy:special"]),
    Spec::read("KEYS", 2, keys::NONE, keys)
        .about(&["readonly"], GROUP, "1.0.0", "Find all keys matching the given pattern")
        .syntax("pattern:pattern")
        .complexity(
            "O(N) with N being the number of keys in the database, under the assumption that the \
             key names in the database and the given pattern have limited length",
        )
        .acl(&["keyspace", "dangerous"])
        .tips(&["request_policy:all_shards", "nondeterministic_output_order"]),
    Spec::read("RANDOMKEY", 1, keys::NONE, randomkey)
        .about(&["readonly"], GROUP, "1.0.0", "Return a random key from the keyspace")
        .complexity("O(1)")
        .tips(&["request_policy:all_shards", "nondeterministic_output"]),
];

/// The arguments of SCAN, HSCAN, SSCAN and ZSCAN.
pub(crate) struct ScanOptions<'a> {
    /// The cursor; initially 0.
    pub cursor: u64,
    /// The approximate number of items to examine.
    pub count: usize,
    pattern: Option<Matcher<'a>>,
    /// Only for SCAN.
    type_name: Option<&'a [u8]>,
}

impl<'a> ScanOptions<'a> {
    /// Reads the cursor at `cursor_at` and the options after it. `takes_type`: TYPE is allowed.
    pub(crate) fn parse(
        view: &View<'_>,
        args: &Args<'a>,
        cursor_at: usize,
        takes_type: bool,
    ) -> Result<ScanOptions<'a>> {
        let cursor = ScanOptions::cursor_of(args, cursor_at)?;
        let mut options = ScanOptions { cursor, count: COUNT_DEFAULT, pattern: None, type_name: None };
        for index in (cursor_at + 1..args.len()).step_by(2) {
            let value = args.get(index + 1).ok_or(Error::Syntax)?;
            if args.is(index, "COUNT") {
                let count = args.integer(index + 1)?;
                options.count =
                    usize::try_from(count).ok().filter(|&count| count > 0).ok_or(Error::Syntax)?;
            } else if args.is(index, "MATCH") {
                options.pattern = Some(matcher(view, value));
            } else if args.is(index, "TYPE") && takes_type {
                options.type_name = Some(value);
            } else {
                return Err(Error::Syntax);
            }
        }
        Ok(options)
    }

    /// Reads only the cursor: Redis checks the options only if the key exists. Parsed like `strtoul`: empty
    /// text is 0, and a negative number wraps around.
    pub(crate) fn cursor_of(args: &Args<'_>, cursor_at: usize) -> Result<u64> {
        let text = args.at(cursor_at);
        let (is_negative, digits) = match text {
            [b'-', digits @ ..] => (true, digits),
            [b'+', digits @ ..] => (false, digits),
            digits => (false, digits),
        };
        let is_number = digits.iter().all(u8::is_ascii_digit);
        let cursor = match std::str::from_utf8(digits).ok().filter(|_| is_number) {
            Some("") if text.is_empty() => Some(0),
            Some(digits) => digits.parse::<u64>().ok(),
            None => None,
        };
        let cursor = cursor.ok_or_else(|| Error::err("invalid cursor"))?;
        Ok(if is_negative { cursor.wrapping_neg() } else { cursor })
    }

    /// A step of SCAN.
    pub(crate) fn reply_keys(&self, view: &View<'_>, reply: &mut Reply) -> Result<()> {
        view.check_elements(self.count.min(view.len()))?;
        let mut found = Vec::new();
        let cursor = view.scan(self.cursor, self.count, |record| {
            let has_type = |name: &[u8]| record.type_name().as_bytes().eq_ignore_ascii_case(name);
            if self.type_name.is_none_or(has_type) && self.matches(record.key()) {
                found.push(record.key());
            }
        });
        self.check_work()?;
        reply_step(cursor, found.len(), reply);
        found.iter().for_each(|key| reply.bulk(key));
        Ok(())
    }

    /// Whether a name matches MATCH.
    pub(crate) fn matches(&self, name: &[u8]) -> bool {
        self.pattern.as_ref().is_none_or(|pattern| pattern.matches(name))
    }

    /// Call before replying: an error if a match was abandoned because it would take too long.
    pub(crate) fn check_work(&self) -> Result<()> {
        self.pattern.as_ref().map_or(Ok(()), check_work)
    }
}

fn matcher<'a>(view: &View<'_>, pattern: &'a [u8]) -> Matcher<'a> {
    if view.level >= level::BOUNDED { Matcher::new(pattern) } else { Matcher::unbounded(pattern) }
}

fn check_work(matcher: &Matcher<'_>) -> Result<()> {
    match matcher.has_given_up() {
        true => Err(Error::err("the pattern takes too long to match")),
        false => Ok(()),
    }
}

/// The reply of a step: the next cursor, and the header of `len` elements that follow.
pub(crate) fn reply_step(cursor: u64, len: usize, reply: &mut Reply) {
    reply.array(2);
    reply.bulk(itoa::Buffer::new().format(cursor).as_bytes());
    reply.array(len);
}

fn scan(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    ScanOptions::parse(view, args, 1, true)?.reply_keys(view, reply)
}

fn keys(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    view.check_elements(view.len())?;
    let pattern = args.at(1);
    let matcher = matcher(view, pattern);
    let is_shown = |key: &&[u8]| pattern == b"*" || matcher.matches(key);
    let found: Vec<_> = view.keys().map(|record| record.key()).filter(is_shown).collect();
    check_work(&matcher)?;
    reply.array(found.len());
    found.iter().for_each(|key| reply.bulk(key));
    Ok(())
}

fn randomkey(view: &View<'_>, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.bulk_or_null(view.random_key());
    Ok(())
}
