//! Plots of a run, as SVG: latency and rate over time with the faults shaded, and the operations around an
//! anomaly.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use serde_json::Value;

use crate::{
    check::Finding,
    history::{Kind, Operation},
    nemesis::Shadow,
};

const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 40.0;
/// The range of the latency axis, in milliseconds.
const LEAST_MS: f64 = 0.1;
const MOST_MS: f64 = 10_000.0;
/// The maximum number of operations in a timeline.
const TIMELINE_MAX: usize = 150;
const ROW: f64 = 22.0;
/// The maximum number of characters.
const TITLE_MAX: usize = 150;
const LABEL_MAX: usize = 140;

fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Ok => "#2a78c8",
        Kind::Fail => "#d08020",
        Kind::Info | Kind::Invoke => "#c02060",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

struct Picture {
    out: String,
    seconds: f64,
    height: f64,
}

impl Picture {
    fn new(seconds: f64, height: f64, title: &str) -> Picture {
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"16\" font-size=\"14\">{}</text>", escape(title));
        Picture { out, seconds: seconds.max(0.001), height }
    }

    fn x(&self, seconds: f64) -> f64 {
        LEFT + seconds / self.seconds * (WIDTH - LEFT - 20.0)
    }

    fn text(&mut self, x: f64, y: f64, text: &str) {
        let _ = writeln!(self.out, "<text x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(text));
    }

    fn line(&mut self, y: f64, label: &str) {
        let _ = writeln!(
            self.out,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>",
            WIDTH - 20.0
        );
        self.text(4.0, y + 4.0, label);
    }

    /// Shades the faults; those without effect are paler.
    fn shade(&mut self, shadows: &[Shadow]) {
        for (index, shadow) in shadows.iter().enumerate() {
            let (from, to) = (self.x(shadow.from_ns as f64 / 1e9), self.x(shadow.to_ns as f64 / 1e9));
            let opacity = if shadow.effect { 0.25 } else { 0.08 };
            let _ = writeln!(
                self.out,
                "<rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#888\" \
                 opacity=\"{opacity}\"><title>{}: {}</title></rect>",
                to - from,
                self.height - TOP - BOTTOM,
                escape(&shadow.fault),
                escape(&shadow.detail.to_string())
            );
            self.text(from, TOP - 2.0 - 10.0 * f64::from(index as u32 % 2), &shadow.fault);
        }
    }

    fn seconds_below(&mut self) {
        let step = (self.seconds / 12.0).ceil().max(1.0);
        let mut second = 0.0;
        while second <= self.seconds {
            self.text(self.x(second), self.height - BOTTOM + 16.0, &format!("{second} s"));
            second += step;
        }
    }

    fn legend(&mut self) {
        for (index, kind) in [Kind::Ok, Kind::Fail, Kind::Info].into_iter().enumerate() {
            let x = WIDTH - 260.0 + 80.0 * index as f64;
            let y = self.height - 10.0;
            let _ = writeln!(
                self.out,
                "<circle cx=\"{x}\" cy=\"{}\" r=\"4\" fill=\"{}\"/>",
                y - 4.0,
                colour(kind)
            );
            self.text(x + 8.0, y, ["done", "failed", "unknown"][index]);
        }
    }

    fn end(mut self) -> String {
        self.out.push_str("</svg>\n");
        self.out
    }
}

fn length_s(operations: &[Operation]) -> f64 {
    operations.iter().map(|operation| operation.end_ns).max().unwrap_or(0) as f64 / 1e9
}

/// Each operation's latency, at the time of its invocation.
pub(crate) fn latency(operations: &[Operation], shadows: &[Shadow]) -> String {
    let mut picture = Picture::new(length_s(operations), HEIGHT, "Latency of operations");
    picture.shade(shadows);
    let y = |ms: f64| {
        let share = (ms.clamp(LEAST_MS, MOST_MS) / LEAST_MS).log10() / (MOST_MS / LEAST_MS).log10();
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    };
    for ms in [0.1, 1.0, 10.0, 100.0, 1_000.0, 10_000.0] {
        picture.line(y(ms), &format!("{ms} ms"));
    }
    for operation in operations {
        let ms = (operation.end_ns - operation.start_ns) as f64 / 1e6;
        let x = picture.x(operation.start_ns as f64 / 1e9);
        let _ = writeln!(
            picture.out,
            "<circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"1.5\" fill=\"{}\"/>",
            y(ms),
            colour(operation.outcome)
        );
    }
    picture.seconds_below();
    picture.legend();
    picture.end()
}

/// Completions per second.
pub(crate) fn rate(operations: &[Operation], shadows: &[Shadow]) -> String {
    let seconds = length_s(operations);
    let mut counts: BTreeMap<(u8, u64), usize> = BTreeMap::new();
    for operation in operations {
        *counts.entry((operation.outcome as u8, operation.end_ns / 1_000_000_000)).or_default() += 1;
    }
    let most = counts.values().copied().max().unwrap_or(1) as f64;
    let mut picture = Picture::new(seconds, HEIGHT, "Operations ended in each second");
    picture.shade(shadows);
    let y = |count: f64| HEIGHT - BOTTOM - count / most * (HEIGHT - TOP - BOTTOM);
    for quarter in 0..=4 {
        let count = most * f64::from(quarter) / 4.0;
        picture.line(y(count), &format!("{count:.0}"));
    }
    for kind in [Kind::Ok, Kind::Fail, Kind::Info] {
        let points: Vec<String> = (0..=seconds as u64)
            .map(|second| {
                let count = counts.get(&(kind as u8, second)).copied().unwrap_or(0);
                format!("{:.1},{:.1}", picture.x(second as f64), y(count as f64))
            })
            .collect();
        let _ = writeln!(
            picture.out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"/>",
            points.join(" "),
            colour(kind)
        );
    }
    picture.seconds_below();
    picture.legend();
    picture.end()
}

/// The keys in an operation's value.
fn keys(value: &Value) -> BTreeSet<String> {
    match value {
        Value::Array(steps) if steps.first().is_some_and(Value::is_array) => {
            steps.iter().map(|step| step[1].to_string()).collect()
        }
        Value::Array(parts) => parts.first().map(Value::to_string).into_iter().collect(),
        Value::Object(fields) => fields.get("key").map(Value::to_string).into_iter().collect(),
        _ => BTreeSet::new(),
    }
}

/// The operations of a finding, framed, among those on the same keys at about the same time.
pub(crate) fn timeline(operations: &[Operation], finding: &Finding) -> String {
    let is_culprit = |operation: &Operation| finding.operations.contains(&operation.start);
    let culprits: Vec<&Operation> = operations.iter().filter(|operation| is_culprit(operation)).collect();
    let wanted: BTreeSet<String> = culprits.iter().flat_map(|operation| keys(&operation.input)).collect();
    let last = culprits.iter().map(|operation| operation.end_ns).max().unwrap_or(0);
    let is_near = |operation: &&Operation| {
        let is_same = wanted.is_empty() || !wanted.is_disjoint(&keys(&operation.input));
        is_culprit(operation) || (is_same && operation.start_ns <= last)
    };
    let mut shown: Vec<&Operation> = operations.iter().filter(is_near).collect();
    // The latest ones, and in any case those of the finding.
    let surplus = shown.len().saturating_sub(TIMELINE_MAX);
    let mut place = 0;
    shown.retain(|operation| {
        place += 1;
        place > surplus || is_culprit(operation)
    });
    let from = shown.iter().map(|operation| operation.start_ns).min().unwrap_or(0);
    let seconds = (last.saturating_sub(from)) as f64 / 1e9;
    let height = TOP + BOTTOM + ROW * shown.len() as f64;
    let title: String = format!("{}: {}", finding.anomaly, finding.detail).chars().take(TITLE_MAX).collect();
    let mut picture = Picture::new(seconds, height, &title);
    for (row, operation) in shown.iter().enumerate() {
        let y = TOP + ROW * row as f64;
        let start = picture.x((operation.start_ns - from) as f64 / 1e9);
        let end = picture.x((operation.end_ns.min(last) - from) as f64 / 1e9).max(start + 2.0);
        let frame = if is_culprit(operation) { " stroke=\"black\" stroke-width=\"2\"" } else { "" };
        let _ = writeln!(
            picture.out,
            "<rect x=\"{start:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\" opacity=\"0.6\"{frame}/>",
            end - start,
            ROW - 6.0,
            colour(operation.outcome)
        );
        let node = operation.node.unwrap_or_default();
        let label = format!("{} on node {node}: {} {}", operation.process, operation.f, operation.output);
        let label: String = label.chars().take(LABEL_MAX).collect();
        picture.text((start + 2.0).min(WIDTH * 0.7), y + 12.0, &label);
        picture.text(4.0, y + 12.0, &operation.start.to_string());
    }
    picture.legend();
    picture.end()
}
