//! Commits are atomic and durable, damage is noticed, directories are replaced whole.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tempfile::TempDir;

use super::{Aside, Page, PageStore, PagesError, replace, set_aside};
use crate::{
    kill,
    machine::PageWrite,
    space::{occupied, tests::Small},
    want::Want,
};

const CACHE_BYTES: usize = 1 << 20;

fn open(dir: &Path) -> Result<PageStore, PagesError> {
    PageStore::open(dir, CACHE_BYTES, Arc::new(|text| panic!("{text}")))
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn put(id: &[u8], content: &[u8]) -> PageWrite {
    PageWrite { id: id.to_vec(), content: Some(content.to_vec()) }
}

fn delete(id: &[u8]) -> PageWrite {
    PageWrite { id: id.to_vec(), content: None }
}

async fn all(store: &PageStore, group: u32, bytes_max: usize) -> Result<Vec<Page>, PagesError> {
    let mut pages: Vec<Page> = Vec::new();
    loop {
        let more = store.scan(group, pages.last().map(|(id, _)| id.clone()), bytes_max).await?;
        if more.is_empty() {
            return Ok(pages);
        }
        pages.extend(more);
    }
}

fn pages(list: &[(&[u8], &[u8])]) -> Vec<Page> {
    list.iter().map(|(id, content)| (id.to_vec(), content.to_vec())).collect()
}

/// Content that does not compress.
fn noise(bytes: usize, seed: u32) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed.into());
    (0..bytes).map(|_| random.u8(..)).collect()
}

#[test]
fn a_commit_without_room_changes_nothing_and_goes_with_the_next() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("pages");
    let small = Small::with_unused(300 << 20);
    let open =
        || PageStore::open_in(&dir, CACHE_BYTES, Arc::new(|text| panic!("{text}")), small.space.clone());
    let (large, larger) = (noise(1 << 20, 1), noise(20 << 20, 2));
    block_on(async {
        let store = open().unwrap();
        store.write(1, vec![put(b"a", b"one")]).await.unwrap();
        store.commit(1, b"first".to_vec()).await.unwrap();
        // Others have taken all but the reserve.
        small.unused.store(8 << 20, Relaxed);
        store.write(1, vec![put(b"b", &large)]).await.unwrap();
        store.commit(1, b"second".to_vec()).await.unwrap();
        assert!(small.space.disk().reserve_bytes < 8 << 20, "it takes from the reserve");
        store.write(1, vec![put(b"c", &larger), delete(b"a")]).await.unwrap();
        let refused = store.commit(1, b"third".to_vec()).await;
        assert!(matches!(refused, Err(PagesError::Full(_))), "{refused:?}");
        assert_eq!(store.head(1).await, Ok(Some(b"second".to_vec())));
        assert_eq!(all(&store, 1, 100).await, Ok(pages(&[(b"a", b"one"), (b"b", &large)])));
        small.unused.store(300 << 20, Relaxed);
        store.write(1, vec![put(b"d", b"four")]).await.unwrap();
        store.commit(1, b"fourth".to_vec()).await.unwrap();
        store.close();
        let store = open().unwrap();
        assert_eq!(store.head(1).await, Ok(Some(b"fourth".to_vec())));
        let expected = pages(&[(b"b", &large), (b"c", &larger), (b"d", b"four")]);
        assert_eq!(all(&store, 1, 100).await, Ok(expected));
    });
}

#[test]
fn what_removes_all_pages_needs_little_room() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("pages");
    let small = Small::with_unused(300 << 20);
    block_on(async {
        let fatal = Arc::new(|text: String| panic!("{text}"));
        let store = PageStore::open_in(&dir, CACHE_BYTES, fatal, small.space.clone()).unwrap();
        let ids: Vec<Vec<u8>> = (0..1000_u32).map(|id| id.to_be_bytes().to_vec()).collect();
        let contents = (0..1000).map(|id| noise(16 << 10, id));
        store
            .write(1, ids.iter().zip(contents).map(|(id, content)| put(id, &content)).collect())
            .await
            .unwrap();
        store.commit(1, b"full".to_vec()).await.unwrap();
        let before = occupied(&dir);
        assert!(before > 16 << 20, "{before}");
        small.unused.store(8 << 20, Relaxed);
        store.write(1, ids.iter().map(|id| delete(id)).collect()).await.unwrap();
        store.commit(1, b"empty".to_vec()).await.unwrap();
        assert_eq!(all(&store, 1, 100).await, Ok(vec![]));
    });
}

#[test]
fn only_what_is_committed_is_seen_and_survives() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("deep").join("pages");
    block_on(async {
        let store = open(&dir).unwrap();
        assert_eq!(store.head(1).await, Ok(None));
        assert_eq!(all(&store, 1, 100).await, Ok(vec![]));
        store.write(1, vec![put(b"b", b"two"), put(b"a", b"one"), put(b"", b"empty id")]).await.unwrap();
        store.write(2, vec![put(b"a", b"other group")]).await.unwrap();
        assert_eq!(all(&store, 1, 100).await, Ok(vec![]));
        store.commit(1, b"head".to_vec()).await.unwrap();
        store.write(1, vec![put(b"c", b"three"), delete(b"a"), put(b"b", b"too late")]).await.unwrap();
    });
    block_on(async {
        let store = open(&dir).unwrap();
        assert_eq!(store.head(1).await, Ok(Some(b"head".to_vec())));
        assert_eq!(store.head(2).await, Ok(None));
        assert_eq!(all(&store, 1, 1).await, Ok(pages(&[(b"", b"empty id"), (b"a", b"one"), (b"b", b"two")])));
        assert_eq!(all(&store, 2, 100).await, Ok(vec![]));
        store
            .write(1, vec![delete(b"a"), delete(b"nothing"), put(b"b", b""), put(b"b", b"2")])
            .await
            .unwrap();
        store.commit(1, Vec::new()).await.unwrap();
        assert_eq!(all(&store, 1, 100).await, Ok(pages(&[(b"", b"empty id"), (b"b", b"2")])));
    });
}

/// Random commits against a map, with reopenings. The store also reopens sled by itself: a few commits write
/// several times its cache.
#[test]
fn many_commits_of_many_pages_match_a_map() {
    let mut rng = fastrand::Rng::with_seed(kill::seed());
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("pages");
    let mut model = BTreeMap::new();
    for round in 0..4 {
        let store = open(&dir).unwrap();
        block_on(async {
            for commit in 0..12_u8 {
                let writes: Vec<PageWrite> = (0..rng.usize(..300))
                    .map(|_| {
                        let id = rng.u32(..400).to_be_bytes().to_vec();
                        let content = (rng.u8(..3) > 0).then(|| vec![rng.u8(..); rng.usize(..9000)]);
                        PageWrite { id, content }
                    })
                    .collect();
                for write in &writes {
                    match &write.content {
                        Some(content) => model.insert(write.id.clone(), content.clone()),
                        None => model.remove(&write.id),
                    };
                }
                for chunk in writes.chunks(50) {
                    store.write(7, chunk.to_vec()).await.unwrap();
                }
                store.commit(7, vec![round, commit]).await.unwrap();
            }
            let found = all(&store, 7, 100_000).await.unwrap();
            assert!(found.into_iter().eq(model.clone()));
        });
    }
}

/// A received snapshot is spilled on the way, and gets its head at the end: the store reopens sled before.
#[test]
fn pages_larger_than_memory_are_spilled_before_they_are_committed() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("pages");
    let id = |number: usize| number.to_be_bytes().to_vec();
    block_on(async {
        let store = open(&dir).unwrap();
        store.write(1, vec![put(b"", b"an earlier commit")]).await.unwrap();
        store.commit(1, b"first".to_vec()).await.unwrap();
        for part in 0..16 {
            let many = (0..64).map(|n| put(&id(part * 64 + n), &[part as u8; 16 << 10])).collect();
            store.write(1, many).await.unwrap();
            store.spill(1).await.unwrap();
            assert_eq!(store.head(1).await, Ok(Some(b"first".to_vec())));
        }
        store.commit(1, b"second".to_vec()).await.unwrap();
    });
    block_on(async {
        let store = open(&dir).unwrap();
        assert_eq!(store.head(1).await, Ok(Some(b"second".to_vec())));
        assert_eq!(all(&store, 1, 1 << 20).await.unwrap().len(), 16 * 64 + 1);
    });
}

/// Opening ends with an empty log. A process killed just before leaves everything but that.
#[test]
fn an_opening_cut_short_before_its_last_step_loses_nothing() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("pages");
    block_on(async {
        let store = open(&dir).unwrap();
        let many = (0..200_u32).map(|n| put(&n.to_be_bytes(), &[1; 500])).collect();
        store.write(1, many).await.unwrap();
        store.commit(1, b"first".to_vec()).await.unwrap();
    });
    drop(open(&dir).unwrap());
    let logs: Vec<PathBuf> = fs::read_dir(dir.join("metadata"))
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("log_"))
        .collect();
    assert_eq!(logs.len(), 1);
    assert_eq!(fs::metadata(&logs[0]).unwrap().len(), 0);
    fs::remove_file(&logs[0]).unwrap();
    block_on(async {
        let store = open(&dir).unwrap();
        store.write(1, vec![put(&7_u32.to_be_bytes(), &[2; 500])]).await.unwrap();
        store.commit(1, b"second".to_vec()).await.unwrap();
    });
    block_on(async {
        let store = open(&dir).unwrap();
        assert_eq!(store.head(1).await, Ok(Some(b"second".to_vec())));
        assert_eq!(all(&store, 1, 100_000).await.unwrap().len(), 200);
    });
}

#[test]
fn a_staged_directory_takes_the_place_of_the_live_one() {
    let parent = TempDir::new().unwrap();
    let (live, staged) = (parent.path().join("pages"), parent.path().join("pages-staged"));
    block_on(async {
        let old = open(&live).unwrap();
        old.write(0, vec![put(b"a", b"old")]).await.unwrap();
        old.commit(0, b"old".to_vec()).await.unwrap();
        let new = open(&staged).unwrap();
        for n in 0..100_u8 {
            new.write(0, vec![put(&[n], &[n; 1000])]).await.unwrap();
            new.spill(0).await.unwrap();
        }
        assert_eq!(new.head(0).await, Ok(None));
        new.commit(0, b"new".to_vec()).await.unwrap();
        old.close();
        new.close();
        assert!(matches!(new.head(0).await, Err(PagesError::Failed(_))));
        replace(&live, &staged).unwrap();
        let store = open(&live).unwrap();
        assert_eq!(store.head(0).await, Ok(Some(b"new".to_vec())));
        assert_eq!(all(&store, 0, 5000).await.unwrap().len(), 100);
        assert!(!staged.exists());
    });
}

/// A directory in use is neither opened twice nor called unreadable, which would set it aside.
#[test]
fn a_directory_in_use_is_waited_for_and_then_refused() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("pages");
    let first = open(&dir).unwrap();
    assert!(matches!(open(&dir), Err(PagesError::Refused { want: Want::Threads, .. })));
    let closing = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(first);
    });
    let second = open(&dir).unwrap();
    closing.join().unwrap();
    assert_eq!(block_on(second.head(0)), Ok(None));
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let children = fs::read_dir(dir).unwrap().map(|child| child.unwrap().path());
    children.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// A byte is flipped in any file: either it does not matter, or it is noticed. Never a wrong page.
#[test]
fn damage_is_noticed() {
    let mut rng = fastrand::Rng::with_seed(kill::seed());
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("pages");
    let expected = block_on(async {
        let store = open(&dir).unwrap();
        for generation in 0..5_u8 {
            for n in 0..40_u8 {
                let noise = std::iter::repeat_with(|| rng.u8(..)).take(700).collect::<Vec<_>>();
                store.write(0, vec![put(&[n], &[&[generation][..], &noise].concat())]).await.unwrap();
            }
            store.commit(0, vec![generation]).await.unwrap();
        }
        all(&store, 0, 10_000).await.unwrap()
    });
    let (mut unreadable, mut rolled_back) = (0, 0);
    let originals: Vec<(PathBuf, Vec<u8>)> =
        files(&dir).into_iter().map(|path| (path.clone(), fs::read(&path).unwrap())).collect();
    let damaged: Vec<usize> = (0..originals.len()).filter(|at| !originals[*at].1.is_empty()).collect();
    for round in 0..16 {
        let (path, bytes) = &originals[damaged[round % damaged.len()]];
        let mut bytes = bytes.clone();
        let at = rng.usize(..bytes.len());
        bytes[at] ^= 1 << rng.u8(..8);
        fs::write(path, bytes).unwrap();
        let read = open(&dir)
            .and_then(|store| block_on(async { Ok((store.head(0).await?, all(&store, 0, 10_000).await?)) }));
        match read {
            Ok((Some(head), found)) if head == [4] => assert!(found == expected, "byte {at} of {path:?}"),
            // sled opened at an older commit: the caller sees it by its head.
            Ok(_) => rolled_back += 1,
            Err(PagesError::Unreadable(_)) => unreadable += 1,
            Err(error) => panic!("{error}"),
        }
        set_aside(&dir, Aside::Unreadable).unwrap();
        fs::create_dir_all(dir.join("slabs")).unwrap();
        fs::create_dir_all(dir.join("metadata")).unwrap();
        originals.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    }
    println!(
        "of 16 flipped bits {unreadable} made the pages unreadable, {rolled_back} brought an older commit"
    );
    assert!(unreadable > 0);
}

const ROUNDS: u32 = 50;

/// The pages of a generation: some come and go.
fn ids(generation: u64) -> impl Iterator<Item = u64> {
    (0..120 + generation * 37 % 60).filter(move |n| !(n + generation).is_multiple_of(11))
}

fn content(generation: u64, n: u64) -> Vec<u8> {
    let mut content = generation.to_le_bytes().to_vec();
    content.resize(8 + (n * 131 % 4000) as usize, n as u8);
    content
}

async fn child(dir: PathBuf) {
    let store = open(&dir.join("pages")).unwrap();
    let generation = |head: Vec<u8>| u64::from_le_bytes(head.try_into().unwrap());
    let mut last = store.head(3).await.unwrap().map_or(0, generation);
    kill::say(&format!("open {last}"));
    loop {
        let next = last + 1;
        let gone = ids(last).filter(|n| last > 0 && !ids(next).any(|m| m == *n));
        let mut writes: Vec<PageWrite> = gone.map(|n| delete(&n.to_be_bytes())).collect();
        writes.extend(ids(next).map(|n| put(&n.to_be_bytes(), &content(next, n))));
        for chunk in writes.chunks(30) {
            store.write(3, chunk.to_vec()).await.unwrap();
        }
        store.commit(3, next.to_le_bytes().to_vec()).await.unwrap();
        kill::say(&format!("committed {next}"));
        last = next;
    }
}

#[test]
fn a_killed_process_leaves_exactly_one_commit() {
    if let Some(dir) = kill::child_dir() {
        return block_on(child(dir));
    }
    let mut rng = fastrand::Rng::with_seed(kill::seed());
    let dir = TempDir::new().unwrap();
    let (mut committed, mut in_commit) = (0, 0);
    for round in 0..ROUNDS {
        let after = Duration::from_micros(rng.u64(..100_000));
        let test = "pages::tests::a_killed_process_leaves_exactly_one_commit";
        for line in kill::run_and_kill(test, dir.path(), after) {
            committed = line.split_once(' ').unwrap().1.parse().unwrap();
        }
        block_on(async {
            let store = open(&dir.path().join("pages")).unwrap();
            let Some(head) = store.head(3).await.unwrap() else {
                return assert_eq!(committed, 0, "round {round}");
            };
            let generation = u64::from_le_bytes(head.try_into().unwrap());
            assert!(
                generation >= committed,
                "round {round}: {committed} was committed, {generation} is there"
            );
            in_commit += generation - committed;
            let expected = ids(generation).map(|n| (n.to_be_bytes().to_vec(), content(generation, n)));
            let found = all(&store, 3, 100_000).await.unwrap();
            assert!(
                found.into_iter().eq(expected),
                "round {round}: not all pages are of generation {generation}"
            );
        });
    }
    println!("{ROUNDS} rounds, {committed} commits, {in_commit} times killed between flush and answer");
    assert!(committed > 10);
}
