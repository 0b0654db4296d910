//! Locks and elections over HTTP, for scripts and people: each request is one command, with its reply as
//! JSON.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{ConnectInfo, Query, State, rejection::BytesRejection},
    http::{StatusCode, Uri},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use kvorum_raft::ReadLevel;
use redis_protocol::resp3::{decode::complete::decode, types::OwnedFrame};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    api::{Problem, text},
    json_of,
    socket::Socket,
};
use crate::{
    commands::Call,
    connection::{Shared, register},
    error::Error,
    proposal::{self, Answer},
    resp::{Protocol, Reply},
    store::{Fate, View},
    wake::GivenUp,
};

/// The kind of claim, with the names of its commands and fields.
#[derive(Clone, Copy)]
pub(super) struct Resource {
    acquire: &'static str,
    renew: &'static str,
    release: &'static str,
    info: &'static str,
    list: &'static str,
    proclaim: Option<&'static str>,
    /// The option for the data shown to others.
    data: &'static str,
}

/// `/v1/locks`.
pub(super) const LOCKS: Resource = Resource {
    acquire: "LOCK.ACQUIRE",
    renew: "LOCK.RENEW",
    release: "LOCK.RELEASE",
    info: "LOCK.INFO",
    list: "LOCK.LIST",
    proclaim: None,
    data: "DATA",
};
/// `/v1/elections`.
pub(super) const ELECTIONS: Resource = Resource {
    acquire: "ELECT.CAMPAIGN",
    renew: "ELECT.RENEW",
    release: "ELECT.RESIGN",
    info: "ELECT.LEADER",
    list: "ELECT.LIST",
    proclaim: Some("ELECT.PROCLAIM"),
    data: "VALUE",
};

/// The body of an acquisition. Elections use other names for the same fields.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Acquisition {
    #[serde(alias = "candidate")]
    owner: String,
    /// The token of a hold to renew.
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

/// The hold to release.
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

/// Which keys to list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listing {
    #[serde(rename = "match")]
    pattern: Option<String>,
    cursor: Option<String>,
    #[serde(default)]
    db: u32,
}

/// `POST`: acquires; with a token, renews the hold or proclaims a leader's value.
pub(super) async fn acquire(
    kind: Resource,
    shared: Arc<Shared>,
    key: Vec<u8>,
    client: Socket,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Problem> {
    let mut asked: Acquisition = json_of(body)?;
    if asked.token.is_none() {
        let delay_ms = shared.settings.lock_delay_ms().parse().unwrap_or(0);
        asked.delay_ms = asked.delay_ms.or((delay_ms > 0).then_some(delay_ms));
    }
    let (db, waits) = (asked.db, asked.wait_ms > Some(0) && asked.token.is_none());
    let argv = asked.argv(kind, key)?;
    let answer =
        if waits { wait(&shared, db, &argv, client).await? } else { write(&shared, db, &argv).await? };
    match answer {
        Value::Null => Err(Problem::of("urn:kvorum:problem:taken", StatusCode::CONFLICT, "others hold it")),
        answer => Ok(Json(answer)),
    }
}

impl Acquisition {
    /// The command for this request.
    fn argv(self, kind: Resource, key: Vec<u8>) -> Result<Vec<Vec<u8>>, Problem> {
        let invalid = |why| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why);
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
    kind: Resource,
    shared: Arc<Shared>,
    key: Vec<u8>,
    hold: Hold,
) -> Result<Json<Value>, Problem> {
    let argv = [kind.release.into(), key, hold.owner.into_bytes(), hold.token.to_string().into_bytes()];
    let left = write(&shared, hold.db, &argv).await?;
    Ok(Json(json!({ "left": left.as_i64().unwrap_or(0) })))
}

/// `GET` of one key.
pub(super) async fn info(
    kind: Resource,
    shared: Arc<Shared>,
    key: Vec<u8>,
    db: u32,
) -> Result<Json<Value>, Problem> {
    match read(&shared, db, &[kind.info.into(), key]).await? {
        Value::Null => Err(Problem::new(StatusCode::NOT_FOUND, "nobody holds it")),
        info => Ok(Json(info)),
    }
}

/// `GET` of the list: a page of keys with the state of each.
pub(super) async fn list(
    kind: Resource,
    shared: Arc<Shared>,
    listing: Listing,
) -> Result<Json<Value>, Problem> {
    let mut argv = vec![kind.list.into()];
    let options = [("MATCH", listing.pattern), ("CURSOR", listing.cursor)];
    for (word, value) in options {
        argv.extend(value.into_iter().flat_map(|value| [word.into(), value.into_bytes()]));
    }
    let page = read(&shared, listing.db, &argv).await?;
    let mut items = Vec::new();
    for key in page[1].as_array().into_iter().flatten() {
        // It may have been released since.
        if let Ok(Value::Object(mut info)) =
            read(&shared, listing.db, &[kind.info.into(), bytes_of(key)]).await
        {
            info.insert("key".into(), key.clone());
            items.push(Value::Object(info));
        }
    }
    Ok(Json(json!({ "cursor": page[0], "items": items })))
}

fn check_db(shared: &Shared, db: u32) -> Result<(), Problem> {
    if db < shared.settings.databases() {
        return Ok(());
    }
    Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "db is out of range"))
}

async fn read(shared: &Shared, db: u32, argv: &[Vec<u8>]) -> Result<Value, Problem> {
    check_db(shared, db)?;
    let argv: Vec<&[u8]> = argv.iter().map(Vec::as_slice).collect();
    let call = Call::resolve(&argv)?;
    let read = |view: &View<'_>| {
        let mut reply = Reply::new(Vec::new(), Protocol::Resp3);
        call.read(view, &mut reply).map(|()| reply.into_buffer().into_bytes())
    };
    json_of_reply(&shared.router.read_at(ReadLevel::Linearizable, db, read).await??)
}

/// The call of a write, after checking that it may be proposed.
fn checked<'a>(shared: &Shared, db: u32, argv: &'a [&'a [u8]]) -> Result<Call<'a>, Problem> {
    check_db(shared, db)?;
    let call = Call::resolve(argv)?;
    shared.router.check_room(call.need(), argv.iter().map(|argument| argument.len()).sum())?;
    Ok(call)
}

async fn write(shared: &Shared, db: u32, argv: &[Vec<u8>]) -> Result<Value, Problem> {
    let argv: Vec<&[u8]> = argv.iter().map(Vec::as_slice).collect();
    let call = checked(shared, db, &argv)?;
    let mut bytes = Vec::new();
    proposal::put_call(&mut bytes, db, call.args.from(0));
    json_of_reply(&shared.router.call(&bytes, 1, Protocol::Resp3).await)
}

/// A client that disconnects ends its wait and is granted nothing: either the handler is dropped, or it
/// notices.
async fn wait(shared: &Shared, db: u32, argv: &[Vec<u8>], client: Socket) -> Result<Value, Problem> {
    // Nobody reads this response.
    let gone = || Problem::new(StatusCode::REQUEST_TIMEOUT, "the client has hung up");
    let argv: Vec<&[u8]> = argv.iter().map(Vec::as_slice).collect();
    let call = checked(shared, db, &argv)?;
    let mut bytes = Vec::new();
    let mut wait = register(&shared.wakes, db, &call);
    proposal::put_waiting_call(&mut bytes, wait.ticket(), db, &argv);
    let Answer { mut replies, mut fate } = shared.router.ask(&bytes, 1, Protocol::Resp3).await;
    if fate == Fate::Queued {
        wait.queued(&shared.router);
        // If the wait was given up, it is dropped here, and whatever it is granted is released.
        tokio::select! {
            ended = wait.ended() => ended?,
            () = client.ended() => return Err(gone()),
        }
        if let Some(outcome) = wait.told() {
            (replies, fate) = (outcome.reply.as_bytes(Protocol::Resp3).to_vec().into(), outcome.fate);
        }
    }
    match fate {
        // The wait may be in the log: dropping it cancels it.
        Fate::Unknown | Fate::Queued => {}
        Fate::Granted if client.has_ended() => return Err(gone()),
        Fate::Granted => drop(wait.confirm()),
        Fate::Replied | Fate::Refused => wait.over(),
    }
    json_of_reply(&replies.into_bytes())
}

/// A reply as JSON; an error becomes a problem.
fn json_of_reply(reply: &[u8]) -> Result<Value, Problem> {
    match decode(reply).ok().flatten() {
        Some((OwnedFrame::SimpleError { data, .. }, _)) => Err(problem_of(&data)),
        Some((frame, _)) => Ok(json_of_frame(frame)),
        None => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the reply cannot be read")),
    }
}

/// Reverses `api::text`.
fn bytes_of(shown: &Value) -> Vec<u8> {
    match shown.as_str() {
        Some(text) => text.into(),
        None => STANDARD.decode(shown["base64"].as_str().unwrap_or_default()).unwrap_or_default(),
    }
}

/// Percent-decodes a segment of a path.
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
        OwnedFrame::BlobString { data, .. } => text(&data),
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

/// The problem for an error reply, with a matching status.
fn problem_of(text: &str) -> Problem {
    let (word, detail) = text.split_once(' ').unwrap_or(("ERR", text));
    let (status, kind) = match word {
        "NOTHELD" | "NOTOWNER" | "OLDTOKEN" | "UNBLOCKED" | "WRONGTYPE" | "GUARDED" => {
            (StatusCode::CONFLICT, "urn:kvorum:problem:conflict")
        }
        "NOLEASE" => (StatusCode::NOT_FOUND, "urn:kvorum:problem:not-found"),
        "CLUSTERDOWN" | "TRYAGAIN" | "LOADING" => {
            (StatusCode::SERVICE_UNAVAILABLE, "urn:kvorum:problem:unavailable")
        }
        "OOM" if text == Error::OutOfMemory.to_string() => {
            (StatusCode::INSUFFICIENT_STORAGE, super::api::MEMORY_FULL)
        }
        "OOM" => (StatusCode::INSUFFICIENT_STORAGE, super::api::DISK_FULL),
        "UNCERTAIN" => (StatusCode::GATEWAY_TIMEOUT, "urn:kvorum:problem:unknown-outcome"),
        _ => (StatusCode::UNPROCESSABLE_ENTITY, "urn:kvorum:problem:invalid"),
    };
    let detail = if word == "ERR" { detail.to_owned() } else { text.to_owned() };
    Problem::of(kind, status, detail)
}

impl From<GivenUp> for Problem {
    fn from(why: GivenUp) -> Problem {
        problem_of(&why.to_string())
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        problem_of(&error.to_string())
    }
}

/// The routes of one kind.
pub(super) fn routes(path: &str, kind: Resource) -> axum::Router<Arc<Shared>> {
    use axum::routing::get;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct OfDb {
        #[serde(default)]
        db: u32,
    }

    type Asked<T> = Result<Query<T>, axum::extract::rejection::QueryRejection>;
    fn asked<T>(query: Asked<T>) -> Result<T, Problem> {
        query.map(|Query(asked)| asked).map_err(|error| Problem::new(error.status(), error.body_text()))
    }

    // Keys need not be UTF-8, but axum's own extractor requires a string.
    let key_of = |uri: &Uri| percent_decoded(uri.path().rsplit('/').next().unwrap_or_default());
    let one = get(move |State(shared), uri: Uri, query: Asked<OfDb>| async move {
        info(kind, shared, key_of(&uri), asked(query)?.db).await
    })
    .post(
        move |State(shared), ConnectInfo(client), uri: Uri, body: Result<Bytes, BytesRejection>| async move {
            acquire(kind, shared, key_of(&uri), client, body).await
        },
    )
    .delete(move |State(shared), uri: Uri, query: Asked<Hold>| async move {
        release(kind, shared, key_of(&uri), asked(query)?).await
    });
    let all = get(move |State(shared), query: Asked<Listing>| async move {
        list(kind, shared, asked(query)?).await
    });
    axum::Router::new().route(path, all).route(&format!("{path}/{{key}}"), one)
}
