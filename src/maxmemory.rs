//! The limit for the memory of the content, as the server cares for it: what this machine has, the limit that a
//! leader proposes for a cluster without one, and who is told when a node has less memory than the limit allows.
//! The limit itself is part of the state (`store/memory.rs`).

use std::{fs, path::Path, time::Duration};

use kvorum_raft::Role;

use crate::{cluster_settings, router::Router, store::ClusterSetting};

/// How often the leader looks whether there is a limit.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// By default the content takes no more than this part of the machine's memory: what holds it, images for
/// checkpoints, buffers and the log's tail take memory too.
const SHARE: u64 = 2;

/// A limit that is chosen leaves a cluster this much room, in quarters of what it holds.
const ROOM_QUARTERS: u64 = 5;

/// The memory in bytes that this process may have: the machine's, or what its control groups allow. None if the
/// system does not say.
pub fn of_machine() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_of(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = groups.lines().flat_map(|line| limits_of(line, Path::new("/sys/fs/cgroup")));
    limits.chain(machine).min()
}

/// The memory that /proc/meminfo tells of.
fn total_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// The limits of a control group, given as a line of /proc/self/cgroup, and of those around it.
fn limits_of(line: &str, root: &Path) -> Vec<u64> {
    let mut parts = line.splitn(3, ':');
    let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
        return Vec::new();
    };
    let (root, file) = if controllers.is_empty() {
        (root.to_owned(), "memory.max")
    } else if controllers.split(',').any(|controller| controller == "memory") {
        (root.join("memory"), "memory.limit_in_bytes")
    } else {
        return Vec::new();
    };
    let group = root.join(path.trim_start_matches('/'));
    let around = group.ancestors().take_while(|ancestor| ancestor.starts_with(&root));
    // No limit is "max", or, in the first version, a number that no machine has.
    around.filter_map(|group| fs::read_to_string(group.join(file)).ok()?.trim().parse().ok()).collect()
}

/// Gives a cluster without a limit one while this node leads, and says when this node has less memory than the
/// limit. `configured` is the limit that the operator gave to this node. Runs forever.
pub async fn watch(router: &Router, configured: Option<u64>) {
    let machine = of_machine();
    let mut seen = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let limit = router.machine().maxmemory();
        match limit {
            Some(bytes) if limit != seen => say(bytes, machine, configured),
            Some(_) => {}
            None if is_due(router) => {
                let used = router.machine().used_bytes();
                let chosen = configured.unwrap_or_else(|| chosen(machine, used));
                // If that fails, it is tried again.
                let _ = cluster_settings::set(router, &[(ClusterSetting::Maxmemory, chosen)], true).await;
            }
            None => {}
        }
        seen = limit;
    }
}

/// Whether this node leads a cluster that knows the setting.
fn is_due(router: &Router) -> bool {
    let (status, level) = (router.status(), ClusterSetting::Maxmemory.level());
    status.role == Role::Leader && (status.apply_level == 0 || status.apply_level >= level)
}

fn chosen(machine: Option<u64>, used: u64) -> u64 {
    machine.map_or(0, |machine| (machine / SHARE).max(used / 4 * ROOM_QUARTERS))
}

fn say(limit: u64, machine: Option<u64>, configured: Option<u64>) {
    tracing::info!(bytes = limit, "the cluster's limit for the memory of its content (maxmemory)");
    if limit == 0 {
        tracing::warn!("the cluster has no maxmemory: content that outgrows a machine ends its node");
    }
    if let Some(machine) = machine
        && limit > machine
    {
        tracing::warn!(
            maxmemory = limit,
            machine,
            "this node has less memory than the cluster's maxmemory allows: it may be killed before a write is \
             refused. Lower the limit with CONFIG SET maxmemory, or move the node to a larger machine"
        );
    }
    if let Some(configured) = configured.filter(|configured| *configured != limit) {
        tracing::warn!(
            configured,
            maxmemory = limit,
            "--maxmemory is only for a cluster that has no limit yet; CONFIG SET maxmemory changes it"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_machine_is_the_least_that_anybody_allows() {
        assert_eq!(total_of("MemTotal:       24576 kB\nMemFree: 1 kB\n"), Some(24 << 20));
        assert_eq!(total_of("nothing"), None);
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        fs::write(root.path().join("a/memory.max"), "1048576\n").unwrap();
        assert_eq!(limits_of("0::/a/b", root.path()), [1 << 20]);
        assert_eq!(limits_of("0::/other", root.path()), [0; 0]);
        let first = root.path().join("memory/x");
        fs::create_dir_all(&first).unwrap();
        fs::write(first.join("memory.limit_in_bytes"), "4096\n").unwrap();
        assert_eq!(limits_of("5:cpu,memory:/x", root.path()), [4096]);
        assert_eq!(limits_of("5:cpu:/x", root.path()), [0; 0]);
        assert_eq!(limits_of("nothing", root.path()), [0; 0]);
        assert!(of_machine().is_none_or(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn a_limit_that_is_chosen_leaves_room_for_what_is_there() {
        assert_eq!(chosen(Some(1000), 0), 500);
        assert_eq!(chosen(Some(1000), 800), 1000);
        assert_eq!(chosen(None, 800), 0);
    }
}
