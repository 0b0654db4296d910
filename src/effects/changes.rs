//! The keys that one log entry changed, as bytes: written where the entry is applied, decoded where a reader is
//! served.
//!
//! An event is the database as a varint; 1 and the key, or 0 if it is about all keys; its class; what happened
//! (the command's name or `expired`); and for a key its value at that moment (`store::capture`).

use std::collections::HashSet;

use crate::store::{
    Captured, Content, Mention, State, Touch, View, capture, capture_string,
    codec::{Input, put_bytes, put_varint},
};

/// Buffers larger than this are freed.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// The class of an event: the letter that Redis's `notify-keyspace-events` has for it, where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class(pub u8);

impl Class {
    /// A key that expired.
    pub const EXPIRED: Class = Class(b'x');
    /// Commands for keys of any type.
    pub const GENERIC: Class = Class(b'g');

    /// The class of what the commands of a group do.
    pub fn of_group(group: &str) -> Class {
        Class(match group {
            "string" => b'$',
            "list" => b'l',
            "set" => b's',
            "hash" => b'h',
            "sorted-set" => b'z',
            "stream" => b't',
            "lock" | "semaphore" | "election" | "lease" | "session" => b'd',
            _ => b'g',
        })
    }
}

/// The changes of the entry being applied.
#[derive(Debug, Default)]
pub struct Changes {
    value_bytes_max: usize,
    bytes: Vec<u8>,
}

impl Changes {
    /// Begins anew, for the next entry.
    pub fn begin(&mut self, value_bytes_max: usize) {
        self.value_bytes_max = value_bytes_max;
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_BYTES_MAX {
            self.bytes = Vec::new();
        }
    }

    /// The events as bytes; empty if nothing was changed.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends an event for each key touched by a call, in order and once per key, with its present value.
    /// `name` is the command's, `class` that of what it does.
    pub fn take(&mut self, state: &mut State, name: &str, class: Class) {
        let Some(touched) = state.touched() else { return };
        let is_one = touched.len() == 1;
        // A key that expired and was created again counts as changed.
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
            let (what, class) =
                if touch == Touch::Expired { (EXPIRED, Class::EXPIRED) } else { (name, class) };
            out.push(class.0);
            put_bytes(out, what.as_bytes());
            let name_at = out.len() - what.len();
            out[name_at..].make_ascii_lowercase();
            match string {
                // If the call touched it again, its value may be another by now.
                Some(string) if is_one => capture_string(string, out),
                _ if touch == Touch::Flushed => {}
                _ => capture(&View::new(state, db, 0, 0), key, self.value_bytes_max, out),
            }
        }
        state.forget_touched();
    }
}

/// The name of the event for a key that expired.
const EXPIRED: &str = "expired";

/// What happened to a key, or to all keys of a database.
#[derive(Debug)]
pub struct Event<'a> {
    /// The database.
    pub db: u32,
    /// The key; None for all keys of the database.
    pub key: Option<&'a [u8]>,
    /// Its class.
    pub class: Class,
    /// The name of the command in lower case, or `expired`.
    pub what: &'a str,
    /// The key's value at that moment; None for all keys, none of which is left.
    pub held: Option<Captured<'a>>,
}

impl<'a> Event<'a> {
    fn read(input: &mut Input<'a>) -> Result<Event<'a>, String> {
        let db = input.size()? as u32;
        let key = if input.byte()? == 0 { None } else { Some(input.bytes()?) };
        let class = Class(input.byte()?);
        let what = std::str::from_utf8(input.bytes()?).map_err(|error| error.to_string())?;
        let held = key.map(|_| Captured::read(input)).transpose()?;
        Ok(Event { db, key, class, what, held })
    }

    /// The key's value, if it was kept.
    pub fn content(&self) -> Option<Content<'a>> {
        self.held.as_ref()?.content().expect("this process wrote it")
    }
}

/// The events in `bytes`, which [`Changes`] made.
pub fn events(bytes: &[u8]) -> impl Iterator<Item = Event<'_>> {
    let mut input = Input::new(bytes);
    std::iter::from_fn(move || {
        (!input.is_at_end()).then(|| Event::read(&mut input).expect("this process wrote it"))
    })
}
