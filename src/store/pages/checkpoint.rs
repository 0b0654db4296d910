//! Writing the state out as a head and pages, in short steps while it keeps changing, and rebuilding a state
//! from them.

use kvorum_raft::safeguard::{self, Safeguard};

use crate::store::{
    claims::Claims,
    codec::{FORMAT, Input, put_signed, put_varint},
    deadlines::{Deadlines, Death},
    dirty::PageId,
    hashing::Hashing,
    keyspace::Keyspace,
    lease::Lease,
    segments::Item,
    state::{DATABASES_MAX, State},
    waits::Waits,
};

impl State {
    /// Begins a checkpoint: everything touched since the last one is to be written as it is at this moment.
    /// Returns the head.
    pub fn checkpoint_begin(&mut self) -> Vec<u8> {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.begin(|id| self.has_page(id));
        self.dirty = dirty;
        self.head()
    }

    /// Passes about `bytes_max` bytes of pages of the current checkpoint to `each`. False when there are no
    /// more.
    pub fn checkpoint_step(
        &mut self,
        bytes_max: usize,
        mut each: impl FnMut(PageId, Option<Vec<u8>>),
    ) -> bool {
        let mut dirty = std::mem::take(&mut self.dirty);
        let mut bytes = 0;
        let mut more = true;
        while more && bytes < bytes_max {
            match dirty.next(|id| self.encode_page(id)) {
                Some((id, content)) => {
                    bytes += content.as_ref().map_or(0, Vec::len) + 32;
                    each(id, content);
                }
                None => more = false,
            }
        }
        self.dirty = dirty;
        more
    }

    fn head(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        put_varint(&mut out, if safeguard::is_off(Safeguard::ClockInCheckpoints) { 0 } else { self.now_ms });
        put_varint(&mut out, self.revision);
        put_varint(&mut out, self.next_object);
        let used: Vec<_> = (0u32..).zip(&self.databases).filter(|(_, keyspace)| keyspace.len() > 0).collect();
        put_varint(&mut out, used.len() as u64);
        for (db, keyspace) in used {
            put_varint(&mut out, u64::from(db));
            put_varint(&mut out, keyspace.len() as u64);
        }
        put_varint(&mut out, self.token);
        put_varint(&mut out, self.term);
        put_varint(&mut out, self.led_since_ms);
        put_varint(&mut out, self.applied);
        // Older versions know neither the offset `ahead_ms` nor the catalog; states that they can load have
        // none.
        if self.ahead_ms != 0 || !self.catalog.is_empty() {
            put_signed(&mut out, self.ahead_ms);
        }
        if !self.catalog.is_empty() {
            self.catalog.encode_head(&mut out);
        }
        out
    }
}

/// A state under construction.
#[derive(Debug, Default)]
pub struct StateLoader {
    state: State,
    deaths: Vec<Death>,
}

impl StateLoader {
    /// Adds a page; pages come in ascending order of their ids.
    pub fn page(&mut self, id: PageId, content: &[u8]) -> Result<(), String> {
        match id {
            PageId::Hashing => self.hashing(content),
            PageId::Segment { db, slot, start } => self.segment(db, slot, start, content),
            PageId::Object { object, part } => {
                let value = self.state.object_mut_unmarked(object);
                let value = value.ok_or_else(|| format!("object {object} belongs to no key"))?;
                value.kind_mut().load_part(part, content)
            }
            PageId::Catalog { section, part } => {
                let State { catalog, hashing, .. } = &mut self.state;
                catalog.load_part((section, part), content, *hashing)
            }
        }
    }

    fn hashing(&mut self, content: &[u8]) -> Result<(), String> {
        let mut input = Input::page(content)?;
        let key = <[u8; 16]>::try_from(input.take_rest()).map_err(|_| "a hash key has 16 bytes")?;
        if !self.state.databases.is_empty() {
            return Err("the hash key has to come before all keys".into());
        }
        self.state.hashing = Hashing::keyed(key);
        Ok(())
    }

    fn segment(&mut self, db: u32, slot: u16, start: u64, content: &[u8]) -> Result<(), String> {
        if db >= DATABASES_MAX {
            return Err(format!("database {db} does not exist"));
        }
        self.state.open(db);
        let mut homes = Vec::new();
        let deaths = &mut self.deaths;
        let State { databases, ticketed, tickets, attached, guarded, .. } = &mut self.state;
        databases[db as usize].load_segment(slot, start, content, |record| {
            if let Some(claims) = record.claims().filter(|claims| claims.has_tickets()) {
                ticketed.insert((db, record.key().into()));
                for (ticket, is_waiting) in claims.all_traces().tickets {
                    tickets.set(ticket, (db, record.key().into()), is_waiting);
                }
            }
            for key in record.claims().into_iter().flat_map(Claims::guards) {
                guarded.insert(db, key, record.key().into());
            }
            for key in record.lease().into_iter().flat_map(Lease::keys) {
                attached.or_default(db, key).insert(record.key().into());
            }
            if let Some(deadline) = record.deadline() {
                deaths.push(Death::new(deadline, db, slot, record.hash()));
            }
            homes.extend(record.object_id().map(|object| (object, Box::from(record.key()))));
        })?;
        for (object, key) in homes {
            if !self.state.homes.insert(object, db, &key) {
                return Err(format!("object {object} belongs to two keys"));
            }
        }
        Ok(())
    }

    /// Takes the head and checks that nothing is missing.
    pub fn finish(mut self, head: &[u8]) -> Result<State, String> {
        let mut input = Input::page(head)?;
        self.state.now_ms = input.varint()?;
        self.state.revision = input.varint()?;
        self.state.next_object = input.varint()?;
        let mut expected = vec![0; self.state.databases.len()];
        for _ in 0..input.size()? {
            let (db, len) = (input.size()?, input.size()?);
            *expected.get_mut(db).ok_or_else(|| format!("database {db} is missing"))? = len;
        }
        self.state.token = input.varint()?;
        self.state.term = input.varint()?;
        self.state.led_since_ms = input.varint()?;
        self.state.applied = input.varint()?;
        self.state.ahead_ms = if input.is_at_end() { 0 } else { input.signed()? };
        if !input.is_at_end() || !self.state.catalog.is_empty() {
            self.state.catalog.check_head(&mut input)?;
        }
        self.state.waits = Waits::of(&self.state.catalog)?;
        self.state.read_settings();
        input.end()?;
        let found: Vec<_> = self.state.databases.iter().map(Keyspace::len).collect();
        self.state.keys = found.iter().sum();
        if found != expected {
            return Err(format!("the databases should have {expected:?} keys and have {found:?}"));
        }
        let objects: Vec<u64> = self.state.homes.objects().collect();
        for object in objects {
            if object >= self.state.next_object {
                return Err(format!("object {object} is newer than the head"));
            }
            let value = self.state.object_mut_unmarked(object).ok_or("an object is missing")?;
            value.kind_mut().loaded()?;
        }
        let State { databases, dirty, .. } = &mut self.state;
        databases.iter_mut().for_each(|keyspace| keyspace.count_bytes(dirty));
        self.state.deadlines = Deadlines::of(self.deaths);
        Ok(self.state)
    }
}
