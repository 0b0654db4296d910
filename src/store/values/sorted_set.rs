//! Sorted sets. A small one is stored in its key's page, its members in order in one allocation; a large one
//! is a [`Table`] from members to scores, which has pages, and an index of the order, which is in memory only
//! and rebuilt on load.
//!
//! The order is by score as a number (never NaN, and -0 is stored as 0) and then by member. A lookup by
//! position depends on content alone, never on how the index was built.

use crate::store::{
    choice,
    codec::{Input, put_bytes, put_varint},
    digest::Digest,
    dirty::Dirty,
    hashing::{Chance, Hashing},
    knobs,
    object::{Kind, Pages, Typed, Value},
    score_order::{Place, ScoreOrder},
    table::Table,
};

/// Redis's `zset-max-listpack-entries`.
const PACKED_MEMBERS_MAX: usize = 128;
/// Redis's `zset-max-listpack-value`.
const PACKED_MEMBER_BYTES_MAX: usize = 64;

/// A sorted set.
#[derive(Debug, Default)]
pub struct SortedSet {
    form: Form,
}

/// The representation of the members.
#[derive(Debug)]
enum Form {
    Packed(PackedScores),
    Paged(Box<Paged>),
}

/// Invariant: `table` and `order` have the same members with the same scores, except while being loaded.
#[derive(Debug)]
struct Paged {
    /// Maps each member to the eight bytes of its score.
    table: Table,
    order: ScoreOrder,
    /// While it is being loaded: the number of members according to its head.
    announced: usize,
}

impl Default for Form {
    fn default() -> Self {
        Form::Packed(PackedScores::default())
    }
}

/// A boundary between members.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Edge<'a> {
    /// Before all of them.
    First,
    /// After all of them.
    Last,
    /// Before the first with this score.
    BeforeScore(f64),
    /// After the last with this score.
    AfterScore(f64),
    /// Before the place that this member would have with the lowest score of the set. Redis leaves ranges by
    /// member unspecified if scores differ.
    BeforeMember(&'a [u8]),
    /// After that place; see [`Edge::BeforeMember`].
    AfterMember(&'a [u8]),
}

fn score_of(value: &[u8]) -> Option<f64> {
    value.try_into().ok().map(f64::from_le_bytes).filter(|score| !score.is_nan())
}

impl SortedSet {
    /// The number of members.
    pub fn len(&self) -> usize {
        match &self.form {
            Form::Packed(packed) => packed.len,
            Form::Paged(paged) => paged.table.len(),
        }
    }

    /// Whether it has no members, which is so only during construction.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The score of a member.
    pub fn score(&self, member: &[u8]) -> Option<f64> {
        match &self.form {
            Form::Packed(packed) => packed.find(member).map(|(_, _, score)| score),
            Form::Paged(paged) => paged.table.get(member).and_then(score_of),
        }
    }

    /// The rank of a member, and its score.
    pub fn rank(&self, member: &[u8]) -> Option<(usize, f64)> {
        match &self.form {
            Form::Packed(packed) => packed.find(member).map(|(rank, _, score)| (rank, score)),
            Form::Paged(paged) => {
                let score = score_of(paged.table.get(member)?)?;
                Some((paged.order.rank(&Place::of(score, member)), score))
            }
        }
    }

    /// The number of members before an edge.
    pub fn rank_of_edge(&self, edge: Edge<'_>) -> usize {
        let lowest = self.range(0..1).next().map_or(0.0, |(_, score)| score);
        let place = match edge {
            Edge::First => return 0,
            Edge::Last => return self.len(),
            Edge::BeforeScore(score) => Place::before(score),
            Edge::AfterScore(score) => Place::after(score),
            Edge::BeforeMember(member) => Place::of(lowest, member),
            Edge::AfterMember(member) => Place::after_member(lowest, member),
        };
        match &self.form {
            Form::Packed(packed) => packed
                .iter()
                .position(|(_, member, score)| Place::of(score, member) >= place)
                .unwrap_or(packed.len),
            Form::Paged(paged) => paged.order.rank(&place),
        }
    }

    /// The members with these ranks, in order, with their scores. Ranks past the end are ignored.
    pub fn range(
        &self,
        ranks: std::ops::Range<usize>,
    ) -> Box<dyn DoubleEndedIterator<Item = (&[u8], f64)> + '_> {
        let ranks = ranks.start..ranks.end.min(self.len());
        if ranks.is_empty() {
            return Box::new(std::iter::empty());
        }
        match &self.form {
            Form::Packed(packed) => {
                let found = packed.iter().skip(ranks.start).take(ranks.len());
                Box::new(found.map(|(_, member, score)| (member, score)).collect::<Vec<_>>().into_iter())
            }
            Form::Paged(paged) => Box::new(paged.order.range(ranks)),
        }
    }

    /// All members in order, with their scores.
    pub fn iter(&self) -> Box<dyn DoubleEndedIterator<Item = (&[u8], f64)> + '_> {
        self.range(0..self.len())
    }

    /// Sets the score of a member; it must not be NaN. Returns the previous score.
    pub fn insert(&mut self, member: &[u8], score: f64, pages: &mut Pages<'_>) -> Option<f64> {
        assert!(!score.is_nan(), "checked where scores are made");
        // -0 becomes 0, so that equal scores have equal bytes in every form.
        let score = score + 0.0;
        if let Form::Packed(packed) = &mut self.form {
            let before = packed.find(member).map(|(_, at, before)| {
                packed.remove(at);
                before
            });
            if packed.len < knobs::packed_max(PACKED_MEMBERS_MAX) && member.len() <= PACKED_MEMBER_BYTES_MAX {
                packed.insert(member, score);
                return before;
            }
            self.form = Form::Paged(self.paged(pages));
            self.insert(member, score, pages);
            return before;
        }
        let Form::Paged(paged) = &mut self.form else { unreachable!("the other form has returned") };
        let before = paged.table.get(member).and_then(score_of);
        if let Some(before) = before {
            paged.order.remove(before, member);
        }
        paged.table.insert(member, &score.to_le_bytes(), pages.dirty());
        paged.order.insert(score, member);
        before
    }

    /// The same members in a table with its own pages.
    fn paged(&self, pages: &mut Pages<'_>) -> Box<Paged> {
        let mut paged = Paged { table: pages.table(), order: ScoreOrder::default(), announced: 0 };
        for (member, score) in self.iter() {
            paged.table.insert(member, &score.to_le_bytes(), pages.dirty());
            paged.order.insert(score, member);
        }
        Box::new(paged)
    }

    /// Removes a member; returns its score.
    pub fn remove(&mut self, member: &[u8], pages: &mut Pages<'_>) -> Option<f64> {
        match &mut self.form {
            Form::Packed(packed) => {
                let (_, at, score) = packed.find(member)?;
                packed.remove(at);
                Some(score)
            }
            Form::Paged(paged) => {
                let score = score_of(paged.table.get(member)?)?;
                paged.table.remove(member, pages.dirty());
                paged.order.remove(score, member);
                Some(score)
            }
        }
    }

    /// A random member, uniformly chosen; None if the set is empty.
    pub fn choose(&self, chance: &mut Chance) -> Option<(&[u8], f64)> {
        let rank = if self.is_empty() { return None } else { chance.below(self.len()) };
        self.range(rank..rank + 1).next()
    }

    /// `count` different random members, or all if there are no more.
    pub fn choose_different(&self, count: usize, chance: &mut Chance) -> Vec<(&[u8], f64)> {
        let len = self.len();
        if count >= len {
            return self.iter().collect();
        }
        if count > len / choice::LISTED_SHARE {
            let mut all: Vec<_> = self.iter().collect();
            for at in 0..count {
                let other = at + chance.below(len - at);
                all.swap(at, other);
            }
            all.truncate(count);
            return all;
        }
        let (mut seen, mut chosen) = (std::collections::HashSet::new(), Vec::with_capacity(count));
        while chosen.len() < count {
            let rank = chance.below(len);
            if seen.insert(rank) {
                chosen.extend(self.range(rank..rank + 1));
            }
        }
        chosen
    }

    /// A step of a scan, as [`Table::scan`]; a small set is returned in one step.
    pub fn scan<'a>(&'a self, cursor: u64, count: usize, mut each: impl FnMut(&'a [u8], f64)) -> u64 {
        match &self.form {
            Form::Packed(packed) => {
                packed.iter().for_each(|(_, member, score)| each(member, score));
                0
            }
            Form::Paged(paged) => paged.table.scan(cursor, count, |member, score| {
                each(member, score_of(score).expect("only scores are inserted, and loaded"));
            }),
        }
    }

    pub(crate) fn decode_head(input: &mut Input<'_>, hashing: Hashing) -> Result<SortedSet, String> {
        let form = match input.byte()? {
            0 => Form::Packed(PackedScores::decode(input)?),
            1 => {
                let (object, announced) = (input.varint()?, input.size()?);
                let (table, order) = (Table::new(object, hashing), ScoreOrder::default());
                Form::Paged(Box::new(Paged { table, order, announced }))
            }
            other => return Err(format!("form {other} of sorted sets is not known to this version")),
        };
        Ok(SortedSet { form })
    }
}

impl Kind for SortedSet {
    fn type_name(&self) -> &'static str {
        "zset"
    }

    fn encoding(&self) -> &'static str {
        match self.form {
            Form::Packed(_) => "listpack",
            Form::Paged(_) => "skiplist",
        }
    }

    fn form(&self) -> u8 {
        match self.form {
            Form::Packed(_) => 0,
            Form::Paged(_) => 1,
        }
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn elements(&self) -> usize {
        SortedSet::len(self)
    }

    fn object(&self) -> Option<u64> {
        match &self.form {
            Form::Packed(_) => None,
            Form::Paged(paged) => Some(paged.table.object()),
        }
    }

    fn head_bytes(&self) -> usize {
        match &self.form {
            Form::Packed(packed) => packed.bytes.len() + 4,
            Form::Paged(_) => 16,
        }
    }

    fn more_bytes(&self) -> usize {
        match &self.form {
            Form::Packed(_) => 0,
            // The index of the order has each member once more.
            Form::Paged(paged) => 2 * paged.table.bytes(),
        }
    }

    fn encode_head(&self, out: &mut Vec<u8>) {
        match &self.form {
            Form::Packed(packed) => {
                out.push(0);
                put_varint(out, packed.len as u64);
                out.extend_from_slice(&packed.bytes);
            }
            Form::Paged(paged) => {
                out.push(1);
                put_varint(out, paged.table.object());
                put_varint(out, paged.table.len() as u64);
            }
        }
    }

    fn has_part(&self, part: u64) -> bool {
        matches!(&self.form, Form::Paged(paged) if paged.table.has_part(part))
    }

    fn encode_part(&self, part: u64) -> Option<Vec<u8>> {
        match &self.form {
            Form::Packed(_) => None,
            Form::Paged(paged) => paged.table.encode_part(part),
        }
    }

    fn load_part(&mut self, part: u64, content: &[u8]) -> Result<(), String> {
        match &mut self.form {
            Form::Packed(_) => Err("a small sorted set has no pages".into()),
            Form::Paged(paged) => paged.table.load_part(part, content),
        }
    }

    fn loaded(&mut self) -> Result<(), String> {
        let Form::Paged(paged) = &mut self.form else { return Ok(()) };
        let Paged { table, order, announced } = &mut **paged;
        if table.is_empty() || table.len() != *announced {
            return Err(format!("a sorted set of {announced} members has {}", table.len()));
        }
        for (member, score) in table.iter() {
            order.insert(score_of(score).ok_or("a score is no number")?, member);
        }
        Ok(())
    }

    fn remove_pages(&self, dirty: &mut Dirty) {
        if let Form::Paged(paged) = &self.form {
            paged.table.remove_pages(dirty);
        }
    }

    fn digest(&self, digest: &mut Digest) {
        digest.unordered(self.iter().map(|(member, score)| [&score.to_le_bytes(), member].concat()));
    }

    fn copy(&self, pages: &mut Pages<'_>) -> Value {
        let form = match &self.form {
            Form::Packed(packed) => Form::Packed(packed.clone()),
            Form::Paged(_) => Form::Paged(self.paged(pages)),
        };
        Value::SortedSet(SortedSet { form })
    }
}

impl Typed for SortedSet {
    fn of(value: &Value) -> Option<&SortedSet> {
        match value {
            Value::SortedSet(set) => Some(set),
            _ => None,
        }
    }

    fn of_mut(value: &mut Value) -> Option<&mut SortedSet> {
        match value {
            Value::SortedSet(set) => Some(set),
            _ => None,
        }
    }

    fn into_value(self) -> Value {
        Value::SortedSet(self)
    }
}

/// A few short members in one allocation.
///
/// Invariants:
/// - `bytes` is the members in order, each as score, length in one byte, and name; no two are equal.
/// - `len` is their number.
#[derive(Clone, Debug, Default)]
struct PackedScores {
    len: usize,
    bytes: Vec<u8>,
}

/// The size of a packed member besides its name.
const PACKED_OVERHEAD: usize = 9;

impl PackedScores {
    fn decode(input: &mut Input<'_>) -> Result<PackedScores, String> {
        let mut packed = PackedScores { len: input.size()?, bytes: Vec::new() };
        if packed.len == 0 || packed.len > PACKED_MEMBERS_MAX {
            return Err(format!("a small sorted set of {} members", packed.len));
        }
        let mut members = Vec::with_capacity(packed.len);
        for _ in 0..packed.len {
            let score = input.double()?;
            let member = input.bytes()?;
            if score.is_nan() || member.len() > PACKED_MEMBER_BYTES_MAX {
                return Err("a score of a small sorted set is no number, or a member is too long".into());
            }
            packed.bytes.extend_from_slice(&score.to_le_bytes());
            put_bytes(&mut packed.bytes, member);
            members.push(member);
        }
        members.sort_unstable();
        let places = packed.iter().map(|(_, member, score)| Place::of(score, member));
        if !places.is_sorted() || !members.is_sorted_by(|a, b| a < b) {
            return Err("the members of a small sorted set are out of order".into());
        }
        Ok(packed)
    }

    /// The members in order: offset, name, score.
    fn iter(&self) -> impl Iterator<Item = (usize, &[u8], f64)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (score, rest) = self.bytes[at..].split_first_chunk::<8>()?;
            // A length is one byte: it is below 128.
            let member = &rest[1..1 + usize::from(rest[0])];
            let start = at;
            at += PACKED_OVERHEAD + member.len();
            Some((start, member, f64::from_le_bytes(*score)))
        })
    }

    /// The rank of a member, its offset, and its score.
    fn find(&self, member: &[u8]) -> Option<(usize, usize, f64)> {
        let mut all = self.iter().enumerate();
        all.find(|(_, (_, present, _))| *present == member).map(|(rank, (at, _, score))| (rank, at, score))
    }

    /// Inserts a member that is not present.
    fn insert(&mut self, member: &[u8], score: f64) {
        let place = Place::of(score, member);
        let next = self.iter().find(|&(_, present, score)| Place::of(score, present) > place);
        let at = next.map_or(self.bytes.len(), |(at, _, _)| at);
        self.bytes.reserve_exact(PACKED_OVERHEAD + member.len());
        let header = score.to_le_bytes().into_iter().chain([member.len() as u8]);
        self.bytes.splice(at..at, header.chain(member.iter().copied()));
        self.len += 1;
    }

    /// Removes the member at offset `at`.
    fn remove(&mut self, at: usize) {
        self.bytes.drain(at..at + PACKED_OVERHEAD + usize::from(self.bytes[at + 8]));
        self.len -= 1;
    }
}

const _: () = assert!(PACKED_MEMBER_BYTES_MAX < 128);

#[cfg(test)]
#[path = "sorted_set_tests.rs"]
mod tests;
