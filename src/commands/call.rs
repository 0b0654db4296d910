//! The one door to a command that runs on the state: it finds the row, checks the arity and the guards of
//! keys, and runs the function. Transactions, FENCE, ONCE, the HTTP API and the connection come through here.
//!
//! A call is all or nothing. Commands check before they change anything, rather than undo: a function that
//! returns an error has changed nothing and written no reply. Where assertions are on, this is asserted.

use kvorum_raft::{Need, aside};

use super::{Run, Spec, coordination::fence, keys::KeySpec, table};
use crate::{
    args::{Args, parse_integer},
    error::{Error, Result},
    resp::Reply,
    store::{Ctx, ELEMENT_BYTES, View, level},
};

/// A call: its row, with the arity checked, and its arguments.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// The row.
    pub spec: &'static Spec,
    /// The arguments, the name first.
    pub args: Args<'a>,
    /// The apply level by whose rules it was resolved.
    level: u32,
}

impl<'a> Call<'a> {
    /// A call of a command whose row is known and whose arity fits.
    pub fn of(spec: &'static Spec, argv: &'a [&'a [u8]]) -> Call<'a> {
        Call { spec, args: Args::new(argv), level: level::LEVEL_MAX }
    }

    /// A call of these arguments, or Redis's error.
    pub fn resolve(argv: &'a [&'a [u8]]) -> Result<Call<'a>> {
        Call::resolve_at(argv, level::LEVEL_MAX)
    }

    /// The same in an entry of an apply level.
    pub fn resolve_at(argv: &'a [&'a [u8]], level: u32) -> Result<Call<'a>> {
        Ok(Call { spec: table::resolve(argv, level)?, args: Args::new(argv), level })
    }

    /// The call that this one runs, if it is complete.
    pub fn wrapped(&self) -> Option<Result<Call<'a>>> {
        let argv = self.args.from((self.spec.wraps?)(&self.args)?);
        (!argv.is_empty()).then(|| Call::resolve_at(argv, self.level))
    }

    /// The call that is run in the end, as far as it is valid. ONCE may run FENCE; deeper nesting is refused.
    pub fn innermost(&self) -> Call<'a> {
        let mut call = *self;
        for _ in 0..WRAPPERS_MAX {
            let Some(Ok(inner)) = call.wrapped() else { break };
            call = inner;
        }
        call
    }

    /// The disk space that it needs.
    pub fn need(&self) -> Need {
        let inner = self.innermost();
        // One that runs nothing valid changes nothing.
        if inner.spec.wraps.is_some() && inner.wrapped().is_none_or(|inner| inner.is_err()) {
            return Need::Entry;
        }
        inner.spec.own_need()
    }

    /// The most that its arguments may cost in memory. What a call adds beyond them, it checks by itself
    /// ([`Ctx::check_memory`]).
    pub fn bytes(&self) -> usize {
        let arguments = self.args.from(0).iter().map(|argument| argument.len() + ELEMENT_BYTES);
        // A sorted set has its members twice.
        let copies = if matches!(self.innermost().spec.group, "sorted-set" | "geo") { 2 } else { 1 };
        copies * arguments.sum::<usize>()
    }

    /// Whether it may take so long that others would notice, judged by its arguments and by what it looks at.
    fn may_take_long(&self, view: &View<'_>) -> bool {
        if self.args.len() > LONG_ARGUMENTS {
            return true;
        }
        let is_quick = self.spec.has("fast") || self.spec.complexity.starts_with("O(1)");
        if is_quick && !self.may_have_large_count() {
            return false;
        }
        if self.spec.keys.is_empty() {
            return view.used_bytes() > LONG_BYTES as u64;
        }
        let keys = self.spec.keys.iter().filter(|spec| spec.is_looked_at());
        let keys = keys.flat_map(|spec| spec.keys(&self.args));
        keys.map(|key| view.cost_of(key)).sum::<usize>() > LONG_BYTES
    }

    /// Whether it may have a count that makes a quick command long. A time, a score or a value is as large, and no count.
    fn may_have_large_count(&self) -> bool {
        let is_large = |argument: &&[u8]| {
            argument.len() >= 5 && parse_integer(argument).is_some_and(|count| count > LARGE_COUNT)
        };
        self.args.from(1).iter().any(is_large) && self.spec.syntax.contains("count:integer")
    }

    /// Its keys, and those of the call that it runs, each with its specification.
    pub fn keys(&self) -> Vec<(&'a [u8], KeySpec)> {
        let mut found = Vec::new();
        let mut call = Some(*self);
        for _ in 0..=WRAPPERS_MAX {
            let Some(present) = call else { break };
            for spec in present.spec.keys {
                let spec = spec.of_call(&present.args);
                found.extend(spec.keys(&present.args).into_iter().map(|key| (key, spec)));
            }
            call = present.wrapped().and_then(Result::ok);
        }
        found
    }

    /// The keys that it may change.
    pub fn written_keys(&self) -> impl Iterator<Item = &'a [u8]> {
        let args = self.args;
        self.spec.keys.iter().filter(|spec| spec.is_written()).flat_map(move |spec| spec.keys(&args))
    }

    /// Runs it in an entry of the log, perhaps fenced by a lock.
    pub fn run(&self, ctx: &mut Ctx<'_>, fenced_by: Option<&[u8]>, reply: &mut Reply) -> Result<()> {
        let write = match self.spec.run {
            Run::Write(write) => write,
            Run::Read(_) => {
                let chance = if ctx.level() >= level::BOUNDED { ctx.chance().next_u64() } else { 0 };
                let view = ctx.view_by(chance);
                view.elements.set(ctx.read.get());
                let result = self.read_if_asked(&view, reply);
                ctx.read.set(view.elements.get());
                return result;
            }
            Run::Connection => return Err(not_on_state(self.spec)),
        };
        if ctx.has_memory_limit() && self.need() == Need::Growth {
            ctx.check_memory(self.bytes())?;
        }
        ctx.check_elements(self.args.len())?;
        fence::admit(&ctx.view(), self, fenced_by)?;
        let before = (ctx.revision(), reply.buffer().len());
        let takes_long = self.may_take_long(&ctx.view());
        let mut run = || write(ctx, &self.args, reply);
        let result = if takes_long { aside::run(run) } else { run() };
        debug_assert!(
            result.is_ok() || before == (ctx.revision(), reply.buffer().len()),
            "{} has failed half way",
            self.spec.name
        );
        result
    }

    /// As [`Call::read`], in an entry of the log. A read changes nothing: it runs only if somebody wants its
    /// reply.
    pub fn read_if_asked(&self, view: &View<'_>, reply: &mut Reply) -> Result<()> {
        if reply.is_on() { self.read(view, reply) } else { Ok(()) }
    }

    /// Runs it on a view, if it only reads.
    pub fn read(&self, view: &View<'_>, reply: &mut Reply) -> Result<()> {
        match self.spec.run {
            Run::Read(read) if self.may_take_long(view) => aside::run(|| read(view, &self.args, reply)),
            Run::Read(read) => read(view, &self.args, reply),
            Run::Write(_) => Err(Error::err("a write came where only reads may be")),
            Run::Connection => Err(not_on_state(self.spec)),
        }
    }

    /// As [`Call::read`]; an error becomes the reply.
    pub fn read_or_error(&self, view: &View<'_>, reply: &mut Reply) {
        if let Err(error) = self.read(view, reply) {
            reply.error(&error);
        }
    }
}

/// A transaction of more calls than this may take long.
pub const LONG_CALLS: usize = 1_024;
/// A call with more arguments than this may take long, ...
const LONG_ARGUMENTS: usize = 4_096;
/// ... and so may one that looks at more than this.
const LONG_BYTES: usize = 1 << 20;

/// A count above this lets a call take long that is quick otherwise: LPOP, ZPOPMIN, SCAN.
const LARGE_COUNT: i64 = 10_000;

/// How many commands may run another one before the one that is run in the end.
const WRAPPERS_MAX: usize = 2;

fn not_on_state(spec: &Spec) -> Error {
    Error::err(format!("'{}' runs only by itself", spec.name.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use kvorum_raft::Need;

    use super::Call;
    use crate::store::level;

    fn call<R>(line: &str, look: impl FnOnce(Call<'_>) -> R) -> R {
        let argv: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        look(Call::resolve(&argv).unwrap())
    }

    #[test]
    fn what_a_call_needs_is_what_the_command_needs_that_it_runs() {
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
            assert_eq!(call(line, |call| call.need()), expected, "{line}");
        }
    }

    #[test]
    fn only_a_large_count_makes_a_quick_call_long() {
        for (line, expected) in [
            ("LPOP l 100000", true),
            ("ZPOPMIN z 100000", true),
            ("SCAN 0 COUNT 100000", true),
            ("HSCAN h 0 COUNT 100000", true),
            ("LPOP l 10", false),
            ("SET k 100000 PX 100000", false),
            ("EXPIRE k 100000", false),
            ("ZADD z 100000 m", false),
            ("LOCK.ACQUIRE l o PX 3600000", false),
        ] {
            assert_eq!(call(line, |call| call.may_have_large_count()), expected, "{line}");
        }
    }

    #[test]
    fn the_keys_of_a_call_are_also_those_of_the_command_that_it_runs() {
        let text = |keys: Vec<&[u8]>| String::from_utf8(keys.join(&b" "[..])).unwrap();
        for (line, keys, written) in [
            ("GET a", "a", ""),
            ("SINTERSTORE a b c", "a b c", "a"),
            ("COPY a b DB 1", "a b", "b"),
            ("LMOVE a b LEFT RIGHT", "a b", "a b"),
            ("MSET a 1 b 2", "a b", "a b"),
            ("FENCE l 1 SMOVE a b x", "l a b", ""),
            ("ONCE 1 FENCE l 1 SET a 1", "l a", ""),
            ("ONCE 1 nothing", "", ""),
        ] {
            let all = call(line, |call| text(call.keys().into_iter().map(|(key, _)| key).collect()));
            assert_eq!(all, keys, "{line}");
            assert_eq!(call(line, |call| text(call.written_keys().collect())), written, "{line}");
        }
    }

    #[test]
    fn below_its_level_a_command_is_unknown_and_an_arity_is_the_older_one() {
        let fits = |line: &str, level: u32| {
            let argv: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            Call::resolve_at(&argv, level).map(|call| call.spec.name).map_err(|error| error.to_string())
        };
        assert_eq!(fits("LEASE.KEEPALIVE l BINDING 1", level::BOUNDED), Ok("LEASE.KEEPALIVE"));
        let error = fits("LEASE.KEEPALIVE l BINDING 1", level::FIRST).unwrap_err();
        assert_eq!(error, "ERR wrong number of arguments for 'lease.keepalive' command");
        assert_eq!(fits("LEASE.KEEPALIVE l", level::FIRST), Ok("LEASE.KEEPALIVE"));
        assert!(fits("GET k", 0).unwrap_err().starts_with("ERR unknown command 'GET'"));
    }

    #[test]
    fn a_change_is_attributed_to_the_command_that_makes_it() {
        for (line, expected) in
            [("ONCE 1 FENCE l 1 SET a 1", "SET"), ("FENCE l 1 DEL a", "DEL"), ("ONCE 1 nothing", "ONCE")]
        {
            assert_eq!(call(line, |call| call.innermost().spec.name), expected, "{line}");
        }
    }
}
