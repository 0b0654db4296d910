//! What a fault may do, for those who judge what happened meanwhile, or plan a run with it.

use super::named;

/// During and after these there may be no majority: if nothing is done then, that is not a fault of the
/// server.
const OF_MAJORITIES: &[&str] = &[
    "kill-majority",
    "kill-all",
    "pause-majority",
    "pause-all",
    "stop-all",
    "rolling-restart",
    "partition-ring",
    "partition-bridge",
    "delay",
    "loss",
    "lost-tail",
    "disk-slow-fsync",
    "disk-fail-fsync",
    "disk-full",
    "disk-lost-unsynced",
    "disk-lost-unsynced-all",
    "packet-loss",
    "packet-duplicate",
    "packet-reorder",
    "load-hot-key",
    "load-huge-value",
];

/// Whether a fault may leave no healthy, connected majority.
pub(crate) fn may_take_majority(fault: &str) -> bool {
    OF_MAJORITIES.contains(&fault)
}

/// After these the members may be others, or some of them have to be replaced.
const OF_MEMBERS: &[&str] =
    &["grow", "shrink", "replace", "flip-log", "truncate-log", "lost-tail", "disk-rolled-back"];

/// Whether a nemesis may change who is a member.
pub(crate) fn may_change_members(nemesis: &str) -> bool {
    of(nemesis).iter().any(|fault| OF_MEMBERS.contains(fault))
}

/// These do nothing with three nodes.
const OF_FIVE: &[&str] = &["shrink", "replace", "lost-tail", "partition-ring"];

/// Whether a nemesis can do nothing with three nodes.
pub(crate) fn needs_five(nemesis: &str) -> bool {
    let faults = of(nemesis);
    !faults.is_empty() && faults.iter().all(|fault| OF_FIVE.contains(fault))
}

/// What these leave stays as it is until they end: processes, links, clocks.
const STEADY: &[&str] = &[
    "kill-one",
    "kill-leader",
    "kill-minority",
    "kill-majority",
    "kill-all",
    "pause-one",
    "pause-leader",
    "pause-majority",
    "pause-all",
    "stop-one",
    "stop-all",
    "partition-one",
    "partition-leader",
    "partition-halves",
    "partition-ring",
    "partition-bridge",
    "partition-oneway",
    "partition-clients",
    "checkpoint",
    "clock-jump",
    "clock-strobe",
    "clock-drift",
    crate::watch::majority::FAULT,
];

/// Whether nothing more happens between the beginning and the end of a fault.
pub(crate) fn is_steady(fault: &str) -> bool {
    STEADY.contains(&fault)
}

/// The faults of a nemesis.
fn of(nemesis: &str) -> Vec<&'static str> {
    named(nemesis).into_iter().flat_map(|it| it.faults).map(|(fault, _)| fault).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_does_what_one_of_its_faults_may_do_and_needs_what_all_of_them_need() {
        assert!(may_change_members("membership") && may_change_members("disk"));
        assert!(!may_change_members("kill") && !may_change_members("transfer"));
        assert!(needs_five("lost-tail") && !needs_five("partition") && !needs_five("unknown"));
    }

    #[test]
    fn every_name_in_a_list_is_of_a_fault() {
        let faults: Vec<&str> = super::super::faults().collect();
        for name in [OF_MAJORITIES, OF_MEMBERS, OF_FIVE, STEADY].concat() {
            assert!(faults.contains(&name) || name == crate::watch::majority::FAULT, "{name}");
        }
    }
}
