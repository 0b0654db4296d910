//! Calls that wait for keys. A call that finds nothing at its keys is kept with its arguments, and is run again
//! when one of its keys is fed: so a command that waits is one that can say that it found nothing, and whoever
//! writes a key need not know who waits for it.
//!
//! First come, first served at each key. Waits are in the replicated state, as the table `Section::Waits`: a name
//! for each, its number, and its call. (Owners that wait for a claim are not here, but in its queue: they move
//! with its key, end with it, and keep a place even when their client is gone.)

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use crate::store::{
    catalog::{Catalog, Section},
    codec::{Input, put_bytes, put_varint},
    ctx::Ctx,
    memory::ELEMENT_BYTES,
    owner::{Outcome, Wake},
    state::{KeyOfDb, State},
    tickets::OfNodes,
};

/// Where to report how a wait ended: a node, one run of it, and a number that this run never reuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub struct Ticket {
    pub node: u64,
    pub boot: u64,
    pub number: u64,
}

impl Ticket {
    /// Appends its serialized form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        [self.node, self.boot, self.number].into_iter().for_each(|part| put_varint(out, part));
    }

    /// Reads what `encode` wrote.
    pub fn decode(input: &mut Input<'_>) -> Result<Ticket, String> {
        Ok(Ticket { node: input.varint()?, boot: input.varint()?, number: input.varint()? })
    }
}

/// What has become of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fate {
    /// It has replied.
    #[default]
    Replied,
    /// It has replied with a grant, which is taken back unless the log says that the client was told of it.
    Granted,
    /// It waits: how that ends is reported to its ticket.
    Queued,
    /// It was not applied.
    Refused,
    /// Whether it was applied is not known.
    Unknown,
}

/// A call that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Where to report how it ended.
    pub ticket: Ticket,
    /// It waits until the log clock is past this; None for ever.
    pub deadline: Option<u64>,
    /// Its database.
    pub db: u32,
    /// The keys that it waits for, ...
    pub keys: Vec<Box<[u8]>>,
    /// ... until one of them holds this type.
    pub holds: Box<str>,
    /// Its arguments, the name first.
    pub argv: Vec<Box<[u8]>>,
}

/// What a key costs in the index of waits, if nobody else waits for it.
const KEY_BYTES: usize = 640;

/// The form of an encoded wait.
const FORM: u8 = 1;

impl Wait {
    /// Its arguments, as a call has them.
    pub fn args(&self) -> Vec<&[u8]> {
        self.argv.iter().map(|argument| &**argument).collect()
    }

    /// What it costs in memory besides its place in the table.
    pub fn bytes(&self) -> usize {
        // Keys are here and in the index.
        let keys: usize = self.keys.iter().map(|key| 2 * key.len() + KEY_BYTES).sum();
        let arguments: usize = self.argv.iter().map(|argument| argument.len() + ELEMENT_BYTES).sum();
        keys + arguments
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORM];
        self.ticket.encode(&mut out);
        put_varint(&mut out, self.deadline.map_or(0, |deadline| deadline.saturating_add(1)));
        put_varint(&mut out, u64::from(self.db));
        put_bytes(&mut out, self.holds.as_bytes());
        for list in [&self.keys, &self.argv] {
            put_varint(&mut out, list.len() as u64);
            list.iter().for_each(|bytes| put_bytes(&mut out, bytes));
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Wait, String> {
        let mut input = Input::new(bytes);
        match input.byte()? {
            FORM => {}
            other => return Err(format!("form {other} of a wait is not known to this version")),
        }
        let ticket = Ticket::decode(&mut input)?;
        let (deadline, db) = (input.varint()?.checked_sub(1), input.varint()?);
        let db = u32::try_from(db).map_err(|_| format!("database {db} does not exist"))?;
        let holds = std::str::from_utf8(input.bytes()?).map_err(|error| error.to_string())?.into();
        let mut list = || -> Result<Vec<Box<[u8]>>, String> {
            (0..input.size()?).map(|_| input.bytes().map(Into::into)).collect()
        };
        let (keys, argv) = (list()?, list()?);
        input.end()?;
        Ok(Wait { ticket, deadline, db, keys, holds, argv })
    }
}

/// The numbers of the waits for a key, by the type that it is to hold.
type ByType = BTreeMap<Box<str>, BTreeSet<u64>>;

/// The calls that wait, with what finds them.
///
/// Invariants:
/// - `by_number` is the table of waits; the others are made of it. Numbers ascend in the order of arrival.
/// - Between requests nothing is fed.
#[derive(Debug, Default)]
pub struct Waits {
    by_number: BTreeMap<u64, Arc<Wait>>,
    /// What they cost in memory.
    bytes: usize,
    by_ticket: HashMap<Ticket, u64>,
    by_deadline: BTreeSet<(u64, u64)>,
    of_nodes: OfNodes,
    by_key: HashMap<u32, HashMap<Box<[u8]>, ByType>>,
    /// Keys that have changed and for which somebody waits, in the order of their first change.
    fed: VecDeque<KeyOfDb>,
    is_fed: HashSet<KeyOfDb>,
}

impl Waits {
    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }

    /// What they cost in memory.
    pub(in crate::store) fn bytes(&self) -> usize {
        self.bytes
    }

    fn add(&mut self, number: u64, wait: Wait) {
        self.bytes += wait.bytes();
        self.by_ticket.insert(wait.ticket, number);
        self.of_nodes.add(wait.ticket);
        self.by_deadline.extend(wait.deadline.map(|deadline| (deadline, number)));
        let of_db = self.by_key.entry(wait.db).or_default();
        for key in &wait.keys {
            of_db.entry(key.clone()).or_default().entry(wait.holds.clone()).or_default().insert(number);
        }
        self.by_number.insert(number, Arc::new(wait));
    }

    fn remove(&mut self, number: u64) -> Option<Arc<Wait>> {
        let wait = self.by_number.remove(&number)?;
        self.bytes -= wait.bytes();
        self.by_ticket.remove(&wait.ticket);
        self.of_nodes.remove(wait.ticket);
        wait.deadline.map(|deadline| self.by_deadline.remove(&(deadline, number)));
        let of_db = self.by_key.get_mut(&wait.db).expect("it waits for keys of its database");
        for key in &wait.keys {
            // A key may be named twice.
            let Some(by_type) = of_db.get_mut(key) else { continue };
            if let Some(numbers) = by_type.get_mut(&wait.holds) {
                numbers.remove(&number);
                if numbers.is_empty() {
                    by_type.remove(&wait.holds);
                }
            }
            if by_type.is_empty() {
                of_db.remove(key);
            }
        }
        if of_db.is_empty() {
            self.by_key.remove(&wait.db);
        }
        Some(wait)
    }

    /// A key has changed.
    pub(in crate::store) fn feed(&mut self, db: u32, key: &[u8]) {
        if self.by_key.get(&db).is_some_and(|of_db| of_db.contains_key(key)) {
            let place = (db, Box::from(key));
            if self.is_fed.insert(place.clone()) {
                self.fed.push_back(place);
            }
        }
    }

    /// When the first wait times out.
    pub(in crate::store) fn first_deadline(&self) -> Option<u64> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }

    /// The waits as the table has them.
    pub(in crate::store) fn of(catalog: &Catalog) -> Result<Waits, String> {
        let mut waits = Waits::default();
        for (name, value) in catalog.iter(Section::Waits) {
            let number = <[u8; 8]>::try_from(name).map_err(|_| "the name of a wait is not a number")?;
            let number = u64::from_be_bytes(number);
            waits.add(number, Wait::decode(value).map_err(|error| format!("wait {number}: {error}"))?);
        }
        Ok(waits)
    }

    #[cfg(test)]
    pub(in crate::store) fn invariants(&self, catalog: &Catalog) {
        let stored = Waits::of(catalog).expect("it was written here");
        assert_eq!(stored.by_number, self.by_number);
        assert_eq!(stored.by_ticket, self.by_ticket);
        assert_eq!(stored.by_deadline, self.by_deadline);
        assert_eq!(stored.of_nodes, self.of_nodes);
        assert_eq!(stored.by_key, self.by_key);
        assert!(self.fed.is_empty() && self.is_fed.is_empty());
    }
}

impl Ctx<'_> {
    /// A call that found nothing at its keys waits for them, if it may. Otherwise false: it is to reply.
    pub fn wait_for_keys(&mut self) -> bool {
        if self.ticket.is_some() {
            self.fate = Fate::Queued;
        }
        self.ticket.is_some()
    }

    /// Keeps a call that waits for keys.
    pub fn add_wait(&mut self, wait: Wait) {
        self.state.add_wait(wait);
    }
}

impl State {
    /// Adds a wait, behind all others. It replaces one under the same ticket, which no node has issued.
    pub fn add_wait(&mut self, wait: Wait) {
        self.cancel_wait(wait.ticket);
        // Each change of the state has another revision: a number that ascends.
        let number = self.next_version();
        let State { catalog, hashing, dirty, waits, .. } = self;
        catalog.put((Section::Waits, &number.to_be_bytes()), &wait.encode(), *hashing, dirty);
        waits.add(number, wait);
    }

    /// Ends a wait.
    pub fn end_wait(&mut self, number: u64) -> Option<Arc<Wait>> {
        let wait = self.waits.remove(number)?;
        self.next_version();
        self.catalog.remove(Section::Waits, &number.to_be_bytes(), &mut self.dirty);
        Some(wait)
    }

    /// A wait by its number.
    pub fn wait(&self, number: u64) -> Option<Arc<Wait>> {
        self.waits.by_number.get(&number).cloned()
    }

    /// Whether keys were fed for which somebody waits.
    pub fn has_fed(&self) -> bool {
        !self.waits.fed.is_empty()
    }

    /// Takes the first key that was fed.
    pub fn take_fed(&mut self) -> Option<KeyOfDb> {
        let place = self.waits.fed.pop_front()?;
        self.waits.is_fed.remove(&place);
        Some(place)
    }

    /// The first wait behind number `after` for a key to hold this type, by its number: so they are served.
    pub fn next_wait(&self, db: u32, key: &[u8], holds: &str, after: u64) -> Option<u64> {
        let numbers = self.waits.by_key.get(&db)?.get(key)?.get(holds)?;
        numbers.range(after + 1..).next().copied()
    }

    /// The first wait whose deadline has passed.
    pub fn first_due_wait(&self) -> Option<u64> {
        let (deadline, number) = *self.waits.by_deadline.first()?;
        (deadline < self.now_ms).then_some(number)
    }

    /// Ends the wait under a ticket, because its client is gone. False if there is none.
    pub(in crate::store) fn cancel_wait(&mut self, ticket: Ticket) -> bool {
        let number = self.waits.by_ticket.get(&ticket).copied();
        number.and_then(|number| self.end_wait(number)).is_some()
    }

    /// Whether a ticket's call waits for keys.
    pub(in crate::store) fn waits_for_keys(&self, ticket: Ticket) -> bool {
        self.waits.by_ticket.contains_key(&ticket)
    }

    /// Ends the waits at a node, except those of one run of it.
    pub(in crate::store) fn forget_waits(&mut self, node: u64, but_boot: u64) {
        let is_meant = |wait: &Wait| wait.ticket.node == node && wait.ticket.boot != but_boot;
        let waits = self.waits.by_number.iter();
        let numbers: Vec<u64> = waits.filter(|(_, wait)| is_meant(wait)).map(|(number, _)| *number).collect();
        for number in numbers {
            if let Some(wait) = self.end_wait(number) {
                let (db, ticket) = (wait.db, wait.ticket);
                self.wakes.push(Wake { ticket, outcome: Outcome::OutOfContact, db, key: Box::default() });
            }
        }
    }

    /// The nodes whose clients wait for keys, each with its run.
    pub(in crate::store) fn nodes_of_waits(&self) -> impl Iterator<Item = (u64, u64)> {
        self.waits.of_nodes.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::{Ticket, Wait};
    use crate::store::State;

    fn wait(number: u64, deadline: Option<u64>, keys: &[&str]) -> Wait {
        let bytes = |text: &&str| Box::from(text.as_bytes());
        let argv = ["BLPOP"].iter().chain(keys).chain(&["0"]).map(bytes).collect();
        let ticket = Ticket { node: 1 + number % 2, boot: 7, number };
        Wait { ticket, deadline, db: 3, keys: keys.iter().map(bytes).collect(), holds: "list".into(), argv }
    }

    #[test]
    fn a_wait_is_read_as_it_is_written() {
        for deadline in [None, Some(0), Some(5), Some(u64::MAX - 1)] {
            let wait = wait(9, deadline, &["a", "", "b"]);
            assert_eq!(Wait::decode(&wait.encode()), Ok(wait));
        }
        assert!(Wait::decode(&[2]).unwrap_err().contains("form 2"));
        assert!(Wait::decode(&wait(9, None, &["a"]).encode()[..9]).is_err());
    }

    #[test]
    fn at_each_key_the_first_to_come_is_the_first() {
        let mut state = State::new();
        for (number, keys) in [(1, &["a", "b"][..]), (2, &["b"]), (3, &["b", "a", "b"])] {
            state.add_wait(wait(number, None, keys));
        }
        let order = |state: &State, key: &str| {
            let next = |after: &u64| state.next_wait(3, key.as_bytes(), "list", *after);
            let numbers = std::iter::successors(next(&0), next);
            numbers.map(|number| state.wait(number).unwrap().ticket.number).collect::<Vec<_>>()
        };
        assert_eq!((order(&state, "a"), order(&state, "b")), (vec![1, 3], vec![1, 2, 3]));
        assert_eq!(state.next_wait(0, b"a", "list", 0), None, "another database");
        assert_eq!(state.next_wait(3, b"a", "zset", 0), None, "another type");
        state.add_wait(wait(2, None, &["b"]));
        assert_eq!(order(&state, "b"), [1, 3, 2], "a ticket waits once");
        state.add_wait(wait(3, None, &["b", "a", "b"]));
        assert_eq!((order(&state, "a"), order(&state, "b")), (vec![1, 3], vec![1, 2, 3]));
        assert!(state.cancel_wait(wait(1, None, &[]).ticket));
        assert!(!state.cancel_wait(wait(1, None, &[]).ticket));
        assert_eq!((order(&state, "a"), order(&state, "b")), (vec![3], vec![2, 3]));
        state.invariants();
    }

    #[test]
    fn a_key_is_fed_once_and_only_if_somebody_waits() {
        let mut state = State::new();
        state.add_wait(wait(1, None, &["a", "b"]));
        for key in ["b", "x", "a", "b"] {
            state.notify(3, key.as_bytes());
        }
        state.notify(0, b"a");
        let fed: Vec<_> = std::iter::from_fn(|| state.take_fed()).map(|(_, key)| key).collect();
        assert_eq!(fed, [Box::from(&b"b"[..]), Box::from(&b"a"[..])]);
    }

    #[test]
    fn waits_end_by_time_and_with_their_node() {
        let mut state = State::new();
        for number in 1..=4 {
            state.add_wait(wait(number, Some(10 * number), &["a"]));
        }
        state.advance(10, 1);
        assert_eq!(state.first_due_wait(), None, "it waits until the clock is past its deadline");
        state.advance(11, 1);
        let due = state.first_due_wait().unwrap();
        assert_eq!(state.end_wait(due).unwrap().ticket.number, 1);
        assert_eq!((state.first_due_wait(), state.waits.first_deadline()), (None, Some(20)));
        state.forget_waits(1, 7);
        state.forget_waits(2, 0);
        let gone: Vec<u64> = state.take_wakes().iter().map(|wake| wake.ticket.number).collect();
        assert_eq!(gone, [3], "that run of node 1 goes on, and node 2 has only one left");
        assert_eq!(state.nodes_of_waits().collect::<Vec<_>>(), [(1, 7)]);
        state.invariants();
    }
}
