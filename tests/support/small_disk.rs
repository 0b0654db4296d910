//! Small file systems in memory, in a mount namespace of the test's own: they are there for the thread that made them and for
//! what it starts, and go with it.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::process::Cluster;

/// The disks of a cluster's nodes. To be dropped after it.
pub struct SmallDisks {
    dirs: Vec<PathBuf>,
    _dir: TempDir,
}

/// What somebody else puts on a disk.
const FILLER: &str = "of-somebody-else";

fn mount(source: &str, target: &Path, kind: &str, flags: libc::c_ulong, options: &str) -> io::Result<()> {
    let text = |bytes: &[u8]| CString::new(bytes).expect("without a zero byte");
    let (source, kind, options) = (text(source.as_bytes()), text(kind.as_bytes()), text(options.as_bytes()));
    let target = text(target.as_os_str().as_bytes());
    // SAFETY: all are strings that end with a zero byte, and outlive the call.
    let result = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl SmallDisks {
    /// One of `mb` megabytes for each of `count` nodes. None, with a word about it, without the rights.
    pub fn new(count: usize, mb: u64) -> Option<SmallDisks> {
        // SAFETY: it takes flags alone, and concerns this thread and what it starts.
        let entered = unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0;
        if !entered || mount("none", Path::new("/"), "", libc::MS_REC | libc::MS_PRIVATE, "").is_err() {
            eprintln!("skipped: no rights for a mount namespace");
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory for the test");
        let dirs: Vec<PathBuf> = (0..count).map(|node| dir.path().join(format!("disk{node}"))).collect();
        for dir in &dirs {
            fs::create_dir(dir).expect("a directory to mount on");
            mount("tmpfs", dir, "tmpfs", 0, &format!("size={mb}m")).expect("a file system in memory");
        }
        Some(SmallDisks { dirs, _dir: dir })
    }

    /// Has the nodes, which were not started, keep their data on the disks.
    pub fn hold(&self, cluster: &mut Cluster) {
        self.dirs.iter().enumerate().for_each(|(node, dir)| cluster.put_data(node, dir.join("data")));
    }

    /// Somebody else takes all that is left of a disk.
    pub fn fill(&self, node: usize) {
        let mut file = File::options().create(true).append(true).open(self.dirs[node].join(FILLER)).unwrap();
        for size in [1 << 20, 4096] {
            let bytes = vec![7; size];
            loop {
                match file.write(&bytes) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    /// And gives it back.
    pub fn clear(&self, node: usize) {
        fs::remove_file(self.dirs[node].join(FILLER)).unwrap();
    }
}

impl Drop for SmallDisks {
    fn drop(&mut self) {
        for dir in &self.dirs {
            let path = CString::new(dir.as_os_str().as_bytes()).expect("without a zero byte");
            // SAFETY: a string that ends with a zero byte.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
    }
}
