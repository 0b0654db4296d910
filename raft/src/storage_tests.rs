//! openraft's own conformance suite, run on the log store and the state machine that a node has. (`log/tests.rs` runs
//! it on the log with a stub for a state machine, with and without a cache.)
//!
//! All of the suite runs. Three things that it takes for granted are done otherwise here, and [`Adapter`] makes up for
//! them:
//!
//! - It applies entries with gaps before them. Ours ends the process then, because openraft counts what it asked for
//!   as applied. The adapter applies blank entries in between.
//! - A snapshot that is built has all that was applied. Ours is the last durable checkpoint, so one is written first.
//! - A snapshot's content is a value. Ours stays on disk until it is sent, so the adapter copies the pages into a
//!   staging directory, as the network would.
//!
//! The suite applies no normal entries, as it cannot make any; `raft/tests/` does. Nor does it crash anything, which
//! `log/tests.rs` and `pages/tests.rs` do.

use std::{io, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, stream};
use openraft::{
    EntryPayload, OptionalSend, StorageError,
    storage::{EntryResponder, RaftStateMachine},
    testing::log::{StoreBuilder, Suite},
    type_config::alias::SnapshotOf,
};
use tempfile::TempDir;
use tokio::sync::{Semaphore, watch};

use crate::{
    Batch, Loader, Local, Machine, PageWrite, ProposeError,
    clock::Clock,
    log::{Log, LogConfig, LogStore, faulty::FaultyDisk},
    net::transport::Tcp,
    pages::PageStore,
    platform::Platform,
    proposals::propose::{Limits, Proposer},
    snapshot::{
        checkpoint::Checkpointer,
        content::{Received, SnapshotData},
    },
    state::{
        adapter::{LastCheckpoint, StateMachine},
        applier::Applier,
        progress::Progress,
    },
    types::{Entry, GROUP, LogId, SnapshotMeta, StoredMembership, TypeConfig},
};

const CACHE_BYTES: usize = 1 << 20;

/// A machine that is given nothing to apply.
struct Nothing;

struct Nobody;

impl Local for Nobody {
    fn failed(self, _: ProposeError) {}
}

impl Machine for Nothing {
    type Local = Nobody;

    fn apply_level_max(&self) -> u32 {
        1
    }

    fn apply(&self, _: Batch<'_, Nobody>) {
        panic!("the suite proposes nothing");
    }

    fn clock_ms(&self) -> u64 {
        0
    }

    fn ahead_ms(&self) -> i64 {
        0
    }

    fn next_deadline_ms(&self) -> Option<u64> {
        None
    }

    fn checkpoint_begin(&self) -> Vec<u8> {
        Vec::new()
    }

    fn checkpoint_step(&self, _: usize, _: &mut Vec<PageWrite>) -> bool {
        false
    }

    fn loader(&self) -> Box<dyn Loader + '_> {
        Box::new(Nothing)
    }
}

impl Loader for Nothing {
    fn page(&mut self, _: &[u8], _: &[u8]) -> Result<(), String> {
        Err("there are no pages".to_owned())
    }

    fn finish(self: Box<Self>, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

/// The state machine as the suite expects it to be.
struct Adapter {
    inner: StateMachine<Nothing>,
    dir: Arc<TempDir>,
}

impl Adapter {
    async fn write_checkpoint(&self) {
        let checkpointer = &self.inner.checkpointer;
        let written = checkpointer.request();
        checkpointer.next().await.announce();
        written.await.unwrap().unwrap();
    }

    /// The last checkpoint, as a peer receives it.
    async fn received(&self) -> Received {
        let store = self.inner.checkpointer.store();
        let staging = open_pages(self.dir.path().join(format!("sent-{}", crate::chance::id())));
        assert!(store.scan(GROUP, None, 1).await.unwrap().is_empty(), "the machine has no pages");
        staging.commit(GROUP, store.head(GROUP).await.unwrap().unwrap()).await.unwrap();
        let claim = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        Received { store: staging, claim }
    }
}

impl RaftStateMachine<TypeConfig> for Adapter {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = LastCheckpoint;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        self.inner.applied_state().await
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let id = entry.log_id;
            let next = self.inner.applied_state().await?.0.map_or(0, |last| last.index + 1);
            let blank = |index| {
                let log_id = LogId::new_term_index(id.leader_id.term, index);
                Ok((Entry { log_id, payload: EntryPayload::Blank }, None))
            };
            let all = (next..id.index).map(blank).chain([Ok((entry, responder))]);
            self.inner.apply(stream::iter(all.collect::<Vec<_>>())).await?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> LastCheckpoint {
        self.write_checkpoint().await;
        self.inner.get_snapshot_builder().await
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        content: SnapshotData,
    ) -> Result<(), io::Error> {
        self.inner.install_snapshot(meta, content).await
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig, SnapshotData>>, io::Error> {
        let Some(current) = self.inner.get_current_snapshot().await? else { return Ok(None) };
        let snapshot = SnapshotData::Received(self.received().await);
        Ok(Some(SnapshotOf::<TypeConfig, SnapshotData> { snapshot, ..current }))
    }
}

fn open_pages(dir: std::path::PathBuf) -> PageStore {
    PageStore::open(&dir, CACHE_BYTES, Arc::new(|why| panic!("{why}"))).unwrap()
}

/// In memory, where the system has such a place: nothing here depends on what is durable, and syncs would take most of
/// the time.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn state_machine(dir: &TempDir) -> StateMachine<Nothing> {
    let limits = Limits {
        batch_bytes_max: 1 << 20,
        batch_proposals_max: 1000,
        proposal_bytes_max: 1 << 20,
        waiting_bytes_max: 1 << 20,
        in_flight_max: 4,
        timeout: Duration::from_secs(5),
    };
    let platform = Platform::over(Arc::new(Tcp));
    let applier = Arc::new(Applier::new(
        Arc::new(Nothing),
        Arc::new(Clock::new(platform.wall.clone())),
        Arc::new(Proposer::new(1, limits, watch::channel(None).1)),
        Progress::default(),
        Arc::default(),
        Arc::new(|why| panic!("{why}")),
    ));
    let pages = Arc::new(open_pages(dir.path().join("pages")));
    let checkpointer = Checkpointer::new(GROUP, platform, applier.clone(), pages, 1 << 20, CACHE_BYTES);
    StateMachine { applier, checkpointer: Arc::new(checkpointer) }
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Adapter, (Arc<TempDir>, Log)> for Builder {
    async fn build(&self) -> Result<((Arc<TempDir>, Log), LogStore, Adapter), StorageError<TypeConfig>> {
        let dir = Arc::new(scratch());
        let config = LogConfig {
            dir: "log".into(),
            segment_bytes: 64 << 10,
            cache_bytes: 1 << 10,
            spare_segments: 0,
            space: crate::space::unknown(),
        };
        let disk = Arc::new(FaultyDisk::new());
        let log = Log::open_on(disk, config, Arc::new(|why| panic!("{why}"))).unwrap();
        let store = log.store(GROUP);
        let machine = Adapter { inner: state_machine(&dir), dir: dir.clone() };
        Ok(((dir, log), store, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_and_the_state_machine_are_what_openraft_expects() {
    Suite::test_all(Builder).await.unwrap();
}
