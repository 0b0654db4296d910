//! System programs run under the library, followed by a power cut: what they synced stays, the rest is lost.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use super::{Extent, Lost};
use crate::cluster::disks::Disks;

/// A data directory, and its simulated disk.
struct Place {
    dir: TempDir,
    disks: Disks,
}

impl Place {
    fn new() -> Place {
        let dir = TempDir::new().unwrap();
        let place = Place { disks: Disks::find(&dir.path().canonicalize().unwrap()).unwrap(), dir };
        fs::create_dir(place.data()).unwrap();
        place
    }

    fn data(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join("data")
    }

    /// Runs a program in the data directory; returns whether it succeeded.
    fn run(&self, words: &str) -> bool {
        let mut words = words.split(' ');
        let status = Command::new(words.next().unwrap())
            .args(words)
            .current_dir(self.data())
            .env("LD_PRELOAD", &self.disks.library)
            .envs(self.disks.environment(1, &self.data()).unwrap())
            .stderr(std::process::Stdio::null())
            .status();
        status.unwrap().success()
    }

    /// Writes `count` pages filled with a letter, from page `seek` on.
    fn write(&self, name: &str, letter: char, seek: usize, count: usize, then: &str) -> bool {
        let source = self.dir.path().join("source");
        fs::write(&source, letter.to_string().repeat(count * 4096)).unwrap();
        self.run(&format!("dd if={} of={name} bs=4096 seek={seek} conv=notrunc{then}", source.display()))
    }

    /// The letter of each page of a file, and `?` for pages with more than one.
    fn read(&self, name: &str) -> String {
        let bytes = fs::read(self.data().join(name)).unwrap();
        let letter = |page: &[u8]| page.iter().all(|byte| *byte == page[0]).then_some(page[0] as char);
        bytes.chunks(4096).map(|page| letter(page).unwrap_or('?')).collect()
    }

    fn cut(&self, seed: u64, extent: Extent) -> Lost {
        let mut random = fastrand::Rng::with_seed(seed);
        self.disks.cut_power(1, &self.data(), &mut random, extent).unwrap()
    }
}

#[test]
fn what_was_synced_stays_and_what_was_not_goes() {
    let place = Place::new();
    assert!(place.write("f", 'a', 0, 4, ",fsync"));
    assert!(place.run("sync ."));
    assert!(place.write("f", 'b', 1, 2, ""));
    assert!(place.write("f", 'c', 2, 4, ""));
    assert_eq!(place.read("f"), "abcccc");
    let lost = place.cut(1, Extent::Whole);
    assert_eq!((place.read("f").as_str(), lost.files, lost.bytes), ("aaaa", 1, 5 * 4096));
    // What was lost is not lost twice, and fdatasync is a sync too.
    assert!(place.write("f", 'd', 3, 2, ",fdatasync"));
    assert_eq!(place.cut(1, Extent::Whole), Lost::default());
    assert_eq!(place.read("f"), "aaadd");
}

#[test]
fn content_that_was_cut_off_comes_back() {
    let place = Place::new();
    assert!(place.write("f", 'a', 0, 4, ",fsync"));
    assert!(place.run("sync ."));
    assert!(place.run("truncate -s 4096 f"));
    assert_eq!(place.read("f"), "a");
    place.cut(1, Extent::Whole);
    assert_eq!(place.read("f"), "aaaa");
}

#[test]
fn some_pages_stay_if_chance_wants_it() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let place = Place::new();
        assert!(place.write("f", 'a', 0, 3, ",fsync"));
        assert!(place.run("sync ."));
        assert!(place.write("f", 'b', 1, 2, ""));
        let lost = place.cut(seed, Extent::Torn);
        assert_eq!(lost.bytes / 4096 + lost.pages_kept, 2);
        seen.insert(place.read("f"));
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["aaa", "aab", "aba", "abb"]);
}

#[test]
fn names_are_durable_after_a_sync_of_their_directory() {
    let place = Place::new();
    let names = |dir: &Path| {
        let entries =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        entries.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" ")
    };
    for name in ["kept", "moved", "replaced", "removed"] {
        assert!(place.write(name, name.chars().next().unwrap(), 0, 1, ",fsync"));
    }
    assert!(place.run("sync ."));
    assert!(place.write("new", 'n', 0, 1, ",fsync"));
    assert!(place.run("mv moved elsewhere"));
    assert!(place.run("mv kept replaced"));
    assert!(place.run("rm removed"));
    assert!(place.run("mkdir dir"));
    assert!(place.write("dir/file", 'f', 0, 1, ",fsync"));
    assert_eq!(names(&place.data()), "dir elsewhere new replaced");
    assert_eq!(place.cut(1, Extent::Whole).names, 6);
    assert_eq!(names(&place.data()), "kept moved removed replaced");
    assert_eq!(["kept", "replaced", "removed"].map(|name| place.read(name)), ["k", "r", "r"]);
    // What is synced stays, whether by syncing the directory or everything.
    for sync in ["sync .", "sync"] {
        assert!(place.run("mv kept other") && place.run("rm removed") && place.run(sync));
        assert_eq!(place.cut(1, Extent::Whole), Lost::default());
        assert_eq!(names(&place.data()), "moved other replaced");
        assert!(place.run("mv other kept") && place.write("removed", 'r', 0, 1, "") && place.run("sync"));
    }
}

#[test]
fn orders_are_followed_and_counted() {
    use std::sync::atomic::Ordering::Relaxed;
    let place = Place::new();
    assert!(place.write("f", 'a', 0, 1, ",fsync") && place.run("sync ."));
    let control = place.disks.control(1).unwrap();
    assert!(control.loaded.load(Relaxed) > 0);
    control.full.store(crate::cluster::disks::format::FULL, Relaxed);
    assert!(!place.write("f", 'b', 0, 1, "") && !place.write("g", 'b', 0, 1, ""));
    assert_eq!(control.refused.load(Relaxed), 2);
    control.full.store(crate::cluster::disks::format::FULL_GROWTH, Relaxed);
    assert!(place.write("f", 'c', 0, 1, "") && !place.write("f", 'd', 1, 1, ""));
    control.full.store(0, Relaxed);
    assert_eq!(place.read("f"), "c");
    control.slow_ms_max.store(1, Relaxed);
    assert!(place.write("f", 'e', 0, 1, ",fsync"));
    assert_eq!(control.delayed.load(Relaxed), 1);
    fs::create_dir(place.data().join("log")).unwrap();
    control.failing_where.store(crate::cluster::disks::format::LOG, Relaxed);
    control.failing_syncs.store(1, Relaxed);
    assert!(place.write("f", 'f', 0, 1, ",fsync"), "only the log's syncs are meant");
    assert!(!place.write("log/1.log", 'g', 0, 1, ",fsync"));
    assert!(place.write("log/1.log", 'h', 0, 1, ",fsync"), "it fails once");
    control.lying.store(1, Relaxed);
    assert!(place.write("f", 'i', 0, 1, ",fsync"));
    place.cut(1, Extent::Whole);
    assert_eq!(place.read("f"), "f", "what a disk lied about is lost");
    assert_eq!((control.failed.load(Relaxed), control.unnoted.load(Relaxed)), (1, 0));
}
