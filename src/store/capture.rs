//! What a key held at one moment, as bytes that outlive it: for the change feed, which shows a value long
//! after it was replaced. A small value is kept in its serialized form, which costs one copy, and decoded
//! when a subscriber wants to see it; a large one is not kept.

use super::{
    claims::Leader,
    codec::{Input, put_bytes},
    hashing::Hashing,
    object::Value,
    record::Body,
    view::View,
};

/// The forms of a value. For an object it is `OBJECT` plus its type's tag, which is never 0.
const NOT_KEPT: u8 = 0;
const STRING: u8 = 1;
const OBJECT: u8 = 1;
const LEADER: u8 = 255;

/// What a key held.
#[derive(Debug)]
pub struct Captured<'a> {
    /// The name that TYPE gives; None if the key did not exist.
    pub type_name: Option<&'a str>,
    form: u8,
    bytes: &'a [u8],
}

/// A value that was kept.
#[derive(Debug)]
pub enum Content<'a> {
    /// The bytes of a string.
    String(&'a [u8]),
    /// A list, hash, set or sorted set.
    Object(Value),
    /// The leader of an election.
    Leader(Leader<'a>),
}

/// Appends what `key` holds (for an election, its leader): the type name, empty if the key does not exist;
/// then the form, the length in four bytes, and the value. A value larger than `value_bytes_max` is not kept,
/// nor one of a type without content to show.
pub fn capture(view: &View<'_>, key: &[u8], value_bytes_max: usize, out: &mut Vec<u8>) {
    let Some(record) = view.find(key) else { return put_bytes(out, b"") };
    put_bytes(out, record.type_name().as_bytes());
    let start = out.len();
    out.extend_from_slice(&[NOT_KEPT, 0, 0, 0, 0]);
    if let Some(bytes) = record.string() {
        if bytes.len() <= value_bytes_max {
            out[start] = STRING;
            out.extend_from_slice(bytes);
        }
    } else if let Some(leader) = record.claims().and_then(|claims| claims.leader(view.now_ms)) {
        out[start] = LEADER;
        leader.encode(value_bytes_max, out);
    } else if let Body::Object(object) = record.body()
        && is_shown(&object.value)
    {
        let kind = object.value.kind();
        if kind.object().is_none() && kind.head_bytes() <= value_bytes_max {
            out[start] = OBJECT + object.value.tag();
            kind.encode_head(out);
        }
    }
    let len = (out.len() - start - 5) as u32;
    out[start + 1..start + 5].copy_from_slice(&len.to_le_bytes());
}

/// Appends what a key holds whose value is this string, whatever its length.
pub fn capture_string(string: &[u8], out: &mut Vec<u8>) {
    put_bytes(out, b"string");
    out.push(STRING);
    out.extend_from_slice(&(string.len() as u32).to_le_bytes());
    out.extend_from_slice(string);
}

fn is_shown(value: &Value) -> bool {
    matches!(value, Value::List(_) | Value::Hash(_) | Value::Set(_) | Value::SortedSet(_))
}

impl<'a> Captured<'a> {
    /// Reads what [`capture`] wrote.
    pub fn read(input: &mut Input<'a>) -> Result<Captured<'a>, String> {
        let type_name = std::str::from_utf8(input.bytes()?).map_err(|error| error.to_string())?;
        if type_name.is_empty() {
            return Ok(Captured { type_name: None, form: NOT_KEPT, bytes: b"" });
        }
        let form = input.byte()?;
        let bytes = input.fixed_bytes()?;
        Ok(Captured { type_name: Some(type_name), form, bytes })
    }

    /// The value; None if the key did not exist or its value was not kept.
    pub fn content(&self) -> Result<Option<Content<'a>>, String> {
        Ok(match self.form {
            NOT_KEPT => None,
            STRING => Some(Content::String(self.bytes)),
            LEADER => Some(Content::Leader(Leader::decode(&mut Input::new(self.bytes))?)),
            // Only a value within its key's page is kept, and such a value has no order of hashes.
            form => Some(Content::Object(Value::decode_head(
                form - OBJECT,
                &mut Input::new(self.bytes),
                Hashing::PLAIN,
            )?)),
        })
    }
}
