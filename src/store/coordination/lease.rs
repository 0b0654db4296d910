//! Leases: a TTL shared by many keys. When a lease ends, the keys attached to it are deleted, and the holds
//! and waits that depend on it end.
//!
//! The lease has the list of its keys, `State::attached` has each key's leases. Both are in the same
//! database.

use std::collections::BTreeSet;

use crate::store::{
    codec::{Input, put_bytes, put_varint},
    level,
    object::{Kind, Pages, Typed, Value},
};

/// The maximum size of the names of all keys of a lease together.
pub const LEASE_BYTES_MAX: usize = 1 << 20;

/// The most keys of a lease: they are deleted in one entry when it ends. From [`level::LIMITS`] on; a lease may have
/// more from before.
pub const LEASE_KEYS_MAX: usize = 10_000;

/// What a key of a lease costs in memory besides its name, here and where keys have their leases.
const KEY_BYTES: usize = 400;

/// A lease. It manages its key's deadline itself.
///
/// Invariant: `bytes` is the size of all names in `keys`.
#[derive(Clone, Debug, Default)]
pub struct Lease {
    /// The TTL that it is granted and renewed for.
    pub ttl_ms: u64,
    /// The number of its last binding to a connection; 0 for none.
    pub binding: u64,
    keys: BTreeSet<Box<[u8]>>,
    /// The size of all keys.
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

    /// The number of keys that depend on it.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no keys depend on it.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether there is room for these keys, by the rules of a level.
    pub fn has_room(&self, keys: &[&[u8]], level: u32) -> bool {
        if level < level::LIMITS {
            return self.bytes + keys.iter().map(|key| key.len()).sum::<usize>() <= LEASE_BYTES_MAX;
        }
        let new: BTreeSet<&[u8]> = keys.iter().copied().filter(|key| !self.keys.contains(*key)).collect();
        self.len() + new.len() <= LEASE_KEYS_MAX
            && self.bytes + new.iter().map(|key| key.len()).sum::<usize>() <= LEASE_BYTES_MAX
    }

    pub(in crate::store) fn attach(&mut self, key: &[u8]) {
        if self.keys.insert(key.into()) {
            self.bytes += key.len();
        }
    }

    pub(in crate::store) fn detach(&mut self, key: &[u8]) {
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

    fn dependents(&self) -> usize {
        self.keys.len()
    }

    fn more_bytes(&self) -> usize {
        self.keys.len() * KEY_BYTES
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
