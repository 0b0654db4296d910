//! Writes one reply after the other into a buffer, in RESP2 or RESP3. The only place where the two differ.
//!
//! A sink that is off takes everything and keeps nothing: nodes that do not serve the connection execute the
//! same functions without building replies.

use crate::error::Error;

/// The protocol version of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Where every connection begins.
    #[default]
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

/// A growing buffer of replies.
///
/// Invariants:
/// - An aggregate's header is followed by exactly as many elements as it announced; the caller keeps this.
/// - With `on == false` the buffer stays empty.
#[derive(Debug, Default)]
pub struct Reply {
    buffer: Vec<u8>,
    protocol: Protocol,
    off: bool,
}

impl Reply {
    /// Replies go to the end of `buffer`.
    pub fn new(buffer: Vec<u8>, protocol: Protocol) -> Reply {
        Reply { buffer, protocol, off: false }
    }

    /// Takes replies and keeps nothing.
    pub fn off() -> Reply {
        Reply { buffer: Vec::new(), protocol: Protocol::Resp2, off: true }
    }

    /// The bytes written so far.
    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }

    /// The bytes written so far.
    pub fn buffer(&self) -> &[u8] {
        &self.buffer
    }

    /// Whether replies are kept. Functions may skip costly work whose only product is a reply.
    pub fn is_on(&self) -> bool {
        !self.off
    }

    /// The protocol version in use.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// `HELLO` changes it between two replies.
    pub fn set_protocol(&mut self, protocol: Protocol) {
        self.protocol = protocol;
    }

    /// Bytes that are already encoded.
    pub fn raw(&mut self, bytes: &[u8]) {
        if !self.off {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// `+OK`
    pub fn ok(&mut self) {
        self.raw(b"+OK\r\n");
    }

    /// A simple string; `text` holds no CR or LF.
    pub fn simple(&mut self, text: &str) {
        self.line(b'+', text.as_bytes());
    }

    /// An error.
    pub fn error(&mut self, error: &Error) {
        if self.off {
            return;
        }
        self.buffer.push(b'-');
        let text = error.to_string();
        // An error is one line, whatever a client put into a name that it quotes.
        self.buffer.extend(text.bytes().map(|byte| if byte == b'\r' || byte == b'\n' { b' ' } else { byte }));
        self.buffer.extend_from_slice(b"\r\n");
    }

    /// An integer.
    pub fn integer(&mut self, value: i64) {
        self.number_line(b':', value);
    }

    /// A count as an integer.
    pub fn size(&mut self, value: usize) {
        self.integer(value as i64);
    }

    /// 1 or 0: a yes or no that is an integer in both versions.
    pub fn flag(&mut self, value: bool) {
        self.integer(i64::from(value));
    }

    /// A bulk string.
    pub fn bulk(&mut self, bytes: &[u8]) {
        if self.off {
            return;
        }
        self.number_line(b'$', bytes.len() as i64);
        self.buffer.extend_from_slice(bytes);
        self.buffer.extend_from_slice(b"\r\n");
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
        match self.protocol {
            Protocol::Resp2 => self.raw(b"$-1\r\n"),
            Protocol::Resp3 => self.raw(b"_\r\n"),
        }
    }

    /// The null array of RESP2, the null of RESP3.
    pub fn null_array(&mut self) {
        match self.protocol {
            Protocol::Resp2 => self.raw(b"*-1\r\n"),
            Protocol::Resp3 => self.raw(b"_\r\n"),
        }
    }

    /// The header of an array of `len` elements.
    pub fn array(&mut self, len: usize) {
        self.number_line(b'*', len as i64);
    }

    /// The header of a map of `pairs` keys and values; a flat array in RESP2.
    pub fn map(&mut self, pairs: usize) {
        match self.protocol {
            Protocol::Resp2 => self.array(pairs * 2),
            Protocol::Resp3 => self.number_line(b'%', pairs as i64),
        }
    }

    /// The header of a set; an array in RESP2.
    pub fn set(&mut self, len: usize) {
        match self.protocol {
            Protocol::Resp2 => self.array(len),
            Protocol::Resp3 => self.number_line(b'~', len as i64),
        }
    }

    /// The header of an out-of-band push; an array in RESP2.
    pub fn push(&mut self, len: usize) {
        match self.protocol {
            Protocol::Resp2 => self.array(len),
            Protocol::Resp3 => self.number_line(b'>', len as i64),
        }
    }

    /// A floating-point number; a bulk string in RESP2.
    pub fn double(&mut self, value: f64) {
        if self.off {
            return;
        }
        self.decimal(&crate::args::format_double(value));
    }

    /// A floating-point number in digits of its own; a bulk string in RESP2.
    pub fn decimal(&mut self, text: &str) {
        match self.protocol {
            Protocol::Resp2 => self.bulk(text.as_bytes()),
            Protocol::Resp3 => self.line(b',', text.as_bytes()),
        }
    }

    /// A boolean; an integer in RESP2.
    pub fn boolean(&mut self, value: bool) {
        match self.protocol {
            Protocol::Resp2 => self.integer(i64::from(value)),
            Protocol::Resp3 => self.raw(if value { b"#t\r\n" } else { b"#f\r\n" }),
        }
    }

    /// Text for people, of the three-letter format `kind` (`txt`); a bulk string in RESP2.
    pub fn verbatim(&mut self, kind: &str, text: &str) {
        match self.protocol {
            Protocol::Resp2 => self.bulk(text.as_bytes()),
            Protocol::Resp3 => {
                self.number_line(b'=', text.len() as i64 + 4);
                self.raw(kind.as_bytes());
                self.raw(b":");
                self.raw(text.as_bytes());
                self.raw(b"\r\n");
            }
        }
    }

    fn line(&mut self, kind: u8, text: &[u8]) {
        if !self.off {
            self.buffer.push(kind);
            self.buffer.extend_from_slice(text);
            self.buffer.extend_from_slice(b"\r\n");
        }
    }

    fn number_line(&mut self, kind: u8, value: i64) {
        if !self.off {
            self.line(kind, itoa::Buffer::new().format(value).as_bytes());
        }
    }
}
