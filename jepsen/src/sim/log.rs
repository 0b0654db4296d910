//! What the nodes log, with the world's time.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result};
use tracing_subscriber::fmt::{format::Writer, time::FormatTime};

/// Milliseconds since the beginning of this process's world.
static NOW: AtomicU64 = AtomicU64::new(0);

struct WorldTime;

impl FormatTime for WorldTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{:>6}", NOW.load(Ordering::Relaxed))
    }
}

pub(super) fn show(filter: &str) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter).context("--log")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_timer(WorldTime)
        .with_writer(std::io::stderr)
        .init();
    Ok(())
}

pub(super) fn moment(now_ms: u64) {
    NOW.store(now_ms, Ordering::Relaxed);
}
