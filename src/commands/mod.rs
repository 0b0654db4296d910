//! The command table. A command is one row and one function, in one family file; its kind is the type of the
//! function. Dispatch, COMMAND INFO and DOCS, key extraction and MULTI follow from the row.

use std::sync::LazyLock;

use kvorum_raft::Need;

use crate::{
    args::{Args, parse_integer},
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, View, hash_of},
};

pub mod claim;
pub mod election;
pub mod expire;
pub mod feed;
pub mod fence;
pub mod generic;
pub mod hash;
pub mod hash_walk;
pub mod lcs;
pub mod lease;
pub mod list;
pub mod list_inside;
pub mod lock;
pub mod once;
pub mod rate_limit;
pub mod scan;
pub mod semaphore;
pub mod server;
pub mod set;
pub mod set_algebra;
pub mod sorted_set;
pub mod sorted_set_range;
pub mod string;
pub mod string_numbers;
pub mod string_ranges;

/// Reads the state and cannot change it.
pub type ReadFn = fn(&View<'_>, &Args<'_>, &mut Reply) -> Result<()>;
/// Goes through the log. On an error it has changed nothing and written no reply.
pub type WriteFn = fn(&mut Ctx<'_>, &Args<'_>, &mut Reply) -> Result<()>;

/// What runs a command.
#[derive(Clone, Copy)]
pub enum Run {
    /// On any node that may read, under the shared lock.
    Read(ReadFn),
    /// In `apply`, on every node.
    Write(WriteFn),
    /// In the connection's session (`session/`), which finds its function by the name; touches no keys.
    Session,
}

/// Where a command's keys stand among its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// No keys.
    None,
    /// From `first` to `last`, every `step`.
    Range {
        /// The index of the first key.
        first: usize,
        /// The index of the last one; negative: from the end.
        last: isize,
        /// How far they are apart.
        step: usize,
    },
    /// The number of keys is the argument `at`, and the keys follow it.
    Counted {
        /// The index of the number.
        at: usize,
    },
}

/// One row: a command or subcommand.
pub struct Spec {
    /// Upper case; a subcommand's is `CONFIG|GET`.
    pub name: &'static str,
    /// As Redis counts: the name included; negative means at least.
    pub arity: i32,
    /// Where the keys are.
    pub keys: Keys,
    /// What runs it.
    pub run: Run,
    /// Redis's flags, lower case (`readonly`, `write`, `denyoom`, `fast`, ...), as COMMAND INFO gives them.
    pub flags: &'static [&'static str],
    /// The group of COMMAND DOCS (`string`, `generic`, `connection`, ...).
    pub group: &'static str,
    /// The Redis version it came with.
    pub since: &'static str,
    /// One line for COMMAND DOCS.
    pub summary: &'static str,
    /// Rows of subcommands, for containers.
    pub subcommands: &'static [Spec],
}

impl Spec {
    /// A command that only reads.
    pub const fn read(name: &'static str, arity: i32, keys: Keys, run: ReadFn) -> Spec {
        Spec::new(name, arity, keys, Run::Read(run))
    }

    /// A command that goes through the log.
    pub const fn write(name: &'static str, arity: i32, keys: Keys, run: WriteFn) -> Spec {
        Spec::new(name, arity, keys, Run::Write(run))
    }

    /// A command of the connection or the server.
    pub const fn session(name: &'static str, arity: i32) -> Spec {
        Spec::new(name, arity, Keys::None, Run::Session)
    }

    const fn new(name: &'static str, arity: i32, keys: Keys, run: Run) -> Spec {
        Spec {
            name,
            arity,
            keys,
            run,
            flags: &[],
            group: "generic",
            since: "1.0.0",
            summary: "",
            subcommands: &[],
        }
    }

    /// Its flags, group, version and summary.
    pub const fn about(
        mut self,
        flags: &'static [&'static str],
        group: &'static str,
        since: &'static str,
        summary: &'static str,
    ) -> Spec {
        self.flags = flags;
        self.group = group;
        self.since = since;
        self.summary = summary;
        self
    }

    /// Its subcommands.
    pub const fn with(mut self, subcommands: &'static [Spec]) -> Spec {
        self.subcommands = subcommands;
        self
    }

    /// Whether `count` arguments, the name included, fit the arity.
    pub fn arity_fits(&self, count: usize) -> bool {
        if self.arity >= 0 {
            count == self.arity as usize
        } else {
            count >= self.arity.unsigned_abs() as usize
        }
    }

    /// What a call asks of the disks. One that grows has Redis's flag `denyoom`.
    pub fn need(&self, argv: &[&[u8]]) -> Need {
        let (mut spec, mut argv) = (self, argv);
        // ONCE runs FENCE, and not more: where another command stands in the arguments, it is that one's.
        for _ in 0..2 {
            let inner = match spec.name {
                once::NAME => argv.get(2..),
                fence::NAME => argv.get(3..),
                _ => None,
            };
            let Some(inner) = inner.filter(|inner| !inner.is_empty()) else { break };
            // What is no command changes nothing.
            let Ok(run) = resolve(inner) else { return Need::Entry };
            (spec, argv) = (run, inner);
        }
        match spec.name {
            "FLUSHALL" | "FLUSHDB" => Need::Nothing,
            _ if spec.flags.contains(&"denyoom") => Need::Growth,
            _ => Need::Entry,
        }
    }

    /// The key arguments of a call.
    pub fn keys_of<'a>(&self, args: &Args<'a>) -> Vec<&'a [u8]> {
        match self.name {
            fence::NAME => return fence::keys(args),
            once::NAME => return once::keys(args),
            _ => {}
        }
        match self.keys {
            Keys::None => Vec::new(),
            Keys::Range { first, last, step } => {
                let last = if last < 0 { args.len() as isize + last } else { last };
                (first as isize..=last).step_by(step).filter_map(|index| args.get(index as usize)).collect()
            }
            Keys::Counted { at } => {
                let count =
                    args.get(at).and_then(parse_integer).and_then(|count| usize::try_from(count).ok());
                args.from(at + 1).iter().take(count.unwrap_or(0)).copied().collect()
            }
        }
    }
}

impl Spec {
    /// The keys that a write command changes: all of its keys, but for those from which it only copies.
    pub fn written_keys<'a>(&self, args: &Args<'a>) -> Vec<&'a [u8]> {
        let mut keys = self.keys_of(args);
        match self.name {
            // Another database is not this view's: COPY looks itself.
            "COPY" if args.from(3).iter().any(|word| word.eq_ignore_ascii_case(b"DB")) => keys.clear(),
            "COPY" => drop(keys.drain(..keys.len().min(1))),
            name if name.ends_with("STORE") => keys = args.get(1).into_iter().collect(),
            _ => {}
        }
        keys
    }
}

/// One key, the first argument.
pub const fn key() -> Keys {
    Keys::Range { first: 1, last: 1, step: 1 }
}

/// Two keys, the first two arguments.
pub const fn two_keys() -> Keys {
    Keys::Range { first: 1, last: 2, step: 1 }
}

/// All arguments are keys.
pub const fn all_keys() -> Keys {
    Keys::Range { first: 1, last: -1, step: 1 }
}

/// Keys and values by turns.
pub const fn key_value_pairs() -> Keys {
    Keys::Range { first: 1, last: -1, step: 2 }
}

/// Every family's rows.
pub const FAMILIES: &[&[Spec]] = &[
    string::ROWS,
    string_numbers::ROWS,
    string_ranges::ROWS,
    rate_limit::ROWS,
    lcs::ROWS,
    list::ROWS,
    list_inside::ROWS,
    hash::ROWS,
    hash_walk::ROWS,
    generic::ROWS,
    expire::ROWS,
    scan::ROWS,
    set::ROWS,
    set_algebra::ROWS,
    sorted_set::ROWS,
    sorted_set_range::ROWS,
    lock::ROWS,
    semaphore::ROWS,
    election::ROWS,
    lease::ROWS,
    fence::ROWS,
    once::ROWS,
    feed::ROWS,
    server::ROWS,
];

/// Every command, in the order of the families.
pub fn all() -> impl Iterator<Item = &'static Spec> {
    FAMILIES.iter().flat_map(|rows| rows.iter())
}

/// The longest name in any table; longer names are unknown without a look.
const NAME_BYTES_MAX: usize = 32;
/// Places in the table of names: many more than names, so that most are found at first sight.
const PLACES: usize = 2048;

/// The row of a command, whatever the case of its name. A container's row has subcommands.
pub fn lookup(name: &[u8]) -> Option<&'static Spec> {
    static TABLE: LazyLock<Vec<Option<&'static Spec>>> = LazyLock::new(|| {
        let mut table = vec![None; PLACES];
        for spec in all() {
            let place = places_of(spec.name.as_bytes()).find(|&place| table[place].is_none());
            table[place.expect("there are more places than commands")] = Some(spec);
        }
        table
    });
    let mut upper = [0; NAME_BYTES_MAX];
    let upper = upper.get_mut(..name.len())?;
    upper.copy_from_slice(name);
    upper.make_ascii_uppercase();
    let mut specs = places_of(upper).map_while(|place| TABLE[place]);
    specs.find(|spec| spec.name.as_bytes() == upper)
}

/// Where a name may stand, in the order in which they are tried.
fn places_of(upper: &[u8]) -> impl Iterator<Item = usize> {
    let first = hash_of(upper) as usize;
    (0..PLACES).map(move |offset| first.wrapping_add(offset) % PLACES)
}

/// The row that a call means, of the subcommand if it is one's, with its arity checked. Redis's errors
/// otherwise.
pub fn resolve(argv: &[&[u8]]) -> Result<&'static Spec> {
    let spec = lookup(argv[0]).ok_or_else(|| unknown_command(argv))?;
    let spec = match argv.get(1) {
        Some(name) if !spec.subcommands.is_empty() => {
            let is_it = |sub: &&Spec| {
                sub.name.split_once('|').is_some_and(|(_, sub)| name.eq_ignore_ascii_case(sub.as_bytes()))
            };
            spec.subcommands.iter().find(is_it).ok_or_else(|| unknown_subcommand(spec, name))?
        }
        _ => spec,
    };
    if !spec.arity_fits(argv.len()) {
        return Err(Error::Arity(spec.name.to_ascii_lowercase().into()));
    }
    Ok(spec)
}

/// How much of an unknown command Redis repeats.
const QUOTED_BYTES_MAX: usize = 128;

fn unknown_command(argv: &[&[u8]]) -> Error {
    let quoted =
        |bytes: &[u8], max: usize| String::from_utf8_lossy(&bytes[..bytes.len().min(max)]).into_owned();
    let mut arguments = String::new();
    for argument in &argv[1..] {
        if arguments.len() >= QUOTED_BYTES_MAX {
            break;
        }
        arguments += &format!("'{}' ", quoted(argument, QUOTED_BYTES_MAX - arguments.len()));
    }
    Error::err(format!(
        "unknown command '{}', with args beginning with: {arguments}",
        quoted(argv[0], QUOTED_BYTES_MAX)
    ))
}

fn unknown_subcommand(container: &Spec, name: &[u8]) -> Error {
    let name = String::from_utf8_lossy(&name[..name.len().min(QUOTED_BYTES_MAX)]).into_owned();
    Error::err(format!("unknown subcommand '{name}'. Try {} HELP.", container.name))
}

#[cfg(test)]
mod tests {
    use kvorum_raft::Need;

    use super::{Run, all, resolve};

    #[test]
    fn what_a_call_needs_is_what_the_command_needs_that_it_runs() {
        let need = |line: &str| {
            let argv: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            resolve(&argv).unwrap().need(&argv)
        };
        for (line, expected) in [
            ("SET k v", Need::Growth),
            ("LOCK.ACQUIRE l o PX 10", Need::Growth),
            ("DEL k", Need::Entry),
            ("EXPIRE k 1", Need::Entry),
            ("LOCK.RELEASE l o 1", Need::Entry),
            ("FLUSHALL", Need::Nothing),
            ("ONCE 1 SET k v", Need::Growth),
            ("ONCE 1 DEL k", Need::Entry),
            ("ONCE 1 nothing", Need::Entry),
            ("FENCE l 1 DEL k", Need::Entry),
            ("ONCE 1 FENCE l 1 SET k v", Need::Growth),
            ("ONCE 1 FENCE l 1 FLUSHDB", Need::Nothing),
            ("ONCE 1 ONCE 1 ONCE 1 DEL k", Need::Growth),
        ] {
            assert_eq!(need(line), expected, "{line}");
        }
    }

    #[test]
    fn what_frees_space_is_not_refused_for_want_of_it() {
        let shrinks = [
            "DEL",
            "UNLINK",
            "HDEL",
            "SREM",
            "ZREM",
            "LPOP",
            "RPOP",
            "LREM",
            "LTRIM",
            "SPOP",
            "EXPIRE",
            "PEXPIRE",
            "EXPIREAT",
            "PEXPIREAT",
            "GETDEL",
            "ZREMRANGEBYSCORE",
            "LOCK.RELEASE",
            "LEASE.REVOKE",
            "SEM.RELEASE",
            "ELECT.RESIGN",
            "LOCK.BREAK",
            "SESSION.RENEW",
            "LEASE.KEEPALIVE",
            "LOCK.RENEW",
        ];
        for name in shrinks {
            let spec = all().find(|spec| spec.name == name).unwrap();
            assert!(matches!(spec.run, Run::Write(_)) && spec.need(&[]) == Need::Entry, "{name}");
        }
    }
}
