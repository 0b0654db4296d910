//! COMMAND: the table as clients and tools ask for it, in the shapes of Redis 7. All of it follows from the
//! rows.

use super::{
    Session,
    table::{self, Row, Run},
};
use crate::{
    args::Args,
    commands::{Keys, Spec},
    error::{Error, Result},
    resp::Reply,
};

/// The rows that are commands, not subcommands.
fn commands() -> impl Iterator<Item = &'static Row> {
    table::rows().iter().filter(|row| !row.name.contains('|'))
}

/// A row by its name, `get` or `config|get`.
fn named(name: &[u8]) -> Option<&'static Row> {
    std::str::from_utf8(name).ok().and_then(table::by_full_name)
}

pub(super) fn command(_: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.array(commands().count());
    commands().for_each(|row| describe(row, reply));
    Ok(())
}

pub(super) fn count(_: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.size(commands().count());
    Ok(())
}

pub(super) fn info(session: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    if args.len() == 2 {
        return command(session, args, reply);
    }
    reply.array(args.len() - 2);
    for name in args.from(2) {
        match named(name) {
            Some(row) => describe(row, reply),
            None => reply.null(),
        }
    }
    Ok(())
}

pub(super) fn list(_: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let shown: Vec<&Row> = if args.len() == 2 {
        table::rows().iter().collect()
    } else if args.len() == 5 && args.is(2, "FILTERBY") {
        let wanted = args.at(4);
        if args.is(3, "PATTERN") {
            table::rows().iter().filter(|row| super::fits(wanted, &row.name)).collect()
        } else if args.is(3, "ACLCAT") {
            let wanted = String::from_utf8_lossy(wanted).to_ascii_lowercase();
            table::rows().iter().filter(|row| categories(row).contains(&wanted.as_str())).collect()
        } else if args.is(3, "MODULE") {
            Vec::new()
        } else {
            return Err(Error::Syntax);
        }
    } else {
        return Err(Error::Syntax);
    };
    reply.array(shown.len());
    shown.iter().for_each(|row| reply.bulk(row.name.as_bytes()));
    Ok(())
}

pub(super) fn docs(_: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let shown: Vec<&Row> = if args.len() == 2 {
        commands().collect()
    } else {
        args.from(2).iter().filter_map(|name| named(name)).collect()
    };
    reply.map(shown.len());
    for row in shown {
        reply.bulk(row.name.as_bytes());
        document(row, reply);
    }
    Ok(())
}

fn document(row: &Row, reply: &mut Reply) {
    let spec = row.spec;
    reply.map(if row.subcommands.is_empty() { 3 } else { 4 });
    for (key, value) in [("summary", spec.summary), ("since", spec.since), ("group", spec.group)] {
        reply.bulk(key.as_bytes());
        reply.bulk(value.as_bytes());
    }
    if !row.subcommands.is_empty() {
        reply.bulk(b"subcommands");
        reply.map(row.subcommands.len());
        for subcommand in subcommands(row) {
            reply.bulk(subcommand.name.as_bytes());
            document(subcommand, reply);
        }
    }
}

fn subcommands(row: &Row) -> impl Iterator<Item = &'static Row> {
    row.subcommands.iter().filter_map(|&index| table::row(index))
}

/// The ten elements of COMMAND INFO.
fn describe(row: &Row, reply: &mut Reply) {
    let spec = row.spec;
    reply.array(10);
    reply.bulk(row.name.as_bytes());
    reply.integer(i64::from(spec.arity));
    reply.set(spec.flags.len());
    spec.flags.iter().for_each(|flag| reply.simple(flag));
    let (first, last, step) = match spec.keys {
        // Keys that are counted have no fixed place.
        Keys::None | Keys::Counted { .. } => (0, 0, 0),
        Keys::Range { first, last, step } => (first as i64, last as i64, step as i64),
    };
    for position in [first, last, step] {
        reply.integer(position);
    }
    let categories = categories(row);
    reply.set(categories.len());
    categories.iter().for_each(|category| reply.simple(&format!("@{category}")));
    // Tips: none are kept.
    reply.set(0);
    key_specs(row, reply);
    if row.subcommands.is_empty() {
        reply.set(0);
    } else {
        reply.array(row.subcommands.len());
        subcommands(row).for_each(|subcommand| describe(subcommand, reply));
    }
}

/// ACL categories without their `@`, in Redis's order.
fn categories(row: &Row) -> Vec<&'static str> {
    let spec = row.spec;
    let has = |flag: &str| spec.flags.contains(&flag);
    let (reads, writes) = (matches!(row.run, Some(Run::Read(_))), matches!(row.run, Some(Run::Write)));
    let is_container = row.run.is_none();
    let group = |group: &str| spec.group == group;
    let of_keyspace =
        (group("generic") && (reads || writes)) || matches!(spec.name, "FLUSHALL" | "FLUSHDB" | "DBSIZE");
    let dangerous = has("admin") || is_dangerous(spec);
    [
        ("keyspace", of_keyspace),
        ("read", reads && !is_container && spec.keys != Keys::None || reads && of_keyspace),
        ("write", writes),
        ("set", group("set")),
        ("sortedset", group("sorted-set")),
        ("list", group("list")),
        ("hash", group("hash")),
        ("string", group("string")),
        ("bitmap", group("bitmap")),
        ("hyperloglog", group("hyperloglog")),
        ("geo", group("geo")),
        ("stream", group("stream")),
        ("pubsub", group("pubsub")),
        ("admin", has("admin") || spec.name == "ROLE"),
        ("fast", has("fast")),
        ("slow", !has("fast")),
        ("blocking", has("blocking")),
        ("dangerous", dangerous),
        ("connection", group("connection") || matches!(spec.name, "WAIT" | "WAITAOF" | "COMMAND")),
        ("transaction", group("transactions")),
        ("scripting", group("scripting")),
    ]
    .into_iter()
    .filter_map(|(name, applies)| applies.then_some(name))
    .collect()
}

fn is_dangerous(spec: &Spec) -> bool {
    matches!(spec.name, "KEYS" | "FLUSHALL" | "FLUSHDB" | "SORT" | "INFO" | "ROLE" | "RESTORE" | "SWAPDB")
}

/// What a command does with its keys: what follows from its kind, and Redis's finer words where tools look.
fn key_flags(row: &Row) -> &'static [&'static str] {
    match row.spec.name {
        "DEL" | "UNLINK" => &["RM", "delete"],
        "MSET" | "MSETNX" | "PSETEX" | "SETEX" => &["OW", "update"],
        "SETNX" => &["OW", "insert"],
        "WATCH" => &["RO"],
        _ if matches!(row.run, Some(Run::Write)) => &["RW", "access", "update"],
        _ => &["RO", "access"],
    }
}

fn key_specs(row: &Row, reply: &mut Reply) {
    let Keys::Range { first, last, step } = row.spec.keys else { return reply.set(0) };
    reply.set(1);
    reply.map(3);
    reply.bulk(b"flags");
    let flags = key_flags(row);
    reply.set(flags.len());
    flags.iter().for_each(|flag| reply.simple(flag));
    reply.bulk(b"begin_search");
    reply.map(2);
    reply.bulk(b"type");
    reply.bulk(b"index");
    reply.bulk(b"spec");
    reply.map(1);
    reply.bulk(b"index");
    reply.size(first);
    reply.bulk(b"find_keys");
    reply.map(2);
    reply.bulk(b"type");
    reply.bulk(b"range");
    reply.bulk(b"spec");
    reply.map(3);
    reply.bulk(b"lastkey");
    // Counted from the first key when it is not counted from the end.
    reply.integer(if last < 0 { last as i64 } else { last as i64 - first as i64 });
    reply.bulk(b"keystep");
    reply.size(step);
    reply.bulk(b"limit");
    reply.integer(0);
}

/// The row and the keys of the command in `args` from the third argument on.
fn keys<'a>(args: &Args<'a>) -> Result<(&'static Row, Vec<&'a [u8]>)> {
    let call = Args::new(args.from(2));
    let mut row = table::command(call.at(0)).ok_or_else(|| Error::err("Invalid command specified"))?;
    if let Some(subcommand) = call.get(1).and_then(|name| table::subcommand(row, name)) {
        row = subcommand;
    }
    if row.spec.keys == Keys::None {
        return Err(Error::err("The command has no key arguments"));
    }
    if !row.spec.arity_fits(call.len()) {
        return Err(Error::err("Invalid number of arguments specified for command"));
    }
    let keys = row.spec.keys_of(&call);
    if keys.is_empty() {
        return Err(Error::err("Invalid arguments specified for command"));
    }
    Ok((row, keys))
}

pub(super) fn getkeys(_: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (_, keys) = keys(args)?;
    reply.array(keys.len());
    keys.iter().for_each(|key| reply.bulk(key));
    Ok(())
}

pub(super) fn getkeysandflags(_: &mut Session, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (row, keys) = keys(args)?;
    reply.array(keys.len());
    for key in keys {
        reply.array(2);
        reply.bulk(key);
        let flags = key_flags(row);
        reply.set(flags.len());
        flags.iter().for_each(|flag| reply.simple(flag));
    }
    Ok(())
}

pub(super) fn help(_: &mut Session, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    super::help(
        reply,
        "COMMAND",
        &[
            "(no subcommand)",
            "    Return details about all Redis commands.",
            "COUNT",
            "    Return the total number of commands in this Redis server.",
            "LIST",
            "    Return a list of all commands in this Redis server.",
            "INFO [<command-name> ...]",
            "    Return details about multiple Redis commands.",
            "    If no command names are given, documentation details for all",
            "    commands are returned.",
            "DOCS [<command-name> ...]",
            "    Return documentation details about multiple Redis commands.",
            "    If no command names are given, documentation details for all",
            "    commands are returned.",
            "GETKEYS <full-command>",
            "    Return the keys from a full Redis command.",
            "GETKEYSANDFLAGS <full-command>",
            "    Return the keys and the access flags from a full Redis command.",
        ],
    );
    Ok(())
}
