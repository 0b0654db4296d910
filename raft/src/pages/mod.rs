//! The checkpointed pages, in sled. A handle sends messages to one thread, the only one that touches sled.
//!
//! Writes are staged in memory and reach sled only in `commit`, all between two flushes. This is what makes a
//! commit atomic: at a flush sled makes durable whatever was written before, no more and no less, and it also
//! flushes when it is closed.
//!
//! Files: `worker.rs` is the thread and the format, `panics.rs` handles panics of sled, `dirs.rs` creates,
//! replaces, sets aside and puts back directories, `metadata_log.rs` repairs what a crash left in one, `need.rs` tells
//! how much space a commit takes.

#[cfg(test)]
mod descriptor_tests;
mod dirs;
#[cfg(feature = "simulation")]
pub(crate) mod memory;
mod metadata_log;
mod need;
mod panics;
#[cfg(test)]
mod tests;
mod worker;

use std::{
    cell::Cell,
    io,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

pub(crate) use self::dirs::{Aside, all_aside, put_back, replace, set_aside, unreadable};
pub(crate) use self::worker::Tally;
use self::worker::{Answer, Request, Worker};
use crate::{
    log::Fatal,
    machine::{GroupId, PageWrite},
    space::{self, Space},
    want::Want,
};

/// Where the pages of the last checkpoint are, in a data directory.
pub(crate) const PAGES: &str = "pages";

/// The most messages that may wait for the thread.
const QUEUE_MAX: usize = 16;

/// How long a read may take before the directory counts as unreadable: on some damage sled searches for ever.
/// A healthy read takes milliseconds, or, behind a commit in the queue, as long as the commit.
const READ_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 6 } else { 120 });

/// How long opening may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 10 } else { 600 });

/// A page's id and its content.
pub(crate) type Page = (Vec<u8>, Vec<u8>);

/// Why pages cannot be had. After `Unreadable` and `Failed` the handle is useless.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum PagesError {
    /// sled cannot open the directory, or what it returns is not what was committed. `set_aside` it, and get
    /// the pages from elsewhere.
    #[error("the pages are unreadable: {0}")]
    Unreadable(String),
    /// A write failed, after which the fatal handler was called; or the store is closed; or the directory is
    /// in use. Says nothing against the pages.
    #[error("the pages cannot be written: {0}")]
    Failed(String),
    /// The system refuses something that has nothing to do with the content. Nothing was written, what is
    /// staged stays staged. A handle that was open is as good as before, unless a read was refused.
    #[error("the system refuses what the pages need: {why}")]
    Refused {
        /// What is missing.
        want: Want,
        /// What the system said.
        why: String,
    },
    /// The disk has no room. Nothing was written, what is staged stays staged, and the handle is as good as
    /// before.
    #[error("the disk has no room for the pages: {0}")]
    Full(String),
}

impl PagesError {
    /// Whether it may succeed later as it is.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            PagesError::Full(_) => true,
            PagesError::Refused { want, .. } => want.may_pass(),
            PagesError::Unreadable(_) | PagesError::Failed(_) => false,
        }
    }

    /// An error at files of which this node knows what they are.
    pub(crate) fn of_own_files(error: io::Error) -> PagesError {
        match PagesError::from(error) {
            PagesError::Unreadable(why) => PagesError::Failed(why),
            error => error,
        }
    }
}

impl From<io::Error> for PagesError {
    /// A directory that the system does not let this process use is not damaged, and must not be set aside.
    fn from(error: io::Error) -> PagesError {
        let why = error.to_string();
        match Want::of(&error) {
            Some(Want::Space) => PagesError::Full(why),
            Some(want) => PagesError::Refused { want, why },
            None => PagesError::Unreadable(why),
        }
    }
}

/// sled panics on damage, and on some of what the system refuses it.
fn panicked(panic: &str) -> PagesError {
    let why = format!("sled panicked: {panic}");
    match Want::in_text(panic) {
        Some(want) => PagesError::Refused { want, why },
        None => PagesError::Unreadable(why),
    }
}

/// A directory of pages, opened. Closed when dropped.
pub(crate) struct PageStore {
    requests: Mutex<Option<mpsc::Sender<Request>>>,
    /// The error after which nothing more is done.
    poison: watch::Sender<Option<PagesError>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    dir: PathBuf,
}

impl PageStore {
    /// Opens a directory on a disk whose space is not known.
    pub(crate) fn open(dir: &Path, cache_bytes: usize, fatal: Fatal) -> Result<PageStore, PagesError> {
        PageStore::open_in(dir, cache_bytes, fatal, space::unknown())
    }

    /// Whether there is something to open.
    pub(crate) fn is_there(dir: &Path) -> io::Result<bool> {
        dirs::is_there(dir)
    }

    /// Opens the directory, or creates it, after finishing or undoing what a crash interrupted. Blocks, also
    /// on sled's own call of the `sync` program. `fatal` is called when a write fails.
    pub(crate) fn open_in(
        dir: &Path,
        cache_bytes: usize,
        fatal: Fatal,
        space: Arc<Space>,
    ) -> Result<PageStore, PagesError> {
        let (requests, inbox) = mpsc::channel(QUEUE_MAX);
        let (opened_sender, opened) = std::sync::mpsc::channel();
        let poison = watch::Sender::new(None);
        let poisoner = poison.clone();
        let path = dir.to_owned();
        let run = move || {
            let is_committing = Rc::new(Cell::new(false));
            let (told, in_commit) =
                ((poisoner.clone(), opened_sender.clone(), fatal.clone()), is_committing.clone());
            panics::report_first(move |panic| {
                let (poisoner, opened_sender, fatal) = told;
                let error = panicked(&panic);
                poisoner.send_replace(Some(error.clone()));
                // Nobody receives this once the store is open.
                let _ = opened_sender.send(Err(error));
                if in_commit.get() {
                    fatal(format!("cannot commit pages: sled panicked: {panic}"));
                }
            });
            let worker = Worker::open(&path, cache_bytes, (fatal, space), poisoner, is_committing);
            let (worker, opened) =
                worker.map_or_else(|error| (None, Err(error)), |worker| (Some(worker), Ok(())));
            // The opener waits for it.
            let _ = opened_sender.send(opened);
            if let Some(worker) = worker {
                worker.run(inbox);
            }
        };
        let thread = thread::Builder::new().name("pages".to_owned()).spawn(run);
        let thread = thread.map_err(|error| PagesError::Refused {
            want: Want::of(&error).unwrap_or(Want::Threads),
            why: format!("cannot start a thread: {error}"),
        })?;
        let silent = |_| Err(PagesError::Unreadable("sled did not open it in time".to_owned()));
        opened.recv_timeout(OPEN_TIMEOUT).unwrap_or_else(silent)?;
        let (requests, thread) = (Mutex::new(Some(requests)), Mutex::new(Some(thread)));
        Ok(PageStore { requests, poison, thread, dir: dir.to_owned() })
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The head given in the group's last commit; None if there was none.
    pub(crate) async fn head(&self, group: GroupId) -> Result<Option<Vec<u8>>, PagesError> {
        Ok(self.head_and_tally(group).await?.map(|(head, _)| head))
    }

    /// The same, with the tally of that commit's pages.
    pub(crate) async fn head_and_tally(
        &self,
        group: GroupId,
    ) -> Result<Option<(Vec<u8>, Tally)>, PagesError> {
        self.ask_in_time(|answer| Request::Head { group, answer }).await
    }

    /// Committed pages with an id greater than `after` (or from the first), in ascending order, about
    /// `bytes_max` bytes of them, at least one if there is one. None means the end.
    ///
    /// A scan from the first page to the end, with no commit in between, also verifies that no page is
    /// missing, superfluous or older than the last commit.
    pub(crate) async fn scan(
        &self,
        group: GroupId,
        after: Option<Vec<u8>>,
        bytes_max: usize,
    ) -> Result<Vec<Page>, PagesError> {
        self.ask_in_time(|answer| Request::Scan { group, after, bytes_max, answer }).await
    }

    /// Stages pages for the group's next commit; a later write of a page replaces an earlier one. Waits only
    /// for room in the queue: a failure is reported by the commit.
    pub(crate) async fn write(&self, group: GroupId, pages: Vec<PageWrite>) -> Result<(), PagesError> {
        self.send(Request::Write { group, pages }).await
    }

    /// Makes what is staged for the group durable together with the head, all or nothing. `head` may be
    /// empty. After an error that may pass it may be tried again, also with more staged.
    pub(crate) async fn commit(&self, group: GroupId, head: Vec<u8>) -> Result<(), PagesError> {
        self.ask(|answer| Request::Commit { group, head, answer }).await
    }

    /// Writes what is staged for the group without committing it, to bound memory. Only for a directory that
    /// is being filled and that nobody uses before its commit: a crash leaves any part of it.
    pub(crate) async fn spill(&self, group: GroupId) -> Result<(), PagesError> {
        self.ask(|answer| Request::Spill { group, answer }).await
    }

    /// Closes the directory. What is staged is dropped; a commit under way is finished. Blocks. After an
    /// error it stays open for as long as the process lives, which does not keep it from being renamed.
    pub(crate) fn close(&self) {
        drop(self.requests.lock().take());
        let Some(thread) = self.thread.lock().take() else { return };
        while !thread.is_finished() && self.poison.borrow().is_none() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    async fn send(&self, request: Request) -> Result<(), PagesError> {
        let requests = self.requests.lock().clone().ok_or_else(closed)?;
        let mut poison = self.poison.subscribe();
        tokio::select! {
            biased;
            sent = requests.send(request) => sent.map_err(|_| closed()),
            error = poisoned(&mut poison) => Err(error),
        }
    }

    /// Asks something that must be answered soon.
    async fn ask_in_time<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, PagesError> {
        let answer = tokio::time::timeout(READ_TIMEOUT, self.ask(request)).await;
        answer.unwrap_or_else(|_| {
            let error = PagesError::Unreadable("sled did not answer in time".to_owned());
            self.poison.send_replace(Some(error.clone()));
            Err(error)
        })
    }

    async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, PagesError> {
        let (answer, answered) = oneshot::channel();
        self.send(request(answer)).await?;
        let mut poison = self.poison.subscribe();
        tokio::select! {
            biased;
            answered = answered => answered.unwrap_or_else(|_| Err(closed())),
            error = poisoned(&mut poison) => Err(error),
        }
    }
}

/// Waits for the error after which nothing more is done: a thread that has met it may never answer.
async fn poisoned(poison: &mut watch::Receiver<Option<PagesError>>) -> PagesError {
    let error = poison.wait_for(Option::is_some).await;
    error.ok().and_then(|error| error.clone()).unwrap_or_else(closed)
}

impl Drop for PageStore {
    fn drop(&mut self) {
        self.close();
    }
}

fn closed() -> PagesError {
    PagesError::Failed("the store is closed".to_owned())
}
