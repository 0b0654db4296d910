//! openraft's view of one group's log. Appends only enqueue; reads come from memory, or from the segments on
//! a thread that may block.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Debug,
    io,
    ops::{Bound, Range, RangeBounds},
    sync::Arc,
};

use bytes::Bytes;
use futures::{Stream, stream};
use openraft::{
    OptionalSend, RaftLogReader,
    storage::{IOFlushed, LogState, RaftLogStorage},
};
use tokio::sync::oneshot;

use super::{
    Shared,
    disk::DiskFile,
    frame::{self, Kind},
    group::{Group, Guard, Position},
    queue::{BatchEntry, Change},
};
use crate::{
    codec, fatal,
    safeguard::{self, Safeguard},
    types::{Entry, LogId, TypeConfig, Vote},
};

/// How many bytes of entries a limited read or a step of a stream returns, if the first entry is not larger.
const READ_BYTES_MAX: u64 = 2 << 20;

/// The most bytes that one read takes from a segment, if an entry is not larger.
const PREAD_BYTES_MAX: u64 = 4 << 20;

/// A stream of entries, read in steps.
struct Steps {
    store: LogStore,
    /// What has not been read yet.
    range: Range<u64>,
    /// What has been read and not yet returned.
    ready: VecDeque<Entry>,
}

impl Steps {
    async fn next(&mut self) -> io::Result<Option<Entry>> {
        if self.ready.is_empty() && !self.range.is_empty() {
            self.ready = self.store.read(self.range.clone(), READ_BYTES_MAX).await?.into();
            if let (Some(first), Some(last)) = (self.ready.front(), self.ready.back()) {
                // A gap at the beginning counts too: whoever applies what follows would not notice it.
                if first.log_id.index != self.range.start {
                    let text = format!("entries from {} to {} were purged", self.range.start, first.log_id);
                    return Err(io::Error::other(text));
                }
                self.range.start = last.log_id.index + 1;
            } else {
                self.range.end = self.range.start;
            }
        }
        Ok(self.ready.pop_front())
    }
}

/// One group's log. Clones are the same log.
#[derive(Clone)]
pub(crate) struct LogStore {
    pub(super) shared: Arc<Shared>,
    pub(crate) group: Arc<Group>,
}

impl LogStore {
    /// Drops entries that a checkpoint shows to be superseded: those that do not agree with the last entry in
    /// it. openraft truncates such a tail before it applies what replaces it, but the checkpoint of the
    /// replacement can be durable before the truncation is.
    pub(crate) async fn agree_with(&mut self, applied: LogId) -> io::Result<()> {
        let (last, term) = {
            let log = self.group.log.lock();
            (log.last_log_id(), log.term_at(applied.index))
        };
        if last.is_none_or(|last| last.index < applied.index)
            || term.is_none_or(|term| term == applied.leader_id.term)
        {
            return Ok(());
        }
        tracing::warn!(%applied, ?last, "the end of the log does not agree with the checkpoint, and is cut");
        // Nothing after it can be committed that follows another entry at this index; up to it the checkpoint
        // has everything.
        self.truncate_after(Some(applied)).await?;
        self.purge(applied).await
    }

    /// The vote as last set, which may not be durable yet: never an earlier one than anybody was told.
    pub(crate) fn vote(&self) -> Option<Vote> {
        self.group.log.lock().vote
    }

    /// The vote as last set, and the last entry.
    pub(crate) fn vote_and_last(&self) -> (Option<Vote>, Option<LogId>) {
        let log = self.group.log.lock();
        (log.vote, log.last_log_id())
    }

    /// Sets the guard: the log is never truncated below what is applied.
    pub(crate) fn guard(
        &self,
        applied: impl Fn() -> u64 + Send + Sync + 'static,
        contradiction: fatal::Handler,
    ) {
        self.group.guard.get_or_init(|| Guard { applied: Box::new(applied), contradiction });
    }

    /// Whether the log may be truncated after this entry.
    fn check_cut(&self, last: Option<LogId>) -> io::Result<()> {
        let Some(guard) = self.group.guard.get().filter(|_| !safeguard::is_off(Safeguard::AppliedStays))
        else {
            return Ok(());
        };
        let committed = self.group.log.lock().committed.map_or(0, |id| id.index);
        let applied = (guard.applied)().max(committed);
        if last.map_or(0, |id| id.index) >= applied {
            return Ok(());
        }
        let why = format!("the log is to be cut after {last:?}, and this node has applied up to {applied}");
        (guard.contradiction)(why.clone());
        Err(io::Error::other(why))
    }

    /// The term of an entry, if it is known. That of the last purged one is.
    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        let log = self.group.log.lock();
        let purged = log.purged.filter(|purged| purged.index == index);
        log.term_at(index).or(purged.map(|purged| purged.leader_id.term))
    }

    /// The last durable entry; the purged one's id if there are no entries.
    pub(crate) fn durable_entry(&self) -> Option<LogId> {
        self.group.log.lock().durable
    }

    /// The last durable vote.
    pub(crate) fn durable_vote(&self) -> Option<Vote> {
        self.group.log.lock().durable_vote
    }

    /// Reads existing entries from the range's beginning to about `bytes_max`, at least one if there is one.
    async fn read(&self, range: Range<u64>, bytes_max: u64) -> io::Result<Vec<Entry>> {
        let (mut found, files) = {
            let log = self.group.log.lock();
            let found = log.find(range, bytes_max);
            if found.on_disk.is_empty() {
                return Ok(found.cached);
            }
            // Under the group's lock: what is not purged here has not been retired.
            let files = self.shared.files.read();
            let segments = found.on_disk.iter().map(|position| u64::from(position.segment));
            let files: HashMap<u64, _> =
                segments.filter_map(|segment| Some((segment, files.get(&segment)?.clone()))).collect();
            (found, files)
        };
        let group = self.group.id;
        let (first, on_disk) = (found.first, std::mem::take(&mut found.on_disk));
        let read = move || read_positions(&files, group, first, &on_disk);
        let mut entries = if self.shared.is_simulated {
            read()?
        } else {
            tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??
        };
        entries.append(&mut found.cached);
        Ok(entries)
    }

    /// Adds a record that nobody waits for.
    fn push_lazy(
        &self,
        kind: Kind,
        id: Option<LogId>,
        write: impl FnOnce(&mut Vec<u8>),
        change: Change,
    ) -> io::Result<()> {
        let mut queue = self.shared.queue.pusher()?;
        let batch = queue.batch();
        let (term, index) = id.map_or((0, 0), |id| (id.leader_id.term, id.index));
        frame::put_record(&mut batch.bytes, self.group.id, kind, term, index, write);
        batch.changes.push(change);
        Ok(())
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.read(half_open(&range), u64::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start..end, READ_BYTES_MAX).await
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let range = half_open(&range);
        let steps = Steps { store: self.clone(), range, ready: VecDeque::new() };
        stream::try_unfold(
            steps,
            |mut steps| async move { Ok(steps.next().await?.map(|entry| (entry, steps))) },
        )
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.group.log.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let log = self.group.log.lock();
        Ok(LogState { last_purged_log_id: log.purged, last_log_id: log.last_log_id() })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        if safeguard::is_off(Safeguard::DurableVote) {
            self.group.log.lock().vote = Some(*vote);
            return Ok(());
        }
        let (done, durable) = oneshot::channel();
        {
            let mut log = self.group.log.lock();
            let mut queue = self.shared.queue.pusher()?;
            let batch = queue.batch();
            frame::put_record(&mut batch.bytes, self.group.id, Kind::Vote, 0, 0, |out| {
                codec::put_vote(out, vote);
            });
            batch.changes.push(Change::Vote { group: self.group.clone(), vote: *vote, done });
            batch.urgent = true;
            log.vote = Some(*vote);
        }
        durable.await.map_err(|_| io::Error::other("the log failed before the vote was durable"))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let mut log = self.group.log.lock();
        let change = Change::Commit { group: self.group.clone(), committed };
        self.push_lazy(Kind::Commit, None, |out| codec::put_log_id_option(out, committed.as_ref()), change)?;
        log.committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.group.log.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut log = self.group.log.lock();
        let mut queue = self.shared.queue.pusher()?;
        for entry in entries {
            let (term, index) = (entry.log_id.leader_id.term, entry.log_id.index);
            if !log.continues_with(index) {
                return Err(io::Error::other(format!("entry {} does not follow the log", entry.log_id)));
            }
            let batch = queue.batch();
            let offset = u32::try_from(batch.bytes.len()).expect("a batch is below 4 GiB");
            let bytes = frame::put_record(&mut batch.bytes, self.group.id, Kind::Entry, term, index, |out| {
                codec::put_payload(out, &entry.payload);
            });
            batch.entries.push(BatchEntry { term, offset });
            match batch.changes.last_mut() {
                Some(Change::Append { group, first, count })
                    if group.id == self.group.id && *first + *count == index =>
                {
                    *count += 1;
                }
                _ => batch.changes.push(Change::Append { group: self.group.clone(), first: index, count: 1 }),
            }
            log.append(entry, bytes, &self.shared.cache_used);
        }
        let batch = queue.batch();
        batch.changes.push(Change::Flushed(callback));
        batch.urgent = true;
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        self.check_cut(last_log_id)?;
        let mut log = self.group.log.lock();
        let change = Change::TruncateAfter { group: self.group.clone(), last: last_log_id };
        let write = |out: &mut Vec<u8>| codec::put_log_id_option(out, last_log_id.as_ref());
        self.push_lazy(Kind::TruncateAfter, None, write, change)?;
        // Written soon: a checkpoint of what replaces these entries must not be durable long before.
        self.shared.queue.pusher()?.batch().urgent = true;
        log.truncate_after(last_log_id, &self.shared.cache_used);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let mut log = self.group.log.lock();
        let change = Change::Purge { group: self.group.clone(), upto: log_id };
        self.push_lazy(Kind::Purge, Some(log_id), |_| (), change)?;
        log.purge(log_id, &self.shared.cache_used);
        Ok(())
    }
}

fn half_open(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

/// Reads entries back from their segments, adjacent ones together, and checks that each is what it should be.
pub(super) fn read_positions(
    files: &HashMap<u64, Arc<dyn DiskFile>>,
    group: u32,
    first: u64,
    positions: &[Position],
) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::with_capacity(positions.len());
    let mut rest = positions;
    while let Some(start) = rest.first() {
        let (mut end, mut count) = (u64::from(start.offset), 0);
        for position in rest {
            let is_next = position.segment == start.segment && u64::from(position.offset) == end;
            let bytes = end + u64::from(position.bytes) - u64::from(start.offset);
            if !is_next || (count > 0 && bytes > PREAD_BYTES_MAX) {
                break;
            }
            end += u64::from(position.bytes);
            count += 1;
        }
        let file = files.get(&u64::from(start.segment)).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("log segment {} is gone", start.segment))
        })?;
        let mut buffer = vec![0; (end - u64::from(start.offset)) as usize];
        file.read_at(&mut buffer, u64::from(start.offset))?;
        let mut buffer = Bytes::from(buffer);
        for position in &rest[..count] {
            let index = first + entries.len() as u64;
            let bytes = buffer.split_to(position.bytes as usize);
            let entry = decode(&bytes, group, index, position.term).map_err(|detail| {
                let place = format!("in segment {} at {}", position.segment, position.offset);
                io::Error::new(io::ErrorKind::InvalidData, format!("log entry {index} {place}: {detail}"))
            })?;
            entries.push(entry);
        }
        rest = &rest[count..];
    }
    Ok(entries)
}

fn decode(bytes: &Bytes, group: u32, index: u64, term: u64) -> Result<Entry, String> {
    let record = frame::record(bytes).map_err(|error| error.to_string())?;
    if (record.kind, record.group, record.index, record.term) != (Kind::Entry, group, index, term) {
        return Err("another record is in its place".to_owned());
    }
    let payload = codec::payload(&bytes.slice_ref(record.payload)).map_err(|error| error.to_string())?;
    Ok(Entry { log_id: LogId::new_term_index(term, index), payload })
}
