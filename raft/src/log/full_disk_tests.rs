//! A log whose disk is full, or that has no descriptors, waits, then continues with what it was about to write; nothing that was durable
//! is touched.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use openraft::{
    storage::{IOFlushed, RaftLogStorage},
    type_config::TypeConfigExt,
};

use super::{
    Log, LogConfig, LogError, LogStore,
    faulty::FaultyDisk,
    tests::{all, append, block_on, config, entry, indexes, no_fatal},
};
use crate::{
    DiskState,
    space::tests::Small,
    types::{Entry, TypeConfig},
    want::Want,
};

const SEGMENT_BYTES: u64 = 4 << 20;

fn open(disk: &FaultyDisk, small: &Small) -> Log {
    let config = LogConfig { spare_segments: 0, space: small.space.clone(), ..config(SEGMENT_BYTES, 0) };
    Log::open_on(Arc::new(disk.clone()), config, no_fatal()).unwrap()
}

/// Begins to append an entry; the future says whether it is durable.
async fn begin(store: &mut LogStore, entry: Entry) -> impl Future<Output = bool> + use<> {
    let (done, durable) = TypeConfig::oneshot();
    store.append([entry], IOFlushed::signal(done)).await.unwrap();
    async move { matches!(durable.await, Ok(Ok(()))) }
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < Duration::from_secs(10), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_write_that_finds_no_space_is_written_when_there_is_some() {
    let (disk, small) = (FaultyDisk::new(), Small::with_unused(0));
    let log = open(&disk, &small);
    block_on(async {
        let mut store = log.store(0);
        append(&mut store, vec![entry(1, 1, 1000)]).await;
        disk.fill(true);
        let durable = begin(&mut store, entry(1, 2, 1000)).await;
        wait_for("the log to wait", || small.space.log_waits_for() == Some(Want::Space));
        assert!(log.stats().fsync_in_progress_since.is_some(), "a watchdog sees it");
        assert_eq!(store.durable_entry().map(|id| id.index), Some(1), "nobody is told that it is durable");
        disk.fill(false);
        assert!(durable.await);
        assert_eq!(small.space.log_waits_for(), None);
        append(&mut store, vec![entry(1, 3, 1000)]).await;
    });
    log.close();
    // Half of it was written before.
    let log = open(&disk.crash(&mut fastrand::Rng::with_seed(1)), &small);
    assert_eq!(indexes(&block_on(all(&log.store(0)))), [1, 2, 3]);
}

#[test]
fn a_log_that_is_closed_while_it_waits_keeps_what_it_had() {
    let (disk, small) = (FaultyDisk::new(), Small::with_unused(0));
    let log = open(&disk, &small);
    block_on(async {
        let mut store = log.store(0);
        append(&mut store, vec![entry(1, 1, 1000)]).await;
        disk.fill(true);
        let durable = begin(&mut store, entry(1, 2, 1000)).await;
        wait_for("the log to wait", || small.space.log_waits_for() == Some(Want::Space));
        log.close();
        assert!(!durable.await);
    });
    disk.fill(false);
    let log = open(&disk, &small);
    block_on(async {
        let mut store = log.store(0);
        assert_eq!(indexes(&all(&store).await), [1]);
        append(&mut store, vec![entry(1, 2, 1000)]).await;
    });
}

#[test]
fn where_no_whole_segment_fits_smaller_ones_do() {
    let (disk, small) = (FaultyDisk::new(), Small::with_unused(0));
    let log = open(&disk, &small);
    let bytes = 300 << 10;
    block_on(async {
        let mut store = log.store(0);
        append(&mut store, vec![entry(1, 1, bytes)]).await;
        disk.limit_files(2 << 20);
        for index in 2..=40 {
            append(&mut store, vec![entry(1, index, bytes)]).await;
        }
        // A batch that needs more than a small one.
        append(&mut store, vec![entry(1, 41, 3 << 19)]).await;
    });
    log.close();
    let sizes: Vec<usize> =
        disk.files().iter().filter(|(name, _)| name.ends_with(".log")).map(|(_, file)| file.len()).collect();
    assert!(
        sizes[0] == SEGMENT_BYTES as usize && sizes[1..].iter().all(|size| *size <= 2 << 20),
        "{sizes:?}"
    );
    assert!(sizes.contains(&(1 << 20)), "{sizes:?}");
    disk.limit_files(u64::MAX);
    let log = open(&disk, &small);
    block_on(async {
        let mut store = log.store(0);
        assert_eq!(indexes(&all(&store).await), (1..=41).collect::<Vec<_>>());
        append(&mut store, vec![entry(2, 42, bytes)]).await;
    });
}

#[test]
fn a_segment_for_which_there_is_no_descriptor_is_created_when_there_is_one() {
    let (disk, small) = (FaultyDisk::new(), Small::with_unused(0));
    let log = open(&disk, &small);
    let bytes = 1 << 20;
    block_on(async {
        let mut store = log.store(0);
        append(&mut store, vec![entry(1, 1, bytes)]).await;
        disk.take_descriptors(true);
        // What has its place in the segment that is open needs none.
        append(&mut store, vec![entry(1, 2, bytes)]).await;
        let durable = begin(&mut store, entry(1, 3, 3 * bytes)).await;
        wait_for("the log to wait", || small.space.log_waits_for() == Some(Want::Descriptors));
        assert!(log.stats().fsync_in_progress_since.is_some(), "a watchdog sees it");
        disk.take_descriptors(false);
        assert!(durable.await);
        assert_eq!(small.space.log_waits_for(), None);
        append(&mut store, vec![entry(1, 4, bytes)]).await;
    });
    log.close();
    // Opened without descriptors it changes nothing.
    let before = disk.files();
    disk.take_descriptors(true);
    let config = LogConfig { spare_segments: 0, space: small.space.clone(), ..config(SEGMENT_BYTES, 0) };
    let refused = Log::open_on(Arc::new(disk.clone()), config, no_fatal()).err().unwrap();
    let LogError::Io { source, .. } = &refused else { panic!("{refused}") };
    assert_eq!(Want::of(source), Some(Want::Descriptors));
    assert_eq!(disk.files(), before);
    disk.take_descriptors(false);
    let log = open(&disk, &small);
    assert_eq!(indexes(&block_on(all(&log.store(0)))), [1, 2, 3, 4]);
}

#[test]
fn a_log_that_is_closed_while_it_has_no_descriptor_keeps_what_it_had() {
    let (disk, small) = (FaultyDisk::new(), Small::with_unused(100 << 20));
    let log = open(&disk, &small);
    block_on(async {
        let mut store = log.store(0);
        append(&mut store, vec![entry(1, 1, 1000)]).await;
        disk.take_descriptors(true);
        let durable = begin(&mut store, entry(1, 2, SEGMENT_BYTES as usize)).await;
        wait_for("the log to wait", || small.space.log_waits_for() == Some(Want::Descriptors));
        assert_ne!(small.space.disk().state, DiskState::Full, "it is not the disk that is full");
        log.close();
        assert!(!durable.await);
    });
    disk.take_descriptors(false);
    assert_eq!(indexes(&block_on(all(&open(&disk, &small).store(0)))), [1]);
}
