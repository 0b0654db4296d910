//! What is looked at while a world runs, beside the replies that clients got: invariants at every step, and
//! whether the cluster serves.

pub(in crate::sim) mod health;
pub(in crate::sim) mod invariants;
pub(in crate::sim) mod majority;
