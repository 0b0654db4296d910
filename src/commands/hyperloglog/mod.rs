//! HyperLogLogs: how many different elements were added, within about a percent, in at most 12 KB. They are strings,
//! in Redis's own form.

mod sketch;

use sketch::{REGISTERS, Registers, Sketch};

use crate::{
    args::Args,
    commands::{
        Spec,
        keys::{self, Access},
    },
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, Deadline, View, level},
};

const GROUP: &str = "hyperloglog";
const WRITE: &[&str] = &["write", "denyoom"];

/// The rows of this family.
pub const ROWS: &[Spec] = &[
    Spec::write("PFADD", -2, keys::INSERT, pfadd)
        .about(&["write", "denyoom", "fast"], GROUP, "2.8.9", "Add elements to a HyperLogLog")
        .syntax("key [element...]")
        .complexity("O(1) to add every element.")
        .from_level(level::TYPES),
    Spec::read(
        "PFCOUNT",
        -2,
        &[keys::rest(1, Access::Rw, "access")
            .noted("RW because it may change the internal representation of the key, and propagate to replicas")],
        pfcount,
    )
    .about(&["readonly"], GROUP, "2.8.9", "Estimate how many different elements were added to HyperLogLogs")
    .syntax("key...")
    .complexity(
        "O(1) with a very small average constant time when called with a single key. O(N) with N being the number \
         of keys, and much bigger constant times, when called with multiple keys.",
    )
    .from_level(level::TYPES),
    Spec::write(
        "PFMERGE",
        -2,
        &[keys::one(1, Access::Rw, "access insert"), keys::rest(2, Access::Ro, "access")],
        pfmerge,
    )
    .about(WRITE, GROUP, "2.8.9", "Merge HyperLogLogs into one")
    .syntax("destkey:key sourcekey:key...")
    .complexity("O(N) to merge N HyperLogLogs, but with high constant times.")
    .from_level(level::TYPES),
    Spec::write("PFDEBUG", 3, &[keys::one(2, Access::Rw, "access")], pfdebug)
        .about(&["write", "denyoom", "admin"], GROUP, "2.8.9", "Look into a HyperLogLog")
        .syntax("subcommand key")
        .complexity("N/A")
        .internal()
        .from_level(level::TYPES),
    Spec::read("PFSELFTEST", 1, keys::NONE, pfselftest)
        .about(&["admin"], GROUP, "2.8.9", "Test the implementation of HyperLogLogs")
        .complexity("N/A")
        .internal()
        .from_level(level::TYPES),
];

/// Looking at one HyperLogLog counts as so many elements that a call touches.
const ELEMENTS_OF_ONE: usize = 64;

fn stored(view: &View<'_>, key: &[u8]) -> Result<Option<Sketch>> {
    view.string(key)?.map(Sketch::of).transpose()
}

fn pfadd(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let key = args.at(1);
    let present = stored(&ctx.view(), key)?;
    let mut changed = present.is_none();
    let mut sketch = present.unwrap_or_else(Sketch::empty);
    for element in args.from(2) {
        changed |= sketch.add(element)?;
    }
    if changed {
        sketch.forget_count();
        put(ctx, key, &sketch)?;
    }
    reply.flag(changed);
    Ok(())
}

fn put(ctx: &mut Ctx<'_>, key: &[u8], sketch: &Sketch) -> Result<()> {
    ctx.check_memory(sketch.bytes().len().saturating_sub(ctx.cost_of(key)))?;
    ctx.set(key, sketch.bytes(), Deadline::Keep);
    Ok(())
}

/// The registers of all keys together, and whether any of them is dense.
fn merged(view: &View<'_>, keys: &[&[u8]]) -> Result<(Box<Registers>, bool)> {
    let (mut registers, mut any_dense) = (Box::new([0; REGISTERS]), false);
    for key in keys {
        let Some(bytes) = view.string(key)? else { continue };
        sketch::check(bytes)?;
        any_dense |= sketch::is_dense(bytes);
        sketch::merge(bytes, &mut registers)?;
    }
    Ok((registers, any_dense))
}

fn pfcount(view: &View<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    view.check_elements((args.len() - 1) * ELEMENTS_OF_ONE)?;
    let (registers, _) = merged(view, args.from(1))?;
    reply.integer(sketch::count(&registers) as i64);
    Ok(())
}

fn pfmerge(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    ctx.check_elements((args.len() - 1) * ELEMENTS_OF_ONE)?;
    let key = args.at(1);
    let (registers, any_dense) = merged(&ctx.view(), args.from(1))?;
    let mut sketch = stored(&ctx.view(), key)?.unwrap_or_else(Sketch::empty);
    if any_dense {
        sketch.make_dense()?;
    }
    for (index, &value) in registers.iter().enumerate().filter(|(_, value)| **value > 0) {
        sketch.raise(index, value)?;
    }
    sketch.forget_count();
    put(ctx, key, &sketch)?;
    reply.ok();
    Ok(())
}

fn pfdebug(ctx: &mut Ctx<'_>, args: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let key = args.at(2);
    let found = stored(&ctx.view(), key)?;
    let mut sketch = found.ok_or_else(|| Error::err("The specified key does not exist"))?;
    let is_dense = sketch::is_dense(sketch.bytes());
    match () {
        () if args.is(1, "GETREG") || args.is(1, "TODENSE") => {
            sketch.make_dense()?;
            if !is_dense {
                put(ctx, key, &sketch)?;
            }
            if args.is(1, "TODENSE") {
                reply.flag(!is_dense);
                return Ok(());
            }
            let mut registers = Box::new([0; REGISTERS]);
            sketch::merge(sketch.bytes(), &mut registers)?;
            reply.array(REGISTERS);
            registers.iter().for_each(|&register| reply.integer(i64::from(register)));
        }
        () if args.is(1, "ENCODING") => reply.simple(if is_dense { "dense" } else { "sparse" }),
        () if args.is(1, "DECODE") && is_dense => return Err(Error::err("HLL encoding is not sparse")),
        () if args.is(1, "DECODE") => {
            let runs = sketch::runs(sketch.bytes()).map(|run| run.map(|run| run.to_string()));
            reply.bulk(runs.collect::<Result<Vec<_>>>()?.join(" ").as_bytes());
        }
        () => {
            let name = String::from_utf8_lossy(args.at(1));
            return Err(Error::err(format!("Unknown PFDEBUG subcommand '{name}'")));
        }
    }
    Ok(())
}

/// How many elements the self-test adds, and by how much it accepts its count to be wrong.
const TESTED_ELEMENTS: u64 = 100_000;
const TESTED_ERROR: f64 = 0.03;

fn pfselftest(_: &View<'_>, _: &Args<'_>, reply: &mut Reply) -> Result<()> {
    let failed = |what: String| Err(Error::Other(format!("TESTFAILED {what}").into()));
    let (mut sparse, mut dense) = (Sketch::empty(), Sketch::empty());
    dense.make_dense()?;
    let registers_of = |sketch: &Sketch| {
        let mut registers = Box::new([0; REGISTERS]);
        sketch::merge(sketch.bytes(), &mut registers).map(|()| registers)
    };
    for number in 1..=TESTED_ELEMENTS {
        let (first, second) = (sparse.add(&number.to_le_bytes())?, dense.add(&number.to_le_bytes())?);
        if first != second {
            return failed(format!("the dense and the sparse form differ at element {number}"));
        }
        if number.is_power_of_two() || number == TESTED_ELEMENTS {
            let registers = registers_of(&dense)?;
            if registers != registers_of(&sparse)? {
                return failed(format!("the dense and the sparse form differ after {number} elements"));
            }
            let counted = sketch::count(&registers);
            // Of a few elements one may be missed.
            if counted.abs_diff(number) as f64 > (number as f64 * TESTED_ERROR).max(1.0) {
                return failed(format!("{number} elements are counted as {counted}"));
            }
        }
    }
    reply.ok();
    Ok(())
}
