//! Workloads of what clients coordinate with: locks, elections, exactly-once sessions.

pub(super) mod holds;
pub(super) mod lock;
pub(super) mod once;
