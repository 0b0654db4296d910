//! What travels in the log: the writes of one connection's pipeline, in their order. And what the proposing
//! node keeps meanwhile: the pipeline with its reads and ready replies at their positions.
//!
//! A proposal is a sequence of requests. A request is a tag and then either one call, or a transaction: the
//! watched keys with the versions that were seen, and the queued calls; or what has to be said of those who wait. A
//! call is the database, the number of arguments and the arguments. Numbers are LEB128 varints.

use kvorum_raft::{Local, ProposeError, Unavailable};
use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::{
    error::Error,
    resp::{Protocol, Reply},
    store::{
        Caller, Ticket,
        codec::{put_bytes, put_varint},
    },
};

const CALL: u8 = 1;
const TRANSACTION: u8 = 2;
const WAITING_CALL: u8 = 3;
const CANCEL: u8 = 4;
const CONFIRM: u8 = 5;
const FORGET_NODE: u8 = 6;
const IN_SESSION: u8 = 7;

/// Arguments of one call, the name first.
pub type Argv<'a> = SmallVec<[&'a [u8]; 8]>;

/// One command as it is executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// The selected database.
    pub db: u32,
    /// Never empty.
    pub argv: Argv<'a>,
}

/// A key that WATCH named, and what it was then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched<'a> {
    /// The database that was selected.
    pub db: u32,
    /// The key.
    pub key: &'a [u8],
    /// The key's version, 0 when there was no such key.
    pub version: u64,
}

/// One request in a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// A single command.
    Call(Call<'a>),
    /// EXEC: nothing runs and the reply is null if a watched key's version is another.
    Transaction {
        /// What WATCH named.
        watched: Vec<Watched<'a>>,
        /// The queued commands, reads among them.
        calls: Vec<Call<'a>>,
    },
    /// A single command that may wait. When it does it has no reply; the holder of the ticket is told how it ended.
    WaitingCall {
        /// Whom to tell.
        ticket: Ticket,
        /// The command.
        call: Call<'a>,
    },
    /// Whoever waited at a key is gone: what it was granted is free again. No reply.
    Cancel(Waited<'a>),
    /// Whoever waited at a key knows what it was granted. No reply.
    Confirm(Waited<'a>),
    /// Nobody waits at a node any more, but for those of one run of it. No reply.
    ForgetNode {
        /// The node.
        node: u64,
        /// Its run that goes on, or 0.
        but_boot: u64,
        /// Holds only in an entry of this term: the leader that says it may not lead any more. 0 for any.
        term: u64,
    },
    /// The requests that follow in the proposal are those of a client in this session. No reply.
    InSession(Caller),
}

/// A wait, and where it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waited<'a> {
    /// The database.
    pub db: u32,
    /// What was waited for.
    pub key: &'a [u8],
    /// Under which ticket.
    pub ticket: Ticket,
}

/// Appends a call as a request of its own.
pub fn put_call(out: &mut Vec<u8>, db: u32, argv: &[&[u8]]) {
    out.push(CALL);
    put_bare_call(out, db, argv);
}

/// Appends a transaction.
pub fn put_transaction(out: &mut Vec<u8>, watched: &[Watched<'_>], calls: &[Call<'_>]) {
    out.push(TRANSACTION);
    put_varint(out, watched.len() as u64);
    for watch in watched {
        put_varint(out, u64::from(watch.db));
        put_bytes(out, watch.key);
        put_varint(out, watch.version);
    }
    put_varint(out, calls.len() as u64);
    for call in calls {
        put_bare_call(out, call.db, &call.argv);
    }
}

/// Appends a call that may wait, as a request of its own.
pub fn put_waiting_call(out: &mut Vec<u8>, ticket: Ticket, db: u32, argv: &[&[u8]]) {
    out.push(WAITING_CALL);
    ticket.encode(out);
    put_bare_call(out, db, argv);
}

/// Appends that whoever waited is gone.
pub fn put_cancel(out: &mut Vec<u8>, waited: &Waited<'_>) {
    out.push(CANCEL);
    put_waited(out, waited);
}

/// Appends that whoever waited knows of its grant.
pub fn put_confirm(out: &mut Vec<u8>, waited: &Waited<'_>) {
    out.push(CONFIRM);
    put_waited(out, waited);
}

/// Appends that nobody waits at a node, but for one run of it.
pub fn put_forget_node(out: &mut Vec<u8>, node: u64, but_boot: u64, term: u64) {
    out.push(FORGET_NODE);
    [node, but_boot, term].into_iter().for_each(|number| put_varint(out, number));
}

/// Appends that what follows is called from a session.
pub fn put_in_session(out: &mut Vec<u8>, db: u32, id: &[u8], protocol: Protocol) {
    out.push(IN_SESSION);
    put_varint(out, u64::from(db));
    put_bytes(out, id);
    put_varint(out, u64::from(protocol == Protocol::Resp3));
}

fn put_waited(out: &mut Vec<u8>, waited: &Waited<'_>) {
    put_varint(out, u64::from(waited.db));
    put_bytes(out, waited.key);
    waited.ticket.encode(out);
}

fn put_bare_call(out: &mut Vec<u8>, db: u32, argv: &[&[u8]]) {
    put_varint(out, u64::from(db));
    put_varint(out, argv.len() as u64);
    for argument in argv {
        put_bytes(out, argument);
    }
}

/// The requests of a proposal, one after the other. Ends at the first that is malformed: proposals are made by
/// [`put_call`] and [`put_transaction`] and guarded by the log's CRC, so that is a broken invariant of the
/// caller, or a later version's doing, and never a client's.
pub struct Requests<'a> {
    rest: &'a [u8],
    is_malformed: bool,
    unknown_tag: Option<u8>,
}

impl<'a> Requests<'a> {
    /// Reads `bytes`.
    pub fn new(bytes: &'a [u8]) -> Requests<'a> {
        Requests { rest: bytes, is_malformed: false, unknown_tag: None }
    }

    /// Whether nothing is left, malformed or not.
    pub fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// Whether one that is malformed, or not known, has ended them.
    pub fn is_malformed(&self) -> bool {
        self.is_malformed
    }

    /// The kind of the request that ended them, if it is one that this version does not know.
    pub fn unknown_tag(&self) -> Option<u8> {
        self.unknown_tag
    }

    fn request(&mut self) -> Option<Request<'a>> {
        let (&tag, rest) = self.rest.split_first()?;
        self.rest = rest;
        match tag {
            CALL => Some(Request::Call(self.call()?)),
            TRANSACTION => {
                let watched = (0..self.varint()?).map(|_| self.watched()).collect::<Option<_>>()?;
                let calls = (0..self.varint()?).map(|_| self.call()).collect::<Option<_>>()?;
                Some(Request::Transaction { watched, calls })
            }
            WAITING_CALL => Some(Request::WaitingCall { ticket: self.ticket()?, call: self.call()? }),
            CANCEL => Some(Request::Cancel(self.waited()?)),
            CONFIRM => Some(Request::Confirm(self.waited()?)),
            IN_SESSION => Some(Request::InSession(self.caller()?)),
            FORGET_NODE => {
                let (node, but_boot, term) = (self.varint()?, self.varint()?, self.varint()?);
                Some(Request::ForgetNode { node, but_boot, term })
            }
            tag => {
                self.unknown_tag = Some(tag);
                None
            }
        }
    }

    fn ticket(&mut self) -> Option<Ticket> {
        Some(Ticket { node: self.varint()?, boot: self.varint()?, number: self.varint()? })
    }

    fn caller(&mut self) -> Option<Caller> {
        Some(Caller { db: self.varint()? as u32, id: self.bytes()?.into(), is_resp3: self.varint()? == 1 })
    }

    fn waited(&mut self) -> Option<Waited<'a>> {
        Some(Waited { db: self.varint()? as u32, key: self.bytes()?, ticket: self.ticket()? })
    }

    fn watched(&mut self) -> Option<Watched<'a>> {
        Some(Watched { db: self.varint()? as u32, key: self.bytes()?, version: self.varint()? })
    }

    fn call(&mut self) -> Option<Call<'a>> {
        let db = self.varint()? as u32;
        let argv = (0..self.varint()?).map(|_| self.bytes()).collect::<Option<Argv<'a>>>()?;
        (!argv.is_empty()).then_some(Call { db, argv })
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.varint()?).ok()?;
        let (bytes, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(bytes)
    }
}

impl<'a> Iterator for Requests<'a> {
    type Item = Request<'a>;

    fn next(&mut self) -> Option<Request<'a>> {
        if self.is_malformed || self.is_at_end() {
            return None;
        }
        let request = self.request();
        self.is_malformed = request.is_none();
        request
    }
}

/// One reply's worth of a pipeline.
#[derive(Debug)]
pub enum Step {
    /// The reply is known already.
    Ready(Vec<u8>),
    /// The next request of the proposal; its reply is made where it is applied.
    Write,
    /// The next request of the proposal, which has no reply.
    Silent,
    /// A read, executed at this position by this node alone: an encoded request of its own, not in the log.
    Read(Vec<u8>),
}

/// A connection's pipeline that waits for its position in the log: [`kvorum_raft::Machine::Local`].
///
/// Invariants:
/// - The number of `Step::Write` and `Step::Silent` is the number of requests in the proposal.
/// - `done` gets the replies of all steps, in their order, appended to `replies`: also on failure.
#[derive(Debug)]
pub struct Pipeline {
    /// What to answer, in order.
    pub steps: Vec<Step>,
    /// The connection's protocol version; the same for all steps.
    pub protocol: Protocol,
    /// Chance for the reads among the steps.
    pub chance: u64,
    /// Replies go to its end; usually the connection's own buffer, lent.
    pub replies: Vec<u8>,
    /// Takes the buffer back.
    pub done: oneshot::Sender<Vec<u8>>,
}

impl Local for Pipeline {
    fn failed(self, error: ProposeError) {
        let mut reply = Reply::new(self.replies, self.protocol);
        let text = error_of(&error);
        for step in &self.steps {
            match step {
                Step::Ready(bytes) => reply.raw(bytes),
                Step::Write => reply.error(&text),
                Step::Silent => {}
                // A read changes nothing, so its failure is always "not applied".
                Step::Read(_) => reply.error(&not_applied(&text)),
            }
        }
        // The connection may be gone; then nobody needs the replies.
        let _ = self.done.send(reply.into_buffer());
    }
}

/// What a client is told when its write was not answered by `apply`.
pub fn error_of(error: &ProposeError) -> Error {
    match error {
        ProposeError::Unknown => Error::Uncertain,
        ProposeError::NotApplied(why) => unavailable(why),
    }
}

/// What a client is told when the group cannot serve it: always "not applied".
pub fn unavailable(why: &Unavailable) -> Error {
    match why {
        Unavailable::Overloaded => Error::Other(format!("TRYAGAIN {why}").into()),
        Unavailable::TooLarge(_) => Error::err(why.to_string()),
        Unavailable::NoRoom(_) => Error::Other(format!("OOM {why}").into()),
        Unavailable::NotServing(_) => Error::Other(format!("LOADING {why}").into()),
        Unavailable::NoLeader | Unavailable::NoQuorum => Error::Other(format!("CLUSTERDOWN {why}").into()),
    }
}

fn not_applied(error: &Error) -> Error {
    match error {
        Error::Uncertain => {
            Error::Other("CLUSTERDOWN the leader was lost before the read was confirmed".into())
        }
        other => other.clone(),
    }
}
