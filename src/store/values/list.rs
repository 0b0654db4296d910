//! Lists. A small one is stored in its key's page as one packed sequence; a large one is a chain of chunks
//! (`chain.rs`). It is packed again when little of it is left.

use crate::store::{
    chain::{Chain, End},
    codec::{Input, put_varint},
    digest::Digest,
    dirty::Dirty,
    knobs::list_page_bytes_max,
    object::{Kind, Pages, Typed, Value},
    strings::Strings,
};

/// A packed list larger than this becomes a chain.
const PACKED_BYTES_MAX: usize = 4 << 10;
/// A chain no larger than this is packed again: much less than the limit above, so that lists do not flap
/// between forms.
const UNPACKED_BYTES_MIN: usize = 1 << 10;

#[inline]
fn packed_bytes_max() -> usize {
    list_page_bytes_max(2 * PACKED_BYTES_MAX) / 2
}

#[inline]
fn unpacked_bytes_min() -> usize {
    list_page_bytes_max(8 * UNPACKED_BYTES_MIN) / 8
}

/// Forms on disk.
const PACKED: u8 = 0;
const CHAINED: u8 = 1;

/// A list.
#[derive(Debug, Default)]
pub struct List {
    form: Form,
}

#[derive(Debug)]
enum Form {
    Packed(Strings),
    Chained {
        chain: Chain,
        /// While it is being loaded: the numbers of elements and chunks according to its head.
        announced: (usize, usize),
    },
}

impl Default for Form {
    fn default() -> Self {
        Form::Packed(Strings::default())
    }
}

impl List {
    /// The number of elements.
    pub fn len(&self) -> usize {
        match &self.form {
            Form::Packed(strings) => strings.len(),
            Form::Chained { chain, .. } => chain.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sequences that it consists of.
    fn sequences(&self) -> impl DoubleEndedIterator<Item = &Strings> {
        let (packed, chain) = match &self.form {
            Form::Packed(strings) => (Some(strings), None),
            Form::Chained { chain, .. } => (None, Some(chain)),
        };
        packed.into_iter().chain(chain.into_iter().flat_map(Chain::strings))
    }

    /// The elements from left to right.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.sequences().flat_map(Strings::iter)
    }

    /// The elements from `index` on; skips chunks, not elements.
    pub fn iter_from(&self, index: usize) -> impl Iterator<Item = &[u8]> {
        let mut skipped = index;
        self.sequences().flat_map(move |strings| {
            let here = skipped.min(strings.len());
            skipped -= here;
            strings.iter_from(here)
        })
    }

    /// The element at `index`.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        match &self.form {
            Form::Packed(strings) => strings.get(index),
            Form::Chained { chain, .. } => chain.get(index),
        }
    }

    /// The element at an end.
    pub fn end(&self, end: End) -> Option<&[u8]> {
        match end {
            End::Left => self.get(0),
            End::Right => self.get(self.len().checked_sub(1)?),
        }
    }

    /// Adds an element at an end.
    pub fn push(&mut self, end: End, element: &[u8], pages: &mut Pages<'_>) {
        match (&mut self.form, end) {
            (Form::Packed(strings), End::Left) => strings.push_front(element),
            (Form::Packed(strings), End::Right) => strings.push_back(element),
            (Form::Chained { chain, .. }, end) => chain.push(end, element, pages),
        }
        self.chain_if_large(pages);
    }

    /// Removes up to `count` elements from an end.
    pub fn drop_end(&mut self, end: End, count: usize, pages: &mut Pages<'_>) {
        match &mut self.form {
            Form::Packed(strings) => {
                let first = if end == End::Left { 0 } else { strings.len().saturating_sub(count) };
                strings.drop_range(first, count);
            }
            Form::Chained { chain, .. } => chain.drop_end(end, count, pages),
        }
        self.pack_if_small(pages);
    }

    /// Replaces the element at `index`, which is below `len`.
    pub fn set(&mut self, index: usize, element: &[u8], pages: &mut Pages<'_>) {
        match &mut self.form {
            Form::Packed(strings) => strings.set(index, element),
            Form::Chained { chain, .. } => chain.set(index, element, pages),
        }
        self.chain_if_large(pages);
    }

    /// Inserts an element before the one at `index`, or at the end.
    pub fn insert(&mut self, index: usize, element: &[u8], pages: &mut Pages<'_>) {
        if index >= self.len() {
            return self.push(End::Right, element, pages);
        }
        match &mut self.form {
            Form::Packed(strings) => strings.insert(index, element),
            Form::Chained { chain, .. } => chain.insert(index, element, pages),
        }
        self.chain_if_large(pages);
    }

    /// Removes up to `max` elements equal to `element`: the first ones, or the last ones if `from` is the
    /// right end. Returns how many.
    pub fn remove_equal(&mut self, element: &[u8], max: usize, from: End, pages: &mut Pages<'_>) -> usize {
        let removed = match &mut self.form {
            Form::Packed(strings) => strings.remove_equal(element, max, from == End::Right),
            Form::Chained { chain, .. } => chain.remove_equal(element, max, from, pages),
        };
        self.pack_if_small(pages);
        removed
    }

    fn chain_if_large(&mut self, pages: &mut Pages<'_>) {
        if let Form::Packed(strings) = &mut self.form
            && strings.size() > packed_bytes_max()
        {
            let chain = Chain::of(std::mem::take(strings), pages);
            self.form = Form::Chained { chain, announced: (0, 0) };
        }
    }

    fn pack_if_small(&mut self, pages: &mut Pages<'_>) {
        if let Form::Chained { chain, .. } = &mut self.form
            && let Some(strings) = chain.take_small(unpacked_bytes_min(), pages)
        {
            self.form = Form::Packed(strings);
        }
    }

    /// The parts of its pages, in order. For tests.
    #[cfg(test)]
    pub(crate) fn parts(&self) -> Vec<u64> {
        match &self.form {
            Form::Packed(_) => Vec::new(),
            Form::Chained { chain, .. } => chain.parts(),
        }
    }

    /// Panics if an invariant does not hold. For tests.
    #[cfg(test)]
    pub(crate) fn invariants(&self) {
        match &self.form {
            Form::Packed(strings) => assert!(strings.size() <= packed_bytes_max()),
            Form::Chained { chain, .. } => chain.invariants(),
        }
    }

    pub(crate) fn decode_head(input: &mut Input<'_>) -> Result<List, String> {
        let form = match input.byte()? {
            PACKED => match Strings::decode(input)? {
                strings if strings.is_empty() => return Err("a list is empty".into()),
                strings => Form::Packed(strings),
            },
            CHAINED => {
                let chain = Chain::new(input.varint()?);
                Form::Chained { chain, announced: (input.size()?, input.size()?) }
            }
            other => return Err(format!("form {other} of a list is not known to this version")),
        };
        Ok(List { form })
    }
}

impl Kind for List {
    fn type_name(&self) -> &'static str {
        "list"
    }

    fn encoding(&self) -> &'static str {
        // For both forms, as Redis 7.0 replies for every list.
        "quicklist"
    }

    fn form(&self) -> u8 {
        match &self.form {
            Form::Packed(_) => PACKED,
            Form::Chained { .. } => CHAINED,
        }
    }

    fn is_empty(&self) -> bool {
        List::is_empty(self)
    }

    fn elements(&self) -> usize {
        List::len(self)
    }

    fn object(&self) -> Option<u64> {
        match &self.form {
            Form::Packed(_) => None,
            Form::Chained { chain, .. } => Some(chain.object()),
        }
    }

    fn head_bytes(&self) -> usize {
        match &self.form {
            Form::Packed(strings) => strings.encoded_size() + 1,
            Form::Chained { .. } => 24,
        }
    }

    fn more_bytes(&self) -> usize {
        match &self.form {
            Form::Packed(_) => 0,
            Form::Chained { chain, .. } => chain.bytes(),
        }
    }

    fn encode_head(&self, out: &mut Vec<u8>) {
        match &self.form {
            Form::Packed(strings) => {
                out.push(PACKED);
                strings.encode(out);
            }
            Form::Chained { chain, .. } => {
                out.push(CHAINED);
                put_varint(out, chain.object());
                put_varint(out, chain.len() as u64);
                put_varint(out, chain.chunks() as u64);
            }
        }
    }

    fn has_part(&self, part: u64) -> bool {
        matches!(&self.form, Form::Chained { chain, .. } if chain.has_part(part))
    }

    fn encode_part(&self, part: u64) -> Option<Vec<u8>> {
        match &self.form {
            Form::Packed(_) => None,
            Form::Chained { chain, .. } => chain.encode_part(part),
        }
    }

    fn load_part(&mut self, part: u64, content: &[u8]) -> Result<(), String> {
        match &mut self.form {
            Form::Packed(_) => Err("a list without pages has one".into()),
            Form::Chained { chain, .. } => chain.load_part(part, content),
        }
    }

    fn loaded(&mut self) -> Result<(), String> {
        match &self.form {
            Form::Chained { chain, announced }
                if chain.len() == 0 || (chain.len(), chain.chunks()) != *announced =>
            {
                let found = (chain.len(), chain.chunks());
                Err(format!("a list should have (elements, chunks) {announced:?} and has {found:?}"))
            }
            _ => Ok(()),
        }
    }

    fn remove_pages(&self, dirty: &mut Dirty) {
        if let Form::Chained { chain, .. } = &self.form {
            chain.remove_pages(dirty);
        }
    }

    fn digest(&self, digest: &mut Digest) {
        digest.number(self.len() as u64);
        self.iter().for_each(|element| digest.bytes(element));
    }

    fn copy(&self, pages: &mut Pages<'_>) -> Value {
        let form = match &self.form {
            Form::Packed(strings) => Form::Packed(strings.clone()),
            Form::Chained { chain, .. } => Form::Chained { chain: chain.copy(pages), announced: (0, 0) },
        };
        List { form }.into_value()
    }
}

impl Typed for List {
    fn of(value: &Value) -> Option<&Self> {
        match value {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    fn of_mut(value: &mut Value) -> Option<&mut Self> {
        match value {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    fn into_value(self) -> Value {
        Value::List(self)
    }
}
