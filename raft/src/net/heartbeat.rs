//! Heartbeats over long links. openraft gives a heartbeat the time of one interval and then sends the next:
//! over a longer round trip no answer would ever come in time, and a leader that everybody follows would know
//! of no follower. So an answer is awaited for as long as an election timeout, and one that comes after
//! openraft has stopped waiting counts as the answer to the heartbeat under way then.
//!
//! openraft thus dates what it knows of the peer later than it was, by that time at most: the peer followed
//! when it answered. Nothing that a client may see depends on it (`confirm.rs`); a leader that is cut off
//! notices it that much later.

use std::sync::Arc;

use openraft::raft::StreamAppendError;
use parking_lot::Mutex;

use super::messages::AppendResult;

/// The last answer of one peer to one leader that came when nobody waited for it any more.
#[derive(Clone, Default)]
pub(crate) struct LateAnswer(Arc<Mutex<Option<AppendResult>>>);

impl LateAnswer {
    /// An answer has come after openraft's time. A conflict concerns only what that heartbeat said, and is
    /// dropped.
    pub(crate) fn came(&self, result: AppendResult) {
        if matches!(result, Ok(_) | Err(StreamAppendError::HigherVote(_))) {
            *self.0.lock() = Some(result);
        }
    }

    /// Takes it: it counts once.
    pub(crate) fn take(&self) -> Option<AppendResult> {
        self.0.lock().take()
    }
}

#[cfg(test)]
mod tests {
    use openraft::raft::StreamAppendError;

    use super::LateAnswer;
    use crate::types::{LogId, Vote};

    #[test]
    fn a_late_answer_counts_once_and_a_conflict_not_at_all() {
        let late = LateAnswer::default();
        assert!(late.take().is_none());
        late.came(Ok(None));
        assert!(matches!(late.take(), Some(Ok(None))));
        assert!(late.take().is_none());
        late.came(Err(StreamAppendError::Conflict(LogId::new_term_index(1, 1))));
        assert!(late.take().is_none());
        late.came(Err(StreamAppendError::HigherVote(Vote::new(7, 2))));
        assert!(matches!(late.take(), Some(Err(StreamAppendError::HigherVote(_)))));
    }
}
