//! A client's session for exactly-once commands: the last replies, by the numbers that the client gave to the
//! commands. The session manages its key's deadline itself, and every use extends it.

use std::collections::BTreeMap;

use kvorum_raft::safeguard::{self, Safeguard};

use crate::store::{
    codec::{Input, put_bytes, put_varint},
    object::{Kind, Pages, Typed, Value},
};

/// The most replies that a session keeps.
pub const REPLIES_MAX: usize = 1_024;
/// The maximum size of the kept replies together.
pub const REPLY_BYTES_MAX: usize = 256 << 10;
/// ... and the largest of them.
pub const REMEMBERED_BYTES_MAX: usize = REPLY_BYTES_MAX / 4;

/// A reply given earlier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The protocol version that it is in.
    pub is_resp3: bool,
    /// None if it was too large to be kept.
    pub bytes: Option<Box<[u8]>>,
}

/// A session.
///
/// Invariants:
/// - All numbers of `replies` are above `floor`.
/// - `bytes` is the sum over `replies`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientSession {
    /// Its TTL after the last use.
    pub ttl_ms: u64,
    /// For numbers up to this, it is no longer known whether the command was applied.
    floor: u64,
    replies: BTreeMap<u64, Given>,
    bytes: usize,
}

/// The record of a command number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recall {
    /// The command was not applied.
    New,
    /// It was applied.
    Applied(Given),
    /// Too old to be known.
    Forgotten,
}

impl ClientSession {
    /// A session without any commands.
    pub fn new(ttl_ms: u64) -> ClientSession {
        ClientSession { ttl_ms, ..ClientSession::default() }
    }

    /// Looks up a command number.
    pub fn recall(&self, number: u64) -> Recall {
        match self.replies.get(&number) {
            Some(given) => Recall::Applied(given.clone()),
            None if number <= self.floor => Recall::Forgotten,
            None => Recall::New,
        }
    }

    /// Records that the command with this number was applied. Drops the lowest numbers if there are too many.
    pub fn remember(&mut self, number: u64, is_resp3: bool, reply: Option<&[u8]>) {
        let bytes: Option<Box<[u8]>> =
            reply.filter(|reply| reply.len() <= REMEMBERED_BYTES_MAX).map(Into::into);
        self.bytes += bytes.as_ref().map_or(0, |bytes| bytes.len());
        self.replies.insert(number, Given { is_resp3, bytes });
        while self.replies.len() > REPLIES_MAX || self.bytes > REPLY_BYTES_MAX {
            let Some((number, given)) = self.replies.pop_first() else { break };
            self.bytes -= given.bytes.map_or(0, |bytes| bytes.len());
            self.floor = number;
        }
    }

    /// The highest number applied.
    pub fn last(&self) -> u64 {
        self.replies.keys().next_back().copied().unwrap_or(self.floor)
    }

    /// The number of kept replies.
    pub fn len(&self) -> usize {
        self.replies.len()
    }

    /// Whether no replies are kept.
    pub fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }
}

impl Kind for ClientSession {
    fn type_name(&self) -> &'static str {
        "session"
    }

    fn encoding(&self) -> &'static str {
        "listpack"
    }

    fn is_empty(&self) -> bool {
        false
    }

    fn head_bytes(&self) -> usize {
        self.bytes + 12 * self.replies.len() + 8
    }

    fn encode_head(&self, out: &mut Vec<u8>) {
        put_varint(out, self.ttl_ms);
        if safeguard::is_off(Safeguard::SessionsInCheckpoints) {
            out.extend_from_slice(&[0, 0]);
            return;
        }
        put_varint(out, self.floor);
        put_varint(out, self.replies.len() as u64);
        for (number, given) in &self.replies {
            put_varint(out, *number);
            out.push(u8::from(given.is_resp3) | u8::from(given.bytes.is_some()) << 1);
            put_bytes(out, given.bytes.as_deref().unwrap_or_default());
        }
    }

    fn copy(&self, _: &mut Pages<'_>) -> Value {
        Value::Session(self.clone())
    }

    fn keeps_its_time(&self) -> bool {
        true
    }
}

impl ClientSession {
    /// Reads what `encode_head` wrote.
    pub fn decode_head(input: &mut Input<'_>) -> Result<ClientSession, String> {
        let mut session = ClientSession::new(input.varint()?);
        session.floor = input.varint()?;
        for _ in 0..input.size()? {
            let (number, form, bytes) = (input.varint()?, input.byte()?, input.bytes()?);
            session.bytes += bytes.len();
            let bytes = (form & 2 != 0).then(|| bytes.into());
            session.replies.insert(number, Given { is_resp3: form & 1 != 0, bytes });
        }
        Ok(session)
    }
}

impl Typed for ClientSession {
    fn of(value: &Value) -> Option<&Self> {
        match value {
            Value::Session(session) => Some(session),
            _ => None,
        }
    }

    fn of_mut(value: &mut Value) -> Option<&mut Self> {
        match value {
            Value::Session(session) => Some(session),
            _ => None,
        }
    }

    fn into_value(self) -> Value {
        Value::Session(self)
    }
}

#[cfg(test)]
mod tests {
    use super::{ClientSession, Input, Kind, REPLIES_MAX, REPLY_BYTES_MAX, Recall};

    #[test]
    fn what_was_applied_is_recalled_or_known_to_be_forgotten() {
        let mut session = ClientSession::new(1_000);
        assert_eq!(session.recall(5), Recall::New);
        session.remember(5, true, Some(b"+OK\r\n"));
        session.remember(3, false, Some(&[b'x'; REPLY_BYTES_MAX]));
        let Recall::Applied(given) = session.recall(5) else { panic!("it was applied") };
        assert_eq!((given.is_resp3, given.bytes.as_deref()), (true, Some(&b"+OK\r\n"[..])));
        let Recall::Applied(given) = session.recall(3) else { panic!("it was applied") };
        assert_eq!(given.bytes, None);
        assert_eq!((session.recall(4), session.last()), (Recall::New, 5));
        for number in 6..6 + REPLIES_MAX as u64 {
            session.remember(number, false, Some(b":1\r\n"));
        }
        assert_eq!((session.recall(5), session.recall(4)), (Recall::Forgotten, Recall::Forgotten));
        assert!(matches!(session.recall(6), Recall::Applied(_)));
        assert_eq!(session.len(), REPLIES_MAX);
        let mut out = Vec::new();
        session.encode_head(&mut out);
        assert_eq!(ClientSession::decode_head(&mut Input::new(&out)).unwrap(), session);
        for number in 10_000..10_010 {
            session.remember(number, false, Some(&[b'x'; REPLY_BYTES_MAX / 4]));
        }
        assert_eq!(session.len(), 4);
    }
}
