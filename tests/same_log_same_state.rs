//! Machines that apply the same log have the same state: also one that was loaded from the pages of a
//! checkpoint on the way, and a checkpoint is the state at its begin, whatever is applied while it is taken. Their pages are
//! the same, byte by byte, whenever they were written: nodes compare them. So too when the apply level is raised on the
//! way, when wall clocks are wrong, and when calls wait; and whoever listens. And no entry takes long, though some are made by one who knows how.
//!
//! KVORUM_SEED replays one seed.
#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::BTreeMap, ops::Deref, sync::Arc};

use kvorum::{
    feed::{Feed, Filter, Limits},
    machine::{APPLY_LEVEL_MAX, Machine},
};
use kvorum::{
    proposal::{Call, put_call, put_transaction, put_waiting_call},
    store::Ticket,
};
use kvorum_raft::{Machine as _, PageWrite};
use support::random_log::{
    Batch, add_drawn, add_hostile, add_waits, raise, random_log, set_limits, set_wall_clocks,
};
use tokio::sync::Notify;

const BATCHES: u64 = 600;

/// What a disk would hold: the pages of the newest complete checkpoint.
#[derive(Clone, Default, PartialEq)]
struct Disk {
    pages: BTreeMap<Vec<u8>, Vec<u8>>,
    head: Vec<u8>,
}

impl Disk {
    fn write(&mut self, pages: Vec<PageWrite>) {
        for page in pages {
            match page.content {
                Some(content) => _ = self.pages.insert(page.id, content),
                None => _ = self.pages.remove(&page.id),
            }
        }
    }

    /// Takes a whole checkpoint.
    fn take(&mut self, machine: &Machine) {
        let (head, mut pages) = (machine.checkpoint_begin(), Vec::new());
        while machine.checkpoint_step(usize::MAX, &mut pages) {}
        self.write(pages);
        self.head = head;
    }

    fn load(&self) -> Fed {
        let machine = machine();
        let mut loader = machine.loader();
        for (id, content) in &self.pages {
            loader.page(id, content).unwrap();
        }
        loader.finish(&self.head).unwrap();
        machine
    }
}

/// A machine, and a change feed that keeps all.
struct Fed {
    machine: Machine,
    feed: Arc<Feed>,
}

impl Deref for Fed {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

/// An empty one.
fn machine() -> Fed {
    let feed = Arc::new(Feed::new(Limits { history_bytes_max: 1 << 30, value_bytes_max: 4 << 10 }));
    Fed { machine: Machine::new(16).with_listener(feed.clone()), feed }
}

/// What the change feed tells of a database after an index.
fn told(machine: &Fed, db: u32, after: u64) -> Vec<(u64, String)> {
    let filter = Filter::new(db, Vec::new(), Vec::new());
    let mut reader = machine.feed.subscribe(filter, Some(after), Arc::new(Notify::new())).unwrap();
    let entries = std::iter::from_fn(|| {
        loop {
            match reader.next_entry().unwrap() {
                Some(entry) => {
                    return Some((entry.index, format!("{:?}", entry.events().collect::<Vec<_>>())));
                }
                None if reader.progress().is_none() => return None,
                None => {}
            }
        }
    });
    entries.collect()
}

/// A checkpoint under way: the digest and the cost of the content at its begin, its head and pages, and the next batch
/// then.
struct Running {
    digest: u128,
    used: u64,
    head: Vec<u8>,
    pages: Vec<PageWrite>,
    next: usize,
}

/// What a command may add without Redis's flag `denyoom`: RENAME of what other keys name, for example.
const UNCHECKED_BYTES: u64 = 64 << 10;

/// Applies an entry; it does not pass the limit for memory that is in force before or after it.
fn apply_within_limits(batch: &Batch, machine: &Machine) {
    let limit = |machine: &Machine| machine.maxmemory().filter(|limit| *limit > 0).unwrap_or(u64::MAX);
    let (before, used) = (limit(machine), machine.used_bytes());
    batch.apply(machine);
    let highest = used.max(before).max(limit(machine)).saturating_add(UNCHECKED_BYTES);
    assert!(machine.used_bytes() <= highest, "entry {}: {} bytes", batch.index, machine.used_bytes());
}

/// Applies the log while checkpoints are taken; after some of them goes on with a machine that was loaded from
/// the pages. Gives what a last checkpoint leaves on the disk, too.
fn run_with_checkpoints(log: &[Batch], chance: &mut fastrand::Rng) -> (Fed, Disk) {
    let mut machine = machine();
    let mut disk = Disk::default();
    let mut running: Option<Running> = None;
    let mut next = 0;
    let mut reloads_left = 8;
    while next < log.len() {
        log[next].apply(&machine);
        next += 1;
        match &mut running {
            None if chance.u8(..20) == 0 => {
                let (digest, used) = (machine.digest(), machine.used_bytes());
                let (head, pages) = (machine.checkpoint_begin(), Vec::new());
                running = Some(Running { digest, used, head, pages, next });
            }
            None => {}
            Some(running_now) => {
                if machine.checkpoint_step(chance.usize(1_000..100_000), &mut running_now.pages) {
                    continue;
                }
                let Running { digest, used, head, pages, next: begin } = running.take().unwrap();
                assert!(pages.is_sorted_by(|a, b| a.id < b.id), "pages come in ascending order");
                disk.write(pages);
                disk.head = head;
                let loaded = disk.load();
                assert_eq!(loaded.digest(), digest, "a checkpoint is the state at its begin");
                assert_eq!(loaded.used_bytes(), used, "what a state costs depends on its content alone");
                if chance.bool() && reloads_left > 0 {
                    reloads_left -= 1;
                    machine = loaded;
                    next = begin;
                }
            }
        }
    }
    if let Some(Running { mut pages, .. }) = running {
        while machine.checkpoint_step(usize::MAX, &mut pages) {}
        disk.write(pages);
    }
    disk.take(&machine);
    (machine, disk)
}

#[test]
fn same_log_same_state() {
    let seeds = match std::env::var("KVORUM_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..4).map(|_| fastrand::u64(..)).collect(),
    };
    for seed in seeds {
        println!("KVORUM_SEED={seed}");
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut log = random_log(&mut chance, BATCHES);
        // A cluster that was formed with the level; one that had data when it was raised; and one where nobody raised it.
        let raised_at = [1, 1, BATCHES / 2, BATCHES + 1][chance.usize(..4)];
        println!("the level is raised at entry {raised_at} of {BATCHES}");
        raise(&mut log, raised_at, APPLY_LEVEL_MAX);
        // By the first rule some of that takes for ever, or nearly.
        add_hostile(&mut chance, &mut log, raised_at);
        set_wall_clocks(&mut chance, &mut log, raised_at);
        add_waits(&mut chance, &mut log, raised_at);
        add_drawn(&mut chance, &mut log, raised_at);
        set_limits(&mut chance, &mut log, raised_at);
        let plain = machine();
        log.iter().for_each(|batch| apply_within_limits(batch, &plain));
        assert!(raised_at > BATCHES || plain.refused() > 0, "some of that is over the limit");
        // What a node listens for is its own affair.
        let deaf = Machine::new(16);
        log.iter().for_each(|batch| batch.apply(&deaf));
        assert_eq!(plain.digest(), deaf.digest());
        let (checkpointed, disk) = run_with_checkpoints(&log, &mut chance);
        let mut plain_disk = Disk::default();
        plain_disk.take(&plain);
        assert!(plain_disk == disk, "the same pages");
        assert_eq!(plain.database_sizes(), checkpointed.database_sizes());
        assert_eq!(plain.digest(), checkpointed.digest());
        assert_eq!(plain.next_deadline_ms(), checkpointed.next_deadline_ms());
        let status = checkpointed.feed.status();
        assert_eq!(status.last_index, BATCHES);
        for db in [0, 3] {
            let after = status.oldest_index;
            assert_eq!(told(&plain, db, after), told(&checkpointed, db, after), "the same feed");
        }
    }
}

/// An entry of level 4 at a time, in milliseconds.
fn entry(index: u64, stamp_ms: u64, proposal: Vec<u8>) -> Batch {
    let (term, level, proposals) = (1, APPLY_LEVEL_MAX, vec![proposal]);
    Batch { index, stamp_ms, ahead_ms: 0, term, level, raised: None, proposals }
}

fn waiting(number: u64, words: &str) -> Vec<u8> {
    let (mut bytes, ticket) = (Vec::new(), Ticket { node: 1, boot: 1, number });
    put_waiting_call(&mut bytes, ticket, 0, &words.split(' ').map(str::as_bytes).collect::<Vec<_>>());
    bytes
}

/// Calls that wait when the cluster gets its hash key: they are in the order of hashes, as keys are.
#[test]
fn waits_keep_their_order_when_the_level_is_raised() {
    let machine = machine();
    for number in 1..=20 {
        let words = format!("BLPOP queue:{number} 0");
        entry(number, 1_000_000, waiting(number, &words)).apply(&machine);
    }
    let mut raising = entry(21, 1_000_000, Vec::new());
    raising.raised = Some(*b"drawn by chance!");
    raising.apply(&machine);
    let mut disk = Disk::default();
    disk.take(&machine);
    assert_eq!(disk.load().digest(), machine.digest());
}

fn transaction(lines: &[&str]) -> Vec<u8> {
    let argv = |line: &&'static str| Call { db: 0, argv: line.split(' ').map(str::as_bytes).collect() };
    let lines: Vec<&'static str> = lines.iter().map(|line| &*line.to_string().leak()).collect();
    let mut bytes = Vec::new();
    put_transaction(&mut bytes, &[], &lines.iter().map(argv).collect::<Vec<_>>());
    bytes
}

/// The order in which keys were fed decides who is served: a node with a change feed goes by the same as one without.
#[test]
fn whoever_listens_the_same_waits_are_served() {
    let log = [
        entry(1, 1_000, waiting(1, "BLPOP k2 0")),
        entry(2, 1_000, waiting(2, "BLPOP k2 k1 0")),
        entry(3, 1_000, transaction(&["SET k1 s", "RPUSH k2 x", "DEL k1", "RPUSH k1 y"])),
    ];
    let (fed, deaf) = (machine(), Machine::new(16));
    for batch in &log {
        batch.apply(&fed);
        batch.apply(&deaf);
        assert_eq!(fed.digest(), deaf.digest(), "after entry {}", batch.index);
    }
}

/// What an entry feeds is served in that entry: no page knows of it.
#[test]
fn what_time_feeds_is_served_at_once() {
    let mut set = Vec::new();
    put_call(&mut set, 0, &[b"SET", b"k1", b"s", b"PX", b"300"]);
    let before = [
        entry(1, 1_000, waiting(1, "BLPOP k2 0")),
        entry(2, 1_000, waiting(2, "BLPOP k2 k1 0")),
        entry(3, 1_000, set),
        // Nothing but time.
        entry(4, 2_000, Vec::new()),
    ];
    let after = entry(5, 2_000, transaction(&["RPUSH k2 x", "RPUSH k1 y"]));
    let (plain, mut disk) = (machine(), Disk::default());
    before.iter().for_each(|batch| batch.apply(&plain));
    disk.take(&plain);
    let loaded = disk.load();
    after.apply(&plain);
    after.apply(&loaded);
    assert_eq!(plain.digest(), loaded.digest());
}
