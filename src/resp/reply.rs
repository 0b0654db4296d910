//! Writes replies into a buffer, in RESP2 or RESP3. The only place where the two differ.
//!
//! A reply that is off discards everything: nodes that do not serve the connection execute the same functions
//! without building replies.

use bytes::Bytes;

use super::{Replies, replies::SHARED_BYTES_MIN};
use crate::error::Error;

/// The protocol version of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// The protocol of every new connection.
    #[default]
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

/// Replies that are recorded on every node are no larger.
pub const RECORDED_BYTES_MAX: usize = 64 << 20;

/// A reply in both versions, for a client whose version is not known where the reply is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    resp2: Vec<u8>,
    resp3: Vec<u8>,
}

impl Recorded {
    /// Records what `write` replies. What is larger than [`RECORDED_BYTES_MAX`] is not kept: the client is told that it
    /// does not know what has become of its call.
    pub fn of(write: impl FnOnce(&mut Reply)) -> Recorded {
        Recorded::within(RECORDED_BYTES_MAX, write)
    }

    fn within(bytes_max: usize, write: impl FnOnce(&mut Reply)) -> Recorded {
        let within = || Replies::within(bytes_max);
        let mut reply = Reply { buffer: within(), resp3: Some(within()), ..Reply::default() };
        write(&mut reply);
        if !reply.is_on() || reply.resp3.as_ref().is_some_and(Replies::is_over) {
            let unknown = format!("-{}\r\n", Error::Uncertain).into_bytes();
            return Recorded { resp2: unknown.clone(), resp3: unknown };
        }
        Recorded { resp2: reply.buffer.into_bytes(), resp3: reply.resp3.unwrap_or_default().into_bytes() }
    }

    /// The reply in one version.
    pub fn as_bytes(&self, protocol: Protocol) -> &[u8] {
        match protocol {
            Protocol::Resp2 => &self.resp2,
            Protocol::Resp3 => &self.resp3,
        }
    }
}

/// A growing buffer of replies.
///
/// Invariants:
/// - An aggregate's header is followed by exactly as many elements as it announces; the caller ensures this.
/// - If `off`, nothing is added to the buffer. It is so once the buffer is over its limit.
/// - While a reply is recorded, `protocol` is RESP2, and `resp3` gets the same in RESP3.
#[derive(Debug, Default)]
pub struct Reply {
    buffer: Replies,
    protocol: Protocol,
    off: bool,
    resp3: Option<Replies>,
}

impl Reply {
    /// Appends replies to `buffer`.
    pub fn new(buffer: impl Into<Replies>, protocol: Protocol) -> Reply {
        let buffer = buffer.into();
        Reply { off: buffer.is_over(), buffer, protocol, resp3: None }
    }

    /// Discards replies.
    pub fn off() -> Reply {
        Reply { off: true, ..Reply::default() }
    }

    /// The bytes written so far.
    pub fn into_buffer(self) -> Replies {
        self.buffer
    }

    /// The bytes written so far.
    pub fn buffer(&self) -> &Replies {
        &self.buffer
    }

    /// Whether replies are kept. Functions may skip costly work that only produces a reply.
    pub fn is_on(&self) -> bool {
        !self.off
    }

    /// Changes the protocol between two replies, for `HELLO`.
    pub fn set_protocol(&mut self, protocol: Protocol) {
        self.protocol = protocol;
    }

    /// Appends bytes that are already encoded.
    pub fn raw(&mut self, bytes: &[u8]) {
        if !self.off {
            self.write(bytes.len(), |buffer| buffer.extend_from_slice(bytes));
        }
    }

    /// Appends replies that are already encoded.
    pub fn append(&mut self, replies: Replies) {
        if self.off {
            return;
        }
        if let Some(resp3) = &mut self.resp3 {
            replies.parts(0).for_each(|part| resp3.extend_from_slice(part));
        }
        self.buffer.append(replies);
        self.off = self.buffer.is_over();
    }

    /// Writes `len` bytes that are the same in both versions.
    #[inline]
    fn write(&mut self, len: usize, write: impl FnOnce(&mut Vec<u8>)) {
        if !self.buffer.write(len, write) {
            self.off = true;
            return;
        }
        if let Some(resp3) = &mut self.resp3 {
            resp3.extend_from_slice(self.buffer.last(len));
        }
    }

    /// Writes what differs between the versions.
    #[inline]
    fn by_version(&mut self, resp2: impl FnOnce(&mut Reply), resp3: impl FnOnce(&mut Reply)) {
        if let Some(mut recorded) = self.resp3.take() {
            resp2(self);
            std::mem::swap(&mut self.buffer, &mut recorded);
            self.protocol = Protocol::Resp3;
            resp3(self);
            std::mem::swap(&mut self.buffer, &mut recorded);
            self.protocol = Protocol::Resp2;
            self.resp3 = Some(recorded);
        } else {
            match self.protocol {
                Protocol::Resp2 => resp2(self),
                Protocol::Resp3 => resp3(self),
            }
        }
    }

    /// `+OK`
    pub fn ok(&mut self) {
        self.raw(b"+OK\r\n");
    }

    /// A simple string; `text` must not contain CR or LF.
    pub fn simple(&mut self, text: &str) {
        self.line(b'+', text.as_bytes());
    }

    /// An error.
    pub fn error(&mut self, error: &Error) {
        if self.off {
            return;
        }
        // An error must be one line, even if it quotes a client's bytes.
        let text = error.to_string().replace(['\r', '\n'], " ");
        self.line(b'-', text.as_bytes());
    }

    /// An integer.
    pub fn integer(&mut self, value: i64) {
        self.number_line(b':', value);
    }

    /// A count as an integer.
    pub fn size(&mut self, value: usize) {
        self.integer(value as i64);
    }

    /// A yes or no that is the integer 1 or 0 in both versions.
    pub fn flag(&mut self, value: bool) {
        self.integer(i64::from(value));
    }

    /// A bulk string.
    pub fn bulk(&mut self, bytes: &[u8]) {
        if self.off {
            return;
        }
        let mut digits = itoa::Buffer::new();
        let len = digits.format(bytes.len()).as_bytes();
        self.write(len.len() + bytes.len() + 5, |buffer| {
            write_line(buffer, b'$', len);
            buffer.extend_from_slice(bytes);
            buffer.extend_from_slice(b"\r\n");
        });
    }

    /// A bulk string. A long one is not copied: `share` gives the same bytes to keep.
    pub fn bulk_or_share(&mut self, bytes: &[u8], share: impl FnOnce() -> Bytes) {
        if self.off || self.resp3.is_some() || bytes.len() < SHARED_BYTES_MIN {
            return self.bulk(bytes);
        }
        self.number_line(b'$', bytes.len() as i64);
        if !self.off {
            self.off = !self.buffer.share(share());
            self.raw(b"\r\n");
        }
    }

    /// A bulk string, or null.
    pub fn bulk_or_null(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) => self.bulk(bytes),
            None => self.null(),
        }
    }

    /// An integer as a bulk string.
    pub fn bulk_integer(&mut self, value: i64) {
        self.bulk(itoa::Buffer::new().format(value).as_bytes());
    }

    /// The null bulk string of RESP2, the null of RESP3.
    pub fn null(&mut self) {
        self.by_version(|reply| reply.raw(b"$-1\r\n"), |reply| reply.raw(b"_\r\n"));
    }

    /// The null array of RESP2, the null of RESP3.
    pub fn null_array(&mut self) {
        self.by_version(|reply| reply.raw(b"*-1\r\n"), |reply| reply.raw(b"_\r\n"));
    }

    /// The header of an array of `len` elements.
    pub fn array(&mut self, len: usize) {
        self.number_line(b'*', len as i64);
    }

    /// The header of a map of `pairs` keys and values; a flat array in RESP2.
    pub fn map(&mut self, pairs: usize) {
        self.by_version(|reply| reply.array(pairs * 2), |reply| reply.number_line(b'%', pairs as i64));
    }

    /// The header of a set; an array in RESP2.
    pub fn set(&mut self, len: usize) {
        self.by_version(|reply| reply.array(len), |reply| reply.number_line(b'~', len as i64));
    }

    /// The header of `len` pairs, each of which begins with [`Reply::pair`]: arrays of two elements, in a flat
    /// array in RESP2.
    pub fn pairs(&mut self, len: usize) {
        self.by_version(|reply| reply.array(len * 2), |reply| reply.array(len));
    }

    /// The beginning of one of [`Reply::pairs`].
    pub fn pair(&mut self) {
        self.by_version(|_| {}, |reply| reply.array(2));
    }

    /// The header of an out-of-band push; an array in RESP2.
    pub fn push(&mut self, len: usize) {
        self.by_version(|reply| reply.array(len), |reply| reply.number_line(b'>', len as i64));
    }

    /// A floating-point number; a bulk string in RESP2.
    pub fn double(&mut self, value: f64) {
        if self.off {
            return;
        }
        self.decimal(&crate::args::format_double(value));
    }

    /// A floating-point number with given digits; a bulk string in RESP2.
    pub fn decimal(&mut self, text: &str) {
        self.by_version(|reply| reply.bulk(text.as_bytes()), |reply| reply.line(b',', text.as_bytes()));
    }

    /// A boolean; an integer in RESP2.
    pub fn boolean(&mut self, value: bool) {
        self.by_version(
            |reply| reply.integer(i64::from(value)),
            |reply| reply.raw(if value { b"#t\r\n" } else { b"#f\r\n" }),
        );
    }

    /// Text for display, in the three-letter format `kind` (`txt`); a bulk string in RESP2.
    pub fn verbatim(&mut self, kind: &str, text: &str) {
        self.by_version(
            |reply| reply.bulk(text.as_bytes()),
            |reply| {
                reply.number_line(b'=', text.len() as i64 + 4);
                reply.raw(format!("{kind}:{text}\r\n").as_bytes());
            },
        );
    }

    fn line(&mut self, kind: u8, text: &[u8]) {
        if !self.off {
            self.write(text.len() + 3, |buffer| write_line(buffer, kind, text));
        }
    }

    fn number_line(&mut self, kind: u8, value: i64) {
        if !self.off {
            self.line(kind, itoa::Buffer::new().format(value).as_bytes());
        }
    }
}

#[inline]
fn write_line(buffer: &mut Vec<u8>, kind: u8, text: &[u8]) {
    buffer.push(kind);
    buffer.extend_from_slice(text);
    buffer.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::{Protocol, Recorded, Reply};
    use crate::error::Error;

    fn everything(reply: &mut Reply) {
        reply.array(14);
        reply.ok();
        reply.error(&Error::err("two\r\nlines"));
        reply.integer(-7);
        reply.bulk(b"$1\r\n");
        reply.bulk_or_null(None);
        reply.null_array();
        reply.map(1);
        reply.bulk_integer(1);
        reply.double(1.5);
        reply.set(1);
        reply.boolean(true);
        reply.push(1);
        reply.verbatim("txt", "text");
        reply.pairs(2);
        for score in [1.0, 2.5] {
            reply.pair();
            reply.bulk(b"member");
            reply.double(score);
        }
        reply.simple("end");
    }

    #[test]
    fn what_is_too_large_to_be_recorded_is_not_kept() {
        let value = [b'x'; 100];
        for (count, is_kept) in [(5, true), (50, false)] {
            let recorded = Recorded::within(1_000, |reply| {
                reply.array(count);
                (0..count).for_each(|_| reply.bulk(&value));
            });
            for protocol in [Protocol::Resp2, Protocol::Resp3] {
                let bytes = recorded.as_bytes(protocol);
                assert_eq!((bytes.starts_with(b"*5"), bytes.starts_with(b"-UNCERTAIN")), (is_kept, !is_kept));
            }
        }
    }

    #[test]
    fn what_is_recorded_is_what_either_version_says() {
        let recorded = Recorded::of(everything);
        for protocol in [Protocol::Resp2, Protocol::Resp3] {
            let mut reply = Reply::new(Vec::new(), protocol);
            everything(&mut reply);
            assert_eq!(Some(recorded.as_bytes(protocol)), reply.buffer().as_slice(), "{protocol:?}");
        }
        assert_ne!(recorded.as_bytes(Protocol::Resp2), recorded.as_bytes(Protocol::Resp3));
    }
}
