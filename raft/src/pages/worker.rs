//! The thread that owns sled, and what it keeps in it.
//!
//! Each group has a tree. Key `[0]` holds the head record, `[1] + id` a page: the CRC-32 of id and content,
//! then the content. The head record counts the pages and sums up a digest of each, because sled silently
//! ends its recovery at a damaged metadata frame: the CRCs of all pages would match, and some pages would be
//! old.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap, hash_map},
    io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Page, PagesError, dirs, metadata_log,
    need::{self, Need},
};
use crate::{
    codec::{self, CodecError, Reader},
    descriptors,
    log::Fatal,
    machine::{GroupId, PageWrite},
    space::Space,
};

/// How long opening waits for sled's lock on the directory, and how often it tries.
const LOCK_WAIT: Duration = Duration::from_secs(3);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Keys per leaf: pages are large, so a leaf holds few.
pub(super) const LEAF_FANOUT: usize = 4;

const ZSTD_LEVEL: i32 = 1;

/// A hundred years: sled's own flusher never runs. With None instead, every drop of a tree or an iterator
/// flushes, and after a flush has failed, on a damaged directory, the next one waits for it for ever.
const FLUSH_EVERY_MS: usize = 100 * 365 * 24 * 3600 * 1000;

/// sled never frees the memory of a leaf that it has written (its own to-do list says so), so it is reopened
/// after a commit once it has written this many times its cache.
const REOPEN_CACHES: usize = 4;

const HEAD_VERSION: u8 = 1;
const HEAD_KEY: [u8; 1] = [0];
/// Present in every tree, before all pages.
const MADE_KEY: [u8; 2] = [0, 0];
const PAGE_PREFIX: u8 = 1;

/// sled locks all leaves of a batch together.
const BATCH_PAGES_MAX: usize = 64;

/// How many unfinished scans of a group are tracked.
const SCANS_MAX: usize = 16;

type Db = sled::Db<LEAF_FANOUT>;
type Tree = sled::Tree<LEAF_FANOUT>;

/// Where an answer goes.
pub(super) type Answer<T> = oneshot::Sender<Result<T, PagesError>>;

/// A request to the thread.
pub(super) enum Request {
    Head { group: GroupId, answer: Answer<Option<(Vec<u8>, Tally)>> },
    Scan { group: GroupId, after: Option<Vec<u8>>, bytes_max: usize, answer: Answer<Vec<Page>> },
    Write { group: GroupId, pages: Vec<PageWrite> },
    Commit { group: GroupId, head: Vec<u8>, answer: Answer<()> },
    Spill { group: GroupId, answer: Answer<()> },
}

/// The sum over all pages of a group: two groups with equal tallies have the same pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) pages: u64,
    pub(crate) digest: u64,
}

impl Tally {
    /// This tally with a page added.
    #[cfg(feature = "simulation")]
    pub(super) fn with(mut self, id: &[u8], content: &[u8]) -> Tally {
        self.add(id, page_crc(id, content));
        self
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        codec::put_u64(out, self.pages);
        codec::put_u64(out, self.digest);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Tally, CodecError> {
        Ok(Tally { pages: reader.u64()?, digest: reader.u64()? })
    }

    fn add(&mut self, id: &[u8], crc: u32) {
        self.pages = self.pages.wrapping_add(1);
        self.digest = self.digest.wrapping_add(page_digest(id, crc));
    }

    fn subtract(&mut self, id: &[u8], crc: u32) {
        self.pages = self.pages.wrapping_sub(1);
        self.digest = self.digest.wrapping_sub(page_digest(id, crc));
    }
}

/// The finalizer of splitmix64 over the id's and the page's CRC.
fn page_digest(id: &[u8], crc: u32) -> u64 {
    let mut z = (u64::from(crc32fast::hash(id)) << 32 | u64::from(crc)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn page_crc(id: &[u8], content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(id);
    hasher.update(content);
    hasher.finalize()
}

fn page_key(id: &[u8]) -> Vec<u8> {
    [&[PAGE_PREFIX], id].concat()
}

/// A group's tree and what is staged for it.
pub(super) struct Group {
    tree: Tree,
    /// The tally of the pages in the tree.
    pub(super) tally: Tally,
    /// The tally at the last commit: pages that were spilled since are not in it.
    committed: Tally,
    /// The head as given; None before the first commit.
    head: Option<Vec<u8>>,
    /// Pages for the next commit.
    pub(super) staged: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// The tallies of scans from the first page, by the last id returned.
    scans: HashMap<Vec<u8>, Tally>,
}

/// A group while sled is closed.
struct Closed {
    tally: Tally,
    committed: Tally,
    head: Option<Vec<u8>>,
    staged: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

/// The thread's state.
///
/// Invariants:
/// - Between two requests nothing in sled is dirty: closing flushes.
/// - After an error sled is not called again, and not dropped either: if its last flush fails, it aborts.
pub(super) struct Worker {
    dir: PathBuf,
    cache_bytes: usize,
    /// None while sled is closed to be opened again, and for ever if that failed.
    db: Option<Db>,
    /// Page bytes written since it was opened.
    written_bytes: usize,
    groups: HashMap<GroupId, Group>,
    /// The groups while sled is closed, because the system refused to open it again. The next request tries.
    closed: Option<HashMap<GroupId, Closed>>,
    /// The error after which nothing more is done.
    poison: watch::Sender<Option<PagesError>>,
    fatal: Fatal,
    /// Room on the disk.
    space: Arc<Space>,
    /// Whether a panic at this moment would be a failed write.
    is_committing: Rc<Cell<bool>>,
}

impl Worker {
    /// Opens the directory, or creates it. Without room that may fail, but it is tried all the same.
    pub(super) fn open(
        dir: &Path,
        cache_bytes: usize,
        (fatal, space): (Fatal, Arc<Space>),
        poison: watch::Sender<Option<PagesError>>,
        is_committing: Rc<Cell<bool>>,
    ) -> Result<Worker, PagesError> {
        let unreadable = |error: io::Error| {
            let error = io::Error::new(error.kind(), format!("{}: {error}", dir.display()));
            PagesError::from(error)
        };
        let open = |path: &Path| open_when_free(path, cache_bytes);
        // sled changes files before it has opened all of them.
        descriptors::ensure(descriptors::OF_PAGES).map_err(unreadable)?;
        dirs::settle(dir).map_err(unreadable)?;
        space.make_room(need::of_opening(dir));
        if !dir.exists() {
            // sled syncs neither its settings file nor the names of its first files.
            dirs::create(dir, |path| open(path).map(drop)).map_err(unreadable)?;
        }
        let db = open(dir).map_err(unreadable)?;
        Ok(Worker {
            dir: dir.to_owned(),
            cache_bytes,
            db: Some(db),
            written_bytes: 0,
            groups: HashMap::new(),
            closed: None,
            poison,
            fatal,
            space,
            is_committing,
        })
    }

    /// Answers requests until all handles are gone.
    pub(super) fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        while let Some(request) = inbox.blocking_recv() {
            // A panic has been reported already: from then on nothing reaches sled.
            let _ = catch_unwind(AssertUnwindSafe(|| self.answer(request)));
        }
        if self.poison.borrow().is_some() {
            mem::forget(self);
        }
    }

    fn answer(&mut self, request: Request) {
        // The requester may be gone.
        match request {
            Request::Head { group, answer } => {
                let _ = answer.send(
                    self.read(group, |group| Ok(group.head.clone().map(|head| (head, group.committed)))),
                );
            }
            Request::Scan { group, after, bytes_max, answer } => {
                let _ = answer.send(self.read(group, |group| group.scan(after, bytes_max)));
            }
            Request::Write { group, pages } => self.stage(group, pages),
            Request::Commit { group, head, answer } => {
                let _ = answer.send(self.flush(group, Some(head)));
                self.free_memory();
            }
            Request::Spill { group, answer } => {
                let _ = answer.send(self.flush(group, None));
                self.free_memory();
            }
        }
    }

    /// Reopens sled when it has written much. Everything is durable, so nothing but memory is lost; and a
    /// directory that cannot be opened again is found now, not when all nodes start after a power cut.
    fn free_memory(&mut self) {
        if self.written_bytes < REOPEN_CACHES * self.cache_bytes || self.poison.borrow().is_some() {
            return;
        }
        let has_room = self.space.has_free(need::of_opening(&self.dir));
        if !has_room || descriptors::ensure(descriptors::OF_COMMIT).is_err() {
            // Left to a later commit: memory is worth less than a node.
            return;
        }
        self.closed = Some(self.groups.drain().map(|(id, group)| (id, group.close())).collect());
        // The last handle: closing waits for sled's threads.
        self.db = None;
        self.written_bytes = 0;
        if let Err(error) = self.open_again() {
            tracing::warn!(%error, "the pages are closed until they can be opened again");
        }
    }

    /// Opens sled, if it is closed. What the system refuses is left to the next request: nothing is lost.
    fn open_again(&mut self) -> Result<(), PagesError> {
        let Some(closed) = self.closed.take() else { return Ok(()) };
        let opened = descriptors::ensure(descriptors::OF_PAGES)
            .and_then(|()| open_when_free(&self.dir, self.cache_bytes))
            .map_err(PagesError::from);
        let reopened = match opened {
            Err(error) if error.may_pass() => {
                self.closed = Some(closed);
                return Err(error);
            }
            opened => opened.and_then(|db| self.compare(db, closed)),
        };
        reopened.inspect_err(|error| {
            poison(&self.poison, error);
            (self.fatal)(format!("cannot open the pages again: {error}"));
        })
    }

    /// Takes what was opened, if it is what was closed.
    fn compare(&mut self, db: Db, closed: HashMap<GroupId, Closed>) -> Result<(), PagesError> {
        let db = self.db.insert(db);
        for (id, closed) in closed {
            let group = Group::open(db, id)?;
            if (group.committed, &group.head) != (closed.committed, &closed.head) {
                return Err(PagesError::Unreadable("sled opened an older commit than the last".into()));
            }
            self.groups.insert(id, Group { tally: closed.tally, staged: closed.staged, ..group });
        }
        Ok(())
    }

    /// The group, with its tree open.
    fn group(&mut self, id: GroupId) -> Result<&mut Group, PagesError> {
        if let Some(error) = &*self.poison.borrow() {
            return Err(error.clone());
        }
        self.open_again()?;
        match self.groups.entry(id) {
            hash_map::Entry::Occupied(group) => Ok(group.into_mut()),
            hash_map::Entry::Vacant(vacant) => {
                let db = self.db.as_ref().expect("without it there is an error that nobody passes");
                let group = Group::open(db, id);
                group.map(|group| vacant.insert(group)).inspect_err(|error| poison(&self.poison, error))
            }
        }
    }

    fn read<T>(
        &mut self,
        id: GroupId,
        read: impl FnOnce(&mut Group) -> Result<T, PagesError>,
    ) -> Result<T, PagesError> {
        let result = read(self.group(id)?);
        result.inspect_err(|error| poison(&self.poison, error))
    }

    /// Stages pages. If that is impossible, the commit will report it.
    fn stage(&mut self, id: GroupId, pages: Vec<PageWrite>) {
        let pages = pages.into_iter().map(|page| (page.id, page.content));
        if let Some(closed) = self.closed.as_mut().and_then(|closed| closed.get_mut(&id)) {
            closed.staged.extend(pages);
            return;
        }
        match self.group(id) {
            Ok(group) => group.staged.extend(pages),
            Err(error) => poison(&self.poison, &error),
        }
    }

    /// Makes sure that there are descriptors, and that the disk has room, for what is staged. Neither sled nor
    /// the node survives a failed write.
    fn reserve(&mut self, id: GroupId) -> Result<(), PagesError> {
        let (space, dir) = (self.space.clone(), self.dir.clone());
        self.open_again()?;
        descriptors::ensure(descriptors::OF_COMMIT)?;
        if !space.is_known() {
            return Ok(());
        }
        let need = Need::of(&dir, self.group(id)?);
        if space.has_free(need.at_most()) {
            return Ok(());
        }
        let bytes = self.read(id, |group| need.closely(group))?;
        if space.make_room(bytes) { Ok(()) } else { Err(PagesError::Full(format!("it takes {bytes} bytes"))) }
    }

    /// Writes what is staged, and the head if there is one, as a unit.
    fn flush(&mut self, id: GroupId, head: Option<Vec<u8>>) -> Result<(), PagesError> {
        if let Err(error) = self.reserve(id)
            && error.may_pass()
        {
            return Err(error);
        }
        self.is_committing.set(true);
        let result = self.group(id).and_then(|group| group.flush(head));
        self.is_committing.set(false);
        match result {
            Ok(bytes) => {
                self.written_bytes += bytes;
                Ok(())
            }
            Err(error) => {
                let text = error.to_string();
                poison(&self.poison, &error);
                (self.fatal)(format!("cannot commit pages: {text}"));
                Err(PagesError::Failed(text))
            }
        }
    }
}

/// Opens sled, and waits a while for its lock on the directory. A closed store can hold it a moment longer: a
/// process that another thread is just starting has all descriptors of this one until it executes its
/// program.
pub(super) fn open_when_free(path: &Path, cache_bytes: usize) -> io::Result<Db> {
    let config = sled::Config::new().path(path).zstd_compression_level(ZSTD_LEVEL);
    let config = config.flush_every_ms(Some(FLUSH_EVERY_MS)).cache_capacity_bytes(cache_bytes);
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        metadata_log::complete(path)?;
        match config.open() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                thread::sleep(LOCK_RETRY);
            }
            result => return result,
        }
    }
}

fn poison(poison: &watch::Sender<Option<PagesError>>, error: &PagesError) {
    poison.send_replace(Some(error.clone()));
}

impl Group {
    fn open(db: &Db, id: GroupId) -> Result<Group, PagesError> {
        let tree = db.open_tree(format!("group-{id}"))?;
        // sled makes the name of a new tree durable without the tree, and then cannot open the directory: an
        // empty tree must not be flushed.
        if tree.get(MADE_KEY)?.is_none() {
            tree.insert(MADE_KEY, [])?;
            tree.flush()?;
        }
        let (tally, head) = match tree.get(HEAD_KEY)? {
            None => (Tally::default(), None),
            Some(record) => {
                let (tally, head) = decode_head(&record)
                    .map_err(|error| PagesError::Unreadable(format!("the head record: {error}")))?;
                (tally, Some(head))
            }
        };
        Ok(Group { tree, tally, committed: tally, head, staged: BTreeMap::new(), scans: HashMap::new() })
    }

    fn scan(&mut self, after: Option<Vec<u8>>, bytes_max: usize) -> Result<Vec<Page>, PagesError> {
        let mut tally = match &after {
            None => Some(Tally::default()),
            Some(after) => self.scans.remove(after),
        };
        // The least key greater than a key is the key and a zero.
        let start = after.map_or_else(|| vec![PAGE_PREFIX], |after| [&page_key(&after)[..], &[0]].concat());
        let (mut pages, mut bytes) = (Vec::new(), 0);
        for item in self.tree.range(start..) {
            let (key, value) = item?;
            let (id, content, crc) = decode_page(&key, &value)?;
            if bytes + content.len() > bytes_max && !pages.is_empty() {
                break;
            }
            bytes += content.len();
            if let Some(tally) = &mut tally {
                tally.add(id, crc);
            }
            pages.push((id.to_vec(), content.to_vec()));
        }
        match (pages.last(), tally) {
            (Some((last, _)), Some(tally)) => {
                if self.scans.len() >= SCANS_MAX {
                    self.scans.clear();
                }
                self.scans.insert(last.clone(), tally);
            }
            (None, Some(tally)) if tally != self.tally => {
                let text = format!("{} pages are there, not the {} committed", tally.pages, self.tally.pages);
                return Err(PagesError::Unreadable(format!("{text}, or some are old")));
            }
            _ => (),
        }
        Ok(pages)
    }

    /// The pages after this one that may share a leaf with it: the id of the first, and the bytes of all.
    pub(super) fn behind(&self, id: &[u8]) -> Result<(Option<Vec<u8>>, u64), PagesError> {
        let start = [&page_key(id)[..], &[0]].concat();
        let (mut first, mut bytes) = (None, 0);
        for item in self.tree.range(start..).take(LEAF_FANOUT - 1) {
            let (key, value) = item?;
            first = first.or_else(|| key.split_first().map(|(_, id)| id.to_vec()));
            bytes += value.len() as u64;
        }
        Ok((first, bytes))
    }

    /// The bytes of the pages before this one that may share a leaf with it.
    pub(super) fn before(&self, id: &[u8]) -> Result<u64, PagesError> {
        let pages = self.tree.range(..page_key(id)).rev().take(LEAF_FANOUT - 1);
        let bytes: io::Result<u64> = pages.map(|item| item.map(|(_, value)| value.len() as u64)).sum();
        Ok(bytes?)
    }

    /// What of it is not in sled, and what sled must still hold when it is reopened.
    fn close(self) -> Closed {
        Closed { tally: self.tally, committed: self.committed, head: self.head, staged: self.staged }
    }

    /// Writes what is staged, and the head if there is one. Returns the bytes of the pages.
    fn flush(&mut self, head: Option<Vec<u8>>) -> Result<usize, PagesError> {
        self.scans.clear();
        let mut bytes = 0;
        let mut batch = sled::Batch::default();
        for (at, (id, content)) in mem::take(&mut self.staged).into_iter().enumerate() {
            let key = page_key(&id);
            if let Some(old) = self.tree.get(&key)? {
                let (_, _, crc) = decode_page(&key, &old)?;
                self.tally.subtract(&id, crc);
            }
            match content {
                Some(content) => {
                    let crc = page_crc(&id, &content);
                    self.tally.add(&id, crc);
                    bytes += content.len();
                    batch.insert(key, [&crc.to_le_bytes(), &content[..]].concat());
                }
                // Not in a batch, which leaves empty leaves behind.
                None => drop(self.tree.remove(key)?),
            }
            if at % BATCH_PAGES_MAX == BATCH_PAGES_MAX - 1 {
                self.tree.apply_batch(mem::take(&mut batch))?;
            }
        }
        if let Some(head) = head {
            batch.insert(&HEAD_KEY[..], encode_head(self.tally, &head));
            (self.committed, self.head) = (self.tally, Some(head));
        }
        self.tree.apply_batch(batch)?;
        self.tree.flush()?;
        Ok(bytes)
    }
}

/// Checks a page and returns its id, content and CRC.
fn decode_page<'a>(key: &'a [u8], value: &'a [u8]) -> Result<(&'a [u8], &'a [u8], u32), PagesError> {
    let damaged = || PagesError::Unreadable(format!("a page is damaged: {key:02x?}"));
    let (prefix, id) = key.split_first().ok_or_else(damaged)?;
    let (crc, content) = value.split_first_chunk::<4>().ok_or_else(damaged)?;
    let crc = u32::from_le_bytes(*crc);
    if *prefix != PAGE_PREFIX || crc != page_crc(id, content) {
        return Err(damaged());
    }
    Ok((id, content, crc))
}

fn encode_head(tally: Tally, head: &[u8]) -> Vec<u8> {
    let mut out = vec![HEAD_VERSION];
    tally.put(&mut out);
    codec::put_bytes(&mut out, head);
    let crc = crc32fast::hash(&out);
    codec::put_u32(&mut out, crc);
    out
}

fn decode_head(record: &[u8]) -> Result<(Tally, Vec<u8>), CodecError> {
    let covered = record.len().checked_sub(4).ok_or(CodecError::Truncated)?;
    let mut reader = Reader::new(record);
    if reader.u8()? != HEAD_VERSION {
        return Err(CodecError::Invalid("version"));
    }
    let tally = Tally::read(&mut reader)?;
    let head = reader.bytes()?.to_vec();
    let crc = reader.u32()?;
    reader.finish()?;
    if crc != crc32fast::hash(&record[..covered]) {
        return Err(CodecError::Invalid("CRC"));
    }
    Ok((tally, head))
}
