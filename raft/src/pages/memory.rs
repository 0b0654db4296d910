//! Page stores in memory, for the simulation: the same messages, answered by a task. A commit takes simulated
//! time and is all or nothing, as with sled in `worker.rs`; what dies with a node is what was staged.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::{Page, PageStore, PagesError, QUEUE_MAX, Tally, worker::Request};
use crate::machine::{GroupId, PageWrite};

/// All page stores of one node, which outlive it.
pub(crate) struct MemoryPages {
    dirs: Mutex<BTreeMap<PathBuf, Dir>>,
    commit_takes: Box<dyn Fn() -> Duration + Send + Sync>,
}

type Dir = Arc<Mutex<BTreeMap<GroupId, Committed>>>;

#[derive(Clone, Default)]
struct Committed {
    head: Option<Vec<u8>>,
    pages: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What was committed at a moment.
pub(crate) struct PagesCopy(BTreeMap<PathBuf, BTreeMap<GroupId, Committed>>);

type Staged = BTreeMap<GroupId, Vec<PageWrite>>;

impl MemoryPages {
    pub(crate) fn new(commit_takes: impl Fn() -> Duration + Send + Sync + 'static) -> MemoryPages {
        MemoryPages { dirs: Mutex::default(), commit_takes: Box::new(commit_takes) }
    }

    pub(crate) fn open(self: &Arc<Self>, path: PathBuf) -> PageStore {
        let (requests, inbox) = mpsc::channel(QUEUE_MAX);
        let dir = self.dirs.lock().entry(path.clone()).or_default().clone();
        tokio::spawn(answer_all(self.clone(), dir, inbox));
        PageStore {
            requests: Mutex::new(Some(requests)),
            poison: watch::Sender::new(None),
            thread: Mutex::new(None),
            dir: path,
        }
    }

    pub(crate) fn replace(&self, live: &Path, staged: &Path) {
        let mut dirs = self.dirs.lock();
        let staged = dirs.remove(staged).unwrap_or_default();
        dirs.insert(live.to_owned(), staged);
    }

    pub(crate) fn copy(&self) -> PagesCopy {
        let dirs = self.dirs.lock();
        PagesCopy(dirs.iter().map(|(path, dir)| (path.clone(), dir.lock().clone())).collect())
    }

    pub(crate) fn put_back(&self, copy: &PagesCopy) {
        let dir = |groups: &BTreeMap<GroupId, Committed>| Arc::new(Mutex::new(groups.clone()));
        *self.dirs.lock() = copy.0.iter().map(|(path, groups)| (path.clone(), dir(groups))).collect();
    }

    pub(crate) fn remove(&self, path: &Path) {
        self.dirs.lock().remove(path);
    }
}

async fn answer_all(store: Arc<MemoryPages>, dir: Dir, mut inbox: mpsc::Receiver<Request>) {
    let mut staged = Staged::new();
    while let Some(request) = inbox.recv().await {
        // The requester may be gone.
        match request {
            Request::Head { group, answer } => {
                let _ = answer.send(Ok(dir.lock().entry(group).or_default().head()));
            }
            Request::Scan { group, after, bytes_max, answer } => {
                let _ = answer.send(Ok(dir.lock().entry(group).or_default().scan(after, bytes_max)));
            }
            Request::Write { group, pages } => staged.entry(group).or_default().extend(pages),
            Request::Commit { group, head, answer } => {
                tokio::time::sleep((store.commit_takes)()).await;
                dir.lock().entry(group).or_default().commit(staged.remove(&group), Some(head));
                let _ = answer.send(Ok::<(), PagesError>(()));
            }
            Request::Spill { group, answer } => {
                dir.lock().entry(group).or_default().commit(staged.remove(&group), None);
                let _ = answer.send(Ok(()));
            }
        }
    }
}

impl Committed {
    fn head(&self) -> Option<(Vec<u8>, Tally)> {
        let sum = |tally: Tally, (id, content): (&Vec<u8>, &Vec<u8>)| tally.with(id, content);
        Some((self.head.clone()?, self.pages.iter().fold(Tally::default(), sum)))
    }

    fn scan(&self, after: Option<Vec<u8>>, bytes_max: usize) -> Vec<Page> {
        // The least key greater than a key is the key and a zero.
        let start = after.map_or_else(Vec::new, |after| [&after[..], &[0]].concat());
        let (mut pages, mut bytes) = (Vec::new(), 0);
        for (id, content) in self.pages.range(start..) {
            if bytes + content.len() > bytes_max && !pages.is_empty() {
                break;
            }
            bytes += content.len();
            pages.push((id.clone(), content.clone()));
        }
        pages
    }

    fn commit(&mut self, staged: Option<Vec<PageWrite>>, head: Option<Vec<u8>>) {
        for page in staged.into_iter().flatten() {
            match page.content {
                Some(content) => self.pages.insert(page.id, content),
                None => self.pages.remove(&page.id),
            };
        }
        self.head = head.or(self.head.take());
    }
}
