//! Hashes. A small one is stored in its key's page as one packed sequence, fields alternating with values, in
//! insertion order; a large one is a table, in the order of the fields' hashes. As in Redis, it stays a table
//! when it shrinks.

use crate::store::{
    codec::{Input, put_bytes, put_varint},
    digest::Digest,
    dirty::Dirty,
    hashing::{Chance, Hashing},
    knobs,
    object::{Kind, Pages, Typed, Value},
    strings::Strings,
    table::Table,
};

/// The maximum number of fields of a packed hash; Redis's hash-max-listpack-entries.
const PACKED_FIELDS_MAX: usize = 128;
/// The maximum length of fields and values of a packed hash; Redis's hash-max-listpack-value.
const PACKED_VALUE_BYTES_MAX: usize = 64;

/// Forms on disk. Fields with their own deadlines will be another form of each.
const PACKED: u8 = 0;
const TABLE: u8 = 1;

/// A hash.
#[derive(Debug, Default)]
pub struct Hash {
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// An even number of elements.
    Packed(Strings),
    Table {
        table: Table,
        /// While it is being loaded: the number of fields according to its head.
        announced: usize,
    },
}

impl Default for Form {
    fn default() -> Self {
        Form::Packed(Strings::default())
    }
}

/// The pairs of a packed hash.
fn pairs(strings: &Strings) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut iter = strings.iter();
    std::iter::from_fn(move || Some((iter.next()?, iter.next()?)))
}

impl Hash {
    /// The number of fields.
    pub fn len(&self) -> usize {
        match &self.form {
            Form::Packed(strings) => strings.len() / 2,
            Form::Table { table, .. } => table.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a field.
    pub fn get(&self, field: &[u8]) -> Option<&[u8]> {
        match &self.form {
            Form::Packed(strings) => {
                pairs(strings).find(|(present, _)| *present == field).map(|(_, value)| value)
            }
            Form::Table { table, .. } => table.get(field),
        }
    }

    /// Sets the value of a field. True if the field is new.
    pub fn set(&mut self, field: &[u8], value: &[u8], pages: &mut Pages<'_>) -> bool {
        self.make_room_for(field.len().max(value.len()), pages);
        let is_new = match &mut self.form {
            Form::Table { table, .. } => return table.insert(field, value, pages.dirty()),
            Form::Packed(strings) => {
                let index = pairs(strings).position(|(present, _)| present == field);
                match index {
                    Some(index) => strings.set(2 * index + 1, value),
                    None => {
                        strings.push_back(field);
                        strings.push_back(value);
                    }
                }
                index.is_none()
            }
        };
        if self.len() > knobs::packed_max(PACKED_FIELDS_MAX) {
            self.become_table(pages);
        }
        is_new
    }

    /// Converts to a table if a field or value of this many bytes requires one. Redis does so before a
    /// command sets its first field, for the longest of them.
    pub fn make_room_for(&mut self, bytes: usize, pages: &mut Pages<'_>) {
        if bytes > PACKED_VALUE_BYTES_MAX {
            self.become_table(pages);
        }
    }

    fn become_table(&mut self, pages: &mut Pages<'_>) {
        if let Form::Packed(strings) = &self.form {
            let mut table = pages.table();
            for (field, value) in pairs(strings) {
                table.insert(field, value, pages.dirty());
            }
            self.form = Form::Table { table, announced: 0 };
        }
    }

    /// Removes a field. False if it did not exist.
    pub fn remove(&mut self, field: &[u8], pages: &mut Pages<'_>) -> bool {
        match &mut self.form {
            Form::Packed(strings) => {
                let index = pairs(strings).position(|(present, _)| present == field);
                index.map(|index| strings.drop_range(2 * index, 2)).is_some()
            }
            Form::Table { table, .. } => table.remove(field, pages.dirty()),
        }
    }

    /// All fields and values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let (packed, table) = match &self.form {
            Form::Packed(strings) => (Some(strings), None),
            Form::Table { table, .. } => (None, Some(table)),
        };
        packed.into_iter().flat_map(pairs).chain(table.into_iter().flat_map(Table::iter))
    }

    /// A step of HSCAN, as [`Table::scan`]; a packed hash is returned as a whole.
    pub fn scan<'a>(&'a self, cursor: u64, count: usize, mut each: impl FnMut(&'a [u8], &'a [u8])) -> u64 {
        match &self.form {
            Form::Packed(strings) => {
                pairs(strings).for_each(|(field, value)| each(field, value));
                0
            }
            Form::Table { table, .. } => table.scan(cursor, count, each),
        }
    }

    /// A random field with its value, uniformly chosen.
    pub fn choose(&self, chance: &mut Chance) -> Option<(&[u8], &[u8])> {
        match &self.form {
            Form::Packed(strings) if strings.is_empty() => None,
            Form::Packed(strings) => {
                let index = 2 * chance.below(strings.len() / 2);
                let mut iter = strings.iter_from(index);
                Some((iter.next()?, iter.next()?))
            }
            Form::Table { table, .. } => table.choose(chance),
        }
    }

    /// The parts of its pages, in order. For tests.
    #[cfg(test)]
    pub(crate) fn parts(&self) -> Vec<u64> {
        match &self.form {
            Form::Packed(_) => Vec::new(),
            Form::Table { table, .. } => table.parts(),
        }
    }

    pub(crate) fn decode_head(input: &mut Input<'_>, hashing: Hashing) -> Result<Hash, String> {
        let form = match input.byte()? {
            PACKED => match Strings::decode(input)? {
                strings if strings.is_empty() || !strings.len().is_multiple_of(2) => {
                    return Err("a hash has no fields, or one without a value".into());
                }
                strings => Form::Packed(strings),
            },
            TABLE => {
                let table = Table::new(input.varint()?, hashing);
                Form::Table { table, announced: input.size()? }
            }
            other => return Err(format!("form {other} of a hash is not known to this version")),
        };
        Ok(Hash { form })
    }
}

impl Kind for Hash {
    fn type_name(&self) -> &'static str {
        "hash"
    }

    fn encoding(&self) -> &'static str {
        match &self.form {
            Form::Packed(_) => "listpack",
            Form::Table { .. } => "hashtable",
        }
    }

    fn form(&self) -> u8 {
        match &self.form {
            Form::Packed(_) => PACKED,
            Form::Table { .. } => TABLE,
        }
    }

    fn is_empty(&self) -> bool {
        Hash::is_empty(self)
    }

    fn elements(&self) -> usize {
        Hash::len(self)
    }

    fn object(&self) -> Option<u64> {
        match &self.form {
            Form::Packed(_) => None,
            Form::Table { table, .. } => Some(table.object()),
        }
    }

    fn head_bytes(&self) -> usize {
        match &self.form {
            Form::Packed(strings) => strings.encoded_size() + 1,
            Form::Table { .. } => 16,
        }
    }

    fn more_bytes(&self) -> usize {
        match &self.form {
            Form::Packed(_) => 0,
            Form::Table { table, .. } => table.bytes(),
        }
    }

    fn encode_head(&self, out: &mut Vec<u8>) {
        match &self.form {
            Form::Packed(strings) => {
                out.push(PACKED);
                strings.encode(out);
            }
            Form::Table { table, .. } => {
                out.push(TABLE);
                put_varint(out, table.object());
                put_varint(out, table.len() as u64);
            }
        }
    }

    fn has_part(&self, part: u64) -> bool {
        matches!(&self.form, Form::Table { table, .. } if table.has_part(part))
    }

    fn encode_part(&self, part: u64) -> Option<Vec<u8>> {
        match &self.form {
            Form::Packed(_) => None,
            Form::Table { table, .. } => table.encode_part(part),
        }
    }

    fn load_part(&mut self, part: u64, content: &[u8]) -> Result<(), String> {
        match &mut self.form {
            Form::Packed(_) => Err("a hash without pages has one".into()),
            Form::Table { table, .. } => table.load_part(part, content),
        }
    }

    fn loaded(&mut self) -> Result<(), String> {
        match &self.form {
            Form::Table { table, announced } if table.is_empty() || table.len() != *announced => {
                Err(format!("a hash should have {announced} fields and has {}", table.len()))
            }
            _ => Ok(()),
        }
    }

    fn remove_pages(&self, dirty: &mut Dirty) {
        if let Form::Table { table, .. } = &self.form {
            table.remove_pages(dirty);
        }
    }

    fn digest(&self, digest: &mut Digest) {
        digest.unordered(self.iter().map(|(field, value)| {
            let mut pair = Vec::with_capacity(field.len() + value.len() + 5);
            put_bytes(&mut pair, field);
            pair.extend_from_slice(value);
            pair
        }));
    }

    fn copy(&self, pages: &mut Pages<'_>) -> Value {
        let form = match &self.form {
            Form::Packed(strings) => Form::Packed(strings.clone()),
            Form::Table { table, .. } => {
                let mut copy = pages.table();
                for (field, value) in table.iter() {
                    copy.insert(field, value, pages.dirty());
                }
                Form::Table { table: copy, announced: 0 }
            }
        };
        Hash { form }.into_value()
    }
}

impl Typed for Hash {
    fn of(value: &Value) -> Option<&Self> {
        match value {
            Value::Hash(hash) => Some(hash),
            _ => None,
        }
    }

    fn of_mut(value: &mut Value) -> Option<&mut Self> {
        match value {
            Value::Hash(hash) => Some(hash),
            _ => None,
        }
    }

    fn into_value(self) -> Value {
        Value::Hash(self)
    }
}
