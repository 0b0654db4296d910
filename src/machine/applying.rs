//! One log entry being applied: its requests in order, each with what is due before and after it.

use kvorum_raft::{Need, aside};
use tokio::sync::oneshot;

use super::waits;
use crate::{
    commands::{Call, LONG_CALLS},
    effects::{Changes, Class, Ended},
    error::{Error, Result},
    proposal::{self, Answer, Pipeline, Request, Requests, Setting, Step, Watched},
    resp::Reply,
    store::{Caller, Chance, ClusterSetting, Ctx, DATABASES_MAX, Elements, Fate, State, Ticket, View, level},
};

/// How many expired keys one batch removes before its calls run. The rest wait for the next batch, which
/// `next_deadline_ms` asks for; no command sees them in the meantime.
const REAPED_MAX: usize = 1_000;

/// What a pipeline may be answered, whatever the replies to the others in its batch take. They are made before any of
/// them can be sent, so their limits hold for all of them together.
const REPLIES_BYTES_MIN: usize = 64 << 10;

/// The feed's name for changes to claims made by time or by the end of a wait rather than by a command.
const SETTLED: &str = "settled";

/// A batch being applied.
pub(super) struct Applying<'a> {
    pub(super) state: &'a mut State,
    /// The batch's changes; None if nobody wants them.
    pub(super) changes: Option<&'a mut Changes>,
    /// Randomness for the next request; determined by the log index and the request's position in the batch.
    pub(super) seed: u64,
    /// The exactly-once session of the proposing client, if it is in one.
    pub(super) caller: Option<Caller>,
    /// The waits for keys that ended.
    pub(super) ended: Vec<Ended>,
    /// The elements that the reads of the present request have touched. They count apart from those of writes: reads
    /// run only where somebody wants the reply.
    read: Elements,
    /// How many calls were refused because they did not fit into memory.
    pub(super) refused: u64,
    /// What the replies to the batch's pipelines take so far.
    replies_bytes: usize,
}

impl<'a> Applying<'a> {
    pub(super) fn new(state: &'a mut State, changes: Option<&'a mut Changes>, seed: u64) -> Applying<'a> {
        Applying {
            state,
            changes,
            seed,
            caller: None,
            ended: Vec::new(),
            read: Elements::default(),
            refused: 0,
            replies_bytes: 0,
        }
    }

    pub(super) fn reap(&mut self) {
        self.state.begin_request();
        self.state.reap(REAPED_MAX);
        self.note(SETTLED, "lock");
        self.end_due_waits(REAPED_MAX);
        self.serve_waits();
    }

    /// Records the keys touched since the last call as changed by command `name`, of this group.
    pub(super) fn note(&mut self, name: &str, group: &str) {
        if let Some(changes) = &mut self.changes {
            changes.take(self.state, name, Class::of_group(group));
        }
    }

    pub(super) fn run_all(&mut self, requests: &mut Requests<'_>, reply: &mut Reply) {
        for request in requests {
            self.run(request, reply);
        }
    }

    /// Runs a pipeline's writes, and its reads between them.
    pub(super) fn run_pipeline(
        &mut self,
        requests: &mut Requests<'_>,
        pipeline: Pipeline,
    ) -> (oneshot::Sender<Answer>, Answer) {
        let mut replies = pipeline.replies;
        let (bytes_max, before) = (replies.bytes_max(), replies.len());
        let left = bytes_max.saturating_sub(self.replies_bytes);
        replies.limit(left.max(before + REPLIES_BYTES_MIN).min(bytes_max));
        let mut reply = Reply::new(replies, pipeline.protocol);
        let mut fate = Fate::Replied;
        let mut chance = Chance::new(pipeline.chance);
        for step in pipeline.steps {
            match step {
                Step::Ready(bytes) => reply.raw(&bytes),
                Step::Write => match requests.next() {
                    Some(request) => fate = self.run(request, &mut reply),
                    None => reply.error(&Error::err("the proposal is shorter than its pipeline")),
                },
                Step::Silent => {
                    requests.next().map(|request| self.run(request, &mut Reply::off()));
                }
                Step::Read(bytes) => {
                    run_read(self.state, &bytes, chance.next_u64(), &mut reply);
                }
            }
        }
        // Whatever is in the log is applied, whether or not the pipeline has a step for it.
        self.run_all(requests, &mut Reply::off());
        let mut replies = reply.into_buffer();
        self.replies_bytes += replies.len().saturating_sub(before);
        replies.limit(bytes_max);
        (pipeline.done, Answer { replies, fate })
    }

    fn run(&mut self, request: Request<'_>, reply: &mut Reply) -> Fate {
        self.seed = self.seed.wrapping_add(1);
        self.state.begin_request();
        self.read = self.state.elements;
        let mut fate = Fate::Replied;
        match request {
            Request::Call(call) => fate = self.run_call(&call, None, reply),
            Request::InSession(caller) => self.caller = (caller.db < DATABASES_MAX).then_some(caller),
            Request::WaitingCall { ticket, call } => fate = self.run_call(&call, Some(ticket), reply),
            Request::Cancel(waited) => self.with_ctx(waited.db, |ctx| ctx.cancel(waited.key, waited.ticket)),
            Request::Confirm(waited) => {
                self.with_ctx(waited.db, |ctx| ctx.confirm(waited.key, waited.ticket))
            }
            Request::ForgetNode { node, but_boot, term } => {
                if term == 0 || term == self.state.term() {
                    self.with_ctx(0, |ctx| ctx.forget_node(node, but_boot));
                }
            }
            Request::Setting(setting) => self.set(&setting, reply),
            Request::Transaction { watched, calls } => {
                if !watches_hold(self.state, &watched) {
                    reply.null_array();
                } else if let Err(error) = self.check_memory(&calls) {
                    self.refused += 1;
                    reply.error(&error);
                } else if calls.len() > LONG_CALLS {
                    aside::run(|| self.run_transaction(&calls, reply));
                } else {
                    self.run_transaction(&calls, reply);
                }
            }
        }
        self.serve_waits();
        fate
    }

    fn run_transaction(&mut self, calls: &[proposal::Call<'_>], reply: &mut Reply) {
        reply.array(calls.len());
        for call in calls {
            self.seed = self.seed.wrapping_add(1);
            self.run_call(call, None, reply);
        }
    }

    /// Refuses a transaction whose calls do not fit into memory together: as in Redis, none of them runs then.
    fn check_memory(&mut self, calls: &[proposal::Call<'_>]) -> Result<()> {
        if !self.state.has_memory_limit() {
            return Ok(());
        }
        let resolved = calls.iter().filter_map(|call| resolve(call, self.state.level()).ok());
        let growing = resolved.filter(|call| call.spec.writes() && call.need() == Need::Growth);
        let bytes = growing.map(|call| call.bytes()).sum();
        Ctx::new(self.state, 0, self.seed).check_memory(bytes)
    }

    /// Changes a setting of the whole cluster.
    fn set(&mut self, setting: &Setting<'_>, reply: &mut Reply) {
        let mut ctx = Ctx::new(self.state, 0, self.seed);
        match (ClusterSetting::named(setting.name), setting.value()) {
            (Some(which), Some(value)) if ctx.level() >= which.level() => {
                if !setting.is_default || ctx.setting(which).is_none() {
                    ctx.set_setting(which, value);
                }
                reply.ok();
            }
            _ => reply.error(&Error::err("this version does not know that setting of the cluster")),
        }
    }

    fn with_ctx(&mut self, db: u32, run: impl FnOnce(&mut Ctx<'_>)) {
        if db < DATABASES_MAX {
            run(&mut Ctx::new(self.state, db, self.seed));
            self.note(SETTLED, "lock");
        }
    }

    /// Runs a call; with a ticket it may wait, and then writes no reply.
    fn run_call(&mut self, request: &proposal::Call<'_>, ticket: Option<Ticket>, reply: &mut Reply) -> Fate {
        let result = resolve(request, self.state.level()).and_then(|call| {
            if !call.spec.writes() {
                let view = View::new(self.state, request.db, self.state.now_ms(), self.seed);
                let view = view.at_level(self.state.level());
                view.elements.set(self.read);
                let result = call.read_if_asked(&view, reply);
                self.read = view.elements.get();
                result?;
                return Ok(Fate::Replied);
            }
            let mut ctx = Ctx::new(self.state, request.db, self.seed);
            ctx.ticket = ticket;
            ctx.caller = self.caller.clone();
            ctx.settle(|| call.keys().into_iter().map(|(key, _)| key));
            ctx.read.set(self.read);
            let result = call.run(&mut ctx, None, reply).map(|()| ctx.fate);
            self.read = ctx.read.get();
            if let (Ok(Fate::Queued), Some(ticket)) = (&result, ticket)
                && let Some(wait) = waits::wait_for_keys(&call, ticket, &ctx)
            {
                // It found nothing, and so has changed nothing.
                ctx.check_memory(wait.bytes())?;
                ctx.add_wait(wait);
            }
            let spec = call.innermost().spec;
            self.note(spec.name, spec.group);
            result
        });
        result.unwrap_or_else(|error| {
            self.refused += u64::from(error == Error::OutOfMemory);
            reply.error(&error);
            Fate::Replied
        })
    }
}

/// A transaction runs only if no watched key has changed.
fn watches_hold(state: &State, watched: &[Watched<'_>]) -> bool {
    watched
        .iter()
        .all(|watch| View::new(state, watch.db, state.now_ms(), 0).version(watch.key) == watch.version)
}

/// A call, after the checks that apply to every one, by the rules of an apply level.
fn resolve<'a>(call: &'a proposal::Call<'_>, level: u32) -> Result<Call<'a>> {
    if call.db >= DATABASES_MAX {
        return Err(Error::err("DB index is out of range"));
    }
    Call::resolve_at(&call.argv, level)
}

/// Runs a pipeline's read at its position.
fn run_read(state: &State, request: &[u8], chance: u64, reply: &mut Reply) {
    let result = match Requests::new(request).next() {
        Some(Request::Call(call)) => resolve(&call, level::LEVEL_MAX).and_then(|resolved| {
            // The clock does not move within an entry, so no key is late here.
            resolved.read(&View::new(state, call.db, state.now_ms(), chance), reply)
        }),
        _ => Err(Error::err("the request is malformed")),
    };
    if let Err(error) = result {
        reply.error(&error);
    }
}

#[cfg(test)]
mod tests {
    use kvorum_raft::{Batch, Machine as _, Proposal};
    use tokio::sync::oneshot;

    use super::REPLIES_BYTES_MIN;
    use crate::{
        machine::Machine,
        proposal::{Pipeline, Step, put_call},
        resp::{Protocol, Replies},
        store::level,
    };

    /// Applies an entry with a pipeline for each of these calls, and gives what they are answered; None for what was given
    /// up.
    fn answers(machine: &Machine, index: u64, bytes_max: usize, calls: &[&[&[u8]]]) -> Vec<Option<usize>> {
        let proposals = calls.iter().map(|argv| {
            let mut bytes = Vec::new();
            put_call(&mut bytes, 0, argv);
            let (done, answer) = oneshot::channel();
            let (protocol, replies) = (Protocol::Resp2, Replies::within(bytes_max));
            (bytes, Pipeline { steps: vec![Step::Write], protocol, chance: 0, replies, done }, answer)
        });
        let (mut sent, mut answers) = (Vec::new(), Vec::new());
        for (bytes, pipeline, answer) in proposals {
            sent.push((bytes, pipeline));
            answers.push(answer);
        }
        let (bytes, locals): (Vec<_>, Vec<_>) = sent.into_iter().unzip();
        let proposals = bytes.iter().zip(locals).map(|(bytes, local)| Proposal { bytes, local: Some(local) });
        let proposals = proposals.collect();
        let level = level::LEVEL_MAX;
        machine.apply(Batch { index, stamp_ms: index, ahead_ms: 0, term: 1, level, raised: None, proposals });
        let answers = answers.into_iter().map(|mut answer| answer.try_recv().unwrap().replies);
        answers
            .map(|replies| {
                assert_eq!(replies.bytes_max(), bytes_max);
                (!replies.is_over()).then(|| replies.len())
            })
            .collect()
    }

    #[test]
    fn the_replies_of_one_entry_have_a_limit_together() {
        let machine = Machine::new(16);
        let value = [b'x'; 300_000];
        let get: &[&[u8]] = &[b"GET", b"k"];
        let small: &[&[u8]] = &[b"STRLEN", b"k"];
        let whole = Some(value.len() + 11);
        assert_eq!(answers(&machine, 1, 1_000_000, &[&[b"SET", b"k", &value]]), [Some(5)]);
        let expected = [whole, whole, whole, None, Some(9), None];
        assert_eq!(answers(&machine, 2, 1_000_000, &[get, get, get, get, small, get]), expected);
        assert_eq!(answers(&machine, 3, 1_000_000, &[get, small]), [whole, Some(9)]);
        // Each has a little in any case, unless that is more than its own limit.
        let tail: &[&[u8]] = &[b"GETRANGE", b"k", b"0", b"60000"];
        const { assert!(60_000 < REPLIES_BYTES_MIN) };
        let expected = [whole, None, Some(60_001 + 10)];
        assert_eq!(answers(&machine, 4, 300_100, &[get, get, tail]), expected);
        assert_eq!(answers(&machine, 5, 60_000, &[tail, small]), [None, Some(9)]);
    }
}
