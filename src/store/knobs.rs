//! Sizes that a simulation turns down, so that few keys meet what in a server takes many. Everywhere else they are what is
//! asked for, and asking costs nothing.

#[cfg(feature = "simulation")]
use kvorum_raft::simulation::knobs;

/// A hash, as it is.
#[inline(always)]
pub fn cut_hash(hash: u64) -> u64 {
    #[cfg(feature = "simulation")]
    let hash = knobs::cut_hash(hash);
    hash
}

/// How many elements a packed form may have.
#[inline(always)]
pub fn packed_max(usual: usize) -> usize {
    #[cfg(feature = "simulation")]
    let usual = knobs::PACKED_MAX.or(usual);
    usual
}
