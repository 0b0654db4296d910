//! The way back from the disk with hostile bytes: no panic; what opens once opens again with the same content, all of
//! whose entries can be read; and what is shown of a log that does not open takes no more memory than the log.

use std::{collections::BTreeMap, collections::HashMap, sync::Arc};

use kvorum_fuzz::{bounded, fuzz};

use super::{
    disk::{Disk, DiskFile},
    faulty::FaultyDisk,
    frame::{self, Format, GroupState, RECORD_HEADER_BYTES},
    recovery::{self, Recovered},
    salvage,
    segment::{salt_name, segment_name},
    store::read_positions,
    tests::{config, image, long_image},
};
use crate::machine::GroupId;

const SEGMENT_BYTES: usize = 4096;
const SALT: u64 = 77;
const GROUP: GroupId = 0;

/// Segments, their positions, and the disk's own copy.
const PER_BYTE: usize = 32;
const FIXED: usize = 256 << 10;

type Files = BTreeMap<String, Vec<u8>>;

/// The states, and where the entries are.
fn content(recovered: &Recovered) -> BTreeMap<GroupId, (GroupState, u64, Vec<super::group::Position>)> {
    let found = recovered.logs.iter().map(|(group, log)| {
        let found = log.find(0..u64::MAX, u64::MAX);
        let state = recovered.states.get(group).cloned().unwrap_or_default();
        (*group, (state, found.first, found.on_disk))
    });
    found.collect()
}

fn check(files: Files) {
    let bytes = files.values().map(Vec::len).sum();
    let disk = FaultyDisk::with(files);
    let config = config(SEGMENT_BYTES as u64, 0);
    let salvaged = bounded(bytes, PER_BYTE, FIXED, || salvage::salvage(&disk, GROUP)).unwrap();
    let Ok(recovered) = bounded(bytes, PER_BYTE, FIXED, || recovery::recover(&disk, &config)) else { return };
    let found = content(&recovered);
    let again = recovery::recover(&disk, &config).unwrap_or_else(|error| panic!("the second time: {error}"));
    assert_eq!(content(&again), found);
    let files: HashMap<u64, Arc<dyn DiskFile>> =
        recovered.segments.iter().map(|(number, segment)| (*number, segment.file.clone())).collect();
    for (group, (_, first, positions)) in &found {
        // The content of an entry may be nonsense, but it is where it should be.
        if let Err(error) = read_positions(&files, *group, *first, positions) {
            assert!(!error.to_string().contains("another record"), "{error}");
        }
    }
    if salvaged.skipped.is_empty()
        && let Some((_, first, positions)) = found.get(&GROUP)
    {
        let salvaged: Vec<_> = salvaged.positions.into_iter().collect();
        assert_eq!(salvaged, (*first..).zip(positions.iter().copied()).collect::<Vec<_>>());
    }
}

/// Segments one after the other, behind the number of the first.
fn flat(files: &Files) -> Vec<u8> {
    let segments: Vec<_> = files.iter().filter(|(name, _)| name.ends_with(".log")).collect();
    let first = segments[0].0.trim_start_matches('0').trim_end_matches(".log").parse::<u8>().unwrap();
    let mut out = vec![first];
    segments.iter().for_each(|(_, bytes)| out.extend_from_slice(bytes));
    out
}

/// Reverses `flat`. The last segment has a whole file.
fn files(bytes: &[u8]) -> Files {
    let Some((first, segments)) = bytes.split_first() else { return Files::new() };
    let mut files = Files::new();
    for (number, bytes) in (u64::from(*first).max(1)..).zip(segments.chunks(SEGMENT_BYTES)) {
        let mut bytes = bytes.to_vec();
        bytes.resize(SEGMENT_BYTES, 0);
        files.insert(segment_name(number), bytes);
    }
    files
}

#[test]
fn segments() {
    let seeds = [image().0, long_image()];
    for seed in &seeds {
        assert_eq!(
            content(&recovery::recover(&FaultyDisk::with(files(&flat(seed))), &config(4096, 0)).unwrap())
                .len(),
            1
        );
    }
    fuzz("log_segments", seeds.iter().map(flat).collect(), |bytes| check(files(bytes)));
}

/// Makes frames of what is taken for records: their lengths and their checksums are made right, all else stays.
fn sealed(mut bytes: &[u8]) -> Files {
    let format = Format::Two { salt: SALT };
    let (mut files, mut segment) = (Files::new(), vec![]);
    let mut place = |frame: &[u8], batch: u64| {
        let number = files.len() as u64 + 1;
        let mut frame = frame.to_vec();
        frame::seal(&mut frame, format, number, batch, batch - 1);
        segment.extend_from_slice(&frame);
        if segment.len() > SEGMENT_BYTES / 2 {
            files.insert(segment_name(number), std::mem::take(&mut segment));
        }
    };
    for batch in 1.. {
        let Some(head) = bytes.get(..RECORD_HEADER_BYTES) else { break };
        let told = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let payload = told.min(bytes.len() - RECORD_HEADER_BYTES).min(SEGMENT_BYTES / 4);
        let (record, rest) = bytes.split_at(RECORD_HEADER_BYTES + payload);
        let mut frame = vec![0; format.header_bytes()];
        frame.extend_from_slice(record);
        let at = format.header_bytes();
        frame[at..at + 4].copy_from_slice(&(payload as u32).to_le_bytes());
        let crc = crc32fast::hash(&frame[at + 8..]);
        frame[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        place(&frame, batch);
        bytes = rest;
    }
    let number = files.len() as u64 + 1;
    files.insert(segment_name(number), segment);
    files.values_mut().for_each(|bytes| bytes.resize(SEGMENT_BYTES, 0));
    files.insert(salt_name(SALT), vec![0]);
    files
}

/// The records of all segments.
fn records(files: &Files) -> Vec<u8> {
    let mut out = Vec::new();
    for bytes in files.iter().filter(|(name, _)| name.ends_with(".log")).map(|(_, bytes)| bytes) {
        let format = Format::at_front(bytes).unwrap();
        let mut at = 0;
        while let Some(header) = frame::header(&bytes[at..], format) {
            let from = at + format.header_bytes();
            at = from + header.body_bytes as usize;
            out.extend_from_slice(&bytes[from..at]);
        }
    }
    out
}

#[test]
fn records_with_the_right_checksums() {
    let (files, _) = image();
    let disk = FaultyDisk::with(sealed(&records(&files)));
    assert!(disk.list().unwrap().len() > 1);
    assert_eq!(content(&recovery::recover(&disk, &config(4096, 0)).unwrap())[&GROUP].2.len(), 5);
    let seeds = vec![records(&files), records(&long_image())];
    fuzz("log_records", seeds, |bytes| check(sealed(bytes)));
}
