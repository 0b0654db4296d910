//! Reads what can be read of a damaged log, for a person to look at: every undamaged frame of every segment, in order,
//! whatever lies between them. Nothing is ever started on what this finds: what follows a damaged place may lack what
//! stood there, and may never have been durable.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::PathBuf,
    sync::Arc,
};

use super::{
    disk::{Disk, DiskFile},
    frame::{self, Format, GroupState, Kind, Record},
    group::Position,
    segment,
};
use crate::{
    codec::{self, CodecError, Reader},
    machine::GroupId,
    types::LogId,
};

/// Bytes of a segment that are no undamaged frame, and are not zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Skipped {
    pub(crate) file: PathBuf,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// What was found of one group.
#[derive(Default)]
pub(super) struct Salvaged {
    /// As of the last record of each kind that can be read.
    pub(super) state: GroupState,
    /// The entries, by index. There may be gaps.
    pub(super) positions: BTreeMap<u64, Position>,
    pub(super) files: HashMap<u64, Arc<dyn DiskFile>>,
    pub(super) skipped: Vec<Skipped>,
}

/// Reads all segments, one at a time.
pub(super) fn salvage(disk: &dyn Disk, group: GroupId) -> io::Result<Salvaged> {
    let (mut segments, mut salt) = (BTreeMap::new(), None);
    for (name, bytes) in disk.list()? {
        salt = salt.or(segment::salt_of(&name));
        segments.extend(segment::segment_of(&name).map(|number| (number, bytes)));
    }
    let mut salvaged = Salvaged::default();
    let mut format = salt.map_or(Format::One, |salt| Format::Two { salt });
    for (number, bytes) in segments {
        let name = segment::segment_name(number);
        let file = disk.open(&name)?;
        let mut content = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
        let mut skipped = Vec::new();
        if file.read_at(&mut content, 0).is_err() {
            skipped.push((0, content.len()));
        } else {
            format = Format::at_front(&content).unwrap_or(format);
            skipped = salvaged.walk(&content, format, number, group);
        }
        let path = disk.path(&name);
        let skipped = skipped.into_iter();
        salvaged.skipped.extend(skipped.map(|(from, to)| Skipped {
            file: path.clone(),
            from: from as u64,
            to: to as u64,
        }));
        salvaged.files.insert(number, file);
    }
    Ok(salvaged)
}

impl Salvaged {
    /// Takes all undamaged frames of a segment. Returns the places without one.
    fn walk(&mut self, content: &[u8], format: Format, number: u64, group: GroupId) -> Vec<(usize, usize)> {
        let end = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let (mut at, mut skipped) = (0, Vec::new());
        while at < end {
            let Ok((_, body)) = frame::frame(content, at, format, number, None) else {
                let next = frame::next_frame(content, at + 1, format, number).unwrap_or(end);
                skipped.push((at, next));
                at = next;
                continue;
            };
            let from = at + format.header_bytes();
            at = from + body.len();
            let mut place = 0;
            while let Ok(record) = frame::record(&body[place..]) {
                let is_taken = record.group != group || self.take(number, from + place, &record).is_ok();
                place += record.bytes();
                if !is_taken {
                    skipped.push((from + place - record.bytes(), from + place));
                }
            }
            if place < body.len() {
                skipped.push((from + place, at));
            }
        }
        skipped
    }

    /// Takes one record of the group, whatever came before.
    fn take(&mut self, segment: u64, place: usize, record: &Record<'_>) -> Result<(), CodecError> {
        let mut reader = Reader::new(record.payload);
        match record.kind {
            Kind::Entry => {
                let narrow = |value: u64| u32::try_from(value).map_err(|_| CodecError::Invalid("number"));
                let position = Position {
                    term: record.term,
                    segment: narrow(segment)?,
                    offset: narrow(place as u64)?,
                    bytes: narrow(record.bytes() as u64)?,
                };
                // Where the record of a truncation is lost, what was truncated must not reappear.
                self.positions.split_off(&record.index);
                self.positions.insert(record.index, position);
            }
            Kind::Vote => self.state.vote = Some(codec::vote(&mut reader)?),
            Kind::Commit => self.state.committed = codec::log_id_option(&mut reader)?,
            Kind::TruncateAfter => {
                let last = codec::log_id_option(&mut reader)?;
                self.positions.split_off(&last.map_or(0, |id| id.index.saturating_add(1)));
            }
            Kind::Purge => self.purge(LogId::new_term_index(record.term, record.index)),
            Kind::State => {
                let GroupState { vote, purged, committed, .. } = GroupState::decode(record.payload)?;
                self.state.vote = vote;
                self.state.committed = committed;
                purged.into_iter().for_each(|upto| self.purge(upto));
            }
            Kind::Size => {}
        }
        Ok(())
    }

    fn purge(&mut self, upto: LogId) {
        self.state.purge(upto);
        self.positions = self.positions.split_off(&upto.index.saturating_add(1));
    }
}
