//! The nodes' log messages, with simulated time. An ERROR is a finding, whether it is shown or not.

use std::{
    fmt::{self, Write as _},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, Result};
use tracing::{Event, Level, Subscriber, field::Visit, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer, Registry,
    fmt::{format::Writer, time::FormatTime},
    layer::{Context, SubscriberExt as _},
    util::SubscriberInitExt as _,
};

/// Expected errors, by their exact texts, with the reason.
const EXPECTED: &[(&str, &str)] = &[
    ("hanging up on clients that did not finish in time", "they wait for what a cut-off node cannot give"),
    ("the checkpoint failed", "the disk was made to fail"),
    ("the cluster's id could not be saved", "the disk was made to fail"),
];
/// The beginning of the message for a slow disk, which is followed by a duration.
const OF_SLOW_DISKS: &str = "the disk has not answered for";

/// Milliseconds since the beginning of this process's world.
static NOW: AtomicU64 = AtomicU64::new(0);
/// Errors since the last call of `errors`.
static ERRORS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct WorldTime;

impl FormatTime for WorldTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{:>6}", NOW.load(Ordering::Relaxed))
    }
}

/// Collects the errors of our own code, not those of libraries.
struct Errors;

/// An event's message, and its fields.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

impl<S: Subscriber> Layer<S> for Errors {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() != Level::ERROR || !event.metadata().target().starts_with("kvorum") {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        let is_expected = EXPECTED.iter().any(|(known, _)| *known == text.message);
        if !is_expected && !text.message.starts_with(OF_SLOW_DISKS) {
            let mut errors = ERRORS.lock().unwrap_or_else(PoisonError::into_inner);
            errors.push(text.message + &text.fields);
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::ERROR)
    }
}

/// Collects errors from now on, and shows what the filter accepts.
pub(super) fn watch(filter: Option<&str>) -> Result<()> {
    let filter = filter.map(tracing_subscriber::EnvFilter::try_new).transpose().context("--log")?;
    let shown = filter.map(|filter| {
        let lines = tracing_subscriber::fmt::layer().with_timer(WorldTime).with_writer(std::io::stderr);
        lines.with_filter(filter)
    });
    Registry::default().with(Errors).with(shown).init();
    Ok(())
}

/// The errors since the last call.
pub(super) fn errors() -> Vec<String> {
    std::mem::take(&mut *ERRORS.lock().unwrap_or_else(PoisonError::into_inner))
}

pub(super) fn moment(now_ms: u64) {
    NOW.store(now_ms, Ordering::Relaxed);
}
