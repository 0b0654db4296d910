//! Opening a log: reads all segments in order, follows the chain of frames to its end, and decides whether what
//! stands behind the end is a write that a crash cut short, or damage.
//!
//! The rule: the chain ends at the first frame that is not the one expected. When any undamaged header behind it,
//! in its segment or a later one, says that the expected batch was durable, something durable is gone: that is
//! `LogError::Corrupted`, and nothing on disk is touched. Else nobody was told that it was durable, and the tail
//! is zeroed, so that it can never be taken for what is written there later.
//!
//! A file that ends where a frame goes on, or begins no other, lost its end, if one of its frames says that an earlier
//! one of them was durable: so was the file's whole size then, and no crash shortens it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    LogConfig, LogError,
    disk::{Disk, DiskFile},
    frame::{self, BadFrame, GroupState, Kind, Record},
    group::{GroupLog, Position},
    segment::{self, Spare},
    writer::Segment,
};
use crate::{
    codec::{self, Reader},
    machine::GroupId,
    types::LogId,
};

/// What was found.
#[derive(Default)]
pub(super) struct Recovered {
    pub(super) segments: BTreeMap<u64, Segment>,
    /// Where the next frame goes in the last segment.
    pub(super) offset: u64,
    /// The last batch.
    pub(super) batch: u64,
    pub(super) states: BTreeMap<GroupId, GroupState>,
    pub(super) logs: BTreeMap<GroupId, GroupLog>,
    pub(super) spares: Vec<Spare>,
    /// The newest segment by its marker; None while there was never a second one.
    pub(super) marked: Option<u64>,
    /// How large segments are now.
    segment_bytes: u64,
    /// Entries that the oldest segment says exist before it, by group: purges must cover them.
    before_oldest: HashMap<GroupId, u64>,
}

/// Whether a segment whose chain of frames ends at `offset` lost the end of its file.
fn is_cut_short(content: &[u8], offset: usize, bad: &BadFrame, segment_bytes: u64) -> bool {
    let rest = &content[offset..];
    matches!(bad, BadFrame::Length)
        || rest.len() < frame::FRAME_HEADER_BYTES && rest.iter().any(|byte| *byte != 0)
        || rest.is_empty() && (content.len() as u64) < segment_bytes
}

/// A place where the chain of frames ends.
struct End {
    segment: u64,
    offset: usize,
    /// Why there is no frame.
    reason: String,
    /// The highest batch that anything behind this place says is durable.
    synced_behind: u64,
}

/// Reads the log, cuts its torn tail, and removes what means nothing.
pub(super) fn recover(disk: &dyn Disk, config: &LogConfig) -> Result<Recovered, LogError> {
    let io = |context: &str| {
        let context = context.to_owned();
        move |source| LogError::Io { context, source }
    };
    let mut recovered = Recovered { segment_bytes: config.segment_bytes, ..Recovered::default() };
    let mut files = BTreeMap::new();
    for (name, bytes) in disk.list().map_err(io("list the log directory"))? {
        if let Some(number) = segment::segment_of(&name) {
            files.insert(number, bytes);
        } else if segment::is_spare(&name) {
            if bytes == config.segment_bytes && recovered.spares.len() < config.spare_segments {
                let file = disk.open(&name).map_err(io("open a spare segment"))?;
                recovered.spares.push(Spare { name, file });
            } else {
                disk.remove(&name).map_err(io("remove a spare segment"))?;
            }
        } else if let Some(newest) = segment::newest_of(&name) {
            recovered.marked = Some(newest);
        } else if segment::is_temporary(&name) {
            disk.remove(&name).map_err(io("remove a temporary file"))?;
        }
    }
    check_no_gap(disk, files.keys().copied())?;
    let newest = files.keys().next_back().copied().unwrap_or(0);
    if let Some(marked) = recovered.marked.filter(|marked| *marked > newest) {
        return Err(corrupted(disk, marked, 0, "the newest segment is missing".to_owned()));
    }
    let end = recovered.replay_all(disk, files)?;
    if let Some(end) = end {
        recovered.cut(disk, end)?;
    }
    recovered.check_purged(disk)?;
    if let Some(last) = recovered.segments.values().next_back() {
        last.file.sync().map_err(io("sync the last segment"))?;
    }
    disk.sync_dir().map_err(io("sync the log directory"))?;
    Ok(recovered)
}

fn check_no_gap(disk: &dyn Disk, mut numbers: impl Iterator<Item = u64>) -> Result<(), LogError> {
    let Some(mut previous) = numbers.next() else { return Ok(()) };
    for number in numbers {
        if number != previous + 1 {
            return Err(corrupted(disk, previous + 1, 0, "the segment is missing".to_owned()));
        }
        previous = number;
    }
    Ok(())
}

fn corrupted(disk: &dyn Disk, segment: u64, offset: usize, detail: String) -> LogError {
    LogError::Corrupted { file: disk.path(&segment::segment_name(segment)), offset: offset as u64, detail }
}

impl Recovered {
    /// Replays all segments. Returns where the chain ends, if it was followed at all.
    fn replay_all(&mut self, disk: &dyn Disk, files: BTreeMap<u64, u64>) -> Result<Option<End>, LogError> {
        let oldest = files.keys().next().copied();
        let mut end: Option<End> = None;
        for (number, bytes) in files {
            let io = |source| LogError::Io { context: format!("read log segment {number}"), source };
            let file = disk.open(&segment::segment_name(number)).map_err(io)?;
            let mut content = vec![0; usize::try_from(bytes).expect("a segment fits memory")];
            file.read_at(&mut content, 0).map_err(io)?;
            // Only the oldest segment can begin with any batch, and only when it is not the very first.
            let expected = if Some(number) == oldest && number > 1 { None } else { Some(self.batch + 1) };
            let begins = frame::frame(&content, 0, number, expected);
            let is_continued = begins.is_ok() && end.as_ref().is_none_or(|end| end.segment + 1 == number);
            if let (Some(end), false) = (&mut end, is_continued) {
                let synced = frame::highest_synced(&content, 0, number).unwrap_or(0);
                end.synced_behind = end.synced_behind.max(synced);
                // Known without a place in the chain, so that `cut` removes it.
                self.segments.insert(number, Segment { file, bytes, last_indexes: HashMap::new() });
                continue;
            }
            if let (Err(bad), None) = (&begins, expected) {
                return Err(corrupted(disk, number, 0, format!("the oldest segment is damaged: {bad}")));
            }
            end = Some(self.replay(disk, number, file, &content, expected, Some(number) == oldest)?);
        }
        Ok(end)
    }

    /// Replays one segment to the end of its chain.
    fn replay(
        &mut self,
        disk: &dyn Disk,
        number: u64,
        file: Arc<dyn DiskFile>,
        content: &[u8],
        mut expected: Option<u64>,
        is_oldest: bool,
    ) -> Result<End, LogError> {
        let bytes = content.len() as u64;
        self.segments.insert(number, Segment { file, bytes, last_indexes: HashMap::new() });
        // The first batch here, and up to which one frames here say that batches were durable.
        let (mut offset, mut first, mut synced) = (0, None, 0);
        loop {
            let (header, body) = match frame::frame(content, offset, number, expected) {
                Ok(frame) => frame,
                Err(bad) => {
                    let reason = bad.to_string();
                    let synced_behind = frame::highest_synced(content, offset, number).unwrap_or(0);
                    let was_synced = first.is_some_and(|first| synced >= first);
                    if was_synced && is_cut_short(content, offset, &bad, self.segment_bytes) {
                        return Err(corrupted(
                            disk,
                            number,
                            offset,
                            "the end of the file is missing".to_owned(),
                        ));
                    }
                    self.offset = offset as u64;
                    return Ok(End { segment: number, offset, reason, synced_behind });
                }
            };
            let mut at = 0;
            while at < body.len() {
                let place = offset + frame::FRAME_HEADER_BYTES + at;
                let bad = |detail: String| corrupted(disk, number, place, detail);
                let record = frame::record(&body[at..]).map_err(|error| bad(error.to_string()))?;
                self.take(number, place, &record, is_oldest && offset == 0).map_err(bad)?;
                at += record.bytes();
            }
            first = first.or(Some(header.batch));
            synced = synced.max(header.synced);
            self.batch = header.batch;
            expected = Some(header.batch + 1);
            offset += frame::FRAME_HEADER_BYTES + body.len();
        }
    }

    /// Takes one record. An error is a contradiction that no crash can cause.
    fn take(
        &mut self,
        segment: u64,
        place: usize,
        record: &Record<'_>,
        is_oldest_head: bool,
    ) -> Result<(), String> {
        let group = record.group;
        let state = self.states.entry(group).or_default();
        let log = self.logs.entry(group).or_default();
        let unused = Default::default();
        let mut reader = Reader::new(record.payload);
        let invalid = |error: codec::CodecError| error.to_string();
        match record.kind {
            Kind::Entry => {
                if !log.continues_with(record.index) {
                    return Err(format!(
                        "entry {} of group {group} does not follow the last one",
                        record.index
                    ));
                }
                let narrow =
                    |value: u64| u32::try_from(value).map_err(|_| "a number is too large".to_owned());
                let position = Position {
                    term: record.term,
                    segment: narrow(segment)?,
                    offset: narrow(place as u64)?,
                    bytes: narrow(record.bytes() as u64)?,
                };
                log.append_placed(record.index, position);
                state.last_index = Some(record.index);
                let segment = self.segments.get_mut(&segment).expect("replay inserts the segment first");
                let highest = segment.last_indexes.entry(group).or_default();
                *highest = record.index.max(*highest);
            }
            Kind::Vote => state.vote = Some(codec::vote(&mut reader).map_err(invalid)?),
            Kind::Commit => state.committed = codec::log_id_option(&mut reader).map_err(invalid)?,
            Kind::TruncateAfter => {
                let last = codec::log_id_option(&mut reader).map_err(invalid)?;
                state.truncate_after(last);
                log.truncate_after(last, &unused);
                match (self.before_oldest.get_mut(&group), last) {
                    (Some(before), Some(last)) => *before = last.index.min(*before),
                    (Some(_), None) => drop(self.before_oldest.remove(&group)),
                    (None, _) => (),
                }
            }
            Kind::Purge => {
                let upto = LogId::new_term_index(record.term, record.index);
                state.purge(upto);
                log.purge(upto, &unused);
            }
            Kind::State => {
                let told = GroupState::decode(record.payload).map_err(invalid)?;
                if is_oldest_head {
                    if let Some(last) = told.last_index {
                        self.before_oldest.insert(group, last);
                    }
                    if let Some(purged) = told.purged {
                        log.purge(purged, &unused);
                    }
                    *state = told;
                } else if *state != told {
                    return Err(format!("the state of group {group} does not follow from earlier segments"));
                }
            }
        }
        Ok(())
    }

    /// Judges what stands behind the chain's end, and removes it if a crash can have left it.
    fn cut(&mut self, disk: &dyn Disk, end: End) -> Result<(), LogError> {
        if end.synced_behind > self.batch {
            let detail = format!(
                "{}, but batch {} was expected here, and a later frame says that batches up to {} were durable",
                end.reason,
                self.batch + 1,
                end.synced_behind
            );
            return Err(corrupted(disk, end.segment, end.offset, detail));
        }
        let io = |context: &'static str| {
            move |source| LogError::Io { context: format!("{context} log segment {}", end.segment), source }
        };
        // What is kept; a segment without a single frame is not.
        let newest = if end.offset > 0 { end.segment } else { end.segment - 1 };
        if let Some(marked) = self.marked.filter(|marked| *marked > newest) {
            segment::mark_newest(disk, Some(marked), newest).map_err(io("mark"))?;
            disk.sync_dir().map_err(io("sync the directory of"))?;
            self.marked = Some(newest);
        }
        // The newest first: a crash in between must not leave a gap.
        while let Some(newest) = self.segments.last_entry().filter(|newest| *newest.key() > end.segment) {
            let (number, _) = newest.remove_entry();
            disk.remove(&segment::segment_name(number)).map_err(io("remove what follows"))?;
            disk.sync_dir().map_err(io("sync the directory of"))?;
        }
        let Some(last) = self.segments.get(&end.segment) else { return Ok(()) };
        let mut tail = vec![0; last.bytes as usize - end.offset];
        last.file.read_at(&mut tail, end.offset as u64).map_err(io("read the tail of"))?;
        if let Some(torn) = tail.iter().rposition(|byte| *byte != 0) {
            tracing::warn!(
                segment = end.segment,
                offset = end.offset,
                bytes = torn + 1,
                "cut the log's torn tail"
            );
            tail.truncate(torn + 1);
            tail.fill(0);
            last.file.write_at(&tail, end.offset as u64).map_err(io("cut the tail of"))?;
        }
        // A segment without a single frame is begun anew, with a frame of states.
        if end.offset == 0 {
            self.segments.remove(&end.segment);
            disk.remove(&segment::segment_name(end.segment)).map_err(io("remove the empty"))?;
        }
        Ok(())
    }

    /// Checks that no entry before the oldest segment is still needed, and completes the groups' logs.
    fn check_purged(&mut self, disk: &dyn Disk) -> Result<(), LogError> {
        let Some(oldest) = self.segments.keys().next().copied() else { return Ok(()) };
        for (group, last) in &self.before_oldest {
            let purged = self.states.get(group).and_then(|state| state.purged);
            if purged.is_none_or(|purged| purged.index < *last) {
                let detail = format!("entries of group {group} up to {last} are missing before this segment");
                return Err(corrupted(disk, oldest, 0, detail));
            }
        }
        for (group, log) in &mut self.logs {
            let state = self.states.get(group).cloned().unwrap_or_default();
            (log.vote, log.committed, log.purged) = (state.vote, state.committed, state.purged);
        }
        Ok(())
    }
}
