//! Leases: a time to live that many keys share. When a lease ends, the keys attached to it are deleted, and the holds
//! and waits that depend on it end.
//!
//! The lease knows its keys, `State::attached` knows each key's leases. Both are of the same database.

use std::collections::BTreeSet;

use super::{
    codec::{Input, put_bytes, put_varint},
    object::{Kind, Pages, Typed, Value},
};

/// What the names of all keys of a lease may take together.
pub const LEASE_BYTES_MAX: usize = 1 << 20;

/// A lease. Its key's deadline is its own.
#[derive(Clone, Debug, Default)]
pub struct Lease {
    /// For how long it is granted and kept alive.
    pub ttl_ms: u64,
    /// The last connection that it was bound to, by a number of its own; 0 for none.
    pub binding: u64,
    keys: BTreeSet<Box<[u8]>>,
    /// Of all keys.
    bytes: usize,
}

impl Lease {
    /// A lease without keys.
    pub fn new(ttl_ms: u64) -> Lease {
        Lease { ttl_ms, ..Lease::default() }
    }

    /// The keys that depend on it: plain ones, and those of claims.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.keys.iter().map(|key| &**key)
    }

    /// How many keys depend on it.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether there is room for another key.
    pub fn has_room(&self, key: &[u8]) -> bool {
        self.bytes + key.len() <= LEASE_BYTES_MAX
    }

    pub(super) fn attach(&mut self, key: &[u8]) {
        if self.keys.insert(key.into()) {
            self.bytes += key.len();
        }
    }

    pub(super) fn detach(&mut self, key: &[u8]) {
        if self.keys.remove(key) {
            self.bytes -= key.len();
        }
    }
}

impl Kind for Lease {
    fn type_name(&self) -> &'static str {
        "lease"
    }

    fn encoding(&self) -> &'static str {
        "listpack"
    }

    fn is_empty(&self) -> bool {
        false
    }

    fn head_bytes(&self) -> usize {
        self.bytes + 2 * self.keys.len() + 8
    }

    fn encode_head(&self, out: &mut Vec<u8>) {
        put_varint(out, self.ttl_ms);
        put_varint(out, self.binding);
        put_varint(out, self.keys.len() as u64);
        self.keys.iter().for_each(|key| put_bytes(out, key));
    }

    fn copy(&self, _: &mut Pages<'_>) -> Value {
        Value::Lease(Lease::new(self.ttl_ms))
    }

    fn keeps_its_time(&self) -> bool {
        true
    }
}

impl Lease {
    /// Reads what `encode_head` wrote.
    pub fn decode_head(input: &mut Input<'_>) -> Result<Lease, String> {
        let mut lease = Lease::new(input.varint()?);
        lease.binding = input.varint()?;
        for _ in 0..input.size()? {
            lease.attach(input.bytes()?);
        }
        Ok(lease)
    }
}

impl Typed for Lease {
    fn of(value: &Value) -> Option<&Self> {
        match value {
            Value::Lease(lease) => Some(lease),
            _ => None,
        }
    }

    fn of_mut(value: &mut Value) -> Option<&mut Self> {
        match value {
            Value::Lease(lease) => Some(lease),
            _ => None,
        }
    }

    fn into_value(self) -> Value {
        Value::Lease(self)
    }
}
