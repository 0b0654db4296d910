//! Locks, semaphores, elections, leases, fences and exactly-once sessions: what Redis does not have.

pub mod election;
pub mod fence;
pub mod hold;
pub mod lease;
pub mod lock;
pub mod once;
pub mod semaphore;
