//! A client that shows replies as they are on the wire, and their readable form in transcripts.

use std::{
    fmt::Write as _,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

/// A reply, of either protocol version.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `+`, `-`, `:`, `,`, `#`, `(` and `_`: a line.
    Line(u8, Vec<u8>),
    /// `$` and `=`; None is RESP2's null.
    Bulk(u8, Option<Vec<u8>>),
    /// `*`, `~`, `>` and `%` (its keys and values by turns); None is RESP2's null.
    Aggregate(u8, Option<Vec<Value>>),
}

impl Value {
    /// Reads one reply.
    pub fn read(reader: &mut impl BufRead) -> io::Result<Value> {
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line)?;
        let invalid = |line: &[u8]| {
            let text = format!("not a reply: {:?}", String::from_utf8_lossy(line));
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let content = line.strip_suffix(b"\r\n").ok_or_else(|| invalid(&line))?;
        let (&kind, rest) = content.split_first().ok_or_else(|| invalid(&line))?;
        let len = || -> io::Result<i64> {
            std::str::from_utf8(rest).ok().and_then(|text| text.parse().ok()).ok_or_else(|| invalid(&line))
        };
        match kind {
            b'+' | b'-' | b':' | b',' | b'#' | b'(' | b'_' => Ok(Value::Line(kind, rest.to_vec())),
            b'$' | b'=' => {
                let Ok(len) = usize::try_from(len()?) else { return Ok(Value::Bulk(kind, None)) };
                let mut bytes = vec![0; len + 2];
                reader.read_exact(&mut bytes)?;
                if !bytes.ends_with(b"\r\n") {
                    return Err(invalid(&bytes));
                }
                bytes.truncate(len);
                Ok(Value::Bulk(kind, Some(bytes)))
            }
            b'*' | b'~' | b'>' | b'%' => {
                let Ok(len) = usize::try_from(len()?) else { return Ok(Value::Aggregate(kind, None)) };
                let len = if kind == b'%' { 2 * len } else { len };
                let elements = (0..len).map(|_| Value::read(reader)).collect::<io::Result<_>>()?;
                Ok(Value::Aggregate(kind, Some(elements)))
            }
            _ => Err(invalid(&line)),
        }
    }

    /// The form in transcripts: a line each, elements indented by two under their header.
    pub fn show(&self) -> String {
        let mut out = String::new();
        self.show_at(0, &mut out);
        out
    }

    fn show_at(&self, depth: usize, out: &mut String) {
        let indent = "  ".repeat(depth);
        match self {
            Value::Line(kind, text) => {
                let _ = writeln!(out, "{indent}{}{}", *kind as char, escape(text));
            }
            Value::Bulk(kind, None) | Value::Aggregate(kind, None) => {
                let _ = writeln!(out, "{indent}{}-1", *kind as char);
            }
            Value::Bulk(kind, Some(bytes)) => {
                let _ = writeln!(out, "{indent}{}\"{}\"", *kind as char, escape(bytes));
            }
            Value::Aggregate(kind, Some(elements)) => {
                let len = if *kind == b'%' { elements.len() / 2 } else { elements.len() };
                let _ = writeln!(out, "{indent}{}{len}", *kind as char);
                for element in elements {
                    element.show_at(depth + 1, out);
                }
            }
        }
    }

    /// The same with the elements of every aggregate in one order: for replies whose order is not promised.
    pub fn sorted(self) -> Value {
        match self {
            Value::Aggregate(b'%', Some(elements)) => {
                let mut pairs: Vec<Vec<Value>> = elements.chunks(2).map(<[Value]>::to_vec).collect();
                pairs.sort_by_key(|pair| pair[0].show());
                Value::Aggregate(b'%', Some(pairs.concat()))
            }
            Value::Aggregate(kind, Some(elements)) => {
                let mut elements: Vec<Value> = elements.into_iter().map(Value::sorted).collect();
                elements.sort_by_key(Value::show);
                Value::Aggregate(kind, Some(elements))
            }
            other => other,
        }
    }

    /// Whether this is an error that says the cluster is between leaders: nothing was applied.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Value::Line(b'-', text) if [&b"CLUSTERDOWN"[..], b"TRYAGAIN", b"LOADING"].iter().any(|word| text.starts_with(word)))
    }
}

/// Printable ASCII as it is, everything else escaped as redis-cli does.
pub fn escape(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        match byte {
            b'\\' => out.push_str("\\\\"),
            b'"' => out.push_str("\\\""),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            b' '..=b'~' => out.push(*byte as char),
            _ => {
                let _ = write!(out, "\\x{byte:02x}");
            }
        }
        out
    })
}

/// Splits a command line as redis-cli does: words, or "strings" with escapes.
pub fn split(line: &str) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut rest = line.trim_start().bytes().peekable();
    while rest.peek().is_some() {
        let mut word = Vec::new();
        if rest.next_if_eq(&b'"').is_some() {
            while let Some(byte) = rest.next() {
                match byte {
                    b'"' => break,
                    b'\\' => match rest.next() {
                        Some(b'n') => word.push(b'\n'),
                        Some(b'r') => word.push(b'\r'),
                        Some(b't') => word.push(b'\t'),
                        Some(b'x') => {
                            let digits: String = rest.by_ref().take(2).map(char::from).collect();
                            word.push(u8::from_str_radix(&digits, 16).expect("two hex digits follow \\x"));
                        }
                        Some(other) => word.push(other),
                        None => panic!("a lone backslash in {line}"),
                    },
                    other => word.push(other),
                }
            }
        } else {
            while let Some(byte) = rest.next_if(|byte| *byte != b' ') {
                word.push(byte);
            }
        }
        words.push(word);
        while rest.next_if_eq(&b' ').is_some() {}
    }
    words
}

/// A request as an array of bulk strings.
pub fn encode(argv: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", argv.len()).into_bytes();
    for argument in argv {
        let argument = argument.as_ref();
        out.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        out.extend_from_slice(argument);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// One connection.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects; replies are waited for at most ten seconds.
    pub fn connect(address: &str) -> io::Result<Client> {
        Client::connect_for(address, Duration::from_secs(10))
    }

    /// Connects; each reply is waited for at most so long.
    pub fn connect_for(address: &str, patience: Duration) -> io::Result<Client> {
        Client::from_stream(TcpStream::connect(address)?, patience)
    }

    /// Takes a connection; each reply is waited for at most so long.
    pub fn from_stream(stream: TcpStream, patience: Duration) -> io::Result<Client> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// The next reply.
    pub fn receive(&mut self) -> io::Result<Value> {
        Value::read(&mut self.stream)
    }

    /// Everything until the server closes.
    pub fn receive_all(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// One command, one reply.
    pub fn call(&mut self, argv: &[impl AsRef<[u8]>]) -> io::Result<Value> {
        self.send(&encode(argv))?;
        self.receive()
    }

    /// One command line, one reply, in its readable form.
    pub fn run(&mut self, line: &str) -> io::Result<String> {
        Ok(self.call(&split(line))?.show())
    }
}
