//! When an entry is worth its cost. An entry costs every node far more than a proposal does: wake-ups, messages, an
//! fdatasync. So it waits for company: for as many proposals as were lately waiting or under way at once, since
//! whoever was just answered is likely to ask again. What is large enough already waits for nobody.
//!
//! Pure bookkeeping: it reads no clock. Waiting in vain is told to it, and makes it wait less often: clients that do
//! not come in step are not slowed down for it.

/// With so many bytes waiting, an entry's own cost is small beside that of its content: about 70 plain SETs.
const ENOUGH_BYTES: usize = 8 << 10;

/// At most 2 to the power of this entries go without waiting for company after it was waited for in vain.
const VAIN_MAX: u32 = 10;

/// What to do with what waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Send it.
    Send,
    /// Wait for more, but not for long.
    Gather,
    /// Wait for more, which what is under way is going to bring.
    Wait,
}

/// What waits and what is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Proposals that wait.
    pub waiting: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Proposals in entries that are not applied yet.
    pub in_flight: usize,
}

/// What was seen lately.
#[derive(Debug, Default)]
pub(crate) struct Company {
    /// How many proposals were waiting or under way at once; falls slowly.
    peak: usize,
    /// How often in succession company was waited for in vain.
    vain: u32,
    /// So many entries go without.
    skip: u32,
}

impl Company {
    /// What to do with what waits; there is something.
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

    /// Proposals have come.
    pub(crate) fn came(&mut self, load: Load) {
        self.peak = self.peak.max(load.waiting + load.in_flight);
    }

    /// What waits is sent. `gathered` says whether company was waited for, and if so, whether it came.
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
    use super::{Company, ENOUGH_BYTES, Load, Verdict};

    fn load(waiting: usize, in_flight: usize) -> Load {
        Load { waiting, bytes: waiting * 100, in_flight }
    }

    #[test]
    fn one_client_never_waits() {
        let mut company = Company::default();
        for _ in 0..100 {
            company.came(load(1, 0));
            assert_eq!(company.judge(load(1, 0)), Verdict::Send);
            company.sent(None);
        }
    }

    #[test]
    fn clients_in_step_are_gathered() {
        let mut company = Company::default();
        company.came(load(20, 30));
        assert_eq!(company.judge(load(30, 20)), Verdict::Wait, "those under way will come again");
        assert_eq!(company.judge(load(30, 0)), Verdict::Gather);
        assert_eq!(company.judge(load(47, 0)), Verdict::Send, "nearly all are there");
        let large = Load { waiting: 2, bytes: ENOUGH_BYTES, in_flight: 48 };
        assert_eq!(company.judge(large), Verdict::Send);
    }

    #[test]
    fn late_comers_do_not_make_entries_ever_smaller() {
        let mut company = Company::default();
        company.came(load(50, 0));
        for _ in 0..1000 {
            let enough = (1..=50).find(|&waiting| company.judge(load(waiting, 0)) == Verdict::Send);
            let sent = enough.expect("all of them are enough");
            assert!(sent >= 44, "{sent}");
            company.sent(Some(true));
            company.came(load(50 - sent, sent));
        }
    }

    #[test]
    fn waiting_in_vain_makes_it_rare() {
        let mut company = Company::default();
        let mut vain = 0;
        for _ in 0..10_000 {
            // Ten come together, now and then; the rest come one by one.
            company.came(load(10, 0));
            company.sent(None);
            company.came(load(3, 0));
            let gathered = (company.judge(load(3, 0)) == Verdict::Gather).then_some(false);
            vain += usize::from(gathered.is_some());
            company.sent(gathered);
        }
        assert!((10..40).contains(&vain), "{vain}");
    }

    #[test]
    fn a_crowd_that_has_left_is_forgotten() {
        let mut company = Company::default();
        company.came(load(100, 0));
        let entries = (0..1000).take_while(|_| {
            let waits = company.judge(load(1, 0)) != Verdict::Send;
            company.sent(None);
            company.came(load(1, 0));
            waits
        });
        assert!(entries.count() < 60);
    }
}
