//! How much memory the content takes, and the limit for it. Both are part of the state: every node refuses the
//! same calls, at first and at each replay. So neither the allocator is asked nor the machine; keys and elements
//! count with their bytes and an allowance for what holds them.

use super::{ctx::Ctx, record::Record, settings::ClusterSetting, state::State, view::View};
use crate::error::{Error, Result};

/// What one entry deletes is not counted up to this part of the limit, although it is dropped only after it.
const BURIED_PART: u64 = 4;

/// What a key, an element or an argument costs in memory besides its bytes, at most.
pub const ELEMENT_BYTES: usize = 64;

impl State {
    /// What all keys cost in memory, and all that is no key.
    pub fn used_bytes(&self) -> u64 {
        (self.dirty.keys_bytes + self.catalog.bytes() + self.waits.bytes()) as u64
    }

    /// The limit for [`State::used_bytes`]; 0 means that there is none, and None that it was never set.
    pub fn maxmemory(&self) -> Option<u64> {
        self.setting(ClusterSetting::Maxmemory)
    }

    /// Whether there is a limit.
    #[inline]
    pub(crate) fn has_memory_limit(&self) -> bool {
        self.maxmemory().is_some_and(|limit| limit > 0)
    }

    /// Whether that much more content fits.
    pub(crate) fn has_memory_for(&self, bytes: u64) -> bool {
        match self.maxmemory() {
            None | Some(0) => true,
            // What was deleted by the same entry is dropped after it. A part of that is not counted: whoever deletes
            // a value to make room for another one may do so in one pipeline.
            Some(limit) => {
                let buried = (self.buried_bytes as u64).saturating_sub(limit / BURIED_PART);
                self.used_bytes().saturating_add(buried).saturating_add(bytes) <= limit
            }
        }
    }
}

impl View<'_> {
    /// What all content costs.
    pub fn used_bytes(&self) -> u64 {
        self.state.used_bytes()
    }

    /// What a key with its value costs; 0 if there is none.
    pub fn cost_of(&self, key: &[u8]) -> usize {
        self.find(key).map_or(0, Record::cost)
    }
}

impl Ctx<'_> {
    /// Whether there is a limit for the memory of the content.
    #[inline]
    pub fn has_memory_limit(&self) -> bool {
        self.state.has_memory_limit()
    }

    /// Refuses a call that adds that much content, if it does not fit. To be called before anything is changed.
    #[inline]
    pub fn check_memory(&self, bytes: usize) -> Result<()> {
        if self.state.has_memory_for(bytes as u64) { Ok(()) } else { Err(Error::OutOfMemory) }
    }

    /// The same for elements of these lengths, each of them so many times.
    pub fn check_memory_of(&self, elements: impl Iterator<Item = usize>, copies: usize) -> Result<()> {
        if !self.has_memory_limit() {
            return Ok(());
        }
        self.check_memory(copies * elements.map(|len| len + ELEMENT_BYTES).sum::<usize>())
    }

    /// What a key with its value costs.
    pub fn cost_of(&self, key: &[u8]) -> usize {
        self.view().cost_of(key)
    }
}
