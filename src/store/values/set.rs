//! Sets. A small one is stored in its key's page, as sorted integers or as members in one allocation; a large
//! one is a [`Table`] of members with empty values.
//!
//! A set only ever changes to the next larger form and never back, as in Redis. The form is written to disk,
//! so a node that was loaded from pages makes the same choices as its peers.

use std::borrow::Cow;

use smallvec::SmallVec;

use crate::args::parse_integer;
use crate::store::{
    choice,
    codec::{Input, put_bytes, put_varint},
    digest::Digest,
    dirty::Dirty,
    hashing::{Chance, Hashing},
    knobs,
    object::{Kind, Pages, Typed, Value},
    table::Table,
};

/// Redis's `set-max-intset-entries`.
const INTEGERS_MAX: usize = 512;
/// Redis 7.2's `set-max-listpack-entries`.
const PACKED_MEMBERS_MAX: usize = 128;
/// Redis 7.2's `set-max-listpack-value`.
const PACKED_MEMBER_BYTES_MAX: usize = 64;

/// A set.
#[derive(Debug, Default)]
pub struct Set {
    form: Form,
}

/// The representation of the members.
#[derive(Debug)]
enum Form {
    /// Ascending.
    Integers(Vec<i64>),
    Packed(PackedMembers),
    Paged {
        table: Table,
        /// While it is being loaded: the number of members according to its head.
        announced: usize,
    },
}

impl Default for Form {
    fn default() -> Self {
        Form::Integers(Vec::new())
    }
}

/// A member as bytes; an integer is formatted when needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Member<'a> {
    /// Bytes stored in the set.
    Bytes(&'a [u8]),
    /// The text of an integer.
    Integer(SmallVec<[u8; 20]>),
}

impl<'a> Member<'a> {
    /// Its bytes, which are not copied if they are stored in the set.
    pub fn into_name(self) -> Cow<'a, [u8]> {
        match self {
            Member::Bytes(bytes) => Cow::Borrowed(bytes),
            Member::Integer(text) => Cow::Owned(text.to_vec()),
        }
    }

    fn integer(value: i64) -> Member<'static> {
        Member::Integer(SmallVec::from_slice(itoa::Buffer::new().format(value).as_bytes()))
    }
}

impl AsRef<[u8]> for Member<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Member::Bytes(bytes) => bytes,
            Member::Integer(text) => text,
        }
    }
}

impl Set {
    /// The number of members.
    pub fn len(&self) -> usize {
        match &self.form {
            Form::Integers(integers) => integers.len(),
            Form::Packed(packed) => packed.len,
            Form::Paged { table, .. } => table.len(),
        }
    }

    /// Whether it has no members, which is so only during construction.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `member` is in the set.
    pub fn contains(&self, member: &[u8]) -> bool {
        match &self.form {
            Form::Integers(integers) => {
                parse_integer(member).is_some_and(|integer| integers.binary_search(&integer).is_ok())
            }
            Form::Packed(packed) => packed.find(member).is_ok(),
            Form::Paged { table, .. } => table.contains(member),
        }
    }

    /// The same for a member with its hash.
    pub fn contains_hashed(&self, hash: u64, member: &[u8]) -> bool {
        match &self.form {
            Form::Paged { table, .. } => table.contains_hashed(hash, member),
            _ => self.contains(member),
        }
    }

    /// Adds a member with its hash. False if it was there already.
    pub fn insert_hashed(&mut self, hash: u64, member: &[u8], pages: &mut Pages<'_>) -> bool {
        match &mut self.form {
            Form::Paged { table, .. } => table.insert_hashed(hash, member, b"", pages.dirty()),
            _ => self.insert(member, pages),
        }
    }

    /// Adds a member. False if it was there already.
    pub fn insert(&mut self, member: &[u8], pages: &mut Pages<'_>) -> bool {
        self.make_room_for(member, pages);
        match &mut self.form {
            Form::Integers(integers) => {
                let integer = parse_integer(member).expect("there is room for no other");
                integers.binary_search(&integer).map_err(|at| integers.insert(at, integer)).is_err()
            }
            Form::Packed(packed) => packed.find(member).map_err(|at| packed.insert(at, member)).is_err(),
            Form::Paged { table, .. } => table.insert(member, b"", pages.dirty()),
        }
    }

    /// Changes to a form that the member fits into.
    fn make_room_for(&mut self, member: &[u8], pages: &mut Pages<'_>) {
        let is_full = match &self.form {
            Form::Integers(integers) => parse_integer(member).is_none_or(|integer| {
                integers.len() == INTEGERS_MAX && integers.binary_search(&integer).is_err()
            }),
            Form::Packed(packed) => {
                member.len() > PACKED_MEMBER_BYTES_MAX
                    || (packed.len >= knobs::packed_max(PACKED_MEMBERS_MAX) && packed.find(member).is_err())
            }
            Form::Paged { .. } => false,
        };
        if !is_full {
            return;
        }
        let packed_max = knobs::packed_max(PACKED_MEMBERS_MAX);
        let form = if self.len() < packed_max && member.len() <= PACKED_MEMBER_BYTES_MAX {
            let mut packed = PackedMembers::default();
            for present in self.iter() {
                let at = packed.find(present.as_ref()).expect_err("members are different");
                packed.insert(at, present.as_ref());
            }
            Form::Packed(packed)
        } else {
            self.paged(pages)
        };
        self.form = form;
    }

    /// The same members in a table with its own pages.
    fn paged(&self, pages: &mut Pages<'_>) -> Form {
        let mut table = pages.table();
        for member in self.iter() {
            table.insert(member.as_ref(), b"", pages.dirty());
        }
        Form::Paged { table, announced: 0 }
    }

    /// Removes a member. False if it was not there.
    pub fn remove(&mut self, member: &[u8], pages: &mut Pages<'_>) -> bool {
        match &mut self.form {
            Form::Integers(integers) => {
                let found = parse_integer(member).and_then(|integer| integers.binary_search(&integer).ok());
                found.map(|at| integers.remove(at)).is_some()
            }
            Form::Packed(packed) => packed.find(member).map(|at| packed.remove(at)).is_ok(),
            Form::Paged { table, .. } => table.remove(member, pages.dirty()),
        }
    }

    /// All members: integers ascending, others in an order that depends on content and form.
    pub fn iter(&self) -> Box<dyn Iterator<Item = Member<'_>> + '_> {
        match &self.form {
            Form::Integers(integers) => Box::new(integers.iter().map(|&integer| Member::integer(integer))),
            Form::Packed(packed) => Box::new(packed.iter().map(|(_, member)| Member::Bytes(member))),
            Form::Paged { table, .. } => Box::new(table.iter().map(|(member, _)| Member::Bytes(member))),
        }
    }

    /// Whether its own order is that of its members' hashes.
    pub fn is_in_order_of_hashes(&self) -> bool {
        matches!(self.form, Form::Paged { .. })
    }

    /// All members with their hashes, in the order of both. For a small set they are listed at first.
    pub fn iter_hashed(&self, hashing: Hashing) -> Box<dyn Iterator<Item = (u64, Member<'_>)> + '_> {
        if let Form::Paged { table, .. } = &self.form {
            return Box::new(table.iter_hashed().map(|(hash, member)| (hash, Member::Bytes(member))));
        }
        let mut all: Vec<_> = self.iter().map(|member| (hashing.of(member.as_ref()), member)).collect();
        all.sort_unstable_by(|(hash, member), (other_hash, other)| {
            (hash, member.as_ref()).cmp(&(other_hash, other.as_ref()))
        });
        Box::new(all.into_iter())
    }

    /// A random member, uniformly chosen; None if the set is empty.
    pub fn choose(&self, chance: &mut Chance) -> Option<Member<'_>> {
        if self.is_empty() {
            return None;
        }
        match &self.form {
            Form::Integers(integers) => Some(Member::integer(integers[chance.below(integers.len())])),
            Form::Packed(packed) => {
                packed.iter().nth(chance.below(packed.len)).map(|(_, member)| Member::Bytes(member))
            }
            Form::Paged { table, .. } => table.choose(chance).map(|(member, _)| Member::Bytes(member)),
        }
    }

    /// `count` different random members, or all if there are no more.
    pub fn choose_different(&self, count: usize, chance: &mut Chance) -> Vec<Member<'_>> {
        if count >= self.len() {
            return self.iter().collect();
        }
        if count > self.len() / choice::LISTED_SHARE {
            let mut members: Vec<_> = self.iter().collect();
            for at in 0..count {
                let other = at + chance.below(members.len() - at);
                members.swap(at, other);
            }
            members.truncate(count);
            return members;
        }
        let name = |member: &Member<'_>| member.as_ref().to_vec();
        choice::different(count, chance, |chance| self.choose(chance), name, || self.iter().collect())
    }

    /// A step of a scan, as [`Table::scan`]; a small set is returned in one step.
    pub fn scan<'a>(&'a self, cursor: u64, count: usize, mut each: impl FnMut(Member<'a>)) -> u64 {
        match &self.form {
            Form::Paged { table, .. } => table.scan(cursor, count, |member, _| each(Member::Bytes(member))),
            _ => {
                self.iter().for_each(each);
                0
            }
        }
    }

    pub(crate) fn decode_head(input: &mut Input<'_>, hashing: Hashing) -> Result<Set, String> {
        let form = match input.byte()? {
            0 => Form::Integers(decode_integers(input)?),
            1 => Form::Packed(PackedMembers::decode(input)?),
            2 => {
                let (object, announced) = (input.varint()?, input.size()?);
                Form::Paged { table: Table::new(object, hashing), announced }
            }
            other => return Err(format!("form {other} of sets is not known to this version")),
        };
        Ok(Set { form })
    }
}

fn decode_integers(input: &mut Input<'_>) -> Result<Vec<i64>, String> {
    let len = input.size()?;
    if len == 0 || len > INTEGERS_MAX {
        return Err(format!("a set of {len} integers"));
    }
    let mut integers = Vec::with_capacity(len);
    let mut last = 0u64;
    for _ in 0..len {
        // Differences wrap around: the first is relative to 0, which may be above it.
        last = last.wrapping_add(input.varint()?);
        integers.push(last as i64);
    }
    if !integers.is_sorted_by(|a, b| a < b) {
        return Err("the integers of a set are out of order".into());
    }
    Ok(integers)
}

impl Kind for Set {
    fn type_name(&self) -> &'static str {
        "set"
    }

    fn encoding(&self) -> &'static str {
        match self.form {
            Form::Integers(_) => "intset",
            // `listpack` exists for sets in Redis only since 7.2.
            Form::Packed(_) | Form::Paged { .. } => "hashtable",
        }
    }

    fn form(&self) -> u8 {
        match self.form {
            Form::Integers(_) => 0,
            Form::Packed(_) => 1,
            Form::Paged { .. } => 2,
        }
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn elements(&self) -> usize {
        Set::len(self)
    }

    fn object(&self) -> Option<u64> {
        match &self.form {
            Form::Paged { table, .. } => Some(table.object()),
            _ => None,
        }
    }

    fn head_bytes(&self) -> usize {
        match &self.form {
            Form::Integers(integers) => integers.len() * 8,
            Form::Packed(packed) => packed.bytes.len() + 4,
            Form::Paged { .. } => 16,
        }
    }

    fn more_bytes(&self) -> usize {
        match &self.form {
            Form::Integers(_) | Form::Packed(_) => 0,
            Form::Paged { table, .. } => table.bytes(),
        }
    }

    fn encode_head(&self, out: &mut Vec<u8>) {
        match &self.form {
            Form::Integers(integers) => {
                out.push(0);
                put_varint(out, integers.len() as u64);
                let mut last = 0u64;
                for &integer in integers {
                    put_varint(out, (integer as u64).wrapping_sub(last));
                    last = integer as u64;
                }
            }
            Form::Packed(packed) => {
                out.push(1);
                put_varint(out, packed.len as u64);
                out.extend_from_slice(&packed.bytes);
            }
            Form::Paged { table, .. } => {
                out.push(2);
                put_varint(out, table.object());
                put_varint(out, table.len() as u64);
            }
        }
    }

    fn has_part(&self, part: u64) -> bool {
        matches!(&self.form, Form::Paged { table, .. } if table.has_part(part))
    }

    fn encode_part(&self, part: u64) -> Option<Vec<u8>> {
        match &self.form {
            Form::Paged { table, .. } => table.encode_part(part),
            _ => None,
        }
    }

    fn load_part(&mut self, part: u64, content: &[u8]) -> Result<(), String> {
        match &mut self.form {
            Form::Paged { table, .. } => table.load_part(part, content),
            _ => Err("a small set has no pages".into()),
        }
    }

    fn loaded(&mut self) -> Result<(), String> {
        match &self.form {
            Form::Paged { table, announced } if table.is_empty() || table.len() != *announced => {
                Err(format!("a set of {announced} members has {}", table.len()))
            }
            _ => Ok(()),
        }
    }

    fn remove_pages(&self, dirty: &mut Dirty) {
        if let Form::Paged { table, .. } = &self.form {
            table.remove_pages(dirty);
        }
    }

    fn digest(&self, digest: &mut Digest) {
        digest.unordered(self.iter());
    }

    fn copy(&self, pages: &mut Pages<'_>) -> Value {
        let form = match &self.form {
            Form::Integers(integers) => Form::Integers(integers.clone()),
            Form::Packed(packed) => Form::Packed(packed.clone()),
            Form::Paged { .. } => self.paged(pages),
        };
        Value::Set(Set { form })
    }
}

impl Typed for Set {
    fn of(value: &Value) -> Option<&Set> {
        match value {
            Value::Set(set) => Some(set),
            _ => None,
        }
    }

    fn of_mut(value: &mut Value) -> Option<&mut Set> {
        match value {
            Value::Set(set) => Some(set),
            _ => None,
        }
    }

    fn into_value(self) -> Value {
        Value::Set(self)
    }
}

/// A few short members in one allocation.
///
/// Invariants:
/// - `bytes` is the members in ascending order, each preceded by its length.
/// - `len` is their number.
#[derive(Clone, Debug, Default)]
struct PackedMembers {
    len: usize,
    bytes: Vec<u8>,
}

impl PackedMembers {
    fn decode(input: &mut Input<'_>) -> Result<PackedMembers, String> {
        let mut packed = PackedMembers { len: input.size()?, bytes: Vec::new() };
        if packed.len == 0 || packed.len > PACKED_MEMBERS_MAX {
            return Err(format!("a small set of {} members", packed.len));
        }
        let mut last: Option<&[u8]> = None;
        for _ in 0..packed.len {
            let member = input.bytes()?;
            if member.len() > PACKED_MEMBER_BYTES_MAX || last.is_some_and(|last| last >= member) {
                return Err("the members of a small set are too long or out of order".into());
            }
            put_bytes(&mut packed.bytes, member);
            last = Some(member);
        }
        Ok(packed)
    }

    /// The members, each with the offset of its length byte.
    fn iter(&self) -> impl Iterator<Item = (usize, &[u8])> {
        // A length is one byte: it is below 128.
        let mut at = 0;
        std::iter::from_fn(move || {
            let len = usize::from(*self.bytes.get(at)?);
            let start = at;
            at += 1 + len;
            Some((start, &self.bytes[start + 1..at]))
        })
    }

    /// The offset of a member (Ok) or where it would be inserted (Err).
    fn find(&self, member: &[u8]) -> Result<usize, usize> {
        match self.iter().find(|&(_, present)| present >= member) {
            Some((at, present)) if present == member => Ok(at),
            Some((at, _)) => Err(at),
            None => Err(self.bytes.len()),
        }
    }

    /// Inserts a member at the offset that `find` returned.
    fn insert(&mut self, at: usize, member: &[u8]) {
        self.bytes.reserve_exact(1 + member.len());
        self.bytes.splice(at..at, std::iter::once(member.len() as u8).chain(member.iter().copied()));
        self.len += 1;
    }

    /// Removes the member at the offset that `find` returned.
    fn remove(&mut self, at: usize) {
        self.bytes.drain(at..at + 1 + usize::from(self.bytes[at]));
        self.len -= 1;
    }
}

const _: () = assert!(PACKED_MEMBER_BYTES_MAX < 128);

#[cfg(test)]
#[path = "set_tests.rs"]
mod tests;
