//! What to do when the system refuses what a verb needs: the advice that goes with exit code 8.

use std::{fmt::Display, path::Path};

use anyhow::anyhow;
use kvorum_raft::{Want, descriptors};

use super::{Failure, WANTING};

/// How a verb ends for want of something.
pub(super) fn failure(want: Want, dir: &Path, error: &impl Display) -> Failure {
    Failure { code: WANTING, error: anyhow!("{error}"), advice: Some(advice(want, dir)) }
}

/// The advice for what was refused; `dir` is the data directory.
fn advice(want: Want, dir: &Path) -> String {
    let dir = dir.display();
    let what_to_do = match want {
        Want::Descriptors => format!(
            "allow it more open files and start again: LimitNOFILE= in a systemd unit, nofile in limits.conf, ulimit -n in a \
             shell,\n--ulimit nofile= in Docker. It needs {} for itself, and one more for each client. If this process has \
             enough, the\nwhole system has run out: see fs.file-max.",
            descriptors::NEEDED
        ),
        Want::Memory => {
            "give it more memory (ulimit -v, MemoryMax= in a systemd unit, the limit of the container, or the machine's), and \
             start again."
                .to_owned()
        }
        Want::Threads => {
            "allow it more threads (ulimit -u, TasksMax= in a systemd unit, the pids limit of the container), or end the \
             process\nthat uses the same directory, and start again."
                .to_owned()
        }
        Want::Space => format!(
            "the disk is full, and nothing is left of what this node had set aside. Make room and start again: enlarge the \
             file\nsystem, or remove what others have put there. In {dir} only pages.unreadable-N,\npages.distrusted-N and \
             before-recovery-N may be removed, when nobody needs them any more."
        ),
        Want::Permission => format!(
            "let the user of this process read and write everything in {dir} (owner, mode, read-only mount,\nSELinux or \
             AppArmor), and start again."
        ),
        Want::Device => {
            "the device does not give what is on it. Look at the system's log (dmesg) and at the storage, and start again when \
             it\nworks. If it stays broken, the node has lost its disk: remove the node, and add one with an empty directory \
             under an id\nthat was never used."
                .to_owned()
        }
        Want::Other => "see what the system says, and start again.".to_owned(),
    };
    format!("Nothing is lost and nothing is damaged, the system refused {want}:\n{what_to_do}")
}
