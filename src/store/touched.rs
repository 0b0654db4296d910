//! The keys that a call has touched, in the order in which it did, for the change feed. Whoever applies the log
//! takes them after every call.

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// It was created, changed or deleted.
    Changed,
    /// It was dead and is gone.
    Expired,
    /// All keys of the database were deleted; there is no key to name.
    Flushed,
}

/// Keys with what happened to them. Allocates nothing once it has grown.
#[derive(Debug)]
pub struct Touched {
    /// Longer strings are not noted with their keys.
    string_bytes_max: usize,
    marks: Vec<Mark>,
    /// The keys and strings, one after the other.
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Mark {
    db: u32,
    touch: Touch,
    /// Where its key ends in `bytes`.
    key_end: usize,
    /// Where its string ends, if the key holds one that was noted.
    string_end: Option<usize>,
}

/// A key that was touched.
#[derive(Clone, Copy, Debug)]
pub struct Mention<'a> {
    /// Its database.
    pub db: u32,
    /// The key; empty when all were touched.
    pub key: &'a [u8],
    /// What happened.
    pub touch: Touch,
    /// The string that it held right after, if it was one and that was noted: it saves a look at the state.
    pub string: Option<&'a [u8]>,
}

/// A buffer above this is given back.
const KEPT_BYTES_MAX: usize = 1 << 20;

impl Touched {
    /// Notes strings of up to `string_bytes_max` with their keys.
    pub fn new(string_bytes_max: usize) -> Touched {
        Touched { string_bytes_max, marks: Vec::new(), bytes: Vec::new() }
    }

    /// The number of touches; a key that was touched twice counts twice.
    pub fn len(&self) -> usize {
        self.marks.len()
    }

    /// Whether nothing was touched.
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    pub(crate) fn push(&mut self, db: u32, key: &[u8], touch: Touch) {
        self.bytes.extend_from_slice(key);
        self.marks.push(Mark { db, touch, key_end: self.bytes.len(), string_end: None });
    }

    /// A key now holds a string and is alive.
    #[inline]
    pub(crate) fn push_string(&mut self, db: u32, key: &[u8], string: &[u8]) {
        if string.len() > self.string_bytes_max {
            return self.push(db, key, Touch::Changed);
        }
        self.bytes.extend_from_slice(key);
        let key_end = self.bytes.len();
        self.bytes.extend_from_slice(string);
        let string_end = Some(self.bytes.len());
        self.marks.push(Mark { db, touch: Touch::Changed, key_end, string_end });
    }

    /// All touches, in their order.
    pub fn iter(&self) -> impl Iterator<Item = Mention<'_>> {
        let mut start = 0;
        self.marks.iter().map(move |mark| {
            let key = &self.bytes[start..mark.key_end];
            let string = mark.string_end.map(|end| &self.bytes[mark.key_end..end]);
            start = mark.string_end.unwrap_or(mark.key_end);
            Mention { db: mark.db, key, touch: mark.touch, string }
        })
    }

    pub(crate) fn clear(&mut self) {
        self.marks.clear();
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_BYTES_MAX {
            *self = self.emptied();
        }
    }

    /// One that notes the same and is empty.
    pub(crate) fn emptied(&self) -> Touched {
        Touched::new(self.string_bytes_max)
    }
}
