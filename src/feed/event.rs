//! The events of one log entry, as bytes: written where the entry is applied, read where a reader is served.
//!
//! An event: the database as a varint; 1 and the key, or 0 when it is about all keys; what happened; and for a
//! key what it held then (`store::capture`).

use std::{collections::HashSet, sync::Arc};

use crate::store::{
    Captured, Content, Mention, State, Touch, View, capture, capture_string,
    codec::{Input, put_bytes, put_varint},
};

/// Buffers above this are given back.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// The events of an entry that is being applied.
#[derive(Debug, Default)]
pub struct Draft {
    pub(super) index: u64,
    value_bytes_max: usize,
    bytes: Vec<u8>,
}

impl Draft {
    pub(super) fn begin(&mut self, index: u64, value_bytes_max: usize) {
        (self.index, self.value_bytes_max) = (index, value_bytes_max);
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_BYTES_MAX {
            self.bytes = Vec::new();
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes what a call has touched, in its order and each key once, as the state is now. `name` is the
    /// command's.
    pub fn take(&mut self, state: &mut State, name: &str) {
        let Some(touched) = state.touched() else { return };
        let is_one = touched.len() == 1;
        // A key that was dead and came back has changed.
        let mut changed: HashSet<(u32, &[u8])> = HashSet::new();
        if !is_one {
            let marks = touched.iter().filter(|mention| mention.touch == Touch::Changed);
            changed.extend(marks.map(|mention| (mention.db, mention.key)));
        }
        let out = &mut self.bytes;
        for Mention { db, key, touch, string } in touched.iter() {
            let is_due = match touch {
                Touch::Changed => is_one || changed.remove(&(db, key)),
                Touch::Expired => !changed.contains(&(db, key)),
                Touch::Flushed => true,
            };
            if !is_due {
                continue;
            }
            put_varint(out, u64::from(db));
            out.push(u8::from(touch != Touch::Flushed));
            if touch != Touch::Flushed {
                put_bytes(out, key);
            }
            let what = if touch == Touch::Expired { EXPIRED } else { name };
            put_varint(out, what.len() as u64);
            out.extend(what.bytes().map(|letter| letter.to_ascii_lowercase()));
            match string {
                // Touched again, it may hold something else by now.
                Some(string) if is_one => capture_string(string, out),
                _ if touch == Touch::Flushed => {}
                _ => capture(&View::new(state, db, 0, 0), key, self.value_bytes_max, out),
            }
        }
        state.forget_touched();
    }
}

/// What happened to a key whose deadline passed.
const EXPIRED: &str = "expired";

/// What happened to a key.
#[derive(Debug)]
pub struct Event<'a> {
    /// The database.
    pub db: u32,
    /// The key; None for all keys of the database.
    pub key: Option<&'a [u8]>,
    /// The name of the command in lower case, or `expired`.
    pub what: &'a str,
    /// What the key held then; None when the event is about all keys, of which none is left.
    pub held: Option<Captured<'a>>,
}

impl<'a> Event<'a> {
    fn read(input: &mut Input<'a>) -> Result<Event<'a>, String> {
        let db = input.size()? as u32;
        let key = if input.byte()? == 0 { None } else { Some(input.bytes()?) };
        let what = std::str::from_utf8(input.bytes()?).map_err(|error| error.to_string())?;
        let held = key.map(|_| Captured::read(input)).transpose()?;
        Ok(Event { db, key, what, held })
    }

    /// The value that the key held, if it was kept.
    pub fn content(&self) -> Option<Content<'a>> {
        self.held.as_ref()?.content().expect("this process wrote it")
    }
}

/// The events of one log entry that were kept. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its log index.
    pub index: u64,
    pub(super) bytes: Arc<[u8]>,
}

impl Entry {
    /// Its events, in their order.
    pub fn events(&self) -> impl Iterator<Item = Event<'_>> {
        events(&self.bytes)
    }
}

pub(super) fn events(bytes: &[u8]) -> impl Iterator<Item = Event<'_>> {
    let mut input = Input::new(bytes);
    std::iter::from_fn(move || {
        (!input.is_at_end()).then(|| Event::read(&mut input).expect("this process wrote it"))
    })
}
