//! What is replicated and is no key of a database: tables of names and values, one for each purpose. They are
//! pages like the keyspace, and so part of checkpoints, snapshots and digests. FLUSHALL leaves them alone.
//!
//! A purpose that uses its table needs an apply level of its own (`level.rs`): earlier versions do not know
//! the pages.

use std::collections::BTreeMap;

use crate::store::{
    codec::{Input, put_varint},
    digest::Digest,
    dirty::Dirty,
    hashing::Hashing,
    table::Table,
};

/// What a table is for. The numbers are on disk: none is ever given another meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Section {
    /// Settings of the whole cluster.
    Settings = 1,
    /// Users and their rules.
    Users = 2,
    /// Libraries of functions.
    Functions = 3,
    /// Scripts by their digests.
    Scripts = 4,
    /// Clients that wait.
    Waits = 5,
}

impl Section {
    /// All of them.
    pub const ALL: [Section; 5] =
        [Section::Settings, Section::Users, Section::Functions, Section::Scripts, Section::Waits];

    fn of_tag(tag: u8) -> Result<Section, String> {
        let found = Section::ALL.into_iter().find(|section| *section as u8 == tag);
        found.ok_or_else(|| format!("table {tag} is not known to this version"))
    }
}

/// The form of what follows the number of tables in a checkpoint's head.
const FORM: u8 = 1;

/// The tables that are not empty.
///
/// Invariants:
/// - No table is empty.
/// - All are in the order of the state's hashes.
#[derive(Debug, Default)]
pub struct Catalog {
    tables: BTreeMap<Section, Table>,
}

impl Catalog {
    /// Whether there is nothing in any table.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// What all tables cost in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.tables.values().map(Table::bytes).sum()
    }

    /// The number of names in a table.
    pub fn len(&self, section: Section) -> usize {
        self.tables.get(&section).map_or(0, Table::len)
    }

    /// The value of a name.
    pub fn get(&self, section: Section, name: &[u8]) -> Option<&[u8]> {
        self.tables.get(&section)?.get(name)
    }

    /// All names of a table with their values, in an order that depends on the names alone.
    pub fn iter(&self, section: Section) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.tables.get(&section).into_iter().flat_map(Table::iter)
    }

    /// Sets the value of a name. True if the name is new.
    pub(crate) fn put(
        &mut self,
        (section, name): (Section, &[u8]),
        value: &[u8],
        hashing: Hashing,
        dirty: &mut Dirty,
    ) -> bool {
        let table = self.tables.entry(section).or_insert_with(|| Table::of_catalog(section as u8, hashing));
        table.insert(name, value, dirty)
    }

    /// Removes a name. False if there was none.
    pub(crate) fn remove(&mut self, section: Section, name: &[u8], dirty: &mut Dirty) -> bool {
        let Some(table) = self.tables.get_mut(&section) else { return false };
        let is_removed = table.remove(name, dirty);
        if table.is_empty() {
            self.tables.remove(&section);
        }
        is_removed
    }

    fn table(&self, tag: u8) -> Option<&Table> {
        self.tables.get(&Section::of_tag(tag).ok()?)
    }

    /// Whether a page is in memory.
    pub(crate) fn has_part(&self, tag: u8, part: u64) -> bool {
        self.table(tag).is_some_and(|table| table.has_part(part))
    }

    /// The content of a page in memory.
    pub(crate) fn encode_part(&self, tag: u8, part: u64) -> Option<Vec<u8>> {
        self.table(tag)?.encode_part(part)
    }

    /// Takes a page.
    pub(crate) fn load_part(
        &mut self,
        (tag, part): (u8, u64),
        content: &[u8],
        hashing: Hashing,
    ) -> Result<(), String> {
        let table = self.tables.entry(Section::of_tag(tag)?);
        table.or_insert_with(|| Table::of_catalog(tag, hashing)).load_part(part, content)
    }

    /// Appends what the head of a checkpoint says of the tables.
    pub(crate) fn encode_head(&self, out: &mut Vec<u8>) {
        put_varint(out, self.tables.len() as u64);
        out.push(FORM);
        for (section, table) in &self.tables {
            out.push(*section as u8);
            put_varint(out, table.len() as u64);
        }
    }

    /// Compares the tables with what the head says of them.
    pub(crate) fn check_head(&self, input: &mut Input<'_>) -> Result<(), String> {
        let count = input.size()?;
        match input.byte()? {
            FORM => {}
            other => return Err(format!("form {other} of the tables is not known to this version")),
        }
        let mut expected = BTreeMap::new();
        for _ in 0..count {
            expected.insert(Section::of_tag(input.byte()?)?, input.size()?);
        }
        let found: BTreeMap<_, _> =
            self.tables.iter().map(|(section, table)| (*section, table.len())).collect();
        if found == expected {
            return Ok(());
        }
        Err(format!("the tables should have {expected:?} names and have {found:?}"))
    }

    /// Feeds everything to a digest.
    pub(crate) fn digest(&self, digest: &mut Digest) {
        for (section, table) in &self.tables {
            digest.number(*section as u64);
            for (name, value) in table.iter() {
                digest.bytes(name);
                digest.bytes(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::Section;
    use crate::store::{Chance, Ctx, Deadline, PageId, State, StateLoader, View};

    type Pages = BTreeMap<PageId, Vec<u8>>;

    fn checkpoint(state: &mut State, pages: &mut Pages) -> Vec<u8> {
        let head = state.checkpoint_begin();
        state.checkpoint_step(usize::MAX, |id, content| match content {
            Some(content) => _ = pages.insert(id, content),
            None => _ = pages.remove(&id),
        });
        head
    }

    fn loaded(head: &[u8], pages: &Pages) -> Result<State, String> {
        let mut loader = StateLoader::default();
        pages
            .iter()
            .try_for_each(|(id, content)| loader.page(PageId::decode(&id.encode()).unwrap(), content))?;
        loader.finish(head)
    }

    /// A state with a table of more than a mebibyte, one of one name, and a key.
    fn filled(pages: &mut Pages) -> (State, Vec<u8>) {
        let (mut state, mut chance) = (State::new(), Chance::new(3));
        state.take_hash_key([7; 16]);
        let mut ctx = Ctx::new(&mut state, 0, 0);
        ctx.set(b"k", b"v", Deadline::None);
        for number in 0..5_000 {
            let value = vec![b'x'; 200 + chance.below(200)];
            assert!(ctx.catalog_put(Section::Scripts, format!("script:{number}").as_bytes(), &value));
        }
        ctx.catalog_put(Section::Users, b"default", &[1; 2 << 20]);
        let head = checkpoint(&mut state, pages);
        (state, head)
    }

    #[test]
    fn a_large_table_survives_a_checkpoint() {
        let mut pages = Pages::new();
        let (mut state, head) = filled(&mut pages);
        let own = pages.iter().filter(|(id, _)| matches!(id, PageId::Catalog { .. }));
        assert!(own.map(|(_, content)| content.len()).sum::<usize>() > 3 << 20);
        let same = loaded(&head, &pages).unwrap();
        assert_eq!(same.digest(), state.digest());
        let view = View::new(&same, 0, 0, 0);
        assert_eq!(view.catalog().len(Section::Scripts), 5_000);
        assert_eq!(view.catalog().get(Section::Users, b"default"), Some(&[1; 2 << 20][..]));
        assert!(view.catalog().iter(Section::Scripts).eq(state.catalog.iter(Section::Scripts)));
        Ctx::new(&mut state, 0, 0).flush_all();
        assert_eq!(state.catalog.len(Section::Scripts), 5_000, "they are not keys");
    }

    #[test]
    fn a_change_is_in_the_digest_and_its_pages_go() {
        let mut pages = Pages::new();
        let (mut state, _) = filled(&mut pages);
        let before = state.digest();
        let mut ctx = Ctx::new(&mut state, 0, 0);
        assert!(!ctx.catalog_put(Section::Users, b"default", b"off"));
        assert_ne!(state.digest(), before);
        for number in 0..5_000 {
            let name = format!("script:{number}");
            assert!(Ctx::new(&mut state, 0, 0).catalog_remove(Section::Scripts, name.as_bytes()));
        }
        let mut ctx = Ctx::new(&mut state, 0, 0);
        assert!(ctx.catalog_remove(Section::Users, b"default") && !ctx.catalog_remove(Section::Users, b"x"));
        ctx.delete(b"k");
        let head = checkpoint(&mut state, &mut pages);
        assert_eq!(pages.keys().collect::<Vec<_>>(), [&PageId::Hashing]);
        assert_eq!(loaded(&head, &pages).unwrap().digest(), state.digest());
    }

    #[test]
    fn what_is_missing_or_unknown_is_noticed() {
        let mut pages = Pages::new();
        let (_, head) = filled(&mut pages);
        let last = *pages.keys().last().unwrap();
        let content = pages.remove(&last).unwrap();
        assert!(loaded(&head, &pages).unwrap_err().contains("the tables should have"));
        pages.insert(PageId::Catalog { section: 99, part: 0 }, content);
        assert_eq!(loaded(&head, &pages).unwrap_err(), "table 99 is not known to this version");
    }

    #[test]
    fn a_state_without_tables_is_written_as_it_always_was() {
        let mut state = State::new();
        // Each change counts.
        (0..3).for_each(|_| Ctx::new(&mut state, 0, 0).set(b"k", b"v", Deadline::None));
        let before = state.checkpoint_begin();
        let mut again = State::new();
        let mut ctx = Ctx::new(&mut again, 0, 0);
        ctx.catalog_put(Section::Settings, b"a", b"b");
        ctx.catalog_remove(Section::Settings, b"a");
        ctx.set(b"k", b"v", Deadline::None);
        assert_eq!((again.checkpoint_begin(), again.digest()), (before, state.digest()));
    }
}
