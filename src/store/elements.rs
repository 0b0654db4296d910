//! How many elements one call may touch. Nothing else is applied while a call runs, on any node and at each replay:
//! so its length has a limit, and what would pass it is refused before it begins.

use super::{ctx::Ctx, level, object::Pages, settings::ClusterSetting, state::State, view::View};
use crate::error::{Error, Result};

/// As many bytes of a string count as one element.
pub const BYTES_OF_AN_ELEMENT: usize = 256;

/// The elements that a call touches, or all calls of a transaction together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Elements {
    touched: u64,
    /// 0 for any number.
    max: u64,
}

impl Elements {
    /// Counts elements that are about to be touched. An error if they are too many, and then none is counted.
    pub fn check(&mut self, count: usize) -> Result<()> {
        let all = self.touched.saturating_add(count as u64);
        if all > self.max && self.max > 0 {
            return Err(Error::TooManyElements { count: all, max: self.max });
        }
        self.touched = all;
        Ok(())
    }

    /// Counts elements that are touched in any case: what follows in the same transaction has so many less.
    pub(crate) fn charge(&mut self, count: usize) {
        self.touched = self.touched.saturating_add(count as u64);
    }
}

impl State {
    /// None, and the limit that holds for an entry of this level.
    pub(crate) fn no_elements(&self, level: u32) -> Elements {
        let setting = ClusterSetting::CallElementsMax;
        let max = self.setting(setting).unwrap_or(setting.default_value());
        Elements { touched: 0, max: if level >= level::LIMITS { max } else { 0 } }
    }

    /// From here on, the elements of another call or transaction are counted.
    pub fn begin_request(&mut self) {
        self.elements = self.no_elements(self.level);
    }
}

impl View<'_> {
    /// From here on, the elements of another call or transaction are counted.
    pub fn begin_request(&self) {
        self.elements.set(self.state.no_elements(self.level.min(self.state.level)));
    }

    /// Refuses a call that is about to touch too many elements. To be called before anything is replied.
    pub fn check_elements(&self, count: usize) -> Result<()> {
        let mut elements = self.elements.get();
        elements.check(count)?;
        self.elements.set(elements);
        Ok(())
    }
}

impl Ctx<'_> {
    /// Refuses a call that is about to touch too many elements. To be called before anything is changed.
    #[inline]
    pub fn check_elements(&mut self, count: usize) -> Result<()> {
        self.state.elements.check(count)
    }

    /// Refuses a call that makes a string grow by so many bytes, if they are too many for the call or do not fit into
    /// memory.
    pub fn check_growth(&mut self, bytes: usize) -> Result<()> {
        self.check_elements(bytes / BYTES_OF_AN_ELEMENT)?;
        self.check_memory(bytes)
    }
}

impl Pages<'_> {
    /// As [`Ctx::check_elements`], while a value is changed.
    pub fn check_elements(&mut self, count: usize) -> Result<()> {
        self.elements.as_mut().map_or(Ok(()), |elements| elements.check(count))
    }
}
