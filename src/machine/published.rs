//! What others ask of the state most often, as of the last entry: to be read while an entry is applied.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::store::{ClusterSetting, State};

/// The absence of a number.
const NONE: u64 = u64::MAX;

/// Numbers of the state after the last entry; each by itself.
#[derive(Debug, Default)]
pub(super) struct Published {
    applied: AtomicU64,
    now_ms: AtomicU64,
    ahead_ms: AtomicI64,
    level: AtomicU32,
    used_bytes: AtomicU64,
    settings: [AtomicU64; ClusterSetting::ALL.len()],
    first_deadline_ms: AtomicU64,
}

impl Published {
    pub(super) fn of(state: &State) -> Published {
        let published = Published::default();
        published.publish(state);
        published
    }

    pub(super) fn publish(&self, state: &State) {
        self.applied.store(state.applied(), Relaxed);
        self.now_ms.store(state.now_ms(), Relaxed);
        self.ahead_ms.store(state.ahead_ms(), Relaxed);
        self.level.store(state.level(), Relaxed);
        self.used_bytes.store(state.used_bytes(), Relaxed);
        for (published, setting) in self.settings.iter().zip(ClusterSetting::ALL) {
            published.store(state.setting(setting).map_or(NONE, |value| value.min(NONE - 1)), Relaxed);
        }
        self.first_deadline_ms.store(state.first_deadline_ms().unwrap_or(NONE), Relaxed);
    }

    pub(super) fn applied(&self) -> u64 {
        self.applied.load(Relaxed)
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.now_ms.load(Relaxed)
    }

    pub(super) fn ahead_ms(&self) -> i64 {
        self.ahead_ms.load(Relaxed)
    }

    pub(super) fn level(&self) -> u32 {
        self.level.load(Relaxed)
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Relaxed)
    }

    pub(super) fn setting(&self, setting: ClusterSetting) -> Option<u64> {
        some(self.settings[setting as usize].load(Relaxed))
    }

    pub(super) fn first_deadline_ms(&self) -> Option<u64> {
        some(self.first_deadline_ms.load(Relaxed))
    }
}

fn some(number: u64) -> Option<u64> {
    (number != NONE).then_some(number)
}
