//! One key with its value, as an item of the keyspace. Most values are short strings, which take one
//! allocation.
//!
//! A string of at most [`PACKED_VALUE_BYTES_MAX`] is always packed and a longer one never is, so the form of
//! a value depends on its content alone.

use crate::store::{
    codec::{Input, put_bytes, put_varint},
    hashing::Hashing,
    long_string::LongString,
    object::{Object, Value},
    segments::Item,
};

/// The longest string that is stored in its key's page.
pub const PACKED_VALUE_BYTES_MAX: usize = 16 << 10;

const VERSION_BYTES: usize = 6;
const HAS_DEADLINE: u8 = 1;
/// The first byte of a packed string's serialized form; other values begin with their type's tag.
const PACKED_TAG: u8 = 0;

/// A key, its value, version and deadline.
#[derive(Debug)]
pub struct Record {
    hash: u64,
    body: Body,
}

/// The representation of a key and its value.
#[derive(Debug)]
pub(crate) enum Body {
    /// A short string.
    Packed(Packed),
    /// Anything else.
    Object(Box<Object>),
}

// The cost of a key besides its own allocation: it matters with millions of keys.
const _: () = assert!(size_of::<Record>() == 24);

impl Record {
    pub(crate) fn packed(hash: u64, key: &[u8], value: &[u8], deadline: Option<u64>, version: u64) -> Record {
        Record { hash, body: Body::Packed(Packed::new(key, value, deadline, version)) }
    }

    pub(crate) fn object(hash: u64, object: Object) -> Record {
        Record { hash, body: Body::Object(Box::new(object)) }
    }

    pub(crate) fn body(&self) -> &Body {
        &self.body
    }

    pub(crate) fn body_mut(&mut self) -> &mut Body {
        &mut self.body
    }

    pub(crate) fn into_body(self) -> Body {
        self.body
    }

    /// The key.
    pub fn key(&self) -> &[u8] {
        match &self.body {
            Body::Packed(packed) => packed.key(),
            Body::Object(object) => &object.key,
        }
    }

    /// The string's bytes; None for other types.
    #[inline]
    pub fn string(&self) -> Option<&[u8]> {
        match &self.body {
            Body::Packed(packed) => Some(packed.value()),
            Body::Object(object) => match &object.value {
                Value::String(string) => Some(string.bytes()),
                #[allow(unreachable_patterns)]
                _ => None,
            },
        }
    }

    /// The long string; None for a short one, and for other types.
    pub fn long_string(&self) -> Option<&LongString> {
        match &self.body {
            Body::Object(object) => match &object.value {
                Value::String(string) => Some(string),
                _ => None,
            },
            Body::Packed(_) => None,
        }
    }

    /// Its deadline, in milliseconds since the Unix epoch: the key has expired when the clock is past it.
    pub fn deadline(&self) -> Option<u64> {
        match &self.body {
            Body::Packed(packed) => packed.deadline(),
            Body::Object(object) => object.deadline,
        }
    }

    /// The state's revision when it was last changed; never 0.
    pub fn version(&self) -> u64 {
        match &self.body {
            Body::Packed(packed) => packed.version(),
            Body::Object(object) => object.version,
        }
    }

    /// The name that TYPE gives.
    pub fn type_name(&self) -> &'static str {
        match &self.body {
            Body::Packed(_) => "string",
            Body::Object(object) => object.value.kind().type_name(),
        }
    }

    /// The name that OBJECT ENCODING gives.
    pub fn encoding(&self) -> &'static str {
        match &self.body {
            Body::Packed(packed) => string_encoding(packed.value()),
            Body::Object(object) => object.value.kind().encoding(),
        }
    }

    /// The id of the value's own pages, if it has any.
    pub(crate) fn object_id(&self) -> Option<u64> {
        match &self.body {
            Body::Packed(_) => None,
            Body::Object(object) => object.value.kind().object(),
        }
    }

    /// Sets the deadline and the version; everything else stays.
    pub(crate) fn stamp(&mut self, deadline: Option<u64>, version: u64) {
        match &mut self.body {
            Body::Packed(packed) if packed.deadline().is_some() == deadline.is_some() => {
                packed.put_header(deadline, version);
            }
            Body::Packed(packed) => *packed = Packed::new(packed.key(), packed.value(), deadline, version),
            Body::Object(object) => (object.deadline, object.version) = (deadline, version),
        }
    }
}

/// The reply of OBJECT ENCODING for a short string.
fn string_encoding(value: &[u8]) -> &'static str {
    match value.len() {
        len if len <= 20 && crate::args::parse_integer(value).is_some() => "int",
        0..=44 => "embstr",
        _ => "raw",
    }
}

/// What a key costs in memory besides its content: its place in a segment, and its allocations, ...
const RECORD_BYTES: usize = 48;
/// ... more if its value is not a short string, ...
const OBJECT_BYTES: usize = 160;
/// ... and if it has a deadline.
const DEADLINE_BYTES: usize = 48;

impl Record {
    /// What the key and its value cost in memory, counted by their content: the same on every node, whatever its
    /// allocator does.
    pub fn cost(&self) -> usize {
        let object = match &self.body {
            Body::Packed(_) => 0,
            Body::Object(object) => OBJECT_BYTES + object.value.kind().more_bytes(),
        };
        let deadline = if self.deadline().is_some() { DEADLINE_BYTES } else { 0 };
        self.bytes() + object + deadline + RECORD_BYTES
    }
}

impl Item for Record {
    #[inline]
    fn hash(&self) -> u64 {
        self.hash
    }

    #[inline]
    fn key(&self) -> &[u8] {
        Record::key(self)
    }

    #[inline]
    fn bytes(&self) -> usize {
        match &self.body {
            Body::Packed(packed) => packed.0.len(),
            Body::Object(object) => object.key.len() + object.value.kind().head_bytes() + 16,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(match &self.body {
            Body::Packed(_) => PACKED_TAG,
            Body::Object(object) => object.value.tag(),
        });
        put_varint(out, self.version());
        // 0 means no deadline.
        put_varint(out, self.deadline().unwrap_or(0));
        put_bytes(out, self.key());
        match &self.body {
            Body::Packed(packed) => put_bytes(out, packed.value()),
            Body::Object(object) => object.value.kind().encode_head(out),
        }
    }

    fn decode(input: &mut Input<'_>, hashing: Hashing) -> Result<Record, String> {
        let tag = input.byte()?;
        let version = input.varint()?;
        let deadline = Some(input.varint()?).filter(|&deadline| deadline != 0);
        let key = input.bytes()?;
        let hash = hashing.of(key);
        if tag == PACKED_TAG {
            return Ok(Record::packed(hash, key, input.bytes()?, deadline, version));
        }
        let value = Value::decode_head(tag, input, hashing)?;
        Ok(Record::object(hash, Object { key: key.into(), version, deadline, value }))
    }
}

/// A long string, as an object.
pub(crate) fn long_string(key: &[u8], value: LongString, deadline: Option<u64>, version: u64) -> Object {
    Object { key: key.into(), version, deadline, value: Value::String(value) }
}

/// A key with a short string, in one allocation: flags, version, the deadline if there is one, the key's
/// length as a varint, the key, the value.
pub(crate) struct Packed(Box<[u8]>);

impl Packed {
    fn new(key: &[u8], value: &[u8], deadline: Option<u64>, version: u64) -> Packed {
        let mut out = Vec::with_capacity(Packed::size(key, value, deadline));
        out.resize(1 + VERSION_BYTES + if deadline.is_some() { 8 } else { 0 }, 0);
        put_bytes(&mut out, key);
        out.extend_from_slice(value);
        let mut packed = Packed(out.into_boxed_slice());
        packed.put_header(deadline, version);
        packed
    }

    fn size(key: &[u8], value: &[u8], deadline: Option<u64>) -> usize {
        let len_bytes = (key.len() | 1).ilog2() as usize / 7 + 1;
        1 + VERSION_BYTES + if deadline.is_some() { 8 } else { 0 } + len_bytes + key.len() + value.len()
    }

    /// Replaces the value, in place if the new one has the same size.
    #[inline]
    pub fn set(&mut self, value: &[u8], deadline: Option<u64>, version: u64) {
        let start = self.value_start();
        if self.0.len() - start == value.len() && self.deadline().is_some() == deadline.is_some() {
            self.0[start..].copy_from_slice(value);
            self.put_header(deadline, version);
        } else {
            *self = Packed::new(self.key(), value, deadline, version);
        }
    }

    /// The header must already have the right size for the deadline.
    fn put_header(&mut self, deadline: Option<u64>, version: u64) {
        self.0[0] = if deadline.is_some() { HAS_DEADLINE } else { 0 };
        self.0[1..=VERSION_BYTES].copy_from_slice(&version.to_le_bytes()[..VERSION_BYTES]);
        if let Some(deadline) = deadline {
            self.0[7..15].copy_from_slice(&deadline.to_le_bytes());
        }
    }

    fn version(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes[..VERSION_BYTES].copy_from_slice(&self.0[1..=VERSION_BYTES]);
        u64::from_le_bytes(bytes)
    }

    #[inline]
    pub fn deadline(&self) -> Option<u64> {
        let bytes = self.0[7..].first_chunk::<8>();
        bytes.filter(|_| self.0[0] & HAS_DEADLINE != 0).map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// Where the key begins, and its length.
    #[inline]
    fn key_range(&self) -> (usize, usize) {
        let mut start = if self.0[0] & HAS_DEADLINE != 0 { 15 } else { 7 };
        let (mut len, mut shift) = (0, 0);
        loop {
            let byte = self.0[start];
            start += 1;
            len |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return (start, len);
            }
            shift += 7;
        }
    }

    #[inline]
    fn key(&self) -> &[u8] {
        let (start, len) = self.key_range();
        &self.0[start..start + len]
    }

    #[inline]
    fn value_start(&self) -> usize {
        let (start, len) = self.key_range();
        start + len
    }

    #[inline]
    pub fn value(&self) -> &[u8] {
        &self.0[self.value_start()..]
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} = {:?}", self.key().escape_ascii(), self.value().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::{Packed, Record};
    use crate::store::{Hashing, codec::Input, segments::Item};

    #[test]
    fn packed_strings_keep_their_parts() {
        for key in [&b"k"[..], &[7; 127], &[7; 128], &[7; 20_000]] {
            let mut packed = Packed::new(key, b"value", None, 1 << 47);
            assert_eq!(packed.0.len(), Packed::size(key, b"value", None));
            assert_eq!((packed.key(), packed.value()), (key, b"value".as_slice()));
            assert_eq!((packed.version(), packed.deadline()), (1 << 47, None));
            packed.set(b"other", Some(u64::MAX), 2);
            assert_eq!((packed.key(), packed.value()), (key, b"other".as_slice()));
            assert_eq!((packed.version(), packed.deadline()), (2, Some(u64::MAX)));
            packed.set(b"short", Some(5), 3);
            assert_eq!((packed.value(), packed.deadline()), (b"short".as_slice(), Some(5)));
        }
    }

    #[test]
    fn records_survive_their_serial_form() {
        let record = Record::packed(Hashing::PLAIN.of(b"k"), b"k", b"v", Some(12), 34);
        let mut out = Vec::new();
        record.encode(&mut out);
        let again = Record::decode(&mut Input::new(&out), Hashing::PLAIN).unwrap();
        assert_eq!((again.key(), again.string()), (record.key(), record.string()));
        assert_eq!((again.deadline(), again.version(), again.hash), (Some(12), 34, record.hash));
        for len in 0..out.len() {
            assert!(Record::decode(&mut Input::new(&out[..len]), Hashing::PLAIN).is_err());
        }
    }
}
