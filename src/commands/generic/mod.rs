//! Keys of any type: existence, deletion, names, types; whole databases. Deadlines are in `expire.rs`, scans
//! in `scan.rs`, sorting in `sort.rs`.

pub mod expire;
pub mod scan;
pub mod sort;

use super::{
    Spec,
    coordination::fence,
    help,
    keys::{self, Access},
};
use crate::{
    args::Args,
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, DATABASES_MAX, Record, View},
};

const GROUP: &str = "generic";
const SERVER: &str = "server";
const READ: &[&str] = &["readonly"];
const READ_FAST: &[&str] = &["readonly", "fast"];
const WRITE: &[&str] = &["write"];
const WRITE_FAST: &[&str] = &["write", "fast"];

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write("DEL", -2, keys::REMOVE_ALL, del)
        .about(WRITE, GROUP, "1.0.0", "Delete a key")
        .syntax("key...")
        .complexity("O(N) where N is the number of keys that will be removed")
        .tips(&["request_policy:multi_shard", "response_policy:agg_sum"]),
    Spec::write("UNLINK", -2, keys::REMOVE_ALL, del)
        .about(WRITE_FAST, GROUP, "4.0.0", "Delete a key asynchronously in another thread")
        .syntax("key...")
        .complexity("O(1) for each key removed regardless of its size")
        .tips(&["request_policy:multi_shard", "response_policy:agg_sum"]),
    Spec::read("EXISTS", -2, keys::LOOK_ALL, exists)
        .about(READ_FAST, GROUP, "1.0.0", "Determine if a key exists")
        .syntax("key...")
        .complexity("O(N) where N is the number of keys to check")
        .tips(&["request_policy:multi_shard", "response_policy:agg_sum"]),
    Spec::read("TOUCH", -2, keys::LOOK_ALL, exists)
        .about(READ_FAST, GROUP, "3.2.1", "Alters the last access time of a key(s)")
        .syntax("key...")
        .complexity("O(N) where N is the number of keys that will be touched")
        .tips(&["request_policy:multi_shard", "response_policy:agg_sum"]),
    Spec::read("TYPE", 2, keys::LOOK, type_of)
        .about(READ_FAST, GROUP, "1.0.0", "Determine the type stored at key")
        .syntax("key")
        .complexity("O(1)"),
    Spec::write(
        "RENAME",
        3,
        &[keys::one(1, Access::Rw, "access delete"), keys::one(2, Access::Ow, "update")],
        rename,
    )
    .about(WRITE, GROUP, "1.0.0", "Rename a key")
    .syntax("key newkey:key")
    .complexity("O(1)"),
    Spec::write(
        "RENAMENX",
        3,
        &[keys::one(1, Access::Rw, "access delete"), keys::one(2, Access::Ow, "insert")],
        renamenx,
    )
    .about(WRITE_FAST, GROUP, "1.0.0", "Rename a key, only if the new key does not exist")
    .syntax("key newkey:key")
    .complexity("O(1)"),
    Spec::write("COPY", -3, &[keys::one(1, Access::Ro, "access"), keys::one(2, Access::Ow, "update")], copy)
        .about(&["write", "denyoom"], GROUP, "6.2.0", "Copy a key")
        .syntax("source:key destination:key [DB destination-db:integer] [REPLACE]")
        .complexity("O(N) worst case for collections, where N is the number of nested items")
        .minds_guards(names_db),
    Spec::write("MOVE", 3, keys::CHANGE, move_to)
        .about(WRITE_FAST, GROUP, "1.0.0", "Move a key to another database")
        .syntax("key db:integer")
        .complexity("O(1)"),
    Spec::read("OBJECT", -2, keys::NONE, object_help)
        .about(&[], GROUP, "2.2.3", "A container for object introspection commands")
        .complexity("Depends on subcommand")
        .acl(&[])
        .with(OBJECT),
    Spec::read("DBSIZE", 1, keys::NONE, dbsize)
        .about(READ_FAST, SERVER, "1.0.0", "Return the number of keys in the selected database")
        .complexity("O(1)")
        .acl(&["keyspace"])
        .tips(&["request_policy:all_shards", "response_policy:agg_sum"]),
    Spec::write("FLUSHDB", -1, keys::NONE, flushdb)
        .about(WRITE, SERVER, "1.0.0", "Remove all keys from the current database")
        .syntax("[async=<ASYNC@4.0.0|SYNC@6.2.0>]")
        .complexity("O(N) where N is the number of keys in the selected database")
        .acl(&["keyspace", "dangerous"])
        .tips(&["request_policy:all_shards", "response_policy:all_succeeded"])
        .frees_all(),
    Spec::write("FLUSHALL", -1, keys::NONE, flushall)
        .about(WRITE, SERVER, "1.0.0", "Remove all keys from all databases")
        .syntax("[async=<ASYNC@4.0.0|SYNC@6.2.0>]")
        .complexity("O(N) where N is the total number of keys in all databases")
        .acl(&["keyspace", "dangerous"])
        .tips(&["request_policy:all_shards", "response_policy:all_succeeded"])
        .frees_all(),
];

const OBJECT: &[Spec] = &[
    Spec::read("OBJECT|ENCODING", 3, &[keys::one(2, Access::Ro, "")], object_encoding)
        .about(READ, GROUP, "2.2.3", "Inspect the internal encoding of a Redis object")
        .syntax("key")
        .complexity("O(1)")
        .tips(&["nondeterministic_output"]),
    Spec::read("OBJECT|FREQ", 3, &[keys::one(2, Access::Ro, "")], object_freq)
        .about(READ, GROUP, "4.0.0", "Get the logarithmic access frequency counter of a Redis object")
        .syntax("key")
        .complexity("O(1)")
        .tips(&["nondeterministic_output"]),
    Spec::read("OBJECT|IDLETIME", 3, &[keys::one(2, Access::Ro, "")], object_idletime)
        .about(READ, GROUP, "2.2.3", "Get the time since a Redis object was last accessed")
        .syntax("key")
        .complexity("O(1)")
        .tips(&["nondeterministic_output"]),
    Spec::read("OBJECT|REFCOUNT", 3, &[keys::one(2, Access::Ro, "")], object_refcount)
        .about(READ, GROUP, "2.2.3", "Get the number of references to the value of the key")
        .syntax("key")
        .complexity("O(1)")
        .tips(&["nondeterministic_output"]),
    Spec::read("OBJECT|HELP", 2, keys::NONE, object_help)
        .about(&["loading", "stale"], GROUP, "6.2.0", "Show helpful text about the different subcommands")
        .complexity("O(1)"),
];

fn del(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    if args.len() > 2 {
        let view = ctx.view();
        let dependents = args.from(1).iter().map(|key| view.dependents_of(key)).sum();
        ctx.check_elements(dependents)?;
    }
    reply.size(args.from(1).iter().filter(|key| ctx.delete(key)).count());
    Ok(())
}

/// Also TOUCH: without eviction there are no access times to update.
fn exists(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.size(args.from(1).iter().filter(|key| view.exists(key)).count());
    Ok(())
}

fn type_of(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.simple(view.type_of(args.at(1)).unwrap_or("none"));
    Ok(())
}

fn rename(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (from, to) = (args.at(1), args.at(2));
    check_room_for_name(ctx, from, to)?;
    if !ctx.rename(from, to) {
        return Err(Error::NoSuchKey);
    }
    reply.ok();
    Ok(())
}

/// A longer name takes memory, although Redis does not count RENAME among the commands that do.
fn check_room_for_name(ctx: &Ctx<'_>, from: &[u8], to: &[u8]) -> Result<()> {
    if to.len() > from.len() && ctx.exists(from) { ctx.check_memory(to.len() - from.len()) } else { Ok(()) }
}

fn renamenx(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (from, to) = (args.at(1), args.at(2));
    if !ctx.exists(from) {
        return Err(Error::NoSuchKey);
    }
    check_room_for_name(ctx, from, to)?;
    reply.flag(!ctx.exists(to) && ctx.rename(from, to));
    Ok(())
}

/// A database number in an argument. The connection's own limit does not count here: it is configuration, which
/// may differ from node to node.
fn database(args: &Args<'_>, index: usize) -> Result<u32> {
    let db = u32::try_from(args.integer(index)?).ok().filter(|&db| db < DATABASES_MAX);
    db.ok_or_else(|| Error::err("DB index is out of range"))
}

fn same_object() -> Error {
    Error::err("source and destination objects are the same")
}

/// A lock or similar value must stay unique, and stay in its place.
fn check_may_leave(ctx: &Ctx<'_>, key: &[u8]) -> Result<()> {
    if ctx.view().keeps_its_time(key) {
        return Err(Error::err("a lock, semaphore, election, lease or session can not be copied or moved"));
    }
    Ok(())
}

/// Whether a COPY is to another database, whose guards the command looks at itself.
fn names_db(args: &Args<'_>) -> bool {
    args.from(3).iter().any(|word| word.eq_ignore_ascii_case(b"DB"))
}

fn copy(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (from, to) = (args.at(1), args.at(2));
    let (mut db, mut names_db, mut replaces, mut index) = (ctx.db(), false, false, 3);
    while index < args.len() {
        if args.is(index, "REPLACE") {
            replaces = true;
            index += 1;
        } else if args.is(index, "DB") && index + 1 < args.len() {
            (db, names_db) = (database(args, index + 1)?, true);
            index += 2;
        } else {
            return Err(Error::Syntax);
        }
    }
    if db == ctx.db() && from == to {
        return Err(same_object());
    }
    check_may_leave(ctx, from)?;
    if names_db {
        fence::admit_key(&ctx.view().in_db(db), to)?;
    }
    let is_free = replaces || !ctx.in_db(db).exists(to);
    if is_free {
        let count = ctx.view().elements_of(from);
        ctx.check_elements(count)?;
        ctx.check_memory(ctx.cost_of(from))?;
    }
    reply.flag(is_free && ctx.copy(from, db, to));
    Ok(())
}

fn move_to(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (key, db) = (args.at(1), database(args, 2)?);
    if db == ctx.db() {
        return Err(same_object());
    }
    check_may_leave(ctx, key)?;
    fence::admit_key(&ctx.view().in_db(db), key)?;
    let is_free = !ctx.in_db(db).exists(key);
    reply.flag(is_free && ctx.transfer(key, db, key));
    Ok(())
}

fn object(view: &View<'_>, args: &Args<'_>, reply: &mut Reply, show: impl FnOnce(&Record, &mut Reply)) {
    match view.find(args.at(2)) {
        Some(record) => show(record, reply),
        None => reply.null(),
    }
}

fn object_encoding(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    object(view, args, reply, |record, reply| reply.bulk(record.encoding().as_bytes()));
    Ok(())
}

fn object_freq(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    if view.exists(args.at(2)) {
        return Err(Error::err(
            "An LFU maxmemory policy is not selected, access frequency not tracked. Please note that when \
             switching between policies at runtime LRU and LFU data will take some time to adjust.",
        ));
    }
    reply.null();
    Ok(())
}

fn object_idletime(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    object(view, args, reply, |_, reply| reply.integer(0));
    Ok(())
}

fn object_refcount(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    object(view, args, reply, |_, reply| reply.integer(1));
    Ok(())
}

fn object_help(_: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    help::help(args, reply)
}

fn dbsize(view: &View<'_>, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.size(view.len());
    Ok(())
}

/// ASYNC or SYNC make no difference: memory is always freed in another thread, and deleted keys are gone at
/// once.
fn check_flush(args: &Args<'_>) -> Result<()> {
    match args.len() {
        1 => Ok(()),
        2 if args.is(1, "ASYNC") || args.is(1, "SYNC") => Ok(()),
        _ => Err(Error::Syntax),
    }
}

fn flushdb(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    check_flush(args)?;
    ctx.flush_db();
    reply.ok();
    Ok(())
}

fn flushall(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    check_flush(args)?;
    ctx.flush_all();
    reply.ok();
    Ok(())
}
