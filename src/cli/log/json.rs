//! A log as JSON for other programs: an object for the log, then one for each entry, each in a line of its own.

use std::{
    io::{self, Write},
    path::Path,
};

use kvorum_raft::{
    NodeId,
    offline::{History, LogEnd, PastContent, PastEntry},
};
use serde_json::{Value, json};

use super::{Printer, date, unread};
use crate::{
    admin::api::text,
    proposal::{Call, Request, Requests, Waited},
    store::Ticket,
};

pub(super) struct Json;

impl Printer for Json {
    fn head(&mut self, out: &mut dyn Write, dir: &Path, history: &History) -> io::Result<()> {
        let end = |end: Option<LogEnd>| end.map(|end| json!({ "term": end.term, "index": end.index }));
        let vote = history
            .vote
            .map(|vote| json!({ "term": vote.term, "node_id": vote.node, "is_leader": vote.is_leader }));
        line(
            out,
            &json!({
                "kind": "log",
                "directory": dir.display().to_string(),
                "node_id": history.node_id,
                "cluster_id": history.cluster_id,
                "vote": vote,
                "first": end(history.ends.map(|(first, _)| first)),
                "last": end(history.ends.map(|(_, last)| last)),
                "committed": end(history.committed),
                "purged": end(history.purged),
                "damage": history.damage,
                "unreadable": history.unreadable,
            }),
        )
    }

    fn entry(&mut self, out: &mut dyn Write, entry: &PastEntry) -> io::Result<()> {
        let (kind, content) = match &entry.content {
            PastContent::Blank => ("blank", json!({})),
            PastContent::Members { voters, members } => {
                ("membership", json!({ "voters": voters, "members": members }))
            }
            PastContent::Proposals { clock_ms, ahead_ms, asks, proposals } => {
                let proposals: Vec<Value> =
                    proposals.iter().map(|(origin, bytes)| proposal(*origin, bytes)).collect();
                let time = date(clock_ms.cast_signed());
                let content = json!({
                    "time": time, "clock_ms": clock_ms, "ahead_ms": ahead_ms, "asks": asks, "proposals": proposals,
                });
                ("commands", content)
            }
            PastContent::Unreadable(why) => ("unreadable", json!({ "why": why })),
        };
        let mut object = json!({
            "kind": kind, "index": entry.index, "term": entry.term, "bytes": entry.bytes, "level": entry.level,
        });
        add(&mut object, content);
        line(out, &object)
    }
}

fn line(out: &mut dyn Write, object: &Value) -> io::Result<()> {
    writeln!(out, "{object}")
}

/// Adds the fields of an object to another.
fn add(object: &mut Value, more: Value) {
    if let (Value::Object(object), Value::Object(more)) = (object, more) {
        object.extend(more);
    }
}

fn proposal(origin: NodeId, bytes: &[u8]) -> Value {
    let mut read = Requests::new(bytes);
    let requests: Vec<Value> = read.by_ref().map(|request| of_request(&request)).collect();
    json!({ "node_id": origin, "requests": requests, "unreadable": unread(&read) })
}

fn of_request(request: &Request<'_>) -> Value {
    match request {
        Request::Call(call) => with_kind("call", of_call(call)),
        Request::Transaction { watched, calls } => {
            let watched = watched
                .iter()
                .map(|watch| json!({ "db": watch.db, "key": text(watch.key), "version": watch.version }));
            let (watched, calls): (Vec<Value>, Vec<Value>) =
                (watched.collect(), calls.iter().map(of_call).collect());
            with_kind("transaction", json!({ "watched": watched, "calls": calls }))
        }
        Request::WaitingCall { ticket, call } => {
            let mut object = with_kind("waiting_call", of_call(call));
            add(&mut object, json!({ "ticket": of_ticket(ticket) }));
            object
        }
        Request::Cancel(waited) => with_kind("cancel", of_wait(waited)),
        Request::Confirm(waited) => with_kind("confirm", of_wait(waited)),
        Request::ForgetNode { node, but_boot, term } => {
            with_kind("forget_node", json!({ "node_id": node, "but_boot": but_boot, "term": term }))
        }
        Request::InSession(caller) => {
            let is_resp3 = caller.is_resp3;
            with_kind("in_session", json!({ "db": caller.db, "id": text(&caller.id), "is_resp3": is_resp3 }))
        }
        Request::Setting(setting) => {
            let (name, value) = (text(setting.name), text(setting.digits));
            with_kind("setting", json!({ "name": name, "value": value, "is_default": setting.is_default }))
        }
    }
}

fn with_kind(kind: &str, mut object: Value) -> Value {
    add(&mut object, json!({ "kind": kind }));
    object
}

fn of_call(call: &Call<'_>) -> Value {
    let argv: Vec<Value> = call.argv.iter().map(|argument| text(argument)).collect();
    json!({ "db": call.db, "argv": argv })
}

fn of_wait(waited: &Waited<'_>) -> Value {
    json!({ "db": waited.db, "key": text(waited.key), "ticket": of_ticket(&waited.ticket) })
}

fn of_ticket(ticket: &Ticket) -> Value {
    json!({ "node_id": ticket.node, "boot": ticket.boot, "number": ticket.number })
}
