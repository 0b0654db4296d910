//! A client's connection: requests out, replies in, and what a failure means for the request.
//!
//! Strict about outcomes: after `UNCERTAIN`, a timeout, a broken connection or a nonsensical reply the
//! outcome is unknown; every other error means that nothing was done, and the checkers hold the server to it.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use redis_protocol::resp2::{decode::decode, types::OwnedFrame};

/// A larger reply is a fault of the server, or of the proxy in front of it.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// Nothing has arrived in time.
pub(crate) const TIMEOUT: &str = "timeout";

/// Why an operation was not done, or may not have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Certainly not done.
    Fail(String),
    /// The outcome is unknown.
    Info(String),
}

impl Failure {
    /// For a step that changes nothing, whatever its outcome.
    pub(crate) fn harmless(self) -> Failure {
        match self {
            Failure::Fail(why) | Failure::Info(why) => Failure::Fail(why),
        }
    }

    fn of_reply(text: &str) -> Failure {
        match text.split(' ').next() {
            Some("UNCERTAIN") => Failure::Info(text.to_owned()),
            _ => Failure::Fail(text.to_owned()),
        }
    }
}

pub(crate) type Outcome<T> = Result<T, Failure>;

/// A reply that is not an error, except inside an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Nil,
    Integer(i64),
    Text(String),
    Array(Vec<Reply>),
    Error(String),
}

impl From<OwnedFrame> for Reply {
    fn from(frame: OwnedFrame) -> Reply {
        match frame {
            OwnedFrame::SimpleString(bytes) | OwnedFrame::BulkString(bytes) => {
                Reply::Text(String::from_utf8_lossy(&bytes).into_owned())
            }
            OwnedFrame::Error(text) => Reply::Error(text),
            OwnedFrame::Integer(integer) => Reply::Integer(integer),
            OwnedFrame::Array(frames) => Reply::Array(frames.into_iter().map(Reply::from).collect()),
            OwnedFrame::Null => Reply::Nil,
        }
    }
}

impl Reply {
    /// An integer, or text that contains one; None for nil.
    pub(crate) fn number(&self) -> Outcome<Option<i64>> {
        match self {
            Reply::Nil => Ok(None),
            Reply::Integer(integer) => Ok(Some(*integer)),
            Reply::Text(text) => {
                text.parse().map(Some).map_err(|_| Failure::Info(format!("no number: {text:?}")))
            }
            other => Err(other.unexpected()),
        }
    }

    /// The elements, all numbers; nil counts as empty.
    pub(crate) fn numbers(&self) -> Outcome<Vec<i64>> {
        match self {
            Reply::Nil => Ok(Vec::new()),
            Reply::Array(elements) => {
                let numbers = elements.iter().map(|element| {
                    element.number().and_then(|number| number.ok_or_else(|| element.unexpected()))
                });
                numbers.collect()
            }
            other => Err(other.unexpected()),
        }
    }

    /// A reply that is invalid for this request: it was executed, but with an unknown effect.
    pub(crate) fn unexpected(&self) -> Failure {
        Failure::Info(format!("unexpected reply {self:?}"))
    }
}

/// A request as an array of bulk strings.
pub(crate) fn encode(out: &mut Vec<u8>, words: &[impl AsRef<str>]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        let word = word.as_ref();
        out.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
}

/// Transports a connection's bytes, and has its time: a socket's, or a simulation's.
pub(crate) trait Wire: Send {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Reads what arrives within `limit`; 0 is the end.
    fn read(&mut self, buffer: &mut [u8], limit: Duration) -> io::Result<usize>;
    /// A monotonic clock.
    fn now(&self) -> Duration;
    fn sleep(&mut self, time: Duration);
}

impl Wire for TcpStream {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        io::Write::write_all(self, bytes)
    }

    fn read(&mut self, buffer: &mut [u8], limit: Duration) -> io::Result<usize> {
        self.set_read_timeout(Some(limit))?;
        io::Read::read(self, buffer)
    }

    fn now(&self) -> Duration {
        static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);
        STARTED.elapsed()
    }

    fn sleep(&mut self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// Incoming bytes, decoded into frames.
pub(crate) struct Frames {
    wire: Box<dyn Wire>,
    buffer: Vec<u8>,
}

impl Frames {
    pub(crate) fn new(wire: impl Wire + 'static) -> Frames {
        Frames { wire: Box::new(wire), buffer: Vec::new() }
    }

    pub(crate) fn wire(&mut self) -> &mut dyn Wire {
        &mut *self.wire
    }

    /// The next frame; None if the other side has closed. `limit` bounds all reads together.
    pub(crate) fn next(&mut self, limit: Duration) -> Result<Option<OwnedFrame>, String> {
        let deadline = self.wire.now() + limit;
        loop {
            if let Some((frame, len)) = decode(&self.buffer).map_err(|error| error.to_string())? {
                self.buffer.drain(..len);
                return Ok(Some(frame));
            }
            if self.buffer.len() > REPLY_BYTES_MAX {
                return Err("the reply is too large".into());
            }
            let left = deadline.saturating_sub(self.wire.now());
            if left.is_zero() {
                return Err(TIMEOUT.into());
            }
            let mut chunk = [0; 16 << 10];
            match self.wire.read(&mut chunk, left) {
                Ok(0) => return Ok(None),
                Ok(len) => self.buffer.extend_from_slice(&chunk[..len]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Err(TIMEOUT.into()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// The number of connections opened.
static OPENED: AtomicU64 = AtomicU64::new(0);

/// One connection. It is broken after an unknown outcome: a late reply must not be mistaken for that of
/// another request.
pub(crate) struct Connection {
    frames: Frames,
    pub(crate) timeout: Duration,
    pub(crate) node: u64,
    /// Unique within this process.
    pub(crate) id: u64,
    pub(crate) is_broken: bool,
}

impl Connection {
    pub(crate) fn open(node: u64, address: SocketAddr, timeout: Duration) -> Result<Connection, String> {
        let stream = TcpStream::connect_timeout(&address, timeout).map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        stream.set_write_timeout(Some(timeout)).map_err(|error| error.to_string())?;
        Ok(Connection::over(node, stream, timeout))
    }

    pub(crate) fn over(node: u64, wire: impl Wire + 'static, timeout: Duration) -> Connection {
        let id = OPENED.fetch_add(1, Ordering::Relaxed);
        Connection { frames: Frames::new(wire), timeout, node, id, is_broken: false }
    }

    /// Waits without doing anything.
    pub(crate) fn pause(&mut self, time: Duration) {
        self.frames.wire().sleep(time);
    }

    /// The monotonic clock of its wire.
    pub(crate) fn now(&mut self) -> Duration {
        self.frames.wire().now()
    }

    /// Sends one command, and returns its reply.
    pub(crate) fn call(&mut self, words: &[impl AsRef<str>]) -> Outcome<Reply> {
        let mut bytes = Vec::new();
        encode(&mut bytes, words);
        match self.exchange(&bytes, 1)?.remove(0) {
            Reply::Error(text) => Err(Failure::of_reply(&text)),
            reply => Ok(reply),
        }
    }

    /// Runs the commands in MULTI and EXEC, in one write. None if a watched key has changed.
    pub(crate) fn transaction(&mut self, commands: &[Vec<String>]) -> Outcome<Option<Vec<Reply>>> {
        let mut bytes = Vec::new();
        encode(&mut bytes, &["MULTI"]);
        commands.iter().for_each(|command| encode(&mut bytes, command));
        encode(&mut bytes, &["EXEC"]);
        let mut replies = self.exchange(&bytes, commands.len() + 2)?;
        match replies.pop().expect("as many replies as commands") {
            Reply::Error(text) => Err(Failure::of_reply(&text)),
            Reply::Nil => Ok(None),
            Reply::Array(replies) if replies.len() == commands.len() => {
                match replies.iter().find(|reply| matches!(reply, Reply::Error(_))) {
                    Some(reply) => Err(reply.unexpected()),
                    None => Ok(Some(replies)),
                }
            }
            other => Err(other.unexpected()),
        }
    }

    /// Sends a command whose reply comes among pushed messages; see `receive`.
    pub(crate) fn send(&mut self, words: &[impl AsRef<str>]) -> Outcome<()> {
        let mut bytes = Vec::new();
        encode(&mut bytes, words);
        self.frames.wire().write_all(&bytes).map_err(|error| {
            self.is_broken = true;
            Failure::Info(error.to_string())
        })
    }

    /// The next reply or message; None if none arrives within `limit`.
    pub(crate) fn receive(&mut self, limit: Duration) -> Outcome<Option<Reply>> {
        match self.frames.next(limit) {
            Ok(Some(frame)) => Ok(Some(frame.into())),
            Err(why) if why == TIMEOUT => Ok(None),
            other => {
                self.is_broken = true;
                Err(Failure::Info(other.err().unwrap_or_else(|| "the connection was closed".into())))
            }
        }
    }

    fn exchange(&mut self, bytes: &[u8], count: usize) -> Outcome<Vec<Reply>> {
        let deadline = self.frames.wire().now() + self.timeout;
        let replies = self.frames.wire().write_all(bytes).map_err(|error| error.to_string()).and_then(|()| {
            (0..count)
                .map(|_| {
                    let left = deadline.saturating_sub(self.frames.wire().now());
                    let frame = self.frames.next(left)?;
                    frame.map(Reply::from).ok_or_else(|| "the connection was closed".to_owned())
                })
                .collect::<Result<Vec<_>, String>>()
        });
        replies.map_err(|why| {
            self.is_broken = true;
            Failure::Info(why)
        })
    }
}
