//! Heartbeats over long links. openraft gives a heartbeat the time of one interval and then sends the next: over a longer way
//! no answer would ever come in time, and a leader that all follow would know of nobody. Here an answer is waited for as long as
//! an election time-out, and one that comes later than openraft waits stands for the answer to the heartbeat under way then.
//!
//! openraft so dates what it knows of the peer later than it was, by that time at most: the peer followed when it answered.
//! Nothing that a client may see depends on it (`confirm.rs`); a leader that is cut off knows it that much later.

use std::sync::Arc;

use openraft::raft::StreamAppendError;
use parking_lot::Mutex;

use super::messages::AppendResult;

/// The last answer that nobody waited for any more, from one peer to one leader.
#[derive(Clone, Default)]
pub(crate) struct LateAnswer(Arc<Mutex<Option<AppendResult>>>);

impl LateAnswer {
    /// An answer has come after openraft's time. A conflict is with what that heartbeat said, and is told to nobody else.
    pub(crate) fn came(&self, result: AppendResult) {
        if matches!(result, Ok(_) | Err(StreamAppendError::HigherVote(_))) {
            *self.0.lock() = Some(result);
        }
    }

    /// It counts once.
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
