//! What the format of the log's files promises: content never passes for structure, earlier formats are read,
//! and files have the size that they record.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures::TryStreamExt;
use openraft::{
    EntryPayload, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
    type_config::TypeConfigExt,
};

use super::{
    Log, LogConfig, LogError,
    faulty::FaultyDisk,
    frame::{self, Format, Kind},
    segment::{salt_of, segment_name},
    tests::{all, append},
};
use crate::types::{Entry, LogId, Payload, TypeConfig};

type Files = BTreeMap<String, Vec<u8>>;

const SEGMENT_BYTES: u64 = 1 << 16;

fn config(segment_bytes: u64) -> LogConfig {
    LogConfig {
        dir: "/log".into(),
        segment_bytes,
        cache_bytes: 0,
        spare_segments: 0,
        space: crate::space::unknown(),
    }
}

fn open_sized(files: Files, segment_bytes: u64) -> Result<(FaultyDisk, Log), LogError> {
    let disk = FaultyDisk::with(files);
    let log = Log::open_on(Arc::new(disk.clone()), config(segment_bytes), Arc::new(|why| panic!("{why}")))?;
    Ok((disk, log))
}

fn open(files: Files) -> Result<(FaultyDisk, Log), LogError> {
    open_sized(files, SEGMENT_BYTES)
}

fn entry(index: u64, content: Vec<u8>) -> Entry {
    let payload = EntryPayload::Normal(Payload(Bytes::from(content)));
    Entry { log_id: LogId::new_term_index(1, index), payload }
}

/// The files after these entries, one batch each.
async fn written(mut files: Files, segment_bytes: u64, entries: &[Entry]) -> Files {
    let (disk, log) = open_sized(std::mem::take(&mut files), segment_bytes).unwrap();
    for entry in entries {
        append(&mut log.store(0), vec![entry.clone()]).await;
    }
    log.close();
    disk.files()
}

async fn entries_of(files: Files, segment_bytes: u64) -> Result<Vec<Entry>, LogError> {
    let (_, log) = open_sized(files, segment_bytes)?;
    Ok(all(&log.store(0)).await)
}

fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// Headers of all formats for segment 1 that say that everything was durable.
fn forged() -> Vec<u8> {
    let formats =
        [Format::One, Format::Two { salt: 0 }, Format::Two { salt: u64::MAX }, Format::Two { salt: 7 }];
    let mut out = Vec::new();
    for format in formats {
        let mut header = vec![0; format.header_bytes()];
        frame::seal(&mut header, format, 1, 1 << 63, (1 << 63) - 1);
        out.extend_from_slice(&header);
    }
    out
}

#[tokio::test]
async fn headers_in_the_content_of_a_torn_frame_are_not_believed() {
    let first = entry(1, b"written".to_vec());
    let mut files = written(Files::new(), SEGMENT_BYTES, std::slice::from_ref(&first)).await;
    // A client has learnt everything but this directory's salt.
    let content = forged().repeat(20);
    files = written(files, SEGMENT_BYTES, &[entry(2, content)]).await;
    let segment = files.get_mut(&segment_name(1)).unwrap();
    let end = used(segment);
    // The power fails before the last sector is written.
    segment[end - 512..end].fill(0);
    assert_eq!(entries_of(files, SEGMENT_BYTES).await.unwrap(), [first]);
}

/// The same log as written in format 1.
fn in_format_1(mut files: Files) -> Files {
    files.retain(|name, _| salt_of(name).is_none());
    for (name, bytes) in &mut files {
        let Some(number) = super::segment::segment_of(name) else { continue };
        let format = Format::at_front(bytes).unwrap();
        let (mut out, mut at) = (Vec::new(), 0);
        while let Ok((header, body)) = frame::frame(bytes, at, format, number, None) {
            let mut frame = vec![0; Format::One.header_bytes()];
            let first = frame::record(body).map(|record| record.kind);
            let skipped = if first == Ok(Kind::Size) { frame::SIZE_RECORD_BYTES } else { 0 };
            frame.extend_from_slice(&body[skipped..]);
            frame::seal(&mut frame, Format::One, number, header.batch, header.synced);
            out.extend_from_slice(&frame);
            at += format.header_bytes() + body.len();
        }
        out.resize(bytes.len(), 0);
        *bytes = out;
    }
    files
}

#[tokio::test]
async fn a_directory_of_format_1_is_read_and_goes_on_in_format_2() {
    let mut expected: Vec<Entry> = (1..=200).map(|index| entry(index, vec![7; 900])).collect();
    let mut files = in_format_1(written(Files::new(), SEGMENT_BYTES, &expected).await);
    assert!(files.len() > 3, "several segments and the marker");
    for round in 0..3 {
        assert_eq!(entries_of(files.clone(), SEGMENT_BYTES).await.unwrap(), expected, "round {round}");
        let next = entry(expected.len() as u64 + 1, vec![8; 900]);
        files = written(files, SEGMENT_BYTES, std::slice::from_ref(&next)).await;
        expected.push(next);
    }
    let formats: Vec<u8> = files
        .iter()
        .filter(|(name, _)| super::segment::segment_of(name).is_some())
        .map(|(_, bytes)| bytes[3])
        .collect();
    assert!(formats.is_sorted() && formats.contains(&1) && formats.last() == Some(&2), "{formats:?}");
    assert_eq!(formats.iter().filter(|format| **format == 2).count(), 1, "it rolls once: {formats:?}");
}

#[tokio::test]
async fn damage_in_the_last_segment_of_format_1_is_noticed_also_after_the_directory_was_marked() {
    let entries: Vec<Entry> = (1..=5).map(|index| entry(index, vec![7; 900])).collect();
    let files = in_format_1(written(Files::new(), SEGMENT_BYTES, &entries).await);
    // Opened, and nothing written.
    let (disk, log) = open(files).unwrap();
    log.close();
    let mut files = disk.files();
    assert!(files.keys().any(|name| salt_of(name).is_some()));
    files.get_mut(&segment_name(1)).unwrap()[20] ^= 1;
    assert!(matches!(open(files), Err(LogError::Corrupted { .. })));
}

/// The power fails at every sync of the change to format 2, and the first content written looks like frames
/// of format 1.
#[tokio::test]
async fn content_behind_a_torn_head_of_the_first_segment_of_format_2_is_not_believed() {
    let entries: Vec<Entry> = (1..=5).map(|index| entry(index, vec![7; 900])).collect();
    let old = in_format_1(written(Files::new(), SEGMENT_BYTES, &entries).await);
    let mut header = vec![0; Format::One.header_bytes()];
    frame::seal(&mut header, Format::One, 2, 1 << 63, (1 << 63) - 1);
    let content = entry(6, header.repeat(100));
    let mut rng = fastrand::Rng::with_seed(7);
    let mut torn_heads = 0;
    for round in 0..200 {
        let disk = FaultyDisk::with(old.clone());
        let log = Log::open_on(Arc::new(disk.clone()), config(SEGMENT_BYTES), Arc::new(|_| ())).unwrap();
        disk.fail_after_syncs(round % 6);
        let (done, durable) = TypeConfig::oneshot();
        let accepted =
            log.store(0).append(std::iter::once(content.clone()), IOFlushed::signal(done)).await.is_ok();
        let is_durable = accepted && durable.await.is_ok_and(|result| result.is_ok());
        log.close();
        let files = disk.crash(&mut rng).files();
        let new = files.get(&segment_name(2));
        torn_heads += u32::from(new.is_some_and(|new| Format::at_front(new).is_none()));
        let found = entries_of(files, SEGMENT_BYTES).await.unwrap();
        assert!(
            found.starts_with(&entries) && (!is_durable || found.len() == 6),
            "round {round}: {}",
            found.len()
        );
    }
    assert!(torn_heads > 10, "{torn_heads}");
}

#[tokio::test]
async fn a_full_segment_is_whole_however_large_segments_are_to_be_from_here_on() {
    let entries: Vec<Entry> = (1..=3).map(|index| entry(index, vec![7; 900])).collect();
    let files = written(Files::new(), SEGMENT_BYTES, &entries).await;
    let full = used(&files[&segment_name(1)]) as u64;
    let files = written(Files::new(), full, &entries).await;
    assert_eq!(files[&segment_name(1)].len() as u64, full);
    assert_eq!(entries_of(files.clone(), 2 * full).await.unwrap(), entries);
    // Format 1 does not say how large a file was: another one of that size does.
    let more: Vec<Entry> = (4..=6).map(|index| entry(index, vec![7; 850])).collect();
    let earlier = in_format_1(written(files.clone(), full, &more).await);
    assert_eq!(entries_of(earlier, 2 * full).await.unwrap().len(), 6);
    // A file that lost its last frame is still detected.
    let mut cut = files;
    let frame_bytes = frame::FRAME_HEADER_BYTES + frame::RECORD_HEADER_BYTES + 1 + 900;
    cut.get_mut(&segment_name(1)).unwrap().truncate(full as usize - frame_bytes);
    assert!(matches!(open_sized(cut, 2 * full), Err(LogError::Corrupted { .. })));
}

#[tokio::test]
async fn a_tail_that_does_not_agree_with_the_checkpoint_is_cut() {
    let id = LogId::new_term_index;
    let entries: Vec<Entry> = (1..=10).map(|index| entry(index, vec![7; 100])).collect();
    for (applied, last, kept) in [
        // The truncation of entries 8 to 10 of term 1 was not durable when the checkpoint of the ninth of
        // term 2 was.
        (id(2, 9), id(2, 9), 0),
        (id(1, 9), id(1, 10), 10),
        (id(2, 12), id(1, 10), 10),
    ] {
        let files = written(Files::new(), SEGMENT_BYTES, &entries).await;
        let (disk, log) = open(files).unwrap();
        log.store(0).agree_with(applied).await.unwrap();
        let mut store = log.store(0);
        assert_eq!(store.get_log_state().await.unwrap().last_log_id, Some(last), "applied {applied}");
        log.close();
        let (_, log) = open(disk.files()).unwrap();
        let mut store = log.store(0);
        assert_eq!(
            store.get_log_state().await.unwrap().last_log_id,
            Some(last),
            "applied {applied}, reopened"
        );
        assert_eq!(store.try_get_log_entries(..).await.unwrap().len(), kept);
    }
}

#[tokio::test]
async fn a_stream_of_entries_does_not_begin_behind_a_gap() {
    let entries: Vec<Entry> = (1..=20).map(|index| entry(index, vec![7; 100])).collect();
    let (_, log) = open(written(Files::new(), SEGMENT_BYTES, &entries).await).unwrap();
    let mut store = log.store(0);
    store.purge(LogId::new_term_index(1, 10)).await.unwrap();
    let streamed: Result<Vec<Entry>, _> = store.entries_stream(8..13).await.try_collect().await;
    assert!(streamed.is_err(), "{streamed:?}");
    let streamed: Vec<Entry> = store.entries_stream(11..).await.try_collect().await.unwrap();
    assert_eq!(streamed, entries[10..]);
}
