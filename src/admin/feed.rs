//! `GET /v1/feed`: the change feed as server-sent events. An event's id is the log index, so that a client that
//! comes back with it, as `Last-Event-ID` or `from`, misses nothing; at any node.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value as Json, json};
use tokio::sync::{Notify, watch};

use super::Refusal;
use crate::{
    args::format_double,
    feed::{Compacted, Entry, Event, Filter, Subscription},
    session::Shared,
    store::{Content, Value},
};

/// How often a quiet stream tells how far the log is.
const TICK: Duration = Duration::from_secs(1);

/// A stream under way.
struct Stream {
    subscription: Subscription,
    /// It was told where it begins: without that a client that comes back at once would begin anew.
    has_begun: bool,
    stop: watch::Receiver<bool>,
    wake: Arc<Notify>,
    with_values: bool,
}

/// What the query asks for. A parameter may stand there several times.
#[derive(Default)]
struct Wish {
    db: u32,
    keys: Vec<Box<[u8]>>,
    prefixes: Vec<Box<[u8]>>,
    from: Option<u64>,
    with_values: bool,
}

impl Wish {
    fn parse(parameters: Vec<(String, String)>, databases: u32) -> Result<Wish, Refusal> {
        let mut wish = Wish::default();
        for (name, value) in parameters {
            let number = || value.parse::<u64>().ok();
            let is_known = match name.as_str() {
                "db" => {
                    let db = number().filter(|&db| db < u64::from(databases));
                    db.map(|db| wish.db = db as u32).is_some()
                }
                "key" => {
                    wish.keys.push(value.as_bytes().into());
                    true
                }
                "prefix" => {
                    wish.prefixes.push(value.as_bytes().into());
                    true
                }
                "from" => {
                    wish.from = number();
                    wish.from.is_some()
                }
                "values" => {
                    wish.with_values = value == "true";
                    matches!(value.as_str(), "true" | "false")
                }
                _ => false,
            };
            if !is_known {
                let why = format!("{name}={value} is not understood");
                return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, why));
            }
        }
        Ok(wish)
    }
}

pub(super) async fn feed(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(parameters) = query.map_err(|error| Refusal::new(error.status(), error.body_text()))?;
    let mut wish = Wish::parse(parameters, shared.settings.databases())?;
    if let Some(last) = headers.get("last-event-id") {
        // It is newer than the address that the client was given once.
        let index = last.to_str().ok().and_then(|last| last.parse().ok());
        wish.from = Some(index.ok_or_else(|| {
            Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "Last-Event-ID is a log index here")
        })?);
    }
    let feed = shared.router.feed();
    if !feed.is_on() {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "the change feed is off on this node"));
    }
    let wake = Arc::new(Notify::new());
    let filter = Filter::new(wish.db, wish.keys, wish.prefixes);
    let subscription = feed.subscribe(filter, wish.from, wake.clone()).map_err(Refusal::compacted)?;
    let stop = shared.stopping.clone();
    let stream = Stream { subscription, wake, with_values: wish.with_values, has_begun: false, stop };
    let events = futures::stream::unfold(Some(stream), |stream| async {
        let mut stream = stream?;
        let (event, goes_on) = stream.next().await?;
        Some((Ok::<_, Infallible>(event), goes_on.then_some(stream)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

impl Stream {
    /// Waits for the next thing to tell. False when it is the last; None when the node stops.
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
    // An error means that the process ends.
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

/// Text as it is; other bytes marked and in base64.
fn text(bytes: &[u8]) -> Json {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

/// JSON has no infinity.
fn number(value: f64) -> Json {
    if value.is_finite() { value.into() } else { format_double(value).into() }
}
