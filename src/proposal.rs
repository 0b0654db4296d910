//! What travels in the log: the writes of one connection's pipeline, in order. And what the proposing node
//! keeps in the meantime: the pipeline with its reads and its ready replies at their positions.
//!
//! A proposal is a sequence of requests. A request is a tag followed by a call, by a transaction (the watched
//! keys with the versions that were seen, and the queued calls), or by a notice about waits. A call is the
//! database, the number of arguments and the arguments. Numbers are LEB128 varints.

use kvorum_raft::{Local, ProposeError, Unavailable};
use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::{
    error::Error,
    resp::{Protocol, Replies, Reply},
    store::{
        Caller, Fate, Ticket,
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
const SETTING: u8 = 8;

/// Arguments of one call, the name first.
pub type Argv<'a> = SmallVec<[&'a [u8]; 8]>;

/// One command to be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// The selected database.
    pub db: u32,
    /// Never empty.
    pub argv: Argv<'a>,
}

/// A key watched with WATCH, and its version at that time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched<'a> {
    /// The database of the key.
    pub db: u32,
    /// The key.
    pub key: &'a [u8],
    /// The key's version; 0 if the key did not exist.
    pub version: u64,
}

/// One request in a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// A single command.
    Call(Call<'a>),
    /// EXEC: if a watched key's version has changed, nothing runs and the reply is null.
    Transaction {
        /// The watched keys.
        watched: Vec<Watched<'a>>,
        /// The queued commands, including reads.
        calls: Vec<Call<'a>>,
    },
    /// A command that may wait. If it does, it has no reply: the holder of the ticket is told later how the
    /// wait ended.
    WaitingCall {
        /// The ticket of the wait.
        ticket: Ticket,
        /// The command.
        call: Call<'a>,
    },
    /// The client that waited is gone: whatever it was granted is released. No reply.
    Cancel(Waited<'a>),
    /// The client that waited has been told of its grant. No reply.
    Confirm(Waited<'a>),
    /// A node's waits are over, except those of one run of it. No reply.
    ForgetNode {
        /// The node.
        node: u64,
        /// The run that continues, or 0 for none.
        but_boot: u64,
        /// Takes effect only in an entry of this term, because the leader that proposed it may have been
        /// deposed. 0 for any.
        term: u64,
    },
    /// The client that sent the rest of the proposal's requests is in this exactly-once session. No reply.
    InSession(Caller),
    /// A setting of the whole cluster.
    Setting(Setting<'a>),
}

/// A wait, and the key where it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waited<'a> {
    /// The database.
    pub db: u32,
    /// The key on which the client waits.
    pub key: &'a [u8],
    /// The ticket of the wait.
    pub ticket: Ticket,
}

/// A change to a setting of the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<'a> {
    /// Which setting.
    pub name: &'a [u8],
    /// Its value, in decimal digits.
    pub digits: &'a [u8],
    /// It is set only if it never was.
    pub is_default: bool,
}

impl Setting<'_> {
    /// The value, if it is a number.
    pub fn value(&self) -> Option<u64> {
        std::str::from_utf8(self.digits).ok()?.parse().ok()
    }
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

/// Appends a [`Request::Cancel`].
pub fn put_cancel(out: &mut Vec<u8>, waited: &Waited<'_>) {
    out.push(CANCEL);
    put_waited(out, waited);
}

/// Appends a [`Request::Confirm`].
pub fn put_confirm(out: &mut Vec<u8>, waited: &Waited<'_>) {
    out.push(CONFIRM);
    put_waited(out, waited);
}

/// Appends a [`Request::ForgetNode`].
pub fn put_forget_node(out: &mut Vec<u8>, node: u64, but_boot: u64, term: u64) {
    out.push(FORGET_NODE);
    [node, but_boot, term].into_iter().for_each(|number| put_varint(out, number));
}

/// Appends a [`Request::InSession`].
pub fn put_in_session(out: &mut Vec<u8>, db: u32, id: &[u8], protocol: Protocol) {
    out.push(IN_SESSION);
    put_varint(out, u64::from(db));
    put_bytes(out, id);
    put_varint(out, u64::from(protocol == Protocol::Resp3));
}

/// Appends a [`Request::Setting`].
pub fn put_setting(out: &mut Vec<u8>, setting: &Setting<'_>) {
    out.push(SETTING);
    put_bytes(out, setting.name);
    put_bytes(out, setting.digits);
    put_varint(out, u64::from(setting.is_default));
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

/// Iterates over the requests of a proposal. Ends at the first malformed one: proposals are made by
/// [`put_call`] and [`put_transaction`] and guarded by the log's CRC, so a malformed request is a bug in the
/// caller or comes from a later version, and is never a client's doing.
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

    /// Whether no bytes are left, malformed or not.
    pub fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// Whether iteration ended at a malformed or unknown request.
    pub fn is_malformed(&self) -> bool {
        self.is_malformed
    }

    /// The tag of the request at which iteration ended, if this version does not know that tag.
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
            SETTING => Some(Request::Setting(Setting {
                name: self.bytes()?,
                digits: self.bytes()?,
                is_default: self.varint()? == 1,
            })),
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
    /// The next request of the proposal; its reply is produced when it is applied.
    Write,
    /// The next request of the proposal, which has no reply.
    Silent,
    /// A read, executed at this position on this node only: an encoded request of its own, not in the log.
    Read(Vec<u8>),
}

/// A connection's pipeline while its proposal is on its way through the log: [`kvorum_raft::Machine::Local`].
///
/// Invariants:
/// - The number of `Step::Write` and `Step::Silent` is the number of requests in the proposal.
/// - `done` gets the replies of all steps, in order, also on failure.
#[derive(Debug)]
pub struct Pipeline {
    /// What to answer, in order.
    pub steps: Vec<Step>,
    /// The connection's protocol version; the same for all steps.
    pub protocol: Protocol,
    /// Seed of the randomness for the reads among the steps.
    pub chance: u64,
    /// Replies are appended to it; usually the connection's own buffer, lent.
    pub replies: Replies,
    /// Gives the buffer back.
    pub done: oneshot::Sender<Answer>,
}

/// The answer to a pipeline.
#[derive(Debug)]
pub struct Answer {
    /// The replies, appended to [`Pipeline::replies`].
    pub replies: Replies,
    /// What has become of the last write.
    pub fate: Fate,
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
        let is_unknown = matches!(error, ProposeError::Unknown);
        let fate = if is_unknown { Fate::Unknown } else { Fate::Refused };
        // If the connection is gone, nobody needs the replies.
        let _ = self.done.send(Answer { replies: reply.into_buffer(), fate });
    }
}

/// The error for a client whose write was not answered by `apply`.
pub fn error_of(error: &ProposeError) -> Error {
    match error {
        ProposeError::Unknown => Error::Uncertain,
        ProposeError::NotApplied(why) => unavailable(why),
    }
}

/// The error for a client when the cluster cannot serve it: always "not applied".
pub fn unavailable(why: &Unavailable) -> Error {
    match why {
        Unavailable::Overloaded => Error::Other(format!("TRYAGAIN {why}").into()),
        Unavailable::TooLarge(_) => Error::err(why.to_string()),
        Unavailable::NoRoom(_) => Error::Other(format!("OOM {why}").into()),
        Unavailable::NotServing(_) => Error::Other(format!("LOADING {why}").into()),
        Unavailable::NoLeader | Unavailable::NoQuorum | Unavailable::Apart(_) => {
            Error::Other(format!("CLUSTERDOWN {why}").into())
        }
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
