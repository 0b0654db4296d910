//! Strings of more than 16 KiB: contiguous in memory, in chunks on disk, so that APPEND and SETRANGE write
//! only what they change.

use crate::store::{
    codec::{FORMAT, Input, put_varint},
    digest::Digest,
    dirty::{Dirty, Mark, PageId},
    object::{Kind, Pages, Value},
};

/// The size of a page.
const CHUNK_BYTES: usize = 16 << 10;

/// A long string.
///
/// Invariants:
/// - `marks` has one mark for each chunk of `bytes`; all chunks but the last are full.
/// - The chunk at `index` is the page `part: index`.
#[derive(Debug)]
pub struct LongString {
    object: u64,
    bytes: Vec<u8>,
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
        LongString { object, announced: bytes.len(), bytes, marks }
    }

    /// The whole string.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes `bytes` at `offset`, padding with zeros if needed.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8], pages: &mut Pages<'_>) {
        let (old_len, end) = (self.bytes.len(), offset + bytes.len());
        // Growth also changes the last chunk, if that was not full.
        let first = offset.min(old_len) / CHUNK_BYTES;
        let last = end.div_ceil(CHUNK_BYTES);
        for chunk in first..last.min(self.marks.len()) {
            let mut mark = self.marks[chunk];
            pages.touch(&mut mark, self.object, chunk as u64, || encode_chunk(&self.bytes, chunk));
            self.marks[chunk] = mark;
        }
        if end > old_len {
            // What it grows by is counted, so there is little to spare.
            if end > self.bytes.capacity() {
                self.bytes.reserve_exact(end - old_len + end / 8);
            }
            self.bytes.resize(end, 0);
        }
        self.bytes[offset..end].copy_from_slice(bytes);
        while self.marks.len() < self.bytes.len().div_ceil(CHUNK_BYTES) {
            self.marks.push(pages.created(self.object, self.marks.len() as u64));
        }
    }

    pub(crate) fn decode_head(input: &mut Input<'_>) -> Result<LongString, String> {
        let (object, announced) = (input.varint()?, input.size()?);
        Ok(LongString { object, bytes: Vec::new(), marks: Vec::new(), announced })
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
        self.bytes.len()
    }

    fn encode_head(&self, out: &mut Vec<u8>) {
        put_varint(out, self.object);
        put_varint(out, self.bytes.len() as u64);
    }

    fn has_part(&self, part: u64) -> bool {
        part < self.marks.len() as u64
    }

    fn encode_part(&self, part: u64) -> Option<Vec<u8>> {
        self.has_part(part).then(|| encode_chunk(&self.bytes, part as usize))
    }

    fn load_part(&mut self, part: u64, content: &[u8]) -> Result<(), String> {
        let chunk = Input::page(content)?.take_rest();
        if part != self.marks.len() as u64
            || self.bytes.len() != self.marks.len() * CHUNK_BYTES
            || chunk.len() > CHUNK_BYTES
        {
            return Err("a chunk of a string is missing or out of order".into());
        }
        self.bytes.extend_from_slice(chunk);
        self.marks.push(Mark::default());
        Ok(())
    }

    fn loaded(&mut self) -> Result<(), String> {
        if self.bytes.len() == self.announced && self.marks.len() == self.announced.div_ceil(CHUNK_BYTES) {
            return Ok(());
        }
        Err(format!("a string of {} bytes has only {}", self.announced, self.bytes.len()))
    }

    fn remove_pages(&self, dirty: &mut Dirty) {
        for (chunk, &mark) in self.marks.iter().enumerate() {
            let id = PageId::Object { object: self.object, part: chunk as u64 };
            dirty.removed(mark, id, || encode_chunk(&self.bytes, chunk));
        }
    }

    fn digest(&self, digest: &mut Digest) {
        digest.bytes(&self.bytes);
    }

    fn copy(&self, pages: &mut Pages<'_>) -> Value {
        Value::String(LongString::new(self.bytes.clone(), pages))
    }
}
