//! A history in Jepsen's format, for Elle and Knossos: one map per line, only with the operations of the
//! workload.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::history::{Event, Kind, NEMESIS};

/// Writes events. A failure has the value of its invocation, as Knossos requires; what it reports besides is
/// its `:found`.
pub(crate) fn write<'a>(path: &Path, events: impl Iterator<Item = &'a Event>) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut file = BufWriter::new(file);
    let mut open: HashMap<i64, &Value> = HashMap::new();
    for event in events {
        let invoked = match event.kind {
            Kind::Invoke => open.insert(event.process, &event.value),
            _ => open.remove(&event.process),
        };
        let value = invoked.filter(|_| event.kind == Kind::Fail).unwrap_or(&event.value);
        writeln!(file, "{}", map(event, value)).context("cannot write the history")?;
    }
    file.flush().context("cannot write the history")
}

fn map(event: &Event, value: &Value) -> String {
    let process = if event.process == NEMESIS { ":nemesis".into() } else { event.process.to_string() };
    let kind = match event.kind {
        Kind::Invoke => "invoke",
        Kind::Ok => "ok",
        Kind::Fail => "fail",
        Kind::Info => "info",
    };
    let mut out = format!(
        "{{:index {}, :time {}, :type :{kind}, :process {process}, :f :{}, :value ",
        event.index, event.time_ns, event.f
    );
    put(&mut out, value);
    if *value != event.value {
        out.push_str(", :found ");
        put(&mut out, &event.value);
    }
    if let Some(node) = event.node {
        let _ = write!(out, ", :node {node}");
    }
    if let Some(error) = &event.error {
        out.push_str(", :error ");
        put(&mut out, &Value::String(error.clone()));
    }
    out.push('}');
    out
}

fn put(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("nil"),
        Value::String(text) if text.starts_with(':') => out.push_str(text),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            let _ = write!(out, "{value}");
        }
        Value::Array(values) => {
            out.push('[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    out.push(' ');
                }
                put(out, value);
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            for (index, (key, value)) in map.iter().enumerate() {
                let _ = write!(out, "{}:{key} ", if index > 0 { ", " } else { "" });
                put(out, value);
            }
            out.push('}');
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::history::tests::history;

    #[test]
    fn values_are_written_as_knossos_and_elle_read_them() {
        let mut events = history(&[
            (3, Kind::Invoke, "txn", json!([[":append", 1, 2], [":r", 1, null]])),
            (3, Kind::Info, "txn", json!({"a": "b"})),
            (4, Kind::Invoke, "cas", json!([1, [2, 3]])),
            (4, Kind::Fail, "cas", json!([1, [2, 3], 5])),
        ]);
        events[0].node = Some(2);
        events[1].error = Some("timeout".into());
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("h.edn");
        write(&file, events.iter()).unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        let ends = [
            ":f :txn, :value [[:append 1 2] [:r 1 nil]], :node 2}",
            ":value {:a \"b\"}, :error \"timeout\"}",
            ":type :invoke, :process 4, :f :cas, :value [1 [2 3]]}",
            ":type :fail, :process 4, :f :cas, :value [1 [2 3]], :found [1 [2 3] 5]}",
        ];
        assert_eq!(text.lines().count(), ends.len());
        for (line, end) in text.lines().zip(ends) {
            assert!(line.ends_with(end), "{line}");
        }
    }
}
