//! Settings of the whole cluster. They are part of the state, so that every node applies an entry by the same
//! values, at first and at each replay.

use super::{catalog::Section, ctx::Ctx, level, state::State};

/// A setting: a number that is set by an entry of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterSetting {
    /// The limit for the memory of the content, in bytes; 0 for none.
    Maxmemory,
    /// How many elements one call may touch; 0 for any number.
    CallElementsMax,
}

/// What a setting's number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, which CONFIG SET accepts with a suffix such as `mb`.
    Bytes,
    /// A plain number.
    Count,
}

impl ClusterSetting {
    /// All of them.
    pub const ALL: [ClusterSetting; 2] = [ClusterSetting::Maxmemory, ClusterSetting::CallElementsMax];

    /// As CONFIG and the log name it.
    pub fn name(self) -> &'static str {
        match self {
            ClusterSetting::Maxmemory => "maxmemory",
            ClusterSetting::CallElementsMax => "call-elements-max",
        }
    }

    /// The setting with this name.
    pub fn named(name: &[u8]) -> Option<ClusterSetting> {
        ClusterSetting::ALL.into_iter().find(|setting| setting.name().as_bytes() == name)
    }

    /// What its number is.
    pub fn unit(self) -> Unit {
        match self {
            ClusterSetting::Maxmemory => Unit::Bytes,
            ClusterSetting::CallElementsMax => Unit::Count,
        }
    }

    /// The value that holds until it is set.
    pub fn default_value(self) -> u64 {
        match self {
            ClusterSetting::Maxmemory => 0,
            ClusterSetting::CallElementsMax => 10_000_000,
        }
    }

    /// The least value besides 0 that CONFIG SET accepts: with less, what nodes need for themselves is refused.
    pub fn least(self) -> u64 {
        match self {
            ClusterSetting::Maxmemory => 1,
            ClusterSetting::CallElementsMax => 1_000,
        }
    }

    /// The apply level from which on entries may have it.
    pub fn level(self) -> u32 {
        level::LIMITS
    }
}

/// The settings that were ever set, in the order of [`ClusterSetting::ALL`].
pub(crate) type Values = [Option<u64>; ClusterSetting::ALL.len()];

impl State {
    /// The value of a setting; None if it was never set.
    #[inline]
    pub fn setting(&self, setting: ClusterSetting) -> Option<u64> {
        self.settings[setting as usize]
    }

    /// Takes the values over from the catalog.
    pub(crate) fn read_settings(&mut self) {
        self.settings = ClusterSetting::ALL.map(|setting| {
            let digits = self.catalog.get(Section::Settings, setting.name().as_bytes())?;
            std::str::from_utf8(digits).ok()?.parse().ok()
        });
    }
}

impl Ctx<'_> {
    /// The value of a setting; None if it was never set.
    pub fn setting(&self, setting: ClusterSetting) -> Option<u64> {
        self.state.setting(setting)
    }

    /// Changes a setting.
    pub fn set_setting(&mut self, setting: ClusterSetting, value: u64) {
        self.catalog_put(Section::Settings, setting.name().as_bytes(), value.to_string().as_bytes());
        self.state.read_settings();
    }
}
