//! Strings of more than 16 KiB: contiguous in memory, in chunks on disk, so that APPEND and SETRANGE write
//! only what they change.
//!
//! Replies share the memory of a string while they are being sent. If it changes meanwhile, it is copied first.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use kvorum_raft::aside;

use crate::store::{
    codec::{FORMAT, Input, put_varint},
    digest::Digest,
    dirty::{Dirty, Mark, PageId},
    object::{Kind, Pages, Value},
};

/// The size of a page.
const CHUNK_BYTES: usize = 16 << 10;

/// To copy more than this takes long enough to hold up others.
const LONG_BYTES: usize = 1 << 20;

/// A long string.
///
/// Invariants:
/// - `marks` has one mark for each chunk of `bytes`; all chunks but the last are full.
/// - The chunk at `index` is the page `part: index`.
#[derive(Debug)]
pub struct LongString {
    object: u64,
    bytes: Shared,
    marks: Vec<Mark>,
    /// While it is being loaded: the length according to its head.
    announced: usize,
}

impl LongString {
    /// A string with its own pages.
    pub(crate) fn new(bytes: Vec<u8>, pages: &mut Pages<'_>) -> LongString {
        let object = pages.allocate();
        let chunks = bytes.len().div_ceil(CHUNK_BYTES);
        let marks = (0..chunks).map(|chunk| pages.created(object, chunk as u64)).collect();
        LongString { object, announced: bytes.len(), bytes: Shared::of(bytes), marks }
    }

    /// The whole string.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// A part of the string as it is at this moment, to keep.
    pub fn share(&self, range: Range<usize>) -> Bytes {
        Bytes::from_owner(self.bytes.clone()).slice(range)
    }

    /// Writes `bytes` at `offset`, padding with zeros if needed.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8], pages: &mut Pages<'_>) {
        let (old_len, end) = (self.bytes().len(), offset + bytes.len());
        // Growth also changes the last chunk, if that was not full.
        let first = offset.min(old_len) / CHUNK_BYTES;
        let last = end.div_ceil(CHUNK_BYTES);
        for chunk in first..last.min(self.marks.len()) {
            let mut mark = self.marks[chunk];
            pages.touch(&mut mark, self.object, chunk as u64, || encode_chunk(self.bytes(), chunk));
            self.marks[chunk] = mark;
        }
        let own = self.bytes.own(end);
        if end > old_len {
            own.resize(end, 0);
        }
        own[offset..end].copy_from_slice(bytes);
        while self.marks.len() < self.bytes().len().div_ceil(CHUNK_BYTES) {
            self.marks.push(pages.created(self.object, self.marks.len() as u64));
        }
    }

    pub(crate) fn decode_head(input: &mut Input<'_>) -> Result<LongString, String> {
        let (object, announced) = (input.varint()?, input.size()?);
        Ok(LongString { object, bytes: Shared::default(), marks: Vec::new(), announced })
    }
}

/// Bytes that others may hold too.
#[derive(Clone, Debug, Default)]
struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Shared {
    fn of(bytes: Vec<u8>) -> Shared {
        Shared(Arc::new(bytes))
    }

    /// The bytes, held by nobody else, with room for `len` of them. What they grow by is counted, so there is little to
    /// spare.
    fn own(&mut self, len: usize) -> &mut Vec<u8> {
        if Arc::get_mut(&mut self.0).is_none() {
            let room = if len > self.0.len() { len + len / 8 } else { self.0.len() };
            let copy = || {
                let mut bytes = Vec::with_capacity(room);
                bytes.extend_from_slice(&self.0);
                bytes
            };
            *self = Shared::of(if self.0.len() > LONG_BYTES { aside::run(copy) } else { copy() });
        }
        let bytes = Arc::get_mut(&mut self.0).expect("nobody else has it");
        if len > bytes.capacity() {
            bytes.reserve_exact(len - bytes.len() + len / 8);
        }
        bytes
    }
}

fn encode_chunk(bytes: &[u8], chunk: usize) -> Vec<u8> {
    let start = chunk * CHUNK_BYTES;
    let content = &bytes[start..bytes.len().min(start + CHUNK_BYTES)];
    let mut out = Vec::with_capacity(content.len() + 1);
    out.push(FORMAT);
    out.extend_from_slice(content);
    out
}

impl Kind for LongString {
    fn type_name(&self) -> &'static str {
        "string"
    }

    fn encoding(&self) -> &'static str {
        "raw"
    }

    fn is_empty(&self) -> bool {
        // An empty string is a value like any other.
        false
    }

    fn object(&self) -> Option<u64> {
        Some(self.object)
    }

    fn head_bytes(&self) -> usize {
        16
    }

    fn more_bytes(&self) -> usize {
        self.bytes().len()
    }

    fn encode_head(&self, out: &mut Vec<u8>) {
        put_varint(out, self.object);
        put_varint(out, self.bytes().len() as u64);
    }

    fn has_part(&self, part: u64) -> bool {
        part < self.marks.len() as u64
    }

    fn encode_part(&self, part: u64) -> Option<Vec<u8>> {
        self.has_part(part).then(|| encode_chunk(self.bytes(), part as usize))
    }

    fn load_part(&mut self, part: u64, content: &[u8]) -> Result<(), String> {
        let chunk = Input::page(content)?.take_rest();
        if part != self.marks.len() as u64
            || self.bytes().len() != self.marks.len() * CHUNK_BYTES
            || chunk.len() > CHUNK_BYTES
        {
            return Err("a chunk of a string is missing or out of order".into());
        }
        self.bytes.own(0).extend_from_slice(chunk);
        self.marks.push(Mark::default());
        Ok(())
    }

    fn loaded(&mut self) -> Result<(), String> {
        if self.bytes().len() == self.announced && self.marks.len() == self.announced.div_ceil(CHUNK_BYTES) {
            return Ok(());
        }
        Err(format!("a string of {} bytes has only {}", self.announced, self.bytes().len()))
    }

    fn remove_pages(&self, dirty: &mut Dirty) {
        for (chunk, &mark) in self.marks.iter().enumerate() {
            let id = PageId::Object { object: self.object, part: chunk as u64 };
            dirty.removed(mark, id, || encode_chunk(self.bytes(), chunk));
        }
    }

    fn digest(&self, digest: &mut Digest) {
        digest.bytes(self.bytes());
    }

    fn copy(&self, pages: &mut Pages<'_>) -> Value {
        Value::String(LongString::new(self.bytes().to_vec(), pages))
    }
}
