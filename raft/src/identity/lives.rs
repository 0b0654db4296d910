//! The lives of a disk. A start of a node on its data directory begins a new life, with a number and a unique
//! name, unless no peer has met the one before, which then continues. A disk that is put back to an older copy continues from an older life than its peers have met: under
//! a number that they know by another name.

use serde::{Deserialize, Serialize};

use crate::chance;

/// How many names are kept: a peer may miss this many starts and still see that one life follows from
/// another.
const NAMES_KEPT: usize = 256;

/// One life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Life {
    pub(crate) number: u64,
    pub(crate) name: u64,
}

/// The lives of one disk, as far back as they are kept. None before the first start, and from versions that
/// had none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lives {
    /// The present one's number.
    pub(crate) number: u64,
    /// The present one's name is the last.
    pub(crate) names: Vec<u64>,
    /// Whether a peer has met the present one. One that nobody has met continues at the next start, so that a
    /// disk that is refused does not get past the lives that its peers know by starting again and again.
    pub(crate) is_met: bool,
}

impl Lives {
    /// Begins a life.
    pub(crate) fn begin(&mut self) {
        if self.names.is_empty() || self.is_met {
            self.number += 1;
            self.names.push(chance::id());
            self.is_met = false;
        }
        if self.names.len() > NAMES_KEPT {
            self.names.remove(0);
        }
    }

    /// The present one.
    pub(crate) fn present(&self) -> Option<Life> {
        self.names.last().map(|name| Life { number: self.number, name: *name })
    }

    /// The name of a life of this disk. None if it is not kept, or has not begun.
    pub(crate) fn name_of(&self, number: u64) -> Option<u64> {
        let back = usize::try_from(self.number.checked_sub(number)?).ok()?;
        self.names.iter().nth_back(back).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::{Lives, NAMES_KEPT};

    #[test]
    fn a_life_that_was_met_is_followed_by_another_and_names_are_kept_for_a_while() {
        let mut lives = Lives::default();
        assert_eq!(lives.present(), None);
        lives.begin();
        let first = lives.present().unwrap();
        lives.begin();
        assert_eq!(lives.present(), Some(first), "nobody has met it");
        lives.is_met = true;
        lives.begin();
        let second = lives.present().unwrap();
        assert!(second.number == 2 && second.name != first.name && !lives.is_met);
        assert_eq!(
            (lives.name_of(1), lives.name_of(2), lives.name_of(3)),
            (Some(first.name), Some(second.name), None)
        );
        for _ in 0..NAMES_KEPT {
            lives.is_met = true;
            lives.begin();
        }
        assert_eq!((lives.number, lives.name_of(1), lives.name_of(2)), (2 + NAMES_KEPT as u64, None, None));
        assert!(lives.name_of(3).is_some());
    }
}
