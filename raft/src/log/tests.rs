//! The log against openraft's own conformance suite, against damaged images, and against power cuts.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use openraft::{
    EntryPayload, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
    type_config::TypeConfigExt,
};
use tempfile::TempDir;

use super::{
    Fatal, Log, LogConfig, LogError, LogStore,
    disk::Disk,
    faulty::FaultyDisk,
    frame::{self, FRAME_HEADER_BYTES},
    segment::segment_name,
};
use crate::types::{Entry, LogId, Payload, TypeConfig, Vote};

const SEGMENT_BYTES: u64 = 64 << 10;

pub(super) fn config(segment_bytes: u64, cache_bytes: usize) -> LogConfig {
    LogConfig { dir: "log".into(), segment_bytes, cache_bytes, spare_segments: 2, space: Arc::default() }
}

pub(super) fn no_fatal() -> Fatal {
    Arc::new(|text| panic!("the log failed: {text}"))
}

fn open(disk: &FaultyDisk) -> Result<Log, LogError> {
    Log::open_on(Arc::new(disk.clone()), config(SEGMENT_BYTES, 0), no_fatal())
}

pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pub(super) fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let mut content = format!("{term}.{index}.").into_bytes();
    content.resize(bytes.max(content.len()), b'a' + (index % 26) as u8);
    let payload = EntryPayload::Normal(Payload(Bytes::from(content)));
    Entry { log_id: LogId::new_term_index(term, index), payload }
}

/// Appends, and returns a future that says whether it is durable.
async fn begin_append(store: &mut LogStore, entries: Vec<Entry>) -> impl Future<Output = bool> + use<> {
    let (done, durable) = TypeConfig::oneshot();
    store.append(entries, IOFlushed::signal(done)).await.unwrap();
    async move { matches!(durable.await, Ok(Ok(()))) }
}

pub(super) async fn append(store: &mut LogStore, entries: Vec<Entry>) {
    assert!(begin_append(store, entries).await.await);
}

pub(super) async fn all(store: &LogStore) -> Vec<Entry> {
    store.clone().try_get_log_entries(..).await.unwrap()
}

pub(super) fn indexes(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.log_id.index).collect()
}

#[test]
fn entries_are_read_back_from_disk_and_survive_a_reopen() {
    let disk = FaultyDisk::new();
    let expected: Vec<Entry> = (1..=60).map(|index| entry(1, index, 3000 + index as usize)).collect();
    block_on(async {
        let log = open(&disk).unwrap();
        let mut store = log.store(0);
        for chunk in expected.chunks(3) {
            append(&mut store, chunk.to_vec()).await;
        }
        assert_eq!(all(&store).await, expected);
        let some = store.try_get_log_entries(7..=9).await.unwrap();
        assert_eq!(some, expected[6..9]);
        let streamed: Vec<Entry> = store.entries_stream(5..50).await.try_collect().await.unwrap();
        assert_eq!(streamed, expected[4..49]);
        assert!(log.stats().segments > 2);
        log.close();
        assert!(store.append(vec![entry(1, 61, 1)], IOFlushed::noop()).await.is_err());
        assert_eq!(all(&store).await, expected);
    });
    block_on(async {
        let log = open(&disk).unwrap();
        let mut store = log.store(0);
        assert_eq!(all(&store).await, expected);
        append(&mut store, vec![entry(2, 61, 10)]).await;
        assert_eq!(store.get_log_state().await.unwrap().last_log_id, Some(LogId::new_term_index(2, 61)));
    });
}

#[test]
fn an_entry_larger_than_a_segment_gets_a_segment_of_its_own() {
    let dir = TempDir::new().unwrap();
    let config = LogConfig { dir: dir.path().join("log"), ..config(SEGMENT_BYTES, 0) };
    let expected: Vec<Entry> = (1..=6).map(|index| entry(1, index, (index as usize % 2) << 20)).collect();
    for _ in 0..2 {
        let log = Log::open(config.clone(), no_fatal()).unwrap();
        let mut store = log.store(3);
        block_on(async {
            if all(&store).await.is_empty() {
                append(&mut store, expected[..2].to_vec()).await;
                append(&mut store, expected[2..].to_vec()).await;
            }
            assert_eq!(all(&store).await, expected);
            assert_eq!(store.limited_get_log_entries(1, 7).await.unwrap(), expected[..2]);
        });
    }
}

#[test]
fn purged_segments_are_recycled_and_votes_and_marks_outlive_them() {
    let dir = TempDir::new().unwrap();
    let config = LogConfig { dir: dir.path().join("log"), ..config(SEGMENT_BYTES, 100_000) };
    let id = |index| LogId::new_term_index(1, index);
    let last = 1000;
    block_on(async {
        let log = Log::open(config.clone(), no_fatal()).unwrap();
        let (mut quiet, mut busy) = (log.store(1), log.store(2));
        quiet.save_vote(&Vote::new(5, 1)).await.unwrap();
        append(&mut quiet, vec![entry(1, 1, 10)]).await;
        busy.save_vote(&Vote::new_committed(6, 2)).await.unwrap();
        for index in 1..=last {
            append(&mut busy, vec![entry(1, index, 2000)]).await;
            busy.save_committed(Some(id(index))).await.unwrap();
            if index == 200 {
                quiet.purge(id(1)).await.unwrap();
            }
            if index % 50 == 0 {
                busy.purge(id(index - 10)).await.unwrap();
            }
            assert!(index < 300 || log.stats().segments < 6, "{:?}", log.stats());
        }
    });
    let names: Vec<String> = std::fs::read_dir(&config.dir)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.len() < 8, "{names:?}");
    assert!(names.iter().any(|name| name.starts_with("spare-") || name.starts_with("retired-")), "{names:?}");
    block_on(async {
        let log = Log::open(config.clone(), no_fatal()).unwrap();
        let (mut quiet, mut busy) = (log.store(1), log.store(2));
        assert_eq!(quiet.read_vote().await.unwrap(), Some(Vote::new(5, 1)));
        assert_eq!(quiet.get_log_state().await.unwrap().last_log_id, Some(id(1)));
        assert_eq!(busy.read_vote().await.unwrap(), Some(Vote::new_committed(6, 2)));
        assert_eq!(busy.read_committed().await.unwrap(), Some(id(last)));
        assert_eq!(busy.get_log_state().await.unwrap().last_purged_log_id, Some(id(last - 10)));
        assert_eq!(indexes(&all(&busy).await), (last - 9..=last).collect::<Vec<_>>());
    });
}

#[test]
fn marks_that_nobody_waits_for_reach_the_disk_on_an_idle_log() {
    let disk = FaultyDisk::new();
    let log = open(&disk).unwrap();
    let mut store = log.store(0);
    block_on(async {
        append(&mut store, vec![entry(1, 1, 10), entry(1, 2, 10)]).await;
        store.save_committed(Some(LogId::new_term_index(1, 2))).await.unwrap();
        let fsyncs = log.stats().fsyncs;
        while log.stats().fsyncs == fsyncs {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let disk = disk.crash(&mut fastrand::Rng::with_seed(1));
    let log = open(&disk).unwrap();
    assert_eq!(block_on(log.store(0).read_committed()).unwrap(), Some(LogId::new_term_index(1, 2)));
}

#[test]
fn after_a_failed_write_or_sync_nothing_is_acknowledged() {
    for fail in [FaultyDisk::fail_after_syncs, FaultyDisk::fail_after_writes] {
        for operations in 0..6 {
            let disk = FaultyDisk::new();
            let (fatals, acknowledged) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let told = fatals.clone();
            let fatal: Fatal = Arc::new(move |_| {
                told.fetch_add(1, Ordering::SeqCst);
            });
            let config = LogConfig { spare_segments: 0, ..config(SEGMENT_BYTES, 0) };
            let log = Log::open_on(Arc::new(disk.clone()), config, fatal).unwrap();
            fail(&disk, operations);
            let mut store = log.store(0);
            block_on(async {
                for index in 1..20 {
                    let (done, durable) = TypeConfig::oneshot();
                    if store.append(vec![entry(1, index, 10)], IOFlushed::signal(done)).await.is_err() {
                        break;
                    }
                    if let Ok(Ok(())) = durable.await {
                        acknowledged.fetch_add(1, Ordering::SeqCst);
                    }
                }
                assert!(store.save_vote(&Vote::new(1, 1)).await.is_err());
            });
            log.close();
            assert_eq!(fatals.load(Ordering::SeqCst), 1);
            assert!(acknowledged.load(Ordering::SeqCst) as u64 <= operations);
        }
    }
}

/// One segment: the head, then one frame per entry. Also returns the frames' ranges.
pub(super) fn image() -> (BTreeMap<String, Vec<u8>>, Vec<std::ops::Range<usize>>) {
    let disk = FaultyDisk::new();
    let config = LogConfig { spare_segments: 0, ..config(4096, 0) };
    let log = Log::open_on(Arc::new(disk.clone()), config, no_fatal()).unwrap();
    block_on(async {
        let mut store = log.store(0);
        for index in 1..=5 {
            append(&mut store, vec![entry(1, index, 40)]).await;
        }
    });
    log.close();
    let files = disk.files();
    let bytes = &files[&segment_name(1)];
    let (mut at, mut frames) = (0, Vec::new());
    while let Some(header) = frame::header(&bytes[at..], frame::Format::at_front(bytes).unwrap()) {
        let end = at + FRAME_HEADER_BYTES + header.body_bytes as usize;
        frames.push(at..end);
        at = end;
    }
    assert_eq!(frames.len(), 6);
    (files, frames)
}

fn open_image(files: &BTreeMap<String, Vec<u8>>) -> Result<(FaultyDisk, Log), LogError> {
    let disk = FaultyDisk::with(files.clone());
    let config = LogConfig { spare_segments: 0, ..config(4096, 0) };
    let log = Log::open_on(Arc::new(disk.clone()), config, no_fatal())?;
    Ok((disk, log))
}

/// The image opens with entries up to `last`, takes more, and opens again.
fn opens_with(files: &BTreeMap<String, Vec<u8>>, last: u64, what: &str) {
    let (disk, log) = open_image(files).unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut store = log.store(0);
    block_on(async {
        assert_eq!(indexes(&all(&store).await), (1..=last).collect::<Vec<_>>(), "{what}");
        append(&mut store, vec![entry(2, last + 1, 60)]).await;
    });
    log.close();
    let (_, log) = open_image(&disk.files()).unwrap_or_else(|error| panic!("{what}, reopened: {error}"));
    assert_eq!(block_on(all(&log.store(0))).last(), Some(&entry(2, last + 1, 60)), "{what}");
}

#[test]
fn a_tail_torn_at_any_byte_is_cut() {
    let (files, frames) = image();
    opens_with(&files, 5, "whole");
    for (at, frame) in frames.iter().enumerate() {
        let kept = (at as u64).saturating_sub(1);
        for cut in frame.clone() {
            let mut zeroed = files.clone();
            zeroed.get_mut(&segment_name(1)).unwrap()[cut..].fill(0);
            opens_with(&zeroed, kept, &format!("zeros from {cut}"));
            let mut short = files.clone();
            short.get_mut(&segment_name(1)).unwrap().truncate(cut);
            if at >= 4 {
                let is_refused = matches!(open_image(&short), Err(LogError::Corrupted { .. }));
                assert!(is_refused, "no crash shortens a segment, and this one ends at {cut}");
            }
        }
    }
}

#[test]
fn a_flipped_byte_is_refused_below_the_durable_end_and_cut_above() {
    let (files, frames) = image();
    let name = segment_name(1);
    let last = frames.last().unwrap().clone();
    for at in 0..last.start {
        let mut flipped = files.clone();
        flipped.get_mut(&name).unwrap()[at] ^= 0x5a;
        match open_image(&flipped) {
            Err(LogError::Corrupted { offset, .. }) => {
                assert!(
                    frames.iter().any(|frame| frame.start as u64 == offset && frame.contains(&at)),
                    "byte {at}"
                );
            }
            Err(error) => panic!("byte {at}: {error}"),
            Ok(_) => panic!("byte {at}: opened"),
        }
    }
    for at in last {
        let mut flipped = files.clone();
        flipped.get_mut(&name).unwrap()[at] ^= 0x5a;
        opens_with(&flipped, 4, &format!("byte {at} of the last frame"));
    }
}

#[test]
fn a_lost_write_below_the_durable_end_is_refused() {
    let (files, frames) = image();
    for frame in &frames[..frames.len() - 1] {
        let mut lost = files.clone();
        lost.get_mut(&segment_name(1)).unwrap()[frame.clone()].fill(0);
        assert!(matches!(open_image(&lost), Err(LogError::Corrupted { .. })), "{frame:?}");
    }
}

/// Several segments, the oldest purged away, and the marker of the newest.
pub(super) fn long_image() -> BTreeMap<String, Vec<u8>> {
    let disk = FaultyDisk::new();
    let config = LogConfig { spare_segments: 0, ..config(4096, 0) };
    let log = Log::open_on(Arc::new(disk.clone()), config, no_fatal()).unwrap();
    block_on(async {
        let mut store = log.store(0);
        for index in 1..=30 {
            append(&mut store, vec![entry(1, index, 700)]).await;
        }
        store.purge(LogId::new_term_index(1, 12)).await.unwrap();
        append(&mut store, vec![entry(1, 31, 10)]).await;
    });
    log.close();
    disk.files()
}

#[test]
fn a_missing_or_damaged_segment_is_refused() {
    let files = long_image();
    assert!(files.len() >= 4 && !files.contains_key(&segment_name(1)), "{:?}", files.keys());
    let open = |files: &BTreeMap<String, Vec<u8>>| {
        open_image(files).map(|(_, log)| indexes(&block_on(all(&log.store(0)))))
    };
    assert_eq!(open(&files).unwrap(), (13..=31).collect::<Vec<_>>());
    let newest = files.keys().rfind(|name| name.ends_with(".log")).unwrap();
    for name in files.keys().filter(|name| name.ends_with(".log")) {
        let mut missing = files.clone();
        missing.remove(name);
        assert!(matches!(open(&missing), Err(LogError::Corrupted { .. })), "{name} is missing");
        if name == newest {
            continue;
        }
        for at in (0..files[name].len()).filter(|at| files[name][*at] != 0).step_by(37) {
            let mut flipped = files.clone();
            flipped.get_mut(name).unwrap()[at] ^= 1;
            assert!(matches!(open(&flipped), Err(LogError::Corrupted { .. })), "byte {at} of {name}");
        }
    }
}

#[test]
fn stale_content_of_a_recycled_segment_is_not_read() {
    let mut files = long_image();
    let newest = files.keys().rfind(|name| name.ends_with(".log")).unwrap().clone();
    let stale = files.first_key_value().unwrap().1.clone();
    let newest = files.get_mut(&newest).unwrap();
    let end = newest.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let room = newest.len() - end;
    newest[end..].copy_from_slice(&stale[..room]);
    let (disk, log) = open_image(&files).unwrap();
    block_on(async {
        let mut store = log.store(0);
        assert_eq!(indexes(&all(&store).await), (13..=31).collect::<Vec<_>>());
        append(&mut store, vec![entry(1, 32, 5)]).await;
    });
    log.close();
    let (_, log) = open_image(&disk.files()).unwrap();
    assert_eq!(block_on(all(&log.store(0))).len(), 20);
}

/// The state of a group's log, for comparison.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
}

async fn model_of(store: &LogStore) -> Model {
    let mut store = store.clone();
    let entries = all(&store).await.into_iter().map(|entry| (entry.log_id.index, entry)).collect();
    let purged = store.get_log_state().await.unwrap().last_purged_log_id;
    let (vote, committed) = (store.read_vote().await.unwrap(), store.read_committed().await.unwrap());
    Model { entries, vote, committed, purged }
}

/// Does something to the log and the model, and says when it is durable, if it says so at all.
async fn step(
    rng: &mut fastrand::Rng,
    store: &mut LogStore,
    model: &mut Model,
    term: &mut u64,
) -> Option<impl Future<Output = bool> + use<>> {
    let next = model
        .entries
        .keys()
        .next_back()
        .copied()
        .max(model.purged.map(|id| id.index))
        .map_or(1, |last| last + 1);
    match rng.u8(..20) {
        0 => {
            *term += 1;
            model.vote = Some(Vote::new(*term, 1));
            let (mut store, vote) = (store.clone(), Vote::new(*term, 1));
            let saved = tokio::spawn(async move { store.save_vote(&vote).await.is_ok() });
            // Lets the vote enter the queue before the next step.
            tokio::task::yield_now().await;
            Some(futures::future::Either::Left(async move { saved.await.unwrap() }))
        }
        1 | 2 if !model.entries.is_empty() => {
            let keep = rng.u64(*model.entries.keys().next().unwrap()..next);
            store.truncate_after(Some(model.entries[&keep].log_id)).await.unwrap();
            model.entries.retain(|index, _| *index <= keep);
            *term += 1;
            None
        }
        3 | 4 if !model.entries.is_empty() => {
            let upto = model.entries[&rng.u64(*model.entries.keys().next().unwrap()..next)].log_id;
            store.purge(upto).await.unwrap();
            model.entries.retain(|index, _| *index > upto.index);
            model.purged = Some(upto);
            None
        }
        5..8 if next > 1 => {
            model.committed = Some(LogId::new_term_index(*term, next - 1));
            store.save_committed(model.committed).await.unwrap();
            None
        }
        _ => {
            let count = rng.u64(1..5);
            let entries: Vec<Entry> =
                (next..next + count).map(|index| entry(*term, index, rng.usize(..2000))).collect();
            model.entries.extend(entries.iter().map(|entry| (entry.log_id.index, entry.clone())));
            Some(futures::future::Either::Right(begin_append(store, entries).await))
        }
    }
}

/// After any power cut the log is what it was after some step at or after the last acknowledged one: nothing
/// acknowledged is lost, nothing is reordered, and no later crash brings back what a crash removed.
#[test]
fn a_power_cut_loses_nothing_acknowledged() {
    let seed = crate::kill::seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..12 {
        let mut disk = FaultyDisk::new();
        let (mut model, mut term) = (Model::default(), 1);
        for life in 0..12 {
            let spares = rng.usize(..3);
            let with_spares = LogConfig { spare_segments: spares, ..config(8192, rng.usize(..4) * 4000) };
            let fatal: Fatal = Arc::new(|_| ());
            let opened = Log::open_on(Arc::new(disk.clone()), with_spares, fatal);
            let log = opened.unwrap_or_else(|error| panic!("seed {seed}, life {life}: {error}"));
            let history = block_on(async {
                let mut store = log.store(4);
                assert_eq!(model_of(&store).await, model, "seed {seed}, life {life}");
                let (mut history, mut durable) = (vec![model.clone()], 0);
                let mut pending = futures::stream::FuturesUnordered::new();
                for number in 1..=rng.usize(1..60) {
                    if let Some(done) = step(&mut rng, &mut store, &mut model, &mut term).await {
                        pending.push(async move { (number, done.await) });
                    }
                    history.push(model.clone());
                    while pending.len() > rng.usize(..6) {
                        let (number, is_durable) = pending.next().await.unwrap();
                        assert!(is_durable);
                        durable = durable.max(number);
                    }
                }
                if rng.u8(..4) == 0 {
                    // An orderly close keeps everything.
                    log.close();
                    durable = history.len() - 1;
                }
                history.split_off(durable)
            });
            let after = disk.crash(&mut rng);
            drop(log);
            disk = after;
            let fatal: Fatal = Arc::new(|_| ());
            let config = LogConfig { spare_segments: 0, ..config(8192, 0) };
            let reopened = Log::open_on(Arc::new(FaultyDisk::with(disk.files())), config, fatal);
            let reopened = reopened.unwrap_or_else(|error| panic!("seed {seed}, life {life}: {error}"));
            model = block_on(model_of(&reopened.store(4)));
            assert!(
                history.contains(&model),
                "seed {seed}, life {life}: the log is not what it was after any step since the last acknowledged"
            );
        }
    }
}

mod conformance {
    use std::io;

    use futures::Stream;
    use openraft::{
        OptionalSend, RaftSnapshotBuilder, StorageError,
        storage::{EntryResponder, RaftStateMachine},
        testing::log::{StoreBuilder, Suite},
        type_config::alias::{SnapshotMetaOf, SnapshotOf},
    };

    use super::*;
    use crate::types::{Applied, StoredMembership};

    /// As little of a state machine as the suite accepts.
    #[derive(Clone, Default)]
    struct Machine {
        applied: Option<LogId>,
        membership: StoredMembership,
    }

    impl RaftSnapshotBuilder<TypeConfig> for Machine {
        type SnapshotData = ();

        async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, ()>, io::Error> {
            let meta = SnapshotMetaOf::<TypeConfig> {
                last_log_id: self.applied,
                last_membership: self.membership.clone(),
            };
            Ok(SnapshotOf::<TypeConfig, ()> { meta, snapshot: () })
        }
    }

    impl RaftStateMachine<TypeConfig> for Machine {
        type SnapshotData = ();
        type SnapshotBuilder = Machine;

        async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
            Ok((self.applied, self.membership.clone()))
        }

        async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
        where
            S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
        {
            while let Some(item) = entries.next().await {
                let (entry, responder) = item?;
                self.applied = Some(entry.log_id);
                if let EntryPayload::Membership(membership) = entry.payload {
                    self.membership = StoredMembership::new(self.applied, membership);
                }
                if let Some(responder) = responder {
                    responder.send(Applied);
                }
            }
            Ok(())
        }

        async fn get_snapshot_builder(&mut self) -> Machine {
            self.clone()
        }

        async fn install_snapshot(
            &mut self,
            meta: &SnapshotMetaOf<TypeConfig>,
            (): (),
        ) -> Result<(), io::Error> {
            self.applied = meta.last_log_id;
            self.membership = meta.last_membership.clone();
            Ok(())
        }

        async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, ()>>, io::Error> {
            if self.applied.is_none() { Ok(None) } else { self.build_snapshot().await.map(Some) }
        }
    }

    struct Builder {
        cache_bytes: usize,
    }

    impl StoreBuilder<TypeConfig, LogStore, Machine, Log> for Builder {
        async fn build(&self) -> Result<(Log, LogStore, Machine), StorageError<TypeConfig>> {
            let disk: Arc<dyn Disk> = Arc::new(FaultyDisk::new());
            let log = Log::open_on(disk, config(SEGMENT_BYTES, self.cache_bytes), no_fatal()).unwrap();
            let store = log.store(0);
            Ok((log, store, Machine::default()))
        }
    }

    #[test]
    fn openraft_suite_with_entries_cached() {
        block_on(Suite::test_all(Builder { cache_bytes: 1 << 20 })).unwrap();
    }

    #[test]
    fn openraft_suite_with_entries_on_disk() {
        block_on(Suite::test_all(Builder { cache_bytes: 0 })).unwrap();
    }
}
