//! Requests: an array of bulk strings, or an inline command, decoded from a connection's buffer in place.
//!
//! redis-protocol decodes bulk strings, one at a time. It is never given an array: its recursion is
//! unbounded, it accepts elements that are not bulk strings, and it starts over when a byte is missing. So
//! the array's header, the progress made, the limits and Redis's own error texts are handled here. Nothing is
//! allocated per argument: an argument is a range of the buffer, and quoted inline arguments are unescaped
//! in place.

use redis_protocol::resp2::{decode::decode_range, types::RangeFrame};
use thiserror::Error;

use crate::{args::parse_integer, proposal::Argv};

/// The limits of a request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest argument.
    pub bulk_bytes_max: usize,
    /// The most arguments of one request.
    pub arguments_max: usize,
    /// The longest inline request, and the longest header line.
    pub inline_bytes_max: usize,
}

/// What is wrong with a request. The connection is closed after this error was sent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum ProtocolError {
    #[error("ERR Protocol error: invalid multibulk length")]
    MultibulkLength,
    #[error("ERR Protocol error: invalid bulk length")]
    BulkLength,
    #[error("ERR Protocol error: expected '$', got '{}'", char::from(*.0))]
    NotBulk(u8),
    #[error("ERR Protocol error: too big mbulk count string")]
    MultibulkHeader,
    #[error("ERR Protocol error: too big bulk count string")]
    BulkHeader,
    #[error("ERR Protocol error: too big inline request")]
    Inline,
    #[error("ERR Protocol error: unbalanced quotes in request")]
    Quotes,
}

/// The position of an argument in the buffer. 32 bits are enough: a buffer is limited to 4 GiB.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    end: u32,
}

/// A complete request: a range of the decoder's spans.
#[derive(Clone, Copy, Debug)]
pub struct RequestSpans {
    first: u32,
    count: u32,
}

impl RequestSpans {
    /// The number of arguments, including the name.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// An empty line or array: it is not executed and has no reply.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Decodes one connection's stream.
///
/// Invariants:
/// - The buffer's bytes before `at` were decoded and are not examined again.
/// - `spans` holds the arguments of `requests`, then those of the incomplete request.
/// - `missing > 0` exactly while there is an incomplete request; the buffer then holds its start.
#[derive(Debug, Default)]
pub struct Decoder {
    at: usize,
    /// The end of the last complete request.
    complete: usize,
    missing: usize,
    spans: Vec<Span>,
    requests: Vec<RequestSpans>,
    /// How long the buffer has to be for the argument that is incomplete; 0 if that is not known.
    wanted: usize,
}

/// The maximum length of a header `$<len>\r\n` whose length fits an i64.
const HEADER_BYTES_MAX: usize = 24;

impl Decoder {
    /// Decodes what has arrived: `buffer` must have the content of the last call, less what
    /// [`Decoder::forget`] said to remove, with more appended. Requests before an error are complete and may
    /// be run.
    pub fn decode(&mut self, buffer: &mut [u8], limits: &Limits) -> Result<(), ProtocolError> {
        loop {
            if self.missing > 0 {
                if !self.arguments(buffer, limits)? {
                    return Ok(());
                }
            } else {
                let more = match buffer.get(self.at) {
                    None => false,
                    Some(b'*') => self.header(buffer, limits)?,
                    Some(_) => self.inline(buffer, limits)?,
                };
                if !more {
                    return Ok(());
                }
            }
        }
    }

    /// How many bytes the argument needs that is incomplete, in addition to those of the buffer; 0 if that is not known.
    pub fn missing_bytes(&self, buffer: &[u8]) -> usize {
        self.wanted.saturating_sub(buffer.len())
    }

    /// The complete requests, in order.
    pub fn requests(&self) -> &[RequestSpans] {
        &self.requests
    }

    /// The arguments of a request.
    pub fn argv<'a>(&self, buffer: &'a [u8], request: RequestSpans) -> Argv<'a> {
        self.spans_of(request).iter().map(|span| &buffer[span.start as usize..span.end as usize]).collect()
    }

    /// The first argument of a request.
    pub fn name<'a>(&self, buffer: &'a [u8], request: RequestSpans) -> &'a [u8] {
        let span = self.spans[request.first as usize];
        &buffer[span.start as usize..span.end as usize]
    }

    /// The bytes of all arguments of a request together.
    pub fn bytes_of(&self, request: RequestSpans) -> usize {
        self.spans_of(request).iter().map(|span| (span.end - span.start) as usize).sum()
    }

    fn spans_of(&self, request: RequestSpans) -> &[Span] {
        &self.spans[request.first as usize..][..request.count as usize]
    }

    /// Drops the complete requests. Returns how many bytes the caller must remove from the front of the
    /// buffer.
    pub fn forget(&mut self) -> usize {
        let removed = std::mem::take(&mut self.complete);
        let done = self.requests.last().map_or(0, |last| (last.first + last.count) as usize);
        self.requests.clear();
        self.spans.drain(..done);
        if self.spans.is_empty() {
            // One request of a million arguments must not hold its memory for the life of the connection.
            self.spans.shrink_to(1024);
            self.requests.shrink_to(1024);
        }
        for span in &mut self.spans {
            span.start -= removed as u32;
            span.end -= removed as u32;
        }
        self.at -= removed;
        self.wanted = self.wanted.saturating_sub(removed);
        removed
    }

    /// Reads `*<count>\r\n`. False if it is incomplete.
    fn header(&mut self, buffer: &[u8], limits: &Limits) -> Result<bool, ProtocolError> {
        let rest = &buffer[self.at..];
        let Some(line) = header_line(rest) else {
            return if rest.len() > limits.inline_bytes_max {
                Err(ProtocolError::MultibulkHeader)
            } else {
                Ok(false)
            };
        };
        let count = parse_integer(line).ok_or(ProtocolError::MultibulkLength)?;
        if count > limits.arguments_max as i64 {
            return Err(ProtocolError::MultibulkLength);
        }
        self.at += line.len() + 3;
        match usize::try_from(count) {
            Ok(count) if count > 0 => self.missing = count,
            // Redis skips an empty or a negative array without a reply.
            _ => self.finish_request(),
        }
        Ok(true)
    }

    /// Reads the missing arguments. False if some are incomplete.
    fn arguments(&mut self, buffer: &[u8], limits: &Limits) -> Result<bool, ProtocolError> {
        while self.missing > 0 {
            let rest = &buffer[self.at..];
            self.wanted = 0;
            let (start, end) = match bulk(rest, limits)? {
                Bulk::Whole { start, end } => (start, end),
                Bulk::Cut { wanted } => {
                    self.wanted = wanted.map_or(0, |wanted| self.at + wanted);
                    return Ok(false);
                }
            };
            self.spans.push(Span { start: (self.at + start) as u32, end: (self.at + end) as u32 });
            self.at += end + 2;
            self.missing -= 1;
        }
        self.finish_request();
        Ok(true)
    }

    /// Reads an inline request. False if its line is incomplete.
    fn inline(&mut self, buffer: &mut [u8], limits: &Limits) -> Result<bool, ProtocolError> {
        let rest = &mut buffer[self.at..];
        let Some(newline) = rest.iter().position(|&byte| byte == b'\n') else {
            return if rest.len() > limits.inline_bytes_max { Err(ProtocolError::Inline) } else { Ok(false) };
        };
        if newline > limits.inline_bytes_max {
            return Err(ProtocolError::Inline);
        }
        let base = self.at;
        split_in_place(&mut rest[..newline], |start, end| {
            self.spans.push(Span { start: (base + start) as u32, end: (base + end) as u32 });
        })?;
        self.at += newline + 1;
        self.finish_request();
        Ok(true)
    }

    fn finish_request(&mut self) {
        self.complete = self.at;
        let first = self.requests.last().map_or(0, |last| last.first + last.count);
        let count = self.spans.len() as u32 - first;
        // One empty request after another is as good as one, and takes up no room.
        if count > 0 || self.requests.last().is_none_or(|last| !last.is_empty()) {
            self.requests.push(RequestSpans { first, count });
        }
    }
}

/// The text between the first byte and `\r`, if that and one more byte have arrived.
fn header_line(rest: &[u8]) -> Option<&[u8]> {
    let end = rest.iter().position(|&byte| byte == b'\r')?;
    (end + 1 < rest.len()).then(|| &rest[1..end])
}

/// What of a bulk string has arrived.
enum Bulk {
    /// All: where its content begins and ends.
    Whole { start: usize, end: usize },
    /// Not all; how many bytes it has with its header, if that has arrived.
    Cut { wanted: Option<usize> },
}

/// Reads one bulk string.
fn bulk(rest: &[u8], limits: &Limits) -> Result<Bulk, ProtocolError> {
    match rest.first() {
        None => return Ok(Bulk::Cut { wanted: None }),
        Some(b'$') => {}
        Some(&other) => return Err(ProtocolError::NotBulk(other)),
    }
    let header = &rest[..rest.len().min(HEADER_BYTES_MAX)];
    // Only a short, plain header goes to the library: it would accept a sign, and search everything that has
    // arrived for a line end.
    if header.len() > 3
        && header[1].is_ascii_digit()
        && header.contains(&b'\n')
        && let Ok(Some((RangeFrame::BulkString((start, end)), _))) = decode_range(rest)
    {
        let plain = header[1] != b'0' || start == 4;
        if plain && end - start <= limits.bulk_bytes_max {
            return Ok(Bulk::Whole { start, end });
        }
    }
    // It is incomplete, unusual or wrong.
    let Some(line) = header_line(rest) else {
        return if rest.len() > limits.inline_bytes_max {
            Err(ProtocolError::BulkHeader)
        } else {
            Ok(Bulk::Cut { wanted: None })
        };
    };
    let len = parse_integer(line)
        .and_then(|len| usize::try_from(len).ok())
        .filter(|&len| len <= limits.bulk_bytes_max)
        .ok_or(ProtocolError::BulkLength)?;
    let start = line.len() + 3;
    let wanted = start + len + 2;
    let is_whole = rest.len() >= wanted;
    Ok(if is_whole { Bulk::Whole { start, end: start + len } } else { Bulk::Cut { wanted: Some(wanted) } })
}

/// Splits an inline request as Redis's `sdssplitargs` does, moving unescaped arguments towards the front.
fn split_in_place(line: &mut [u8], mut argument: impl FnMut(usize, usize)) -> Result<(), ProtocolError> {
    // C strings end at a zero byte.
    let len = line.iter().position(|&byte| byte == 0).unwrap_or(line.len());
    let (mut read, mut write) = (0, 0);
    loop {
        while read < len && is_space(line[read]) {
            read += 1;
        }
        if read == len {
            return Ok(());
        }
        let start = write;
        let mut quote = None;
        loop {
            let byte = line[..len].get(read).copied();
            match (quote, byte) {
                (Some(_), None) => return Err(ProtocolError::Quotes),
                (None, None) => break,
                (None, Some(byte)) if is_space(byte) => break,
                (None, Some(byte @ (b'"' | b'\''))) => quote = Some(byte),
                (Some(open), Some(byte)) if open == byte => {
                    read += 1;
                    match line[..len].get(read) {
                        Some(&next) if !is_space(next) => return Err(ProtocolError::Quotes),
                        _ => break,
                    }
                }
                (Some(open), Some(b'\\')) => {
                    let (used, byte) = unescape(&line[read..len], open);
                    line[write] = byte;
                    write += 1;
                    read += used - 1;
                }
                (_, Some(byte)) => {
                    line[write] = byte;
                    write += 1;
                }
            }
            read += 1;
        }
        argument(start, write);
    }
}

/// Decodes a backslash escape inside quotes: its length, and the byte that it means.
fn unescape(text: &[u8], quote: u8) -> (usize, u8) {
    let hex = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    match (quote, text) {
        (b'"', [_, b'x', high, low, ..]) if hex(*high).is_some() && hex(*low).is_some() => {
            (4, hex(*high).unwrap_or(0) << 4 | hex(*low).unwrap_or(0))
        }
        (b'"', [_, b'n', ..]) => (2, b'\n'),
        (b'"', [_, b'r', ..]) => (2, b'\r'),
        (b'"', [_, b't', ..]) => (2, b'\t'),
        (b'"', [_, b'b', ..]) => (2, 8),
        (b'"', [_, b'a', ..]) => (2, 7),
        (b'"', [_, other, ..]) => (2, *other),
        (b'\'', [_, b'\'', ..]) => (2, b'\''),
        _ => (1, b'\\'),
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { bulk_bytes_max: 512 << 20, arguments_max: 1 << 20, inline_bytes_max: 64 << 10 };

    type Requests = Vec<Vec<Vec<u8>>>;

    /// Feeds `stream` in pieces that end at `cuts`.
    fn feed(stream: &[u8], cuts: &[usize], limits: &Limits) -> (Requests, Result<(), ProtocolError>) {
        let mut decoder = Decoder::default();
        let mut buffer = Vec::new();
        let mut requests = Vec::new();
        let mut from = 0;
        for &to in cuts.iter().chain([&stream.len()]) {
            buffer.extend_from_slice(&stream[from..to]);
            from = to;
            let verdict = decoder.decode(&mut buffer, limits);
            for &request in decoder.requests().iter().filter(|request| !request.is_empty()) {
                requests.push(decoder.argv(&buffer, request).iter().map(|arg| arg.to_vec()).collect());
            }
            if verdict.is_err() {
                return (requests, verdict);
            }
            buffer.drain(..decoder.forget());
        }
        (requests, Ok(()))
    }

    fn all(stream: &[u8]) -> (Requests, Result<(), ProtocolError>) {
        feed(stream, &[], &LIMITS)
    }

    fn words(words: &[&[u8]]) -> Vec<Vec<u8>> {
        words.iter().map(|word| word.to_vec()).collect()
    }

    #[test]
    fn random_splits_give_the_same_requests() {
        let mut stream = Vec::new();
        for len in [0usize, 1, 5, 9, 10, 99, 100, 70_000, 3] {
            stream.extend_from_slice(format!("*3\r\n$3\r\nSET\r\n$0\r\n\r\n${len}\r\n").as_bytes());
            stream.extend((0..len).map(|index| if index % 7 == 0 { b'\r' } else { b'\n' }));
            stream.extend_from_slice(b"\r\n*0\r\nPING \"a\\x41\\n\" 'it\\'s'\r\n\r\n*-1\r\n");
        }
        let (whole, verdict) = all(&stream);
        assert_eq!(verdict, Ok(()));
        assert_eq!(whole.len(), 18);
        assert_eq!(whole[1], words(&[b"PING", b"aA\n", b"it's"]));
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut cuts: Vec<usize> =
                (0..random.usize(1..60)).map(|_| random.usize(..=stream.len())).collect();
            cuts.sort_unstable();
            assert_eq!(feed(&stream, &cuts, &LIMITS), (whole.clone(), Ok(())), "seed {seed}");
        }
    }

    #[test]
    fn hostile_frames_get_redis_errors() {
        use ProtocolError::{
            BulkHeader, BulkLength, Inline, MultibulkHeader, MultibulkLength, NotBulk, Quotes,
        };
        let long = |start: &str| [start.as_bytes(), &vec![b'1'; 70_000]].concat();
        let cases: &[(&[u8], ProtocolError)] = &[
            (b"*x\r\n", MultibulkLength),
            (b"*\r\n", MultibulkLength),
            (b"*99999999999999999999\r\n", MultibulkLength),
            (b"*1048577\r\n", MultibulkLength),
            (b"*1\r\n*1\r\n", NotBulk(b'*')),
            (b"*1\r\n:1\r\n", NotBulk(b':')),
            (b"*2\r\n$4\r\nPING\r\n+x\r\n", NotBulk(b'+')),
            (b"*1\r\n$-1\r\n", BulkLength),
            (b"*1\r\n$x\r\n", BulkLength),
            (b"*1\r\n$+1\r\na\r\n", BulkLength),
            (b"*1\r\n$01\r\na\r\n", BulkLength),
            (b"*1\r\n$00\r\n\r\n", BulkLength),
            (b"*1\r\n$\r\n", BulkLength),
            (b"*1\r\n$536870913\r\n", BulkLength),
            (b"*1\r\n$18446744073709551615\r\n", BulkLength),
            (&long("*"), MultibulkHeader),
            (&long("*1\r\n$"), BulkHeader),
            (&long("PING "), Inline),
            (b"PING \"x\r\n", Quotes),
            (b"PING \"x\"y\r\n", Quotes),
            (b"PING 'x\r\n", Quotes),
        ];
        for (stream, error) in cases {
            assert_eq!(all(stream).1, Err(error.clone()), "{}", stream.escape_ascii());
        }
    }

    #[test]
    fn requests_before_an_error_are_complete() {
        let (requests, verdict) = all(b"PING\r\n*1\r\n$4\r\nPING\r\n*1\r\n!");
        assert_eq!(requests, vec![words(&[b"PING"]), words(&[b"PING"])]);
        assert_eq!(verdict, Err(ProtocolError::NotBulk(b'!')));
    }

    #[test]
    fn quoting_is_that_of_redis() {
        let (requests, _) = all(b"a \"\" '' b\"c d\" '\\n' \"\\q\\t\"\n");
        assert_eq!(requests, vec![words(&[b"a", b"", b"", b"bc d", b"\\n", b"q\t"])]);
    }

    #[test]
    fn noise_never_panics() {
        for seed in 0..3000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let alphabet = b"*$-+:0123456789\r\n\"'\\x aPING";
            let stream: Vec<u8> =
                (0..random.usize(..200)).map(|_| alphabet[random.usize(..alphabet.len())]).collect();
            let cuts: Vec<usize> = (0..stream.len()).collect();
            assert_eq!(feed(&stream, &cuts, &LIMITS), all(&stream), "seed {seed}");
        }
    }

    #[test]
    fn what_an_argument_needs_is_known_once_its_header_has_arrived() {
        let stream = b"*2\r\n$4\r\nECHO\r\n$100\r\n0123";
        let mut decoder = Decoder::default();
        let mut buffer = Vec::new();
        for (upto, missing) in [(10, 4), (16, 0), (20, 102), (stream.len() - 3, 101), (stream.len(), 98)] {
            buffer.extend_from_slice(&stream[buffer.len()..upto]);
            decoder.decode(&mut buffer, &LIMITS).unwrap();
            assert_eq!(decoder.missing_bytes(&buffer), missing, "{upto}");
        }
        // Behind a request that was complete.
        let mut buffer = [b"PING\r\n", &stream[..]].concat();
        let mut decoder = Decoder::default();
        decoder.decode(&mut buffer, &LIMITS).unwrap();
        buffer.drain(..decoder.forget());
        assert_eq!(decoder.missing_bytes(&buffer), 98);
        buffer.resize(buffer.len() + 98, b'\n');
        let end = buffer.len();
        buffer[end - 2..].copy_from_slice(b"\r\n");
        decoder.decode(&mut buffer, &LIMITS).unwrap();
        assert_eq!((decoder.requests().len(), decoder.missing_bytes(&buffer)), (1, 0));
    }

    #[test]
    fn a_large_argument_is_not_scanned_again() {
        // 64 MiB in pieces of 1 KiB: minutes, if each piece rescanned what came before.
        let len = 64 << 20;
        let mut stream = format!("*2\r\n$4\r\nECHO\r\n${len}\r\n").into_bytes();
        stream.resize(stream.len() + len, b'x');
        stream.extend_from_slice(b"\r\n");
        let cuts: Vec<usize> = (0..stream.len()).step_by(1024).collect();
        let (requests, verdict) = feed(&stream, &cuts, &LIMITS);
        assert_eq!((requests.len(), requests[0][1].len(), verdict), (1, len, Ok(())));
    }
}
