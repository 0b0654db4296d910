//! The command table as sessions use it: subcommands resolved, each row with what runs it and its counters.

use std::{collections::HashMap, sync::LazyLock};

use super::{
    Session, client, command, config, connection, consistency, feed, info, observe, server, stats::Counters,
    transaction,
};
use crate::{
    args::Args,
    commands::{self, ReadFn, Spec},
    error::Result,
    resp::Reply,
};

/// Runs a command of the session. On an error it has written no reply.
pub type SessionFn = fn(&mut Session, &Args<'_>, &mut Reply) -> Result<()>;

/// What runs a command, and what must be done before it.
#[derive(Clone, Copy)]
pub enum Run {
    /// On a view, after the barrier.
    Read(ReadFn),
    /// In the log.
    Write,
    /// At once, also while what came before it in the pipeline still waits: its reply does not depend on that.
    Now(SessionFn),
    /// When all that came before it is done.
    Alone(SessionFn),
    /// When all that came before it is done, and then it waits for something.
    Wait(Waiting),
    /// EXEC: makes one request of the queue.
    Exec,
}

/// Commands that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Waiting {
    Watch,
    Debug,
    Wait,
    WaitAof,
    LeaseBind,
    ClientSession,
    Observe,
    Consistency,
}

/// A row with all that a session needs.
pub struct Row {
    /// Its place in the table.
    pub index: usize,
    /// The row of the family.
    pub spec: &'static Spec,
    /// Lower case; a subcommand's is `config|get`.
    pub name: String,
    /// What runs it. None for a container, which needs a subcommand.
    pub run: Option<Run>,
    /// Executed, not queued, while a transaction is open.
    pub in_transaction: bool,
    /// It may wait in the log for a grant.
    pub may_wait: bool,
    /// Allowed while the client listens for messages in RESP2.
    pub while_listening: bool,
    /// Counted on this node.
    pub counters: Counters,
    /// Rows of its subcommands.
    pub subcommands: Vec<usize>,
}

struct Table {
    rows: Vec<Row>,
    /// By upper-case name, of commands only.
    by_name: HashMap<&'static [u8], usize>,
    /// What unknown commands are counted on.
    by_spec_name: HashMap<&'static str, usize>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut rows: Vec<Row> = Vec::new();
    let mut by_name = HashMap::new();
    for spec in commands::all() {
        let index = rows.len();
        rows.push(row_of(index, spec));
        by_name.insert(spec.name.as_bytes(), index);
        for subcommand in spec.subcommands {
            let sub_index = rows.len();
            rows.push(row_of(sub_index, subcommand));
            rows[index].subcommands.push(sub_index);
        }
    }
    let by_spec_name = rows.iter().map(|row| (row.spec.name, row.index)).collect();
    Table { rows, by_name, by_spec_name }
});

fn row_of(index: usize, spec: &'static Spec) -> Row {
    let run = match spec.run {
        commands::Run::Read(read) => Some(Run::Read(read)),
        commands::Run::Write(_) => Some(Run::Write),
        commands::Run::Session => function(spec.name),
    };
    Row {
        index,
        spec,
        name: spec.name.to_ascii_lowercase(),
        run,
        in_transaction: matches!(spec.name, "EXEC" | "DISCARD" | "MULTI" | "WATCH" | "QUIT" | "RESET"),
        may_wait: matches!(spec.run, commands::Run::Write(_)) && spec.flags.contains(&"blocking"),
        while_listening: matches!(
            spec.name,
            "FEED.SUBSCRIBE"
                | "FEED.UNSUBSCRIBE"
                | "ELECT.OBSERVE"
                | "ELECT.UNOBSERVE"
                | "PING"
                | "QUIT"
                | "RESET"
        ),
        counters: Counters::default(),
        subcommands: Vec::new(),
    }
}

/// All rows, subcommands after their containers.
pub fn rows() -> &'static [Row] {
    &TABLE.rows
}

/// The row at `index`.
pub fn row(index: usize) -> Option<&'static Row> {
    TABLE.rows.get(index)
}

/// The row of a command, whatever the case of its name; a container for its subcommands.
pub fn command(name: &[u8]) -> Option<&'static Row> {
    let spec = commands::lookup(name)?;
    TABLE.by_name.get(spec.name.as_bytes()).map(|&index| &TABLE.rows[index])
}

/// A container's subcommand, whatever the case of its name.
pub fn subcommand(container: &Row, name: &[u8]) -> Option<&'static Row> {
    let prefix = container.spec.name.len() + 1;
    container
        .subcommands
        .iter()
        .map(|&index| &TABLE.rows[index])
        .find(|row| row.spec.name.as_bytes()[prefix..].eq_ignore_ascii_case(name))
}

/// A row by its spec's full name, `CONFIG|GET`.
pub fn by_full_name(name: &str) -> Option<&'static Row> {
    TABLE.by_spec_name.get(name.to_ascii_uppercase().as_str()).map(|&index| &TABLE.rows[index])
}

/// The function of a session row. None for containers.
fn function(name: &str) -> Option<Run> {
    use Run::{Alone, Exec, Now, Wait};
    Some(match name {
        "AUTH" => Now(connection::auth),
        "CLIENT|CONSISTENCY" => Alone(consistency::client),
        "CLIENT|GETNAME" => Now(client::getname),
        "CLIENT|GETREDIR" => Now(client::getredir),
        "CLIENT|HELP" => Now(client::help),
        "CLIENT|ID" => Now(client::id),
        "CLIENT|INFO" => Alone(client::info),
        "CLIENT|KILL" => Alone(client::kill),
        "CLIENT|LIST" => Alone(client::list),
        "CLIENT|NO-EVICT" => Now(client::no_evict),
        "CLIENT|NO-TOUCH" => Now(client::no_touch),
        "CLIENT|REPLY" => Alone(client::reply),
        "CLIENT|SESSION" => Wait(Waiting::ClientSession),
        "CLIENT|SETINFO" => Now(client::setinfo),
        "CLIENT|SETNAME" => Now(client::setname),
        "CLIENT|TRACKINGINFO" => Now(client::trackinginfo),
        "CLIENT|UNBLOCK" => Now(client::unblock),
        "COMMAND" => Now(command::command),
        "COMMAND|COUNT" => Now(command::count),
        "COMMAND|DOCS" => Now(command::docs),
        "COMMAND|GETKEYS" => Now(command::getkeys),
        "COMMAND|GETKEYSANDFLAGS" => Now(command::getkeysandflags),
        "COMMAND|HELP" => Now(command::help),
        "COMMAND|INFO" => Now(command::info),
        "COMMAND|LIST" => Now(command::list),
        "CONFIG|GET" => Now(config::get),
        "CONFIG|HELP" => Now(config::help),
        "CONFIG|RESETSTAT" => Alone(config::resetstat),
        "CONFIG|REWRITE" => Now(config::rewrite),
        "CONFIG|SET" => Alone(config::set),
        "CONSISTENCY" => Wait(Waiting::Consistency),
        "DEBUG" => Wait(Waiting::Debug),
        "DISCARD" => Now(transaction::discard),
        "ECHO" => Now(connection::echo),
        "ELECT.OBSERVE" => Wait(Waiting::Observe),
        "ELECT.UNOBSERVE" => Alone(observe::unobserve),
        "EXEC" => Exec,
        "FEED.SUBSCRIBE" => Alone(feed::subscribe),
        "FEED.UNSUBSCRIBE" => Alone(feed::unsubscribe),
        "HELLO" => Alone(connection::hello),
        "INFO" => Alone(info::info),
        "LEASE.BIND" => Wait(Waiting::LeaseBind),
        "MODULE|LIST" => Now(server::module_list),
        "MULTI" => Now(transaction::multi),
        "PING" => Now(connection::ping),
        "QUIT" => Alone(connection::quit),
        "READONLY" => Alone(connection::readonly),
        "READWRITE" => Alone(connection::readwrite),
        "RESET" => Alone(connection::reset),
        "ROLE" => Alone(server::role),
        "SELECT" => Now(connection::select),
        "TIME" => Alone(server::time),
        "UNWATCH" => Now(transaction::unwatch),
        "WAIT" => Wait(Waiting::Wait),
        "WAITAOF" => Wait(Waiting::WaitAof),
        "WATCH" => Wait(Waiting::Watch),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_run_by_something() {
        for row in rows() {
            assert!(row.run.is_some() || !row.subcommands.is_empty(), "{} has no function", row.name);
        }
    }

    #[test]
    fn names_are_found_in_any_case() {
        let client = command(b"cLient").unwrap();
        assert_eq!(subcommand(client, b"No-Evict").unwrap().name, "client|no-evict");
        assert!(command(b"nothing").is_none());
        assert!(command(&[b'x'; 1000]).is_none());
    }
}
