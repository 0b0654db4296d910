//! Opening a log: reads all segments in order, follows the chain of frames to its end, and decides whether
//! what lies beyond the end is a write that a crash cut short, or damage.
//!
//! The rule: the chain ends at the first frame that is not the one expected. If any undamaged header beyond
//! it, in its segment or a later one, says that the expected batch was durable, something durable is gone:
//! that is `LogError::Corrupted`, and nothing on disk is touched. Otherwise nobody was told that it was
//! durable, and the tail is zeroed, so that it can never be taken for what is written there later.
//!
//! A header beyond the end may be the content of a value that a client wrote, in the body of a torn frame. So
//! only headers with the directory's salt count, which is on no other disk. In a segment of format 1, which
//! has no salt, all count.
//!
//! A file that ends within a frame, or is too short although no other frame begins, has lost its end, if one
//! of its frames says that an earlier one of them was durable: the file's whole size was durable then, and no
//! crash shortens it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    LogConfig, LogError,
    disk::{Disk, DiskFile},
    frame::{self, BadFrame, Format, GroupState, Kind, Record},
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
    /// The newest segment according to its marker; None if there never was a second one.
    pub(super) marked: Option<u64>,
    /// The directory's salt; None if it has none yet.
    pub(super) salt: Option<u64>,
    /// Whether the salt's file is there.
    pub(super) is_salt_marked: bool,
    /// The format of the last segment; None without segments.
    pub(super) last_format: Option<Format>,
    /// The configured size of segments.
    segment_bytes: u64,
    /// The sizes of the files with names of whole segments, and how many files have each.
    sizes: BTreeMap<u64, usize>,
    /// The size that the segment being replayed gives for itself.
    told_bytes: Option<u64>,
    /// Entries that the oldest segment says exist before it, by group: purges must cover them.
    before_oldest: HashMap<GroupId, u64>,
}

/// Whether a segment that should have `whole_bytes`, and whose chain of frames ends at `offset`, lost the end
/// of its file.
fn is_cut_short(content: &[u8], offset: usize, bad: &BadFrame, format: Format, whole_bytes: u64) -> bool {
    let rest = &content[offset..];
    matches!(bad, BadFrame::Length)
        || rest.len() < format.header_bytes() && rest.iter().any(|byte| *byte != 0)
        || rest.is_empty() && (content.len() as u64) < whole_bytes
}

/// A place where the chain of frames ends.
struct End {
    segment: u64,
    offset: usize,
    /// Why there is no frame.
    reason: String,
    /// The highest batch that any header beyond this place says is durable.
    synced_behind: u64,
}

/// Reads the log, cuts off its torn tail, and removes meaningless files.
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
            *recovered.sizes.entry(bytes).or_default() += 1;
        } else if let Some(salt) = segment::salt_of(&name) {
            (recovered.salt, recovered.is_salt_marked) = (Some(salt), true);
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
            // Only the oldest segment can begin with any batch, and only if it is not the very first.
            let expected = if Some(number) == oldest && number > 1 { None } else { Some(self.batch + 1) };
            let format = self.format_of(&content);
            let begins = frame::frame(&content, 0, format, number, expected);
            let is_continued = begins.is_ok() && end.as_ref().is_none_or(|end| end.segment + 1 == number);
            if let (Some(end), false) = (&mut end, is_continued) {
                let synced = self.synced_behind(&content, 0, format, number);
                end.synced_behind = end.synced_behind.max(synced);
                // Known without a place in the chain, so that `cut` removes it.
                self.segments.insert(number, Segment { file, bytes, last_indexes: HashMap::new() });
                continue;
            }
            if let (Err(bad), None) = (&begins, expected) {
                return Err(corrupted(disk, number, 0, format!("the oldest segment is damaged: {bad}")));
            }
            if begins.is_ok() {
                self.last_format = Some(format);
            }
            end = Some(self.replay(disk, number, file, &content, expected, Some(number) == oldest)?);
        }
        Ok(end)
    }

    /// The format of a segment. Its first frame has no content of clients, so that its salt can be trusted
    /// where nothing else tells the salt.
    fn format_of(&mut self, content: &[u8]) -> Format {
        match (Format::at_front(content), self.salt) {
            (Some(Format::One), _) | (None, None) => Format::One,
            (Some(Format::Two { salt }), None) => Format::Two { salt: *self.salt.insert(salt) },
            (_, Some(salt)) => Format::Two { salt },
        }
    }

    /// The highest batch that any header at or beyond `from` says is durable. A segment whose first frame is
    /// lost may be the last one of format 1.
    fn synced_behind(&self, content: &[u8], from: usize, format: Format, number: u64) -> u64 {
        let may_be_old = from == 0 && !matches!(self.last_format, Some(Format::Two { .. }));
        let formats = [Some(format), may_be_old.then_some(Format::One)];
        let synced = formats.into_iter().flatten();
        synced.filter_map(|format| frame::highest_synced(content, from, format, number)).max().unwrap_or(0)
    }

    /// How large the file of the segment being replayed should be. A segment of format 1 does not say:
    /// another one of the same size shows that segments had that size.
    fn whole_bytes(&self, bytes: u64) -> u64 {
        let is_usual = self.sizes.get(&bytes).is_some_and(|count| *count > 1);
        self.told_bytes.unwrap_or(if is_usual { bytes } else { self.segment_bytes })
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
        // The first batch here, and the highest batch that frames here say was durable.
        let (mut offset, mut first, mut synced) = (0, None, 0);
        let format = self.format_of(content);
        self.told_bytes = None;
        loop {
            let (header, body) = match frame::frame(content, offset, format, number, expected) {
                Ok(frame) => frame,
                Err(bad) => {
                    let reason = bad.to_string();
                    let synced_behind = self.synced_behind(content, offset, format, number);
                    let was_synced = first.is_some_and(|first| synced >= first);
                    if was_synced && is_cut_short(content, offset, &bad, format, self.whole_bytes(bytes)) {
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
                let place = offset + format.header_bytes() + at;
                let bad = |detail: String| corrupted(disk, number, place, detail);
                let record = frame::record(&body[at..]).map_err(|error| bad(error.to_string()))?;
                self.take(number, place, &record, is_oldest && offset == 0).map_err(bad)?;
                at += record.bytes();
            }
            first = first.or(Some(header.batch));
            synced = synced.max(header.synced);
            self.batch = header.batch;
            expected = Some(header.batch + 1);
            offset += format.header_bytes() + body.len();
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
        if record.kind == Kind::Size {
            let told = Reader::new(record.payload).u64().map_err(|error| error.to_string())?;
            self.told_bytes = Some(told);
            return Ok(());
        }
        let group = record.group;
        let state = self.states.entry(group).or_default();
        let log = self.logs.entry(group).or_default();
        let unused = Default::default();
        let mut reader = Reader::new(record.payload);
        let invalid = |error: codec::CodecError| error.to_string();
        match record.kind {
            Kind::Entry => {
                if record.index == u64::MAX {
                    return Err("there is no index after that of the entry".to_owned());
                }
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
            Kind::Size => {}
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
            Kind::State => self.take_state(record, is_oldest_head)?,
        }
        Ok(())
    }

    /// Takes a group's state from the head of a segment: at the head of the oldest it stands for what came
    /// before, elsewhere it must follow from that.
    fn take_state(&mut self, record: &Record<'_>, is_oldest_head: bool) -> Result<(), String> {
        let group = record.group;
        let state = self.states.entry(group).or_default();
        let told = GroupState::decode(record.payload).map_err(|error| error.to_string())?;
        if !is_oldest_head {
            let follows = *state == told;
            return follows
                .then_some(())
                .ok_or_else(|| format!("the state of group {group} does not follow from earlier segments"));
        }
        if let Some(last) = told.last_index {
            self.before_oldest.insert(group, last);
        }
        if let Some(purged) = told.purged {
            self.logs.entry(group).or_default().purge(purged, &Default::default());
        }
        *state = told;
        Ok(())
    }

    /// Judges what lies beyond the chain's end, and removes it if a crash can have left it.
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
        // The newest segment that is kept; one without a single frame is not.
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
        // A segment without a single frame is created anew, with a frame of states.
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
            (log.durable_vote, log.durable) = (log.vote, log.last_log_id());
        }
        Ok(())
    }
}
