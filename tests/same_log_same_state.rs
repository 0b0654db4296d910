//! Machines that apply the same log have the same state: also one that was loaded from the pages of a
//! checkpoint on the way, and a checkpoint is the state at its begin, whatever is applied while it is taken. Their pages are
//! the same, byte by byte, whenever they were written: nodes compare them. So too when the apply level is raised on the
//! way, and when wall clocks are wrong. And no entry takes long, though some are made by one who knows how.
//!
//! KVORUM_SEED replays one seed.
#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::BTreeMap, sync::Arc};

use kvorum::{
    feed::{Feed, Filter, Limits},
    machine::{APPLY_LEVEL_MAX, Machine},
};
use kvorum_raft::{Machine as _, PageWrite};
use support::random_log::{Batch, add_hostile, raise, random_log, set_wall_clocks};
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

    fn load(&self) -> Machine {
        let machine = machine();
        let mut loader = machine.loader();
        for (id, content) in &self.pages {
            loader.page(id, content).unwrap();
        }
        loader.finish(&self.head).unwrap();
        machine
    }
}

/// An empty one, whose change feed keeps all.
fn machine() -> Machine {
    let limits = Limits { history_bytes_max: 1 << 30, value_bytes_max: 4 << 10 };
    Machine::with_feed(16, Feed::new(limits))
}

/// What the change feed tells of a database after an index.
fn told(machine: &Machine, db: u32, after: u64) -> Vec<(u64, String)> {
    let filter = Filter::new(db, Vec::new(), Vec::new());
    let mut reader = machine.feed().subscribe(filter, Some(after), Arc::new(Notify::new())).unwrap();
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

/// Applies the log while checkpoints are taken; after some of them goes on with a machine that was loaded from
/// the pages. Gives what a last checkpoint leaves on the disk, too.
fn run_with_checkpoints(log: &[Batch], chance: &mut fastrand::Rng) -> (Machine, Disk) {
    let mut machine = machine();
    let mut disk = Disk::default();
    // The checkpoint under way: the digest at its begin, its head and pages, and the next batch then.
    let mut running: Option<(u128, Vec<u8>, Vec<PageWrite>, usize)> = None;
    let mut next = 0;
    let mut reloads_left = 8;
    while next < log.len() {
        log[next].apply(&machine);
        next += 1;
        match &mut running {
            None if chance.u8(..20) == 0 => {
                let digest = machine.digest();
                running = Some((digest, machine.checkpoint_begin(), Vec::new(), next));
            }
            None => {}
            Some((_, _, pages, _)) => {
                if machine.checkpoint_step(chance.usize(1_000..100_000), pages) {
                    continue;
                }
                let (digest, head, pages, begin) = running.take().unwrap();
                assert!(pages.is_sorted_by(|a, b| a.id < b.id), "pages come in ascending order");
                disk.write(pages);
                disk.head = head;
                let loaded = disk.load();
                assert_eq!(loaded.digest(), digest, "a checkpoint is the state at its begin");
                if chance.bool() && reloads_left > 0 {
                    reloads_left -= 1;
                    machine = loaded;
                    next = begin;
                }
            }
        }
    }
    if let Some((_, _, mut pages, _)) = running {
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
        let plain = machine();
        log.iter().for_each(|batch| batch.apply(&plain));
        let (checkpointed, disk) = run_with_checkpoints(&log, &mut chance);
        let mut plain_disk = Disk::default();
        plain_disk.take(&plain);
        assert!(plain_disk == disk, "the same pages");
        assert_eq!(plain.database_sizes(), checkpointed.database_sizes());
        assert_eq!(plain.digest(), checkpointed.digest());
        assert_eq!(plain.next_deadline_ms(), checkpointed.next_deadline_ms());
        let status = checkpointed.feed().status();
        assert_eq!(status.last_index, BATCHES);
        for db in [0, 3] {
            let after = status.oldest_index;
            assert_eq!(told(&plain, db, after), told(&checkpointed, db, after), "the same feed");
        }
    }
}
