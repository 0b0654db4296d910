//! Sizes that a simulation reduces, so that few keys exercise what takes many in a server. Elsewhere they
//! have their usual values, and the functions cost nothing.

#[cfg(feature = "simulation")]
use kvorum_raft::simulation::knobs;

/// A hash, unchanged outside of simulations.
#[inline(always)]
pub fn cut_hash(hash: u64) -> u64 {
    #[cfg(feature = "simulation")]
    let hash = knobs::cut_hash(hash);
    hash
}

/// The maximum number of elements in a packed form.
#[inline(always)]
pub fn packed_max(usual: usize) -> usize {
    #[cfg(feature = "simulation")]
    let usual = knobs::PACKED_MAX.or(usual);
    usual
}

/// The maximum number of items in a page of keys or elements.
#[inline(always)]
pub fn page_items_max(usual: usize) -> usize {
    #[cfg(feature = "simulation")]
    let usual = knobs::PAGE_ITEMS_MAX.or(usual);
    usual
}

/// The maximum number of bytes in a page of a list.
#[inline(always)]
pub fn list_page_bytes_max(usual: usize) -> usize {
    #[cfg(feature = "simulation")]
    let usual = knobs::LIST_PAGE_BYTES_MAX.or(usual);
    usual
}
