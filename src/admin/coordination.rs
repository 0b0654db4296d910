//! Locks and elections over HTTP, for scripts and people: each request is one command, its reply as JSON.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{Query, State, rejection::BytesRejection},
    http::{StatusCode, Uri},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use kvorum_raft::ReadLevel;
use redis_protocol::resp3::{decode::complete::decode, types::OwnedFrame};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Refusal, json_of};
use crate::{
    args::Args,
    commands::{self, Run},
    error::Error,
    proposal,
    resp::{Protocol, Reply},
    session::{Shared, reply_outcome, wait_time},
    store::{Outcome, View},
    wake::GivenUp,
};

/// What is claimed, and how its commands and fields are called.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    acquire: &'static str,
    renew: &'static str,
    release: &'static str,
    info: &'static str,
    list: &'static str,
    proclaim: Option<&'static str>,
    /// The option for what others are to see.
    data: &'static str,
}

/// `/v1/locks`.
pub(super) const LOCKS: Kind = Kind {
    acquire: "LOCK.ACQUIRE",
    renew: "LOCK.RENEW",
    release: "LOCK.RELEASE",
    info: "LOCK.INFO",
    list: "LOCK.LIST",
    proclaim: None,
    data: "DATA",
};
/// `/v1/elections`.
pub(super) const ELECTIONS: Kind = Kind {
    acquire: "ELECT.CAMPAIGN",
    renew: "ELECT.RENEW",
    release: "ELECT.RESIGN",
    info: "ELECT.LEADER",
    list: "ELECT.LIST",
    proclaim: Some("ELECT.PROCLAIM"),
    data: "VALUE",
};

/// Who asks for what. An election's names are other words for the same.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wish {
    #[serde(alias = "candidate")]
    owner: String,
    /// The token of a hold that is to last longer.
    #[serde(alias = "epoch")]
    token: Option<u64>,
    ttl_ms: Option<u64>,
    lease: Option<String>,
    wait_ms: Option<u64>,
    delay_ms: Option<u64>,
    #[serde(default)]
    shared: bool,
    #[serde(alias = "value")]
    data: Option<String>,
    #[serde(default)]
    db: u32,
}

/// Whose hold ends.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hold {
    #[serde(alias = "candidate")]
    owner: String,
    #[serde(alias = "epoch")]
    token: u64,
    #[serde(default)]
    db: u32,
}

/// Which keys to show.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listing {
    #[serde(rename = "match")]
    pattern: Option<String>,
    cursor: Option<String>,
    #[serde(default)]
    db: u32,
}

/// `POST`: acquires; with a token renews, or has a leader proclaim something.
pub(super) async fn acquire(
    kind: Kind,
    shared: Arc<Shared>,
    key: Vec<u8>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Refusal> {
    let mut wish: Wish = json_of(body)?;
    if wish.token.is_none() {
        let delay_ms = shared.settings.lock_delay_ms().parse().unwrap_or(0);
        wish.delay_ms = wish.delay_ms.or((delay_ms > 0).then_some(delay_ms));
    }
    let (db, waits) = (wish.db, wish.wait_ms > Some(0) && wish.token.is_none());
    match write(&shared, db, &wish.argv(kind, key)?, waits).await? {
        Value::Null => Err(Refusal {
            kind: "urn:kvorum:problem:taken",
            ..Refusal::new(StatusCode::CONFLICT, "others hold it")
        }),
        answer => Ok(Json(answer)),
    }
}

impl Wish {
    /// The command that grants it.
    fn argv(self, kind: Kind, key: Vec<u8>) -> Result<Vec<Vec<u8>>, Refusal> {
        let invalid = |why| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, why);
        let number = |value: u64| value.to_string().into_bytes();
        let owner = self.owner.into_bytes();
        let Some(token) = self.token.map(number) else {
            if self.ttl_ms.is_none() && self.lease.is_none() {
                return Err(invalid("ttl_ms or lease is missing"));
            }
            let options = [
                ("PX", self.ttl_ms.map(number)),
                ("LEASE", self.lease.map(String::into_bytes)),
                ("WAIT", self.wait_ms.map(number)),
                ("DELAY", self.delay_ms.map(number)),
                (kind.data, self.data.map(String::into_bytes)),
            ];
            let options = options.into_iter().filter_map(|(word, value)| Some([word.into(), value?]));
            let shared = self.shared.then(|| b"SHARED".to_vec());
            let call = [kind.acquire.into(), key, owner];
            return Ok(call.into_iter().chain(options.flatten()).chain(shared).collect());
        };
        if self.lease.is_some() || self.wait_ms.is_some() || self.delay_ms.is_some() || self.shared {
            return Err(invalid("lease, wait_ms, delay_ms and shared are for who has no token yet"));
        }
        match (self.ttl_ms, self.data, kind.proclaim) {
            (Some(ttl_ms), None, _) => {
                Ok(vec![kind.renew.into(), key, owner, token, b"PX".to_vec(), number(ttl_ms)])
            }
            (None, Some(value), Some(proclaim)) => {
                Ok(vec![proclaim.into(), key, owner, token, value.into_bytes()])
            }
            (_, _, Some(_)) => Err(invalid("with an epoch, either ttl_ms or value is needed")),
            (_, _, None) => Err(invalid("with a token, ttl_ms is needed and data cannot be given")),
        }
    }
}

/// `DELETE`: releases.
pub(super) async fn release(
    kind: Kind,
    shared: Arc<Shared>,
    key: Vec<u8>,
    hold: Hold,
) -> Result<Json<Value>, Refusal> {
    let argv = [kind.release.into(), key, hold.owner.into_bytes(), hold.token.to_string().into_bytes()];
    let left = write(&shared, hold.db, &argv, false).await?;
    Ok(Json(json!({ "left": left.as_i64().unwrap_or(0) })))
}

/// `GET` of one.
pub(super) async fn info(
    kind: Kind,
    shared: Arc<Shared>,
    key: Vec<u8>,
    db: u32,
) -> Result<Json<Value>, Refusal> {
    match read(&shared, db, &[kind.info.into(), key]).await? {
        Value::Null => Err(Refusal::new(StatusCode::NOT_FOUND, "nobody holds it")),
        info => Ok(Json(info)),
    }
}

/// `GET` of all: a page of keys with what is known of each.
pub(super) async fn list(kind: Kind, shared: Arc<Shared>, listing: Listing) -> Result<Json<Value>, Refusal> {
    let mut argv = vec![kind.list.into()];
    let options = [("MATCH", listing.pattern), ("CURSOR", listing.cursor)];
    for (word, value) in options {
        argv.extend(value.into_iter().flat_map(|value| [word.into(), value.into_bytes()]));
    }
    let page = read(&shared, listing.db, &argv).await?;
    let mut items = Vec::new();
    for key in page[1].as_array().into_iter().flatten() {
        // It may have ended since.
        if let Ok(Value::Object(mut info)) =
            read(&shared, listing.db, &[kind.info.into(), bytes_of(key)]).await
        {
            info.insert("key".into(), key.clone());
            items.push(Value::Object(info));
        }
    }
    Ok(Json(json!({ "cursor": page[0], "items": items })))
}

fn check_db(shared: &Shared, db: u32) -> Result<(), Refusal> {
    if db < shared.settings.databases() {
        return Ok(());
    }
    Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "db is out of range"))
}

async fn read(shared: &Shared, db: u32, argv: &[Vec<u8>]) -> Result<Value, Refusal> {
    check_db(shared, db)?;
    shared.router.barrier(ReadLevel::Linearizable).await?;
    let argv: Vec<&[u8]> = argv.iter().map(Vec::as_slice).collect();
    let Run::Read(run) = commands::resolve(&argv)?.run else {
        return Err(Error::err("a read is needed here").into());
    };
    let read = |view: &View<'_>| {
        let mut reply = Reply::new(Vec::new(), Protocol::Resp3);
        run(view, &Args::new(&argv), &mut reply).map(|()| reply.into_buffer())
    };
    json_of_reply(&shared.router.read_in_time(db, read).await??)
}

/// Whoever hangs up while it waits ends its wait: the handler is dropped.
async fn write(shared: &Shared, db: u32, argv: &[Vec<u8>], waits: bool) -> Result<Value, Refusal> {
    check_db(shared, db)?;
    let argv: Vec<&[u8]> = argv.iter().map(Vec::as_slice).collect();
    let need = commands::resolve(&argv)?.need(&argv);
    shared.router.check_room(need, argv.iter().map(|argument| argument.len()).sum())?;
    let mut bytes = Vec::new();
    if !waits {
        proposal::put_call(&mut bytes, db, &argv);
        return json_of_reply(&shared.router.call(&bytes, 1, Protocol::Resp3).await);
    }
    let mut wait = shared.wakes.register(db, argv[1], wait_time(&argv));
    proposal::put_waiting_call(&mut bytes, wait.ticket(), db, &argv);
    let answer = shared.router.call(&bytes, 1, Protocol::Resp3).await;
    if !answer.is_empty() {
        match answer[0] {
            b'-' if answer.starts_with(b"-UNCERTAIN") => {}
            b'%' => drop(wait.confirm()),
            _ => wait.over(),
        }
        return json_of_reply(&answer);
    }
    wait.queued(&shared.router);
    // What was given up is dropped here, and whatever it is granted goes back.
    let outcome = wait.outcome().await?;
    let mut reply = Reply::new(Vec::new(), Protocol::Resp3);
    reply_outcome(&outcome, &mut reply);
    match outcome {
        Outcome::Granted { .. } => drop(wait.confirm()),
        _ => wait.over(),
    }
    json_of_reply(&reply.into_buffer())
}

/// A reply as JSON; an error as a problem.
fn json_of_reply(reply: &[u8]) -> Result<Value, Refusal> {
    match decode(reply).ok().flatten() {
        Some((OwnedFrame::SimpleError { data, .. }, _)) => Err(refusal_of(&data)),
        Some((frame, _)) => Ok(json_of_frame(frame)),
        None => Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the reply cannot be read")),
    }
}

/// Text as it is; other bytes marked and in base64.
fn json_of_bytes(bytes: Vec<u8>) -> Value {
    match String::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(error) => json!({ "base64": STANDARD.encode(error.as_bytes()) }),
    }
}

/// What `json_of_bytes` shows.
fn bytes_of(shown: &Value) -> Vec<u8> {
    match shown.as_str() {
        Some(text) => text.into(),
        None => STANDARD.decode(shown["base64"].as_str().unwrap_or_default()).unwrap_or_default(),
    }
}

/// A segment of a path as the bytes that it stands for.
fn percent_decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
        match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high << 4 | low) as u8);
                rest = &after[2..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    bytes
}

fn json_of_frame(frame: OwnedFrame) -> Value {
    match frame {
        OwnedFrame::BlobString { data, .. } => json_of_bytes(data),
        OwnedFrame::SimpleString { data, .. } => String::from_utf8_lossy(&data).into(),
        OwnedFrame::Number { data, .. } => data.into(),
        OwnedFrame::Array { data, .. } => data.into_iter().map(json_of_frame).collect(),
        OwnedFrame::Map { data, .. } => {
            let mut map = Map::new();
            for (key, value) in data {
                let Value::String(key) = json_of_frame(key) else { continue };
                map.insert(key, json_of_frame(value));
            }
            Value::Object(map)
        }
        _ => Value::Null,
    }
}

/// What an error reply says, with the status that fits.
fn refusal_of(text: &str) -> Refusal {
    let (word, detail) = text.split_once(' ').unwrap_or(("ERR", text));
    let (status, kind) = match word {
        "NOTHELD" | "NOTOWNER" | "OLDTOKEN" | "UNBLOCKED" | "WRONGTYPE" | "GUARDED" => {
            (StatusCode::CONFLICT, "urn:kvorum:problem:conflict")
        }
        "NOLEASE" => (StatusCode::NOT_FOUND, "urn:kvorum:problem:not-found"),
        "CLUSTERDOWN" | "TRYAGAIN" | "LOADING" => {
            (StatusCode::SERVICE_UNAVAILABLE, "urn:kvorum:problem:unavailable")
        }
        "OOM" => (StatusCode::INSUFFICIENT_STORAGE, super::api::DISK_FULL),
        "UNCERTAIN" => (StatusCode::GATEWAY_TIMEOUT, "urn:kvorum:problem:unknown-outcome"),
        _ => (StatusCode::UNPROCESSABLE_ENTITY, "urn:kvorum:problem:invalid"),
    };
    let detail = if word == "ERR" { detail.to_owned() } else { text.to_owned() };
    Refusal { kind, ..Refusal::new(status, detail) }
}

impl From<GivenUp> for Refusal {
    fn from(why: GivenUp) -> Refusal {
        refusal_of(&why.to_string())
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        refusal_of(&error.to_string())
    }
}

/// The routes of one kind, to be merged into the others.
pub(super) fn routes(path: &str, kind: Kind) -> axum::Router<Arc<Shared>> {
    use axum::routing::get;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct OfDb {
        #[serde(default)]
        db: u32,
    }

    type Asked<T> = Result<Query<T>, axum::extract::rejection::QueryRejection>;
    fn asked<T>(query: Asked<T>) -> Result<T, Refusal> {
        query.map(|Query(asked)| asked).map_err(|error| Refusal::new(error.status(), error.body_text()))
    }

    // Keys need not be UTF-8, of which axum's own extractor would have to make a string.
    let key_of = |uri: &Uri| percent_decoded(uri.path().rsplit('/').next().unwrap_or_default());
    let one = get(move |State(shared), uri: Uri, query: Asked<OfDb>| async move {
        info(kind, shared, key_of(&uri), asked(query)?.db).await
    })
    .post(move |State(shared), uri: Uri, body: Result<Bytes, BytesRejection>| async move {
        acquire(kind, shared, key_of(&uri), body).await
    })
    .delete(move |State(shared), uri: Uri, query: Asked<Hold>| async move {
        release(kind, shared, key_of(&uri), asked(query)?).await
    });
    let all = get(move |State(shared), query: Asked<Listing>| async move {
        list(kind, shared, asked(query)?).await
    });
    axum::Router::new().route(path, all).route(&format!("{path}/{{key}}"), one)
}
