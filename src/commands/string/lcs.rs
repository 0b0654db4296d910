//! LCS: the longest common subsequence of two strings, by the textbook algorithm. Its table is limited, since
//! applying the log waits for it.

use crate::commands::{
    Spec,
    keys::{self, Access},
    string::{GROUP, READ},
};
use crate::{
    args::Args,
    error::{Error, Result},
    resp::Reply,
    store::{View, level},
};

/// The largest table. Redis allows 512 MiB; here the work is done under the lock that the log waits for, and
/// this size takes about ten milliseconds.
const TABLE_BYTES_MAX: usize = 16 << 20;
/// The same at the first level.
const FIRST_RULE_TABLE_BYTES_MAX: usize = 64 << 20;

/// The rows of this family.
pub const ROWS: &[Spec] = &[Spec::read("LCS", -3, &[keys::range(1, 1, 1, Access::Ro, "access")], lcs)
    .about(READ, GROUP, "7.0.0", "Find longest common substring")
    .syntax("key1:key key2:key [LEN] [IDX] [MINMATCHLEN len:integer] [WITHMATCHLEN]")
    .complexity("O(N*M) where N and M are the lengths of s1 and s2, respectively")];

#[derive(Default)]
struct Options {
    len: bool,
    idx: bool,
    with_match_len: bool,
    match_len_min: usize,
}

impl Options {
    fn parse(args: &Args<'_>) -> Result<Options> {
        let mut options = Options::default();
        let mut index = 3;
        while index < args.len() {
            match () {
                _ if args.is(index, "IDX") => options.idx = true,
                _ if args.is(index, "LEN") => options.len = true,
                _ if args.is(index, "WITHMATCHLEN") => options.with_match_len = true,
                _ if args.is(index, "MINMATCHLEN") && index + 1 < args.len() => {
                    index += 1;
                    options.match_len_min = args.integer(index)?.max(0) as usize;
                }
                _ => return Err(Error::Syntax),
            }
            index += 1;
        }
        if options.len && options.idx {
            return Err(Error::err("If you want both the length and indexes, please just use IDX."));
        }
        Ok(options)
    }
}

/// A common run: its offsets in the first and in the second string, and its length.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    a: usize,
    b: usize,
    len: usize,
}

fn lcs(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let string = |index| match view.string(args.at(index)) {
        Ok(value) => Ok(value.unwrap_or_default()),
        Err(_) => Err(Error::err("The specified keys must contain string values")),
    };
    let (a, b) = (string(1)?, string(2)?);
    let options = Options::parse(args)?;
    let cells = (a.len() + 1).saturating_mul(b.len() + 1);
    let is_bounded = view.level >= level::BOUNDED;
    let bytes_max = if is_bounded { TABLE_BYTES_MAX } else { FIRST_RULE_TABLE_BYTES_MAX };
    if cells.saturating_mul(size_of::<u32>()) > bytes_max {
        return Err(Error::err("Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len"));
    }
    let runs = common_runs(a, b);
    let len: usize = runs.iter().map(|run| run.len).sum();
    if options.idx {
        reply_runs(&runs, len, &options, reply);
    } else if options.len {
        reply.size(len);
    } else {
        let text: Vec<u8> = runs.iter().rev().flat_map(|run| &a[run.a..run.a + run.len]).copied().collect();
        reply.bulk(&text);
    }
    Ok(())
}

fn reply_runs(runs: &[Run], len: usize, options: &Options, reply: &mut Reply) {
    let shown = || runs.iter().filter(|run| run.len >= options.match_len_min);
    reply.map(2);
    reply.bulk(b"matches");
    reply.array(shown().count());
    for run in shown() {
        reply.array(if options.with_match_len { 3 } else { 2 });
        for start in [run.a, run.b] {
            reply.array(2);
            reply.size(start);
            reply.size(start + run.len - 1);
        }
        if options.with_match_len {
            reply.size(run.len);
        }
    }
    reply.bulk(b"len");
    reply.size(len);
}

/// The runs of one longest common subsequence, from last to first; the same one that Redis chooses.
fn common_runs(a: &[u8], b: &[u8]) -> Vec<Run> {
    let width = b.len() + 1;
    let mut table = vec![0u32; (a.len() + 1) * width];
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            table[i * width + j] = if a[i - 1] == b[j - 1] {
                table[(i - 1) * width + j - 1] + 1
            } else {
                table[(i - 1) * width + j].max(table[i * width + j - 1])
            };
        }
    }
    let mut runs: Vec<Run> = Vec::new();
    let (mut i, mut j) = (a.len(), b.len());
    while i > 0 && j > 0 {
        if a[i - 1] == b[j - 1] {
            (i, j) = (i - 1, j - 1);
            match runs.last_mut() {
                Some(run) if run.a == i + 1 && run.b == j + 1 => *run = Run { a: i, b: j, len: run.len + 1 },
                _ => runs.push(Run { a: i, b: j, len: 1 }),
            }
        } else if table[(i - 1) * width + j] > table[i * width + j - 1] {
            i -= 1;
        } else {
            j -= 1;
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::{Run, common_runs};

    #[test]
    fn runs_come_from_the_last_to_the_first() {
        let runs = common_runs(b"ohmytext", b"mynewtext");
        assert_eq!(runs, [Run { a: 4, b: 5, len: 4 }, Run { a: 2, b: 0, len: 2 }]);
        assert_eq!(common_runs(b"", b"abc"), []);
    }
}
