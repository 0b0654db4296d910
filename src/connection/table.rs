//! The command table as connections use it: the commands on the state and the verbs of the connection, with
//! subcommands resolved.

use std::sync::LazyLock;

use super::{
    verb::{How, Verb, VerbFn, WaitFn},
    verbs::VERBS,
};
use crate::commands::{self, ReadFn, Spec, table::Names};

/// How a command runs, and what must be done before it.
#[derive(Clone, Copy)]
pub enum Dispatch {
    /// On a view, after the read barrier.
    Read(ReadFn),
    /// Through the log.
    Write,
    /// See `How::Now`.
    Now(VerbFn),
    /// See `How::Alone`.
    Alone(VerbFn),
    /// See `How::Wait`.
    Wait(WaitFn, VerbFn),
    /// See `How::Exec`.
    Exec,
}

/// A row with everything that a connection needs.
pub struct Row {
    /// Its index in the table.
    pub index: usize,
    /// What is said about it.
    pub spec: &'static Spec,
    /// Lower case; for a subcommand, for example, `config|get`.
    pub name: String,
    /// What runs it. None for a container, which needs a subcommand.
    pub run: Option<Dispatch>,
    /// The rows of its subcommands.
    pub subcommands: Vec<usize>,
}

struct Table {
    rows: Vec<Row>,
    /// Top-level commands only.
    by_name: Names<usize>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut rows: Vec<Row> = Vec::new();
    let (mut names, mut verbs) = (Vec::new(), Vec::new());
    for spec in commands::table::all() {
        names.push((spec.name, rows.len()));
        let sub_rows = spec.subcommands.iter().map(|spec| (spec, run_of(spec)));
        add(&mut rows, (spec, run_of(spec)), sub_rows.collect());
    }
    for verb in VERBS.iter().copied().flatten() {
        names.push((verb.spec.name, rows.len()));
        let spec = whole(verb);
        verbs.push(spec);
        let runs = verb.subcommands.iter().map(|verb| run_of_verb(verb.how));
        add(&mut rows, (spec, run_of_verb(verb.how)), spec.subcommands.iter().zip(runs).collect());
    }
    commands::table::know_verbs(verbs);
    Table { rows, by_name: Names::new(names.into_iter()) }
});

/// A verb's row with the rows of its subcommands. The table lives as long as the process.
fn whole(verb: &'static Verb) -> &'static Spec {
    let subcommands: Vec<Spec> = verb.subcommands.iter().map(|verb| verb.spec).collect();
    Box::leak(Box::new(Spec { subcommands: subcommands.leak(), ..verb.spec }))
}

type Found = (&'static Spec, Option<Dispatch>);

fn add(rows: &mut Vec<Row>, (spec, run): Found, subcommands: Vec<Found>) {
    let container = rows.len();
    let mut push = |(spec, run): Found| {
        let (index, name) = (rows.len(), spec.name.to_ascii_lowercase());
        rows.push(Row { index, spec, name, run, subcommands: Vec::new() });
        index
    };
    push((spec, run));
    let subcommands = subcommands.into_iter().map(push).collect();
    rows[container].subcommands = subcommands;
}

fn run_of(spec: &Spec) -> Option<Dispatch> {
    match spec.run {
        commands::Run::Read(read) => Some(Dispatch::Read(read)),
        commands::Run::Write(_) => Some(Dispatch::Write),
        commands::Run::Connection => None,
    }
}

fn run_of_verb(how: How) -> Option<Dispatch> {
    match how {
        How::Container => None,
        How::Now(function) => Some(Dispatch::Now(function)),
        How::Alone(function) => Some(Dispatch::Alone(function)),
        How::Wait(function, in_transaction) => Some(Dispatch::Wait(function, in_transaction)),
        How::Exec => Some(Dispatch::Exec),
    }
}

/// Makes the table, before the first entry is applied: see [`commands::table::know_verbs`].
pub fn prepare() {
    LazyLock::force(&TABLE);
}

/// All rows, subcommands after their containers.
pub fn rows() -> &'static [Row] {
    &TABLE.rows
}

/// The row at `index`.
pub fn row(index: usize) -> Option<&'static Row> {
    TABLE.rows.get(index)
}

/// The row of a command by name, ignoring case; for subcommands, that of the container.
pub fn command(name: &[u8]) -> Option<&'static Row> {
    TABLE.by_name.get(name).map(|index| &TABLE.rows[index])
}

/// A container's subcommand by name, ignoring case.
pub fn subcommand(container: &Row, name: &[u8]) -> Option<&'static Row> {
    let mut rows = container.subcommands.iter().map(|&index| &TABLE.rows[index]);
    rows.find(|row| row.spec.own_name().as_bytes().eq_ignore_ascii_case(name))
}

/// A row by its full name in any case, `CONFIG|GET`.
pub fn by_full_name(name: &[u8]) -> Option<&'static Row> {
    match name.iter().position(|byte| *byte == b'|') {
        Some(bar) => subcommand(command(&name[..bar])?, &name[bar + 1..]),
        None => command(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::syntax;

    #[test]
    fn every_row_is_run_by_something() {
        for row in rows() {
            assert!(row.run.is_some() || !row.subcommands.is_empty(), "{} has no function", row.name);
            let arguments = syntax::parse(row.spec.syntax);
            assert!(arguments.is_ok(), "{}: {arguments:?}", row.name);
        }
    }

    #[test]
    fn names_are_found_in_any_case() {
        let client = command(b"cLient").unwrap();
        assert_eq!(subcommand(client, b"No-Evict").unwrap().name, "client|no-evict");
        assert_eq!(by_full_name(b"Client|no-evict").unwrap().name, "client|no-evict");
        assert!(command(b"nothing").is_none());
        assert!(command(&[b'x'; 1000]).is_none());
    }
}
