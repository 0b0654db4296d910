//! The commands on the state. A command is one row and one function, in one family file; its kind is the type
//! of the function. Dispatch, COMMAND INFO and DOCS, key extraction and MULTI are derived from the row.

pub mod acl;
pub mod bitmap;
pub mod blocking;
pub mod call;
pub mod coordination;
pub mod generic;
pub mod geo;
pub mod hash;
pub mod help;
pub mod hyperloglog;
pub mod keys;
pub mod list;
pub mod set;
pub mod sorted_set;
pub mod spec;
pub mod string;
pub mod syntax;
pub mod table;

pub use blocking::{Patience, Timeout};
pub use call::{Call, LONG_CALLS};
pub use spec::{InMulti, Origin, ReadFn, Run, Spec, WriteFn};

/// The rows of all families.
pub const FAMILIES: &[&[Spec]] = &[
    string::ROWS,
    string::numbers::ROWS,
    string::ranges::ROWS,
    string::rate_limit::ROWS,
    string::lcs::ROWS,
    bitmap::ROWS,
    bitmap::fields::ROWS,
    hyperloglog::ROWS,
    geo::ROWS,
    geo::search::ROWS,
    list::ROWS,
    list::inside::ROWS,
    list::blocking::ROWS,
    hash::ROWS,
    hash::walk::ROWS,
    generic::ROWS,
    generic::expire::ROWS,
    generic::scan::ROWS,
    generic::sort::ROWS,
    set::ROWS,
    set::algebra::ROWS,
    sorted_set::ROWS,
    sorted_set::range::ROWS,
    sorted_set::blocking::ROWS,
    sorted_set::pop_first::ROWS,
    sorted_set::algebra::ROWS,
    coordination::lock::ROWS,
    coordination::semaphore::ROWS,
    coordination::election::ROWS,
    coordination::lease::ROWS,
    coordination::fence::ROWS,
    coordination::once::ROWS,
];

#[cfg(test)]
mod tests {
    use kvorum_raft::Need;

    use super::{syntax, table::all};

    /// Redis describes them with an argument more than it asks for.
    const LOOSE: &[&str] = &["PFMERGE", "GEOHASH", "GEOPOS"];

    #[test]
    fn the_arguments_of_a_row_agree_with_its_arity() {
        let mut faults = Vec::new();
        for spec in all().flat_map(|spec| std::iter::once(spec).chain(spec.subcommands)) {
            let arguments = syntax::parse(spec.syntax).unwrap_or_else(|rest| panic!("{}: {rest}", spec.name));
            let words = 1 + usize::from(spec.name.contains('|')) + syntax::least(&arguments);
            let is_open = arguments.iter().any(|argument| argument.is_optional || argument.is_multiple);
            let arity = if is_open { -(words as i32) } else { words as i32 };
            if spec.subcommands.is_empty() && arity != spec.arity && !LOOSE.contains(&spec.name) {
                faults.push(format!("{}: {} is not {}", spec.name, spec.syntax, spec.arity));
            }
        }
        assert!(faults.is_empty(), "{faults:#?}");
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
            assert!(spec.writes() && spec.own_need() == Need::Entry, "{name}");
        }
    }
}
