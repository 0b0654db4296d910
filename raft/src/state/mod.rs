//! What has been applied. `applier.rs` applies entries, by the rules that `level.rs` names, and `progress.rs`
//! is what it keeps besides the machine's state. `adapter.rs` is the state machine that openraft calls.

pub(crate) mod adapter;
pub(crate) mod applier;
pub(crate) mod level;
pub(crate) mod progress;
