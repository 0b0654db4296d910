//! A machine without a cluster: runs command lines and gives the replies as bytes. One call is one log entry;
//! time stands still unless the test moves it.
//!
//! Knows as much of a session as transcripts of data commands need: SELECT, MULTI, EXEC, DISCARD, WATCH.

use kvorum::{
    commands::{self, Run},
    error::Error,
    machine::{APPLY_LEVEL_MAX, Machine},
    proposal::{Call, Pipeline, Step, Watched, put_call, put_transaction},
    resp::{Protocol, Replies, Reply},
};
use kvorum_raft::{Batch, Machine as _, Proposal};
use tokio::sync::oneshot;

/// A machine and one connection to it.
pub struct Alone {
    pub machine: Machine,
    pub now_ms: u64,
    /// How far the log's clock is ahead of the wall clock.
    pub ahead_ms: i64,
    pub protocol: Protocol,
    /// Of all entries.
    pub level: u32,
    /// What the first entry brings, which raises the level.
    hash_key: Option<[u8; 16]>,
    index: u64,
    reads: u64,
    db: u32,
    /// A command was refused while calls were queued: EXEC will do nothing.
    is_aborted: bool,
    queued: Option<Vec<(u32, Vec<Vec<u8>>)>>,
    watched: Vec<(u32, Vec<u8>, u64)>,
}

impl Default for Alone {
    fn default() -> Self {
        kvorum::connection::table::prepare();
        Alone {
            machine: Machine::new(16),
            now_ms: 1_700_000_000_000,
            ahead_ms: 0,
            protocol: Protocol::Resp2,
            level: APPLY_LEVEL_MAX,
            hash_key: Some(HASH_KEY),
            index: 0,
            reads: 0,
            db: 0,
            is_aborted: false,
            queued: None,
            watched: Vec::new(),
        }
    }
}

impl Alone {
    /// One whose cluster had data before there were hash keys.
    pub fn without_hash_key() -> Alone {
        Alone { hash_key: None, ..Alone::default() }
    }

    /// One whose log's clock is so far ahead of the wall clock.
    pub fn ahead(ahead_ms: i64) -> Alone {
        Alone { ahead_ms, ..Alone::default() }
    }

    /// Runs a command line of words without quotes, in RESP2 unless `protocol` is another.
    pub fn line(&mut self, line: &str) -> Vec<u8> {
        let argv: Vec<&[u8]> = line.split_whitespace().map(str::as_bytes).collect();
        self.run(&argv)
    }

    /// As `line`, for tests that compare text.
    pub fn text(&mut self, line: &str) -> String {
        String::from_utf8_lossy(&self.line(line)).into_owned()
    }

    /// Runs a command.
    pub fn run(&mut self, argv: &[&[u8]]) -> Vec<u8> {
        let mut reply = Reply::new(Vec::new(), self.protocol);
        let name = argv[0].to_ascii_uppercase();
        match (&name[..], &mut self.queued) {
            (b"SELECT", None) => {
                self.db = std::str::from_utf8(argv[1]).unwrap().parse().unwrap();
                reply.ok();
            }
            (b"MULTI", None) => {
                self.queued = Some(Vec::new());
                reply.ok();
            }
            (b"WATCH", None) => {
                let (db, now_ms) = (self.db, self.now_ms);
                let version = |key: &&[u8]| self.machine.read(db, now_ms, 0, |view| view.version(key));
                self.watched.extend(argv[1..].iter().map(|key| (db, key.to_vec(), version(key))));
                reply.ok();
            }
            (b"UNWATCH", None) => {
                self.watched.clear();
                reply.ok();
            }
            (b"DISCARD", queued @ Some(_)) => {
                *queued = None;
                self.is_aborted = false;
                self.watched.clear();
                reply.ok();
            }
            (b"EXEC", Some(_)) => return self.exec(),
            (_, Some(queued)) => match commands::Call::resolve(argv) {
                Ok(_) => {
                    queued.push((self.db, argv.iter().map(|argument| argument.to_vec()).collect()));
                    reply.simple("QUEUED");
                }
                Err(error) => {
                    self.is_aborted = true;
                    reply.error(&error);
                }
            },
            (_, None) => return self.run_alone(argv),
        }
        reply.into_buffer().into_bytes()
    }

    fn run_alone(&mut self, argv: &[&[u8]]) -> Vec<u8> {
        let mut reply = Reply::new(Vec::new(), self.protocol);
        match commands::Call::resolve(argv) {
            Err(error) => reply.error(&error),
            Ok(call) if matches!(call.spec.run, Run::Read(_)) => {
                self.reads += 1;
                let read = |alone: &Alone, reply: &mut Reply| {
                    alone.machine.read(alone.db, alone.now_ms, alone.reads, |view| {
                        call.read_or_error(view, reply);
                        view.late.get()
                    })
                };
                // What a connection does about keys that are late: a tick, then again.
                if read(self, &mut reply) {
                    self.apply(&[]);
                    reply = Reply::new(Vec::new(), self.protocol);
                    assert!(!read(self, &mut reply));
                }
            }
            Ok(_) => {
                let mut request = Vec::new();
                put_call(&mut request, self.db, argv);
                return self.propose(&request);
            }
        }
        reply.into_buffer().into_bytes()
    }

    fn exec(&mut self) -> Vec<u8> {
        let queued = self.queued.take().unwrap();
        let watched = std::mem::take(&mut self.watched);
        if std::mem::take(&mut self.is_aborted) {
            let mut reply = Reply::new(Vec::new(), self.protocol);
            let text = "EXECABORT Transaction discarded because of previous errors.";
            reply.error(&Error::Other(text.into()));
            return reply.into_buffer().into_bytes();
        }
        let watched: Vec<_> =
            watched.iter().map(|(db, key, version)| Watched { db: *db, key, version: *version }).collect();
        let calls: Vec<_> = queued
            .iter()
            .map(|(db, argv)| Call { db: *db, argv: argv.iter().map(Vec::as_slice).collect() })
            .collect();
        let mut request = Vec::new();
        put_transaction(&mut request, &watched, &calls);
        self.propose(&request)
    }

    /// One log entry with one request; gives its reply.
    fn propose(&mut self, request: &[u8]) -> Vec<u8> {
        let (done, mut replies) = oneshot::channel();
        let pipeline = Pipeline {
            steps: vec![Step::Write],
            protocol: self.protocol,
            chance: self.index,
            replies: Replies::default(),
            done,
        };
        self.index += 1;
        let proposals = vec![Proposal { bytes: request, local: Some(pipeline) }];
        let (level, raised) = (self.level, self.hash_key.take());
        let (stamp_ms, ahead_ms) = (self.now_ms, self.ahead_ms);
        let batch = Batch { index: self.index, stamp_ms, ahead_ms, term: 1, level, raised, proposals };
        self.machine.apply(batch);
        replies.try_recv().unwrap().replies.into_bytes()
    }

    /// One log entry of other nodes' proposals; none is a tick.
    pub fn apply(&mut self, proposals: &[Vec<u8>]) {
        self.index += 1;
        let raised = self.hash_key.take();
        let proposals = proposals.iter().map(|bytes| Proposal { bytes, local: None }).collect();
        let (stamp_ms, ahead_ms, level) = (self.now_ms, self.ahead_ms, self.level);
        self.machine.apply(Batch {
            index: self.index,
            stamp_ms,
            ahead_ms,
            term: 1,
            level,
            raised,
            proposals,
        });
    }
}

/// What a cluster draws when it is formed.
pub const HASH_KEY: [u8; 16] = *b"drawn by chance!";

/// Applies a log entry of an apply level, perhaps the one that raised it, that nobody on this node waits for.
pub fn apply_at(
    machine: &Machine,
    index: u64,
    stamp_ms: u64,
    term: u64,
    (level, raised): (u32, Option<[u8; 16]>),
    proposals: &[Vec<u8>],
) {
    let proposals = proposals.iter().map(|bytes| Proposal { bytes, local: None }).collect();
    machine.apply(Batch { index, stamp_ms, ahead_ms: 0, term, level, raised, proposals });
}
