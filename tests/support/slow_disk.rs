//! Disks whose syncs take as long as a test says: the nodes load the library of `jepsen/disk-faults`, which stands between them
//! and libc. Cargo builds it when a test asks for it, into a directory of the tests' own.

use std::{
    fs::{self, File},
    mem::offset_of,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tempfile::TempDir;

use super::process::Cluster;

// The file is the library's: it reads what is written here.
#[path = "../../jepsen/disk-faults/src/format.rs"]
mod format;

use format::{CONTROL_VARIABLE, Control, DATA_VARIABLE, JOURNAL_VARIABLE};

/// The disks of a cluster's nodes.
pub struct SlowDisks {
    /// The library maps these files, and sees what is written to them at once.
    controls: Vec<File>,
    _dir: TempDir,
}

/// Builds the library.
fn library() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--locked", "--offline", "--package", "kvorum-disk-faults", "--target-dir"]);
    let output = cargo.arg(target).current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    target.join("debug/libkvorum_disk_faults.so")
}

impl SlowDisks {
    /// For the nodes of a cluster that were not started. The disks are as fast as ever.
    pub fn hold(cluster: &mut Cluster) -> SlowDisks {
        let (library, dir) = (library(), tempfile::tempdir().expect("a directory for the test"));
        let nodes = 0..cluster.addresses.len();
        let hold = |node: usize| {
            let journal = dir.path().join(format!("journal{node}"));
            fs::create_dir(&journal).expect("a directory for the journal");
            let control = dir.path().join(format!("control{node}"));
            let file = File::create(&control).expect("a file for the orders");
            file.set_len(size_of::<Control>() as u64).expect("a file for the orders");
            let data = cluster.data_of(node);
            fs::create_dir_all(&data).expect("a directory for the data");
            let variables = vec![
                ("LD_PRELOAD", library.clone()),
                (CONTROL_VARIABLE, control),
                // The library compares it with what the system calls the files.
                (DATA_VARIABLE, data.canonicalize().expect("a directory that is there")),
                (JOURNAL_VARIABLE, journal),
            ];
            cluster.add_environment(node, variables);
            file
        };
        let controls = nodes.map(hold).collect();
        SlowDisks { controls, _dir: dir }
    }

    /// From its next one on each sync of a node takes so much longer.
    pub fn slow(&self, node: usize, by: Duration) {
        let ms = u64::try_from(by.as_millis()).expect("a time that a test takes").to_ne_bytes();
        for order in [offset_of!(Control, slow_ms_min), offset_of!(Control, slow_ms_max)] {
            self.controls[node].write_all_at(&ms, order as u64).expect("orders can be written");
        }
    }
}
