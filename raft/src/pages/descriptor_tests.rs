//! A page store for which the system has no descriptors loses nothing, and goes on when there are some. Limits
//! concern a whole process, so each test runs in a child.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::process::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;

use super::{Page, PageStore, PagesError};
use crate::{descriptors, kill, machine::PageWrite, want::Want};

const CACHE_BYTES: usize = 1 << 20;

fn open(dir: &Path) -> Result<PageStore, PagesError> {
    PageStore::open(dir, CACHE_BYTES, Arc::new(|text| panic!("{text}")))
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn put(id: &[u8], content: Vec<u8>) -> PageWrite {
    PageWrite { id: id.to_vec(), content: Some(content) }
}

fn limit(files: u64) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(files);
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Takes all descriptors that are left.
fn take_all() -> Vec<File> {
    std::iter::from_fn(|| File::open("/").ok()).collect()
}

fn is_refused<T>(result: &Result<T, PagesError>) -> bool {
    matches!(result, Err(PagesError::Refused { want: Want::Descriptors, .. }))
}

/// All files with their contents.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut files(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

async fn all(store: &PageStore) -> Vec<Page> {
    store.scan(1, None, usize::MAX).await.unwrap()
}

fn child(test: &str, run: impl AsyncFn(&Path)) {
    let Some(dir) = kill::child_dir() else {
        let dir = TempDir::new().unwrap();
        return kill::run_to_end(&format!("pages::descriptor_tests::{test}"), dir.path());
    };
    block_on(run(&dir.join("pages")));
    kill::say("done");
}

#[test]
fn what_cannot_be_opened_for_want_of_descriptors_is_not_touched() {
    child("what_cannot_be_opened_for_want_of_descriptors_is_not_touched", async |dir| {
        let store = open(dir).unwrap();
        store.write(1, vec![put(b"a", b"one".to_vec())]).await.unwrap();
        store.commit(1, b"head".to_vec()).await.unwrap();
        store.close();
        let before = files(dir.parent().unwrap());
        limit(512);
        for left in [0, 1, 5, 20, 60, 85] {
            let mut taken = take_all();
            taken.truncate(taken.len() - left);
            let opened = open(dir);
            assert!(is_refused(&opened), "with {left}: {:?}", opened.err());
        }
        assert_eq!(files(dir.parent().unwrap()), before);
        let store = open(dir).unwrap();
        assert_eq!(store.head(1).await, Ok(Some(b"head".to_vec())));
        assert_eq!(all(&store).await, [(b"a".to_vec(), b"one".to_vec())]);
        // Nor is a directory made that would be empty.
        let taken = take_all();
        let other = dir.with_file_name("other");
        assert!(is_refused(&open(&other)));
        drop(taken);
        assert!(!other.exists());
    });
}

/// What sled itself says, where others took the descriptors after it was made sure that there are enough.
#[test]
fn what_sled_reports_of_a_refusal_is_none_of_damage() {
    child("what_sled_reports_of_a_refusal_is_none_of_damage", async |dir| {
        let store = open(dir).unwrap();
        store.write(1, vec![put(b"a", b"one".to_vec())]).await.unwrap();
        store.commit(1, b"head".to_vec()).await.unwrap();
        store.close();
        limit(512);
        for left in (0..80).step_by(7) {
            let mut taken = take_all();
            taken.truncate(taken.len() - left);
            let opened = super::worker::open_when_free(dir, CACHE_BYTES).map_err(PagesError::from);
            assert!(is_refused(&opened), "with {left}: {:?}", opened.err());
        }
        let store = open(dir).unwrap();
        assert_eq!(store.head(1).await, Ok(Some(b"head".to_vec())));
        assert_eq!(all(&store).await, [(b"a".to_vec(), b"one".to_vec())]);
    });
}

#[test]
fn a_commit_without_descriptors_goes_with_the_next() {
    child("a_commit_without_descriptors_goes_with_the_next", async |dir| {
        limit(512);
        let store = open(dir).unwrap();
        store.write(1, vec![put(b"a", b"one".to_vec())]).await.unwrap();
        store.commit(1, b"first".to_vec()).await.unwrap();
        let taken = take_all();
        store.write(1, vec![put(b"b", b"two".to_vec())]).await.unwrap();
        assert!(is_refused(&store.commit(1, b"second".to_vec()).await));
        assert_eq!(store.head(1).await, Ok(Some(b"first".to_vec())));
        assert_eq!(all(&store).await.len(), 1);
        drop(taken);
        store.write(1, vec![put(b"c", b"three".to_vec())]).await.unwrap();
        store.commit(1, b"third".to_vec()).await.unwrap();
        assert_eq!((store.head(1).await, all(&store).await.len()), (Ok(Some(b"third".to_vec())), 3));
    });
}

/// It is reopened to free memory. Where that is refused it stays closed for a while.
#[test]
fn a_store_that_cannot_be_opened_again_is_opened_later() {
    child("a_store_that_cannot_be_opened_again_is_opened_later", async |dir| {
        let content = || (0..1 << 20).map(|_| fastrand::u8(..)).collect::<Vec<u8>>();
        limit(512);
        // The descriptors of the store have numbers that are above the limit later.
        let low: Vec<File> = (0..150).map(|_| File::open("/").unwrap()).collect();
        let store = open(dir).unwrap();
        store.write(1, vec![put(b"a", b"one".to_vec())]).await.unwrap();
        store.commit(1, b"first".to_vec()).await.unwrap();
        let (given, kept) = (30, low.len() - 30);
        let mut low = low;
        drop(low.drain(kept..).collect::<Vec<_>>());
        limit(descriptors::open().unwrap() - 90 + given);
        for id in 0..5_u8 {
            store.write(1, vec![put(&[id], content())]).await.unwrap();
        }
        store.commit(1, b"second".to_vec()).await.unwrap();
        let head = store.head(1).await;
        assert!(is_refused(&head), "{head:?}");
        store.write(1, vec![put(b"b", b"two".to_vec())]).await.unwrap();
        assert!(is_refused(&store.commit(1, b"third".to_vec()).await));
        limit(512);
        assert_eq!(store.head(1).await, Ok(Some(b"second".to_vec())));
        store.commit(1, b"third".to_vec()).await.unwrap();
        assert_eq!((store.head(1).await, all(&store).await.len()), (Ok(Some(b"third".to_vec())), 7));
        store.close();
        let store = open(dir).unwrap();
        assert_eq!((store.head(1).await, all(&store).await.len()), (Ok(Some(b"third".to_vec())), 7));
    });
}

#[test]
fn a_panic_that_tells_of_a_refusal_is_none_of_damage() {
    let text = "the global pool: ThreadPoolBuildError { kind: IOError(Os { code: 11, kind: WouldBlock, message: \"x\" }) }";
    let refused = super::panicked(text);
    assert!(matches!(refused, PagesError::Refused { want: Want::Threads, .. }), "{refused:?}");
    let damaged = super::panicked("assertion `left == right` failed");
    assert!(matches!(damaged, PagesError::Unreadable(_)), "{damaged:?}");
}
