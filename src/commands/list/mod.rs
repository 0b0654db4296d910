//! Lists: pushing, popping and moving at the ends. Commands on inner elements are in `inside.rs`, those that wait
//! in `blocking.rs`.

pub mod blocking;
pub mod inside;

use super::{
    Spec,
    keys::{self, Access},
};
use crate::{
    args::{Args, parse_integer},
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, End, List, Pages, View},
};

/// The group of COMMAND DOCS.
pub(crate) const GROUP: &str = "list";
pub(crate) const READ: &[&str] = &["readonly"];
pub(crate) const WRITE: &[&str] = &["write", "denyoom"];
const READ_FAST: &[&str] = &["readonly", "fast"];
const WRITE_FAST: &[&str] = &["write", "denyoom", "fast"];
/// Writes that never need memory.
const TAKE_FAST: &[&str] = &["write", "fast"];

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write("LPUSH", -3, keys::INSERT, lpush)
        .about(WRITE_FAST, GROUP, "1.0.0", "Prepend one or multiple elements to a list")
        .syntax("key element...")
        .complexity(
            "O(1) for each element added, so O(N) to add N elements when the command is called with \
             multiple arguments",
        ),
    Spec::write("RPUSH", -3, keys::INSERT, rpush)
        .about(WRITE_FAST, GROUP, "1.0.0", "Append one or multiple elements to a list")
        .syntax("key element...")
        .complexity(
            "O(1) for each element added, so O(N) to add N elements when the command is called with \
             multiple arguments",
        ),
    Spec::write("LPUSHX", -3, keys::INSERT, lpushx)
        .about(WRITE_FAST, GROUP, "2.2.0", "Prepend an element to a list, only if the list exists")
        .syntax("key element...")
        .complexity(
            "O(1) for each element added, so O(N) to add N elements when the command is called with \
             multiple arguments",
        ),
    Spec::write("RPUSHX", -3, keys::INSERT, rpushx)
        .about(WRITE_FAST, GROUP, "2.2.0", "Append an element to a list, only if the list exists")
        .syntax("key element...")
        .complexity(
            "O(1) for each element added, so O(N) to add N elements when the command is called with \
             multiple arguments",
        ),
    Spec::write("LPOP", -2, keys::TAKE, lpop)
        .about(TAKE_FAST, GROUP, "1.0.0", "Remove and get the first elements in a list")
        .syntax("key [count:integer@6.2.0]")
        .complexity("O(N) where N is the number of elements returned"),
    Spec::write("RPOP", -2, keys::TAKE, rpop)
        .about(TAKE_FAST, GROUP, "1.0.0", "Remove and get the last elements in a list")
        .syntax("key [count:integer@6.2.0]")
        .complexity("O(N) where N is the number of elements returned"),
    Spec::write("LMPOP", -4, &[keys::counted(1, Access::Rw, "access delete")], lmpop)
        .about(&["write", "movablekeys"], GROUP, "7.0.0", "Pop elements from a list")
        .syntax("numkeys:integer key... where=<LEFT|RIGHT> [COUNT count:integer]")
        .complexity("O(N+M) where N is the number of provided keys and M is the number of elements returned"),
    Spec::read("LLEN", 2, keys::LOOK, llen)
        .about(READ_FAST, GROUP, "1.0.0", "Get the length of a list")
        .syntax("key")
        .complexity("O(1)"),
    Spec::write("LMOVE", 5, keys::MOVE, lmove)
        .about(WRITE, GROUP, "6.2.0", "Pop an element from a list, push it to another list and return it")
        .syntax("source:key destination:key wherefrom=<LEFT|RIGHT> whereto=<LEFT|RIGHT>")
        .complexity("O(1)"),
    Spec::write("RPOPLPUSH", 3, keys::MOVE, rpoplpush)
        .about(
            WRITE,
            GROUP,
            "1.2.0",
            "Remove the last element in a list, prepend it to another list and return it",
        )
        .syntax("source:key destination:key")
        .complexity("O(1)")
        .deprecated("6.2.0", "`LMOVE` with the `RIGHT` and `LEFT` arguments"),
];

/// The end named by an argument.
pub(crate) fn end_of(args: &Args<'_>, index: usize) -> Result<End> {
    match () {
        _ if args.is(index, "LEFT") => Ok(End::Left),
        _ if args.is(index, "RIGHT") => Ok(End::Right),
        _ => Err(Error::Syntax),
    }
}

fn push_all(list: &mut List, end: End, args: &Args<'_>, pages: &mut Pages<'_>) -> usize {
    args.from(2).iter().for_each(|element| list.push(end, element, pages));
    list.len()
}

fn push(ctx: &mut Ctx<'_>, args: &Args<'_>, end: End, reply: &mut Reply) -> Result<()> {
    let len =
        ctx.modify_or_create(args.at(1), |list: &mut List, pages| Ok(push_all(list, end, args, pages)))?;
    reply.size(len);
    Ok(())
}

fn push_existing(ctx: &mut Ctx<'_>, args: &Args<'_>, end: End, reply: &mut Reply) -> Result<()> {
    let len = ctx.modify(args.at(1), |list: &mut List, pages| Ok(push_all(list, end, args, pages)))?;
    reply.size(len.unwrap_or(0));
    Ok(())
}

fn lpush(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    push(ctx, args, End::Left, reply)
}

fn rpush(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    push(ctx, args, End::Right, reply)
}

fn lpushx(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    push_existing(ctx, args, End::Left, reply)
}

fn rpushx(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    push_existing(ctx, args, End::Right, reply)
}

/// Replies with `count` elements from an end, as an array, and removes them. The list has as many.
fn pop_many(list: &mut List, end: End, count: usize, pages: &mut Pages<'_>, reply: &mut Reply) {
    reply.array(count);
    match end {
        End::Left => list.iter().take(count).for_each(|element| reply.bulk(element)),
        End::Right => list.iter().rev().take(count).for_each(|element| reply.bulk(element)),
    }
    list.drop_end(end, count, pages);
}

fn pop(ctx: &mut Ctx<'_>, args: &Args<'_>, end: End, command: &'static str, reply: &mut Reply) -> Result<()> {
    let count = match args.len() {
        2 => None,
        3 => {
            let count = parse_integer(args.at(2)).and_then(|count| usize::try_from(count).ok());
            Some(count.ok_or(Error::NotPositive)?)
        }
        _ => return Err(Error::Arity(command.into())),
    };
    let popped = ctx.modify(args.at(1), |list: &mut List, pages| {
        match count {
            None => {
                reply.bulk_or_null(list.end(end));
                list.drop_end(end, 1, pages);
            }
            Some(0) => {
                pages.unchanged();
                reply.array(0);
            }
            Some(count) => {
                let count = count.min(list.len());
                pages.check_elements(count)?;
                pop_many(list, end, count, pages, reply);
            }
        }
        Ok(())
    })?;
    match (popped, count) {
        (Some(()), _) => {}
        (None, None) => reply.null(),
        (None, Some(_)) => reply.null_array(),
    }
    Ok(())
}

fn lpop(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    pop(ctx, args, End::Left, "lpop", reply)
}

fn rpop(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    pop(ctx, args, End::Right, "rpop", reply)
}

fn lmpop(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    if !pop_first(ctx, args, 1, reply)? {
        reply.null_array();
    }
    Ok(())
}

/// `numkeys key [key ...] LEFT|RIGHT [COUNT count]` from an argument on: pops from the first list there is. False
/// if there is none.
fn pop_first(ctx: &mut Ctx<'_>, args: &Args<'_>, at: usize, reply: &mut Reply) -> Result<bool> {
    let keys = args.positive(at, "numkeys")?;
    let end_at = keys.checked_add(at + 1).filter(|&index| index < args.len()).ok_or(Error::Syntax)?;
    let end = end_of(args, end_at)?;
    let count = match args.len() - end_at {
        1 => 1,
        // Redis parses the count before it rejects excess arguments.
        3.. if args.is(end_at + 1, "COUNT") => args.positive(end_at + 2, "count")?,
        _ => return Err(Error::Syntax),
    };
    if args.len() - end_at > 3 {
        return Err(Error::Syntax);
    }
    for key in &args.from(at + 1)[..keys] {
        let popped = ctx.modify(key, |list: &mut List, pages| {
            let count = count.min(list.len());
            pages.check_elements(count)?;
            reply.array(2);
            reply.bulk(key);
            pop_many(list, end, count, pages, reply);
            Ok(())
        })?;
        if popped.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn llen(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    reply.size(view.value::<List>(args.at(1))?.map_or(0, List::len));
    Ok(())
}

/// Moves an element from one end of a list to one end of another list, or of the same. None if `from` does
/// not exist.
pub(crate) fn move_element(
    ctx: &mut Ctx<'_>,
    (from, from_end): (&[u8], End),
    (to, to_end): (&[u8], End),
) -> Result<Option<Vec<u8>>> {
    let view = ctx.view();
    let Some(list) = view.value::<List>(from)? else { return Ok(None) };
    view.value::<List>(to)?;
    let element = list.end(from_end).expect("no list is empty").to_vec();
    if from == to {
        // Push first: so a list of one element is not deleted in between, and keeps its deadline.
        ctx.modify(from, |list: &mut List, pages| {
            if from_end != to_end {
                list.push(to_end, &element, pages);
                list.drop_end(from_end, 1, pages);
            }
            Ok(())
        })?;
    } else {
        ctx.modify(from, |list: &mut List, pages| {
            list.drop_end(from_end, 1, pages);
            Ok(())
        })?;
        ctx.modify_or_create(to, |list: &mut List, pages| {
            list.push(to_end, &element, pages);
            Ok(())
        })?;
    }
    Ok(Some(element))
}

fn lmove(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let (from_end, to_end) = (end_of(args, 3)?, end_of(args, 4)?);
    let moved = move_element(ctx, (args.at(1), from_end), (args.at(2), to_end))?;
    reply.bulk_or_null(moved.as_deref());
    Ok(())
}

fn rpoplpush(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let moved = move_element(ctx, (args.at(1), End::Right), (args.at(2), End::Left))?;
    reply.bulk_or_null(moved.as_deref());
    Ok(())
}
