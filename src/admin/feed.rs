//! `GET /v1/feed`: the change feed as server-sent events. An event's id is the log index, so a client that
//! reconnects with it, as `Last-Event-ID` or `from`, misses nothing, on any node.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use serde_json::{Value as Json, json};
use tokio::sync::{Notify, watch};

use super::api::{Problem, text};
use crate::{
    args::format_double,
    connection::Shared,
    effects::Event,
    feed::{Compacted, Entry, Filter, Subscription},
    store::{Content, Value},
};

/// How often a quiet stream reports the log index.
const TICK: Duration = Duration::from_secs(1);

/// An open stream.
struct Stream {
    subscription: Subscription,
    /// The start index was sent: without it, a client that reconnects at once would start over.
    has_begun: bool,
    stop: watch::Receiver<bool>,
    wake: Arc<Notify>,
    with_values: bool,
}

/// The query parameters. Some may be repeated.
#[derive(Default)]
struct Parameters {
    db: u32,
    keys: Vec<Box<[u8]>>,
    prefixes: Vec<Box<[u8]>>,
    from: Option<u64>,
    with_values: bool,
}

impl Parameters {
    fn parse(parameters: Vec<(String, String)>, databases: u32) -> Result<Parameters, Problem> {
        let mut asked = Parameters::default();
        for (name, value) in parameters {
            let number = || value.parse::<u64>().ok();
            let is_known = match name.as_str() {
                "db" => {
                    let db = number().filter(|&db| db < u64::from(databases));
                    db.map(|db| asked.db = db as u32).is_some()
                }
                "key" => {
                    asked.keys.push(value.as_bytes().into());
                    true
                }
                "prefix" => {
                    asked.prefixes.push(value.as_bytes().into());
                    true
                }
                "from" => {
                    asked.from = number();
                    asked.from.is_some()
                }
                "values" => {
                    asked.with_values = value == "true";
                    matches!(value.as_str(), "true" | "false")
                }
                _ => false,
            };
            if !is_known {
                let why = format!("{name}={value} is not understood");
                return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why));
            }
        }
        Ok(asked)
    }
}

pub(super) async fn feed(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(parameters) = query.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let mut asked = Parameters::parse(parameters, shared.settings.databases())?;
    if let Some(last) = headers.get("last-event-id") {
        // It is newer than the `from` in the client's URL.
        let index = last.to_str().ok().and_then(|last| last.parse().ok());
        asked.from = Some(index.ok_or_else(|| {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "Last-Event-ID is a log index here")
        })?);
    }
    let feed = shared.router.feed();
    if !feed.is_on() {
        return Err(Problem::new(StatusCode::NOT_FOUND, "the change feed is off on this node"));
    }
    let wake = Arc::new(Notify::new());
    let filter = Filter::new(asked.db, asked.keys, asked.prefixes);
    let subscription = feed.subscribe(filter, asked.from, wake.clone()).map_err(Problem::compacted)?;
    let stop = shared.stopping.clone();
    let stream = Stream { subscription, wake, with_values: asked.with_values, has_begun: false, stop };
    let events = futures::stream::unfold(Some(stream), |stream| async {
        let mut stream = stream?;
        let (event, goes_on) = stream.next().await?;
        Some((Ok::<_, Infallible>(event), goes_on.then_some(stream)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

impl Stream {
    /// Waits for the next event, and tells whether more follow. None if the node stops.
    async fn next(&mut self) -> Option<(sse::Event, bool)> {
        if !std::mem::replace(&mut self.has_begun, true) {
            return Some((message(self.subscription.told(), Vec::new()), true));
        }
        loop {
            match self.subscription.next_entry() {
                Ok(Some(entry)) => return Some((self.show(&entry), true)),
                Ok(None) => {}
                Err(Compacted { oldest, last }) => {
                    let why = json!({ "error": "compacted", "oldest_index": oldest, "last_index": last });
                    return Some((sse::Event::default().event("error").data(why.to_string()), false));
                }
            }
            tokio::select! {
                () = stopped(&mut self.stop) => return None,
                () = self.wake.notified() => {}
                () = tokio::time::sleep(TICK) => {
                    if let Some(index) = self.subscription.progress() {
                        return Some((message(index, Vec::new()), true));
                    }
                }
            }
        }
    }

    fn show(&self, entry: &Entry) -> sse::Event {
        let events = entry.events().filter(|event| self.subscription.filter().matches(event));
        message(entry.index, events.map(|event| show(&event, self.with_values)).collect())
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the process is ending.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn message(index: u64, events: Vec<Json>) -> sse::Event {
    sse::Event::default().id(index.to_string()).data(json!({ "index": index, "events": events }).to_string())
}

fn show(event: &Event<'_>, with_value: bool) -> Json {
    let type_name = event.held.as_ref().and_then(|held| held.type_name);
    let mut shown = json!({ "key": event.key.map(text), "what": event.what, "type": type_name });
    if with_value {
        match event.content() {
            Some(content) => shown["value"] = show_content(&content),
            None if type_name.is_some() => shown["omitted"] = true.into(),
            None => {}
        }
    }
    shown
}

fn show_content(content: &Content<'_>) -> Json {
    match content {
        Content::String(bytes) => text(bytes),
        Content::Object(Value::List(list)) => list.iter().map(text).collect(),
        Content::Object(Value::Hash(hash)) => {
            hash.iter().map(|(field, value)| json!([text(field), text(value)])).collect()
        }
        Content::Object(Value::Set(set)) => set.iter().map(|member| text(member.as_ref())).collect(),
        Content::Object(Value::SortedSet(set)) => {
            set.iter().map(|(member, score)| json!([text(member), number(score)])).collect()
        }
        Content::Object(_) => Json::Null,
        Content::Leader(leader) => json!({
            "candidate": text(leader.candidate),
            "epoch": leader.epoch,
            "value": leader.value.map(text),
        }),
    }
}

/// Infinities are strings, because JSON has none.
fn number(value: f64) -> Json {
    if value.is_finite() { value.into() } else { format_double(value).into() }
}
