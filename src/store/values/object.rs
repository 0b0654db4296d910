//! Values that are more than a short string, and the traits that a type implements to be one.
//!
//! A small value is stored in its key's page, serialized by [`Kind::encode_head`]. A large one has its own
//! pages, `PageId::Object { object, part }`, under an object id that is never reused and that stays with the
//! value when its key is renamed; then the head contains only what is needed to load the parts.
//!
//! To add a type: a struct in its own file with `impl Kind` and `impl Typed`; a variant of [`Value`]; and one
//! arm each in `kind`, `kind_mut`, `tag` and `decode_head`.

use crate::store::{
    claims::Claims,
    client_session::ClientSession,
    codec::Input,
    digest::Digest,
    dirty::{Dirty, Mark, PageId},
    elements::{BYTES_OF_AN_ELEMENT, Elements},
    hash::Hash,
    hashing::Hashing,
    lease::Lease,
    list::List,
    long_string::LongString,
    owner::ClaimKind,
    set::Set,
    sorted_set::SortedSet,
    table::Table,
};

/// A key whose value is not a short string.
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
    Claims(Box<Claims>),
    /// A lease.
    Lease(Lease),
    /// A client's session for exactly-once commands.
    Session(ClientSession),
}

impl Value {
    /// The behaviour of its type.
    pub fn kind(&self) -> &dyn Kind {
        match self {
            Value::String(string) => string,
            Value::List(list) => list,
            Value::Hash(hash) => hash,
            Value::Set(set) => set,
            Value::SortedSet(set) => set,
            Value::Claims(claims) => &**claims,
            Value::Lease(lease) => lease,
            Value::Session(session) => session,
        }
    }

    /// The behaviour of its type.
    pub fn kind_mut(&mut self) -> &mut dyn Kind {
        match self {
            Value::String(string) => string,
            Value::List(list) => list,
            Value::Hash(hash) => hash,
            Value::Set(set) => set,
            Value::SortedSet(set) => set,
            Value::Claims(claims) => &mut **claims,
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
            6 => Claims::decode_head(ClaimKind::Lock, input).map(Claims::into_value),
            7 => Claims::decode_head(ClaimKind::Semaphore, input).map(Claims::into_value),
            8 => Claims::decode_head(ClaimKind::Election, input).map(Claims::into_value),
            9 => Lease::decode_head(input).map(Value::Lease),
            10 => ClientSession::decode_head(input).map(Value::Session),
            other => Err(format!("type {other} is not known to this version")),
        }
    }
}

/// The behaviour of a type of values. The default methods are for types that never have their own pages.
///
/// Invariants that the implementor keeps:
/// - What `encode_head` and `encode_part` write depends on content, and decoding it gives a value that
///   behaves identically.
/// - Before a part changes, appears or is deleted, the matching function of [`Pages`] is called with its
///   mark, which the value keeps with the part. [`crate::store::Ctx`] touches the page of the head.
pub trait Kind: Send + Sync {
    /// The name that TYPE gives.
    fn type_name(&self) -> &'static str;
    /// The name that OBJECT ENCODING gives.
    fn encoding(&self) -> &'static str;
    /// Whether it is an empty collection, which is deleted after a change.
    fn is_empty(&self) -> bool;
    /// How many elements a copy of it takes.
    fn elements(&self) -> usize {
        1 + self.more_bytes() / BYTES_OF_AN_ELEMENT
    }
    /// How many keys, holds and waits end with it.
    fn dependents(&self) -> usize {
        0
    }
    /// The id of its own pages; None while it is stored in its key's page.
    fn object(&self) -> Option<u64> {
        None
    }
    /// The approximate size of what `encode_head` writes, in constant time; depends on content alone.
    fn head_bytes(&self) -> usize;
    /// What it costs in memory besides `head_bytes`: the content of its own pages, and what holds its elements. In
    /// constant time; depends on content alone.
    fn more_bytes(&self) -> usize {
        0
    }
    /// Appends the whole value, or only the head of one with its own pages.
    fn encode_head(&self, out: &mut Vec<u8>);
    /// Whether it has this page.
    fn has_part(&self, _part: u64) -> bool {
        false
    }
    /// The content of a page, beginning with [`crate::store::codec::FORMAT`]; None if there is no such page.
    fn encode_part(&self, _part: u64) -> Option<Vec<u8>> {
        None
    }
    /// Loads a page, after `decode_head`; pages come in ascending order of `part`.
    fn load_part(&mut self, _part: u64, _content: &[u8]) -> Result<(), String> {
        Err(format!("a {} has no pages", self.type_name()))
    }
    /// Called when all pages are loaded: checks that none is missing and builds what is not in pages.
    fn loaded(&mut self) -> Result<(), String> {
        Ok(())
    }
    /// Calls `dirty.removed` for each page: the value is about to be deleted.
    fn remove_pages(&self, _dirty: &mut Dirty) {}
    /// The form of the value: the part of its history that determines how commands treat it.
    fn form(&self) -> u8 {
        0
    }
    /// Feeds the content, in an order that depends on the content alone.
    fn digest(&self, digest: &mut Digest) {
        let mut head = Vec::new();
        self.encode_head(&mut head);
        digest.bytes(&head);
    }
    /// A copy with its own pages, if it has any.
    fn copy(&self, pages: &mut Pages<'_>) -> Value;
    /// Whether it manages its deadline itself: commands of other families may not set the key's deadline,
    /// copy it, or move it to another database.
    fn keeps_its_time(&self) -> bool {
        false
    }
}

/// A type that commands refer to by its name: `ctx.modify::<List, _>(...)`.
pub trait Typed: Kind + Default + Sized {
    /// The value, if it is of this type.
    fn of(value: &Value) -> Option<&Self>;
    /// The value, if it is of this type.
    fn of_mut(value: &mut Value) -> Option<&mut Self>;
    /// As a value.
    fn into_value(self) -> Value;
}

/// What a value needs while it changes: the page tracker, object ids, and the hashing.
pub struct Pages<'a> {
    pub(crate) dirty: &'a mut Dirty,
    pub(crate) next_object: &'a mut u64,
    hashing: Hashing,
    pub(crate) changed: bool,
    /// Where the elements of the call are counted; None where nobody counts them.
    pub(crate) elements: Option<&'a mut Elements>,
}

impl<'a> Pages<'a> {
    pub(crate) fn new(dirty: &'a mut Dirty, next_object: &'a mut u64, hashing: Hashing) -> Pages<'a> {
        Pages { dirty, next_object, hashing, changed: true, elements: None }
    }

    /// The same, where elements are counted.
    pub(crate) fn counting(self, elements: &'a mut Elements) -> Pages<'a> {
        Pages { elements: Some(elements), ..self }
    }

    /// An object id for a value that gets its own pages.
    pub fn allocate(&mut self) -> u64 {
        let object = *self.next_object;
        *self.next_object += 1;
        object
    }

    /// An empty table with its own pages, in the order of the state's hashes.
    pub fn table(&mut self) -> Table {
        Table::new(self.allocate(), self.hashing)
    }

    /// The command turned out to change nothing: the key's version stays.
    pub fn unchanged(&mut self) {
        self.changed = false;
    }

    /// The tracker, for [`crate::store::table::Table`].
    pub fn dirty(&mut self) -> &mut Dirty {
        self.dirty
    }

    /// Call before a page changes.
    pub fn touch(&mut self, mark: &mut Mark, object: u64, part: u64, image: impl FnOnce() -> Vec<u8>) {
        self.dirty.touch(mark, PageId::Object { object, part }, image);
    }

    /// Call when a page is created; returns its mark.
    pub fn created(&mut self, object: u64, part: u64) -> Mark {
        self.dirty.created(PageId::Object { object, part })
    }

    /// Call before a page is deleted.
    pub fn removed(&mut self, mark: Mark, object: u64, part: u64, image: impl FnOnce() -> Vec<u8>) {
        self.dirty.removed(mark, PageId::Object { object, part }, image);
    }
}
