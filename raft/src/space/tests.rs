//! The reserve is used when nothing else is left, and refilled when there is room; states follow.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use tempfile::TempDir;

use super::*;

const MB: u64 = 1 << 20;

/// A file system of 400 MB with a reserve of 8 and a margin of 4, whose free space the test sets. What the
/// reserve holds counts as used.
pub(crate) struct Small {
    pub(crate) space: Arc<Space>,
    pub(crate) unused: Arc<AtomicU64>,
    _dir: TempDir,
}

impl Small {
    pub(crate) fn with_unused(unused: u64) -> Small {
        let dir = TempDir::new().unwrap();
        let unused = Arc::new(AtomicU64::new(unused));
        let (path, left) = (dir.path().join("reserve"), unused.clone());
        let probe = move || {
            let free = left.load(Relaxed).saturating_sub(occupied(&path));
            Ok(Room { total: 400 * MB, free })
        };
        let plan = Plan { reserve: Some(8 * MB), usual: 0, margin: 4 * MB, lent_for: Duration::ZERO };
        let space = Arc::new(Space::with(plan, dir.path().to_owned(), Box::new(probe)));
        space.open();
        Small { space, unused, _dir: dir }
    }

    fn after(&self, unused: u64) -> (DiskState, u64) {
        self.unused.store(unused, Relaxed);
        self.space.look();
        let disk = self.space.disk();
        (disk.state, disk.reserve_bytes / MB)
    }
}

fn full() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

#[test]
fn states_follow_from_free_space_and_reserve_together() {
    let small = Small::with_unused(300 * MB);
    assert_eq!((small.space.disk().state, small.space.disk().reserve_bytes), (DiskState::Ample, 8 * MB));
    assert_eq!(small.space.growth(), 288 * MB);
    assert_eq!(small.after(23 * MB), (DiskState::Low, 8));
    assert_eq!(small.after(25 * MB), (DiskState::Low, 8), "it is left with some more");
    assert_eq!(small.after(11 * MB), (DiskState::Short, 8));
    assert_eq!(small.space.growth(), 0);
    assert_eq!(small.after(13 * MB), (DiskState::Short, 8));
    assert_eq!(small.after(15 * MB), (DiskState::Low, 8));
    assert_eq!(small.after(300 * MB), (DiskState::Ample, 8));
}

#[test]
fn the_reserve_is_used_up_and_taken_again() {
    let small = Small::with_unused(300 * MB);
    small.after(10 * MB);
    assert!(small.space.make_room(5 * MB - 1), "also when it is no whole number of blocks");
    assert_eq!(small.space.disk().reserve_bytes, 5 * MB);
    assert!(!small.space.make_room(11 * MB), "more than all there is");
    assert_eq!(small.space.disk().reserve_bytes, 5 * MB, "nothing is given up in vain");
    assert!(!small.space.has_free(6 * MB) && small.space.has_free(5 * MB));
    // Others fill the disk, and what is left is used.
    small.unused.store(5 * MB, Relaxed);
    let left = AtomicUsize::new(3);
    let written = small.space.with_room(|| match left.fetch_sub(1, Relaxed) {
        0 => Ok("written"),
        _ => Err(full()),
    });
    assert_eq!(written.unwrap(), "written");
    assert_eq!(small.space.disk().reserve_bytes, 2 * MB);
    assert!(small.space.with_room(|| Err::<(), _>(full())).is_err());
    assert_eq!(small.after(MB), (DiskState::Full, 0));
    assert_eq!(small.after(300 * MB), (DiskState::Ample, 8));
}

#[test]
fn the_log_waits_until_there_is_space_or_it_is_closed() {
    let small = Small::with_unused(300 * MB);
    small.after(0);
    let tries = AtomicUsize::new(0);
    let written = small.space.patiently(
        16 * MB,
        || false,
        || {
            if tries.fetch_add(1, Relaxed) < 4 {
                return Err(full());
            }
            assert_eq!(small.space.log_waits_for(), Some(Want::Space));
            assert_eq!(small.space.disk().state, DiskState::Full);
            Ok(7)
        },
    );
    assert_eq!((written.unwrap(), small.space.log_waits_for()), (7, None));
    assert_eq!(small.space.disk().reserve_bytes, 0);
    let given_up = small.space.patiently(1, || true, || Err::<(), _>(full()));
    assert!(is_full(&given_up.unwrap_err()) && small.space.log_waits_for().is_none());
    small.space.give_up();
    assert!(small.space.patiently(1, || false, || Err::<(), _>(full())).is_err(), "the node stops");
    // Only a lack of space is tried again.
    let other = small.space.patiently(1, || false, || Err::<(), _>(io::ErrorKind::NotFound.into()));
    assert_eq!(other.unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_checkpoint_without_space_stops_growth() {
    let small = Small::with_unused(300 * MB);
    small.space.set_checkpoint_waits(true);
    assert_eq!((small.space.disk().state, small.space.growth()), (DiskState::Short, 0));
    small.space.set_checkpoint_waits(false);
    assert_eq!(small.space.disk().state, DiskState::Ample);
}

#[test]
fn where_nothing_is_known_all_is_well() {
    let space = unknown();
    space.open();
    space.look();
    assert!(space.make_room(u64::MAX) && space.has_free(u64::MAX) && !space.is_tight());
    assert_eq!(space.growth(), u64::MAX);
    assert!(space.patiently(1, || false, || Err::<(), _>(full())).is_err());
}
