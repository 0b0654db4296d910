//! The replicated machine: decodes a batch, moves the clock, reaps the dead, checks watches, runs the calls,
//! and makes the replies for the connections that this node serves.
//!
//! It never looks at who proposed what. A connection's reads ride with its writes and run at their positions;
//! they are on this node alone and change nothing.

use std::{collections::BTreeSet, sync::Arc, thread};

use kvorum_raft::{
    Batch, Loader, PageWrite,
    safeguard::{self, Safeguard},
};
use parking_lot::RwLock;
use tokio::sync::oneshot;

use crate::{
    args::Args,
    commands::{self, Run, Spec, fence},
    error::{Error, Result},
    feed::{Draft, Feed},
    proposal::{Call, Pipeline, Request, Requests, Step, Watched},
    resp::Reply,
    store::{
        Caller, Chance, Ctx, DATABASES_MAX, Outcome, PageId, State, StateLoader, Ticket, View, Wake, level,
    },
};

/// The highest level of entries that this build can apply: [`level`] says what each means.
pub const APPLY_LEVEL_MAX: u32 = level::LEVEL_MAX;

/// How many dead keys one batch removes before its calls run. More wait for the next batch, which
/// `next_deadline_ms` asks for; until then they are dead all the same.
const REAPED_MAX: usize = 1_000;

/// What happened to claims, as the feed names it, when time or the end of a wait moved them on and no command did.
const SETTLED: &str = "settled";

/// The Redis state machine.
pub struct Machine {
    state: RwLock<State>,
    feed: Arc<Feed>,
    outlet: Option<Arc<dyn Outlet>>,
}

/// Who is told what leaves the machine beside replies and the feed.
pub trait Outlet: Send + Sync {
    /// Waits ended by the entry at `index`, those of any node's clients. Called in the order of the log.
    fn woke(&self, index: u64, wakes: Vec<Wake>);

    /// A snapshot took the place of entries: what they would have told has to be asked. `outcome_of` gives None for a
    /// wait that goes on.
    fn replaced(&self, outcome_of: &dyn Fn(Ticket) -> Option<Outcome>);
}

impl Machine {
    /// An empty state. Databases come into being when they are written to; `databases` is how many the session
    /// offers, and no call may depend on it.
    pub fn new(databases: u32) -> Machine {
        Machine::with_feed(databases, Feed::off())
    }

    /// As [`Machine::new`]; what happens to keys goes into `feed`.
    pub fn with_feed(databases: u32, feed: Feed) -> Machine {
        assert!(databases <= DATABASES_MAX, "the configuration allows no more");
        let mut state = State::new();
        if feed.is_on() {
            state.note_touched(feed.value_bytes_max());
        }
        Machine { state: RwLock::new(state), feed: Arc::new(feed), outlet: None }
    }

    /// The same, with somebody to tell.
    pub fn with_outlet(self, outlet: Arc<dyn Outlet>) -> Machine {
        Machine { outlet: Some(outlet), ..self }
    }

    /// What happened to keys.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// How a wait ended that began at this key; None if it goes on.
    pub fn outcome_at(&self, db: u32, key: &[u8], ticket: Ticket) -> Option<Outcome> {
        self.state.read().outcome_at(db, key, ticket)
    }

    /// The nodes that have waits under way, with their runs.
    pub fn waiting_nodes(&self) -> BTreeSet<(u64, u64)> {
        self.state.read().waiting_nodes().collect()
    }

    /// Runs `read` on a view of database `db`, under the shared lock.
    /// `estimate_ms` is the log clock estimated now (`Node::clock_ms`); `chance` is any number.
    pub fn read<R>(&self, db: u32, estimate_ms: u64, chance: u64, read: impl FnOnce(&View<'_>) -> R) -> R {
        read(&View::new(&self.state.read(), db, estimate_ms, chance))
    }

    /// Runs an encoded request of reads alone, a call or a transaction, and appends its one reply. True if it
    /// met a key that is late (see [`View::late`]): then the reply is to be thrown away, and the request run
    /// again after a tick.
    pub fn run_reads(&self, request: &[u8], estimate_ms: u64, chance: u64, reply: &mut Reply) -> bool {
        run_reads(&self.state.read(), request, estimate_ms, chance, reply)
    }

    /// Runs an encoded request on this node alone, as no log says it: its state is another one from then on.
    #[cfg(all(feature = "simulation", debug_assertions))]
    pub fn drift(&self, request: &[u8]) {
        let mut state = self.state.write();
        let mut applying = Applying { state: &mut state, draft: None, seed: 0, caller: None };
        applying.run_all(&mut Requests::new(request), &mut Reply::off());
    }

    /// The digest of all content. Walks over everything.
    pub fn digest(&self) -> u128 {
        self.digest_at().1
    }

    /// The last entry that was applied, and the digest of all content then. Nothing is applied meanwhile.
    pub fn digest_at(&self) -> (u64, u128) {
        let state = self.state.read();
        (state.applied(), state.digest())
    }

    /// Each database that has keys, the number of its keys, and of those with a deadline.
    pub fn database_sizes(&self) -> Vec<(u32, usize, usize)> {
        let state = self.state.read();
        let sizes = (0..state.databases()).map(|db| {
            let view = View::new(&state, db, 0, 0);
            (db, view.len(), view.expires())
        });
        sizes.filter(|&(_, keys, _)| keys > 0).collect()
    }

    /// The level of the last entry that was applied; the highest before the first.
    pub fn level(&self) -> u32 {
        self.state.read().level()
    }

    /// The log clock.
    pub fn now_ms(&self) -> u64 {
        self.state.read().now_ms()
    }
}

impl kvorum_raft::Machine for Machine {
    type Local = Pipeline;

    fn apply_level_max(&self) -> u32 {
        APPLY_LEVEL_MAX
    }

    fn clock_ms(&self) -> u64 {
        self.now_ms()
    }

    fn ahead_ms(&self) -> i64 {
        self.state.read().ahead_ms()
    }

    fn apply(&self, batch: Batch<'_, Pipeline>) {
        assert!(
            batch.level <= APPLY_LEVEL_MAX,
            "log entry {} is of apply level {}, and this version knows levels up to {APPLY_LEVEL_MAX}: start a later one",
            batch.index,
            batch.level,
        );
        let mut answered = Vec::new();
        let mut state = self.state.write();
        state.enter(batch.index, batch.level);
        if let Some(key) = batch.raised
            && batch.level >= level::BOUNDED
        {
            state.take_hash_key(key);
        }
        state.advance(safeguard::clock_ms(batch.stamp_ms), batch.term);
        state.set_ahead(batch.ahead_ms);
        let mut draft = self.feed.draft(batch.index);
        let is_own = safeguard::is_off(Safeguard::ReplicatedChance);
        let seed = Chance::new(if is_own { fastrand::u64(..) } else { batch.index }).next_u64();
        let mut applying = Applying { state: &mut state, draft: draft.as_mut(), seed, caller: None };
        applying.reap();
        for proposal in batch.proposals {
            let mut requests = Requests::new(proposal.bytes);
            applying.caller = None;
            match proposal.local {
                None => applying.run_all(&mut requests, &mut Reply::off()),
                Some(pipeline) => answered.push(applying.run_pipeline(&mut requests, pipeline)),
            }
            check_end(&requests, batch.index, batch.level);
        }
        let (garbage, wakes) = (state.take_garbage(), state.take_wakes());
        drop(state);
        // Before the replies: who subscribes after a reply gets what comes after it.
        if let Some(draft) = draft {
            self.feed.publish(draft);
        }
        if let Some(outlet) = &self.outlet
            && !wakes.is_empty()
        {
            outlet.woke(batch.index, wakes);
        }
        for (done, replies) in answered {
            // The connection may be gone; then nobody needs the replies.
            let _ = done.send(replies);
        }
        if !garbage.is_empty() {
            drop_aside(garbage);
        }
    }

    fn next_deadline_ms(&self) -> Option<u64> {
        // A key is dead when the clock is past its deadline, not on it.
        self.state.read().first_deadline_ms().map(|deadline| deadline.saturating_add(1))
    }

    fn checkpoint_begin(&self) -> Vec<u8> {
        self.state.write().checkpoint_begin()
    }

    fn checkpoint_step(&self, bytes_max: usize, pages: &mut Vec<PageWrite>) -> bool {
        self.state
            .write()
            .checkpoint_step(bytes_max, |id, content| pages.push(PageWrite { id: id.encode(), content }))
    }

    fn loader(&self) -> Box<dyn Loader + '_> {
        Box::new(MachineLoader { machine: self, loader: StateLoader::default() })
    }
}

/// Nothing of an entry may be skipped: another node may know what it says.
fn check_end(requests: &Requests<'_>, index: u64, level: u32) {
    if let Some(tag) = requests.unknown_tag() {
        panic!(
            "log entry {index} has a request of kind {tag}, which this version does not know: start a later one"
        );
    }
    // By the first rule, what is malformed is left out.
    assert!(!requests.is_malformed() || level < level::BOUNDED, "log entry {index} has a malformed request");
}

/// Drops what takes long to drop without holding up the log; here, if there is no room for another thread. Content only:
/// nothing observable happens.
fn drop_aside<T: Send + 'static>(garbage: T) {
    // The closure, and what it holds, is dropped with the error.
    let _ = thread::Builder::new().name("drop".into()).spawn(move || drop(garbage));
}

/// One batch that is applied.
struct Applying<'a> {
    state: &'a mut State,
    /// The batch's events; None when nobody records them.
    draft: Option<&'a mut Draft>,
    /// Chance for the next request; determined by the log index and the request's position in the batch.
    seed: u64,
    /// The session of whoever proposed, if it is in one.
    caller: Option<Caller>,
}

impl Applying<'_> {
    fn reap(&mut self) {
        self.state.reap(REAPED_MAX);
        self.note(SETTLED);
    }

    /// What was touched goes into the feed as what this command did.
    fn note(&mut self, name: &str) {
        if let Some(draft) = &mut self.draft {
            draft.take(self.state, name);
        }
    }

    fn run_all(&mut self, requests: &mut Requests<'_>, reply: &mut Reply) {
        for request in requests {
            self.run(request, reply);
        }
    }

    /// Runs a pipeline's writes, and its reads between them.
    fn run_pipeline(
        &mut self,
        requests: &mut Requests<'_>,
        pipeline: Pipeline,
    ) -> (oneshot::Sender<Vec<u8>>, Vec<u8>) {
        let mut reply = Reply::new(pipeline.replies, pipeline.protocol);
        let mut chance = Chance::new(pipeline.chance);
        for step in pipeline.steps {
            match step {
                Step::Ready(bytes) => reply.raw(&bytes),
                Step::Write => match requests.next() {
                    Some(request) => self.run(request, &mut reply),
                    None => reply.error(&Error::err("the proposal is shorter than its pipeline")),
                },
                Step::Silent => {
                    if let Some(request) = requests.next() {
                        self.run(request, &mut Reply::off());
                    }
                }
                Step::Read(bytes) => {
                    // The clock stands still within an entry, so nothing is late here.
                    run_reads(self.state, &bytes, self.state.now_ms(), chance.next_u64(), &mut reply);
                }
            }
        }
        // Whatever is in the log is applied, if the pipeline knows of it or not.
        self.run_all(requests, &mut Reply::off());
        (pipeline.done, reply.into_buffer())
    }

    fn run(&mut self, request: Request<'_>, reply: &mut Reply) {
        self.seed = self.seed.wrapping_add(1);
        match request {
            Request::Call(call) => self.run_call(&call, reply),
            Request::InSession(caller) => self.caller = (caller.db < DATABASES_MAX).then_some(caller),
            Request::WaitingCall { ticket, call } => self.run_waiting_call(&call, ticket, reply),
            Request::Cancel(waited) => self.with_ctx(waited.db, |ctx| ctx.cancel(waited.key, waited.ticket)),
            Request::Confirm(waited) => {
                self.with_ctx(waited.db, |ctx| ctx.confirm(waited.key, waited.ticket))
            }
            Request::ForgetNode { node, but_boot, term } => {
                if term == 0 || term == self.state.term() {
                    self.with_ctx(0, |ctx| ctx.forget_node(node, but_boot));
                }
            }
            Request::Transaction { watched, calls } => {
                if !watches_hold(self.state, &watched) {
                    return reply.null_array();
                }
                reply.array(calls.len());
                for call in &calls {
                    self.seed = self.seed.wrapping_add(1);
                    self.run_call(call, reply);
                }
            }
        }
    }

    fn with_ctx(&mut self, db: u32, run: impl FnOnce(&mut Ctx<'_>)) {
        if db < DATABASES_MAX {
            run(&mut Ctx::new(self.state, db, self.seed));
            self.note(SETTLED);
        }
    }

    /// No reply means that it waits.
    fn run_waiting_call(&mut self, call: &Call<'_>, ticket: Ticket, reply: &mut Reply) {
        match resolve(call) {
            Ok((spec, args)) if let Run::Write(write) = spec.run => {
                let mut ctx = Ctx::new(self.state, call.db, self.seed);
                ctx.ticket = Some(ticket);
                ctx.caller = self.caller.clone();
                let admitted = fence::admit(&ctx.view(), spec, &args, None);
                if let Err(error) = admitted.and_then(|()| write(&mut ctx, &args, reply)) {
                    reply.error(&error);
                }
                self.note(name_of(spec, &args));
            }
            _ => self.run_call(call, reply),
        }
    }

    fn run_call(&mut self, call: &Call<'_>, reply: &mut Reply) {
        let result = resolve(call).and_then(|(spec, args)| match spec.run {
            Run::Write(write) => {
                let mut ctx = Ctx::new(self.state, call.db, self.seed);
                ctx.caller = self.caller.clone();
                fence::admit(&ctx.view(), spec, &args, None)?;
                let result = write(&mut ctx, &args, reply);
                self.note(name_of(spec, &args));
                result
            }
            // A read changes nothing: it is only run for somebody who waits for its reply.
            Run::Read(_) if !reply.is_on() => Ok(()),
            Run::Read(read) => {
                let view = View::new(self.state, call.db, self.state.now_ms(), self.seed);
                read(&view.at_level(self.state.level()), &args, reply)
            }
            Run::Session => session_call(&args, self.state.wall_ms(self.state.now_ms()), reply),
        });
        if let Err(error) = result {
            reply.error(&error);
        }
    }
}

/// A transaction goes ahead only if each watched key is what it was.
fn watches_hold(state: &State, watched: &[Watched<'_>]) -> bool {
    watched
        .iter()
        .all(|watch| View::new(state, watch.db, state.now_ms(), 0).version(watch.key) == watch.version)
}

/// The command that a call's events are put down to: FENCE and ONCE only run one.
fn name_of(spec: &'static Spec, args: &Args<'_>) -> &'static str {
    let inner = |spec: &Spec, from: usize| match spec.name {
        "ONCE" => Some(from + 2),
        "FENCE" => Some(from + 3),
        _ => None,
    };
    let (mut spec, mut from) = (spec, 0);
    // ONCE runs FENCE, and FENCE neither.
    for _ in 0..2 {
        let Some(next) = inner(spec, from) else { break };
        let Some(found) = args.get(next).and_then(commands::lookup) else { break };
        (spec, from) = (found, next);
    }
    spec.name
}

/// The row of a call, after the checks that hold for every call.
fn resolve<'a>(call: &'a Call<'_>) -> Result<(&'static Spec, Args<'a>)> {
    if call.db >= DATABASES_MAX {
        return Err(Error::err("DB index is out of range"));
    }
    Ok((commands::resolve(&call.argv)?, Args::new(&call.argv)))
}

fn run_reads(state: &State, request: &[u8], estimate_ms: u64, chance: u64, reply: &mut Reply) -> bool {
    let mut chance = Chance::new(chance);
    let mut late = false;
    let mut run = |call: &Call<'_>, reply: &mut Reply| {
        let view = View::new(state, call.db, estimate_ms, chance.next_u64());
        let result = resolve(call).and_then(|(spec, args)| match spec.run {
            Run::Read(read) => read(&view, &args, reply),
            Run::Session => session_call(&args, view.wall_ms(view.estimate_ms), reply),
            Run::Write(_) => Err(Error::err("a write came where only reads may be")),
        });
        if let Err(error) = result {
            reply.error(&error);
        }
        late |= view.late.get();
    };
    match Requests::new(request).next() {
        Some(Request::Call(call)) => run(&call, reply),
        Some(Request::Transaction { watched, .. }) if !watches_hold(state, &watched) => reply.null_array(),
        Some(Request::Transaction { calls, .. }) => {
            reply.array(calls.len());
            calls.iter().for_each(|call| run(call, reply));
        }
        _ => reply.error(&Error::err("the request is malformed")),
    }
    late
}

/// The commands of a session that make sense in a transaction and need no session: the session passes them
/// through, so that their replies stand in their places. SELECT took effect when the session queued the calls
/// after it, each with its database. TIME is the time of the transaction, by the wall clock.
fn session_call(args: &Args<'_>, wall_ms: u64, reply: &mut Reply) -> Result<()> {
    let name = args.at(0).to_ascii_uppercase();
    match (&name[..], args.get(1)) {
        (b"PING", None) => reply.simple("PONG"),
        (b"PING" | b"ECHO", Some(message)) => reply.bulk(message),
        (b"SELECT", Some(_)) => reply.ok(),
        (b"TIME", None) => {
            reply.array(2);
            reply.bulk_integer((wall_ms / 1_000) as i64);
            reply.bulk_integer((wall_ms % 1_000 * 1_000) as i64);
        }
        _ => return Err(Error::err("Command not allowed inside a transaction")),
    }
    Ok(())
}

struct MachineLoader<'a> {
    machine: &'a Machine,
    loader: StateLoader,
}

impl Loader for MachineLoader<'_> {
    fn page(&mut self, id: &[u8], content: &[u8]) -> Result<(), String> {
        let id =
            PageId::decode(id).ok_or_else(|| format!("page id {id:02x?} is not known to this version"))?;
        self.loader.page(id, content).map_err(|error| format!("page {id:?}: {error}"))
    }

    fn finish(self: Box<Self>, head: &[u8]) -> Result<(), String> {
        let new = self.loader.finish(head)?;
        let applied = new.applied();
        let old = self.machine.state.write().replace(new);
        self.machine.feed.restart(applied);
        drop_aside(old);
        if let Some(outlet) = &self.machine.outlet {
            let state = self.machine.state.read();
            outlet.replaced(&|ticket| state.outcome_of(ticket));
        }
        Ok(())
    }
}
