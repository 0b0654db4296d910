//! Where a command's keys are among its arguments, and what it does with them: Redis's key specifications.

use crate::args::{Args, parse_integer};

/// What a command does with a key as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads it.
    Ro,
    /// Reads it and writes it.
    Rw,
    /// Overwrites it, whatever it was.
    Ow,
    /// Removes it.
    Rm,
}

impl Access {
    /// As COMMAND INFO names it.
    pub fn name(self) -> &'static str {
        match self {
            Access::Ro => "RO",
            Access::Rw => "RW",
            Access::Ow => "OW",
            Access::Rm => "RM",
        }
    }
}

/// Where the first key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// At this argument.
    Index(usize),
    /// Behind this word, which is looked for from an argument on; from the end if that is negative.
    Keyword(&'static str, isize),
    /// It cannot be said: see [`KeySpec::keys`] of the command that this one runs.
    Unknown,
}

/// Which arguments are keys from there on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Find {
    /// Up to `last`, every `step`.
    Range {
        /// Relative to the first key, or to the end if it is negative.
        last: isize,
        /// The distance between keys.
        step: usize,
        /// If it is above 1, only this fraction of the arguments up to `last` are keys; 0 and 1 mean all.
        limit: usize,
    },
    /// The first argument is the number of keys, which follow it.
    Count,
    /// It cannot be said.
    Unknown,
}

/// Some of a command's keys.
#[derive(Clone, Copy, Debug)]
pub struct KeySpec {
    /// What the command does with the keys.
    pub access: Access,
    /// What it does with their content, as Redis names it, separated by spaces.
    pub uses: &'static str,
    /// Where the first one is.
    pub begin: Begin,
    /// Which ones follow.
    pub find: Find,
    /// What COMMAND INFO says about it besides.
    pub notes: &'static str,
    /// For a call of the command, what it does with the keys and their content, if that depends on the call.
    pub varies: Option<VariesFn>,
}

/// What a call does with keys and their content.
pub type VariesFn = fn(&Args<'_>) -> (Access, &'static str);

/// The one key at an argument.
pub const fn one(at: usize, access: Access, uses: &'static str) -> KeySpec {
    range(at, 0, 1, access, uses)
}

/// All arguments from one on.
pub const fn rest(from: usize, access: Access, uses: &'static str) -> KeySpec {
    range(from, -1, 1, access, uses)
}

/// Every `step`th argument from one on.
pub const fn range(at: usize, last: isize, step: usize, access: Access, uses: &'static str) -> KeySpec {
    KeySpec {
        access,
        uses,
        begin: Begin::Index(at),
        find: Find::Range { last, step, limit: 0 },
        notes: "",
        varies: None,
    }
}

/// A number of keys, and as many keys.
pub const fn counted(at: usize, access: Access, uses: &'static str) -> KeySpec {
    KeySpec { access, uses, begin: Begin::Index(at), find: Find::Count, notes: "", varies: None }
}

/// The keys of the command that this one runs.
pub const WRAPPED: KeySpec = KeySpec {
    access: Access::Rw,
    uses: "access update incomplete",
    begin: Begin::Unknown,
    find: Find::Unknown,
    notes: "the keys of the command that it runs",
    varies: None,
};

/// No keys.
pub const NONE: &[KeySpec] = &[];
/// The first argument: its content is read.
pub const READ: &[KeySpec] = &[one(1, Access::Ro, "access")];
/// The first argument: something is said about it.
pub const LOOK: &[KeySpec] = &[one(1, Access::Ro, "")];
/// The first argument: something is added.
pub const INSERT: &[KeySpec] = &[one(1, Access::Rw, "insert")];
/// The first argument: something is changed.
pub const UPDATE: &[KeySpec] = &[one(1, Access::Rw, "update")];
/// The first argument: something is removed.
pub const DELETE: &[KeySpec] = &[one(1, Access::Rw, "delete")];
/// The first argument: something is changed, depending on its content or telling it.
pub const CHANGE: &[KeySpec] = &[one(1, Access::Rw, "access update")];
/// The first argument: something is removed and told.
pub const TAKE: &[KeySpec] = &[one(1, Access::Rw, "access delete")];
/// All arguments but the last: something is removed from one of them and told.
pub const TAKE_FIRST: &[KeySpec] = &[range(1, -2, 1, Access::Rw, "access delete")];
/// The first argument: it is overwritten.
pub const SET: &[KeySpec] = &[one(1, Access::Ow, "update")];
/// All arguments: their content is read.
pub const READ_ALL: &[KeySpec] = &[rest(1, Access::Ro, "access")];
/// All arguments: something is said about them.
pub const LOOK_ALL: &[KeySpec] = &[rest(1, Access::Ro, "")];
/// All arguments: they are removed.
pub const REMOVE_ALL: &[KeySpec] = &[rest(1, Access::Rm, "delete")];
/// The content of the other arguments is read, and the first one is overwritten.
pub const STORE: &[KeySpec] = &[one(1, Access::Ow, "update"), rest(2, Access::Ro, "access")];
/// Something is moved from the first argument into the second one.
pub const MOVE: &[KeySpec] = &[one(1, Access::Rw, "access delete"), one(2, Access::Rw, "insert")];

impl KeySpec {
    /// With a note for COMMAND INFO.
    pub const fn noted(mut self, notes: &'static str) -> KeySpec {
        self.notes = notes;
        self
    }

    /// What it does depends on the call.
    pub const fn varying(mut self, varies: VariesFn) -> KeySpec {
        self.varies = Some(varies);
        self
    }

    /// As it holds for one call.
    pub fn of_call(&self, args: &Args<'_>) -> KeySpec {
        let (access, uses) = self.varies.map_or((self.access, self.uses), |varies| varies(args));
        KeySpec { access, uses, varies: None, ..*self }
    }

    /// Whether the command may change these keys.
    pub fn is_written(&self) -> bool {
        self.access != Access::Ro
    }

    /// Whether the command reads what the keys hold.
    pub fn is_read(&self) -> bool {
        self.uses.split(' ').any(|usage| usage == "access")
    }

    /// Whether how long the command takes depends on what the keys hold: it reads it, or removes it.
    pub fn is_looked_at(&self) -> bool {
        self.uses.split(' ').any(|usage| matches!(usage, "access" | "delete"))
    }

    /// The index of the first key.
    fn first(&self, args: &Args<'_>) -> Option<usize> {
        match self.begin {
            Begin::Index(at) => Some(at),
            Begin::Keyword(word, from) if from < 0 => {
                let from = args.len().checked_add_signed(from)?;
                (1..=from).rev().find(|at| args.is(*at, word)).map(|at| at + 1)
            }
            Begin::Keyword(word, from) => {
                (from as usize..args.len()).find(|at| args.is(*at, word)).map(|at| at + 1)
            }
            Begin::Unknown => None,
        }
    }

    /// The keys among the arguments of a call.
    pub fn keys<'a>(&self, args: &Args<'a>) -> Vec<&'a [u8]> {
        let Some(first) = self.first(args) else { return Vec::new() };
        match self.find {
            Find::Range { last, step, limit } => {
                let end =
                    if last < 0 { args.len().checked_add_signed(last) } else { Some(first + last as usize) };
                let Some(end) = end.filter(|end| *end >= first) else { return Vec::new() };
                let end = if limit > 1 { first + (end + 1 - first) / limit } else { end + 1 };
                (first..end).step_by(step).filter_map(|index| args.get(index)).collect()
            }
            Find::Count => {
                let count = args.get(first).and_then(parse_integer);
                let count = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
                args.from(first + 1).iter().take(count).copied().collect()
            }
            Find::Unknown => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Access, Begin, Find, KeySpec, STORE, counted, one, range, rest};
    use crate::args::Args;

    fn keys(spec: &KeySpec, line: &str) -> String {
        let argv: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let keys = spec.keys(&Args::new(&argv));
        keys.iter().map(|key| String::from_utf8_lossy(key)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn keys_are_found_where_the_specification_says() {
        let by_keyword = |word, from| KeySpec {
            begin: Begin::Keyword(word, from),
            find: Find::Range { last: -1, step: 1, limit: 2 },
            ..one(1, Access::Ro, "")
        };
        for (spec, line, expected) in [
            (one(1, Access::Ro, ""), "GET a b", "a"),
            (one(2, Access::Ro, ""), "OBJECT x a", "a"),
            (one(2, Access::Ro, ""), "OBJECT x", ""),
            (rest(1, Access::Ro, ""), "DEL a b c", "a b c"),
            (rest(2, Access::Ro, ""), "SINTERSTORE a", ""),
            (range(1, -1, 2, Access::Ro, ""), "MSET a 1 b 2", "a b"),
            (range(1, 1, 1, Access::Ro, ""), "LCS a b IDX", "a b"),
            (counted(1, Access::Ro, ""), "LMPOP 2 a b LEFT", "a b"),
            (counted(1, Access::Ro, ""), "LMPOP -1 a b LEFT", ""),
            (counted(1, Access::Ro, ""), "LMPOP 9 a b", "a b"),
            (by_keyword("STREAMS", 1), "XREAD COUNT 2 streams a b 1 2", "a b"),
            (by_keyword("KEYS", -2), "MIGRATE keys h KEYS a b c d", "a b"),
            (by_keyword("STREAMS", 1), "XREAD COUNT 2", ""),
        ] {
            assert_eq!(keys(&spec, line), expected, "{line}");
        }
    }

    #[test]
    fn what_is_stored_is_written_and_what_is_read_is_not() {
        assert_eq!(STORE.iter().map(KeySpec::is_written).collect::<Vec<_>>(), [true, false]);
    }
}
