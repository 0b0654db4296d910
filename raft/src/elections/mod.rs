//! Who leads, as far as that is not left to openraft.
//!
//! Files: `candidacy.rs` stands for election, `rivals.rs` makes one of two candidates give way, and
//! `handover.rs` transfers the leadership. `contact.rs` is what a node knows of its contact with the group,
//! and `leader_watch.rs` what follows. `distance.rs` keeps the round trips that `pings.rs` measures, and
//! `timing.rs` derives the timeouts from them.

pub(crate) mod candidacy;
pub(crate) mod contact;
pub(crate) mod distance;
pub(crate) mod handover;
pub(crate) mod leader_watch;
pub(crate) mod pings;
pub(crate) mod rivals;
pub(crate) mod timing;

use std::sync::Arc;

use parking_lot::Mutex;

use crate::{elections::rivals::Rivals, types::Vote};

/// What an election needs to know besides what openraft knows.
#[derive(Default)]
pub(crate) struct Elections {
    pub rivals: Arc<Rivals>,
    /// The leader that is handing over: its lease does not count.
    handing_over: Mutex<Option<Vote>>,
}

impl Elections {
    /// A leader with this vote is handing over.
    pub(crate) fn handed_over(&self, by: &Vote) {
        *self.handing_over.lock() = Some(*by);
    }

    fn is_handed_over(&self, vote: &Vote) -> bool {
        self.handing_over.lock().as_ref() == Some(vote)
    }
}
