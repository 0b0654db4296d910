//! For tests: a child process that is killed at a random moment, as by a crash of the process. What the child
//! printed before is what it promised. Or one that lives under limits of its own.
//!
//! The child is this test binary, told to run one test, which finds `CHILD_DIR` set and becomes the child.

use std::{
    env,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

const CHILD_DIR: &str = "KVORUM_TEST_CHILD_DIR";

/// What every line of a child begins with, to tell it from the test harness's own.
const MARK: &str = "child:";

/// The directory to work in, when this process is a child.
pub(crate) fn child_dir() -> Option<PathBuf> {
    env::var_os(CHILD_DIR).map(PathBuf::from)
}

/// Says something to the parent, at once.
pub(crate) fn say(line: &str) {
    println!("{MARK}{line}.");
}

/// Runs `test` as a child in `dir`, kills it some time after its first line, and returns its lines. A child
/// that ends by itself failed.
pub(crate) fn run_and_kill(test: &str, dir: &Path, after: Duration) -> Vec<String> {
    let mut child = Command::new(env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut said: Vec<String> = lines.by_ref().find_map(|line| said(&line)).into_iter().collect();
    assert!(!said.is_empty(), "the child ended without a word");
    let rest = thread::spawn(move || lines.filter_map(|line| self::said(&line)).collect::<Vec<_>>());
    thread::sleep(after);
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), None, "the child ended by itself: {status}");
    said.extend(rest.join().unwrap());
    said
}

/// Runs `test` as a child in `dir` to its end, which must be a good one: for what concerns a whole process.
pub(crate) fn run_to_end(test: &str, dir: &Path) {
    let output = Command::new(env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD_DIR, dir)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the child failed:\n{text}");
    assert!(text.contains(MARK), "the child is not this test:\n{text}");
}

/// A line cut short by the kill has no newline after it and may be half a number: the child ends each with a
/// dot.
fn said(line: &str) -> Option<String> {
    let at = line.find(MARK)?;
    line[at + MARK.len()..].strip_suffix('.').map(str::to_owned)
}

/// The seed of a random test: given by KVORUM_SEED, or fresh. Printed.
pub(crate) fn seed() -> u64 {
    let seed = env::var("KVORUM_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("KVORUM_SEED={seed}");
    seed
}
