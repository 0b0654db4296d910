//! Group commit: when an entry is worth its cost. An entry costs every node far more than a proposal does:
//! wake-ups, messages, an fdatasync. So it waits for more proposals: for as many as were recently waiting or
//! in flight at once, since a client that was just answered is likely to ask again. What is large enough
//! already does not wait.
//!
//! Pure bookkeeping: it reads no clock. It is told of waiting in vain, and then waits less often: clients
//! that do not come in step are not slowed down.

/// With this many bytes waiting, an entry's own cost is small beside that of its content: about 70 plain
/// SETs.
const ENOUGH_BYTES: usize = 8 << 10;

/// At most 2 to the power of this many entries do not wait for more proposals after one has waited in vain.
const VAIN_MAX: u32 = 10;

/// What to do with what waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Send it.
    Send,
    /// Wait for more, but not for long.
    Gather,
    /// Wait for more, which what is in flight is going to bring.
    Wait,
}

/// What waits and what is in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Proposals that wait.
    pub waiting: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Proposals in entries that are not applied yet.
    pub in_flight: usize,
}

/// What was observed recently.
#[derive(Debug, Default)]
pub(crate) struct GroupCommit {
    /// How many proposals were waiting or in flight at once; falls slowly.
    peak: usize,
    /// How many entries in a row have waited for more proposals in vain.
    vain: u32,
    /// How many entries still go without waiting.
    skip: u32,
}

impl GroupCommit {
    /// What to do with what waits. Something must be waiting.
    pub(crate) fn judge(&self, load: Load) -> Verdict {
        let Load { waiting, bytes, in_flight } = load;
        if bytes >= ENOUGH_BYTES {
            return Verdict::Send;
        }
        if self.skip > 0 {
            let is_worth_it = in_flight == 0 || waiting >= self.peak / 2;
            return if is_worth_it { Verdict::Send } else { Verdict::Wait };
        }
        if waiting * 16 >= self.peak * 15 {
            Verdict::Send
        } else if in_flight > 0 {
            Verdict::Wait
        } else {
            Verdict::Gather
        }
    }

    /// Proposals have arrived.
    pub(crate) fn came(&mut self, load: Load) {
        self.peak = self.peak.max(load.waiting + load.in_flight);
    }

    /// What waits is sent. `gathered` says whether it waited for more proposals, and if so, whether enough came.
    pub(crate) fn sent(&mut self, gathered: Option<bool>) {
        self.peak -= self.peak.div_ceil(16);
        self.skip = self.skip.saturating_sub(1);
        match gathered {
            Some(true) => self.vain = 0,
            Some(false) => {
                self.vain = (self.vain + 1).min(VAIN_MAX);
                self.skip = 1 << self.vain;
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ENOUGH_BYTES, GroupCommit, Load, Verdict};

    fn load(waiting: usize, in_flight: usize) -> Load {
        Load { waiting, bytes: waiting * 100, in_flight }
    }

    #[test]
    fn one_client_never_waits() {
        let mut group_commit = GroupCommit::default();
        for _ in 0..100 {
            group_commit.came(load(1, 0));
            assert_eq!(group_commit.judge(load(1, 0)), Verdict::Send);
            group_commit.sent(None);
        }
    }

    #[test]
    fn clients_in_step_are_gathered() {
        let mut group_commit = GroupCommit::default();
        group_commit.came(load(20, 30));
        assert_eq!(group_commit.judge(load(30, 20)), Verdict::Wait, "those under way will come again");
        assert_eq!(group_commit.judge(load(30, 0)), Verdict::Gather);
        assert_eq!(group_commit.judge(load(47, 0)), Verdict::Send, "nearly all are there");
        let large = Load { waiting: 2, bytes: ENOUGH_BYTES, in_flight: 48 };
        assert_eq!(group_commit.judge(large), Verdict::Send);
    }

    #[test]
    fn late_comers_do_not_make_entries_ever_smaller() {
        let mut group_commit = GroupCommit::default();
        group_commit.came(load(50, 0));
        for _ in 0..1000 {
            let enough = (1..=50).find(|&waiting| group_commit.judge(load(waiting, 0)) == Verdict::Send);
            let sent = enough.expect("all of them are enough");
            assert!(sent >= 44, "{sent}");
            group_commit.sent(Some(true));
            group_commit.came(load(50 - sent, sent));
        }
    }

    #[test]
    fn waiting_in_vain_makes_it_rare() {
        let mut group_commit = GroupCommit::default();
        let mut vain = 0;
        for _ in 0..10_000 {
            // Ten come together, now and then; the rest come one by one.
            group_commit.came(load(10, 0));
            group_commit.sent(None);
            group_commit.came(load(3, 0));
            let gathered = (group_commit.judge(load(3, 0)) == Verdict::Gather).then_some(false);
            vain += usize::from(gathered.is_some());
            group_commit.sent(gathered);
        }
        assert!((10..40).contains(&vain), "{vain}");
    }

    #[test]
    fn a_crowd_that_has_left_is_forgotten() {
        let mut group_commit = GroupCommit::default();
        group_commit.came(load(100, 0));
        let entries = (0..1000).take_while(|_| {
            let waits = group_commit.judge(load(1, 0)) != Verdict::Send;
            group_commit.sent(None);
            group_commit.came(load(1, 0));
            waits
        });
        assert!(entries.count() < 60);
    }
}
