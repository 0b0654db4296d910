//! Values that are more than a short string, and what a type supplies to be one.
//!
//! A small value lies in its key's page, serialized by [`Kind::encode_head`]. A large one has pages of its own,
//! `PageId::Object { object, part }` under an object id that is never used again and that moves with the value
//! when its key is renamed; then the head says only what is needed to take up the parts.
//!
//! To add a type: a struct in a file of its own with `impl Kind` and `impl Typed`; a variant of [`Value`]; and
//! one arm each in `kind`, `kind_mut`, `tag` and `decode_head`.

use super::{
    claim::ClaimKind,
    claims::Claims,
    client_session::ClientSession,
    codec::Input,
    digest::Digest,
    dirty::{Dirty, Mark, PageId},
    hash::Hashing,
    hash_object::Hash,
    lease::Lease,
    list::List,
    long_string::LongString,
    set::Set,
    sorted_set::SortedSet,
    table::Table,
};

/// A key whose value is no short string.
#[derive(Debug)]
pub struct Object {
    pub(crate) key: Box<[u8]>,
    pub(crate) version: u64,
    pub(crate) deadline: Option<u64>,
    pub(crate) value: Value,
}

/// The value of an [`Object`].
#[derive(Debug)]
pub enum Value {
    /// A string of more than 16 KiB.
    String(LongString),
    /// A list.
    List(List),
    /// A hash.
    Hash(Hash),
    /// A set.
    Set(Set),
    /// A sorted set.
    SortedSet(SortedSet),
    /// A lock, a semaphore or an election.
    Claims(Claims),
    /// A lease.
    Lease(Lease),
    /// A client's session.
    Session(ClientSession),
}

impl Value {
    /// What its type does.
    pub fn kind(&self) -> &dyn Kind {
        match self {
            Value::String(string) => string,
            Value::List(list) => list,
            Value::Hash(hash) => hash,
            Value::Set(set) => set,
            Value::SortedSet(set) => set,
            Value::Claims(claims) => claims,
            Value::Lease(lease) => lease,
            Value::Session(session) => session,
        }
    }

    /// What its type does.
    pub fn kind_mut(&mut self) -> &mut dyn Kind {
        match self {
            Value::String(string) => string,
            Value::List(list) => list,
            Value::Hash(hash) => hash,
            Value::Set(set) => set,
            Value::SortedSet(set) => set,
            Value::Claims(claims) => claims,
            Value::Lease(lease) => lease,
            Value::Session(session) => session,
        }
    }

    /// The type's tag on disk; never changes, never 0.
    pub(crate) fn tag(&self) -> u8 {
        match self {
            Value::String(_) => 1,
            Value::List(_) => 2,
            Value::Hash(_) => 3,
            Value::Set(_) => 4,
            Value::SortedSet(_) => 5,
            Value::Claims(claims) => match claims.kind() {
                ClaimKind::Lock => 6,
                ClaimKind::Semaphore => 7,
                ClaimKind::Election => 8,
            },
            Value::Lease(_) => 9,
            Value::Session(_) => 10,
        }
    }

    pub(crate) fn decode_head(tag: u8, input: &mut Input<'_>, hashing: Hashing) -> Result<Value, String> {
        match tag {
            1 => LongString::decode_head(input).map(Value::String),
            2 => List::decode_head(input).map(Value::List),
            3 => Hash::decode_head(input, hashing).map(Value::Hash),
            4 => Set::decode_head(input, hashing).map(Value::Set),
            5 => SortedSet::decode_head(input, hashing).map(Value::SortedSet),
            6 => Claims::decode_head(ClaimKind::Lock, input).map(Value::Claims),
            7 => Claims::decode_head(ClaimKind::Semaphore, input).map(Value::Claims),
            8 => Claims::decode_head(ClaimKind::Election, input).map(Value::Claims),
            9 => Lease::decode_head(input).map(Value::Lease),
            10 => ClientSession::decode_head(input).map(Value::Session),
            other => Err(format!("type {other} is not known to this version")),
        }
    }
}

/// What a type supplies for its values. What is given here is for types that never have pages of their own.
///
/// Invariants the implementor keeps:
/// - What `encode_head` and `encode_part` write depends on content, and decoding it gives a value that behaves
///   identically.
/// - Before a part changes, appears or goes away, the matching function of [`Pages`] is called with its mark,
///   which the value keeps with the part. The head's page is touched by [`super::Ctx`].
pub trait Kind: Send + Sync {
    /// As TYPE names it.
    fn type_name(&self) -> &'static str;
    /// As OBJECT ENCODING names it.
    fn encoding(&self) -> &'static str;
    /// A collection that is empty after a change is deleted.
    fn is_empty(&self) -> bool;
    /// The id of its own pages; None while it lies in its key's page.
    fn object(&self) -> Option<u64> {
        None
    }
    /// About what `encode_head` writes, in constant time; depends on content alone.
    fn head_bytes(&self) -> usize;
    /// Appends the whole value, or the head of one that has pages.
    fn encode_head(&self, out: &mut Vec<u8>);
    /// Whether it has this page.
    fn has_part(&self, _part: u64) -> bool {
        false
    }
    /// The content of a page, beginning with [`super::codec::FORMAT`]; None if there is no such page.
    fn encode_part(&self, _part: u64) -> Option<Vec<u8>> {
        None
    }
    /// Takes a page, after `decode_head`; pages come in ascending order of `part`.
    fn load_part(&mut self, _part: u64, _content: &[u8]) -> Result<(), String> {
        Err(format!("a {} has no pages", self.type_name()))
    }
    /// All pages were taken: checks that none is missing and builds what is not in pages.
    fn loaded(&mut self) -> Result<(), String> {
        Ok(())
    }
    /// Calls `dirty.removed` for each page: the value is about to go away.
    fn remove_pages(&self, _dirty: &mut Dirty) {}
    /// The form that the value has: what of it depends on its history and decides what commands do.
    fn form(&self) -> u8 {
        0
    }
    /// Feeds the content, in an order that depends on nothing else.
    fn digest(&self, digest: &mut Digest) {
        let mut head = Vec::new();
        self.encode_head(&mut head);
        digest.bytes(&head);
    }
    /// A copy with pages of its own, if it has any.
    fn copy(&self, pages: &mut Pages<'_>) -> Value;
    /// Whether its time is its own: no command of another family may give its key a deadline, copy it, or take it to
    /// another database.
    fn keeps_its_time(&self) -> bool {
        false
    }
}

/// A type that commands ask for by its name: `ctx.modify::<List, _>(...)`.
pub trait Typed: Kind + Default + Sized {
    /// The value, if it is of this type.
    fn of(value: &Value) -> Option<&Self>;
    /// The value, if it is of this type.
    fn of_mut(value: &mut Value) -> Option<&mut Self>;
    /// As a value.
    fn into_value(self) -> Value;
}

/// What a value needs beside itself while it changes.
pub struct Pages<'a> {
    pub(crate) dirty: &'a mut Dirty,
    pub(crate) next_object: &'a mut u64,
    hashing: Hashing,
    pub(crate) changed: bool,
}

impl<'a> Pages<'a> {
    pub(crate) fn new(dirty: &'a mut Dirty, next_object: &'a mut u64, hashing: Hashing) -> Pages<'a> {
        Pages { dirty, next_object, hashing, changed: true }
    }

    /// An object id for a value that gets pages of its own.
    pub fn allocate(&mut self) -> u64 {
        let object = *self.next_object;
        *self.next_object += 1;
        object
    }

    /// An empty table with pages of its own, in the order of the state's hashes.
    pub fn table(&mut self) -> Table {
        Table::new(self.allocate(), self.hashing)
    }

    /// The command changed nothing after all: the key's version stays.
    pub fn unchanged(&mut self) {
        self.changed = false;
    }

    /// The tracker, for [`super::table::Table`].
    pub fn dirty(&mut self) -> &mut Dirty {
        self.dirty
    }

    /// Call before a page changes.
    pub fn touch(&mut self, mark: &mut Mark, object: u64, part: u64, image: impl FnOnce() -> Vec<u8>) {
        self.dirty.touch(mark, PageId::Object { object, part }, image);
    }

    /// Call when a page comes into being; gives its mark.
    pub fn created(&mut self, object: u64, part: u64) -> Mark {
        self.dirty.created(PageId::Object { object, part })
    }

    /// Call before a page goes away.
    pub fn removed(&mut self, mark: Mark, object: u64, part: u64, image: impl FnOnce() -> Vec<u8>) {
        self.dirty.removed(mark, PageId::Object { object, part }, image);
    }
}
